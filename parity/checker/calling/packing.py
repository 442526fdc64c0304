"""What goes through a pipe: arrays as safetensors, and a stranger's words made harmless."""

from typing import Any

import numpy as np


def pack(arrays: dict[str, np.ndarray]) -> bytes:
    """Arrays as safetensors; b"" for none."""
    from safetensors.numpy import save

    return save({name: np.array(x, order="C", copy=True).reshape(np.shape(x)) for name, x in arrays.items()}) if arrays else b""


def unpack(body: bytes) -> dict[str, np.ndarray]:
    """The reverse of `pack`.  Raises ValueError for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load as load_arrays

    try:
        return load_arrays(body) if body else {}
    except SafetensorError as error:
        raise ValueError(f"arrays: expected safetensors, got {error}") from None


def visible(text: Any) -> str:
    """Control characters as \\x1b, and those that turn the text around: a terminal obeys none of them."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in str(text))


def harmless(x: Any) -> Any:
    """JSON with every string made visible."""
    if isinstance(x, str):
        return visible(x)
    if isinstance(x, dict):
        return {visible(key): harmless(value) for key, value in x.items()}
    return [harmless(value) for value in x] if isinstance(x, list) else x

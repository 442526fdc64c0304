"""Arrays on a pipe: safetensors."""

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

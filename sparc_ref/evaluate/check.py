"""What every measure asks of its input before it looks at it: the right shape, and no NaN."""

import numpy as np


def finite(name, x, shape):
    """x as a floating array of the shape asked for, e.g. finite("v", v, ("N", "P", 64)).

    Letters stand for any size. ValueError: other rank or size, not numbers, NaN or infinity.
    """
    x = sized(name, x, shape)
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected real numbers, got dtype {x.dtype}")
    bad = int(np.size(x) - np.count_nonzero(np.isfinite(x)))
    if bad:
        raise ValueError(f"{name}: expected finite numbers, got {bad} of {np.size(x)} that are NaN or infinite")
    return x if x.dtype.kind == "f" else x.astype(np.float64)


def integers(name, x, shape):
    """x as an int64 array of the shape asked for. ValueError: other rank or size, or not integers."""
    x = sized(name, x, shape)
    if x.dtype.kind not in "iu":
        raise ValueError(f"{name}: expected integers, got dtype {x.dtype}")
    return x.astype(np.int64)


def booleans(name, x, shape):
    """x as a bool array of the shape asked for. ValueError: other rank or size, or not booleans."""
    x = sized(name, x, shape)
    if x.dtype != np.bool_:
        raise ValueError(f"{name}: expected booleans, got dtype {x.dtype}")
    return x


def sized(name, x, shape):
    """x as an array of the shape asked for; letters stand for any size. ValueError: another rank or size."""
    if isinstance(x, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected a plain array, got NumPy's MaskedArray; its .data, or .filled(), is one")
    x = np.asarray(x)
    if x.ndim != len(shape) or any(isinstance(n, int) and n != m for n, m in zip(shape, x.shape)):
        raise ValueError(f"{name}: expected ({','.join(map(str, shape))}), got {x.shape}")
    return x


def chosen(name, value, allowed):
    """value, if it is one of those allowed. ValueError otherwise."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def unit(x):
    """Rows of length one, in float64; a row of zeros stays zero: its cosine with anything is 0.   (...,D) -> (...,D)"""
    x = np.asarray(x, dtype=np.float64)
    scale = np.max(np.abs(x), axis=-1, keepdims=True, initial=0)  # first, so that squares neither overflow nor vanish
    x = x / np.where(scale == 0, 1.0, scale)
    length = np.sqrt(np.sum(x * x, axis=-1, keepdims=True))
    return x / np.where(length == 0, 1.0, length)

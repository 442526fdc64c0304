"""NumPy arrays whose matrix products round as a GPU's would: operands to bfloat16 or TF32, the rest in float32."""

import numpy as np

BITS = {"bfloat16": 7, "tf32": 10}  # of the mantissa, beside the leading 1

EVERYWHERE = {"bfloat16 everywhere": 7, "float16 everywhere": 10}


def round_to(x: np.ndarray, bits: int) -> np.ndarray:
    """float32 rounded to the nearest number with so many mantissa bits, ties to even.      x (...) float32 -> (...) float32"""
    x = np.ascontiguousarray(x, np.float32)
    raw = x.view(np.uint32)
    drop = np.uint32(23 - bits)
    half = np.uint32((1 << (22 - bits)) - 1) + ((raw >> drop) & np.uint32(1))
    out = ((raw + half) >> drop << drop).view(np.float32)
    return np.where(np.isfinite(x), out, x)


class Rounded(np.ndarray):
    """A float32 array; what is computed from it is one too.  Only np.matmul differs, or every operation.

    "bfloat16": operands and result are rounded, as under autocast.  "tf32": operands alone; sums are float32.
    "bfloat16 everywhere", "float16 everywhere": the result of each operation is rounded, as that of such arrays is.
    """

    kind = "bfloat16"

    def __array_finalize__(self, other):
        self.kind = getattr(other, "kind", "bfloat16")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **keywords):
        base = [np.asarray(x) if isinstance(x, Rounded) else x for x in inputs]
        kind = next((x.kind for x in (*inputs, *(out or ())) if isinstance(x, Rounded)), self.kind)
        if ufunc is np.matmul and kind in BITS and all(x.dtype == np.float32 for x in base):
            base = [round_to(x, BITS[kind]) for x in base]
        if out is not None:
            keywords["out"] = tuple(np.asarray(x) if isinstance(x, Rounded) else x for x in out)
        y = getattr(ufunc, method)(*base, **keywords)
        if kind in EVERYWHERE and isinstance(y, np.ndarray | np.floating) and y.dtype == np.float32:
            y = round_to(y, EVERYWHERE[kind])
            if out is not None:
                keywords["out"][0][...] = y
        if out is not None:
            return out[0] if len(out) == 1 else out
        if ufunc is np.matmul and kind == "bfloat16" and y.dtype == np.float32:
            y = round_to(y, BITS[kind])
        return rounded(y, kind) if isinstance(y, np.ndarray) and y.dtype == np.float32 else y


def rounded(x: np.ndarray, kind: str) -> Rounded:
    """x as an array whose products round.      kind: one of BITS or of EVERYWHERE"""
    y = np.asarray(x).view(Rounded)
    y.kind = kind
    return y

"""What a case is made of: numbers that every machine draws alike, a function, and the case's definition."""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.vectors.budgets import LOW


class Draw:
    """Numbers from PCG64's raw stream, which NumPy keeps from version to version (distributions it does not).

    All are whole multiples of a power of two, so that float32 holds each of them exactly.
    """

    def __init__(self, seed: int):
        self.bits = np.random.PCG64(seed)

    def _raw(self, shape):
        return np.asarray(self.bits.random_raw(int(np.prod(shape, dtype=int))), np.uint64).reshape(shape)

    def _bell(self, shape):
        """Four 16-bit numbers added up, less their mean: roughly normal, whole, standard deviation 37837, |x| < 2**17"""
        raw = self._raw(shape)
        parts = [((raw >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64) for shift in (0, 16, 32, 48)]
        return sum(parts) - 2 * 0xFFFF

    def normal(self, *shape: int) -> np.ndarray:
        """Roughly normal, standard deviation 1.15, multiples of 2**-15: too fine for float16, bfloat16 and TF32."""
        return (self._bell(shape) / 2**15).astype(np.float32)

    def coarse(self, *shape: int) -> np.ndarray:
        """The same in multiples of 1/32 within [-4, 4]: exact in float16 and bfloat16 too."""
        return ((self._bell(shape) >> 10) / 32).astype(np.float32)

    def ids(self, high: int, *shape: int) -> np.ndarray:
        """Whole numbers in [0, high)."""
        return (self._raw(shape) % np.uint64(high)).astype(np.int64)


def lengths(size: int, *real: int) -> np.ndarray:
    """A mask: captions of `real` tokens each, padded to `size`.      -> (B,L) bool"""
    return np.arange(size) < np.array(real)[:, None]


def number(x: float) -> np.ndarray:
    """The float32 nearest to x, 0-d."""
    return np.asarray(x, np.float32)


Values = dict[str, Any]


@dataclass(frozen=True)
class Function:
    """One thing that can be computed, twice: by the reference and by the oracle.

    ours(inputs, options)   -> out, mid, back; back(upstream gradients by name) -> gradients by the inputs' names
    theirs(inputs, options) -> out, mid, on torch tensors
    held(inputs, options)   -> a function inputs -> out whose decisions (minimum, maximum, threshold) stay those of `inputs`
    axes                    letters of each tensor's dimensions, by name without prefix; one letter is one size in a case
    shuffled                letters of dimensions whose order has no meaning: budgets are measured in several orders
    constant                floating inputs that get no gradient
    padded                  stages and outputs count at real tokens alone (inputs have a mask (B,L))
    low                     the dtypes, besides float64, in which it is run to measure budgets
    witness                 an implementation of somebody else, theirs' signature, where there are no gradients to be checked
    """

    level: str
    ours: Callable
    theirs: Callable
    axes: Mapping[str, str] | Callable[[dict], Mapping[str, str]]
    shuffled: str = ""
    held: Callable | None = None
    constant: tuple[str, ...] = ()
    padded: bool = False
    low: tuple[str, ...] = LOW
    witness: Callable | None = None

    def letters(self, options: dict) -> Mapping[str, str]:
        """The letters of every tensor under these options."""
        return self.axes(options) if callable(self.axes) else self.axes


@dataclass(frozen=True)
class Definition:
    """A case before anything is computed: what goes in, under which options, and what it is there to catch."""

    id: str
    function: str
    inputs: Values
    options: Values = field(default_factory=dict)
    flags: tuple[str, ...] = ("ordinary",)
    note: str = ""
    accepts: tuple[str, ...] = ()
    input_dtype: str = "float32"
    upstream: Values = field(default_factory=dict)  # in place of drawn ones
    left_out: tuple[str, ...] = ()  # stages that the equations leave undefined here
    edge: bool = False  # differences are taken with the decisions held

    @property
    def words(self) -> str:
        """The note, and which answers are right."""
        alone = " Accepted: this answer alone." if "ordinary" not in self.flags and not self.accepts else ""
        return self.note + alone

    def draw_upstream(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A random gradient of an output, its seed made of the case's name."""
        if name in self.upstream:
            return np.asarray(self.upstream[name], np.float32)
        source = self.accepts[0] if self.accepts else self.id  # an accepted answer's gradients must meet the same upstream
        draw = Draw(zlib.crc32(f"{source} {name}".encode()))
        x = draw.normal(*shape) if self.input_dtype == "float32" else draw.coarse(*shape)
        return np.where(x == 0, np.float32(0.5), x).astype(np.float32)

"""Moments in 8 or 4 bits, with a scale for each block of elements."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam.storage._codes import Code, Quotient, Root
from jaxopt_adam.storage._rounding import NEAREST, ROUNDINGS
from jaxopt_adam.storage._sliding import SlidingRoot

_LARGE = 2**20


class Blocks(NamedTuple):
    """A moment in 8 or 4 bits, as it is in a state if it does not share an array with another moment.

    A first moment and the second moment that it is divided by are packed into the same integers if their codes have the
    same number of bits. The state then has no Blocks, but one array for each leaf and moment. The array of the first
    moment has the codes of both: uint16 for two codes of 8 bits, uint8 for two codes of 4. The codes of the second
    moment are in the lower half. The array of the second moment has the scales of both, uint32, in the same order.

    Attributes:
        codes: a tree like the parameters, of uint8 in the parameters' shapes. Two codes of 4 bits share a byte; the
            last axis is then half as long. For a leaf without codes this tree has the moment itself.
        scales: a tree like the parameters, of the scales of the blocks along the last axis, 16 bits each; None for
            leaves without codes.
    """

    codes: Any
    scales: Any


@dataclasses.dataclass(frozen=True)
class Blockwise:
    r"""Moments in 8 or 4 bits, in blocks along the last axis of a leaf.

    A second moment v is stored as the number of a line of a grid, which is about logarithmic. A first moment is stored
    as m / (√v + ε). Up to a factor that is the update, and the error of the update is what matters. The grid of a block
    spans the numbers in that block. A second moment that is not zero never becomes zero.

    An infinite or NaN element makes its own block NaN. No other block changes. Leaves that are complex or float64, and
    moments that a rule shares among elements or that start as the parameters, are not stored in codes.

    Args:
        bits: the bits of a code, 8 or 4.
        block_size: the largest number of elements of a block, even and at least 16. None means 128 with 8 bits and 64
            with 4. The two moments of a parameter then take 2.03 and 1.06 bytes. In leaves under a million elements,
            None means 32 and 16, because there more accuracy costs little memory. Blocks are shorter if only a shorter
            length divides the last axis, or divides it into whole blocks for 8 devices. If only a longer length does
            so, they are up to twice as long, unless a size is given. A block has at least 16 elements, or the whole
            axis. If eight devices have one block each, it has at least 12, or 8 if a moment of 4 bits is stored alone.
        rounding: "dither" rounds up in a fraction of the steps, which are evenly spread. "stochastic" decides by a hash
            of step and position. Both are the same on any layout of devices. In the long run, the mean error of log v
            is about 0.01 with 8 bits, and a few tenths with 4. With "nearest" small changes are lost.
        min_size: leaves with fewer elements stay in float32.
        implementation: "auto", which is "xla", for several passes over the leaf, each in place; "pallas" for a kernel
            with a single pass, if the blocks' lengths are powers of two. The kernel is an experiment: it has never run
            on a GPU. The tests run it in interpret mode, and lower it for CUDA. It needs a JAX with Pallas' Triton
            backend, and a leaf that is not divided among devices. It has no derivative.

    Raises:
        ValueError: if an argument is none of these.
    """

    bits: int = 8
    block_size: int | None = None
    rounding: str = "dither"
    min_size: int = 4096
    implementation: str = "auto"

    def __post_init__(self) -> None:
        size = self.block_size
        if self.bits not in (8, 4):
            raise ValueError(f"Blockwise: bits must be 8 or 4, got {self.bits!r}")
        if size is not None and (not isinstance(size, int) or size < 16 or size % 2):
            raise ValueError(f"Blockwise: block_size must be an even whole number ≥ 16 or None, got {size!r}")
        if self.rounding not in ROUNDINGS:
            raise ValueError(f"Blockwise: rounding must be one of {', '.join(ROUNDINGS)}, got {self.rounding!r}")
        if not isinstance(self.min_size, int) or self.min_size < 1:
            raise ValueError(f"Blockwise: min_size must be a whole number ≥ 1, got {self.min_size!r}")
        if self.implementation not in ("auto", "xla", "pallas"):
            raise ValueError(f"Blockwise: implementation must be one of auto, xla, pallas, got {self.implementation!r}")

    def suits(self, shape: tuple[int, ...], dtype: np.dtype) -> bool:
        """True if a leaf of that shape, computed in that dtype, is stored in codes."""
        return dtype == jnp.float32 and int(np.prod(shape)) >= self.min_size and len(shape) > 0

    def code(self, *, nonnegative: bool, decays: bool = False) -> Code:
        """The code of a moment: whether it is never negative, and whether it is an average whose decay is known."""
        if not nonnegative:
            return Quotient(self.bits)
        return SlidingRoot(self.bits) if decays and self.bits == 4 else Root(self.bits)

    def longest(self, size: int) -> int:
        """The largest number of elements of a block in a leaf of `size` elements."""
        if self.block_size is not None:
            return self.block_size
        return (32 if size < _LARGE else 128) // (8 // self.bits)

    def start(self, initial: ArrayLike, *, nonnegative: bool) -> tuple[Array, Array]:
        """The int32 code and the scale of a block in which every element, or its quotient, is `initial`."""
        return _start(self.code(nonnegative=nonnegative), initial)


@functools.partial(jax.jit, static_argnums=0, inline=True)  # or `init` without jit compiles some fifty operations
def _start(code: Code, initial: ArrayLike) -> tuple[Array, Array]:
    value = jnp.full([1, 1], initial, jnp.float32)
    before = jnp.zeros([1], code.scale_dtype)
    scale = code.scale(before, *(measure[:, 0] for measure in code.measures(value, None)))
    return code.encode(value, None, code.ruler(code.grid(scale[:, None])), jnp.asarray(NEAREST))[0, 0], scale[0]

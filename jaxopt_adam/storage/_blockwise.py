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

_LARGE = 2**20


class Blocks(NamedTuple):
    """A moment in 8 or 4 bits, as a state has it if it shares its numbers with no other moment.

    A first moment and the second moment that it is divided by share their integers if they have equally many bits. The
    state then has no Blocks, but an array for each leaf and moment: in place of the first moment the codes of both,
    uint16 for two of 8 bits and uint8 for two of 4, those of the second moment in the lower half; and in place of the
    second moment the scales of both, uint32, in the same order.

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
    as m / (√v + ε), which is the update itself, because its error is the one that matters. The grid of a block spans
    the numbers that are in it. A second moment that is not zero never becomes zero.

    An infinite or NaN element makes its block NaN, and no other block. Leaves that are complex or float64, and moments
    that a rule shares among elements or that start as the parameters, are not stored in codes.

    Args:
        bits: the bits of a code, 8 or 4.
        block_size: the largest number of elements of a block, even and at least 16. None for 128 with 8 bits and 64
            with 4, which makes 2.03 and 1.06 bytes for the two moments of a parameter; in leaves under a million
            elements, where more accuracy costs little memory, the blocks have 32 and 16 elements. Blocks are shorter
            where only shorter ones divide the last axis, or divide it into whole blocks for 8 devices. Where only
            longer ones do, they are up to twice as long, unless a size is given. They have at least 16 elements or the
            whole axis; where eight devices have one each, at least 12, or 8 for a moment of 4 bits that is alone.
        rounding: "dither" rounds up in a share of the steps, evenly spread; "stochastic" by numbers that are a hash of
            step and position. Both are the same on any layout of devices. Over time the logarithm of v is right on
            average to less than a hundredth in 8 bits, to some tenths in 4. With "nearest" small changes get lost.
        min_size: leaves with fewer elements stay in float32.
        implementation: "auto", which is "xla", for several passes over the leaf, each in place; "pallas" for a kernel
            with a single pass, if the blocks' lengths are powers of two. The kernel is an experiment: it has never run
            on a GPU. The tests run it interpreted, and lower it for CUDA. It needs a JAX with Pallas' Triton backend, a
            leaf that is not divided among devices, and has no derivative.

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

    def code(self, *, nonnegative: bool) -> Code:
        """The code of a moment; `nonnegative` says that the moment is never negative."""
        return Root(self.bits) if nonnegative else Quotient(self.bits)

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
    return code.encode(value, None, code.grid(scale[:, None]), jnp.asarray(NEAREST))[0, 0], scale[0]

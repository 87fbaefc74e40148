"""Formats of other libraries for Adam's moments, written from their papers, to compare with ours."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

__all__ = ["OTHERS", "Format", "dynamic_map", "flashoptim", "nearest", "torchao_4bit", "torchao_8bit"]


@dataclasses.dataclass(frozen=True)
class Format:
    """A storage of the two moments of one leaf.

    Args:
        name: of the format.
        store: ``store(mu, nu)``: the stored arrays, with codes of four bits in a byte each.
        load: ``load(kept, shape)``: the moments from the stored arrays.
        size: bytes a parameter, scales included.
    """

    name: str
    store: Callable[[Array, Array], Any]
    load: Callable[[Any, tuple[int, ...]], tuple[Array, Array]]
    size: float


def flashoptim(group: int = 32) -> Format:
    """FlashOptim's (arXiv:2602.23349, algorithms 2 and 3), 8 bits.

    The first moment's code is linear in its softsign, the second's in its root, both divided by the largest of a group,
    which is kept in float16.
    """

    def store(mu: Array, nu: Array) -> Any:
        kept = []
        for value, levels, squash in ((mu, 127, lambda x: 2 * x / (1 + jnp.abs(x))), (jnp.sqrt(nu), 255, lambda x: x)):
            blocks, largest = _blocks(value, group)
            scale = largest.astype(jnp.float16)
            wide = scale.astype(jnp.float32)
            share = jnp.clip(blocks / jnp.where(wide > 0, wide, 1), -1, 1)
            kept.append((jnp.round(levels * squash(share)).astype(jnp.int16), scale))
        return kept

    def load(kept: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
        (mu, mu_scale), (root, root_scale) = kept
        share = mu / 127
        mu = share / (2 - jnp.abs(share)) * mu_scale.astype(jnp.float32)
        return _whole(mu, shape), _whole(root / 255 * root_scale.astype(jnp.float32), shape) ** 2

    return Format("FlashOptim", store, load, 2 + 4 / group)


def torchao_8bit(block: int = 256) -> Format:
    """The format of torchao's AdamW8bit: Dettmers et al. (arXiv:2110.02861) with blocks of 256 and float32 scales."""
    maps = dynamic_map(signed=True, exponent_bits=7, bits=8), dynamic_map(signed=False, exponent_bits=7, bits=8)
    return _mapped("torchao", *maps, block, 8)


def torchao_4bit(block: int = 128) -> Format:
    """The format of torchao's AdamW4bit: Li et al. (arXiv:2309.01507) without their normalization by rows and columns.

    The map of the second moment is linear and has no zero.
    """
    maps = dynamic_map(signed=True, exponent_bits=3, bits=4), np.linspace(0, 1, 17, dtype=np.float32)[1:]
    return _mapped("torchao", *maps, block, 4)


def dynamic_map(*, signed: bool, exponent_bits: int, bits: int) -> np.ndarray:
    """The numbers of dynamic tree quantization: decades of 10, each divided twice as finely as the one below."""
    numbers = [0.0, 1.0]
    for exponent in range(exponent_bits):
        # Without a sign, its bit doubles the numbers of a decade.
        width = 2 ** (exponent + bits - 1 - exponent_bits + (not signed))
        edges = np.linspace(0.1, 1, width + 1)
        middles = 10.0 ** (exponent - exponent_bits + 1) * (edges[:-1] + edges[1:]) / 2
        numbers += [*middles, *(-middles if signed else ())]
    assert len(numbers) == 2**bits
    return np.sort(np.array(numbers, np.float32))


def _mapped(name: str, signed: np.ndarray, unsigned: np.ndarray, block: int, bits: int) -> Format:
    """A code is the place in a map of the number nearest to the moment over the largest moment of the block."""

    def store(mu: Array, nu: Array) -> Any:
        kept = []
        for value, numbers in ((mu, signed), (nu, unsigned)):
            blocks, largest = _blocks(value, block)
            scale = jnp.maximum(largest, 1e-12)
            middles = jnp.asarray((numbers[:-1] + numbers[1:]) / 2)
            codes = jnp.searchsorted(middles, blocks / scale, side="right", method="scan_unrolled")
            kept.append((codes.astype(jnp.uint8), scale))
        return kept

    def load(kept: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
        mu, nu = (
            _whole(jnp.asarray(numbers)[codes.astype(jnp.int32)] * scale, shape)
            for (codes, scale), numbers in zip(kept, (signed, unsigned), strict=True)
        )
        return mu, nu

    return Format(name, store, load, 2 * (bits / 8 + 4 / block))


def _blocks(value: Array, length: int) -> tuple[Array, Array]:
    """The elements in order, by blocks, and the largest magnitude in each block."""
    flat = value.reshape(-1)
    blocks = jnp.pad(flat, (0, -flat.size % length)).reshape(-1, length)
    return blocks, jnp.max(jnp.abs(blocks), axis=1, keepdims=True)


def _whole(blocks: Array, shape: tuple[int, ...]) -> Array:
    return jax.lax.slice_in_dim(blocks.reshape(-1), 0, int(np.prod(shape))).reshape(shape)


def nearest(name: str, mu: DTypeLike, nu: DTypeLike) -> Format:
    """Two arrays of floating-point dtypes, rounded to the nearest."""

    def store(first: Array, second: Array) -> Any:
        # Without a barrier the compiler may remove a cast and the cast back.
        return jax.lax.optimization_barrier((first.astype(mu), second.astype(nu)))

    def load(kept: Any, shape: tuple[int, ...]) -> tuple[Array, Array]:
        first, second = kept
        return first.astype(jnp.float32), second.astype(jnp.float32)

    return Format(name, store, load, np.dtype(mu).itemsize + np.dtype(nu).itemsize)


OTHERS = {
    "bfloat16, to the nearest": nearest("bfloat16", jnp.bfloat16, jnp.bfloat16),
    "optax's mu_dtype=bfloat16": nearest("mu in bfloat16", jnp.bfloat16, jnp.float32),
    "FlashOptim, 8 bits": flashoptim(),
    "torchao, 8 bits": torchao_8bit(),
    "torchao, 4 bits": torchao_4bit(),
}
"""The formats by their names in tables."""

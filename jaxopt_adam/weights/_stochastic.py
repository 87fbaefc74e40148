"""Stochastic rounding of low-precision parameters."""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam._hyperparameters import Transformation, whole
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._trees import fields, refuse_part
from jaxopt_adam.storage._patterns import from_bits, to_bits
from jaxopt_adam.weights._sums import rounded_sum
from jaxopt_adam.weights._within import BY_POSITION, Move, in_float32, move_to, update_within

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
"""The rotations of threefry's rounds, of each group of four and of the next."""


class StochasticRoundingState(NamedTuple):
    """The state of :func:`stochastic_rounding`.

    Attributes:
        inner_state: the state of the inner optimizer.
        key: the data of the random key of the next update, two uint32.
    """

    inner_state: Any
    key: Array


@optimizer
def stochastic_rounding(
    inner: Transformation, seed: Annotated[int, whole(0)] = 0
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic rounding: any optimizer, for parameters in bfloat16 or float16 that are right on average.

    .. math::
        w_t &= \theta_{t-1} + u_t(g_t, \theta_{t-1}) \\
        \theta_t &= \begin{cases}
            \lceil w_t \rceil & \text{with probability }
                (w_t - \lfloor w_t \rfloor) / (\lceil w_t \rceil - \lfloor w_t \rfloor) \\
            \lfloor w_t \rfloor & \text{else}
        \end{cases}

    with u the update of the inner optimizer, which sees the parameters and the gradients in float32, and
    :math:`\lfloor w \rfloor` and :math:`\lceil w \rceil` the numbers of the parameter's dtype next to w. An update that
    is too small for the parameter changes it only now and then, but on average by the right amount.

    Choose it if there is no memory for more: it keeps only a random key beside the parameters. The last bit of the
    parameters becomes noisy. :func:`master_weights` avoids this noise. As with :func:`master_weights`, nothing after it
    may change its updates. Parameters of other dtypes are updated as usual.

    The random bits are the same on any number of devices, and however the program is compiled. A weight within the
    dtype's range is never rounded to infinity. A weight beyond that range becomes infinite.

    Args:
        inner: the optimizer, ours or optax's; its updates are to be added to the parameters, so it must have a learning
            rate.
        seed: the seed of the random bits, a whole number ≥ 0, from which ``init`` makes the `key` of the state.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`StochasticRoundingState`. Its `update` needs `params`.

    Raises:
        TypeError: if `inner` is not an optimizer, or `seed` is not a whole number.
        ValueError: if `seed` is negative.

    References:
        Gupta et al., Deep Learning with Limited Numerical Precision, 2015; Zamirai et al., Revisiting BFloat16
        Training, 2020, algorithm 1.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxopt_adam import sgd, stochastic_rounding
        >>> optimizer, params = stochastic_rounding(sgd(1e-3)), jnp.ones(10_000, jnp.bfloat16)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
        >>> params = optax.apply_updates(params, updates)
        >>> print(params.min(), params.max(), f"{params.mean(dtype=jnp.float32):.3f}")
        0.996094 1 0.999
    """
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> StochasticRoundingState:
        key = jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))
        return StochasticRoundingState(wrapped.init(in_float32(params)), key)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, StochasticRoundingState]:
        inner_state, key_data = fields(state, "inner_state", "key", of=StochasticRoundingState)
        tree, moves, inner_state = update_within(
            "stochastic_rounding",
            wrapped,
            updates,
            inner_state,
            params,
            None,
            lambda path, param, _: from_bits(to_bits(param), param.dtype),
            extra_args,
        )
        # Bits that do not depend on how the parameter is split among devices.
        with jax.threefry_partitionable(True):
            key, now = jax.random.split(jax.random.wrap_key_data(key_data, impl="threefry2x32"))
            new_updates = [
                _step(move, jax.random.fold_in(now, index)) if isinstance(move, Move) else move
                for index, move in enumerate(moves)
            ]
        return jax.tree.unflatten(tree, new_updates), StochasticRoundingState(inner_state, jax.random.key_data(key))

    return optax.GradientTransformationExtraArgs(init, update)


def _step(move: Move, key: Array) -> Array:
    """The update of one leaf."""
    refuse_part(move.path, move.change, BY_POSITION)
    threshold = random_bits(jax.random.key_data(key), move.param.shape)
    pattern = rounded_sum(move.weight, move.change, move.param.dtype, 16, threshold)
    return move_to((pattern >> 16).astype(jnp.uint16), move.param)


def random_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """The same uint32 as of :func:`jax.random.bits` for a partitionable threefry key, of which this is the data.

    On a CPU that is a loop over arrays of 64 bits for each element, with copies of them. Here the compiler computes
    the bits of an element where they are used.
    """
    size = math.prod(shape)
    if size > 2**32:
        return jax.random.bits(jax.random.wrap_key_data(key, impl="threefry2x32"), shape, jnp.uint32)
    # The position of each element among all, whose upper half is 0.
    last = jnp.zeros(shape, jnp.uint32)
    for axis, length in enumerate(shape):
        last = last * np.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    # Threefry-2×32 with 20 rounds (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011).
    keys = key[0], key[1], key[0] ^ key[1] ^ np.uint32(0x1BD11BDA)
    first, last = keys[0], last + keys[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            first = first + last
            last = first ^ (last << np.uint32(rotation) | last >> np.uint32(32 - rotation))
        first = first + keys[(group + 1) % 3]
        last = last + (keys[(group + 2) % 3] + np.uint32(group + 1))
    return first ^ last

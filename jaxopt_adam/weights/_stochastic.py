"""Stochastic rounding of low-precision parameters."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._hyperparameters import Transformation, whole
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._trees import fields
from jaxopt_adam.storage._patterns import from_bits, to_bits
from jaxopt_adam.weights._sums import rounded_sum
from jaxopt_adam.weights._within import Move, in_float32, move_to, update_within


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

    Choose it where there is no memory for more: it keeps only a random key beside the parameters. Their last place
    becomes noisy, which :func:`master_weights` avoids. Nothing after it may change its updates, as with
    :func:`master_weights`. Parameters of other dtypes are updated as usual.

    The random bits are the same on any number of devices and in any version of a program. A finite weight never
    becomes infinite by chance; one beyond the dtype's range does.

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
    threshold = jax.random.bits(key, move.param.shape, jnp.uint32)
    pattern = rounded_sum(move.weight, move.change, move.param.dtype, 16, threshold)
    return move_to((pattern >> 16).astype(jnp.uint16), move.param)

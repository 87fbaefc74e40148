"""Kahan summation of the updates of low-precision parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam.hyperparameters import Transformation
from jaxopt_adam.optimizer import optimizer
from jaxopt_adam.trees import Path, fields
from jaxopt_adam.weights.patterns import from_bits, to_bits
from jaxopt_adam.weights.within import Move, for_each, in_float32, move_to, remembered, update_within

__all__ = ["KahanState", "kahan"]


class KahanState(NamedTuple):
    """The state of :func:`kahan`.

    Attributes:
        inner_state: the state of the optimizer within.
        compensation: for each parameter of bfloat16 or float16 what the updates so far have in excess of it, of its
            dtype and shape; :class:`optax.MaskedNode` for every other parameter.
    """

    inner_state: Any
    compensation: Any


@optimizer
def kahan(inner: Transformation) -> optax.GradientTransformationExtraArgs:
    r"""Kahan summation: any optimizer, for parameters in bfloat16 or float16, with a second number for the remainder.

    .. math::
        s_t &= c_{t-1} + u_t(g_t, \theta_{t-1} + c_{t-1}) \\
        \theta_t &= \operatorname{round}(\theta_{t-1} + s_t) \\
        c_t &= \operatorname{round}(s_t - (\theta_t - \theta_{t-1}))

    with u the update of the optimizer within, which sees :math:`\theta + c` and the gradients in float32, and c a
    number of the parameter's dtype.

    Choose it where the state must hold no dtype but the parameters'. It costs 2 bytes a parameter, as
    :func:`master_weights` with 32 bits does, which keeps more; in bfloat16 it is worth about 17 bits behind the point.
    In float16 the remainder is no finer than 6·10⁻⁸, float16's smallest number, so there prefer master weights. What
    comes after it must leave its updates alone, as with these. Parameters of other dtypes go by as they are.

    Args:
        inner: the optimizer, ours or optax's; its updates are to be added to the parameters, so it has a learning rate.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`KahanState`. Its `update` needs `params`.

    Raises:
        TypeError: if `inner` is no optimizer.

    References:
        Kahan, Further Remarks on Reducing Truncation Errors, 1965; Zamirai et al., Revisiting BFloat16 Training, 2020,
        algorithm 2.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxopt_adam import kahan, sgd
        >>> optimizer, params = kahan(sgd(1e-3)), jnp.ones([], jnp.bfloat16)
        >>> state = optimizer.init(params)
        >>> for _ in range(100):  # each too small to change a bfloat16
        ...     updates, state = optimizer.update(jnp.ones([], jnp.bfloat16), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params)
        0.898438
    """
    wrapped = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> KahanState:
        return KahanState(wrapped.init(in_float32(params)), for_each(jnp.zeros_like, params, optax.MaskedNode()))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, KahanState]:
        inner_state, compensations = fields(state, "inner_state", "compensation")

        def weight(path: Path, param: Array, compensation: Any) -> Array:
            rest = remembered(path, param, compensation, param.dtype, "state.compensation")
            return from_bits(to_bits(param), param.dtype) + from_bits(to_bits(rest), param.dtype)

        tree, moves, inner_state = update_within(
            "kahan", wrapped, updates, inner_state, params, compensations, weight, extra_args
        )
        pairs = [_step(move) if isinstance(move, Move) else (move, optax.MaskedNode()) for move in moves]
        new_updates, compensations = (jax.tree.unflatten(tree, [pair[i] for pair in pairs]) for i in range(2))
        return new_updates, KahanState(inner_state, compensations)

    return optax.GradientTransformationExtraArgs(init, update)


def _step(move: Move) -> tuple[Array, Array]:
    """The update of one leaf, and its new compensation."""
    dtype = move.param.dtype
    total = from_bits(to_bits(move.memory), dtype) + move.change
    bits = to_bits((from_bits(to_bits(move.param), dtype) + total).astype(dtype))
    update = move_to(bits, move.param)
    # What is infinite or NaN has no remainder.
    rest = jnp.where(jnp.isfinite(from_bits(bits, dtype)), total - update, 0)
    return update, rest.astype(dtype)

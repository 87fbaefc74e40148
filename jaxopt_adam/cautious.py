"""Cautious optimizers (Liang et al., 2024)."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam.dtypes import arithmetic_dtype
from jaxopt_adam.hyperparameters import NonNegative, Transformation
from jaxopt_adam.optimizer import optimizer
from jaxopt_adam.trees import array_like, inexact_dtype, leaves_like, scalar_like

__all__ = ["cautious"]


@optimizer
def cautious(inner: Transformation, eps: NonNegative = 1e-8) -> optax.GradientTransformationExtraArgs:
    r"""Cautious: any optimizer, without those parts of its update that the gradient at hand speaks against.

    .. math::
        \varphi_t = \begin{cases} 1 & \text{where } u_t g_t < 0 \\ 0 & \text{elsewhere} \end{cases}, \qquad
        u'_t = \frac{u_t \varphi_t}{\operatorname{mean}(\varphi_t) + \varepsilon}

    with :math:`u_t` the update of the optimizer within and the mean over a leaf. Momentum no longer carries an element
    uphill. Where nothing is left the update is zero. Choose it where an optimizer with momentum overshoots; it costs no
    state.

    The weight decay of the optimizer within is part of its update, and is masked with it. To have it apart, as the
    paper's C-AdamW has it, add it after: ``optax.chain(cautious(adam(1e-3)), optax.add_decayed_weights(-1e-3 * 0.1))``.

    Args:
        inner: the optimizer, ours or optax's; its updates are to be added to the parameters, so it has a learning rate.
        eps: ε ≥ 0, added to the share of a leaf that is left.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with the state of `inner`.

    Raises:
        TypeError: if `inner` is no optimizer.

    References:
        Liang et al., Cautious Optimizers: Improving Training with One Line of Code, 2024, algorithm 1.

    Example:
        >>> from jaxopt_adam import adam, cautious, descend
        >>> print(descend(lambda x: (x - 3.0) ** 2, 0.0, cautious(adam(0.1)), steps=300).x[-1].round(2))
        3.0
    """
    wrapped = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        changes, state = wrapped.update(updates, state, params, **extra_args)
        grads, tree = jax.tree_util.tree_flatten_with_path(updates)

        def agreed(path: Any, grad: Any, change: Any) -> Array:
            dtype = inexact_dtype(path, change)
            change = array_like(path, grad, change, None, "the update").astype(arithmetic_dtype(dtype))
            # By the signs alone, since the product of two small numbers is zero.
            agrees = jnp.real(jnp.sign(change).conj() * jnp.sign(jnp.asarray(grad, change.dtype))) < 0
            share = jnp.sum(agrees, dtype=change.real.dtype) / max(agrees.size, 1)
            damping = jnp.where(share > 0, share + jnp.asarray(scalar_like(path, grad, eps, share.dtype)), 1)
            return (jnp.where(agrees, change, 0) / damping).astype(dtype)

        pairs = zip(grads, leaves_like(tree, changes, "the update"), strict=True)
        return jax.tree.unflatten(tree, [agreed(path, grad, change) for (path, grad), change in pairs]), state

    return optax.GradientTransformationExtraArgs(wrapped.init, update)

"""Cautious optimizers (Liang et al., 2024)."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._hyperparameters import NonNegative, Positive, transformation
from jaxopt_adam._optimizer import Optimizer, optimizer
from jaxopt_adam._trees import arithmetic_dtype, array_like, inexact_dtype, leaves_like, refuse_part, scalar_like
from jaxopt_adam._xla import counts
from jaxopt_adam.rules.schedule_free_adamw import schedule_free_adamw


def _inner(name: str, value: Any) -> Any:
    """A check for an optimizer whose updates may be changed."""
    if isinstance(transformation(name, value), Optimizer) and value._factory is schedule_free_adamw:
        raise ValueError(
            f"{name} must be an optimizer whose updates may be changed; those of schedule_free_adamw may not"
        )
    return value


@optimizer
def cautious(
    inner: Annotated[optax.GradientTransformation, _inner], eps: NonNegative = 1e-8, *, max_scale: Positive = 10.0
) -> optax.GradientTransformationExtraArgs:
    r"""Cautious: any optimizer, without the elements of its update that point uphill along the current gradient.

    .. math::
        \varphi_t = \begin{cases} 1 & \text{where } u_t g_t < 0 \\ 0 & \text{elsewhere} \end{cases}, \qquad
        s_t = \frac{\sum \varphi_t}{\sum [u_t g_t \ne 0]}, \qquad
        u'_t = \min\left(\frac{1}{s_t + \varepsilon}, k\right) \varphi_t u_t

    with :math:`u_t` the update of the inner optimizer and the sums over a leaf. Momentum no longer carries an element
    uphill. Where nothing is left the update is zero. Choose it where an optimizer with momentum overshoots. It adds no
    state.

    Elements whose gradient or update is zero stand still, as in the paper, but do not count for the fraction s. In the
    paper they count: if only sixteen of the 50,000 rows of an embedding had a gradient, they would take steps 3,000
    times too large. Where nothing is zero, the update is the paper's as long as at least 1/k of a leaf is left. Where
    less is left, the factor is k. The weight decay of the inner optimizer is part of its update, and is masked with it.
    To keep it apart, as in the paper's C-AdamW, add it after:
    ``optax.chain(cautious(adam(1e-3)), optax.add_decayed_weights(-1e-3 * 0.1))``.

    Args:
        inner: the optimizer, ours or optax's; its updates are to be added to the parameters, so it must have a learning
            rate.
        eps: ε ≥ 0, added to the fraction of a leaf that is left.
        max_scale: k > 0, the largest factor by which the elements that are left are scaled. The paper has no such
            bound; 1e30 amounts to none.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with the state of `inner`.

    Raises:
        TypeError: if `inner` is not an optimizer.
        ValueError: if it is :func:`schedule_free_adamw`, whose updates nothing may change.

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
            refuse_part(path, change, "cautious counts the elements of a leaf that are left")
            change = array_like(path, grad, change, None, "the update").astype(arithmetic_dtype(dtype))
            # By the signs alone, since the product of two small numbers is zero.
            signs = jnp.sign(change), jnp.sign(jnp.asarray(grad, change.dtype))
            agrees = jnp.real(signs[0].conj() * signs[1]) < 0
            real = change.real.dtype
            agreeing, counting = counts(agrees, (signs[0] != 0) & (signs[1] != 0), dtype=real)
            share = agreeing / jnp.maximum(counting, 1)
            added, largest = (scalar_like(path, grad, each, real) for each in (eps, max_scale))
            scale = jnp.where(share > 0, jnp.minimum(1 / (share + added), largest), 1)
            # What is no number stays none: as a zero, nobody would see that the element is lost.
            return jnp.where(agrees | jnp.isnan(change), scale * change, 0).astype(dtype)

        pairs = zip(grads, leaves_like(tree, changes, "the update"), strict=True)
        return jax.tree.unflatten(tree, [agreed(path, grad, change) for (path, grad), change in pairs]), state

    return optax.GradientTransformationExtraArgs(wrapped.init, update)

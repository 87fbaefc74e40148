"""ADOPT (Taniguchi et al., 2024)."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import abs_sq, ema, root
from jaxopt_adam._hyperparameters import Decay, Flag, LearningRate, NonNegative, OptionalDtype, function
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class AdoptState(NamedTuple):
    """The state of :func:`adopt`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of the normalized g, a tree like the parameters.
        nu: the average of ``|g|²``, a tree like the parameters, real.
    """

    count: Array
    mu: Any
    nu: Any


def fourth_root(count: ArrayLike) -> ArrayLike:
    """The fourth root of the count, which is the paper's limit for clipping."""
    return count**0.25


@optimizer
def adopt(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.9999,
    eps: NonNegative = 1e-6,
    mu_dtype: OptionalDtype = None,
    *,
    nesterov: Flag = False,
    use_clipping: Flag = True,
    clip_value_fn: Annotated[Callable[[Any], ArrayLike], function("a function of count")] = fourth_root,
    moments: kinds.Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""ADOPT: Adam that divides each gradient by the root of the second moment before it, and averages the quotients.

    .. math::
        n_t &= \operatorname{clip}\left(\frac{g_t}{\max(\sqrt{v_{t-1}}, \varepsilon)}, c_{t-1}\right) \\
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) n_t, \qquad u_t = -\alpha m_t \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2

    The first gradient sets :math:`v_1 = |g_1|^2` and nothing else, so the first update is zero. A clipped element has
    at most the magnitude :math:`c_{t-1}`, with c from `clip_value_fn`. A complex element keeps its direction.

    Choose it where :func:`adam` is unstable or its β₂ is hard to choose. No gradient is divided by an average that
    contains it, so it converges for any β₂. It has Adam's two moments, and needs no bias correction.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters. None gives
            the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the normalized gradients.
        b2: β₂ in [0, 1), the decay of the average of the squares.
        eps: ε ≥ 0, in units of the gradient.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        nesterov: whether to take the average as it would be if the same normalized gradient came once more.
        use_clipping: whether to clip; without it an element whose gradients begin near zero may take a huge step.
        clip_value_fn: c ≥ 0, a function of `count`, the number of updates done; by default its fourth root.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdoptState`.

    References:
        Taniguchi et al., ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate, 2024, algorithm 2, with
        the clipping of the authors' code.

    Example:
        >>> from jaxopt_adam import adopt, descend
        >>> print(descend(lambda x: (x - 3.0) ** 2, 0.0, adopt(0.1), steps=300).x[-1].round(2))
        3.0
    """

    def scalars(step):
        limit = kinds.scheduled(clip_value_fn, step.count - 1, "clip_value_fn") if use_clipping else None
        return {"eps": eps, "limit": limit}

    def normalized(grad, old, step):
        ratio = grad / jnp.maximum(root(old.nu), step.eps)
        return jnp.where(step.count > 1, ratio if step.limit is None else _clip(ratio, step.limit), 0)

    def first(grad, old, step):
        nu = jnp.where(step.count > 1, ema(old.nu, abs_sq(grad), b2), abs_sq(grad))
        return old._replace(mu=ema(old.mu, normalized(grad, old, step), b1), nu=nu)

    def second(grad, old, new, step):
        return -step.rate * (ema(new.mu, normalized(grad, old, step), b1) if nesterov else new.mu)

    return leafwise(
        AdoptState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        mu=Moment(dtype=mu_dtype),
        nu=Moment(real=True, decay=b2),
    )


def _clip(value: Array, limit: Array) -> Array:
    if not jnp.iscomplexobj(value):
        return jnp.clip(value, -limit, limit)
    larger = jnp.maximum(jnp.abs(value), limit)
    return value * (limit / jnp.maximum(larger, jnp.finfo(larger.dtype).tiny))

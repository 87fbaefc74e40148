"""NovoGrad (Ginsburg et al., 2019)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam._averages import accumulate, ema, norm, root
from jaxopt_adam._hyperparameters import Decay, LearningRate, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise


class NovogradState(NamedTuple):
    """The state of :func:`novograd`.

    Attributes:
        count: the number of updates done, int32.
        mu: the decayed sum of the gradients, each over its size, a tree like the parameters.
        nu: the average of ``‖g‖²``, one real number a leaf.
    """

    count: Array
    mu: Any
    nu: Any


@optimizer
def novograd(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.25,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: WeightDecay = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""NovoGrad: momentum of the gradients, those of each leaf divided by an average of their norm.

    .. math::
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) \lVert g_t \rVert^2, \qquad v_1 = \lVert g_1 \rVert^2 \\
        m_t &= \beta_1 m_{t-1} + \frac{g_t}{\sqrt{v_t + \bar\varepsilon} + \varepsilon} + \lambda \theta_{t-1} \\
        u_t &= -\alpha m_t

    with norms over a leaf, which is the paper's layer. `nu` holds v itself, at most the largest number of its dtype: in
    float32 that is a norm of 1.8 · 10¹⁹. Where the root is less than :math:`\sqrt{1 - \beta_2} \lVert g_t \rVert`, the
    contribution of :math:`g_t` alone, that takes its place, because it does not overflow. What :math:`g_t` adds to m
    therefore never has a norm above :math:`1 / \sqrt{1 - \beta_2}`, however large :math:`g_t` is.

    Choose it for large learning rates from the first step on, with half of :func:`adam`'s memory: one moment, as SGD
    with momentum has. The paper uses it for convolutional, speech and language models. All elements of a leaf share one
    scale, so it does not help where their gradients differ in size.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; the norm
            of a leaf's first step. None gives the direction alone, with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the sum of the steps, which grow up to :math:`1 / (1 - \beta_1)`.
        b2: β₂ in [0, 1), the decay of the average of the squared norms.
        eps: ε ≥ 0, in units of the gradient's norm.
        eps_root: ε̄ ≥ 0, in units of the squared norm.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; added before the momentum, so summed with it and
            multiplied by α.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`NovogradState`. Its `update` needs `params`, unless the weight
        decay is 0.0 and not traced.

    References:
        Ginsburg et al., Stochastic Gradient Methods with Layer-wise Adaptive Moments for Training of Deep Networks,
        2019, algorithm 1.

    Example:
        >>> import optax
        >>> from jaxopt_adam import minimize, novograd
        >>> falling = optax.exponential_decay(0.1, transition_steps=100, decay_rate=0.5)
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 1.0, novograd(falling), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        share = jnp.sqrt(jnp.where(step.count == 1, 1, 1 - b2))
        return {"b1": b1, "eps_root": eps_root, "eps": eps, "share": share}

    def first(grad, old, step):
        size = norm(step.grad, bounded=True)
        square = jnp.minimum(jnp.square(size), jnp.finfo(size.dtype).max)
        nu = jnp.where(step.count == 1, square, ema(old.nu, square, b2))
        scale = jnp.maximum(root(nu, step.eps_root), step.share * size) + step.eps
        return old._replace(mu=accumulate(old.mu, grad / scale + step.decay, step.b1), nu=nu)

    def second(grad, old, new, step):
        return -step.rate * new.mu

    return leafwise(
        NovogradState,
        first,
        second,
        scalars,
        storage="float32",
        elementwise=False,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        sees_to_decay=True,
        mu=Moment(),
        nu=Moment(real=True, shape=lambda path, shape: ()),
    )

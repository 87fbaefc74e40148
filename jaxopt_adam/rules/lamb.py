"""LAMB (You et al., 2020)."""

import jax.numpy as jnp
import optax

from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, debiasing_weights, ema, norm, weighted
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise
from jaxopt_adam._xla import fence


@optimizer
def lamb(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-6,
    eps_root: NonNegative = 0.0,
    weight_decay: WeightDecay = 0.0,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""LAMB: :func:`adamw`'s direction, with steps in proportion to the norm of the leaf.

    .. math::
        r_t &= \frac{\hat m_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon} + \lambda \theta_{t-1} \\
        u_t &= -\alpha \frac{\lVert \theta_{t-1} \rVert}{\lVert r_t \rVert} \, r_t

    with the :math:`\hat m_t` and :math:`\hat v_t` of :func:`adam`, and norms over a leaf, which is the paper's layer;
    the ratio of the norms is 1 where one of them is zero. The paper's function φ of :math:`\lVert \theta \rVert` is
    the identity, as in optax.

    Choose it for batches of tens of thousands of examples: every leaf moves by the same fraction α of itself. For small
    batches :func:`adamw` does as well. Its state is as large as :func:`adam`'s.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; the norm
            of a leaf's step as a fraction of the norm of the leaf. None gives the direction alone, with the sign of the
            gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; it turns the step and does not lengthen it.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`. Its `update` needs `params`.

    References:
        You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes, 2020, algorithm 2.

    Example:
        >>> import optax
        >>> from jaxopt_adam import lamb, minimize
        >>> falling = optax.exponential_decay(0.1, transition_steps=100, decay_rate=0.5)
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 1.0, lamb(falling), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps, eps_root)

    def scalars(step):
        # m̂ / (√(v̂ + ε̄) + ε) = (√c₂/c₁) m / (√(v + c₂ ε̄) + √c₂ ε): two divisions fewer for each element.
        c2 = bias_correction(b2, step.count)
        weights = debiasing_weights(jnp.sqrt(c2), b1, step.count)
        return {"weights": weights, "denominator": denominator.times(c2)}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        direction = weighted(new.mu, grad, *step.weights) / step.denominator(new.nu) + step.decay
        # In memory, where it is read twice: for its length and for the update.
        direction = fence(step.count, direction)
        size, length = norm(step.param), norm(direction)
        ratio = jnp.where((size > 0) & (length > 0), size / jnp.where(length > 0, length, 1), 1)
        return -step.rate * ratio * direction

    return leafwise(
        AdamState,
        first,
        second,
        scalars,
        storage=moments,
        elementwise=False,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        sees_to_decay=True,
        needs_params=True,
        mu=Moment(over="nu", denominator=denominator),
        nu=Moment(real=True, decay=b2),
    )

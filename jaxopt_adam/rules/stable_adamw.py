"""StableAdamW (Wortsman et al., 2023): AdamW whose steps shrink where the second moment lags behind."""

import jax.numpy as jnp
import optax

from jaxopt_adam._averages import (
    Denominator,
    abs_sq,
    bias_correction,
    debiasing_weights,
    ema,
    mean_square,
    root,
    squarable,
    weighted,
)
from jaxopt_adam._hyperparameters import Decay, LearningRate, Mask, Moments, NonNegative, WeightDecay
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise
from jaxopt_adam._xla import again, fence


@optimizer
def stable_adamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: WeightDecay = 1e-4,
    mask: Mask = None,
    *,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""StableAdamW: :func:`adamw` with :func:`adafactor`'s clipping of the step.

    .. math::
        \mathrm{RMS}_t &= \sqrt{\operatorname{mean} \frac{|g_t|^2}{\max(\hat v_t, \varepsilon^2)}}, \qquad
            \eta_t = \frac{\alpha}{\max(1, \mathrm{RMS}_t)} \\
        u_t &= -\eta_t \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} + \lambda \theta_{t-1}\right)

    with the :math:`\hat m_t` and :math:`\hat v_t` of :func:`adam`, and the mean over a leaf. The moments are stored
    before they are debiased, as in :func:`adam`. The clipping scales the weight decay too, as in the paper.

    Choose it in place of :func:`adamw` with gradient clipping where the loss has spikes. These come when gradients grow
    faster than the second moment can follow. No threshold needs tuning. Its state is as large as :func:`adam`'s.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; about the
            size of each element's step. None gives the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function from the parameters to one; None
            for all.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Wortsman et al., Stable and Low-Precision Training for Large-Scale Vision-Language Models, 2023, algorithm 2.

    Example:
        >>> from jaxopt_adam import minimize, stable_adamw
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, stable_adamw(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps)

    def scalars(step):
        # m̂ / (√v̂ + ε) = (√c₂/c₁) m / (√v + √c₂ ε), and |g| / max(√v̂, ε) = √c₂ |g| / max(√v, √c₂ ε).
        root_of_c2 = jnp.sqrt(bias_correction(b2, step.count))
        weights = debiasing_weights(root_of_c2, b1, step.count)
        return {"root_of_c2": root_of_c2, "eps": eps * root_of_c2, "weights": weights}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        # One array of the leaf's size, the ratio, is kept in memory for its mean. The rest is computed anew.
        grad, other_nu = squarable(again(step.grad, step.count)), again(new.nu, step.count)
        ratio = fence(step.count, grad / jnp.maximum(root(new.nu), step.eps))
        rms = step.root_of_c2 * root(mean_square(ratio))
        direction = weighted(new.mu, grad, *step.weights) / (root(other_nu) + step.eps) + step.decay
        return -step.rate / jnp.maximum(rms, 1) * direction

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
        mu=Moment(over="nu", denominator=denominator),
        nu=Moment(real=True, decay=b2),
    )

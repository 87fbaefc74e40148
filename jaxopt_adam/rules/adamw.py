"""AdamW (Loshchilov & Hutter, 2019): Adam with weight decay that is decoupled from the gradient."""

import jax.numpy as jnp
import optax

from jaxopt_adam._averages import Denominator, abs_sq, bias_correction, debiasing_weights, ema, weighted
from jaxopt_adam._hyperparameters import (
    Decay,
    Flag,
    LearningRate,
    Mask,
    Moments,
    NonNegative,
    OptionalDtype,
    WeightDecay,
)
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import AdamState, Moment, leafwise


@optimizer
def adamw(
    learning_rate: LearningRate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: OptionalDtype = None,
    weight_decay: WeightDecay = 1e-4,
    mask: Mask = None,
    *,
    nesterov: Flag = False,
    moments: Moments = "float32",
) -> optax.GradientTransformationExtraArgs:
    r"""AdamW: :func:`adam`, with weights that shrink by a fraction of themselves, whatever the gradients are.

    .. math::
        m_t &= \beta_1 m_{t-1} + (1 - \beta_1) g_t, & \hat m_t &= m_t / (1 - \beta_1^t) \\
        v_t &= \beta_2 v_{t-1} + (1 - \beta_2) |g_t|^2, & \hat v_t &= v_t / (1 - \beta_2^t) \\
        u_t &= -\alpha \left(\frac{\hat m_t}{\sqrt{\hat v_t + \bar\varepsilon} + \varepsilon}
               + \lambda \theta_{t-1}\right)

    Choose it over :func:`adam` whenever the weights should stay small. As in optax and PyTorch the decay is multiplied
    by the learning rate. In the paper it is multiplied by a schedule factor :math:`\eta_t` instead.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; about the
            size of each element's step. None gives the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        eps_root: ε̄ ≥ 0, in units of the squared gradient.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these.
        mask: which leaves decay: a tree of booleans, a prefix of such a tree, or a function of the parameters that
            returns either. None for all leaves.
        nesterov: whether to look ahead, as :func:`nadamw` does.
        moments: the storage of the moments: "float32", "bfloat16", "int8", "int4", or another in :doc:`/memory`.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamState`. Its `update` needs `params`, unless the
        weight decay is 0.0 and not traced.

    References:
        Loshchilov & Hutter, Decoupled Weight Decay Regularization, 2019, algorithm 2.

    Example:
        >>> from jaxopt_adam import adamw, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adamw(0.1), tol=1e-9).x.round(2))
        3.0
    """
    denominator = Denominator(eps, eps_root)

    def scalars(step):
        # α m̂ / (√(v̂ + ε̄) + ε) = (α √c₂/c₁) m / (√(v + c₂ ε̄) + √c₂ ε): two divisions fewer for each element.
        c2 = bias_correction(b2, step.count)
        weights = debiasing_weights(-step.rate * jnp.sqrt(c2), b1, step.count, nesterov=nesterov)
        return {"weights": weights, "denominator": denominator.times(c2)}

    def first(grad, old, step):
        return old._replace(mu=ema(old.mu, grad, b1), nu=ema(old.nu, abs_sq(grad), b2))

    def second(grad, old, new, step):
        return weighted(new.mu, grad, *step.weights) / step.denominator(new.nu)

    return leafwise(
        AdamState,
        first,
        second,
        scalars,
        storage=moments,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        mu=Moment(dtype=mu_dtype, over="nu", denominator=denominator),
        nu=Moment(real=True, decay=b2),
    )

"""Adam-mini (Zhang et al., 2024): one second moment for a block of parameters."""

import functools
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
import optax
from jax import Array

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import bias_correction, debiasing_weights, ema, root, weighted
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam.rules._blocks import blocks_by_layout, checked_blocks, mean_square_of_blocks, spread


class AdamMiniState(NamedTuple):
    """The state of :func:`adam_mini`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of the mean of ``|g|²`` over each block, real, of the shape that `blocks` gives.
    """

    count: Array
    mu: Any
    nu: Any


@optimizer
def adam_mini(
    learning_rate: kinds.LearningRate,
    b1: kinds.Decay = 0.9,
    b2: kinds.Decay = 0.999,
    eps: kinds.NonNegative = 1e-8,
    weight_decay: kinds.WeightDecay = 0.0,
    mask: kinds.Mask = None,
    *,
    blocks: Annotated[
        kinds.OfLeaf | None, kinds.function("a function from a path and a shape to blocks, or None", optional=True)
    ] = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam-mini: :func:`adamw` with one second moment for each block, in half of the memory.

    .. math::
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) \operatorname{mean}_{\text{block}} |g_t|^2, \qquad
        u_t = -\alpha \left(\frac{\hat m_t}{\sqrt{\hat v_t} + \varepsilon} + \lambda \theta_{t-1}\right)

    A block should be one of the smallest dense blocks of the Hessian. By default the path and the shape of a leaf
    decide:

    * a vector, a scalar or a bias is one block (the authors' code has plain Adam for biases);
    * a leaf called ``.weight``, as equinox's (out, in, …), has a block for each output or token, along the first axis;
    * an embedding has a block for each row, over the last axis. A leaf is an embedding if the last word of its name is
      emb, embed, embedding, wte or wpe. If it is called w, weight or table, the name of its layer decides. Thus
      ``tok_emb`` and ``embed_tokens`` are embeddings, and ``embed_proj`` and leaves called ``kernel`` are not;
    * flax's query and key kernels (features, heads, size) have a block for each head, and value kernels of that shape
      one for each output (head, size);
    * any other leaf, such as flax's kernels (…, in, out), has a block for each output, along the last axis.

    This is a guess, and :func:`~jaxopt_adam.describe` shows it for each leaf. Give `blocks` where it is wrong, as it is
    for layers stacked along an axis, for heads within a matrix, and for tables of other names. For a stack of kernels
    (12, in, out) and of biases (12, out) that is ``lambda path, shape: (12, *(1 for _ in shape[2:]), shape[-1])``.
    Where `blocks` gives the shape of a bias, the bias has plain Adam, as in the authors' code.

    Choose it where :func:`adamw` does well and memory is short: `nu` is negligible, so the state is `mu`, half of
    AdamW's.

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters; about the
            size of each element's step. None gives the direction alone, unscaled and with the sign of the gradient.
        b1: β₁ in [0, 1), the decay of the average of the gradients.
        b2: β₂ in [0, 1), the decay of the average of their squares.
        eps: ε ≥ 0, in units of the gradient.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these.
        mask: which leaves decay: a tree of booleans, a prefix of one, or a function to one; None for all.
        blocks: ``blocks(path, shape)``, the number of equal blocks along each axis, a tuple; the path is as from
            :func:`jax.tree_util.keystr`. None for the default above.

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`AdamMiniState`. Its `update` needs `params`, unless the weight
        decay is 0.0 and not traced. Its `init` raises ValueError if a number of blocks does not divide its axis.

    References:
        Zhang et al., Adam-mini: Use Fewer Learning Rates To Gain More, 2024, algorithms 1 to 3.

    Example:
        >>> from jaxopt_adam import adam_mini, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, adam_mini(0.1), tol=1e-9).x.round(2))
        3.0
    """

    def scalars(step):
        # α m̂ / (√v̂ + ε) = (α √c₂/c₁) m / (√v + √c₂ ε): two divisions fewer for each element.
        root_of_c2 = jnp.sqrt(bias_correction(b2, step.count))
        return {"eps": eps * root_of_c2, "weights": debiasing_weights(-step.rate * root_of_c2, b1, step.count)}

    def first(grad, old, step):
        nu = ema(old.nu, mean_square_of_blocks(step.grad, old.nu.shape), b2)
        return old._replace(mu=ema(old.mu, grad, b1), nu=nu)

    def second(grad, old, new, step):
        return weighted(new.mu, grad, *step.weights) / (spread(root(new.nu), grad.shape) + step.eps)

    return leafwise(
        AdamMiniState,
        first,
        second,
        scalars,
        storage="float32",
        elementwise=False,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        mu=Moment(),
        nu=Moment(
            real=True,
            shape=functools.partial(checked_blocks, blocks or blocks_by_layout),
            axes=lambda path, shape: tuple(range(len(shape))),
        ),
    )

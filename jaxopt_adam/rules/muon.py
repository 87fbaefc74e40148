"""Muon (Jordan et al., 2024)."""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxopt_adam import _hyperparameters as kinds
from jaxopt_adam._averages import (
    Denominator,
    abs_sq,
    bias_correction,
    debiasing_weights,
    ema,
    finite_product,
    finite_quotient,
    weighted,
)
from jaxopt_adam._notes import note
from jaxopt_adam._optimizer import optimizer
from jaxopt_adam._rule import Moment, leafwise
from jaxopt_adam._trees import array_like, choose, inexact_dtype, leaves_like
from jaxopt_adam.rules._matrices import COEFFICIENTS, as_matrices, dimension_numbers, orthogonalize


class MuonState(NamedTuple):
    """The state of :func:`muon`.

    Attributes:
        count: the number of updates done, int32.
        mu: the average of g, a tree like the parameters.
        nu: the average of ``|g|²``, likewise, real; None for matrices.
    """

    count: Array
    mu: Any
    nu: Any


@optimizer
def muon(
    learning_rate: kinds.GivenLearningRate,
    ns_coeffs: Annotated[
        Literal["standard", "dion"] | list[Any] | tuple[Any, ...] | np.ndarray | Array, kinds.rows(3, *COEFFICIENTS)
    ] = COEFFICIENTS["standard"],
    ns_steps: kinds.Size = 5,
    beta: kinds.Decay = 0.95,
    eps: kinds.NonNegative = 1e-8,
    weight_decay: kinds.WeightDecay = 0.0,
    weight_decay_mask: kinds.Mask = None,
    mu_dtype: kinds.OptionalDtype = None,
    *,
    nesterov: kinds.Flag = True,
    adaptive: kinds.Flag = False,
    preconditioning: Annotated[
        Literal["frobenius", "spectral", "aol", "schatten"],
        kinds.choice("frobenius", "spectral", "aol", "schatten"),
    ] = "frobenius",
    adam_b1: kinds.Decay = 0.9,
    adam_b2: kinds.Decay = 0.999,
    adam_eps_root: kinds.NonNegative = 0.0,
    adam_weight_decay: kinds.WeightDecay = 0.0,
    adam_learning_rate: kinds.LearningRate = None,
    muon_weight_dimension_numbers: kinds.Axes = None,
    consistent_rms: kinds.OptionalNonNegative = None,
    matrix_axes: Annotated[
        kinds.OfLeaf | None, kinds.function("a function from a path and a shape to axes, or None", optional=True)
    ] = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Muon: the orthogonal matrix nearest to the momentum, for matrices; :func:`adamw` for all other leaves.

    .. math::
        m_t &= \beta m_{t-1} + (1 - \beta) g_t, \qquad \hat m_t = \frac{\beta m_t}{1 - \beta^{t+1}}
               + \frac{(1 - \beta) g_t}{1 - \beta^t} = U S V^* \\
        u_t &= -\alpha \left(\sqrt{\max(1, \text{columns} / \text{rows})} \; U V^* + \lambda \theta_{t-1}\right)

    where a few rounds of the Newton–Schulz iteration approximate :math:`U V^*`. Choose it for the hidden
    matrices of transformers, where it needs half of Adam's state and often fewer steps.

    As in optax every leaf of two axes is a matrix, its rows the inputs and its columns the outputs, and any other leaf
    goes to Adam. That is a guess, and :func:`~jaxopt_adam.describe` shows it for each leaf. Give `matrix_axes` or
    `muon_weight_dimension_numbers` where it is wrong:

    * weights of (outputs, inputs), as PyTorch's and equinox's: rows are axis 1, columns axis 0. Otherwise the root
      above has inputs / outputs;
    * layers stacked along an axis: kernels (12, 16, 16) go to Adam unless their last two axes are given, and
      biases (12, 16) are taken for one matrix unless None is given for them;
    * embeddings and the last layer, which Adam is for: None.

    For a model whose layers are stacked and whose tables are called "embedding"::

        def matrix_axes(path, shape):
            return MuonDimensionNumbers(-2, -1) if "kernel" in path and len(shape) == 3 else None

    Args:
        learning_rate: α ≥ 0, a number, an array, a schedule, or a tree of these for parts of the parameters.
        ns_coeffs: a, b, c of the iteration :math:`s \mapsto a s + b s^3 + c s^5`; or a row of these for each round, and
            then as many rounds as rows; or "standard" or "dion".
        ns_steps: the number of rounds, a whole number ≥ 1.
        beta: β in [0, 1), the decay of the momentum.
        eps: ε ≥ 0, added to the norm by which a matrix is divided, and to Adam's root.
        weight_decay: λ ≥ 0, a number, a schedule, or a tree of these; decoupled, so times α; for matrices only.
        weight_decay_mask: which matrices decay: a tree of booleans, a prefix, or a function to one; None for all.
        mu_dtype: the storage dtype of `mu`, dithered if it has 16 bits; None for the dtype of the arithmetic, float32
            or wider.
        nesterov: whether the momentum looks ahead as above, Adam's too; else :math:`\hat m_t = m_t / (1 - \beta^t)`.
        adaptive: whether to scale by the dual norm :math:`\langle \hat m_t, U V^* \rangle`.
        preconditioning: the norm that scales a matrix before the iteration: "frobenius", "spectral", "aol" or
            "schatten".
        adam_b1: β₁ in [0, 1) of Adam.
        adam_b2: β₂ in [0, 1) of Adam.
        adam_eps_root: ε̄ ≥ 0 of Adam, in units of the squared gradient.
        adam_weight_decay: λ ≥ 0 of Adam, as `weight_decay`.
        adam_learning_rate: α of Adam; None for `learning_rate`.
        muon_weight_dimension_numbers: the axes of each matrix (other axes make a batch of matrices): a tree, or a
            prefix, of :class:`optax.contrib.MuonDimensionNumbers`, with None for Adam; a function from the parameters
            to one; None for all leaves of two axes.
        consistent_rms: c for :math:`c \sqrt{\max(\text{rows}, \text{columns})}` in place of the root above (0.2 goes
            with Adam's learning rates); None for the root.
        matrix_axes: ``matrix_axes(path, shape)``, in place of `muon_weight_dimension_numbers`: the
            :class:`optax.contrib.MuonDimensionNumbers` of a leaf, or None for Adam; the path is as from
            :func:`jax.tree_util.keystr`. (A function that is given there takes all the parameters, as in
            optax.)

    Returns:
        An :class:`~jaxopt_adam.Optimizer` with :class:`MuonState`. Its `update` needs `params` if there is a weight
        decay.

    References:
        Jordan et al., Muon: An Optimizer for Hidden Layers in Neural Networks, 2024; Liu et al., Muon is Scalable for
        LLM Training, 2025. The momentum is a debiased average, as optax's; theirs is a sum. Without `nesterov` that
        makes no difference; with it, and with their β, the weights of m and g differ until βᵗ is negligible.

    Example:
        >>> from jaxopt_adam import muon, minimize
        >>> print(minimize(lambda x: (x - 3.0) ** 2, 0.0, muon(0.1), tol=1e-9).x.round(2))
        3.0
    """
    rounds = COEFFICIENTS[ns_coeffs] if isinstance(ns_coeffs, str) else ns_coeffs
    coefficients = list(rounds) if isinstance(rounds[0], Sequence) or np.ndim(rounds[0]) else [rounds] * ns_steps
    rate_of_adam = learning_rate if adam_learning_rate is None else adam_learning_rate

    def scalars(step):
        return {
            "weights": debiasing_weights(jnp.ones(()), beta, step.count, nesterov=nesterov),
            "adam_weights": debiasing_weights(-step.rate, adam_b1, step.count, nesterov=nesterov),
            "c2": bias_correction(adam_b2, step.count),
            "denominator": Denominator(eps, adam_eps_root),
            "consistent_rms": consistent_rms,
        }

    def first(grad, old, step):
        if old.nu is None:
            return old._replace(mu=ema(old.mu, grad, beta))
        return old._replace(mu=ema(old.mu, grad, adam_b1), nu=ema(old.nu, abs_sq(grad), adam_b2))

    def second(axes, grad, old, new, step):
        if new.nu is None:
            average = weighted(new.mu, grad, *step.weights)
            to_matrices, to_tensor, (rows, columns) = as_matrices(grad.shape, *axes[step.path])
            eps = step.denominator.eps
            orthogonal = to_tensor(orthogonalize(to_matrices(average), coefficients, eps, preconditioning))
            width = max(1, columns / max(rows, 1)) ** 0.5 if consistent_rms is None else max(rows, columns) ** 0.5
            scale = -step.rate * width * (1 if consistent_rms is None else step.consistent_rms)
            change = scale * (jnp.sum(average.conj() * orthogonal) * orthogonal if adaptive else orthogonal)
        else:
            denominator = step.denominator(finite_quotient(new.nu, step.c2))
            change = weighted(new.mu, grad, *step.adam_weights) / denominator
        return change - finite_product(step.rate, step.decay)

    def layer(tree: Any, params: Any) -> optax.GradientTransformationExtraArgs:
        jax.tree_util.tree_map_with_path(inexact_dtype, tree)  # before functions of the user's see it
        axes = dimension_numbers(muon_weight_dimension_numbers, tree, matrix_axes)
        chosen = [each is not None for each in axes.values()]
        masks = True if weight_decay_mask is None else weight_decay_mask
        if callable(weight_decay_mask) and params is not None:
            thetas = leaves_like(jax.tree.structure(tree), params, "params")  # before the user's function sees them
            for (path, leaf), theta in zip(jax.tree_util.tree_leaves_with_path(tree), thetas, strict=True):
                array_like(path, leaf, theta, None, "the parameter")
            masks = weight_decay_mask(params)
        return leafwise(
            MuonState,
            first,
            functools.partial(second, axes),
            scalars,
            storage="float32",
            elementwise=False,
            learning_rate=choose(tree, chosen, learning_rate, rate_of_adam, "learning_rate"),
            weight_decay=choose(tree, chosen, weight_decay, adam_weight_decay, "weight_decay"),
            mask=choose(tree, chosen, masks, True, "weight_decay_mask"),
            sees_to_decay=True,
            mu=Moment(dtype=mu_dtype),
            nu=Moment(real=True, shape=lambda path, shape: shape if axes[path] is None else None),
        )

    def init(params: optax.Params) -> optax.OptState:
        def parts() -> dict[Any, str]:
            return {
                path: "adamw" if axes is None else f"orthogonalized, rows axis {axes[0]}, columns axis {axes[1]}"
                for path, axes in dimension_numbers(muon_weight_dimension_numbers, params, matrix_axes).items()
            }

        return note(layer(params, params).init(params), parts=parts)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **_: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        return layer(updates, params).update(updates, state, params)

    return optax.GradientTransformationExtraArgs(init, update)

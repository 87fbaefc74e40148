"""The hyperparameters of all rules by their names, as :func:`~jaxopt_adam.grid` takes them; for type checkers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from jax.typing import ArrayLike

Numbers = ArrayLike | Sequence[float] | Callable[[Any], ArrayLike] | Mapping[Any, Any] | None
"""An axis of a grid, or a value that all its rows share."""


class Arguments(TypedDict, total=False):
    """The arguments of the rules here; those of a user's own rule are in its signature."""

    a: Numbers
    accumulator_dtype: Any
    adam_b1: Numbers
    adam_b2: Numbers
    adam_eps_root: Numbers
    adam_learning_rate: Numbers
    adam_weight_decay: Numbers
    adaptive: Any
    alpha: Numbers
    b: Numbers
    b1: Numbers
    b2: Numbers
    b3: Numbers
    beta: Numbers
    beta3: Numbers
    betas: Any
    bias_correction: Any
    bias_correction_mu: Any
    bias_correction_nu: Any
    blocks: Any
    centered: Any
    clip_value_fn: Any
    clipping_threshold: Numbers
    consistent_rms: Numbers
    decay: Numbers
    decay_offset: Any
    decay_rate: Numbers
    dtype_momentum: Any
    eps: Numbers
    eps_in_sqrt: Any
    eps_root: Numbers
    estim_lr0: Numbers
    estim_lr_coef: Numbers
    factored: Any
    initial_accumulator_value: Numbers
    initial_scale: Numbers
    learning_rate: Numbers
    mask: Any
    matrix_axes: Any
    max_precond_dim: Any
    min_dim_size_to_factor: Any
    moments: Any
    momentum: Numbers
    mu_dtype: Any
    multiply_by_parameter_scale: Any
    muon_weight_dimension_numbers: Any
    nesterov: Any
    ns_coeffs: Any
    ns_steps: Any
    precondition_frequency: Any
    preconditioning: Any
    rho: Numbers
    safeguard_warmup: Any
    shampoo_decay: Numbers
    sort_by_eigenvalue: Any
    state_dtype: Any
    threshold: Numbers
    use_clipping: Any
    warmup_steps: Any
    weight_decay: Numbers
    weight_decay_mask: Any
    weight_decay_rate: Numbers
    weight_lr_power: Numbers

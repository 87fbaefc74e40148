"""Transformations and optimizers of optax as data.

Those of optax keep their numbers in closures. Here each has a factory of the same name and arguments that makes an
:class:`~jaxopt_adam.Optimizer`. Its numbers are leaves, and `init` and `update` call optax's factory with them, traced
or not. The arithmetic, the state and the extra arguments are optax's. Where nothing is compiled, the operations of a
step run one by one.

The names are those of `optax` and `optax.contrib`, without what the library has itself, such as `adam`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxopt_adam._hyperparameters import (
    Axes,
    Check,
    Fixed,
    Flag,
    Mask,
    OptionalDtype,
    OptionalSteps,
    Size,
    Transformation,
    at_least_float32,
    function,
    is_array,
    is_number,
    is_real,
)
from jaxopt_adam._optimizer import Optimizer, optimizer
from jaxopt_adam._shown import shown
from jaxopt_adam.rules.adopt import fourth_root

P = ParamSpec("P")


class _Lacking:
    """A stand-in for a factory that the installed optax lacks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Say so."""
        raise NotImplementedError(f"{self.name}: optax {optax.__version__} does not have it")


class _Installed:
    """A module of optax, with a stand-in for each name that it lacks."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name, None) or _Lacking(name)


if TYPE_CHECKING:
    from optax import contrib as _contrib

    _optax = optax
else:
    # A name that optax drops some day must not take the others with it.
    _optax, _contrib = _Installed(optax), _Installed(optax.contrib)


@dataclasses.dataclass(frozen=True)
class _Number:
    """A check for numbers that are leaves.

    Args:
        whole: whether they are whole, such as a period.
        schedule: whether a function of the count is allowed.
        optional: whether None is allowed.
        several: whether a tuple of numbers is allowed, among which may be strings.
    """

    whole: bool = False
    schedule: bool = False
    optional: bool = False
    several: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        """The value to keep; TypeError if it is not allowed."""
        if (self.optional and value is None) or (self.schedule and callable(value)):
            return value
        if self.several and isinstance(value, (tuple, list)):
            return tuple(each if isinstance(each, str) else self(name, each) for each in value)
        if not is_number(value) or (not isinstance(value, Tracer) and np.isnan(np.asarray(value, complex)).any()):
            raise self._error(name, value)
        return self._kept(name, value)

    def _kept(self, name: str, value: Any) -> Any:
        if isinstance(value, jax.Array) or np.ndim(value):
            is_cast = self.whole and not jnp.issubdtype(value.dtype, jnp.integer)  # a grid has them as floats
            return value.astype(np.int32) if is_cast else value
        # Python's and NumPy's scalars all become Python's, and so share one trace.
        if not self.whole:
            return complex(value) if np.iscomplexobj(value) else float(value)
        if np.iscomplexobj(value) or not float(value).is_integer():
            raise self._error(name, value)
        return int(value)

    def _error(self, name: str, value: Any) -> TypeError:
        expected = f"a{' whole' * self.whole} number{', a schedule' * self.schedule}{' or None' * self.optional}"
        return TypeError(f"{name} must be {expected}, got {shown(value)}")


@dataclasses.dataclass(frozen=True)
class _Key:
    """A check for seeds, and for random keys, which are kept as their data: numbers, and so leaves."""

    def __call__(self, name: str, value: Any) -> Any:
        """The value to keep; TypeError or ValueError if it is not allowed."""
        if not isinstance(value, jax.Array) or (not value.ndim and is_number(value)):
            return _Number(whole=True, optional=True)(name, value)
        if not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return value
        if jax.random.key_impl(value) != jax.random.key_impl(jax.random.key(0)):
            raise ValueError(f"{name} must be a key of JAX's default kind, got {value!r}")
        return jax.random.key_data(value)

    def used(self, value: Any) -> Any:
        """The key."""
        if value is None:
            return None
        return jax.random.wrap_key_data(value) if np.ndim(value) else jax.random.key(value)


def _fixed(name: str, value: Any) -> Fixed:
    if isinstance(value, Fixed):
        return value
    if isinstance(value, Tracer) or not is_real(value) or np.ndim(value):
        raise TypeError(f"{name} must be a number that is not traced, got {shown(value)}")
    return Fixed(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)}")
    return value


_Anything = Annotated[Any, lambda name, value: value]
_Fixed = Annotated[Any, _fixed]
_Function = Annotated[Any, function("a function")]
_Text = Annotated[Any, _text]

# In optax a name means the same in all signatures. An argument that is neither here, nor a mask or a dtype by its name,
# nor a flag or a string by its default, is a number.
_KINDS: dict[str, Any] = {
    "adv_optimizer": Transformation,
    "axis": Axes,
    "base_optimizer": Transformation,
    "batch_axis_name": _Anything,
    "clip_value_fn": _Function,
    "decay_rate_fn": _Function,
    "f": _Function,
    "fast_optimizer": Transformation,
    "hessian_diagonal_fn": Transformation,
    "inner": Transformation,
    "key": Annotated[Any, _Key()],
    "linesearch": Transformation,
    "measure": _Anything,
    "measure_name": _Text,
    "measures": _Anything,
    "memory_size": Size,
    "min_dim_size_to_factor": Size,
    "ns_steps": Size,
    "num_betas": Size,
    "opt": Transformation,
    "optimizer": Transformation,
    "random_seed": Annotated[Any, _Key()],
    "rank": Size,
    "should_skip_update_fn": _Function,
    "should_transform_fn": _Function,
    "step_size_fn": _Function,
    "sync_period": Size,
    "tx": Transformation,
    "warmup_steps": OptionalSteps,
    "weight_dimension_numbers": Axes,
}
# Whole numbers that only enter arithmetic, and are leaves.
_WHOLE = {
    "accumulation_size",
    "cooldown",
    "every_k_schedule",
    "k",
    "max_backtracking_steps",
    "max_consecutive_errors",
    "max_linesearch_steps",
    "patience",
    "print_win_rate_every_n_steps",
    "seed",
    "step_offset",
    "update_interval",
    "update_proj_gap",
}


def _check(parameter: inspect.Parameter, kind: Any = None) -> Check:
    """The check of an argument; `kind` takes precedence over what its name and its default say."""
    name, default, allowed = parameter.name, parameter.default, str(parameter.annotation)
    is_optional = default is None or "None" in allowed or "Optional" in allowed
    kind = kind or _KINDS.get(name)
    if kind is None and "mask" in name and "extra_args" not in name:
        kind = Mask
    elif kind is None and name.endswith("dtype"):
        kind = OptionalDtype
    elif kind is None and isinstance(default, (bool, str)):
        kind = Flag if isinstance(default, bool) else _Text
    elif kind is None:
        has_schedule = "Schedule" in allowed or "Callable" in allowed
        return _Number(name in _WHOLE, has_schedule, is_optional, isinstance(default, tuple))
    check = kind.__metadata__[0]
    if not is_optional or isinstance(check, _Key):
        return check
    return lambda name, value: value if value is None else check(name, value)


def _like_python(value: Any) -> Any:
    """Arrays with the weak type of a Python number.

    A batch of numbers has a dtype. Without weak types its product with bfloat16 gradients would be float32.
    """

    def one(leaf: Any) -> Any:
        if not is_array(leaf) or not is_real(leaf):
            return leaf
        leaf = jnp.asarray(at_least_float32(leaf))
        like = 1.0 if jnp.issubdtype(leaf.dtype, jnp.floating) else 1
        return leaf if leaf.ndim else jax.lax.full_like(like, leaf)

    return value if callable(value) else jax.tree.map(one, value, is_leaf=callable)


def _lifted(
    theirs: Callable[P, optax.GradientTransformation], defaults: Mapping[str, Any] | None = None, **kinds: Any
) -> Callable[P, Optimizer]:
    """The factory of optimizers that calls a factory of optax.

    Args:
        theirs: the factory of optax.
        defaults: defaults in place of those of optax that are closures.
        **kinds: the kinds of arguments, by name, where they differ from what :func:`_check` finds.
    """
    if isinstance(theirs, _Lacking):
        return theirs
    call: Callable[..., Any] = theirs
    parameters = inspect.signature(theirs).parameters.values()
    checks = {each.name: _check(each, kinds.get(each.name)) for each in parameters}

    def used(name: str, value: Any) -> Any:
        if isinstance(check := checks[name], _Key):
            return check.used(value)
        return value if isinstance(value, optax.GradientTransformation) else _like_python(value)

    def rule(**arguments: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(call(**{name: used(name, value) for name, value in arguments.items()}))

    def described(parameter: inspect.Parameter) -> inspect.Parameter:
        default = (defaults or {}).get(parameter.name, parameter.default)
        if default is not parameter.empty:
            default = checks[parameter.name](parameter.name, default)
        return parameter.replace(default=default, annotation=parameter.empty)

    name = call.__name__
    path = f"{'optax.contrib' if hasattr(optax.contrib, name) else 'optax'}.{name}"
    numbers = [f"`{each}`" for each, check in checks.items() if isinstance(check, (_Number, _Key))]
    said = f"Its numbers: {', '.join(numbers)}." if numbers else "It has no numbers of its own."
    rule.__name__ = rule.__qualname__ = name
    rule.__doc__ = f"`{path}` as data.\n\n    {said} See :func:`{path}`.\n    "
    rule.__signature__ = inspect.Signature([described(each) for each in parameters])  # pyright: ignore
    rule.__annotations__ = {each: Annotated[Any, check] for each, check in checks.items()}
    factory = optimizer(rule)
    # From Python 3.14 on functools.wraps takes annotations only from where they are computed.
    factory.__annotations__ = rule.__annotations__
    return cast(Callable[P, Optimizer], factory)


def _multi_steps(
    opt: optax.GradientTransformation,
    every_k_schedule: int | Callable[[Any], Any],
    use_grad_mean: bool = True,
    should_skip_update_fn: Callable[..., Any] | None = None,
    accumulator_dtype: DTypeLike | None = np.float32,
) -> optax.GradientTransformationExtraArgs:
    # optax takes a number for one only if it is Python's.
    schedule = every_k_schedule if callable(every_k_schedule) else lambda _: every_k_schedule
    steps = optax.MultiSteps(opt, schedule, use_grad_mean, should_skip_update_fn, accumulator_dtype)  # pyright: ignore
    return optax.GradientTransformationExtraArgs(steps.init, steps.update)  # pyright: ignore


_multi_steps.__name__ = "MultiSteps"

# What changes gradients or updates.
adaptive_grad_clip = _lifted(_optax.adaptive_grad_clip)
add_decayed_weights = _lifted(_optax.add_decayed_weights)
add_noise = _lifted(_optax.add_noise)
apply_every = _lifted(_optax.apply_every)
centralize = _lifted(_optax.centralize)
clip = _lifted(_optax.clip)
clip_by_block_rms = _lifted(_optax.clip_by_block_rms)
clip_by_global_norm = _lifted(_optax.clip_by_global_norm)
differentially_private_aggregate = _lifted(_contrib.differentially_private_aggregate)
ema = _lifted(_optax.ema)
freeze = _lifted(_optax.freeze)
identity = _lifted(_optax.identity)
keep_params_nonnegative = _lifted(_optax.keep_params_nonnegative)
normalize = _lifted(_contrib.normalize)
normalize_by_update_norm = _lifted(_optax.normalize_by_update_norm)
reduce_on_plateau = _lifted(_contrib.reduce_on_plateau, factor=_Fixed, rtol=_Fixed, atol=_Fixed)
set_to_zero = _lifted(_optax.set_to_zero)
stateless = _lifted(_optax.stateless)
stateless_with_tree_map = _lifted(_optax.stateless_with_tree_map)
trace = _lifted(_optax.trace)
zero_nans = _lifted(_optax.zero_nans)

# What looks on.
hutchinson_estimator_diag_hessian = _lifted(_contrib.hutchinson_estimator_diag_hessian)
measure_with_ema = _lifted(_optax.measure_with_ema)
monitor = _lifted(_optax.monitor)
snapshot = _lifted(_optax.snapshot)

# What scales.
scale = _lifted(_optax.scale)
scale_by_acprop = _lifted(_contrib.scale_by_acprop)
scale_by_adadelta = _lifted(_optax.scale_by_adadelta)
scale_by_adam = _lifted(_optax.scale_by_adam)
scale_by_adamax = _lifted(_optax.scale_by_adamax)
scale_by_adan = _lifted(_optax.scale_by_adan)
scale_by_ademamix = _lifted(_contrib.scale_by_ademamix)
scale_by_adopt = _lifted(_contrib.scale_by_adopt, {"clip_value_fn": fourth_root})
scale_by_amsgrad = _lifted(_optax.scale_by_amsgrad)
scale_by_backtracking_linesearch = _lifted(_optax.scale_by_backtracking_linesearch)
scale_by_belief = _lifted(_optax.scale_by_belief)
scale_by_cocob = _lifted(_contrib.scale_by_cocob)
scale_by_distance_over_gradients = _lifted(_optax.scale_by_distance_over_gradients)
scale_by_factored_rms = _lifted(_optax.scale_by_factored_rms)
scale_by_galore = _lifted(_contrib.scale_by_galore)
scale_by_lbfgs = _lifted(_optax.scale_by_lbfgs)
scale_by_learning_rate = _lifted(_optax.scale_by_learning_rate)
scale_by_lion = _lifted(_optax.scale_by_lion)
scale_by_madgrad = _lifted(_contrib.scale_by_madgrad)
scale_by_muon = _lifted(_contrib.scale_by_muon)
scale_by_novograd = _lifted(_optax.scale_by_novograd)
scale_by_optimistic_gradient = _lifted(_optax.scale_by_optimistic_gradient)
scale_by_param_block_norm = _lifted(_optax.scale_by_param_block_norm)
scale_by_param_block_rms = _lifted(_optax.scale_by_param_block_rms)
scale_by_polyak = _lifted(_optax.scale_by_polyak)
scale_by_radam = _lifted(_optax.scale_by_radam)
scale_by_rms = _lifted(_optax.scale_by_rms)
scale_by_rprop = _lifted(_optax.scale_by_rprop)
scale_by_rss = _lifted(_optax.scale_by_rss)
scale_by_schedule = _lifted(_optax.scale_by_schedule)
scale_by_sign = _lifted(_optax.scale_by_sign)
scale_by_simplified_ademamix = _lifted(_contrib.scale_by_simplified_ademamix)
scale_by_sm3 = _lifted(_optax.scale_by_sm3, b2=_Fixed)
scale_by_stddev = _lifted(_optax.scale_by_stddev)
scale_by_trust_ratio = _lifted(_optax.scale_by_trust_ratio)
scale_by_yogi = _lifted(_optax.scale_by_yogi)
scale_by_zoom_linesearch = _lifted(_optax.scale_by_zoom_linesearch)

# Wrappers of transformations.
MultiSteps = _lifted(_multi_steps)
apply_if_finite = _lifted(_optax.apply_if_finite)
conditionally_mask = _lifted(_optax.conditionally_mask)
conditionally_transform = _lifted(_optax.conditionally_transform)
flatten = _lifted(_optax.flatten)
lookahead = _lifted(_optax.lookahead)
mechanize = _lifted(_contrib.mechanize)
sam = _lifted(_contrib.sam)
schedule_free = _lifted(_contrib.schedule_free)
selective_transform = _lifted(_optax.selective_transform)
split_real_and_imaginary = _lifted(_contrib.split_real_and_imaginary)
with_extra_args_support = _lifted(_optax.with_extra_args_support)

# Optimizers.
acprop = _lifted(_contrib.acprop)
cocob = _lifted(_contrib.cocob)
dadapt_adamw = _lifted(_contrib.dadapt_adamw)
dog = _lifted(_contrib.dog)
dowg = _lifted(_contrib.dowg)
dpsgd = _lifted(_contrib.dpsgd)
fromage = _lifted(_optax.fromage)
galore = _lifted(_contrib.galore)
lars = _lifted(_optax.lars)
lbfgs = _lifted(_optax.lbfgs, {"linesearch": scale_by_zoom_linesearch(20, initial_guess_strategy="one")})
madgrad = _lifted(_contrib.madgrad)
momo = _lifted(_contrib.momo)
momo_adam = _lifted(_contrib.momo_adam)
noisy_sgd = _lifted(_optax.noisy_sgd)
optimistic_adam = _lifted(_optax.optimistic_adam)
optimistic_adam_v2 = _lifted(_optax.optimistic_adam_v2)
optimistic_gradient_descent = _lifted(_optax.optimistic_gradient_descent)
polyak_sgd = _lifted(_optax.polyak_sgd)
rprop = _lifted(_optax.rprop)
schedule_free_sgd = _lifted(_contrib.schedule_free_sgd)
sign_sgd = _lifted(_optax.sign_sgd)
signum = _lifted(_optax.signum)
simplified_ademamix = _lifted(_contrib.simplified_ademamix)
sm3 = _lifted(_optax.sm3)
sophia = _lifted(_contrib.sophia, {"hessian_diagonal_fn": hutchinson_estimator_diag_hessian()})

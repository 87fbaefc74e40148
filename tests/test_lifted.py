"""Optax's transformations as data, each held against optax's own."""

import copy
import importlib.util
import inspect
import pickle
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxopt_adam
from jaxopt_adam import adam, grid, lifted, sgd

DOCS = Path(__file__).parent.parent / "docs"
LIFTED = {
    name: value for name, value in vars(lifted).items() if not name.startswith("_") and hasattr(value, "__wrapped__")
}
PARAMS = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3), "b": jnp.array([0.5, -0.25, 2.0])}
MASK = {"w": True, "b": False}
NOISE = jax.tree.map(lambda leaf: np.random.default_rng(0).normal(size=(10, *leaf.shape)).astype(np.float32), PARAMS)
LR = {"learning_rate": 0.1}


def falling(count):
    return 1 / (1 + count)


def is_even(step, **kwargs):
    return step % 2 == 0


def size(updates):
    return optax.tree.norm(updates)


def halved(updates, params=None):
    return jax.tree.map(lambda leaf: leaf / 2, updates)


def halved_leaf(leaf, param=None):
    return leaf / 2


# The arguments of those that need some, or whose defaults do nothing.
ARGUMENTS = {
    "MultiSteps": {"opt": sgd(0.1, momentum=0.9), "every_k_schedule": 3},
    "acprop": LR | {"eps": 0.1, "weight_decay": 0.01},
    "adaptive_grad_clip": {"clipping": 0.01},
    "add_decayed_weights": {"weight_decay": 0.1, "mask": MASK},
    "add_noise": {"eta": 0.1, "gamma": 0.5, "key": 3},
    "apply_every": {"k": 3},
    "apply_if_finite": {"inner": adam(0.1), "max_consecutive_errors": 2},
    "clip": {"max_delta": 0.2},
    "clip_by_block_rms": {"threshold": 0.2},
    "clip_by_global_norm": {"max_norm": 0.5},
    "cocob": {"weight_decay": 0.01},
    "conditionally_mask": {"inner": sgd(0.1, momentum=0.9), "should_transform_fn": is_even},
    "conditionally_transform": {"inner": sgd(0.1, momentum=0.9), "should_transform_fn": is_even},
    "dadapt_adamw": {"weight_decay": 0.01},
    "differentially_private_aggregate": {"l2_norm_clip": 0.5, "noise_multiplier": 0.1, "key": 3},
    "dog": {"weight_decay": 0.01},
    "dowg": {"init_estim_sq_dist": 0.1, "weight_decay": 0.01},
    "dpsgd": LR | {"l2_norm_clip": 0.5, "noise_multiplier": 0.1, "seed": 3, "momentum": 0.9},
    "ema": {"decay": 0.9},
    "flatten": {"inner": lifted.clip_by_global_norm(0.5)},
    "freeze": {"mask": MASK},
    "fromage": LR,
    "galore": LR | {"rank": 2, "update_proj_gap": 4, "base_optimizer": lifted.scale_by_adam(), "weight_decay": 0.01},
    "lars": LR | {"weight_decay": 0.01, "weight_decay_mask": MASK},
    "lookahead": {"fast_optimizer": sgd(0.1, momentum=0.9), "sync_period": 3, "slow_step_size": 0.5},
    "madgrad": LR | {"weight_decay": 0.01},
    "measure_with_ema": {"measure": size, "decay": 0.9},
    "mechanize": {"base_optimizer": sgd(0.1, momentum=0.9)},
    "momo": {"weight_decay": 0.01, "adapt_lower_bound": True},
    "momo_adam": {"weight_decay": 0.01, "adapt_lower_bound": True},
    "monitor": {"measures": {"size": size, "average": lifted.measure_with_ema(size, 0.9)}},
    "noisy_sgd": LR | {"key": 3},
    "normalize_by_update_norm": {"scale_factor": 0.5},
    "optimistic_adam": LR | {"optimism": 0.2},
    "optimistic_adam_v2": LR,
    "optimistic_gradient_descent": LR,
    "reduce_on_plateau": {"patience": 1, "cooldown": 1, "accumulation_size": 2, "rtol": 0.5, "min_scale": 0.01},
    "rprop": LR,
    "sam": {"optimizer": sgd(0.1, momentum=0.9), "adv_optimizer": sgd(0.05)},
    "scale": {"step_size": -0.1},
    "scale_by_acprop": {"eps": 0.1},
    "scale_by_backtracking_linesearch": {"max_backtracking_steps": 5},
    "scale_by_belief": {"eps": 1e-3},
    "scale_by_galore": {"rank": 2, "update_proj_gap": 4, "base_optimizer": lifted.scale_by_adam()},
    "scale_by_learning_rate": LR,
    "scale_by_madgrad": LR,
    "scale_by_schedule": {"step_size_fn": falling},
    "scale_by_muon": {"weight_dimension_numbers": {"w": optax.contrib.MuonDimensionNumbers(0, 1)}},
    "scale_by_radam": {"b2": 0.9},
    "scale_by_rprop": LR,
    "scale_by_zoom_linesearch": {"max_linesearch_steps": 5},
    "schedule_free": {"base_optimizer": sgd(0.1)} | LR,
    "schedule_free_sgd": {"warmup_steps": 3, "weight_decay": 0.01},
    "selective_transform": {"optimizer": sgd(0.1, momentum=0.9), "freeze_mask": MASK},
    "sign_sgd": LR,
    "signum": LR,
    "simplified_ademamix": LR | {"alpha": 0.5},
    "sm3": LR,
    "snapshot": {"measure_name": "size", "measure": size},
    "sophia": LR | {"update_interval": 3},
    "split_real_and_imaginary": {"inner": sgd(0.1, momentum=0.9)},
    "stateless": {"f": halved},
    "stateless_with_tree_map": {"f": halved_leaf},
    "trace": {"decay": 0.9},
    "with_extra_args_support": {"tx": sgd(0.1, momentum=0.9)},
}
GROWING = {"monitor"}  # its state has more after the first step
MEASURES = {"measure_with_ema"}
NEEDS_VALUE = {"momo", "momo_adam", "polyak_sgd", "reduce_on_plateau", "scale_by_polyak"}
NEEDS_FUNCTION = {"lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"}
NEEDS_OBJECTIVE = {"hutchinson_estimator_diag_hessian", "sophia"}
FOR_MATRICES = {"scale_by_muon"}
BY_EXAMPLE = {"differentially_private_aggregate", "dpsgd"}

pytestmark = [
    pytest.mark.filterwarnings('ignore:"seed" is deprecated:DeprecationWarning'),
    pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning"),
]
all_names = pytest.mark.parametrize("name", LIFTED)


def made(name):
    return LIFTED[name](**ARGUMENTS.get(name, {}))


def other(optimizer):
    """The same optimizer with another value in place of each of its numbers."""
    return jax.tree.map(lambda leaf: leaf + 1 if isinstance(leaf, int) else 0.75 * leaf or 0.001, optimizer)


def theirs(name, optimizer):
    """The transformation that optax makes of the same arguments."""
    module = optax.contrib if hasattr(optax.contrib, name) else optax
    transformation = getattr(module, name)(**optimizer.hyperparameters)
    if name == "MultiSteps":
        return optax.GradientTransformationExtraArgs(transformation.init, transformation.update)
    return optax.with_extra_args_support(transformation)


def objective(params):
    return sum(jnp.sum(jnp.sqrt(1 + (leaf - 0.3) ** 2)) for leaf in jax.tree.leaves(params))


def run(name, optimizer):
    """Updates and states of some steps with random gradients."""
    start = {"w": PARAMS["w"]} if name in FOR_MATRICES else PARAMS
    start = optax.LookaheadParams.init_synced(start) if name == "lookahead" else start

    def step(carry, noise):
        params, state = carry
        value, gradients = jax.value_and_grad(objective)(params.fast if name == "lookahead" else params)
        extra = {"value": value} if name in NEEDS_VALUE | NEEDS_FUNCTION else {}
        extra |= {"grad": gradients, "value_fn": objective} if name in NEEDS_FUNCTION else {}
        extra |= {"obj_fn": objective} if name in NEEDS_OBJECTIVE else {}
        if name not in NEEDS_FUNCTION:
            gradients = jax.tree.map(jnp.add, gradients, noise)
        if name in BY_EXAMPLE:
            gradients = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf / 2]), gradients)
        updates, state = optimizer.update(gradients, state, params, **extra)
        return (params if name in MEASURES else optax.apply_updates(params, updates), state), updates

    carry, noise = (start, optimizer.init(start)), {"w": NOISE["w"]} if name in FOR_MATRICES else NOISE
    if name in GROWING:
        carry, _ = step(carry, jax.tree.map(lambda leaf: leaf[0], noise))
    (_, state), updates = jax.lax.scan(step, carry, noise)
    return updates, jax.tree.map(_numbers, state)


def _numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def assert_same(one, two, tolerance=1e-6):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for (path, left), right in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True):
        assert left.dtype == right.dtype, path
        np.testing.assert_allclose(left, right, tolerance, tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.mark.clients
@all_names
def test_steps_are_those_of_optax(name):
    first = made(name)
    second = other(first)  # not with the defaults, which would be right if a number were lost
    # One trace of a function serves both.
    assert jax.tree.structure(first) == jax.tree.structure(second)
    kinds = [[jnp.result_type(leaf) for leaf in jax.tree.leaves(each)] for each in (first, second)]
    assert kinds[0] == kinds[1]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), first, second)

    @jax.jit
    def together(batch):
        rows = jax.vmap(lambda optimizer: run(name, optimizer))(batch) if jax.tree.leaves(batch) else None
        return run(name, theirs(name, second)), run(name, second), rows

    expected, closed, rows = together(batch)
    assert_same(closed, expected)
    if rows is not None:
        assert_same(jax.tree.map(lambda leaf: leaf[1], rows), expected, 1e-4)


@pytest.mark.parametrize(
    "name",
    [name for name in LIFTED if name not in NEEDS_FUNCTION | NEEDS_OBJECTIVE | NEEDS_VALUE | FOR_MATRICES | BY_EXAMPLE],
)
def test_dtypes_do_not_depend_on_how_numbers_are_given(name):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)

    def once(optimizer):
        start = optax.LookaheadParams.init_synced(params) if name == "lookahead" else params
        state = optimizer.init(start)
        return state, optimizer.update(params, state, start)

    optimizer = made(name)
    arrays = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, optimizer))  # without weak types
    dtypes = [jax.tree.map(lambda leaf: leaf.dtype, jax.eval_shape(once, each)) for each in (optimizer, arrays)]
    assert dtypes[0] == dtypes[1]


class TestTable:
    TABLE = runpy.run_path(str(DOCS / "lifted_table.py"))

    def test_every_factory_of_optax_has_a_row(self):
        names = [name for name, _ in self.TABLE["factories"]()]
        assert len(names) > 100
        assert len(names) == len(set(names))
        assert set(LIFTED) | set(self.TABLE["OURS"]) | set(self.TABLE["NOT"]) >= set(names)
        assert self.TABLE["table"]().count("\n") == len(names) + 1

    def test_a_name_has_one_row(self):
        parts = [set(LIFTED), set(self.TABLE["OURS"]), set(self.TABLE["NOT"])]
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert len(self.TABLE["NOT"]) <= 5

    def test_a_factory_that_is_new_in_optax_is_noticed(self, monkeypatch):
        monkeypatch.setattr(optax, "new", optax.clip, raising=False)
        with pytest.raises(ValueError, match="new of optax is neither lifted"):
            self.TABLE["table"]()


@all_names
class TestData:
    def test_names(self, name):
        factory = LIFTED[name]
        assert factory.__name__ == factory.__qualname__ == name
        assert factory.__module__ == "jaxopt_adam.lifted"
        assert f"`optax.{name}` as data" in factory.__doc__ or f"`optax.contrib.{name}` as data" in factory.__doc__
        module = optax.contrib if hasattr(optax.contrib, name) else optax
        assert list(inspect.signature(factory).parameters) == list(inspect.signature(getattr(module, name)).parameters)

    def test_copies_are_equal(self, name):
        optimizer = made(name)
        for each in copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)):
            assert each == optimizer
            assert hash(each) == hash(optimizer)

    def test_repr_makes_it_again(self, name):
        # Functions in a dictionary are shown as Python shows them.
        optimizer = lifted.monitor({"average": lifted.measure_with_ema(size, 0.9)}) if name == "monitor" else made(name)
        names = vars(jaxopt_adam) | vars(optax.contrib) | LIFTED | globals()
        assert eval(repr(optimizer), names) == optimizer

    def test_wrong_arguments_are_refused(self, name):
        with pytest.raises(TypeError, match=f"^{name}: .*no_such"):
            LIFTED[name](**ARGUMENTS.get(name, {}), no_such=1.0)

    def test_values_of_another_kind_are_refused(self, name):
        for argument, value in made(name).hyperparameters.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                with pytest.raises(TypeError, match=f"^{name}: {argument} must be"):
                    LIFTED[name](**ARGUMENTS.get(name, {}) | {argument: "much"})


def test_numbers_can_be_replaced():
    optimizer = lifted.apply_if_finite(adam(0.1), 2)
    assert optimizer.replace(max_consecutive_errors=3, learning_rate=0.2) == lifted.apply_if_finite(adam(0.2), 3)
    assert lifted.clip(1) == lifted.clip(np.float32(1.0)) == lifted.clip(max_delta=1.0)


def test_a_grid_of_whole_numbers():
    optimizers, _ = grid(lifted.apply_every, k=[1, 3])
    updates = jax.vmap(lambda each: each.update(2.0, each.init(0.0)))(optimizers)[0]
    np.testing.assert_array_equal(updates, [2.0, 0.0])


def test_a_seed_is_a_leaf_and_a_key_is_as_good():
    noise = [lifted.add_noise(0.1, 0.5, key) for key in (7, jax.random.key(7))]
    assert all(len(jax.tree.leaves(each)) == 3 for each in noise)
    one, two = (jax.jit(lambda each: each.update(jnp.zeros(()), each.init(0.0))[0])(each) for each in noise)
    assert one == two != 0
    with pytest.raises(ValueError, match="key must be a key of JAX's default kind"):
        lifted.add_noise(0.1, 0.5, jax.random.key(7, impl="rbg"))


def test_numbers_of_a_schedule_are_leaves():
    schedule = jax.tree_util.Partial(lambda slope, count: slope * (count + 1), 0.5)
    optimizer = lifted.scale_by_schedule(schedule)
    assert jax.tree.leaves(optimizer) == [0.5]
    assert jax.jit(lambda each: each.update(jnp.array(2.0), each.init(0.0))[0])(optimizer) == 1.0


def test_numbers_at_which_optax_looks_are_structure():
    assert jax.tree.leaves(lifted.reduce_on_plateau(factor=0.5)) == [10, 0, 1, 0.0]
    with pytest.raises(TypeError, match="factor must be a number that is not traced"):
        jax.jit(lambda factor: lifted.reduce_on_plateau(factor))(0.5)


def test_a_name_that_optax_lacks_takes_no_other_with_it(monkeypatch):
    monkeypatch.delattr(optax, "clip")
    spec = importlib.util.spec_from_file_location("another", lifted.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.scale(2.0) is not None
    with pytest.raises(NotImplementedError, match=r"clip: optax .* does not have it"):
        module.clip(1.0)

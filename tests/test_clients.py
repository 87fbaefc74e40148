"""Optimizers inside optax's wrappers, and inside the libraries that take a gradient transformation."""

import functools
import pickle

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import optimistix as optx
import pytest
from flax import nnx, serialization
from flax.training.train_state import TrainState
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDelta

from jaxopt_adam import (
    ObserveState,
    Optimizer,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adamw,
    adan,
    chain,
    lion,
    master_weights,
    observe,
    partition,
    rmsprop,
    schedules,
    sgd,
    soap,
    summary,
)
from jaxopt_adam.lifted import clip_by_global_norm
from jaxopt_adam.storage import Blockwise

pytestmark = pytest.mark.clients

RULES = {
    "sgd": sgd(0.1),
    "momentum": sgd(0.05, momentum=0.8, nesterov=True),
    "adagrad": adagrad(0.5),
    "adadelta": adadelta(10.0),
    # With a smaller ε it would jump about the minimum for ever, at the last another way in each compilation.
    "rmsprop": rmsprop(0.05, eps=0.3),
    "adam": adam(0.1),
    "nadam": adam(0.1, nesterov=True),
    "scheduled": adam(optax.exponential_decay(0.2, 10, 0.9)),
    "recipe": chain(clip_by_global_norm(100.0), adam(schedules.exponential_decay(0.2, 10, 0.9))),
}
SOME = ["adam", "momentum", "recipe"]
every_rule = pytest.mark.parametrize("made", RULES.values(), ids=RULES)
some_rules = pytest.mark.parametrize("made", [RULES[name] for name in SOME], ids=SOME)

INPUTS = np.asarray(jax.random.normal(jax.random.key(0), (32, 3)))
TARGETS = INPUTS @ np.array([1.0, -2.0, 0.5], np.float32) + 1


def start(dtype=jnp.float32):
    return {"weight": jnp.array([0.5, 0.5, 0.5], dtype), "bias": {"value": jnp.zeros([], dtype)}}


def loss(params):
    return jnp.mean((INPUTS @ params["weight"] + params["bias"]["value"] - TARGETS) ** 2)


def step(made, params, state):
    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = made.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value


def train(made, params=None, steps=100):
    """The parameters, the state and all losses after a jitted scan of steps."""
    return cached_train(made, steps) if params is None else scan(made, params, steps)


@functools.cache
def cached_train(made, steps):
    return scan(made, start(), steps)


def scan(made, params, steps):

    @jax.jit
    def run(params, state):
        def body(carry, _):
            params, state, value = step(made, *carry)
            return (params, state), value

        return jax.lax.scan(body, (params, state), length=steps)

    (params, state), losses = run(params, made.init(params))
    return params, state, np.append(losses, loss(params))


def assert_learns(losses, factor=20):
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0] / factor


def assert_same(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), one, other)


def assert_identical(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert jax.tree.map(lambda leaf: leaf.dtype, one) == jax.tree.map(lambda leaf: leaf.dtype, other)


class TestOptax:
    @every_rule
    def test_alone(self, made):
        assert_learns(train(made)[-1])

    @some_rules
    def test_chain(self, made):
        chained = optax.chain(optax.clip_by_global_norm(100.0), made, optax.scale(0.5), optax.scale(2.0))
        params, _, losses = train(chained)
        assert_learns(losses)
        assert_same(params, train(made)[0], rtol=1e-4, atol=1e-5)

    def test_named_chain(self):
        made = optax.named_chain(("clip", optax.clip(1.0)), ("adam", adam(0.1)))
        _, state, losses = train(made)
        assert_learns(losses)
        assert state["adam"].count == 100

    @some_rules
    def test_masked_leaves_alone_what_is_out(self, made):
        mask = {"weight": True, "bias": False}
        masked = optax.chain(
            optax.masked(made, mask), optax.masked(optax.set_to_zero(), {"weight": False, "bias": True})
        )
        params, state, losses = train(masked)
        assert losses[-1] < losses[0] / 2
        assert params["bias"]["value"] == 0
        sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.shape]
        assert all(size == 3 for size in sizes)

    def test_partition(self):
        made = optax.partition({"a": adam(0.1), "b": sgd(0.1), "c": adagrad(1.0)}, {"weight": "a", "bias": "b"})
        params, state, losses = train(made)
        assert_learns(losses)
        weight = optax.masked(adam(0.1), {"weight": True, "bias": False})
        bias = optax.masked(sgd(0.1), {"weight": False, "bias": True})
        assert_same(params, train(optax.chain(weight, bias))[0], rtol=1e-5)
        assert optax.tree.get(state.inner_states["a"], "count") == 100

    def test_integers_left_out(self):
        params = start() | {"steps": jnp.array(3)}
        made = optax.masked(adam(0.1), {"weight": True, "bias": True, "steps": False})
        state = made.init(params)
        gradients = start() | {"steps": np.zeros([], jax.dtypes.float0)}
        updates, _ = made.update(gradients, state, params)
        assert updates["weight"].shape == (3,)
        with pytest.raises(TypeError, match=r"leaf \['steps'\] must have a floating-point dtype, got int32"):
            adam(0.1).init(params)

    @pytest.mark.parametrize(
        ("factory", "arguments"),
        [
            (sgd, {"learning_rate": 0.1, "momentum": 0.5, "nesterov": True}),
            (adagrad, {"learning_rate": 0.5}),
            (adadelta, {"learning_rate": 10.0}),
            (rmsprop, {"learning_rate": 0.05, "centered": True}),
            (adam, {"learning_rate": 0.1, "b1": 0.8, "nesterov": True}),
            (adam, {"learning_rate": optax.exponential_decay(0.2, 10, 0.9)}),
        ],
    )
    def test_inject_hyperparams(self, factory, arguments):
        injected = optax.inject_hyperparams(factory)(**arguments)
        _, state, losses = train(injected)
        assert_learns(losses)
        # Early: RMSProp ends hopping around the minimum, where a last bit decides on which side it is.
        assert_same(train(injected, steps=10)[0], train(factory(**arguments), steps=10)[0], rtol=1e-4, atol=1e-5)
        assert state.hyperparams["learning_rate"].shape == ()
        assert "nesterov" not in state.hyperparams

    def test_inject_hyperparams_takes_another_rate(self):
        injected = optax.inject_hyperparams(adam)(learning_rate=0.1)
        params, state, _ = train(injected, steps=5)
        state.hyperparams["learning_rate"] = jnp.array(0.0)
        stopped, state, _ = jax.jit(functools.partial(step, injected))(params, state)
        assert_identical(stopped, params)
        assert state.hyperparams["learning_rate"] == 0

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_inject_hyperparams_into_narrow_parameters(self, dtype):
        injected = optax.inject_hyperparams(adam, hyperparam_dtype=jnp.float32)(learning_rate=0.05)
        params, state, losses = train(injected, start(dtype))
        assert_learns(losses)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
        assert all(leaf.dtype == jnp.float32 for leaf in state.hyperparams.values())
        assert_same(params, train(adam(0.05), start(dtype))[0], rtol=0.05, atol=0.02)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_inject_hyperparams_in_the_parameters_dtype(self, dtype):
        injected = optax.inject_hyperparams(sgd)(learning_rate=0.05, momentum=0.5)
        _, state, losses = train(injected, start(dtype))
        assert_learns(losses)
        assert all(leaf.dtype == dtype for leaf in state.hyperparams.values())

    @some_rules
    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_narrow_parameters(self, made, dtype):
        params, state, losses = train(made, start(dtype))
        assert_learns(losses)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32)
        updates, _ = made.update(params, state, params)
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(updates))

    @some_rules
    def test_multi_steps(self, made):
        accumulated = optax.MultiSteps(made, every_k_schedule=2)
        params, state, losses = train(accumulated, steps=200)
        assert_learns(losses)
        assert state.gradient_step == 100
        # Two equal gradients have themselves as their mean.
        assert_same(params, train(made)[0], rtol=1e-4, atol=1e-5)
        transformation = accumulated.gradient_transformation()
        assert_learns(train(transformation, steps=200)[-1])

    def test_apply_if_finite(self):
        made = optax.apply_if_finite(adam(0.1), max_consecutive_errors=5)
        params, state, losses = train(made)
        assert_learns(losses)
        broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
        updates, after = jax.jit(made.update)(broken, state, params)
        assert_identical(updates, jax.tree.map(jnp.zeros_like, params))
        assert_identical(after.inner_state, state.inner_state)
        assert after.total_notfinite == 1

    def test_flatten(self):
        params, state, losses = train(optax.flatten(adam(0.1)))
        assert_learns(losses)
        assert state.mu.shape == (4,)
        assert_same(params, train(adam(0.1))[0], rtol=1e-5)

    def test_freeze(self):
        frozen = optax.chain(adam(0.1), optax.transforms.freeze({"weight": False, "bias": True}))
        params, _, losses = train(frozen)
        assert losses[-1] < losses[0] / 2
        assert params["bias"]["value"] == 0
        selective = optax.transforms.selective_transform(adam(0.1), freeze_mask={"weight": True, "bias": False})
        params, _, _ = train(selective)
        np.testing.assert_array_equal(params["weight"], start()["weight"])
        assert abs(params["bias"]["value"]) > 0.1

    @every_rule
    def test_map_params(self, made):
        state = made.init(start())
        mapped = optax.tree.map_params(made, lambda leaf: leaf + 1, state)
        assert jax.tree.structure(mapped) == jax.tree.structure(state)
        shaped = optax.tree.map_params(made, lambda leaf, param: param, state, start())
        if type(state) is tuple:  # of a chain, the rule's last
            state, mapped, shaped = state[-1], mapped[-1], shaped[-1]
        assert mapped.count == state.count
        assert_same(
            mapped._replace(count=None), jax.tree.map(lambda leaf: leaf + 1, state._replace(count=None)), rtol=1e-6
        )
        for name in ("mu", "nu", "trace", "e_g", "e_x", "sum_of_squares"):
            if getattr(state, name, None) is not None:
                assert_identical(getattr(shaped, name), start())

    @some_rules
    def test_conditionally_mask_and_skip(self, made):
        every_second = optax.transforms.conditionally_mask(made, lambda count, **_: count % 2 == 0)
        params, _, losses = train(every_second, steps=200)
        assert_learns(losses)
        assert_same(params, train(made)[0], rtol=1e-4, atol=1e-5)

    def test_lookahead(self):
        made = optax.lookahead(adam(0.1), sync_period=5, slow_step_size=0.5)
        params = optax.LookaheadParams.init_synced(start())
        state = made.init(params)

        @jax.jit
        def move(params, state):
            updates, state = made.update(jax.grad(loss)(params.fast), state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(100):
            params, state = move(params, state)
        assert loss(params.slow) < loss(start()) / 20

    @pytest.mark.parametrize("factory", [adam, sgd, adagrad, functools.partial(rmsprop, eps=0.3), adadelta])
    def test_without_rate_it_is_a_scaling(self, factory):
        rates = {adadelta: 10.0, adagrad: 0.5}
        rate = rates.get(factory, 0.1)
        chained = optax.chain(factory(None), optax.scale_by_learning_rate(rate))
        params, _, losses = train(chained)
        assert_learns(losses)
        assert_same(params, train(factory(rate))[0], rtol=1e-4, atol=1e-5)

    def test_decoupled_weight_decay(self):
        decay = 0.1
        made = optax.chain(adam(None), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(0.1))
        params, _, _ = train(made)
        assert_same(params, train(optax.adamw(0.1, weight_decay=decay))[0], rtol=1e-3, atol=1e-4)
        assert loss(params) > 2 * loss(train(adam(0.1))[0])

    def test_contrib_wrappers(self):
        reduced = optax.chain(adam(0.2), optax.contrib.reduce_on_plateau(patience=2, factor=0.5))
        params = start()
        state = reduced.init(params)

        @jax.jit
        def move(params, state):
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = reduced.update(gradients, state, params, value=value)
            return optax.apply_updates(params, updates), state, value

        losses = []
        for _ in range(150):
            params, state, value = move(params, state)
            losses.append(value)
        assert_learns(losses)

    def test_sharpness_aware(self):
        made = optax.contrib.sam(adam(0.1), optax.chain(optax.contrib.normalize(), sgd(0.05)), sync_period=2)
        assert_learns(train(made, steps=200)[-1])


class TestLoops:
    @every_rule
    def test_scan_equals_steps(self, made):
        params, state = start(), made.init(start())
        one = jax.jit(functools.partial(step, made))
        for _ in range(10):
            params, state, _ = one(params, state)
        scanned, scanned_state, _ = train(made, steps=10)
        assert_same((params, state), (scanned, scanned_state), rtol=1e-5, atol=1e-6)

    @every_rule
    def test_state_keeps_its_types(self, made):
        state = made.init(start())
        kinds = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), state)
        params, after, _ = jax.jit(functools.partial(step, made))(start(), state)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), after) == kinds
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((params, after)))

    @every_rule
    def test_donated_buffers(self, made):
        donating = jax.jit(functools.partial(step, made), donate_argnums=(0, 1))
        params, state = jax.tree.map(jnp.copy, start()), made.init(start())
        first = (params, state)
        losses = []
        for _ in range(100):
            params, state, value = donating(params, state)
            losses.append(value)
        assert_learns(losses)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
        assert_same(params, train(made)[0], rtol=1e-4, atol=1e-5)

    @some_rules
    def test_vmap_over_an_ensemble(self, made):
        noise = jax.random.normal(jax.random.key(1), (4, 3))
        ensemble = {"weight": noise, "bias": {"value": jnp.arange(4.0)}}
        states = jax.vmap(made.init)(ensemble)
        assert optax.tree.get(states, "count").shape == (4,)
        move = jax.jit(jax.vmap(functools.partial(step, made)))
        params, losses = ensemble, []
        for _ in range(100):
            params, states, values = move(params, states)
            losses.append(values)
        assert np.all(losses[-1] < losses[0] / 20)
        member = train(made, jax.tree.map(lambda leaf: leaf[2], ensemble))[0]
        assert_same(jax.tree.map(lambda leaf: leaf[2], params), member, rtol=1e-4, atol=1e-5)


class TestSerialization:
    @every_rule
    def test_a_restored_run_goes_on_bit_for_bit(self, made):
        one = jax.jit(functools.partial(step, made))
        params, state = start(), made.init(start())
        for _ in range(5):
            params, state, _ = one(params, state)
        stored = serialization.to_bytes((params, state))
        target = jax.tree.map(jnp.zeros_like, (start(), made.init(start())))
        restored_params, restored_state = serialization.from_bytes(target, stored)
        assert type(restored_state) is type(state)
        assert_identical((restored_params, restored_state), (params, state))
        for _ in range(5):
            params, state, _ = one(params, state)
            restored_params, restored_state, _ = one(restored_params, restored_state)
        assert_identical((restored_params, restored_state), (params, state))
        assert not np.array_equal(params["weight"], start()["weight"])

    def test_of_the_optimizer_by_equinox(self, tmp_path):
        made = adam(0.25, b1=jnp.array(0.75), nesterov=True)
        eqx.tree_serialise_leaves(tmp_path / "optimizer.eqx", made)
        like = adam(0.5, b1=jnp.array(0.5), nesterov=True)
        assert eqx.tree_deserialise_leaves(tmp_path / "optimizer.eqx", like) == made

    def test_of_the_optimizer_by_its_leaves(self):
        made = adam(0.25, b1=jnp.array(0.75), nesterov=True)
        leaves, structure = jax.tree.flatten(made)
        restored = serialization.from_bytes(leaves, serialization.to_bytes(leaves))
        assert jax.tree.unflatten(structure, restored) == made


class TestNnx:
    @staticmethod
    def learn(tx, jit=True, steps=60):
        model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        holder = nnx.Optimizer(model, tx, wrt=nnx.Param)
        traces = []

        def move(model, holder):
            traces.append(None)
            value, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(INPUTS)[:, 0] - TARGETS) ** 2))(model)
            holder.update(model, gradients)
            return value

        move = nnx.jit(move) if jit else move
        return [float(move(model, holder)) for _ in range(steps)], holder, traces

    @some_rules
    def test_in_jit(self, made):
        losses, holder, traces = self.learn(made)
        assert_learns(losses, 10)
        assert holder.tx is made
        assert holder.step[...] == len(losses)
        assert len(traces) == 1

    @pytest.mark.parametrize(
        "made",
        [
            adamw(1e-3, moments="int8"),
            adan(1e-3, moments="int4"),
            soap(1e-3),
            observe(adamw(1e-3, moments="int8")),
            master_weights(adamw(1e-3, moments="int8")),
        ],
        ids=repr,
    )
    def test_states_with_trees_of_their_own(self, made):
        """In flax tuples and lists rest within the trees of a state as trees of its own."""
        model, plain = (nnx.Linear(256, 32, rngs=nnx.Rngs(0)) for _ in range(2))
        holder = nnx.Optimizer(model, made, wrt=nnx.Param)
        params = nnx.to_pure_dict(nnx.state(plain, nnx.Param))
        state = made.init(params)
        move = nnx.jit(lambda model, holder, gradients: holder.update(model, gradients))
        for seed in range(3):
            gradients = jax.tree.map(
                lambda leaf, seed=seed: jax.random.normal(jax.random.key(seed), leaf.shape), params
            )
            whole = nnx.state(model, nnx.Param)
            nnx.replace_by_pure_dict(whole, gradients)
            move(model, holder, whole)
            updates, state = jax.jit(made.update)(gradients, state, params)
            params = optax.apply_updates(params, updates)
        for name, leaf in params.items():
            np.testing.assert_allclose(getattr(model, name)[...], leaf, rtol=1e-6, atol=1e-8)
        if isinstance(state, ObserveState):
            figures = summary(holder.opt_state)
            assert figures["step"] == 3
            assert 0 < figures["quantization_error"] < 0.02
            np.testing.assert_allclose(figures["signal_to_noise"], summary(state)["signal_to_noise"], rtol=1e-5)

    def test_without_jit(self):
        losses = self.learn(adam(0.1), jit=False, steps=3)[0]
        assert losses[2] < losses[1] < losses[0]
        np.testing.assert_allclose(losses, self.learn(adam(0.1), steps=3)[0], rtol=1e-5)

    def test_equal_optimizers_share_a_trace(self):
        traces = []

        @nnx.jit
        def move(model, holder):
            traces.append(None)
            gradients = nnx.grad(lambda model: jnp.mean((model(INPUTS)[:, 0] - TARGETS) ** 2))(model)
            holder.update(model, gradients)

        for rate in (0.1, 0.1, 0.2):
            model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
            before = model.bias[...]
            move(model, nnx.Optimizer(model, adam(rate), wrt=nnx.Param))
            np.testing.assert_allclose(abs(model.bias[...] - before), rate, rtol=1e-4)
        assert len(traces) == 2

    @pytest.mark.parametrize("wrap", [lambda made: made._replace(), optax.chain], ids=["plain", "chain"])
    def test_of_arrays_in_a_plain_pair(self, wrap):
        assert_learns(self.learn(wrap(adam(jnp.array(0.1))))[0], 10)

    def test_of_arrays_as_data(self):
        # nnx keeps what an attribute holds out of the trace only where the class declares that it is data.
        class Holder(nnx.Optimizer):
            tx: Optimizer = nnx.data()

        traces = []

        @nnx.jit
        def move(model, holder):
            traces.append(None)
            gradients = nnx.grad(lambda model: jnp.mean((model(INPUTS)[:, 0] - TARGETS) ** 2))(model)
            holder.update(model, gradients)

        for rate in (0.1, 0.2):
            model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
            before = model.bias[...]
            move(model, Holder(model, jax.tree.map(jnp.asarray, adam(rate)), wrt=nnx.Param))
            np.testing.assert_allclose(abs(model.bias[...] - before), rate, rtol=1e-4)
        assert len(traces) == 1


class TestLinen:
    def test_train_state(self):
        model = nn.Dense(1)
        variables = model.init(jax.random.key(0), INPUTS)
        traces = []

        @jax.jit
        def move(state):
            traces.append(None)
            value, gradients = jax.value_and_grad(
                lambda params: jnp.mean((state.apply_fn(params, INPUTS)[:, 0] - TARGETS) ** 2)
            )(state.params)
            return state.apply_gradients(grads=gradients), value

        apply = model.apply
        for made, count in (
            (adam(0.1), 1),
            (adam(0.1), 1),
            (adam(jnp.array(0.1)), 2),
            (adam(jnp.array(0.1)), 2),
            (sgd(0.1), 3),
            (adam(0.2), 4),
        ):
            state = TrainState.create(apply_fn=apply, params=variables, tx=made)
            losses = []
            for _ in range(60):
                state, value = move(state)
                losses.append(value)
            assert_learns(losses, 10)
            assert state.tx == made
            assert len(traces) == count

    def test_other_numbers_are_not_confused(self):
        variables = {"weight": jnp.zeros([])}

        @jax.jit
        def move(state):
            return state.apply_gradients(grads={"weight": jnp.ones([])})

        for rate in (0.5, 0.25, 0.5):
            state = TrainState.create(apply_fn=None, params=variables, tx=sgd(rate))
            assert move(state).params["weight"] == -rate

    def test_serialization(self):
        model = nn.Dense(1)
        variables = model.init(jax.random.key(0), INPUTS)
        state = TrainState.create(apply_fn=model.apply, params=variables, tx=adam(0.1))

        @jax.jit
        def move(state):
            gradients = jax.grad(lambda params: jnp.mean((state.apply_fn(params, INPUTS)[:, 0] - TARGETS) ** 2))
            return state.apply_gradients(grads=gradients(state.params))

        for _ in range(3):
            state = move(state)
        fresh = TrainState.create(apply_fn=model.apply, params=variables, tx=adam(0.1))
        restored = serialization.from_bytes(fresh, serialization.to_bytes(state))
        assert restored.step == 3
        assert_identical(move(restored).params, move(state).params)


class Model(eqx.Module):
    linear: eqx.nn.Linear
    nothing: None
    activation: object
    count: int
    frozen: jax.Array

    def __init__(self):
        self.linear = eqx.nn.Linear(3, 1, key=jax.random.key(0))
        self.nothing = None
        self.activation = jax.nn.softplus
        self.count = 3
        self.frozen = jnp.arange(2)

    def __call__(self, x):
        return self.linear(x)[0]


class Trainer(eqx.Module):
    model: Model
    optimizer: Optimizer
    state: object

    def __call__(self):
        def model_loss(model):
            return jnp.mean((jax.vmap(model)(INPUTS) - TARGETS) ** 2)

        value, gradients = eqx.filter_value_and_grad(model_loss)(self.model)
        updates, state = self.optimizer.update(gradients, self.state, eqx.filter(self.model, eqx.is_inexact_array))
        return Trainer(eqx.apply_updates(self.model, updates), self.optimizer, state), value


def trainer(made):
    model = Model()
    return Trainer(model, made, made.init(eqx.filter(model, eqx.is_inexact_array)))


class TestEquinox:
    @some_rules
    def test_model_of_other_things_too(self, made):
        traces = []

        @eqx.filter_jit
        def move(each):
            traces.append(None)
            return each()

        each, losses = trainer(made), []
        for _ in range(100):
            each, value = move(each)
            losses.append(value)
        assert_learns(losses)
        assert len(traces) == 1
        assert each.model.nothing is None
        assert each.model.activation is jax.nn.softplus
        assert each.model.count == 3
        np.testing.assert_array_equal(each.model.frozen, [0, 1])
        assert each.optimizer == made

    def test_an_optimizer_of_arrays_shares_the_trace(self):
        traces = []

        @eqx.filter_jit
        def move(each):
            traces.append(None)
            return each()

        moved = {}
        for rate in (0.1, 0.2):
            made = jax.tree.map(jnp.asarray, adam(rate))
            each = trainer(made)
            moved[rate] = move(each)[0].model.linear.bias - each.model.linear.bias
            np.testing.assert_allclose(abs(moved[rate]), rate, rtol=1e-4)
        assert len(traces) == 1

    def test_partition_and_combine(self):
        each = trainer(adam(jnp.array(0.1), nesterov=True))
        dynamic, static = eqx.partition(each, eqx.is_inexact_array)
        assert dynamic.optimizer.hyperparameters["b1"] is None
        assert static.optimizer.hyperparameters["learning_rate"] is None
        assert eqx.combine(dynamic, static).optimizer == each.optimizer

    def test_tree_at_changes_a_hyperparameter(self):
        each = trainer(adam(0.1))
        leaf = lambda each: jax.tree.leaves(each.optimizer)[0]
        assert eqx.tree_at(leaf, each, 0.5).optimizer == adam(0.5)

    def test_filter_grad_of_the_optimizer(self):
        def after(made):
            moved = step(made, start(), made.init(start()))[0]
            return loss(moved)

        gradient = eqx.filter_grad(after)(sgd(jnp.array(0.1), momentum=0.5))
        assert gradient.hyperparameters["learning_rate"] < 0
        assert gradient.hyperparameters["momentum"] is None


class TestNumpyro:
    @some_rules
    def test_variational_inference(self, made):
        data = np.array([2.0, 3.0, 4.0])

        def model():
            mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
            numpyro.sample("data", dist.Normal(mean, 1.0), obs=data)

        svi = SVI(model, AutoDelta(model), made, Trace_ELBO())
        result = svi.run(jax.random.key(0), 200, progress_bar=False)
        assert result.losses[-1] < result.losses[0]
        np.testing.assert_allclose(result.params["mean_auto_loc"], 3.0, atol=0.1)

    def test_what_is_no_optax_transformation_is_refused(self):
        with pytest.raises(TypeError):
            SVI(lambda: None, lambda: None, tuple(adam(0.1)), Trace_ELBO())


class TestOptimistix:
    @pytest.mark.parametrize(
        "made",
        [adam(0.1), rmsprop(0.01), sgd(0.1, momentum=0.5), adam(0.1)._replace(), chain(RULES["recipe"])],
        ids=["adam", "rmsprop", "sgd", "plain", "recipe"],
    )
    def test_minimise(self, made):
        solver = optx.OptaxMinimiser(made, rtol=1e-5, atol=1e-6)
        solution = optx.minimise(lambda x, _: jnp.sum((x - 3) ** 2), solver, jnp.zeros(2), max_steps=2000)
        assert solution.result == optx.RESULTS.successful
        np.testing.assert_allclose(solution.value, 3.0, atol=1e-2)

    def test_the_numbers_are_leaves_of_the_solver(self):
        solver = optx.OptaxMinimiser(adam(jnp.array(0.1)), rtol=1e-5, atol=1e-6)
        leaves = [float(leaf) for leaf in jax.tree.leaves(eqx.filter(solver.optim, eqx.is_array))]
        assert leaves == [pytest.approx(0.1)]

    def test_another_rate_needs_no_new_trace(self):
        traces = []

        @eqx.filter_jit
        def solve(solver, x0):
            traces.append(None)
            return optx.minimise(shifted, solver, x0, max_steps=2000, throw=False)

        def shifted(x, _):
            return jnp.sum((x - 3) ** 2)

        steps = []
        for rate in (0.1, 0.2, 0.4):
            solver = optx.OptaxMinimiser(adam(jnp.array(rate)), rtol=1e-5, atol=1e-6)
            solution = solve(solver, jnp.zeros(2))
            np.testing.assert_allclose(solution.value, 3.0, atol=1e-2)
            steps.append(int(solution.stats["num_steps"]))
        assert len(traces) == 1
        assert len(set(steps)) == 3

    def test_vmap_over_rates(self):
        def solve(rate):
            solver = optx.OptaxMinimiser(adam(rate), rtol=1e-5, atol=1e-6)
            return optx.minimise(lambda x, _: jnp.sum((x - 3) ** 2), solver, jnp.zeros(2), max_steps=2000).value

        np.testing.assert_allclose(jax.vmap(solve)(jnp.array([0.1, 0.2])), 3.0, atol=1e-2)


# ------------------------------------------------------------------------------------------------- moments in codes


def is_large(params):
    """The leaves of a client's tree that are stored in codes, if they are to be."""
    return jax.tree.map(lambda leaf: leaf.size >= 16, params)


def is_small(params):
    return jax.tree.map(lambda leaf: leaf.size < 16, params)


def by_size(params):
    return jax.tree.map(lambda leaf: "large" if leaf.size >= 16 else "small", params)


STORED = {
    "float32": "float32",
    "int8": Blockwise(8, min_size=16),
    "int4": Blockwise(4, min_size=16),
    "nu": {"nu": Blockwise(4, min_size=16)},
}
WRAPPERS = {
    "MultiSteps": lambda made: optax.MultiSteps(made, every_k_schedule=2).gradient_transformation(),
    "apply_if_finite": lambda made: optax.apply_if_finite(made, max_consecutive_errors=3),
    "masked": lambda made: optax.chain(optax.masked(made, is_large), optax.masked(optax.sgd(0.05), is_small)),
    "partition": lambda made: optax.partition({"large": made, "small": optax.sgd(0.05)}, by_size),
}


def in_all(moments):
    """AdamW with such moments, in all of optax's wrappers, each in the next."""
    made = adamw(0.05, weight_decay=0.0, moments=STORED[moments])
    for wrapper in ("partition", "masked", "apply_if_finite", "MultiSteps"):
        made = WRAPPERS[wrapper](made)
    return made


def whole_numbers(state):
    """The dtypes of what a state has in place of moments."""
    return {str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.dtype.kind == "u" and leaf.ndim}


EXPECTED = {"float32": set(), "int8": {"uint16", "uint32"}, "int4": {"uint8", "uint32"}, "nu": {"uint8", "uint16"}}
FEATURES = np.asarray(jax.random.normal(jax.random.key(1), (16, 16)))
every_storage = pytest.mark.parametrize("moments", STORED)


class TestMomentsInCodes:
    """Each client in jit, with moments in codes and within optax's wrappers."""

    @every_storage
    def test_linen(self, moments):
        model = nn.Dense(4)

        @jax.jit
        def move(state):
            return jax.value_and_grad(lambda params: jnp.mean((model.apply(params, FEATURES) - 1) ** 2))(state.params)

        @jax.jit
        def apply(state, gradients):
            return state.apply_gradients(grads=gradients)

        variables = model.init(jax.random.key(0), FEATURES)
        state = TrainState.create(apply_fn=model.apply, params=variables, tx=in_all(moments))
        losses = []
        for _ in range(60):
            value, gradients = move(state)
            losses.append(value)
            state = apply(state, gradients)
        assert_learns(losses, 5)
        assert whole_numbers(state.opt_state) == EXPECTED[moments]

    @every_storage
    def test_nnx(self, moments):
        model = nnx.Linear(16, 4, rngs=nnx.Rngs(0))
        holder = nnx.Optimizer(model, in_all(moments), wrt=nnx.Param)

        @nnx.jit
        def move(model, holder):
            value, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(FEATURES) - 1) ** 2))(model)
            holder.update(model, gradients)
            return value

        assert_learns([move(model, holder) for _ in range(60)], 5)
        assert whole_numbers(nnx.to_pure_dict(nnx.state(holder))) == EXPECTED[moments]

    @every_storage
    def test_numpyro(self, moments):
        data = np.linspace(1.0, 2.0, 32)

        def model():
            shift = numpyro.sample("shift", dist.Normal(0.0, 10.0))
            mean = numpyro.sample("mean", dist.Normal(0.0, 10.0).expand([32]).to_event(1))
            numpyro.sample("data", dist.Normal(mean + shift, 1.0).to_event(1), obs=data)

        svi = SVI(model, AutoDelta(model), in_all(moments), Trace_ELBO())
        result = svi.run(jax.random.key(0), 100, progress_bar=False)
        assert result.losses[-1] < result.losses[0] - 10
        assert whole_numbers(result.state.optim_state) == EXPECTED[moments]

    @every_storage
    def test_optimistix(self, moments):
        start = {"large": jnp.zeros(32), "small": jnp.zeros(2)}
        target = {"large": jnp.linspace(1.0, 2.0, 32), "small": jnp.ones(2)}

        def distance(params, _):
            return optax.tree.norm(optax.tree.sub(params, target), squared=True)

        solver = optx.OptaxMinimiser(in_all(moments), rtol=1e-12, atol=1e-12)
        solution = optx.minimise(distance, solver, start, max_steps=120, throw=False)
        assert distance(solution.value, None) < distance(start, None) / 20

    @pytest.mark.parametrize("wrapper", WRAPPERS)
    @pytest.mark.parametrize(
        ("around", "made"),
        [
            (None, adamw(1e-3, moments=STORED["int8"])),
            (None, adamw(1e-3, moments=STORED["nu"])),
            (None, lion(1e-3, moments=STORED["int4"])),
            (observe, adamw(1e-3, moments=STORED["int8"])),
            (master_weights, adamw(1e-3, moments=STORED["int8"])),
            (None, soap(1e-3)),
            (None, adafactor(1e-3, min_dim_size_to_factor=1)),
            (None, chain(clip_by_global_norm(1.0), adamw(schedules.linear_schedule(1e-3, 0.0, 10)))),
        ],
    )
    def test_the_types_of_nnx_are_kept_by_all_wrappers(self, around, made, wrapper):
        """There is nothing but arrays in a tree, because nnx makes trees of its own of everything else."""
        model = nnx.Linear(
            16, 4, param_dtype=jnp.bfloat16 if around is master_weights else jnp.float32, rngs=nnx.Rngs(0)
        )
        made = WRAPPERS[wrapper](made) if around is None else around(WRAPPERS[wrapper](made))
        graph, state = nnx.split((model, nnx.Optimizer(model, made, wrt=nnx.Param)))

        def move(state):
            model, holder = nnx.merge(graph, state)
            holder.update(model, nnx.state(model, nnx.Param))
            return nnx.state((model, holder))

        after = jax.eval_shape(move, state)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), state
        )
        jax.eval_shape(move, after)


def by_flax_bytes(state, like, path):
    return serialization.from_bytes(like, serialization.to_bytes(state))


def by_flax_dict(state, like, path):
    return serialization.from_state_dict(like, serialization.to_state_dict(state))


def by_orbax(state, like, path):
    checkpoint = pytest.importorskip("orbax.checkpoint")
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "orbax", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "orbax", jax.eval_shape(lambda: like))


def by_equinox(state, like, path):
    eqx.tree_serialise_leaves(path / "state.eqx", state)
    return eqx.tree_deserialise_leaves(path / "state.eqx", like)


def by_pickle(state, like, path):
    return pickle.loads(pickle.dumps(state))


RESTORED = {
    "in all, int8": in_all("int8"),
    "in all, nu": in_all("nu"),
    "int4": adamw(0.05, moments=STORED["int4"]),
    "two kinds": adamw(0.05, moments=lambda path: STORED["nu" if "bias" in str(path) else "int8"]),
    "soap": soap(0.05),
    "observe": observe(adamw(0.05, moments=STORED["int8"])),
    "recipe": chain(
        clip_by_global_norm(1.0),
        partition(
            {"weights": adamw(schedules.warmup_cosine_decay_schedule(0.0, 0.05, 2, 10)), "rest": sgd(0.01)},
            {"kernel": "weights", "bias": "rest", "scale": "rest"},
        ),
    ),
}


@functools.cache
def stopped(name):
    """A step, and what it has come to after three."""
    made = RESTORED[name]
    key = jax.random.key(0)
    params = {"kernel": jax.random.normal(key, (16, 4)), "bias": jnp.zeros(16), "scale": jnp.ones(3)}

    @jax.jit
    def move(params, state):
        gradients = jax.tree.map(lambda leaf: leaf - 0.5, params)
        updates, state = made.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    first = params, made.init(params)
    carry = first
    for _ in range(3):
        carry = move(*carry)
    return move, first, carry, move(*move(*carry))


@pytest.mark.parametrize("restore", [by_flax_bytes, by_flax_dict, by_orbax, by_equinox, by_pickle])
@pytest.mark.parametrize("name", RESTORED)
def test_restored_in_any_way_it_goes_on_bit_for_bit(name, restore, tmp_path):
    move, first, carry, expected = stopped(name)
    restored = restore(carry, first, tmp_path)
    assert_identical(restored, carry)
    assert_identical(move(*move(*restored)), expected)

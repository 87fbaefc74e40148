"""A checked optimizer is the optimizer; what is wrong in a step is named, with the leaf and the step."""

import copy
import functools
import inspect
import operator
import pickle
import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import checkify
from public import RULES

import jaxopt_adam
from jaxopt_adam import (
    _assertions,
    _averages,
    _hyperparameters,
    adadelta,
    adam,
    adamw,
    adan,
    bias_correction,
    descend,
    grid,
    optimizer,
    rmsprop,
    sgd,
)
from jaxopt_adam._checked import _decays, checked

FACTORIES = list(RULES)
LAST_STEP = 2**31 - 1

PARAMS = {"layer": {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, np.float32)}}
GRADS = jax.tree.map(lambda leaf: leaf * np.float32(0.1), PARAMS)


def with_bad(value, element=1, leaf="kernel"):
    """The gradients with `value` in an element of a leaf."""
    grads = copy.deepcopy(GRADS)
    grads["layer"][leaf].flat[element] = value
    return grads


def uncompiled(function, *args):
    function(*args)


checkify_once = functools.cache(lambda function: jax.jit(checkify.checkify(function)))


def checkified(function, *args):
    error, _ = checkify_once(function)(*args)
    error.throw()


def jitted_and_checkified(function, *args):
    error, _ = checkify.checkify(jax.jit(function))(*args)
    error.throw()


def chexified(function, *args):
    chex.chexify(jax.jit(function), async_check=False)(*args)


WAYS = [uncompiled, checkified, jitted_and_checkified, chexified]


def failure(function, *args, way=uncompiled):
    """The message of `function(*args)`, without checkify's own remark at the end."""
    with pytest.raises(ValueError, match=r" \(`check` failed\)") as error:
        way(function, *args)
    return str(error.value).partition(" (`check` failed)")[0]


class CountState(NamedTuple):
    count: Any
    nu: Any = None


def by_state(change):
    """An optimizer with `change(state)` for its next state, and the gradients for updates."""
    return optax.GradientTransformation(
        lambda params: CountState(jnp.int32(0), jax.tree.map(jnp.zeros_like, params)),
        lambda updates, state, params=None: (updates, change(state)),
    )


class TestFailures:
    @pytest.mark.parametrize("way", WAYS)
    def test_gradient(self, way):
        made = checked(adam(0.1))
        state = made.init(PARAMS)._replace(count=jnp.int32(16))
        way(made.update, GRADS, state)
        said = failure(made.update, with_bad(np.nan), state, way=way)
        assert said == "leaf ['layer']['kernel'] at step 17: the gradient is not finite in 1 of 6 elements"

    def test_off_nothing_is_raised(self):
        made = checked(adam(0.1))
        updates, _ = jax.jit(made.update)(with_bad(np.nan), made.init(PARAMS))
        assert np.isnan(updates["layer"]["kernel"][0, 1])

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_every_kind_of_gradient_that_is_not_finite(self, bad):
        made = checked(sgd(0.1))
        grads = with_bad(bad, leaf="bias")
        grads["layer"]["bias"][2] = bad
        said = failure(made.update, grads, made.init(PARAMS))
        assert said == "leaf ['layer']['bias'] at step 1: the gradient is not finite in 2 of 3 elements"

    def test_complex_gradient(self):
        made = checked(optax.adam(0.1))
        grads = jnp.array([1 + 1j, complex(1, np.inf), complex(np.nan, 0)])
        made.update(grads[:1], made.init(grads[:1]))
        said = failure(made.update, grads, made.init(grads))
        assert said == "the only leaf at step 1: the gradient is not finite in 2 of 3 elements"

    def test_update(self):
        made = checked(sgd(3e38))
        said = failure(made.update, with_bad(20.0), made.init(PARAMS))
        assert said == "leaf ['layer']['kernel'] at step 1: the update is not finite in 1 of 6 elements"

    def test_the_cause_is_named_and_not_what_follows(self):
        made = checked(optax.adam(0.1))
        state = made.init(PARAMS)
        grads = with_bad(np.nan)  # and so the moments, and the update
        assert "gradient" in failure(made.update, grads, state)

    def test_without_a_count_the_step_is_left_out(self):
        made = checked(optax.sgd(0.1))
        said = failure(made.update, with_bad(np.nan), made.init(PARAMS))
        assert said == "leaf ['layer']['kernel']: the gradient is not finite in 1 of 6 elements"

    def test_names_with_braces(self):
        made = checked(sgd(0.1))
        grads = {"{0}": {"}{step": jnp.array(np.inf)}}
        said = failure(made.update, grads, made.init(grads))
        assert said == "leaf ['{0}']['}{step'] at step 1: the gradient is not finite in 1 of 1 elements"

    @pytest.mark.parametrize("bad", [-1.0, -1e-30, np.nan])
    def test_negative_moment(self, bad):
        made = checked(adam(0.1))
        state = made.init(PARAMS)
        state.nu["layer"]["kernel"] = state.nu["layer"]["kernel"].at[0, 1].set(bad)
        said = failure(made.update, jax.tree.map(np.zeros_like, GRADS), state)
        assert said == "leaf ['layer']['kernel'] at step 1: state.nu is negative or NaN in 1 of 6 elements"

    def test_moment_that_becomes_negative(self):
        made = checked(by_state(lambda state: CountState(state.count + 1, jax.tree.map(lambda nu: nu - 1, state.nu))))
        said = failure(made.update, GRADS, made.init(PARAMS))
        assert said == "leaf ['layer']['bias'] at step 1: state.nu is negative or NaN in 3 of 3 elements"

    def test_moment_that_rests_in_whole_numbers(self):
        made = checked(by_state(lambda state: state._replace(count=state.count + 1)))
        made.update(GRADS, CountState(0, jax.tree.map(lambda leaf: np.full(leaf.shape, -3, np.int8), GRADS)))

    @pytest.mark.parametrize(
        ("name", "fields"),
        [
            ("adagrad", {"sum_of_squares"}),
            ("adadelta", {"e_g", "e_x"}),
            ("adan", {"n"}),
            ("amsgrad", {"nu", "nu_max"}),
            ("adafactor", {"v_row", "v_col"}),
            *((name, {"nu"}) for name in ("rmsprop", "adamax", "adabelief", "laprop", "adam_atan2")),
            *((name, set()) for name in ("sgd", "lion")),
        ],
    )
    def test_the_moments_that_may_not_be_negative(self, name, fields):
        made = RULES[name](0.1)
        state = made.init({"a": jnp.ones(2)})
        # The state comes out as it is put in, so a rule that mends a negative moment hides nothing.
        passed = checked(by_state(lambda state: state._replace(count=state.count + 1)))
        for field in set(state._fields) - {"count"}:
            if getattr(state, field) is not None:
                negative = state._replace(**{field: {"a": jnp.array([1.0, -1.0])}})
                if field in fields:
                    said = failure(passed.update, {"a": jnp.ones(2)}, negative)
                    assert said == f"leaf ['a'] at step 1: state.{field} is negative or NaN in 1 of 2 elements"
                else:
                    passed.update({"a": jnp.ones(2)}, negative)
        assert fields <= set(state._fields)

    def test_moments_in_a_chain(self):
        made = checked(optax.chain(optax.clip(1.0), optax.scale_by_adam()))
        state = made.init(PARAMS)
        state[1].nu["layer"]["bias"] -= 1
        said = failure(made.update, GRADS, state)
        assert said == "leaf ['layer']['bias'] at step 1: state[1].nu is negative or NaN in 3 of 3 elements"

    def test_parameters_that_are_called_as_moments_are(self):
        class Params(NamedTuple):
            mu: Any
            nu: Any
            count: Any

        grads = Params(jnp.array(-1.0), jnp.array(-1.0), jnp.array(-1.0))
        for made in (adam(0.1), optax.adam(0.1), optax.masked(optax.adam(0.1), Params(False, True, True))):
            made = checked(made)
            uncompiled(made.update, grads, made.init(grads))
        made = checked(adam(0.1))
        state = made.init(grads)._replace(nu=grads)
        assert failure(made.update, grads, state).startswith("leaf .mu at step 1: state.nu is negative")

    @pytest.mark.parametrize(
        ("change", "count", "said"),
        [
            (lambda count: count, 4, "state.count at step 5 has not risen by one"),
            (lambda count: count - 1, 4, "state.count at step 5 has not risen by one"),
            (lambda count: count + 2, 4, "state.count at step 5 has not risen by one"),
            (lambda count: count + 1, LAST_STEP, f"state.count at step {LAST_STEP} has not risen by one"),
            (lambda count: count + 1, -4, "state.count at step -3 is negative"),
        ],
    )
    def test_count(self, change, count, said):
        made = checked(by_state(lambda state: state._replace(count=change(state.count))))
        state = CountState(jnp.int32(count), GRADS["layer"]["bias"])
        assert failure(made.update, GRADS["layer"]["bias"], state) == said

    def test_count_that_is_not_the_first(self):
        second = by_state(lambda state: state._replace(count=state.count + 2))
        made = checked(optax.chain(optax.scale_by_adam(), second))
        assert failure(made.update, GRADS, made.init(PARAMS)) == "state[1].count at step 1 has not risen by one"

    @pytest.mark.parametrize("count", [None, {"a": jnp.int32(3), "b": jnp.int32(5)}, ()], ids=["None", "tree", "()"])
    def test_count_that_is_no_number(self, count):
        made = checked(by_state(lambda state: state))
        made.update(GRADS, CountState(count))
        assert failure(made.update, with_bad(np.nan), CountState(count)).startswith("leaf ['layer']['kernel']: the")

    def test_count_at_its_maximum(self):
        for made in (checked(adam(0.1)), checked(optax.adam(0.1)), checked(rmsprop(0.1, bias_correction=True))):
            state = optax.tree.set(made.init(PARAMS), count=jnp.int32(LAST_STEP))
            for way in (uncompiled, checkified):
                way(made.update, GRADS, state)
            said = failure(made.update, with_bad(np.nan), state)
            assert said.startswith(f"leaf ['layer']['kernel'] at step {LAST_STEP}: the gradient")


@optimizer
def decayed(decays: _hyperparameters.Decays):
    """No more than a decay for each leaf."""
    return by_state(lambda state: state._replace(count=state.count + 1))


# The program of the assertions is kept for the next step like it, so what is broken has leaves of its own.
BROKEN = {"of the broken": np.ones(3, np.float32)}


def naive_correction(decay, step):
    return 1 - jnp.asarray(decay, jnp.float32) ** step


class TestDecays:
    @pytest.mark.parametrize("decay", [1.0, 1.5, -0.5, np.nan])
    def test_traced_decay_out_of_range(self, decay):
        step = lambda decay: (made := checked(adam(0.1, decay))).update(GRADS, made.init(PARAMS))
        assert failure(step, decay, way=checkified) == f"adam's b1 at step 1 is {decay} and not in [0, 1)"

    def test_traced_decay_that_float32_rounds_to_one(self):
        step = lambda decay: (made := checked(adam(0.1, b2=decay))).update(GRADS, made.init(PARAMS))
        assert failure(step, 1 - 1e-9, way=checkified) == "adam's b2 at step 1 is 1.0 and not in [0, 1)"

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            (lambda decay, step: bias_correction(decay, step - 1), "b1 at step 1 has the bias correction 0.0, which"),
            (lambda decay, step: bias_correction(decay, step) - 1, "b1 at step 1 has the bias correction -0.89"),
            (lambda decay, step: bias_correction(decay, step) + 1, "b1 at step 1 has the bias correction 1.1"),
            (lambda decay, step: jnp.float32(np.nan), "b1 at step 1 has the bias correction nan, which"),
            (lambda decay, step: bias_correction(decay, step + 1), "b1 at step 1 makes of a constant 1 the debiased"),
            (lambda decay, step: jnp.float32(1), "b1 at step 1 makes of a constant 1 the debiased average 0.1"),
            # Exact to a rounding for 0.75, but in the first step of 0.999 off by 108 ε, of which the bound allows 5.
            (naive_correction, "b2 at step 1 makes of a constant 1 the debiased average 1.0000"),
        ],
    )
    def test_broken_bias_correction(self, broken, said, monkeypatch, request):
        grads = {request.node.name: BROKEN}
        made = checked(adam(0.1, b1=0.75 if broken is naive_correction else 0.9))
        monkeypatch.setattr(_assertions, "bias_correction", broken)
        monkeypatch.setattr(_averages, "bias_correction", broken)
        assert failure(made.update, grads, made.init(grads)).startswith(f"adam's {said}")

    @pytest.mark.parametrize(
        ("broken", "said"),
        [
            (
                lambda decay, step: bias_correction(decay, step).astype(jnp.bfloat16),
                "input 0 has type bfloat16 but exp",
            ),
            (lambda decay, step: bias_correction(decay, step)[None], r"input 0 has shape \(1,\) but expected \(\)"),
        ],
    )
    def test_bias_correction_of_another_kind(self, broken, said, monkeypatch):
        monkeypatch.setattr(_assertions, "bias_correction", broken)
        made = checked(adam(0.1, b1=0.8125))  # which no other test has traced
        with pytest.raises(AssertionError, match=said):
            jax.eval_shape(lambda grads: made.update(grads, made.init(PARAMS)), GRADS)

    @pytest.mark.parametrize("dtype", [float, int, np.float32, np.float64, jnp.bfloat16, jnp.float16, jnp.float32])
    def test_bias_correction_of_decays_of_every_dtype(self, dtype):
        made = checked(adam(0.1, b1=dtype(0), b2=dtype(0.5)))
        uncompiled(made.update, GRADS, made.init(PARAMS))

    @pytest.mark.parametrize(
        ("name", "broken"),
        [
            ("debias", lambda average, decay, step: average),
            ("ema", lambda average, value, decay: decay * average + value),
            ("ema", lambda average, value, decay: decay * average + np.float32(1 - 1e-5) * (1 - decay) * value),
        ],
    )
    def test_broken_average(self, name, broken, monkeypatch, request):
        grads = {request.node.name: BROKEN}
        made = checked(adam(0.1))
        state = made.init(grads)._replace(count=jnp.int32(2))
        monkeypatch.setattr(_assertions, name, broken)
        said = failure(made.update, grads, state)
        assert said.startswith("adam's b1 at step 3 makes of a constant 1 the debiased average ")
        assert float(said.rpartition(" ")[2]) != 1

    def test_bound_holds_for_every_decay_and_step(self):
        generator = np.random.default_rng(0)
        near_one = 1 - 10 ** generator.uniform(-7, 0, 60_000)
        decays = np.concatenate([near_one, generator.uniform(0, 1, 40_000)]).astype(np.float32)
        decays = np.minimum(decays, np.nextafter(np.float32(1), np.float32(0)))
        steps = np.concatenate([10 ** generator.uniform(0, 9.33, 60_000), generator.integers(1, 30, 40_000)])
        steps = steps.astype(np.int32)
        steps[:100] = LAST_STEP
        steps[100:200] = 1
        assertions = lambda decay, step: [each.right for each in _assertions._of_decay("", decay, step)]
        for right in jax.jit(assertions)(decays, steps):
            assert np.all(right)
        numbers = (0.0, 1e-40, 0.1, 0.5, 0.9, 0.999, 0.99999, 1 - 1e-9, 1 - 2**-53)
        for rights in jax.jit(lambda steps: [assertions(number, steps) for number in numbers])(steps[::10]):
            for right in rights:
                assert np.all(right)

    def test_bound_holds_in_float64(self, x64):
        generator = np.random.default_rng(0)
        decays = jnp.asarray(np.minimum(1 - 10 ** generator.uniform(-15, 0, 50_000), 1 - 2**-53))
        steps = jnp.asarray(10 ** generator.uniform(0, 9.33, 50_000), jnp.int32)
        for each in _assertions._of_decay("", decays, steps):
            assert each.value.dtype == jnp.float64
            assert np.all(each.right)

    @pytest.mark.parametrize(
        ("made", "expected"),
        [
            (sgd(0.1), {}),
            (sgd(0.1, momentum=0.5), {"sgd's momentum": 0.5}),
            (rmsprop(0.1, momentum=0.0), {"rmsprop's decay": 0.9, "rmsprop's momentum": 0.0}),
            (jaxopt_adam.adagrad(0.1), {}),
            (adadelta(), {"adadelta's rho": 0.9}),
            (adan(0.1), {"adan's b1": 0.98, "adan's b2": 0.92, "adan's b3": 0.99}),
            (adamw(0.1, weight_decay=0.5), {"adamw's b1": 0.9, "adamw's b2": 0.999}),
            (jaxopt_adam.prodigy(), {"prodigy's betas[0]": 0.9, "prodigy's betas[1]": 0.999}),
            (jaxopt_adam.ademamix(0.1), {"ademamix's b1": 0.9, "ademamix's b2": 0.999, "ademamix's b3": 0.9999}),
            (jaxopt_adam.ademamix(0.1, b3=lambda count: 0.5), {"ademamix's b1": 0.9, "ademamix's b2": 0.999}),
            (decayed({"{a}": 0.5, "b": [0.25]}), {"decayed's decays['b'][0]": 0.25, "decayed's decays['{a}']": 0.5}),
            (jaxopt_adam.schedule_free_adamw(), {"schedule_free_adamw's b1": 0.9, "schedule_free_adamw's b2": 0.999}),
            (checked(checked(sgd(0.1, momentum=0.5))), {"sgd's momentum": 0.5}),
            (optax.adam(0.1), {}),
        ],
    )
    def test_what_is_a_decay(self, made, expected):
        found = list(_decays(made))
        assert dict(found) == expected
        assert len(found) == len(expected)

    def test_decays_of_an_optimizer_made_of_others(self):
        @optimizer
        def both(first, second):
            return optax.chain(first, second)

        step = lambda made: made.update(GRADS, made.init(PARAMS))
        for wrong, last in ((0.25, sgd(0.1, momentum=0.5)), (0.5, checked(sgd(0.1, momentum=0.5)))):
            made = checked(both(sgd(None, momentum=0.25), last))
            checkified(step, made)
            changed = jax.tree.map(lambda leaf, wrong=wrong: jnp.where(leaf == wrong, 1.0, leaf), made)
            assert failure(step, changed, way=checkified) == "sgd's momentum at step 1 is 1.0 and not in [0, 1)"
        step = lambda decay: (made := checked(decayed({"{a}": decay}))).update(BROKEN, made.init(BROKEN))
        assert failure(step, 2.0, way=checkified) == "decayed's decays['{a}'] at step 1 is 2.0 and not in [0, 1)"

    def test_decays_that_are_arrays(self):
        grads = np.ones(3, np.float32)
        step = lambda decays: (made := checked(adam(0.1, decays))).update(grads, made.init(grads))
        checkified(step, jnp.array([0.75, 0.5, 0.0]))
        uncompiled(step, np.array([0.999, 0.5, 0.0]))
        said = failure(step, jnp.array([0.5, -1.125, -2.0]), way=checkified)
        assert said == "adam's b1 at step 1 is -1.125 and not in [0, 1)"

    def test_numbers_are_part_of_the_program(self, monkeypatch):
        grads = {"of the numbers": BROKEN}
        broken = lambda decay, step: bias_correction(decay, step) + (decay == 0.5)
        monkeypatch.setattr(_assertions, "bias_correction", broken)
        for made in (checked(adam(0.1, 0.75)), checked(adam(0.1, np.array([0.75, 0.25, 0.0])))):
            made.update(grads, made.init(grads))
        made = checked(adam(0.1, 0.5))
        assert failure(made.update, grads, made.init(grads)).startswith(
            "adam's b1 at step 1 has the bias correction 1.5"
        )

    def test_uncompiled_steps_share_a_program(self, monkeypatch):
        grads = {"of the shared": BROKEN}
        programs = []
        assertions = _assertions._assertions
        monkeypatch.setattr(_assertions, "_assertions", lambda *args: programs.append(args) or assertions(*args))
        for rate in (0.1, 0.2):
            made = checked(adam(rate))
            state = made.init(grads)
            for _ in range(2):
                _, state = made.update(grads, state)
        assert len(programs) == 1


def instructions(function, *args):
    """The optimized program, without what does not run: names, and lines of source."""
    compiled = jax.jit(function).lower(*args).compile()
    text = re.sub(r", metadata=\{[^}]*\}", "", compiled.as_text())
    text = text[re.search(r"^(%|ENTRY)", text, re.MULTILINE).start() :]
    names = {}
    return re.sub(r"%[\w.\-]+", lambda name: names.setdefault(name[0], f"%{len(names)}"), text), compiled


def one_step(made, params, grads):
    updates, state = made.update(grads, made.init(params), params)
    return optax.apply_updates(params, updates), state


def scanned(made, params, grads):
    def step(carry, _):
        params, state = carry
        updates, state = made.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, made.init(params)), length=3)[0]


def batched(made, params, grads):
    return jax.vmap(one_step, in_axes=(None, None, 0))(made, params, jax.tree.map(lambda leaf: leaf[None], grads))


class TestOff:
    @pytest.mark.parametrize("function", [one_step, scanned, batched])
    @pytest.mark.parametrize(
        "inner",
        [adam(0.1), optax.chain(optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(0.1, 9)))],
        ids=["adam", "chain"],
    )
    def test_program_is_the_same(self, function, inner):
        leaves, tree = jax.tree.flatten(inner)
        numbers = [leaf for leaf in leaves if not callable(leaf)]

        def run(wrap, numbers, params, grads):
            rest = iter(numbers)
            made = jax.tree.unflatten(tree, [leaf if callable(leaf) else next(rest) for leaf in leaves])
            return function(wrap(made), params, grads)

        plain, compiled = instructions(functools.partial(run, lambda made: made), numbers, PARAMS, GRADS)
        off, compiled_off = instructions(functools.partial(run, checked), numbers, PARAMS, GRADS)
        assert len(plain) > 1000
        assert off == plain
        assert compiled_off.cost_analysis() == compiled.cost_analysis()
        assert compiled_off.memory_analysis().temp_size_in_bytes == compiled.memory_analysis().temp_size_in_bytes

    # That every rule can be checked is in TestOn; here is one of each kind of state.
    @pytest.mark.parametrize("name", ["sgd", "amsgrad", "adafactor", "muon", "soap", "prodigy", "schedule_free_adamw"])
    def test_program_of_every_kind_of_state_is_the_same(self, name):
        made, leaf = required(RULES[name]), PARAMS["layer"]["kernel"]
        step = jax.jit(lambda made, grads, state, params: made.update(grads, state, params))
        given = leaf, jax.eval_shape(made.init, leaf), leaf
        plain, off = (step.lower(each, *given).as_text() for each in (made, checked(made)))
        assert off == plain

    @pytest.mark.parametrize("function", [one_step, scanned, batched])
    def test_program_has_no_side_effects(self, function):
        # With any JAX would call it by a slower path.
        assert not jax.jit(function).trace(checked(adam(0.1)), PARAMS, GRADS).jaxpr.effects

    def test_learning_rates_share_a_trace(self):
        traces = []

        @jax.jit
        def step(made):
            traces.append(made)
            return one_step(made, PARAMS, GRADS)[0]

        for rate in (0.1, 0.2, 0.3):
            stepped = step(checked(sgd(rate)))
            expected = jax.tree.map(lambda param, grad, rate=rate: param - rate * grad, PARAMS, GRADS)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), stepped, expected)
        assert len(traces) == 1


def required(factory):
    """The factory with what it cannot do without."""
    needed = [each.name for each in inspect.signature(factory).parameters.values() if each.default is each.empty]
    assert set(needed) <= {"learning_rate"}
    return factory(*[0.1] * len(needed))


# With something more to compute XLA may fuse otherwise, and a product and a sum be rounded once and not twice.
assert_the_same = functools.partial(np.testing.assert_allclose, rtol=1e-6)


class TestOn:
    @pytest.mark.parametrize("name", FACTORIES)
    def test_every_rule(self, name):
        made = required(RULES[name])
        params = {"a": PARAMS["layer"]["kernel"].astype(jnp.bfloat16)}
        grads = {"a": GRADS["layer"]["kernel"].astype(jnp.bfloat16)}
        # With known numbers, of which there is less to compile: TestDecays has traced ones.
        step = jax.jit(checkify.checkify(functools.partial(one_step, checked(made))))
        error, (_, state) = step(params, grads)
        assert error.get() is None
        assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(made.init, params))
        grads["a"][0, 1] = np.inf
        said = "leaf ['a'] at step 1: the gradient is not finite in 1 of 6 elements (`check` failed)"
        assert step(params, grads)[0].get() == said

    @pytest.mark.parametrize(
        "make",
        [
            lambda wrap: wrap(optax.adam(optax.cosine_decay_schedule(0.1, 9))),
            lambda wrap: wrap(optax.chain(optax.clip(1.0), optax.scale_by_adam(), optax.scale(-0.1))),
            lambda wrap: wrap(optax.inject_hyperparams(optax.adam)(0.1)),
            lambda wrap: optax.chain(wrap(adam(0.1)), wrap(optax.trace(0.9))),
            lambda wrap: optax.MultiSteps(wrap(adam(0.1)), 2).gradient_transformation(),
            lambda wrap: wrap(optax.masked(adam(0.1), {"layer": {"kernel": True, "bias": False}})),
            lambda wrap: optax.masked(wrap(adam(0.1)), {"layer": {"kernel": True, "bias": False}}),
            lambda wrap: optax.partition(
                {"{a}": wrap(adam(0.1)), "b": sgd(0.1)}, {"layer": {"kernel": "{a}", "bias": "b"}}
            ),
        ],
    )
    def test_with_optax(self, make):
        wanted = jax.jit(functools.partial(scanned, make(lambda made: made)))(PARAMS, GRADS)
        run = jax.jit(checkify.checkify(functools.partial(scanned, make(checked))))
        error, given = run(PARAMS, GRADS)
        assert error.get() is None
        jax.tree.map(assert_the_same, given, wanted)
        error, _ = run(PARAMS, with_bad(np.nan))
        said = "leaf ['layer']['kernel'] at step 1: the gradient is not finite in 1 of 6 elements (`check` failed)"
        assert error.get() == said

    def test_count_that_rests(self):
        made = checked(optax.MultiSteps(adam(0.1), 2).gradient_transformation())
        said = failure(made.update, GRADS, made.init(PARAMS))
        assert said == "state.inner_opt_state.count at step 1 has not risen by one"

    @pytest.mark.parametrize("loop", ["scan", "fori_loop", "while_loop"])
    def test_the_first_failure_in_a_loop(self, loop):
        grads = np.ones((6, 3), np.float32)
        grads[3, 1] = np.nan
        grads[5] = np.inf
        made = checked(adam(0.1))

        def step(i, state):
            return made.update(jnp.asarray(grads)[i], state)[1]

        def run():
            state = made.init(grads[0])
            if loop == "scan":
                return jax.lax.scan(lambda state, i: (step(i, state), None), state, jnp.arange(6))
            if loop == "fori_loop":
                return jax.lax.fori_loop(0, jnp.int32(6), step, state)
            return jax.lax.while_loop(lambda state: state.count < 6, lambda state: step(state.count, state), state)

        for way in (checkified, chexified) if loop == "scan" else (checkified,):
            said = failure(run, way=way)
            assert said == "the only leaf at step 4: the gradient is not finite in 1 of 3 elements"

    def test_vmap(self):
        made = checked(adam(0.1))
        grads = np.ones((4, 3), np.float32)
        states = jax.device_get(jax.jit(jax.vmap(made.init))(grads))
        grads[2, 0] = np.nan
        said = "the only leaf at step 1: the gradient is not finite in 1 of 3 elements"
        for way in (uncompiled, checkified):
            assert failure(jax.vmap(made.update), grads, states, way=way) == said
        each = jax.vmap(checkify.checkify(made.update), in_axes=(1, None))
        errors, _ = jax.jit(each)(grads.T, jax.tree.map(operator.itemgetter(0), states))
        assert errors.get() == f"at mapped index 2: {said} (`check` failed)"
        along = jax.vmap(checked(optax.identity()).update, in_axes=(2, None), out_axes=(2, None))
        grads = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
        np.testing.assert_array_equal(along(grads, optax.EmptyState())[0], grads)
        grads[1, 0, 3] = np.nan
        said = "the only leaf: the gradient is not finite in 1 of 6 elements"
        assert failure(along, grads, optax.EmptyState(), way=jitted_and_checkified) == said

    @pytest.mark.parametrize("moments", ["bfloat16", "int8"])
    def test_all_of_checkify_on_a_batch(self, moments):
        """A sound step has nothing that checkify finds, and no loop for each row, which it refuses."""
        made = checked(adam(0.1, moments=moments))
        grads = np.ones((2, 64, 64), np.float32)
        checkified = checkify.checkify(jax.vmap(made.update), errors=checkify.all_checks)
        errors, _ = jax.jit(checkified)(grads, jax.jit(jax.vmap(made.init))(grads))
        errors.throw()

    def test_shard_map(self):
        mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec("i")
        made = checked(sgd(0.1))
        update = lambda grads: made.update(grads, made.init(grads))[0]
        sharded = jax.shard_map(update, mesh=mesh, in_specs=spec, out_specs=spec)
        grads = np.array([1, np.nan], np.float32)
        np.testing.assert_allclose(jax.jit(sharded)(grads), -0.1 * grads)
        checkified(sharded, np.ones(2, np.float32))
        said = failure(sharded, grads, way=checkified)
        assert said == "the only leaf at step 1: the gradient is not finite in 1 of 2 elements"

    def test_grid(self):
        inner, _ = grid(adam, learning_rate=[0.1, 0.2], b1=[0.5, 0.9, 0.99])
        step = jax.vmap(one_step, in_axes=(0, None, None))
        wanted = jax.jit(step)(inner, PARAMS, GRADS)
        error, given = jax.jit(checkify.checkify(step))(checked(inner), PARAMS, GRADS)
        assert error.get() is None
        jax.tree.map(assert_the_same, given, wanted)
        wrong = jax.tree.map(lambda leaf: jnp.where(leaf == 0.9, 1.0, leaf), checked(inner))
        errors, _ = jax.jit(jax.vmap(checkify.checkify(one_step), in_axes=(0, None, None)))(wrong, PARAMS, GRADS)
        assert [line.partition(":")[0] for line in errors.get().splitlines()] == [
            "at mapped index 1",
            "at mapped index 4",
        ]
        assert "adam's b1 at step 1 is 1.0 and not in [0, 1)" in errors.get()

    def test_descend(self):
        def run(made, start):
            return descend(lambda x: jnp.sum(jnp.sqrt(x)), start, made, steps=4)

        wanted = run(adam(0.1), jnp.array([4.0, 1.0]))
        error, given = jax.jit(checkify.checkify(run))(checked(adam(0.1)), jnp.array([4.0, 1.0]))
        assert error.get() is None
        jax.tree.map(assert_the_same, given, wanted)
        error, _ = jax.jit(checkify.checkify(run))(checked(sgd(1.0)), jnp.array([4.0, 0.25]))
        assert error.get().startswith("the only leaf at step 2: the gradient is not finite in 1 of 2 elements")

    def test_derivative_of_the_run(self):
        grads = np.ones((3, 2), np.float32)

        def run(rate, wrap, grads):
            made = wrap(sgd(rate, momentum=0.5))
            state = made.init(grads[0])
            step = lambda state, grad: made.update(grad, state)[::-1]
            return jnp.sum(jax.lax.scan(step, state, grads)[1])

        derivative = jax.grad(run)
        of_checked = lambda rate, grads: derivative(rate, checked, grads)
        wanted = derivative(0.1, lambda made: made, grads)
        assert of_checked(0.1, grads) == wanted
        checkified(of_checked, 0.1, grads)
        grads[1, 1] = np.inf
        said = "the only leaf at step 2: the gradient is not finite in 1 of 2 elements"
        assert failure(of_checked, 0.1, grads, way=checkified) == said
        rematerialized = lambda grads: jax.grad(jax.checkpoint(run, static_argnums=1))(0.1, checked, grads)
        assert failure(rematerialized, grads, way=checkified) == said

    def test_asynchronous_chexify(self):
        made = checked(adam(0.1))
        update = chex.chexify(jax.jit(made.update))
        update(with_bad(np.nan), made.init(PARAMS))
        with pytest.raises(ValueError, match="the gradient is not finite in 1 of 6"):
            update.wait_checks()
        update.wait_checks()

    def test_automatic_checks_find_nothing_in_the_assertions(self):
        made = checked(sgd(0.1, momentum=0.5))
        update = jax.jit(checkify.checkify(made.update, errors=checkify.all_checks))
        error, _ = update(GRADS, made.init(PARAMS))
        assert error.get() is None

    def test_leaves_to_pass_over(self):
        made = checked(adam(0.1))
        params = {"none": None, "masked": optax.MaskedNode(), "empty": np.ones((0, 3), np.float32), "a": np.ones(2)}
        for way in (uncompiled, checkified):
            way(made.update, params, made.init(params))
            whole = {"whole": np.arange(3), "flag": np.array(True), "key": jax.random.key(0)}
            way(checked(optax.identity()).update, whole, optax.EmptyState())
        for way in (uncompiled, checkified):
            for made in (checked(adam(0.1)), checked(optax.identity())):
                way(made.update, {}, made.init({}))
                way(made.update, None, made.init(None))

    def test_arrays_of_numpy_may_be_changed_in_place(self):
        made = checked(sgd(0.1))
        grads = np.ones(3)
        made.update(grads, made.init(grads))
        grads[0] = np.nan
        assert failure(made.update, grads, made.init(grads)).startswith("the only leaf at step 1: the gradient")

    def test_moments_of_some_leaves(self):
        made = checked(jaxopt_adam.muon(0.1))
        params = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(3)}
        state = made.init(params)
        assert state.nu["matrix"] is None
        made.update(params, state, params)
        state.nu["vector"] -= 1
        said = failure(made.update, jax.tree.map(jnp.zeros_like, params), state, params)
        assert said == "leaf ['vector'] at step 1: state.nu is negative or NaN in 3 of 3 elements"

    def test_numbers_and_constants(self):
        made = checked(optax.identity())
        assert made.update(1.5, made.init(1.5))[0] == 1.5
        assert made.update(np.ones(2), made.init(1.5))[0].dtype == np.float64
        assert failure(made.update, np.inf, made.init(1.5)) == (
            "the only leaf: the gradient is not finite in 1 of 1 elements"
        )
        constant = jnp.array(np.nan)
        assert np.isnan(jax.jit(lambda: made.update(constant, made.init(1.5)))()[0])
        assert "the gradient" in failure(lambda: made.update(constant, made.init(1.5)), way=checkified)

    def test_x64(self, x64):
        made = checked(adam(0.1))
        grads = np.ones(3)
        for way in (uncompiled, checkified):
            way(made.update, grads, made.init(grads))
        grads[1] = np.nan
        said = failure(made.update, grads, made.init(grads))
        assert said == "the only leaf at step 1: the gradient is not finite in 1 of 3 elements"


class TestOptimizer:
    def test_is_an_optimizer(self):
        made = checked(adam(0.1, b2=0.99))
        assert repr(made) == "checked(optimizer=adam(learning_rate=0.1, b2=0.99))"
        assert jax.tree.leaves(made) == jax.tree.leaves(adam(0.1, b2=0.99))
        assert pickle.loads(pickle.dumps(made)) == made
        assert made != checked(adam(0.1))

    def test_state_is_the_optimizers_own(self):
        inner = adam(optax.linear_schedule(1.0, 0.0, 4))
        made = checked(inner)
        _, state = made.update(GRADS, made.init(PARAMS))
        assert jax.tree.structure(state) == jax.tree.structure(inner.init(PARAMS))
        assert inner.current_learning_rate(state) == 0.75
        inner.update(GRADS, state)

    def test_extra_arguments_reach_the_optimizer(self):
        def update(updates, state, params=None, *, value):
            return jax.tree.map(lambda leaf: value * leaf, updates), state

        made = checked(optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update))
        assert made.update(jnp.array(2.0), made.init(1.0), None, value=3.0)[0] == 6.0
        for without in (checked(optax.scale(-1.0)), checked(sgd(1.0))):
            assert without.update(jnp.array(2.0), without.init(1.0), None, value=3.0)[0] == -2.0

    def test_optimizers_own_errors_come_first(self):
        made = checked(adam(0.1))
        with pytest.raises(ValueError, match="must have the same tree"):
            made.update(with_bad(np.nan)["layer"], made.init(PARAMS))

    @pytest.mark.parametrize("wrong", [adam, 0.1, "adam", None, (lambda: None, lambda: None)])
    def test_what_is_no_optimizer(self, wrong):
        with pytest.raises(TypeError, match=r"^checked: optimizer must be an optimizer, ours or optax's, got "):
            checked(wrong)

"""Compositions as data: optax's meaning and states, numbers as leaves, names inside, one trace for all recipes."""

import operator
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_adam
from jaxopt_adam import (
    adam,
    adam_atan2,
    adamw,
    chain,
    from_optax,
    grid,
    lifted,
    masked,
    master_weights,
    named_chain,
    observe,
    optimizer,
    partition,
    sgd,
    to_optax,
)
from jaxopt_adam.schedules import linear_schedule, warmup_cosine_decay_schedule

clip_by_global_norm = optimizer(optax.clip_by_global_norm)
apply_if_finite = optimizer(lambda inner, max_consecutive_errors: optax.apply_if_finite(inner, max_consecutive_errors))

PARAMS = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "b": jnp.ones(3)}
GRADS = {"w": jnp.linspace(2.0, -1.0, 6).reshape(2, 3), "b": jnp.full(3, 0.5)}
LABELS = {"w": "body", "b": "head"}
MASK = {"w": True, "b": False}


def recipe(
    clip=1.0, peak=0.1, warmup=2.0, total=20.0, end=0.0, exponent=1.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1
):
    rate = warmup_cosine_decay_schedule(0.0, peak, warmup, total, end, exponent)
    return chain(clip_by_global_norm(clip), adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=MASK))


PAIRS = {
    "chain": (
        chain(clip_by_global_norm(1.0), adam(0.1)),
        optax.chain(optax.clip_by_global_norm(1.0), adam(0.1)),
    ),
    "chain with parts of optax": (chain(optax.clip(0.3), adam(0.1)), optax.chain(optax.clip(0.3), adam(0.1))),
    "named chain": (
        named_chain(("limit", clip_by_global_norm(1.0)), ("rule", adam(0.1))),
        optax.named_chain(("limit", optax.clip_by_global_norm(1.0)), ("rule", adam(0.1))),
    ),
    "partition": (
        partition({"body": adam(0.1), "head": sgd(0.2)}, LABELS),
        optax.partition({"body": adam(0.1), "head": sgd(0.2)}, LABELS),
    ),
    "partition by a function": (
        partition({"body": adam(0.1), "head": sgd(0.2)}, lambda params: LABELS),
        optax.partition({"body": adam(0.1), "head": sgd(0.2)}, lambda params: LABELS),
    ),
    "masked": (masked(adam(0.1), MASK), optax.masked(adam(0.1), MASK)),
    "nested": (
        chain(masked(clip_by_global_norm(1.0), MASK), partition({"body": chain(adam(0.1)), "head": sgd(0.2)}, LABELS)),
        optax.chain(
            optax.masked(optax.clip_by_global_norm(1.0), MASK),
            optax.partition({"body": optax.chain(adam(0.1)), "head": sgd(0.2)}, LABELS),
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
class TestMeaning:
    def test_is_that_of_optax(self, name):
        """Three steps, the states' structure, and the same as an argument of a jitted step."""
        ours, theirs = PAIRS[name]
        mine, other = ours.init(PARAMS), theirs.init(PARAMS)
        chex.assert_trees_all_equal_structs(mine, other)
        as_argument = jax.jit(lambda each, state: each.update(GRADS, state, PARAMS))
        alone = jax.jit(theirs.update)
        for _ in range(3):
            updates, mine = as_argument(ours, mine)
            expected, other = alone(GRADS, other, PARAMS)
            chex.assert_trees_all_close(updates, expected, rtol=1e-6, atol=1e-8)
            # A decay that is an argument is rounded to float32, and its distance from one with it.
            chex.assert_trees_all_close(mine, other, rtol=2e-5)
        eager = (each.update(GRADS, other, PARAMS)[0] for each in (ours, theirs))
        chex.assert_trees_all_close(*eager, rtol=1e-6)

    def test_reads_and_copies(self, name):
        made, _ = PAIRS[name]
        if name not in ("chain with parts of optax", "partition by a function"):
            assert eval(repr(made), vars(jaxopt_adam) | {"clip_by_global_norm": clip_by_global_norm}) == made
        if "function" not in name and "clip" not in repr(made):
            assert pickle.loads(pickle.dumps(made)) == made
        assert made != jax.tree.map(lambda number: number + 1, made)


def test_one_trace_for_all_recipes():
    """200 recipes that differ in ten numbers."""
    traces = 0

    @jax.jit
    def step(each, state):
        nonlocal traces
        traces += 1
        return each.update(GRADS, state, PARAMS)

    generator = np.random.default_rng(0)
    state = recipe().init(PARAMS)
    seen = set()
    for _ in range(200):
        low = generator.uniform(0.1, 0.9, 10)
        made = recipe(
            clip=low[0],
            peak=low[1],
            warmup=float(generator.integers(1, 10)),
            total=float(generator.integers(20, 40)),
            end=low[2] / 10,
            exponent=low[3] * 2,
            b1=low[4],
            b2=low[5],
            eps=low[6] * 1e-6,
            weight_decay=low[7],
        )
        updates, _ = step(made, jax.tree.map(lambda leaf: leaf + 3 if leaf.dtype == jnp.int32 else leaf, state))
        seen.add(float(updates["w"][0, 0]))
    assert traces == 1
    assert len(seen) == 200


def test_grid_of_recipes():
    """48 recipes in one program, equal to the loop over the rows."""
    axes = {"clip": [0.5, 1.0], "peak": [0.1, 0.2, 0.4], "warmup": [1.0, 2.0], "b2": [0.9, 0.99], "total": [10, 20]}
    optimizers, table = grid(recipe, **axes)
    assert len(table) == 48

    @jax.jit
    def trained(each):
        def body(carry, _):
            params, state = carry
            updates, state = each.update(jax.tree.map(jnp.multiply, GRADS, params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(body, (PARAMS, each.init(PARAMS)), length=12)[0][0]

    together = jax.jit(jax.vmap(trained))(optimizers)
    for index, row in enumerate(table):
        of_row = jax.tree.map(operator.itemgetter(index), together)
        alone = trained(recipe(**row))
        # Where a weight is near zero, of the largest.
        largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(alone))
        chex.assert_trees_all_close(of_row, alone, rtol=1e-6, atol=1e-6 * largest)
        if index % 16 == 0:
            chex.assert_trees_all_equal(trained(optimizers.row(index)), trained(recipe(**row)))


class TestNames:
    def test_hyperparameters(self):
        made = chain(optax.scale(2.0), sgd(0.1), sgd(0.2), recipe())
        assert list(made.hyperparameters) == ["part_1", "sgd", "sgd_2", "chain"]
        inner = made.hyperparameters["chain"].hyperparameters["adamw"].hyperparameters["learning_rate"]
        assert inner.hyperparameters["peak_value"] == 0.1
        assert list(PAIRS["named chain"][0].hyperparameters) == ["limit", "rule"]

    def test_names_that_come_again(self):
        """Each name once, whatever the others are."""
        made = chain(adam(0.1), adam_atan2(0.1), adam(0.2), adam(0.3))
        assert list(made.hyperparameters) == ["adam", "adam_atan2", "adam_2", "adam_3"]

    def test_odd_names(self):
        made = named_chain(("a[b].c", sgd(0.1)), ("", sgd(0.2)))
        assert made.replace(**{"a[b].c.learning_rate": 0.3}) == named_chain(("a[b].c", sgd(0.3)), ("", sgd(0.2)))
        assert made.replace(**{".learning_rate": 0.3}) == named_chain(("a[b].c", sgd(0.1)), ("", sgd(0.3)))

    def test_leaves_have_paths(self):
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(recipe())]
        assert paths[0] == ".clip_by_global_norm.max_norm"
        assert ".adamw.learning_rate.peak_value" in paths

    def test_replace(self):
        assert recipe().replace(peak_value=0.3, max_norm=2.0, b1=0.5) == recipe(peak=0.3, clip=2.0, b1=0.5)
        assert recipe().replace(**{"adamw.learning_rate.peak_value": 0.3}) == recipe(peak=0.3)
        assert recipe().replace(**{"learning_rate.peak_value": 0.3}) == recipe(peak=0.3)
        assert recipe().replace(adamw=sgd(0.1)).hyperparameters["adamw"] == sgd(0.1)
        two = partition({"body": adam(0.1), "head": adam(0.2)}, LABELS)
        with pytest.raises(TypeError, match=r"transforms\['body'\].learning_rate, transforms\['head'\].learning_rate"):
            two.replace(learning_rate=0.3)
        changed = two.replace(**{"transforms['head'].learning_rate": 0.3})
        assert changed == partition({"body": adam(0.1), "head": adam(0.3)}, LABELS)
        with pytest.raises(TypeError, match=r"chain has no hyperparameter lr; it has clip_by_global_norm.max_norm, ad"):
            recipe().replace(lr=1.0)

    def test_get(self):
        assert recipe(peak=0.3).get("peak_value") == 0.3
        assert recipe(clip=2.0).get("clip_by_global_norm.max_norm") == 2.0
        assert recipe().get("adamw") == recipe().hyperparameters["adamw"]
        two = partition({"body": adam(0.1), "head": adam(0.2)}, LABELS)
        with pytest.raises(TypeError, match=r"transforms\['body'\].learning_rate, transforms\['head'\].learning_rate"):
            two.get("learning_rate")
        assert two.get("transforms['head'].learning_rate") == 0.2
        with pytest.raises(TypeError, match=r"chain has no hyperparameter lr; it has clip_by_global_norm.max_norm, ad"):
            recipe().get("lr")

    def test_get_and_replace_agree_on_every_number(self):
        two = partition({"body": adam(0.1), "head": recipe()}, LABELS)
        for made in (adam(0.1), recipe(), two):
            for path, leaf in jax.tree_util.tree_leaves_with_path(made):
                name = jax.tree_util.keystr(path).removeprefix(".")
                assert made.get(name) == leaf
                changed = made.replace(**{name: leaf / 2 + 0.01})
                assert changed.get(name) == leaf / 2 + 0.01
                assert changed != made
                assert changed.replace(**{name: leaf}) == made

    def test_get_of_a_batch_has_its_rows(self):
        optimizers, table = grid(recipe, peak=[0.1, 0.2], clip=[1.0, 2.0, 3.0])
        np.testing.assert_array_equal(optimizers.get("max_norm"), np.float32([row["clip"] for row in table]))

    def test_replace_keeps_the_state(self):
        state = recipe().init(PARAMS)
        _, state = recipe().update(GRADS, state, PARAMS)
        recipe().replace(peak_value=0.5).update(GRADS, state, PARAMS)


class TestLearningRate:
    """The rate of the part that has one, through everything."""

    def states(self, made, steps=3):
        state = made.init(PARAMS)
        for _ in range(steps):
            _, state = jax.jit(made.update)(GRADS, state, PARAMS)
        return state

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda made: made,
            lambda made: chain(made),
            lambda made: named_chain(("first", clip_by_global_norm(1.0)), ("rule", made)),
            lambda made: masked(made, {"w": True, "b": True}),
            lambda made: master_weights(made),
            lambda made: observe(made),
            lambda made: apply_if_finite(made, 3),
            lambda made: chain(optax.clip(1.0), masked(chain(made, clip_by_global_norm(1.0)), MASK)),
        ],
    )
    def test_is_found(self, wrap):
        rate = linear_schedule(0.1, 0.0, 10)
        made = wrap(chain(clip_by_global_norm(1.0), adam(rate)))
        assert made.current_learning_rate(self.states(made)) == pytest.approx(0.07)

    def test_within_wrappers_of_optax(self):
        made = recipe(warmup=4.0)
        state = self.states(optax.MultiSteps(made, every_k_schedule=2).gradient_transformation(), 4)
        assert made.current_learning_rate(state) == pytest.approx(0.05)

    def test_of_several_parts(self):
        made = partition({"body": adam(linear_schedule(0.1, 0.0, 10)), "head": chain(sgd(0.2))}, LABELS)
        rates = made.current_learning_rate(self.states(made))
        assert rates == {"body": pytest.approx(0.07), "head": pytest.approx(0.2)}
        made = named_chain(("one", sgd(0.1)), ("other", sgd(0.2)))
        assert made.current_learning_rate(self.states(made)) == {"one": pytest.approx(0.1), "other": pytest.approx(0.2)}

    def test_of_odd_names(self):
        made = named_chain(("transforms", sgd(0.1)), ("mask", optax.scale(1.0)))
        assert made.current_learning_rate(self.states(made)) == pytest.approx(0.1)
        made = partition({"body": sgd(0.1), "head": optax.scale(1.0)}, LABELS)
        assert made.current_learning_rate(self.states(made)) == {"body": pytest.approx(0.1)}

    def test_of_none(self):
        made = chain(clip_by_global_norm(1.0))
        assert made.current_learning_rate(made.init(PARAMS)) is None
        made = chain(clip_by_global_norm(1.0), partition({"body": adam(None)}, "body"))
        assert made.current_learning_rate(made.init(PARAMS)) is None

    @pytest.mark.parametrize(
        ("wrap", "place"),
        [
            (lambda theirs: lifted.MultiSteps(theirs, 4), "opt of MultiSteps"),
            (lambda theirs: lifted.apply_if_finite(theirs, 4), "inner of apply_if_finite"),
            (lambda theirs: chain(clip_by_global_norm(1.0), theirs), "part_2 of chain"),
            (lambda theirs: masked(theirs, True), "inner of masked"),
            (lambda theirs: partition({"a": sgd(None), "b": theirs}, "b"), r"transforms\['b'\] of partition"),
            (lambda theirs: observe(lifted.MultiSteps(theirs, 4)), "inner.opt of observe"),
            (lambda theirs: chain(sgd(None), chain(theirs)), "chain.part_1 of chain"),
        ],
    )
    def test_of_what_cannot_be_read(self, wrap, place):
        made = wrap(optax.chain(optax.clip(1.0), adam(0.1)))
        state = made.init(PARAMS)
        with pytest.raises(ValueError, match=f"^{place} is no jaxopt_adam.Optimizer, .*jaxopt_adam.chain.*lifted"):
            made.current_learning_rate(state)
        # A step does not need it, nor does a part beside it that has a learning rate.
        beside = chain(sgd(0.2), made)
        assert beside.current_learning_rate(beside.init(PARAMS)) == pytest.approx(0.2)
        made.update(PARAMS, state, PARAMS)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: chain(), TypeError, "chain: give at least one transformation"),
        (lambda: chain(sgd), TypeError, r"chain: transforms\[0\] must be an optimizer, ours or optax's"),
        (lambda: named_chain(), TypeError, "at least one pair"),
        (lambda: named_chain(sgd(0.1)), TypeError, r"transforms\[0\] must be a pair of a name and a transformation"),
        (lambda: named_chain(("a", sgd(0.1)), ("a", sgd(0.1))), ValueError, "the name 'a' comes twice"),
        (lambda: named_chain(("a", 0.1)), TypeError, "named_chain: a must be an optimizer"),
        (lambda: partition(sgd(0.1), LABELS), TypeError, "transforms must be a dictionary of optimizers by label"),
        (lambda: partition({"body": 0.1}, LABELS), TypeError, r"transforms\['body'\] must be an optimizer"),
        (lambda: masked(sgd(0.1), {"w": 1}), TypeError, r"mask\['w'\] must be True or False, got 1"),
        (lambda: partition({"body": sgd(0.1)}, LABELS).init(PARAMS), ValueError, "head"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_state_of_another_chain():
    with pytest.raises(ValueError, match="states"):
        recipe().update(GRADS, chain(sgd(0.1)).init(PARAMS), PARAMS)


class TestStatesOfOptax:
    """States taken over from optax's compositions, and back, part by part."""

    def pairs(self):
        schedule, theirs = linear_schedule(0.1, 0.0, 10), optax.linear_schedule(0.1, 0.0, 10)
        yield (
            chain(clip_by_global_norm(1.0), adamw(schedule)),
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(theirs)),
        )
        yield (
            named_chain(("a", optax.trace(0.9)), ("mask", adamw(schedule))),
            optax.named_chain(("a", optax.trace(0.9)), ("mask", optax.adamw(theirs))),
        )
        yield (
            partition({"body": adamw(schedule), "head": chain(sgd(schedule, momentum=0.9))}, LABELS),
            optax.partition(
                {"body": optax.adamw(theirs), "head": optax.chain(optax.sgd(theirs, momentum=0.9))}, LABELS
            ),
        )
        yield masked(adam(schedule), lambda params: MASK), optax.masked(optax.adam(theirs), lambda params: MASK)

    def test_goes_on(self):
        for ours, theirs in self.pairs():
            mine, other = ours.init(PARAMS), theirs.init(PARAMS)
            for _ in range(2):
                _, mine = ours.update(GRADS, mine, PARAMS)
                _, other = theirs.update(GRADS, other, PARAMS)
            taken = from_optax(other, ours)
            chex.assert_trees_all_close(taken, mine, rtol=1e-6)
            for params in (None, PARAMS):
                back = to_optax(mine, ours, params)
                chex.assert_trees_all_close(back, other, rtol=1e-6)
            expected, _ = theirs.update(GRADS, to_optax(mine, ours), PARAMS)
            chex.assert_trees_all_close(ours.update(GRADS, taken, PARAMS)[0], expected, rtol=1e-5)

    def test_other_states(self):
        for ours, _ in self.pairs():
            with pytest.raises(ValueError, match="state must be that of"):
                from_optax(3, ours)

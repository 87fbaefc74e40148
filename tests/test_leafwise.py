"""Rules of a user's own: errors that name the rule and what is wrong with it, and what the pages say of them."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_adam
from jaxopt_adam import AdamState, AdanState, Denominator, Moment, abs_sq, ema, leafwise, optimizer
from jaxopt_adam.storage import Blockwise

PARAMS = {"kernel": np.ones((64, 128), np.float32)}
GRADS = {"kernel": np.full((64, 128), 0.5, np.float32)}
both_storages = pytest.mark.parametrize("moments", ["float32", "int8"])


class OnlyMu(NamedTuple):
    count: Any
    mu: Any


class WithoutCount(NamedTuple):
    mu: Any
    nu: Any


class WithTotal(NamedTuple):
    count: Any
    mu: Any
    nu: Any
    total: Any


def made(
    moments="float32",
    state=AdamState,
    first=None,
    second=lambda grad, old, new, step: -step.rate * new.mu,
    scalars=None,
    finish=None,
    **kept,
):
    """A rule with some functions or arguments of `leafwise` replaced by others."""

    @optimizer
    def own(learning_rate=0.5):
        def own_first(grad, old, step):
            right = old._replace(mu=ema(old.mu, grad, 0.5), nu=ema(old.nu, abs_sq(grad), 0.5))
            return first(right, step) if first else right

        def own_second(grad, old, new, step):
            return second(grad, old, new, step)

        def own_scalars(step):
            return scalars(step) if scalars else {}

        def own_finish(step, grads, params, moments):
            return finish(step) if finish else {}

        given = {"mu": Moment(over="nu"), "nu": Moment(real=True), "finish": own_finish} | kept
        return leafwise(
            state, own_first, own_second, own_scalars, storage=moments, learning_rate=learning_rate, **given
        )

    return own()


def step(rule, params=None):
    return rule.update(GRADS, rule.init(PARAMS), params)


DECLARED = {
    "misspelled": (
        {"elementwize": False},
        r"own: leafwise takes 'elementwize' for a moment, .* got False \(bool\); near to it is .* 'elementwise'",
    ),
    "number": (
        {"mu": 0.0},
        r"own: leafwise takes 'mu' for a moment, which must be a Moment or None, got 0.0 \(float\)",
    ),
    "over nothing": ({"mu": Moment(over="nuu")}, r"own: mu=Moment\(over='nuu'\) names no moment .* are mu, nu"),
    "over itself": ({"mu": Moment(over="mu")}, r"own: mu=Moment\(over='mu'\) names the moment itself"),
    "over not real": ({"nu": Moment()}, r"own: mu=Moment\(over='nu'\) must name .* nu=Moment\(real=True\)"),
    "moment without field": ({"state": OnlyMu}, "own: the state OnlyMu, .* has no field 'nu', which leafwise is given"),
    "field without moment": ({"state": WithTotal}, r"own: the state WithTotal, .* given no total=Moment\(\)"),
    "no count": (
        {"state": WithoutCount},
        "own: the state WithoutCount, .* has no field 'count', the number",
    ),
    "another state": ({"state": AdanState}, "own: the state AdanState, .* has no field 'mu'"),
    "one name twice": ({"others": {"nu": 0.0}}, "own: the state can have one field 'nu' only"),
    "no finish": (
        {"state": WithTotal, "others": {"total": 0.0}, "finish": None},
        r"own: finish is missing, .*\(total\)",
    ),
    "no function": ({"finish": 3}, r"own: finish must be a function, got 3 \(int\)"),
}


@pytest.mark.parametrize(("given", "message"), DECLARED.values(), ids=DECLARED)
@both_storages
def test_what_does_not_go_together_fails_before_the_first_step(moments, given, message):
    kept = {name: value for name, value in given.items() if name != "finish"}
    rule = made(moments, **kept)
    if "finish" in given:
        rule = with_finish(given["finish"], moments, **kept)
    with pytest.raises((TypeError, ValueError), match=message):
        rule.init(PARAMS)


def with_finish(finish, moments, state=AdamState, **others):
    @optimizer
    def own(learning_rate=0.5):
        def first(grad, old, step):
            return old

        return leafwise(
            state,
            first,
            lambda grad, old, new, step: grad,
            storage=moments,
            learning_rate=learning_rate,
            finish=finish,
            mu=Moment(),
            nu=Moment(),
            **others,
        )

    return own()


def test_a_moment_that_is_none_may_be_named_by_another():
    rule = made(nu=None, first=lambda right, step: right, second=lambda grad, old, new, step: grad)
    assert rule.init(PARAMS).nu is None


RETURNED = {
    "first: None": ({"first": lambda right, step: None}, r"first must return the moments .* mu, nu, got None"),
    "first: array": ({"first": lambda right, step: right.mu}, "first must return the moments .* got an array"),
    "first: dict": ({"first": lambda right, step: right._asdict()}, "first must return the moments .* got a dict$"),
    "first: scalar": (
        {"first": lambda right, step: right._replace(mu=right.mu.sum())},
        r"leaf \['kernel'\]: own: first must return mu with the shape that it has in old, \(64, .*, got \(\)$",
    ),
    "first: batch": (
        {"first": lambda right, step: right._replace(mu=right.mu + jnp.zeros((3, *(1,) * right.mu.ndim)))},
        r"first must return mu with the shape .*, got \(3, 64, .*jax\.vmap",
    ),
    "first: dtype": (
        {"first": lambda right, step: right._replace(mu=right.mu.astype(jnp.bfloat16))},
        "own: first must return mu with the dtype that it has in old, float32, got bfloat16",
    ),
    "second: None": (
        {"second": lambda *given: None},
        r"leaf \['kernel'\]: own: second must return the update with the shape .*, got None \(NoneType\)",
    ),
    "second: scalar": ({"second": lambda grad, *given: grad.sum()}, r"second must return the update .*, got \(\)$"),
    "scalars: None": ({"scalars": lambda step: None}, r"own: scalars must return a dictionary .*, got None"),
    "scalars: rate": ({"scalars": lambda step: {"rate": 5.0}}, "own: scalars must not return 'rate'"),
    "scalars: count": ({"scalars": lambda step: {"count": 5}}, "own: scalars must not return 'count'"),
    "finish: None": ({"finish": lambda step: None}, "own: finish must return a dictionary of the others, got None"),
    "finish: moment": ({"finish": lambda step: {"nu": 0.0}}, "own: finish must return the others, .*, got nu"),
}


@pytest.mark.parametrize(("given", "message"), RETURNED.values(), ids=RETURNED)
@both_storages
def test_what_a_function_returns(moments, given, message):
    given = {"finish": lambda step: {}} | given
    with pytest.raises((TypeError, ValueError), match=message):
        step(made(moments, **given))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("param", "step has no 'param' here: .*needs_params=True"),
        ("decay", "step has no 'decay' here: .*sees_to_decay=True"),
        ("params", "step has no 'params' here: .*step.param with needs_params=True"),
        ("c1", "step has no 'c1' here: scalars returned no such number"),
    ],
)
@both_storages
def test_what_a_step_has_not(moments, name, message):
    with pytest.raises(AttributeError, match=message):
        step(made(moments, second=lambda grad, old, new, step: grad * getattr(step, name)))
    with pytest.raises(AttributeError, match="step has no 'param' here"):
        step(made(moments, scalars=lambda step: {"a": step.param}))


@both_storages
def test_a_rule_that_needs_the_parameter(moments):
    def second(grad, old, new, step):
        return 2 * step.param

    rule = made(moments, second=second, needs_params=True)
    np.testing.assert_array_equal(step(rule, PARAMS)[0]["kernel"], 2 * PARAMS["kernel"])
    with pytest.raises(ValueError, match=r"own needs the parameters: call update\(gradients, state, params\)"):
        step(rule)
    # The library applies the decay where the rule does not say that it does so itself.
    decaying = made(moments, second=second, needs_params=True, weight_decay=0.25)
    np.testing.assert_array_equal(step(decaying, PARAMS)[0]["kernel"], (2 - 0.5 * 0.25) * PARAMS["kernel"])
    both = made(moments, second=lambda *given: -given[-1].decay, weight_decay=0.25, sees_to_decay=True)
    np.testing.assert_array_equal(step(both, PARAMS)[0]["kernel"], -0.25 * PARAMS["kernel"])
    with pytest.raises(ValueError, match="own: weight_decay needs the parameters"):
        step(both)


def test_errors_without_a_function_around_the_rule_name_leafwise():
    with pytest.raises(ValueError, match=r"^leafwise: mu=Moment"):
        leafwise(OnlyMu, jax.jit, jax.jit, storage="float32", learning_rate=0.1, mu=Moment(over="nu"))


class SlowState(NamedTuple):
    count: Any
    slow: Any
    mu: Any
    nu: Any


def with_slow(slow, moments, spread, steps=20):
    """The last update of Adam with a slow average that is added to the gradients, and how that is stored."""
    denominator = Denominator(1e-8)

    @optimizer
    def own(learning_rate=0.5):
        def first(grad, old, step):
            slow = ema(old.slow, grad, 0.98)
            total = grad + 2.0 * slow
            return old._replace(slow=slow, mu=ema(old.mu, total, 0.9), nu=ema(old.nu, abs_sq(total), 0.999))

        def second(grad, old, new, step):
            return -step.rate * new.mu / denominator(new.nu)

        mu, nu = Moment(over="nu", denominator=denominator), Moment(real=True)
        return leafwise(SlowState, first, second, storage=moments, learning_rate=learning_rate, slow=slow, mu=mu, nu=nu)

    scales = np.exp(spread * np.random.default_rng(0).normal(size=(64, 128)))
    rule = own()
    state = rule.init(np.zeros((64, 128), np.float32))
    update = jax.jit(rule.update)
    for seed in range(steps):
        grads = (scales * np.random.default_rng(seed).normal(size=(64, 128))).astype(np.float32)
        change, state = update(grads, state)
    return change


def test_a_moment_that_feeds_another_is_over_the_same():
    """As the page on writing a rule has it: only gradients of unlike sizes show that `over` is missing."""
    right = Moment(over="nu", denominator=Denominator(1e-8))

    def error(slow, spread):
        exact, stored = (with_slow(slow, moments, spread) for moments in ("float32", "int8"))
        return np.linalg.norm(stored - exact) / np.linalg.norm(exact)

    assert error(right, 3.0) < 0.05
    assert 0.4 < error(Moment(), 3.0) < 0.6
    np.testing.assert_allclose(error(Moment(), 0.0), error(right, 0.0), rtol=0.05)


KINDS = {name: kind for name, kind in vars(jaxopt_adam).items() if hasattr(kind, "__metadata__")}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (Path(__file__).parents[1] / "docs/reference/authors.md").read_text().splitlines()
    if line.startswith("| `")
]


def test_each_kind_of_argument_has_a_row_in_the_reference():
    assert {cells[0].strip("`") for cells in ROWS if "[" not in cells[0]} == set(KINDS)


@pytest.mark.parametrize("cells", [cells for cells in ROWS if "[" not in cells[0]], ids=lambda cells: cells[0])
def test_a_kind_of_argument_accepts_what_the_reference_says(cells):
    check = KINDS[cells[0].strip("`")].__metadata__[0]
    accepted, refused = (
        [eval(text, {"jnp": jnp, "Blockwise": Blockwise}) for text in re.findall("`([^`]+)`", cell)]
        for cell in cells[2:]
    )
    assert accepted
    assert refused
    for value in accepted:
        check("own", value)
    for value in refused:
        with pytest.raises((TypeError, ValueError), match=r"^own must be"):
            check("own", value)

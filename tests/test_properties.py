"""Random optimizers on random trees: good input gives updates like the gradients, bad input an error that names it.

What an argument may be is read off its kind, the check that its annotation has, so a new rule is covered as it is.
"""

import copy
import dataclasses
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
from docstring_parser.google import parse
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from jax.tree_util import keystr
from optax.contrib import MuonDimensionNumbers
from public import RULES

import jaxopt_adam
from jaxopt_adam._data import checks
from jaxopt_adam.storage import Blockwise, Dense

FACTORIES = list(RULES.values())
FACTORIES.append(jaxopt_adam.cautious)
every_factory = pytest.mark.parametrize("factory", FACTORIES, ids=operator.attrgetter("__name__"))


def examples(number):
    """So many examples, the same ones in every run; a failing one is not made smaller, which may take minutes."""
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def be_random(data):
    """Refuse the simplest example, which comes first and would be the only one of one."""
    assume(data.draw(st.integers(0, 999)))


# Trees, of shapes and dtypes in place of arrays.


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    weight: Any
    bias: Any
    name: str = dataclasses.field(default="dense", metadata={"static": True})


# The few of the second are for what is compiled, or run operation by operation, which then is compiled for each shape.
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
FEW_SHAPES = st.sampled_from([(), (3,), (2, 2), (0,), (2, 3), (1, 3, 2)])
REAL = (jnp.float32, jnp.float16, jnp.bfloat16)


@functools.cache
def trees(shapes, dtypes, depth=3):
    """Trees with one to three leaves."""
    leaves = st.builds(jax.ShapeDtypeStruct, shapes, st.sampled_from(dtypes))
    return _trees(leaves, depth).filter(lambda tree: 1 <= len(jax.tree.leaves(tree)) <= 3)


@functools.cache
def _trees(leaves, depth):
    if not depth:
        return leaves
    part = _trees(leaves, depth - 1) | st.sampled_from([None, optax.MaskedNode(), ()])
    parts = st.lists(part, min_size=1, max_size=3)
    dicts = st.dictionaries(st.sampled_from(["a", "b", "c"]), part, min_size=1)
    return leaves | dicts | parts | parts.map(tuple) | st.builds(Pair, part, part) | st.builds(Layer, part, part)


def outcome_of(call):
    """The result of a call, or the error that it raises."""
    try:
        return call(), None
    except (TypeError, ValueError) as error:
        return None, error


@functools.cache
def dtypes_of(factory):
    """The dtypes that a rule takes: not all have a meaning for complex numbers."""
    _, error = outcome_of(lambda: jax.eval_shape(make(factory).init, jax.ShapeDtypeStruct((2,), jnp.complex64)))
    assert error is None or "must be real" in str(error)
    return (*REAL, jnp.complex64) if error is None else REAL


def struct(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def filled(tree, seed=0, *, zeros=True):
    """Arrays of the shapes and dtypes of a tree, of moderate numbers and some zeros."""
    generator = np.random.default_rng(seed)

    def numbers(shape):
        return generator.normal(size=shape) * generator.choice([0.0 if zeros else 0.1, 0.01, 1.0, 3.0], shape)

    def array(leaf):
        imaginary = 1j if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 0
        return jnp.asarray(numbers(leaf.shape) + imaginary * numbers(leaf.shape), leaf.dtype)

    return jax.tree.map(array, tree)


def stack(*trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


# Good hyperparameters, for a tree of parameters.


def falling(count):
    return 0.5 / (1 + count)


def halving(start, count):
    return start * 0.5**count


def only_matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def first_axes(params):
    return jax.tree.map(lambda leaf: MuonDimensionNumbers(0, 1) if leaf.ndim > 1 else None, params)


def one_block(path, shape):
    return tuple(min(size, 1) for size in shape)


def fits(shape, leaves):
    """True if an array of `shape` broadcasts to each of the leaves without making it larger."""
    try:
        return all(np.broadcast_shapes(shape, leaf.shape) == leaf.shape for leaf in leaves)
    except ValueError:
        return False


@st.composite
def numbers(draw, leaves, low, high, whole):
    """A number from `low` to `high`, of any type, or an array of numbers that broadcasts to the leaves."""
    value = draw(st.floats(low, high, width=16, allow_subnormal=False) | st.sampled_from([low, high]))
    shapes = {tuple(draw(st.sampled_from([size, 1])) for size in leaf.shape[i:]) for leaf in leaves for i in range(3)}
    shapes = [shape for shape in sorted(shapes) if shape and fits(shape, leaves)]
    if shapes and draw(st.booleans()):
        value = np.full(draw(st.sampled_from(shapes)), value)
    types = [np.float16, np.float32, np.float64, np.asarray, jnp.asarray, lambda x: jnp.asarray(x, jnp.bfloat16)]
    types += [] if np.ndim(value) else [float] + [int, np.int64] * (whole and value == int(value))
    return draw(st.sampled_from(types))(value)


@st.composite
def prefixes(draw, entries, params):
    """A tree of entries that is a prefix of the tree of the parameters."""
    return jax.tree.map(
        lambda part: draw(entries(jax.tree.leaves(part))), params, is_leaf=lambda node: draw(st.booleans())
    )


def good_number(params, tame, below, positive, schedule=False, optional=False, tree=False, **_):
    """`tame` numbers are far from where a quotient has no limit; only with a tree is an array part of the contract."""
    low, high = (2.0**-10 if tame or positive else 0.0), (1 - 2.0**-6 if below == 1 else 1.0)

    def entries(leaves):
        schedules = [falling, jax.tree_util.Partial(halving, 0.5)] if schedule else []
        some = numbers(leaves if tree else [], low, high, below > 1)
        return some | st.sampled_from(schedules) if schedules else some

    strategy = prefixes(entries, params) | entries(jax.tree.leaves(params)) if tree else entries([])
    return strategy | st.none() if optional else strategy


def good_rows(params, tame, length, names, **_):
    convergent = (1.5, -0.5, 0.0)[:length]  # Newton's own iteration
    shapes = [convergent, list(convergent), (convergent, convergent), np.array(convergent), jnp.array([convergent])]
    return st.sampled_from([*names, *shapes])


def good_mask(params, tame):
    flags = st.sampled_from([True, False, np.True_, np.array(False)])
    return prefixes(lambda _: flags, params) | st.sampled_from([None, only_matrices])


def last_axes(path, shape):
    return MuonDimensionNumbers(-2, -1) if len(shape) > 1 else None


def good_function(params, tame, expected, **_):
    known = {
        "a function of count": [falling],
        "a function from a path and a shape to blocks, or None": [None, one_block],
        "a function from a path and a shape to axes, or None": [None, last_axes],
    }
    return st.sampled_from(known[expected])


GOOD = {
    "number": good_number,
    "rows": good_rows,
    "mask": good_mask,
    "function": good_function,
    "flag": lambda *_: st.sampled_from([True, False, np.True_, np.array(False), jnp.array(True)]),
    "optional_dtype": lambda *_: st.sampled_from(
        [None, "float32", "bfloat16", jnp.float16, np.dtype("float32"), float]
    ),
    "whole": lambda params, tame, least, optional=False, **_: st.sampled_from(
        [least, least + 1, np.int64(least + 1), np.array(least + 2), jnp.array(least + 3)] + [None] * optional
    ),
    "pair": lambda params, tame, each: st.tuples(*[good(each, params, tame)] * 2),
    "choice": lambda params, tame, names: st.sampled_from(names),
    "axes": lambda params, tame: st.sampled_from([None, first_axes, first_axes(params)]),
    "valid_storage": lambda *_: st.sampled_from(
        ["float32", "bfloat16", "int8", Dense("float32"), Blockwise(8, min_size=1), Blockwise(4, min_size=1)]
    ),
    "transformation": lambda *_: st.sampled_from(
        [jaxopt_adam.sgd(0.1), jaxopt_adam.adamw(0.1, b1=0.5), jaxopt_adam.lamb(falling)]
    ),
}


GOOD["inner"] = GOOD["transformation"]  # cautious's, of those that it can change


@functools.cache
def kind(check):
    """The function or class of _hyperparameters.py that made a check, and its arguments, from its closure or fields."""
    if dataclasses.is_dataclass(check):
        return type(check).__name__.lower(), {
            each.name: getattr(check, each.name) for each in dataclasses.fields(check)
        }
    options = dict(inspect.getclosurevars(check).nonlocals)
    options |= inspect.getclosurevars(options["one"]).nonlocals if "one" in options else {}
    options.pop("one", None)
    return check.__qualname__.partition(".")[0].lstrip("_"), options


def good(check, params, tame=False):
    name, options = kind(check)
    return GOOD[name](params, tame, **options)


@st.composite
def arguments(draw, factory, params, *, tame=False, **given):
    """Arguments of a factory: all that it must have and some of the others."""
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in given and (parameter.default is parameter.empty or draw(st.booleans())):
            given[name] = draw(good(checks(factory)[name], params, tame))
    if any(given.get(name) is not None for name in ("mu_dtype", "accumulator_dtype")):
        given.pop("moments", None)  # the two would say the same thing twice
    if given.get("matrix_axes") is not None:
        given.pop("muon_weight_dimension_numbers", None)
    return given


def make(factory, **given):
    """The optimizer of the arguments given, and simple ones for those that it must have besides."""
    must = [name for name, each in inspect.signature(factory).parameters.items() if each.default is each.empty]
    simple = {name: 0.1 if kind(checks(factory)[name])[0] == "number" else jaxopt_adam.adamw(0.1) for name in must}
    return factory(**{**simple, **given})


def like(tree):
    """The parts of a state that must stay the same from step to step."""
    return jax.tree.map(lambda leaf: (leaf.shape, jnp.dtype(leaf.dtype).name, leaf.weak_type), tree)


class TestGoodInput:
    @every_factory
    @examples(4)
    @given(st.data())
    def test_updates_are_like_gradients_and_states_like_states(self, factory, data):
        params = data.draw(trees(SHAPES, dtypes_of(factory)))
        optimizer = factory(**data.draw(arguments(factory, params)))
        traced = data.draw(st.booleans())

        def init(made, params):
            return (made if traced else optimizer).init(params)

        def update(made, *inputs):
            return (made if traced else optimizer).update(*inputs)

        state = jax.eval_shape(init, optimizer, params)
        updates, after = jax.eval_shape(update, optimizer, params, state, params)
        assert like(updates) == like(params)
        assert like(after) == like(state)

    @every_factory
    @examples(1)
    @given(st.data())
    def test_jit_is_eager_and_both_are_finite(self, factory, data):
        be_random(data)
        # Nothing degenerate, where a rounding error would decide: tame numbers, no zeros, no two gradients alike.
        params = {"a": [struct((2, 2))], "b": Layer(struct((3,)), None)}
        optimizer = factory(**data.draw(arguments(factory, params, tame=True)))

        def step(state, gradient):
            return optimizer.update(gradient, state, start)[::-1]

        seed = data.draw(st.integers(0, 999))
        start, *gradients = [filled(params, seed + each, zeros=False) for each in range(3)]
        eager, every = optimizer.init(start), []
        for gradient in gradients:
            eager, updates = step(eager, gradient)
            every.append(updates)
        eager = eager, stack(*every)
        # In a loop, so that there is but one step to compile.
        jitted = jax.jit(lambda gradients: jax.lax.scan(step, optimizer.init(start), gradients))(stack(*gradients))
        chex.assert_trees_all_equal_shapes_and_dtypes(jitted, eager)
        for one, other in zip(jax.tree.leaves(jitted), jax.tree.leaves(eager), strict=True):
            assert np.isfinite(other).all()
            size = np.abs(other).max(initial=0)
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * size)

    @every_factory
    @examples(8)
    @given(st.data())
    def test_optimizer_comes_back(self, factory, data):
        params = data.draw(trees(SHAPES, dtypes_of(factory)))
        given = data.draw(arguments(factory, params))
        optimizer = factory(**given)
        leaves, tree = jax.tree.flatten(optimizer)
        copies = {
            "made again": factory(**given),
            "unflattened": jax.tree.unflatten(tree, leaves),
            "mapped": jax.tree.map(lambda leaf: leaf, optimizer),
            "pickled": pickle.loads(pickle.dumps(optimizer)),
            "copied": copy.deepcopy(optimizer),
            "replaced": optimizer.replace(),
            "replaced by its own": optimizer.replace(**optimizer.hyperparameters),
            "replaced from the defaults": make(factory).replace(**optimizer.hyperparameters),
        }
        if not re.search("[Aa]rray|Partial|<", repr(optimizer)):
            copies["read from its repr"] = eval(repr(optimizer), {**globals(), **vars(optax), **vars(jaxopt_adam)})
        for how, other in copies.items():
            assert other == optimizer, how
            assert hash(other) == hash(optimizer), how
            assert jax.tree.structure(other) == tree, how
            assert list(other.hyperparameters) == list(inspect.signature(factory).parameters), how

    @every_factory
    @examples(4)
    @given(st.data())
    def test_traced_optimizer_has_a_text_and_equals_itself(self, factory, data):
        optimizer = factory(**data.draw(arguments(factory, struct(()))))

        def look(made):
            assert repr(made).startswith(factory.__name__ + "(")
            assert made == made
            assert hash(made) == hash(optimizer)
            return made.replace()

        assert jax.tree.structure(jax.eval_shape(look, optimizer)) == jax.tree.structure(optimizer)


# Bad hyperparameters. Each is a value and where in it the fault lies, as far as the error must say.

NONSENSE = ["0.1", 1j, np.complex64(0.5), b"x", object(), np.array("a"), {0.1}, lambda: 0.1]


def bad_number(below, positive, schedule=False, optional=False, tree=False, **_):
    small = 0.0 if positive else -(2.0**-30)
    wrong = [small, -1, np.nan, np.inf, np.float32(-1), np.array(-0.5), jnp.array(-0.5), np.array([0.5, -0.5]), 10**400]
    wrong += [jnp.array([0.5, np.nan]), -np.inf, np.int64(-3)]
    wrong += [1, 1.0, 1.5, np.float32(1), jnp.array(1.0), np.array([0.5, 1.0])] if below == 1 else []
    wrong += [*NONSENSE[:-1], True, np.True_, np.array([True]), jnp.array([0.1j])]
    one = st.sampled_from(wrong) | st.floats(max_value=small, width=32)
    one |= st.floats(min_value=1) if below == 1 else st.nothing()
    one |= st.nothing() if schedule else st.just(falling)
    one = one.map(lambda value: (value, ""))
    if not tree:
        containers = st.sampled_from([[0.1], (0.1,), {"a": 0.1}, [], {}, ()]).map(lambda value: (value, ""))
        return one | containers | (st.nothing() if optional else st.just((None, "")))
    within = [lambda bad: ({"a": bad, "b": 0.1}, "['a']"), lambda bad: ((0.1, [bad]), "[1][0]")]
    within += [lambda bad: (Pair(0.1, bad), ".second"), lambda bad: (Layer(bad, 0.1), ".weight")]
    return one | st.builds(lambda bad, how: how(bad[0]), one, st.sampled_from(within))


def faulty(*values):
    return st.sampled_from([(value, "") for value in values])


def bad_rows(length, names, **_):
    row = (1.5, -0.5, 0.0)[:length]
    wrong = [row[:-1], (*row, 0.1), [row, row[:-1]], np.zeros((2, length + 1)), np.zeros((0, length)), np.zeros(())]
    wrong += [np.zeros((1, 1, length)), ("1",) * length, (True,) * length, (1j,) * length, (None,) * length, "other"]
    wrong += [(np.nan, *row[1:]), np.array((*row[1:], np.inf)), 1.0, None, {}, [], [[]], dict(enumerate(row))]
    return faulty(*NONSENSE, *wrong)


def bad_whole(least, optional=False, **_):
    wrong = [least - 1, -5, np.int64(-2), 1.0, 2.5, np.float32(3), np.nan, np.inf, True, np.True_, "3", [3], (3,)]
    wrong += [np.array([3]), jnp.array(3.0), jnp.array(least - 1), 2**31, 2**40, 2**70, {}, [] if optional else None]
    return faulty(*NONSENSE, *wrong)


BAD = {
    "number": bad_number,
    "rows": bad_rows,
    "whole": bad_whole,
    "flag": lambda: faulty(*NONSENSE, 0, 1, 1.0, "True", None, [True], np.array([True]), np.array(1), jnp.array(1.0)),
    "optional_dtype": lambda: faulty(
        *NONSENSE[1:],
        "floaty",
        "",
        "int8",
        int,
        bool,
        np.int32,
        3,
        1.5,
        {},
        {"a": 1},
        [],
        "complex64",
        complex,
        "f4,f4",
    ),
    "mask": lambda: (
        faulty(*NONSENSE[:-1], 1, 0.5, "yes", np.array([True, False]), jnp.array(1))
        | st.sampled_from([({"a": True, "b": 1}, "['b']"), ([[None, "x"]], "[0][1]"), (Pair(0.5, True), ".first")])
    ),
    "pair": lambda each: (
        faulty(*NONSENSE, 0.5, None, (), (0.5,), [0.5] * 3, {}, {"a": 0.5, "b": 0.5}, "ab", np.ones(2))
        | bad(each).map(lambda fault: ((0.5, fault[0]), "[1]"))
        | bad(each).map(lambda fault: ([fault[0], 0.5], "[0]"))
    ),
    "choice": lambda names, **_: faulty(
        *NONSENSE, "other", "", None, 3, True, [], {}, np.array([1, 2]), jnp.ones(2), names
    ),
    "axes": lambda: (
        faulty(*NONSENSE[:-1], "x", 1.5, True, np.nan, jnp.ones(2))
        | st.sampled_from([({"a": 1.5}, "['a']"), ([True], "[0]")])
    ),
    "function": lambda expected, optional=False: faulty(*NONSENSE[:-1], 0.1, [], {}, True, [] if optional else None),
    "valid_storage": lambda: (
        faulty(*NONSENSE[:-1], "int3", "", None, 8, True, [], ["int8"], np.float32, jnp.ones(2))
        | st.sampled_from([({"mu": "int3"}, "['mu']"), ({"nu": 4}, "['nu']"), ({"nu": {"nu": "int8"}}, "['nu']")])
    ),
    "transformation": lambda: faulty(*NONSENSE, None, 0.1, optax.sgd, {}, tuple(optax.sgd(0.1)), [optax.sgd(0.1)]),
}


@functools.cache
def bad(check):
    name, options = kind(check)
    return BAD[name](**options)


BAD["inner"] = lambda: BAD["transformation"]() | faulty(jaxopt_adam.schedule_free_adamw())


class TestBadHyperparameters:
    @every_factory
    def test_every_argument_has_a_kind(self, factory):
        assert list(checks(factory)) == list(inspect.signature(factory).parameters)
        assert {kind(check)[0] for check in checks(factory).values()} <= GOOD.keys() & BAD.keys()

    @every_factory
    @examples(25)
    @given(st.data())
    def test_are_refused_when_the_optimizer_is_made(self, factory, data):
        name = data.draw(st.sampled_from(list(inspect.signature(factory).parameters)))
        value, where = data.draw(bad(checks(factory)[name]))
        made = make(factory)
        within = data.draw(st.booleans())  # a traced function

        for attempt in (lambda: make(factory, **{name: value}), lambda: made.replace(**{name: value})):
            with pytest.raises((TypeError, ValueError), match=re.escape(f"{factory.__name__}: {name}{where}")):
                jax.eval_shape(lambda attempt=attempt: attempt() and 0) if within else attempt()

    @every_factory
    def test_ranges_are_those_of_the_documentation(self, factory):
        described = {each.arg_name: each.description for each in parse(inspect.getdoc(factory)).params}
        assert list(described) == list(inspect.signature(factory).parameters)

        def accepts(name, value):
            _, error = outcome_of(lambda: make(factory, **{name: value}))
            assert error is None or name in str(error)
            return error is None

        for name, words in described.items():
            maker, _ = kind(checks(factory)[name])
            put = {"pair": lambda value: (0.5, value), "whole": int}.get(maker, lambda value: value)
            if maker in ("number", "pair", "whole"):
                assert not accepts(name, put(-1.0))
            if "≥ 0" in words or "in [0, 1)" in words:
                assert accepts(name, put(0.0)) or maker == "function"
            if "≥ 1" in words:
                assert accepts(name, put(1.0))
                assert not accepts(name, put(0.0))
            if "in [0, 1)" in words or "in (0, 1)" in words:
                assert accepts(name, put(0.99))
                assert not accepts(name, put(1.0))
            if "> 0" in words or "in (0, 1)" in words:
                assert not accepts(name, put(0.0))
            if "whether" in words:
                assert not accepts(name, 1)
            assert accepts(name, None) == ("None" in words), name

    @every_factory
    def test_unknown_and_missing_arguments_are_named(self, factory):
        for attempt in (lambda: make(factory, speed=1.0), lambda: make(factory).replace(speed=1.0)):
            with pytest.raises(TypeError, match=rf"{factory.__name__}.*speed"):
                attempt()
        for name, parameter in inspect.signature(factory).parameters.items():
            if parameter.default is parameter.empty:
                with pytest.raises(TypeError, match=rf"{factory.__name__}: missing.*{name}"):
                    factory()


# Bad trees. One thing in a good call is spoiled; each spoiled tree comes with what the error must name.


def called(how, function, *trees):
    """The result of a function of trees of structs and of anything, which is not traced."""
    leaves, tree = jax.tree.flatten(trees)
    chosen = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    def of_arrays(arrays):
        rest = iter(arrays)
        filled = [next(rest) if each else leaf for each, leaf in zip(chosen, leaves, strict=True)]
        return function(*jax.tree.unflatten(tree, filled))

    structs = [leaf for leaf, each in zip(leaves, chosen, strict=True) if each]
    match how:
        case "eval_shape":
            return jax.eval_shape(of_arrays, structs)
        case "jit":
            return jax.jit(of_arrays).trace(structs).out_info
        case "eager":
            return of_arrays(filled(structs))


# Run operation by operation each takes a while, so that is the least frequent.
calls = st.sampled_from(["eval_shape", "jit"] * 4 + ["eager"])

ODD_LEAVES = [
    "text",
    object(),
    np.array(["text"]),
    np.array([object()]),
    jax.random.key(0),
    np.zeros(2, jax.dtypes.float0),
]
ODD_DTYPES = [jnp.int32, jnp.uint8, jnp.bool_]


@st.composite
def leaf_replaced(draw, tree, *changes):
    """A tree with something else for one leaf, and the name of that."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    chosen, change = draw(st.sampled_from(paths)), draw(st.sampled_from(changes))
    spoiled = jax.tree_util.tree_map_with_path(lambda path, leaf: change(leaf) if path == chosen else leaf, tree)
    return spoiled, keystr(chosen) or "the only leaf"


def odd_leaf(tree):
    """A leaf that is no array of a floating-point dtype."""
    changes = [lambda leaf, odd=odd: odd for odd in ODD_LEAVES]
    return leaf_replaced(tree, *changes, *(lambda leaf, dtype=dtype: struct(leaf.shape, dtype) for dtype in ODD_DTYPES))


def other_shape(tree):
    """A leaf of another shape, some of which would broadcast."""
    return leaf_replaced(
        tree,
        lambda leaf: struct((1, *leaf.shape), leaf.dtype),
        lambda leaf: struct((*leaf.shape, 2), leaf.dtype),
        lambda leaf: struct(leaf.shape[1:] if leaf.shape else (1,), leaf.dtype),
        lambda leaf: struct((5,), leaf.dtype),
    )


def other_field(tree):
    """A complex leaf in place of a real one, or the other way round."""

    def changed(leaf):
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return struct(leaf.shape, jnp.float32 if is_complex else jnp.complex64)

    return leaf_replaced(tree, changed)


def other_leaves(tree):
    """A leaf too few, or a few too many."""
    return leaf_replaced(
        tree, lambda leaf: None, lambda leaf: {"more": leaf}, lambda leaf: [leaf, leaf], lambda leaf: optax.MaskedNode()
    )


@st.composite
def other_container(draw, tree):
    """Another container of the same leaves."""
    nodes = []
    jax.tree.map(lambda leaf: None, tree, is_leaf=lambda node: nodes.append(node) or False)
    node = draw(st.sampled_from([node for node in nodes if isinstance(node, list | tuple | dict | Layer) and node]))
    match node:
        case list():
            other = tuple(node)
        case tuple():
            other = list(node)
        case dict():
            other = draw(st.sampled_from([list(node.values()), {key + "x": value for key, value in node.items()}]))
        case Layer():
            other = draw(st.sampled_from([dataclasses.replace(node, name="other"), (node.weight, node.bias)]))
    [path] = [path for path, each in jax.tree.leaves_with_path(tree, is_leaf=lambda each: each is node) if each is node]
    spoiled = jax.tree.map(lambda each: other if each is node else each, tree, is_leaf=lambda each: each is node)
    return spoiled, keystr(path)


def other_tree(tree):
    some = other_leaves(tree) | other_shape(tree)
    return some if jax.tree_util.all_leaves([tree]) else some | other_container(tree)


@st.composite
def setups(draw, factory):
    """Parameters, an optimizer and its state."""
    params = draw(trees(FEW_SHAPES, dtypes_of(factory), depth=2))
    optimizer = factory(**draw(arguments(factory, struct(()), tame=True)))
    return params, optimizer, jax.eval_shape(optimizer.init, params)


def same_state(optimizer, params, spoiled):
    """True if each state of the one rule is also one of the other, so that no error can be expected."""
    try:
        state, other = (jax.eval_shape(optimizer.init, tree) for tree in (params, spoiled))
    except (TypeError, ValueError):
        return False
    return jax.tree.structure(state) == jax.tree.structure(other) and like(state) == like(other)


def refused(*names):
    return pytest.raises((TypeError, ValueError), match="|".join(map(re.escape, filter(None, names))))


class TestBadTrees:
    @every_factory
    @examples(4)
    @given(st.data())
    def test_leaf_that_init_cannot_take(self, factory, data):
        params, optimizer, _ = data.draw(setups(factory))
        spoiled, name = data.draw(odd_leaf(params))

        def begin(params):
            state = optimizer.init(params)  # which takes any leaf where there are no moments
            return optimizer.update(params, state, params)

        with refused(name):
            called(data.draw(calls), begin, spoiled)

    @every_factory
    def test_complex_leaf_that_has_no_meaning(self, factory):
        params = {"a": struct(()), "b": struct((2,), jnp.complex64)}
        if jnp.complex64 not in dtypes_of(factory):
            with refused("['b']"):
                called("jit", make(factory).init, params)

    @every_factory
    @examples(4)
    @given(st.data())
    def test_gradient_that_is_no_array_of_floating_point(self, factory, data):
        params, optimizer, state = data.draw(setups(factory))
        spoiled, name = data.draw(odd_leaf(params))
        with refused(name):
            called(data.draw(calls), optimizer.update, spoiled, state, params)

    @every_factory
    @examples(4)
    @given(st.data())
    def test_gradients_of_another_tree(self, factory, data):
        params, optimizer, state = data.draw(setups(factory))
        spoiled, name = data.draw(other_tree(params))
        how, given_params = data.draw(calls), data.draw(st.sampled_from([params, spoiled]))
        if same_state(optimizer, params, spoiled):
            return
        with refused(name, "the gradients" if name in ("", "the only leaf") else ""):
            called(how, optimizer.update, spoiled, state, given_params)

    @every_factory
    @examples(3)
    @given(st.data())
    def test_gradient_that_became_complex_or_real(self, factory, data):
        if jnp.complex64 not in dtypes_of(factory):
            return
        params, optimizer, state = data.draw(setups(factory))
        spoiled, name = data.draw(other_field(params))
        if not same_state(optimizer, params, spoiled):
            with refused(name):
                called(data.draw(calls), optimizer.update, spoiled, state, params)

    @every_factory
    @examples(4)
    @given(st.data())
    def test_bad_parameters(self, factory, data):
        params, optimizer, state = data.draw(setups(factory))
        whole = st.sampled_from([(None, "params"), ("text", "params"), ((), "params")])
        spoiled, name = data.draw(odd_leaf(params) | other_tree(params) | other_field(params) | whole)
        how = data.draw(calls)
        _, error = outcome_of(lambda: called(how, optimizer.update, params, state, spoiled))
        if error is not None:
            assert re.search(f"{re.escape(name)}|params|the parameter", str(error))
        else:
            # Then the rule does not look at them, which real ones for complex gradients are, too.
            fits = same_state(optimizer, params, spoiled) if spoiled is not None else False
            assert fits or called("eval_shape", optimizer.update, params, state, None)

    @every_factory
    def test_parameters_matter_only_where_they_are_asked_for(self, factory):
        params = {"a": struct(()), "b": struct((2, 2))}
        decays = [name for name, check in checks(factory).items() if "decay" in name and "tree" in kind(check)[1]]
        for chosen in [{}, dict.fromkeys(decays, 0.0)]:
            optimizer = make(factory, **{"inner": jaxopt_adam.sgd(0.1)} if factory is jaxopt_adam.cautious else chosen)
            state = jax.eval_shape(optimizer.init, params)
            without, error = outcome_of(lambda made=optimizer, state=state: jax.make_jaxpr(made.update)(params, state))
            if error is not None:
                assert isinstance(error, ValueError)
                assert "params" in str(error)
            else:
                # The program is the same, but for what it is given and has no use for.
                program = jax.make_jaxpr(optimizer.update)(params, state, params).jaxpr
                unused = program.replace(invars=program.invars[:-2], debug_info=without.jaxpr.debug_info)
                assert str(unused) == str(without.jaxpr)

    @every_factory
    @examples(4)
    @given(st.data())
    def test_bad_state(self, factory, data):
        params, optimizer, state = data.draw(setups(factory))
        more = {**state._asdict(), "more": jnp.ones(2)}  # with its own fields alone it would do
        whole = [None, (), [], {}, "state", tuple(state), more, optax.EmptyState()]
        spoiled, name = data.draw(
            leaf_replaced(state, *(lambda leaf, odd=odd: odd for odd in [*ODD_LEAVES, None, [], {"a": 1.0}]))
            | other_shape(state)
            | other_field(state)
            | leaf_replaced(
                state, lambda leaf: struct(leaf.shape, jnp.int8 if leaf.dtype != jnp.int32 else jnp.float32)
            )
            | st.sampled_from([(each, "state") for each in whole])
        )
        name = re.sub(r"[.](\w+).*", r"state.\1", name)
        if name == "state.b1":  # which schedule_free_adamw leaves for others to read
            return
        with refused(name):
            called(data.draw(calls), optimizer.update, params, spoiled, params)

    @every_factory
    @examples(4)
    @given(st.data())
    def test_state_of_another_rule(self, factory, data):
        params = {"a": struct((2, 2)), "b": struct(())}
        optimizer, other = make(factory), make(data.draw(st.sampled_from(FACTORIES)))
        state, spoiled = (jax.eval_shape(each.init, params) for each in (optimizer, other))
        if type(state) is not type(spoiled):
            with refused(f"must be a {type(state).__name__},", f"must be an {type(state).__name__},"):
                called(data.draw(calls), optimizer.update, params, spoiled, params)

    @every_factory
    @pytest.mark.usefixtures("x64")
    def test_gradient_that_became_wider(self, factory):
        optimizer, narrow, wide = make(factory), *({"a": struct((2,), each)} for each in (jnp.float32, jnp.float64))
        assert like(jax.eval_shape(optimizer.init, wide)) != like(
            jax.eval_shape(optimizer.init, narrow)
        ) or factory is (jaxopt_adam.sgd)
        for first, second in [(narrow, wide), (wide, narrow)]:
            state = jax.eval_shape(optimizer.init, first)
            if not same_state(optimizer, first, second):
                with refused("['a']"):
                    called("eval_shape", optimizer.update, second, state, second)


# Hyperparameters that do not go with the tree. All that they do not fit are leaves of one, two and no axes.

PARAMS = {"layer": [struct((3, 4)), struct((4,))], "scale": struct(())}
NO_PREFIX = [
    {"layer": 0.1},
    {"layer": 0.1, "scale": 0.2, "other": 0.3},
    {"layer": (0.1, 0.2), "scale": 0.3},
    {"layer": [0.1], "scale": 0.2},
    {"layer": [0.1, {"b": 0.2}], "scale": 0.3},
    [0.1, 0.2],
    {"layer": None, "scale": 0.1},
    {},
]


def of_kind(maker, **options):
    """The arguments of this kind, as factories and names."""
    found = []
    for factory in FACTORIES:
        for name, check in checks(factory).items():
            made_by, made_of = kind(check)
            if made_by == maker and all(made_of.get(key, False) == value for key, value in options.items()):
                found.append(pytest.param(factory, name, id=f"{factory.__name__}-{name}"))
    return pytest.mark.parametrize(("factory", "name"), found)


def with_decay(factory, **given):
    """An optimizer in which what is given is used."""
    others = {"weight_decay": 0.1, "weight_decay_rate": 0.1, "momentum": 0.5, "bias_correction": True}
    return make(factory, **{name: value for name, value in others.items() if name in checks(factory)} | given)


def attempt(how, optimizer, params=PARAMS):
    """The avals of a state, and of what an update makes of it."""
    state = called(how, optimizer.init, params)
    state = jax.tree.map(lambda leaf: struct(leaf.shape, leaf.dtype), state)
    return state, called(how, optimizer.update, params, state, params)


def short(name):
    """The name of an argument in errors of the layer, the same for all learning rates and weight decays."""
    return next((common for common in ("learning_rate", "weight_decay") if common in name), name)


class TestUnfitHyperparameters:
    @of_kind("number", tree=True)
    @examples(3)
    @given(st.data())
    def test_tree_that_is_no_prefix(self, factory, name, data):
        optimizer = with_decay(factory, **{name: data.draw(st.sampled_from(NO_PREFIX))})
        with refused(short(name)):
            attempt(data.draw(calls), optimizer)

    @of_kind("mask")
    @examples(3)
    @given(st.data())
    def test_mask_that_is_no_prefix_or_none_at_all(self, factory, name, data):
        masks = [jax.tree.map(bool, tree) for tree in NO_PREFIX]
        masks += [
            lambda params, tree=tree: tree for tree in [*NO_PREFIX, None, "all", 1, {"layer": 0.5, "scale": True}]
        ]
        masks += [lambda params: falling, lambda params: jnp.ones(2, bool)]
        optimizer = with_decay(factory, **{name: data.draw(st.sampled_from(masks))})
        with refused("mask"):
            attempt(data.draw(calls), optimizer)

    @of_kind("axes")
    @examples(3)
    @given(st.data())
    def test_axes_that_the_leaves_do_not_have(self, factory, name, data):
        axes = [(0, 1), [3], {"layer": MuonDimensionNumbers(0, 1), "scale": None}, MuonDimensionNumbers(0, 1)]
        axes += [{"layer": [MuonDimensionNumbers(*pair), None], "scale": None} for pair in [(0, 2), (1, 1), (-3, 0)]]
        axes += [lambda params, value=value: value for value in [*axes, "x", 3, MuonDimensionNumbers("x", 0)]]
        optimizer = make(factory, **{name: data.draw(st.sampled_from(axes))})
        with refused(name):
            attempt(data.draw(calls), optimizer)

    @of_kind("number")
    @examples(1)
    @given(st.data())
    def test_array_that_does_not_broadcast(self, factory, name, data):
        be_random(data)
        shape = data.draw(st.sampled_from([(5,), (5, 4), (2, 3, 4), (1, 1, 1, 1), (0,)]))
        with refused(name, "['layer']", "['scale']"):
            attempt(data.draw(calls), with_decay(factory, **{name: np.full(shape, 0.5)}))

    @of_kind("number", tree=False)
    @examples(1)
    @given(st.data())
    def test_array_of_a_number_for_each_element(self, factory, name, data):
        be_random(data)
        shape = data.draw(st.sampled_from([(3,), (1,), (2, 3)]))
        params = struct((2, 3))
        optimizer = with_decay(factory, **{name: np.full(shape, 0.5)})
        result, error = outcome_of(lambda: attempt(data.draw(calls), optimizer, params))
        if error is not None:
            assert re.search(f"the only leaf|{name}", str(error))
        else:
            state, (updates, after) = result
            assert (updates.shape, updates.dtype) == (params.shape, params.dtype)
            assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)

    @of_kind("number", schedule=True)
    @examples(2)
    @given(st.data())
    def test_schedule_that_gives_no_number(self, factory, name, data):
        wrong = data.draw(st.sampled_from([None, "x", 1j, {"a": 0.1}, True, object(), jnp.ones(5), [0.1]]))
        with refused(short(name), "['layer']"):
            attempt(data.draw(calls), with_decay(factory, **{name: lambda count: wrong}))

    @of_kind("function")
    @examples(3)
    @given(st.data())
    def test_function_that_gives_nonsense(self, factory, name, data):
        wrong = data.draw(st.sampled_from([None, "x", 1j, {"a": 0.1}, object(), jnp.ones(5), (5, 5), (0.5,)]))
        if name == "matrix_axes" and wrong is None:  # of which a leaf is not a matrix
            return
        with refused(name, "['layer']", "['scale']"):
            attempt(data.draw(calls), make(factory, **{name: lambda *_: wrong}))

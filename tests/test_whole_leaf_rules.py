"""The rules that see a whole leaf, or the parameters, against their oracles and against optax."""

import inspect

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from agreement import deviation, falling, library_updates, name_of, rising, scan_updates
from compiling import AS_USERS_DO
from oracles import ORACLES, WHOLE_LEAF_ORACLES, walk
from oracles.schedule_free_adamw import evaluation_params

import jaxopt_adam

MATRIX, TALL, TENSOR, VECTOR, SCALAR = (3, 4), (5, 2), (2, 3, 4), (4,), ()
ANY = [MATRIX, TENSOR, VECTOR, SCALAR]
# A factor of an axis longer than the product of the others plus one has a null space whose basis is as chance has it.
ROUND = [(4, 4), MATRIX, TENSOR, VECTOR]
# The first case of a rule has every shape. Others, which are of hyperparameters, have those that the rule tells apart.
SOME = [MATRIX, SCALAR]
FACTORED_AND_NOT = [MATRIX, VECTOR]

Axes = optax.contrib.MuonDimensionNumbers
FACTORED = {"min_dim_size_to_factor": 2}


CASES = [
    ("lamb", {"learning_rate": 0.01}, ANY),
    ("lamb", {"learning_rate": falling, "weight_decay": rising, "b1": 0.5, "b2": 0.9, "eps": 0.01}, SOME),
    ("lamb", {"learning_rate": 0.01, "weight_decay": 0.1, "mask": False, "eps_root": 1e-3}, SOME),
    ("novograd", {"learning_rate": 0.01}, ANY),
    ("novograd", {"learning_rate": falling, "weight_decay": 0.1, "b1": 0.0, "b2": 0.9, "eps_root": 1e-3}, SOME),
    ("novograd", {"learning_rate": 0.01, "weight_decay": rising, "b1": 0.99, "b2": 0.0, "eps": 0.1}, SOME),
    ("adafactor", {**FACTORED, "learning_rate": 0.1}, [*ANY, (4, 3, 2), (3, 3, 2), (4, 1, 3), (1, 5)]),
    ("adafactor", {}, FACTORED_AND_NOT),
    ("adafactor", {**FACTORED, "learning_rate": falling, "weight_decay_rate": rising}, FACTORED_AND_NOT),
    ("adafactor", {**FACTORED, "learning_rate": 0.1, "momentum": 0.9, "dtype_momentum": None}, FACTORED_AND_NOT),
    (
        "adafactor",
        {**FACTORED, "learning_rate": 0.1, "clipping_threshold": None, "decay_rate": 0.5, "eps": 0.01},
        FACTORED_AND_NOT,
    ),
    ("adafactor", {**FACTORED, "learning_rate": 0.1, "factored": False, "clipping_threshold": 0.5}, FACTORED_AND_NOT),
    (
        "adafactor",
        {**FACTORED, "learning_rate": 0.1, "weight_decay_rate": 0.01, "weight_decay_mask": False},
        [MATRIX],
    ),
    ("stable_adamw", {"learning_rate": 0.01}, ANY),
    ("stable_adamw", {"learning_rate": falling, "weight_decay": rising, "b1": 0.5, "b2": 0.9, "eps": 0.1}, SOME),
    ("stable_adamw", {"learning_rate": None, "weight_decay": 0.001, "mask": False}, SOME),
    ("adam_mini", {"learning_rate": 0.01}, ANY),
    (
        "adam_mini",
        {"learning_rate": falling, "weight_decay": rising, "b1": 0.0, "b2": 0.9, "eps": 0.1},
        [MATRIX, TENSOR],
    ),
    ("adam_mini", {"learning_rate": None, "weight_decay": 0.001, "mask": False}, [MATRIX, TENSOR]),
    ("adam_mini", {"learning_rate": 0.01, "blocks": (3, 2)}, [MATRIX]),
    ("adam_mini", {"learning_rate": 0.01, "blocks": (2, 1, 4)}, [TENSOR]),
    ("schedule_free_adamw", {}, ANY),
    ("schedule_free_adamw", {"learning_rate": falling, "weight_decay": 0.1, "b1": 0.5, "b2": 0.9, "eps": 0.1}, SOME),
    ("schedule_free_adamw", {"learning_rate": 0.01, "warmup_steps": 30, "weight_decay": 0.1}, SOME),
    ("schedule_free_adamw", {"learning_rate": rising, "warmup_steps": 1, "weight_lr_power": 0.5}, SOME),
    ("prodigy", {}, ANY),
    ("prodigy", {"learning_rate": falling, "weight_decay": 0.01, "estim_lr0": 1e-3, "estim_lr_coef": 2.0}, SOME),
    ("prodigy", {"betas": (0.5, 0.9), "beta3": 0.8, "estim_lr0": 1e-3, "safeguard_warmup": True}, SOME),
    ("prodigy", {"eps": 0.0}, SOME),
    ("prodigy", {"learning_rate": falling, "estim_lr0": 1e-3, "bias_correction": False}, SOME),
    ("muon", {"learning_rate": 0.02}, [MATRIX, TALL, VECTOR, TENSOR]),
    (
        "muon",
        {"learning_rate": falling, "weight_decay": 0.1, "adam_weight_decay": rising, "nesterov": False},
        FACTORED_AND_NOT,
    ),
    (
        "muon",
        {"learning_rate": 0.02, "adam_learning_rate": 0.003, "adam_b1": 0.5, "adam_b2": 0.9, "beta": 0.0},
        FACTORED_AND_NOT,
    ),
    ("muon", {"learning_rate": 0.02, "ns_coeffs": "dion", "preconditioning": "aol", "adaptive": True}, [MATRIX, TALL]),
    ("muon", {"learning_rate": 0.02, "preconditioning": "spectral", "ns_steps": 3, "eps": 0.1}, [MATRIX, TALL]),
    ("muon", {"learning_rate": 0.02, "preconditioning": "schatten", "consistent_rms": 0.2}, [MATRIX, TALL]),
    ("muon", {"learning_rate": 0.02, "ns_coeffs": ((3.0, -3.0, 1.0), (2.0, -1.5, 0.5))}, [MATRIX, TALL]),
    ("muon", {"learning_rate": 0.02, "weight_decay": 0.1, "weight_decay_mask": False}, [MATRIX]),
    ("muon", {"learning_rate": 0.02, "muon_weight_dimension_numbers": Axes((0, -1), (1,))}, [TENSOR, (2, 3, 4, 2)]),
    ("muon", {"learning_rate": 0.02, "muon_weight_dimension_numbers": Axes(-1, 0), "adaptive": True}, [TENSOR]),
    ("muon", {"learning_rate": 0.02, "mu_dtype": "bfloat16"}, [MATRIX, VECTOR]),
    ("schedule_free_adamw", {"learning_rate": 0.1, "state_dtype": "float32"}, [MATRIX]),
    ("adafactor", {**FACTORED, "learning_rate": 0.1, "momentum": 0.9, "dtype_momentum": "bfloat16"}, [MATRIX]),
    ("soap", {}, ROUND),
    (
        "soap",
        {"learning_rate": falling, "weight_decay": rising, "precondition_frequency": 1, "eps": 0.01},
        [(4, 4), VECTOR],
    ),
    (
        "soap",
        {"b1": 0.9, "b2": 0.99, "shampoo_decay": 0.5, "precondition_frequency": 3, "mask": False},
        [(4, 4), VECTOR],
    ),
    ("soap", {"learning_rate": None, "weight_decay": 0.001, "max_precond_dim": 3}, [MATRIX, TENSOR]),
    ("soap", {"learning_rate": 0.1, "precondition_frequency": 2, "sort_by_eigenvalue": True}, [(4, 4), TENSOR]),
    ("cautious", {"rule": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}, ANY),
    ("cautious", {"rule": "adam", "learning_rate": falling, "b1": 0.99, "eps": 1e-3}, SOME),
    ("cautious", {"rule": "lion", "learning_rate": 0.01}, SOME),
]
PLAIN = {rule: (arguments, shapes) for rule, arguments, shapes in reversed(CASES)}
COMPLEX = ["lamb", "novograd", "adafactor", "stable_adamw", "adam_mini", "schedule_free_adamw", "prodigy", "muon"]


def split(arguments):
    """The arguments of the rule within, and its name."""
    return arguments["rule"], {name: value for name, value in arguments.items() if name != "rule"}


def make(rule, arguments):
    if rule == "cautious":
        within, arguments = split(arguments)
        return jaxopt_adam.cautious(getattr(jaxopt_adam, within)(**arguments))
    if "blocks" in arguments:
        arguments = {**arguments, "blocks": lambda path, shape, blocks=arguments["blocks"]: blocks}
    return getattr(jaxopt_adam, rule)(**arguments)


def make_oracle(rule, arguments):
    if rule == "cautious":
        within, arguments = split(arguments)
        return WHOLE_LEAF_ORACLES[rule](ORACLES[within](**arguments))
    return WHOLE_LEAF_ORACLES[rule](**arguments)


def walk_of(shape, steps, imaginary=False):
    """A parameter, and gradients that drift under noise, of sizes from 0.01 to 10 from step to step."""
    generator = np.random.default_rng([7, *shape])
    drift = generator.normal(size=shape) + 0.3
    noise = generator.normal(size=(steps, *shape))
    gradients = (drift + noise) * 10.0 ** generator.uniform(-2, 1, (steps, *(1 for _ in shape)))
    param = generator.normal(size=shape)
    if imaginary:
        other, turned = walk_of((*shape, 1), steps)
        param, gradients = param + 1j * other[..., 0], gradients + 1j * turned[..., 0]
    return param, gradients


def optax_counterpart(rule, arguments):
    """Optax's optimizer, or None where it is another on purpose."""
    if rule == "prodigy" and arguments.get("eps") != 0.0:
        return None  # optax takes ε times the estimate to come
    if rule == "novograd" and callable(arguments.get("weight_decay")):
        return None  # optax takes numbers only
    if rule == "schedule_free_adamw" and (callable(arguments.get("learning_rate")) or "warmup_steps" in arguments):
        return None  # optax counts from 0 for one use of the rate and from 1 for the other
    if arguments.get("preconditioning") in ("aol", "schatten") and "eps" in arguments:
        return None  # optax has an ε of its own there
    if {"mu_dtype", "state_dtype"} & arguments.keys() or arguments.get("dtype_momentum"):
        return None  # optax multiplies what is stored in low precision before it widens it
    factory = getattr(optax, rule, None) or getattr(optax.contrib, rule, None)
    return factory and factory(**arguments)


def together(rule, shapes):
    """The leaves of these shapes in groups, of which each is walked in one tree: all of them, or each alone.

    To a rule whose leaves depend on each other the oracle would have to be given all of them.
    """
    return [[shape] for shape in shapes] if rule == "prodigy" else [shapes]


def of_leaf(field, name):
    """The part of a state's field that is a leaf's; numbers are of all leaves."""
    if isinstance(field, dict):
        return field[name]
    return [tree[name] for tree in field] if isinstance(field, tuple) else field


@pytest.mark.parametrize(("rule", "arguments", "shapes"), CASES, ids=name_of)
@pytest.mark.usefixtures("x64")
def test_float64_with_the_oracle_and_with_optax(rule, arguments, shapes):
    narrow = {"mu_dtype", "state_dtype", "dtype_momentum"} & {key for key, value in arguments.items() if value}
    exact = {key: value for key, value in arguments.items() if key not in narrow}
    optimizer, reference = make(rule, arguments), optax_counterpart(rule, arguments)
    for group in together(rule, shapes):
        walks = {str(shape): walk_of(shape, 200) for shape in group}
        params, gradients = ({name: each[index] for name, each in walks.items()} for index in (0, 1))

        @jax.jit
        def run(params, gradients):
            theirs = None if reference is None else scan_updates(reference, params, gradients)[0]
            return scan_updates(optimizer, params, gradients), theirs

        (updates, state), theirs = run(params, gradients)
        for name, (param, slopes) in walks.items():
            right, right_state = walk(make_oracle(rule, exact), param, slopes)
            if theirs is not None:
                # Optax takes Adafactor's decay, and the momentum of its steps, in float32.
                assert deviation(updates[name], theirs[name]) <= (1e-4 if rule == "adafactor" else 1e-10), name
            if narrow:  # what is stored in 16 bits is dithered, and the update is that of what is stored
                # Of a matrix near to one of lower rank an iteration makes more of a rounding.
                bound = 0.05 if rule == "muon" else 0.02
                assert deviation(updates[name], right) <= (bound if "bfloat16" in arguments.values() else 1e-6), name
                continue
            assert deviation(updates[name], right) <= 1e-10, name
            for field, value in state._asdict().items():
                # Eigenvectors have no sign; and b1, which is no moment, only schedule_free_eval_params wants.
                if value is not None and field not in ("bases", "b1"):
                    both = jax.tree.leaves(of_leaf(value, name)), jax.tree.leaves(right_state[field])
                    for one, other in zip(*both, strict=True):
                        np.testing.assert_allclose(one, other, rtol=1e-8, err_msg=f"{name} {field}")


# Prodigy's distance from the start is, at first, the rounding of the parameters, unless they start at zero. What
# Schedule-Free keeps is a point, z, and not a direction, so its steps must not be small next to that.
FLOAT32 = {
    **{rule: (arguments, shapes[0]) for rule, (arguments, shapes) in PLAIN.items()},
    "prodigy": ({"estim_lr0": 1e-3}, MATRIX),
    "schedule_free_adamw": ({"learning_rate": 0.1}, MATRIX),
    "soap": ({}, (4, 4)),
}


@pytest.mark.parametrize("rule", FLOAT32)
def test_float32(rule):
    """With hyperparameters that are known when the step is traced, and with traced ones."""
    arguments, shape = FLOAT32[rule]
    param, gradients = (each.astype(np.float32) for each in walk_of(shape, 100))
    param = param * (rule != "prodigy")
    optimizer = make(rule, arguments)
    run = lambda traced, *inputs: [scan_updates(each, *inputs) for each in (optimizer, traced)]
    results = jax.jit(run, compiler_options=AS_USERS_DO)(optimizer, param, gradients)
    for traced, (updates, state) in enumerate(results):
        chex.assert_type(updates, np.float32)
        chex.assert_type([leaf for leaf in jax.tree.leaves(state) if leaf.ndim], np.float32)
        oracle = make_oracle(rule, jax.tree.map(float32_if_float, arguments) if traced else arguments)
        if traced:
            vars(oracle).update(jax.tree.map(float32_if_float, vars(oracle)))
        right, _ = walk(oracle, np.float64(param), np.float64(gradients))
        assert deviation(updates, right) <= 1e-5, ("known", "traced")[traced]


def float32_if_float(value):
    """A traced hyperparameter is the float32 number that it is, and so must the oracle's be."""
    return float(np.float32(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("rule", COMPLEX)
@pytest.mark.usefixtures("x64")
def test_complex128(rule):
    arguments, shapes = PLAIN[rule]
    param, gradients = walk_of(shapes[0], 200, imaginary=True)
    updates, _ = library_updates(make(rule, arguments), param, gradients)
    chex.assert_type(updates, np.complex128)
    right, _ = walk(make_oracle(rule, arguments), param, gradients)
    assert deviation(updates, right) <= 1e-10


def test_soap_takes_no_complex_numbers():
    with pytest.raises(TypeError, match=r"\['c'\].*complex64"):
        jaxopt_adam.soap().init({"c": jnp.ones(2, jnp.complex64)})


@pytest.mark.usefixtures("x64")
def test_prodigy_sees_all_leaves():
    shapes = {"a": MATRIX, "b": VECTOR, "c": (0, 3)}
    walks = {name: walk_of(shape, 200) for name, shape in shapes.items()}
    params = {name: param for name, (param, _) in walks.items()}
    optimizer, oracle = jaxopt_adam.prodigy(estim_lr0=1e-3), WHOLE_LEAF_ORACLES["prodigy"](estim_lr0=1e-3)
    state, right_state = jax.jit(optimizer.init)(params), oracle.init_leaves(list(params.values()))
    rights = list(params.values())

    @jax.jit
    def step(grads, state, params):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for count in range(50):
        grads = {name: gradients[count] for name, (_, gradients) in walks.items()}
        params, state = step(grads, state, params)
        changes, right_state = oracle.step_leaves(list(grads.values()), rights, right_state)
        rights = [param + change for param, change in zip(rights, changes, strict=True)]
        np.testing.assert_allclose(state.estim_lr, right_state["estim_lr"], rtol=1e-9)
    for param, right in zip(params.values(), rights, strict=True):
        np.testing.assert_allclose(param, right, rtol=1e-9)
    assert state.estim_lr > 1e-2


@pytest.mark.usefixtures("x64")
def test_schedule_free_eval_params():
    param, gradients = walk_of(MATRIX, 50)
    optimizer = jaxopt_adam.schedule_free_adamw(0.1, b1=0.8)
    updates, state = library_updates(optimizer, param, gradients)
    _, right_state = walk(WHOLE_LEAF_ORACLES["schedule_free_adamw"](0.1, b1=0.8), param, gradients)
    after = param + np.asarray(updates).sum(0)
    wanted = evaluation_params(right_state, after, 0.8)
    np.testing.assert_allclose(jaxopt_adam.schedule_free_eval_params(state, after), wanted, rtol=1e-9)
    chained = optax.chain(optax.clip(1e9), optimizer).init(param)
    found = jaxopt_adam.schedule_free_eval_params((chained[0], state), after)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    narrow = jaxopt_adam.schedule_free_eval_params(state, jnp.asarray(after, jnp.bfloat16))
    chex.assert_type(narrow, jnp.bfloat16)
    with pytest.raises(ValueError, match="schedule_free_adamw"):
        jaxopt_adam.schedule_free_eval_params(jaxopt_adam.adam(0.1).init(param), param)


def test_params_and_state_of_schedule_free_and_prodigy_can_both_be_donated():
    for optimizer in (jaxopt_adam.schedule_free_adamw(), jaxopt_adam.prodigy()):
        grads = {"w": np.ones((3, 4), np.float32)}
        step = jax.jit(
            lambda grads, state, params, of=optimizer: of.update(grads, state, params), donate_argnums=(1, 2)
        )
        step(grads, optimizer.init(params := jax.device_put(grads)), params)


@pytest.mark.parametrize("rule", ["lamb", "novograd", "adafactor", "stable_adamw", "adam_mini", "muon", "soap"])
@pytest.mark.usefixtures("x64")
def test_a_rate_and_a_decay_for_each_part(rule):
    of_decay = "weight_decay_rate" if rule == "adafactor" else "weight_decay"
    params, gradients = {}, {}
    for name, shape in {"a": (4, 4), "b": MATRIX, "c": VECTOR}.items():
        params[name], gradients[name] = walk_of(shape, 30)
    rates, decays = {"a": 0.01, "b": falling, "c": 0.1}, {"a": rising, "b": 0.1, "c": 0.01}
    given = {"adam_weight_decay": decays} if rule == "muon" else {}
    whole = make(rule, {"learning_rate": rates, of_decay: decays, **given})
    updates = jax.jit(lambda: scan_updates(whole, params, gradients)[0])()
    for name in params:
        own = {"adam_weight_decay": decays[name]} if rule == "muon" else {}
        oracle = make_oracle(rule, {"learning_rate": rates[name], of_decay: decays[name], **own})
        assert deviation(updates[name], walk(oracle, params[name], gradients[name])[0]) <= 1e-10


@pytest.mark.parametrize("rule", ["lamb", "adafactor", "schedule_free_adamw", "prodigy"])
def test_rules_that_need_the_parameters_say_so(rule):
    optimizer, params = make(rule, PLAIN[rule][0]), jnp.ones(3)
    with pytest.raises(ValueError, match=r"needs the parameters.*params"):
        optimizer.update(params, optimizer.init(params))


OURS_ALONE = {"moments", "bias_correction", "matrix_axes"}
"""Hyperparameters of our whole-leaf rules that optax's do not have."""


@pytest.mark.parametrize(
    "rule", [rule for rule in WHOLE_LEAF_ORACLES if hasattr(optax, rule) or hasattr(optax.contrib, rule)]
)
def test_signature_is_that_of_optax(rule):
    ours = dict(inspect.signature(getattr(jaxopt_adam, rule)).parameters)
    for name in OURS_ALONE & ours.keys():
        assert ours.pop(name).kind is inspect.Parameter.KEYWORD_ONLY
    theirs = inspect.signature(getattr(optax, rule, None) or getattr(optax.contrib, rule)).parameters
    assert list(ours) == list(theirs)
    for name in ours:
        mine, other = ours[name].default, theirs[name].default
        same = jnp.dtype(mine) == jnp.dtype(other) if name.startswith("dtype") else mine == other
        assert same, name
        assert ours[name].kind == theirs[name].kind


def nested(keys, leaf):
    return leaf if not keys else {keys[0]: nested(keys[1:], leaf)}


class TestAdamMiniBlocks:
    @pytest.mark.parametrize(
        ("keys", "shape", "expected"),
        [
            (["Dense_0", "kernel"], (3, 4), (1, 4)),
            (["Dense_0", "bias"], (4,), (1,)),
            (["scale"], (), ()),
            (["Conv_0", "kernel"], (3, 3, 2, 4), (1, 1, 1, 4)),
            (["Embed_0", "embedding"], (7, 4), (7, 1)),
            (["embed_proj", "kernel"], (3, 4), (1, 4)),
            (["attention", "query", "kernel"], (6, 2, 3), (1, 2, 1)),
            (["attention", "key", "kernel"], (6, 2, 3), (1, 2, 1)),
            (["attention", "value", "kernel"], (6, 2, 3), (1, 2, 3)),
            (["attention", "query", "bias"], (2, 3), (1, 1)),
            (["monkey", "kernel"], (6, 2, 3), (1, 1, 3)),
            (["tok_emb"], (7, 4), (7, 1)),
            (["wte"], (7, 4), (7, 1)),
            (["transformer/wpe", "w"], (7, 4), (7, 1)),
            (["model", "embed_tokens", "weight"], (7, 4), (7, 1)),
            (["tokenEmbedding1"], (7, 4), (7, 1)),
            (["pos_embedding"], (1, 7, 4), (1, 7, 1)),
            (["embed_proj", "w"], (3, 4), (1, 4)),
            (["embed_proj"], (3, 4), (1, 4)),
            (["embedder", "proj"], (3, 4), (1, 4)),
            (["tok_emb", "kernel"], (3, 4), (1, 4)),
            (["remember"], (3, 4), (1, 4)),
        ],
    )
    def test_of_flax(self, keys, shape, expected):
        params = nested(keys, jax.ShapeDtypeStruct(shape, jnp.float32))
        (nu,) = jax.tree.leaves(jax.eval_shape(jaxopt_adam.adam_mini(0.1).init, params).nu)
        assert nu.shape == expected

    def test_of_equinox(self):
        layer = equinox.filter_eval_shape(equinox.nn.Linear, 3, 4, key=jax.random.key(0))
        state = jax.eval_shape(jaxopt_adam.adam_mini(0.1).init, equinox.filter(layer, True))
        assert state.nu.weight.shape == (4, 1)
        assert state.nu.bias.shape == (1,)

    @pytest.mark.parametrize("numbers", [(2, 4), (3,), (3.0, 1), (0, 1), [3, 4], (-3, 1)])
    def test_that_do_not_divide_the_shape(self, numbers):
        optimizer = jaxopt_adam.adam_mini(0.1, blocks=lambda path, shape: numbers)
        with pytest.raises(ValueError, match=r"\['w'\].*\(3, 4\)"):
            optimizer.init({"w": jnp.ones((3, 4))})

    def test_know_the_path(self):
        paths = []
        optimizer = jaxopt_adam.adam_mini(0.1, blocks=lambda path, shape: paths.append(path) or (1,) * len(shape))
        optimizer.init({"a": [jnp.ones(2)]})
        assert paths == ["['a'][0]"]


class TestMuonAxes:
    @pytest.mark.usefixtures("x64")
    def test_by_the_path(self):
        seen = {}

        def matrix_axes(path, shape):
            seen[path] = shape
            return {"['kernel']": Axes(-2, -1), "['out']": Axes(1, 0)}.get(path)

        # Layers that are stacked, and a weight of (outputs, inputs).
        shapes = {"kernel": (2, 3, 4), "bias": (2, 4), "out": (4, 3)}
        params, gradients = {}, {}
        for name, shape in shapes.items():
            params[name], gradients[name] = walk_of(shape, 20)
        optimizer = jaxopt_adam.muon(0.02, matrix_axes=matrix_axes)
        updates, _ = jax.jit(lambda: scan_updates(optimizer, params, gradients))()
        assert seen == {f"['{name}']": shape for name, shape in shapes.items()}
        for name, axes in {"kernel": Axes(-2, -1), "bias": None, "out": Axes(1, 0)}.items():
            if axes is None:
                right, _ = walk(ORACLES["nadam"](0.02), params[name], gradients[name])
            else:
                oracle = WHOLE_LEAF_ORACLES["muon"](0.02, muon_weight_dimension_numbers=axes)
                right, _ = walk(oracle, params[name], gradients[name])
            assert deviation(updates[name], right) <= 1e-10

    def test_by_the_path_or_by_a_tree_but_not_both(self):
        optimizer = jaxopt_adam.muon(0.1, muon_weight_dimension_numbers=Axes(), matrix_axes=lambda path, shape: None)
        with pytest.raises(ValueError, match=r"muon_weight_dimension_numbers and matrix_axes"):
            optimizer.init({"w": jnp.ones((3, 4))})

    @pytest.mark.parametrize("axes", [Axes(0, 2), Axes(0, 0), 3, (0,), "01"])
    def test_by_the_path_that_are_none(self, axes):
        optimizer = jaxopt_adam.muon(0.1, matrix_axes=lambda path, shape: axes)
        with pytest.raises(ValueError, match=r"matrix_axes, leaf \['w'\]"):
            optimizer.init({"w": jnp.ones((3, 4))})

    def test_parameters_are_looked_at_before_a_mask_sees_them(self):
        optimizer = jaxopt_adam.muon(0.1, weight_decay_mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params))
        params = {"w": jnp.ones((3, 4))}
        for wrong, name in [("text", "params"), ({"w": "text"}, r"\['w'\].*the parameter")]:
            with pytest.raises((TypeError, ValueError), match=name):
                optimizer.update(params, optimizer.init(params), wrong)

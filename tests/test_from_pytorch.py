"""The pages for those who come from PyTorch: tables against our signatures, counterparts against PyTorch's steps."""

import ast
import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_adam

HOW_TO = Path(__file__).parent.parent / "docs" / "how_to"
OPTIMIZERS, AROUND = (HOW_TO / "torch_optim.md").read_text(), (HOW_TO / "from_pytorch.md").read_text()
TABLES = re.findall(
    r"^\| torch\.optim\.(\w+) \| jaxopt_adam\.(\w+) \|.*\n\|[-|]+\n((?:\|.*\n)+)", OPTIMIZERS, re.MULTILINE
)
# PyTorch 2.13 in float64: six parameters after the 20 steps that `problem` gives the gradients of, each set as the
# parameter's `grad` before the `step` of a torch.optim optimizer. Muon's iteration, which casts to bfloat16, was made
# to keep float64: `torch.Tensor.bfloat16 = torch.Tensor.clone`.
RECORDED = {
    "Adam(lr=0.01)": [0.1141338136, -0.2291168866, 0.6503685312, 0.1673587781, -0.4423461647, 0.2616621512],
    "Adam(lr=0.01, weight_decay=0.1)": [
        0.1071392025,
        -0.2267331783,
        0.6290320561,
        0.1618970347,
        -0.4203828085,
        0.2554980433,
    ],
    "Adam(lr=0.01, maximize=True)": [
        0.1373266286,
        -0.0350928400,
        0.6304767697,
        0.0424414562,
        -0.6289925817,
        0.4615279586,
    ],
    "Adam(lr=0.01, amsgrad=True)": [
        0.1141348772,
        -0.2291168866,
        0.6503695191,
        0.1673577564,
        -0.4423482515,
        0.2616621512,
    ],
    "AdamW(lr=0.01)": [0.1138993752, -0.2287470958, 0.6490267365, 0.1670894560, -0.4413930968, 0.2610250085],
    "SGD(lr=0.01, momentum=0.9)": [
        0.1127984509,
        -0.7176957143,
        0.5470809382,
        0.2467456361,
        -0.4275247658,
        -0.3793308479,
    ],
    "SGD(lr=0.01, momentum=0.9, nesterov=True)": [
        0.1132404920,
        -0.7442081813,
        0.5347061569,
        0.2600994078,
        -0.4249280242,
        -0.4271185495,
    ],
    "SGD(lr=0.01, momentum=0.9, weight_decay=0.1)": [
        0.0985119038,
        -0.6832018465,
        0.4691422419,
        0.2313012943,
        -0.3692710278,
        -0.4037357268,
    ],
    "RMSprop(lr=0.01)": [0.0651964745, -0.4610443070, 0.6214443961, 0.3612215879, -0.2003818181, -0.1292615143],
    "RMSprop(lr=0.01, momentum=0.9, centered=True)": [
        -0.4483146240,
        -2.6339699401,
        1.0507346227,
        1.7248982722,
        2.2978794710,
        -3.1667840409,
    ],
    "Adagrad(lr=0.01)": [0.1196787883, -0.1646832382, 0.6389953772, 0.1300525257, -0.5023458199, 0.3130028117],
    "Adagrad(lr=0.01, lr_decay=0.1)": [
        0.1199481461,
        -0.1553676744,
        0.6490416887,
        0.1214573338,
        -0.5079533362,
        0.3300767194,
    ],
    "Adadelta(lr=1.0)": [0.1233346044, -0.1519022524, 0.6290269600, 0.1254604158, -0.5170489507, 0.3025066934],
    "Adadelta(lr=1.0, weight_decay=0.1)": [
        0.1213947347,
        -0.1513892335,
        0.6208505855,
        0.1241415603,
        -0.5088974146,
        0.2988475987,
    ],
    "RAdam(lr=0.001)": [0.1255993573, -0.1358553294, 0.6422193483, 0.1061901492, -0.5344399472, 0.3608610689],
    "Adamax(lr=0.002)": [0.1237247606, -0.1442309361, 0.6438980858, 0.1131448144, -0.5222128067, 0.3507855368],
    "Adafactor(lr=0.01)": [0.1253043460, -0.1620326807, 0.6129606632, 0.1177136772, -0.5132955024, 0.3284842311],
    "Muon(lr=0.01, nesterov=False)": [
        0.0711511263,
        -0.2621974658,
        0.5835996257,
        0.1240170600,
        -0.4686670565,
        0.2460293925,
    ],
    "Muon(lr=0.01, nesterov=False, adjust_lr_fn='match_rms_adamw')": [
        0.1085065846,
        -0.1670237016,
        0.6152517391,
        0.1088168157,
        -0.5091076264,
        0.3237707154,
    ],
}
# What was recorded has ten digits. Where PyTorch adds ε (of 10⁻⁸ and less) in another place, that is less; but for
# AMSGrad, whose ε in the first steps is √(1 − β₂ᵗ) of ours, and Muon, whose ε is 10⁻⁷.
TOLERANCES = {
    "Adam(lr=0.01, amsgrad=True)": 1e-7,
    "Muon(lr=0.01, nesterov=False)": 4e-9,
    "Muon(lr=0.01, nesterov=False, adjust_lr_fn='match_rms_adamw')": 4e-9,
}


def problem(shape=(3, 2)):
    generator = np.random.default_rng(0)
    params = generator.standard_normal(shape)
    return params, generator.standard_normal((20, *shape)) * np.exp(generator.standard_normal(shape))


def after_20_steps(optimizer, shape=(3, 2)):
    params, gradients = problem(shape)

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jnp.asarray(params)
    (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), jnp.asarray(gradients))
    return np.ravel(params)


def defined_in(page, tag):
    """What a page's cell with a tag defines."""
    (cell,) = re.findall(rf"```\{{code-cell\}} python\n:tags: \[{tag}\]\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names = {"jnp": jnp, "optax": optax}
    exec(compile(cell, tag, "exec"), names)
    return names


def counterparts():
    return defined_in(OPTIMIZERS, "counterparts")["counterparts"]


def test_each_of_the_counterparts_is_recorded():
    assert counterparts().keys() == RECORDED.keys()


@pytest.mark.parametrize("name", RECORDED)
def test_a_counterpart_takes_pytorchs_steps(name, x64):
    params = after_20_steps(counterparts()[name])
    np.testing.assert_allclose(params, RECORDED[name], rtol=0, atol=TOLERANCES.get(name, 1e-9))


def test_muon_needs_the_axes_of_a_weight_of_outputs_by_inputs(x64):
    """Without them the factor of a (3, 2) weight is that of a (2, 3) one."""
    given = counterparts()["Muon(lr=0.01, nesterov=False)"].replace(weight_decay=0.0)
    steps, guessed = (
        after_20_steps(each) - problem()[0].ravel()
        for each in (given, given.replace(muon_weight_dimension_numbers=None))
    )
    np.testing.assert_allclose(guessed * 1.5**0.5, steps, rtol=1e-9)


def test_muon_with_nesterov_comes_together_with_pytorchs_after_its_first_steps(x64):
    """Recorded as above, for Muon(lr=0.01)."""
    theirs = [0.0840426499, -0.2496996939, 0.5942204780, 0.1214496513, -0.4762852632, 0.2457351549]
    ours = after_20_steps(counterparts()["Muon(lr=0.01, nesterov=False)"].replace(nesterov=True))
    assert 1e-3 < np.abs(ours - theirs).max() < 5e-3


def one_cycle_of_pytorch(steps, first, peak, last, share):
    """The loop of OneCycleLR.get_lr with annealing along a cosine, in float64."""
    turn, end = share * steps - 1, steps - 1
    for step in range(steps):
        begin, until, start, goal = (0, turn, first, peak) if step <= turn else (turn, end, peak, last)
        yield goal + (start - goal) / 2 * (1 + np.cos(np.pi * (step - begin) / (until - begin)))


@pytest.mark.parametrize(("steps", "share"), [(100, 0.3), (77, 0.3), (50, 0.25)])
def test_one_cycle_is_pytorchs(steps, share):
    names, counts = defined_in(AROUND, "one-cycle"), np.arange(steps)
    rates = names["one_cycle"](3e-3, steps, share)(counts)
    momenta = names["cycled_momentum"](steps, share)(counts)
    theirs = one_cycle_of_pytorch(steps, 3e-3 / 25, 3e-3, 3e-3 / 25e4, share)
    np.testing.assert_allclose(rates, list(theirs), rtol=1e-6)
    np.testing.assert_allclose(momenta, list(one_cycle_of_pytorch(steps, 0.95, 0.85, 0.95, share)), rtol=1e-6)
    if steps == 100:  # as PyTorch printed them
        assert [f"{rates[count]:.3e}" for count in (29, 30, 99)] == ["3.000e-03", "2.998e-03", "1.200e-08"]


# The first six parameters after Adafactor(lr=0.01), recorded as above, for two shapes of (out, in, height, width).
ADAFACTOR = {
    (2, 2, 3, 4): [0.1267195666, -0.1283692588, 0.6205874825, 0.1253161027, -0.5147820096, 0.3220012782],
    (4, 3, 2, 2): [0.1232480961, -0.1253735439, 0.6294663122, 0.1252431877, -0.5159405153, 0.3269760086],
}


def test_adafactor_factors_the_two_largest_axes_and_pytorch_the_two_last(x64):
    optimizer = counterparts()["Adafactor(lr=0.01)"]
    apart = {shape: np.abs(after_20_steps(optimizer, shape)[:6] - right).max() for shape, right in ADAFACTOR.items()}
    assert apart[2, 2, 3, 4] < 1e-9
    assert apart[4, 3, 2, 2] > 1e-3


# prodigyopt 1.1.2 in float64, as above: Prodigy(d0=1e-3, weight_decay=0.1, eps=1e-30) without and with its argument
# use_bias_correction. (Its ε is times the estimate to come, and so must be next to nothing here.)
PRODIGY = {
    False: [2.0156860830, -2.5399075900, -1.8297539011, 11.3675553282, 0.9894847317, -8.9562704486],
    True: [0.1281074566, -0.1432005843, 0.6391223947, 0.1245686522, -0.5235206545, 0.3338172915],
}


@pytest.mark.parametrize("bias_correction", PRODIGY)
def test_prodigy_takes_the_authors_steps(bias_correction, x64):
    optimizer = jaxopt_adam.prodigy(estim_lr0=1e-3, weight_decay=0.1, eps=1e-30, bias_correction=bias_correction)
    np.testing.assert_allclose(after_20_steps(optimizer), PRODIGY[bias_correction], rtol=0, atol=1e-9)


def test_adam_mini_has_adams_steps_for_a_bias_where_blocks_gives_its_shape(x64):
    """As in the authors' code; without, a bias is one block."""
    optimizer = jaxopt_adam.adam_mini(0.01, blocks=lambda path, shape: shape)
    np.testing.assert_allclose(after_20_steps(optimizer), RECORDED["Adam(lr=0.01)"], rtol=0, atol=1e-9)
    assert jaxopt_adam.adam_mini(0.01).init({"bias": jnp.zeros(6)}).nu["bias"].shape == (1,)


def test_there_is_a_table_for_each_rule_of_both():
    assert {name for name, _, _ in TABLES} == {
        *("Adam", "AdamW", "SGD", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adamax", "Adafactor"),
        "Muon",
    }


@pytest.mark.parametrize(
    ("name", "rows"), [(ours, rows) for _, ours, rows in TABLES], ids=[each for each, _, _ in TABLES]
)
def test_defaults_are_ours(name, rows):
    parameters = inspect.signature(getattr(jaxopt_adam, name)).parameters
    seen = set()
    for row in rows.splitlines():
        for argument in re.findall(r"`([^`]+)`", row.split("|")[2]):
            given, _, default = argument.partition("=")
            seen.add(given)
            stated = ast.literal_eval(default) if default else inspect.Parameter.empty
            assert parameters[given].default == stated, argument
    # Each of ours is in the table, but for what PyTorch has nothing like.
    missing = {
        *("moments", "mu_dtype", "accumulator_dtype", "dtype_momentum", "eps_root", "mask", "weight_decay_mask"),
        *("nesterov", "initial_scale", "bias_correction", "decay_offset", "multiply_by_parameter_scale"),
        *("momentum", "factored", "adaptive", "preconditioning"),
        *(each for each in parameters if each.startswith("adam_")),
    }
    assert parameters.keys() - seen <= missing

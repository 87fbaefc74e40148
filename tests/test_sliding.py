"""Grids of averages in 4 bits that slide as the averages decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_USERS_DO

from jaxopt_adam import adam, load_moments, rmsprop
from jaxopt_adam.storage._codes import WIDEST, Root
from jaxopt_adam.storage._rounding import NEAREST
from jaxopt_adam.storage._sliding import SlidingRoot

CODE = SlidingRoot(4)
SHAPE = 32, 256
SIZES = 10.0 ** np.random.default_rng(0).uniform(-1.5, 1.5, SHAPE).astype(np.float32)
"""Gradients of three decades in each block, whose grids are wide."""
FIRST_SLIDING = 24
"""The index of the least spacing of the grids that slide; the scales of these have the index less this."""


def after(optimizer, sizes, steps, state=None):
    """The state after steps with random gradients of these sizes."""
    like = jnp.zeros(SHAPE)

    def step(state, count):
        gradients = sizes * jax.random.normal(jax.random.fold_in(jax.random.key(0), count), SHAPE)
        return optimizer.update(gradients, state, like)[1], None

    state = optimizer.init(like) if state is None else state
    return jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps))[0], compiler_options=AS_USERS_DO)(state)


def roots_of(state, optimizer):
    return np.sqrt(np.asarray(load_moments(state, optimizer, jnp.zeros(SHAPE)).nu, np.float64))


@pytest.mark.parametrize("decay", [0.99, 0.999, 0.9999])
def test_what_only_decays_keeps_its_code_and_falls_as_fast_as_it_should(decay):
    optimizer = rmsprop(1e-3, decay=decay, moments="int4")
    steps = min(3000, round(6 / (1 - decay)))
    start = after(optimizer, SIZES, 300)
    start = after(optimizer, 0 * SIZES, 1, start)
    end = after(optimizer, 0 * SIZES, steps, start)
    assert np.mean(start.nu.codes != end.nu.codes) < 0.02
    octaves = np.log2(roots_of(end, optimizer) / roots_of(start, optimizer))
    expected = steps * np.log2(decay) / 2
    # The factor of a block is off by a sixteenth of an octave or two.
    assert abs(octaves.mean() - expected) < 0.02
    assert np.mean(np.abs(octaves - expected) < 0.2) > 0.99


def test_the_spread_of_errors_stays_while_gradients_vanish():
    """If the grids stayed where they are, it would grow by two fifths."""
    exact, stored = adam(1e-3, b2=0.999), adam(1e-3, b2=0.999, moments={"nu": "int4"})
    states = [after(each, SIZES, 2000) for each in (exact, stored)]
    later = [after(each, 0 * SIZES, 3000, state) for each, state in zip((exact, stored), states, strict=True)]
    spreads = []
    for one, other in (states, later):
        errors = np.log(roots_of(other, stored) / roots_of(one, exact))
        spreads.append(errors.std())
    assert 0.2 < spreads[0] < 0.45
    assert spreads[1] == pytest.approx(spreads[0], rel=0.03)


def test_wide_grids_slide_and_narrow_ones_do_not():
    optimizer = rmsprop(1e-3, decay=0.999, moments="int4")
    wide = after(optimizer, SIZES, 100).nu.scales & 31
    assert np.mean(wide <= WIDEST - FIRST_SLIDING) > 0.9
    narrow = after(optimizer, np.ones(SHAPE, np.float32), 3000).nu.scales & 31
    assert np.all(narrow > WIDEST - FIRST_SLIDING)


def test_a_wide_grid_from_before_grids_slid_stays_while_it_fits():
    values = jnp.asarray(2.0 ** np.random.default_rng(1).uniform(-6, 6, (64, 16)), jnp.float32)
    largest = [each.max(-1) for each in CODE.measures(values, None)]
    before = Root(4).scale(jnp.zeros(64, np.uint16), *largest)
    assert np.all(before & 31 >= FIRST_SLIDING)
    again = CODE.slid(before, np.float32(0.999), jnp.full(64, NEAREST), *largest)
    np.testing.assert_array_equal(again, before)
    for ours, theirs in zip(CODE.grid(before), Root(4).grid(before), strict=False):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(CODE.grid(before)[2], 1)
    # What no longer fits has a grid that slides.
    largest = [each.max(-1) for each in CODE.measures(values.at[:, 0].set(2.0**12), None)]
    assert np.all(CODE.slid(before, np.float32(0.999), jnp.full(64, NEAREST), *largest) & 31 <= WIDEST - FIRST_SLIDING)


@pytest.mark.parametrize("factor", [1e-36, 1e-30, 1.0, 1e30])
def test_all_numbers_are_within_the_lines(factor):
    """A new grid spans its numbers, unless they are zero or span more than 24 octaves."""
    values = jnp.asarray(factor * 2.0 ** np.random.default_rng(2).uniform(-3, 17, (256, 16)), jnp.float32)
    largest = [each.max(-1) for each in CODE.measures(values, None)]
    before = jnp.zeros(256, np.uint16)
    slid = CODE.slid(before, np.float32(0.999), jnp.full(256, NEAREST), *largest)
    grid = CODE.grid(slid.astype(np.uint16))
    lines = [np.asarray(CODE.root(jnp.full(256, code), grid), np.float64) for code in (1, 15)]
    roots = np.sqrt(np.asarray(values, np.float64))
    assert np.all(lines[0] <= roots.min(1) * (1 + 1e-6))
    assert np.all(roots.max(1) <= lines[1] * (1 + 1e-6))
    assert np.all(lines[0] >= 2.0**-63)
    spans = np.log2(lines[1] / lines[0]) - np.log2(roots.max(1) / roots.min(1))
    assert spans.max() < 4.5


def test_a_block_of_nan_is_all_nan_and_no_other():
    values = np.exp(np.random.default_rng(3).normal(size=(3, 16)) * 4).astype(np.float32)
    values[1, 3] = np.nan
    largest = [each.max(-1) for each in CODE.measures(jnp.asarray(values), None)]
    slid = CODE.slid(jnp.zeros(3, np.uint16), np.float32(0.999), jnp.full(3, NEAREST), *largest)
    read = np.asarray(CODE.decode(jnp.ones((3, 16), jnp.int32), None, [each[:, None] for each in CODE.grid(slid)]))
    assert np.isnan(read[1]).all()
    assert np.isfinite(read[[0, 2]]).all()


@pytest.mark.parametrize("decay", [0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))])
def test_any_decay(decay):
    optimizer = rmsprop(1e-3, decay=float(decay), moments="int4")
    state = after(optimizer, SIZES, 200)
    exact = rmsprop(1e-3, decay=float(decay))
    ratios = roots_of(state, optimizer) / roots_of(after(exact, SIZES, 200), exact)
    assert np.isfinite(ratios).all()
    assert 0.5 < np.exp(np.log(ratios).mean()) < 2


def test_a_decay_may_be_an_array():
    """The decay of a grid decides what is rounded, and not what the average is."""
    one = adam(1e-3, b2=0.999, moments="int4")
    each = adam(1e-3, b2=jnp.full((1, 1), 0.999, jnp.float32), moments="int4")
    states = [after(optimizer, SIZES, 50) for optimizer in (one, each)]
    ratios = roots_of(states[1], each) / roots_of(states[0], one)
    # Where the sums of the two are rounded otherwise, a number may come to another line.
    assert np.mean(np.abs(ratios - 1) < 1e-5) > 0.99


def test_a_new_decay_changes_nothing_that_is_stored():
    optimizer = adam(1e-3, b2=0.999, moments="int4")
    state = after(optimizer, SIZES, 300)
    other = optimizer.replace(b2=0.9)
    np.testing.assert_array_equal(roots_of(state, other), roots_of(state, optimizer))
    # In 50 steps it has forgotten the gradients of before.
    state = after(other, 0.1 * SIZES, 50, state)
    exact = adam(1e-3, b2=0.9)
    right = after(exact, 0.1 * SIZES, 50, after(adam(1e-3, b2=0.999), SIZES, 300))
    ratios = np.log(roots_of(state, other) / roots_of(right, exact))
    assert abs(ratios.mean()) < 0.3


def test_derivatives_pass_it():
    start = adam(1e-3, moments="int4").init(jnp.zeros(SHAPE))

    def size(numbers):
        updates, _ = adam(numbers[0], b2=numbers[1], moments="int4").update(SIZES, start)
        return jnp.sum(updates * SIZES)

    assert np.isfinite(jax.jit(jax.grad(size))(jnp.array([1e-3, 0.999]))).all()

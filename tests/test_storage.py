"""Codes of 8 and 4 bits, held to decoders in NumPy's float64 that are written from what the docstrings say."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import AS_USERS_DO
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxopt_adam
from jaxopt_adam.storage import NAMED, Blockwise, Dense
from jaxopt_adam.storage._choice import storages_of, valid_storage
from jaxopt_adam.storage._codes import Quotient, Root
from jaxopt_adam.storage._layout import Layout, block_length
from jaxopt_adam.storage._packing import Member, Packing, Word
from jaxopt_adam.storage._rounding import ROUNDINGS, mixed, phases, salted

QUOTIENTS, ROOTS = [Quotient(8), Quotient(4)], [Root(8), Root(4)]
every_code = pytest.mark.parametrize("code", [*QUOTIENTS, *ROOTS], ids=repr)
every_quotient = pytest.mark.parametrize("code", QUOTIENTS, ids=repr)
every_root = pytest.mark.parametrize("code", ROOTS, ids=repr)

LENGTH = 32
NEAREST = np.uint32(2**31)
# The sum of a number and its threshold's share is rounded to float32 itself, so of thresholds nearer to 0 and 1 than
# that, which chance has once in 10,000 steps, an exact number may come to the code beside its own.
LEAST, LAST = np.uint32(2**19), np.uint32(2**32 - 2**19)
ORIGIN = int(np.float32(2.0**-80).view(np.int32))
# Above the root of the least float32 that is not flushed to zero.
LEAST_PLACE = int(np.nextafter(np.float32(2.0**-63), np.float32(1)).view(np.int32))


# -------------------------------------------------------------------------------------------------------------- oracles


def lines_of(code, scale):
    """The lowest line of a grid of roots and its spacing, as bit patterns; TestGrids has what these are."""
    origin, index, *_ = (each.astype(np.int64) for each in in_rows(grid, code, scale))
    spacing = (4 + index % 4) * 2 ** (13 + index // 4)
    return origin + spacing, spacing


def root_of(code, numbers, scale):
    lowest, spacing = (each[:, None] for each in lines_of(code, scale))
    numbers = np.asarray(numbers).astype(np.int64)
    patterns = (lowest + (numbers - 1) * spacing).astype(np.uint32)
    return np.where(numbers > 0, patterns.view(np.float32).astype(np.float64), 0.0)


def shares_of(code):
    """All shares that are not negative: two octaves of numbers, evenly spaced in each, less the first of them."""
    parts = 2 ** (code.bits - 2)
    number, part = np.divmod({8: 21, 4: 3}[code.bits] + np.arange(2 ** (code.bits - 1)), parts)
    sizes = 2.0**number * (1 + part / parts)
    return (sizes - sizes[0]) / (sizes[-1] - sizes[0])


def level_of(code, numbers):
    """A code as a whole number with a sign, in the order of what it stands for."""
    numbers = np.asarray(numbers).astype(np.int64)
    sign = 2 ** (code.bits - 1)
    return numbers if isinstance(code, Root) else np.where(numbers & sign, -1, 1) * (numbers % sign)


def decoded(code, numbers, roots, scale):
    """The numbers that the codes stand for, in float64."""
    if isinstance(code, Root):
        return root_of(code, numbers, scale) ** 2
    levels = level_of(code, numbers)
    values = np.sign(levels) * shares_of(code)[np.abs(levels)] * np.asarray(scale).astype(np.float64)[:, None]
    return values * roots.astype(np.float64)


def pattern(values):
    """The bit pattern of the root."""
    return np.sqrt(values.astype(np.float32)).view(np.int32).astype(np.int64)


def place_of(code, values, roots, scale):
    """The positions of numbers among the levels, in float64 and not rounded."""
    if isinstance(code, Root):
        lowest, spacing = (each[:, None] for each in lines_of(code, scale))
        return (pattern(values) - lowest) / spacing + 1
    share = values.astype(np.float64) / roots / np.asarray(scale).astype(np.float64)[:, None]
    shares = shares_of(code)
    return np.sign(share) * np.interp(np.abs(share), shares, np.arange(len(shares)))


# -------------------------------------------------------------------------------------------------- the library, by row


ROWS = 256


def in_rows(function, code, *arrays):
    """A function of blocks, as many at once for all tests, so that it is compiled once for each code."""
    count, results = len(arrays[0]), []
    for first in range(0, count, ROWS):
        rows = np.minimum(np.arange(first, first + ROWS), count - 1)
        results.append(jax.device_get(function(code, *(np.asarray(each)[rows] for each in arrays))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


def scale_of(code, values, roots, before=None):
    """The scales of blocks, of which each is a row, and which had the scales `before`, or none."""
    before = jnp.zeros(len(values), code.scale_dtype) if before is None else before
    return code.scale(before, *(measure.max(-1) for measure in code.measures(values, roots)))


@functools.partial(jax.jit, static_argnums=0)
def grid(code, scale):
    return code.grid(scale)


@functools.partial(jax.jit, static_argnums=0)
def write(code, values, roots, threshold, before):
    """The codes and scales of blocks."""
    scale = scale_of(code, values, roots, before)
    return code.encode(values, roots, code.ruler(spread(code, scale)), threshold), scale


@functools.partial(jax.jit, static_argnums=0)
def rewrite(code, values, roots, scale, threshold):
    return code.encode(values, roots, code.ruler(spread(code, scale)), threshold)


@functools.partial(jax.jit, static_argnums=0)
def read(code, numbers, roots, scale):
    return code.decode(numbers, roots, spread(code, scale))


def spread(code, scale):
    return tuple(each[:, None] for each in code.grid(scale))


def written(code, values, roots=None, threshold=NEAREST, before=None):
    """Codes, scales, the roots as they came, and what codes and scales stand for."""
    values = np.asarray(values, np.float32)
    roots = np.ones_like(values) if roots is None else np.asarray(roots, np.float32)
    before = np.zeros(len(values), code.scale_dtype) if before is None else before
    threshold = np.broadcast_to(np.asarray(threshold, np.uint32), values.shape)
    numbers, scale = in_rows(write, code, values, roots, threshold, before)
    return numbers, scale, roots, in_rows(read, code, numbers, roots, scale)


def every_number(code, scale):
    """All codes for each of the scales, in blocks, and the scales of these."""
    numbers = (np.arange(max(2**code.bits, LENGTH)) % 2**code.bits).reshape(-1, LENGTH)
    return np.tile(numbers, (len(scale), 1)), np.repeat(scale, len(numbers))


def spread_values(code, octaves, seed=0, rows=64):
    """Rows of numbers whose sizes span that many octaves about a size of their own, which spans forty."""
    generator = np.random.default_rng(seed)
    size = 2.0 ** generator.uniform(-20, 20, (rows, 1))
    values = size * 2.0 ** generator.uniform(-octaves / 2, octaves / 2, (rows, LENGTH))
    if isinstance(code, Quotient):
        values *= generator.choice([-1, 1], values.shape)
    return values.astype(np.float32)


class TestGrids:
    @every_root
    def test_of_every_spacing(self, code):
        spacing = lines_of(code, np.arange(32, dtype=np.uint16))[1]
        for count in (1, 100, 300):  # the spacing depends on nothing else
            np.testing.assert_array_equal(
                lines_of(code, np.arange(32, dtype=np.uint16) + np.uint16(32 * count))[1], spacing
            )
        table = spacing[: 1 + spacing.argmax()]
        assert len(table) > 20
        assert (table[1:] > table[:-1]).all()
        assert (table[1:] <= 1.5 * table[:-1]).all()

    @every_root
    @pytest.mark.parametrize("octaves", [0.1, 1, 4, 16, 80])
    def test_lines_are_multiples_of_the_spacing(self, code, octaves):
        """Multiples from a first line on, which is the spacing's own."""
        lowest, spacing = lines_of(code, written(code, spread_values(code, octaves, rows=512))[1])
        first = ORIGIN - (spacing & -spacing) // 2 - spacing // 16
        inside = lowest > LEAST_PLACE
        assert inside.mean() > 0.9
        np.testing.assert_array_equal((lowest - first)[inside] % spacing[inside], 0)

    @every_root
    def test_no_line_is_a_power_of_two(self, code):
        """From which a number would fall twice as fast as it would rise."""
        lowest, spacing = lines_of(code, np.arange(32, dtype=np.uint16) + np.uint16(32 * 100))
        lines = lowest[:, None] + np.arange(2**code.bits - 1) * spacing[:, None]
        assert (lines % 2**23 != 0).all()

    @every_root
    def test_poison_is_no_number(self, code):
        numbers, scale = every_number(code, np.uint16([2**16 - 1]))
        again = in_rows(read, code, numbers, np.ones(numbers.shape, np.float32), scale)
        assert np.isnan(again[numbers > 0]).all()

    @every_root
    @pytest.mark.parametrize("octaves", [0.1, 1, 3, 4, 8, 16, 40])
    def test_spacing_stays_while_it_is_little_wider(self, code, octaves):
        """Of all spacings that a block may have had; none in which the block is short of a line is kept."""
        values = spread_values(code, octaves, rows=64)
        needed = written(code, values)[1] & 31
        kept = 0
        for before in range(32):
            _, scale, roots, _ = written(code, values, before=np.full(len(values), 32 * 100 + before, np.uint16))
            index = scale & 31
            stays = index != needed
            np.testing.assert_array_equal(index[stays], before)
            assert set(index[stays] - needed[stays]) <= ({1} if code.bits == 8 else {1, 2})
            kept += stays.sum()
            # Where it is little wider and does not stay, the block does not fit between its lines.
            places = place_of(code, values, roots, scale)
            if octaves <= 16:
                assert places.max() < 2**code.bits - 1 + 0.01
                assert places.min() > 1 - 0.01
            if code.bits == 8:
                np.testing.assert_array_equal(stays, needed + 1 == before)
        # There is none above the widest; of narrow grids of 4 bits the lowest lines are few.
        assert kept >= (0.9 if code.bits == 8 else 0.3) * (needed < 31).sum()

    @every_root
    def test_extremes_that_come_and_go_move_nothing(self, code):
        """A block that spans by turns as much as a spacing can and a little more is rounded anew but once."""
        values = spread_values(code, 10, rows=256)
        values[:, 0], values[:, 1] = values.min(-1), values.max(-1)
        before = written(code, values)[1]
        wide = values.copy()
        wide[:, 1] *= 1.2
        changes = (written(code, wide)[1] & 31) != (before & 31)
        assert changes.any()
        scale, moved, resting = before, [], values
        for step, threshold in enumerate(np.linspace(LEAST, LAST, 8).astype(np.uint32)):
            resting = np.where(np.arange(LENGTH) == 1, (values if step % 2 else wide)[:, 1:2], resting)
            _, scale, _, again = written(code, resting, threshold=threshold, before=scale)
            moved.append((again != resting)[changes][:, 2:].mean())
            resting = again
        assert moved[0] > 0.5
        assert moved[1:] == [0.0] * 7


class TestDecoding:
    @every_code
    @pytest.mark.parametrize("octaves", [0.1, 1, 8, 40, 80])
    def test_is_what_the_docstrings_say(self, code, octaves):
        roots = np.sqrt(spread_values(Root(8), octaves, seed=1))
        numbers, scale, roots, again = written(code, spread_values(code, octaves), roots)
        assert len(np.unique(numbers)) > (1 if octaves < 1 else 6)
        np.testing.assert_allclose(again, decoded(code, numbers, roots, scale), rtol=1e-5)

    @every_code
    def test_codes_and_scales_have_their_ranges(self, code):
        for octaves in (0.1, 8, 80):
            numbers, scale, *_ = written(code, spread_values(code, octaves))
            assert numbers.min() >= 0
            assert numbers.max() <= 2**code.bits - 1
            assert scale.dtype == code.scale_dtype
            assert scale.dtype.itemsize == 2

    @every_code
    @pytest.mark.parametrize("threshold", [LEAST, NEAREST, LAST, np.uint32(12345678)])
    def test_what_is_a_code_stays_that_code(self, code, threshold):
        _, scale, *_ = written(code, spread_values(code, 12, seed=2))
        every, scale = every_number(code, scale)
        roots = np.sqrt(spread_values(Root(8), 8, rows=len(scale)))[:, :1] * np.ones(every.shape, np.float32)
        values = in_rows(read, code, every, roots, scale)
        thresholds = np.broadcast_to(threshold, every.shape)
        np.testing.assert_array_equal(in_rows(rewrite, code, values, roots, scale, thresholds), every)

    @every_code
    @pytest.mark.parametrize("threshold", [np.uint32(0), np.uint32(2**32 - 1)])
    def test_the_last_thresholds_are_off_by_one_at_most(self, code, threshold):
        values = spread_values(code, 8)
        numbers, scale, roots, _ = written(code, values, threshold=threshold)
        assert numbers.min() >= 0
        assert numbers.max() <= 2**code.bits - 1
        assert np.abs(level_of(code, numbers) - place_of(code, values, roots, scale)).max() <= 1.001

    @every_root
    def test_a_root_that_does_not_change_is_not_rounded_again(self, code):
        """As long as the block's spacing stays, the lines do; what was rounded may span less and get a narrower."""
        _, scale, _, again = written(code, spread_values(code, 5, rows=512))
        for threshold in (LEAST, NEAREST, LAST):
            _, other, _, third = written(code, again, threshold=threshold)
            stays = (scale & 31) == (other & 31)
            assert stays.mean() > {8: 0.9, 4: 0.4}[code.bits]
            np.testing.assert_array_equal(third[stays], again[stays])


class TestErrors:
    @every_code
    @pytest.mark.parametrize("octaves", [0.1, 1, 4, 8])
    def test_nearest_is_off_by_half_a_spacing(self, code, octaves):
        values, roots = spread_values(code, octaves), np.sqrt(spread_values(Root(8), octaves, seed=1))
        numbers, scale, roots, _ = written(code, values, roots)
        apart = np.abs(level_of(code, numbers) - place_of(code, values, roots, scale))
        assert 0.4 < apart.max() <= 0.5 + 1e-3

    @every_code
    @pytest.mark.parametrize("rounding", ["dither", "stochastic"])
    def test_others_are_off_by_one_spacing(self, code, rounding):
        values = spread_values(code, 6)
        threshold = ROUNDINGS[rounding](jnp.int32(3), leading(phases(values.shape, 0)))
        numbers, scale, roots, _ = written(code, values, threshold=threshold)
        apart = np.abs(level_of(code, numbers) - place_of(code, values, roots, scale))
        assert 0.9 < apart.max() <= 1 + 1e-3

    def test_of_a_root_of_8_bits(self):
        """A grid spans what is there, so few octaves are told apart the more finely: hardly worse than by 254 lines."""
        for octaves in (2, 3, 4, 8, 16, 40):
            values = spread_values(Root(8), octaves, rows=512)
            again = written(Root(8), values)[-1]
            # Of an even logarithmic grid; lines of bit patterns are up to 1.5 times as far apart.
            even = octaves * math.log(2) / 254 / math.sqrt(12)
            error = np.sqrt(np.mean(np.log(again / values) ** 2))
            assert error < 1.35 * even, octaves

    @every_root
    @pytest.mark.parametrize("octaves", [0.1, 0.5, 1, 2, 3, 4, 6, 12, 16, 20])
    def test_what_is_largest_fits(self, code, octaves):
        """The lowest line is a multiple of a unit and lies below the smallest; the highest must not for that."""
        values = spread_values(code, octaves, rows=2000)
        _, scale, roots, _ = written(code, values)
        places = place_of(code, values, roots, scale)
        assert places.max() < 2**code.bits - 1 + 0.01
        assert places.min() > 1 - 0.01

    def test_range_of_roots_of_8_bits(self):
        """The widest grid spans 190 octaves, which is most of float32."""
        values = np.geomspace(1e-28, 1e28, LENGTH, dtype=np.float32)[None]
        again = written(Root(8), values)[-1]
        np.testing.assert_allclose(np.log2(again), np.log2(values), atol=0.8)

    def test_roots_of_4_bits_raise_what_is_24_octaves_down(self):
        values = np.full((1, LENGTH), 1e-12, np.float32)
        values[0, 0] = 1.0
        _, scale, _, again = written(Root(4), values)
        # The nearest line of the widest grid is no further than half a spacing.
        assert abs(int(pattern(again)[0, 0]) - int(pattern(values)[0, 0])) <= 0.5 * lines_of(Root(4), scale)[1][0]
        again = again[0]
        assert (again[1:] >= 1e-12).all()
        # It is 40 octaves below the largest.
        assert 2.0**-26 < again[1] < 2.0**-22

    @every_quotient
    def test_of_the_update_does_not_depend_on_the_roots(self, code):
        shares = np.random.default_rng(0).normal(size=(64, LENGTH)).astype(np.float32)
        roots = np.sqrt(spread_values(Root(8), 40))
        again = written(code, shares * roots, roots)[-1] / roots
        error = np.sqrt(np.mean((again - shares) ** 2) / np.mean(shares**2))
        assert error < {8: 0.006, 4: 0.1}[code.bits]

    @every_quotient
    @pytest.mark.parametrize("octaves", [0.1, 8, 40])
    def test_scale_is_the_largest(self, code, octaves):
        roots = np.sqrt(spread_values(Root(8), octaves, seed=1, rows=500))
        values = spread_values(code, octaves, rows=500)
        over = written(code, values, roots)[1].astype(np.float64) / np.abs(values / roots).max(-1)
        assert over.min() >= 1
        assert over.max() <= 1 + 2**-7


class TestZero:
    @every_code
    def test_is_exactly_zero(self, code):
        values = spread_values(code, 8)
        values[:, ::3] = 0
        for threshold in (np.uint32(0), LEAST, NEAREST, LAST, np.uint32(2**32 - 1)):
            again = written(code, values, threshold=threshold)[-1]
            np.testing.assert_array_equal(again[:, ::3], 0)

    @every_code
    def test_block_of_zeros(self, code):
        values = np.zeros((2, LENGTH), np.float32)
        for roots in (None, values + 1e-19, values + 2):
            for threshold in (np.uint32(0), NEAREST, LAST):
                again = written(code, values, roots, threshold)[-1]
                np.testing.assert_array_equal(again, 0)

    @every_root
    @settings(max_examples=60, deadline=None)
    @given(
        exponents=st.lists(st.floats(-37.9, 38), min_size=LENGTH, max_size=LENGTH),
        zeros=st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
        threshold=st.sampled_from([0, 1, int(LEAST), int(NEAREST), int(LAST), 2**32 - 1]),
    )
    def test_and_only_zero(self, code, exponents, zeros, threshold):
        values = np.where(zeros, 0, 10.0 ** np.array(exponents)).astype(np.float32)[None]
        _, scale, _, again = written(code, values, threshold=threshold)
        np.testing.assert_array_equal(again == 0, values == 0)
        assert np.isfinite(again).all()
        # What is raised is too large, never too small: by more than a line.
        _, spacing = lines_of(code, scale)
        patterns, others = (pattern(each) for each in (again, values))
        assert (patterns - others)[values > 0].min(initial=0) >= -1.001 * spacing

    @every_root
    def test_and_only_zero_at_either_end(self, code):
        for exponents in ((-37.9, 38), (-37.9, -37.8), (37.9, 38), (-37.9, -20), (-37.9, -37.9)):
            values = np.geomspace(*(10.0**each for each in exponents), LENGTH).astype(np.float32)[None]
            for threshold in (np.uint32(0), NEAREST, np.uint32(2**32 - 1)):
                again = written(code, values, threshold=threshold)[-1]
                assert (again > 0).all()
                assert np.isfinite(again).all()

    @every_code
    @pytest.mark.parametrize("size", [1e-30, 1e30])
    def test_small_and_large_moments_survive(self, code, size):
        values = np.abs(spread_values(code, 2))
        values = (values / values.max(-1, keepdims=True) * np.float32(size)).astype(np.float32)
        again = written(code, values)[-1]
        np.testing.assert_allclose(again / np.float32(size), values / np.float32(size), rtol=0.02, atol=0.11)


class TestPoison:
    @every_code
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.nan])
    def test_stays_in_its_block(self, code, bad):
        values = spread_values(code, 4, rows=3)
        right = written(code, values)[-1]
        values[1, 5] = bad
        for threshold in (np.uint32(0), NEAREST, LAST):
            again = written(code, values, threshold=threshold)[-1]
            assert np.isnan(again[1]).all()
            assert np.isfinite(again[[0, 2]]).all()
        np.testing.assert_array_equal(written(code, values)[-1][[0, 2]], right[[0, 2]])

    @every_code
    def test_stays_poison(self, code):
        values = np.full((1, LENGTH), np.nan, np.float32)
        assert np.isnan(written(code, written(code, values)[-1])[-1]).all()

    @every_quotient
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("root", [1e-19, 1e-10, 1.0, 1e10, 1e19])
    def test_of_a_quotient_is_seen_whatever_the_root(self, code, bad, root):
        values = np.full((1, LENGTH), root, np.float32)
        values[0, 3] = bad
        assert np.isnan(written(code, values, np.full_like(values, root))[-1]).all()

    def test_infinite_first_moments(self):
        values = np.array([[-np.inf] + [1.0] * (LENGTH - 1)], np.float32)
        for code in QUOTIENTS:
            assert np.isnan(written(code, values)[-1]).all()


# ------------------------------------------------------------------------------------------------------------- rounding


def leading(axes):
    """Phases of the positions along each axis, such that they broadcast."""
    return [each.reshape(-1, *[1] * (len(axes) - 1 - axis)) for axis, each in enumerate(axes)]


def threshold_of(rounding, step, places):
    """The thresholds of a rounding of any name, which is an argument of what is compiled."""
    shape = jnp.broadcast_shapes(*map(jnp.shape, places))

    def of(thresholds):
        return lambda step: jnp.broadcast_to(thresholds(step, places), shape)

    return jax.lax.switch(rounding, [of(each) for each in ROUNDINGS.values()], step)


NUMBERS = {name: number for number, name in enumerate(ROUNDINGS)}


@functools.partial(jax.jit, compiler_options=AS_USERS_DO, static_argnums=(0, 2))
def visited(code, rounding, steps, values, scale):
    """The mean of the codes that numbers which stay are given over the steps."""
    places, roots = leading(phases(values.shape, 0)), jnp.ones_like(values)

    def step(total, step):
        codes = code.encode(values, roots, code.ruler(spread(code, scale)), threshold_of(rounding, step, places))
        if isinstance(code, Quotient):
            sign = 2 ** (code.bits - 1)
            codes = jnp.where(codes & sign, -1, 1) * (codes % sign)
        return total + codes.astype(jnp.float32), None

    return jax.lax.scan(step, jnp.zeros_like(values), jnp.arange(steps))[0] / steps


@functools.partial(jax.jit, compiler_options=AS_USERS_DO, static_argnums=(0, 2))
def slow_average(code, rounding, steps, squares):
    """Log errors of an average with a decay of 0.999 that is stored in codes, after the steps."""
    places, roots = leading(phases(squares.shape, 0)), jnp.ones_like(squares)

    def step(carry, step):
        exact, kept, scale = carry
        noise = mixed(step.astype(jnp.uint32) + sum(leading(phases(squares.shape, 7)), jnp.uint32(0)))
        grad = squares * (-jnp.log((noise >> 8).astype(jnp.float32) * 2**-24 + 2**-25))
        exact, kept = (0.999 * each + 0.001 * grad for each in (exact, kept))
        scale = scale_of(code, kept, roots, scale)
        grid = spread(code, scale)
        codes = code.encode(kept, roots, code.ruler(grid), threshold_of(rounding, step, places))
        kept = code.decode(codes, roots, grid)
        return (exact, kept, scale), None

    start = *(jnp.zeros_like(squares),) * 2, jnp.zeros(len(squares), code.scale_dtype)
    (exact, kept, _), _ = jax.lax.scan(step, start, jnp.arange(1, steps + 1))
    return jnp.log(kept / exact)


@functools.partial(jax.jit, compiler_options=AS_USERS_DO, static_argnums=(0, 2))
def slow_decay(code, rounding, steps, values):
    places, roots = leading(phases(values.shape, 0)), jnp.ones_like(values)

    def step(values, step):
        values = 0.9999 * values
        grid = spread(code, scale_of(code, values, roots))
        codes = code.encode(values, roots, code.ruler(grid), threshold_of(rounding, step, places))
        return code.decode(codes, roots, grid), None

    return jax.lax.scan(step, values, jnp.arange(steps))[0]


@functools.partial(jax.jit, compiler_options=AS_USERS_DO, static_argnums=(0, 2, 3))
def decaying(code, rounding, decay, steps, values):
    """Numbers that decay, in codes whose spacing is kept as that of a state is."""
    places, roots = leading(phases(values.shape, 0)), jnp.ones_like(values)

    def step(carry, step):
        values, scale = decay * carry[0], carry[1]
        scale = scale_of(code, values, roots, scale)
        grid = spread(code, scale)
        codes = code.encode(values, roots, code.ruler(grid), threshold_of(rounding, step, places))
        return (code.decode(codes, roots, grid), scale), None

    return jax.lax.scan(step, (values, jnp.zeros(len(values), code.scale_dtype)), jnp.arange(steps))[0][0]


@functools.partial(jax.jit, compiler_options=AS_USERS_DO, static_argnums=0)
def shrinking(choices):
    """The projection of Adam's update on the exact one and the mean log error of ν, at two steps, for each storage."""
    shape, key = (64, 64), jax.random.key(0)
    made = [jaxopt_adam.adam(None, b2=0.999, moments=each) for each in ("float32", *choices)]
    sizes = 10.0 ** jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)

    def step(states, step):
        grads = sizes * jnp.exp(-step / 1500) * jax.random.normal(jax.random.fold_in(key, step), shape)
        (right, *updates), states = zip(
            *(each.update(grads, state) for each, state in zip(made, states, strict=True)), strict=True
        )
        return states, jnp.stack([jnp.vdot(update, right) for update in updates]) / jnp.vdot(right, right)

    def stretch(states, steps):
        states, projections = jax.lax.scan(step, states, steps)
        like = jax.ShapeDtypeStruct(shape, jnp.float32)
        exact, *stored = (
            jaxopt_adam.load_moments(state, each, like).nu for each, state in zip(made, states, strict=True)
        )
        errors = jnp.stack([jnp.log(nu / exact).mean() for nu in stored])
        return states, jnp.stack([projections[-100:].mean(0), errors], 1)

    states = tuple(each.init(jnp.zeros(shape)) for each in made)
    states, early = stretch(states, jnp.arange(500))
    return early, stretch(states, jnp.arange(500, 4000))[1]


class TestRounding:
    @every_code
    def test_is_unbiased_over_time(self, code):
        steps = 1024
        values = spread_values(code, 4)
        _, scale, roots, _ = written(code, values)
        places = place_of(code, values, roots, scale)
        apart = {
            name: np.abs(visited(code, rounding, steps, values, scale) - places).max()
            for name, rounding in NUMBERS.items()
        }
        # Evenly spread numbers are off by a few of the N there are; random ones by 5 standard deviations at most.
        assert apart["dither"] < 4 / steps
        assert apart["stochastic"] < 2.5 / math.sqrt(steps)
        assert apart["nearest"] > 0.4

    def test_slow_averages_do_not_drift(self):
        squares = 2.0 ** np.random.default_rng(0).uniform(-3, 3, (256, 32)).astype(np.float32)
        for name, rounding in NUMBERS.items():
            errors = np.asarray(slow_average(Root(8), rounding, 1500, squares))
            assert np.isfinite(errors).all(), name
            if name == "nearest":
                assert abs(errors.mean()) > 0.02
            else:
                assert abs(errors.mean()) < 0.005, name
                assert np.sqrt(np.mean(errors**2)) < 0.09, name

    @every_quotient
    def test_slow_first_moments_do_not_grow(self, code):
        """Of decay 0.9999 and without gradients: neither by the rounding of the scale nor by that of the codes."""
        start = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
        exact = 0.9999**200
        for name, rounding in NUMBERS.items():
            sizes = np.abs(slow_decay(code, rounding, 200, start)).sum(-1) / np.abs(start).sum(-1)
            if name == "nearest":  # what is lost is the decay
                assert (np.abs(sizes - 1) < 0.1).all()
            else:
                assert abs(sizes.mean() - exact) < {8: 0.005, 4: 0.12}[code.bits], name

    def test_slow_averages_in_4_bits(self):
        squares = 2.0 ** np.random.default_rng(0).uniform(-3, 3, (256, 16)).astype(np.float32)
        errors = np.asarray(slow_average(Root(4), NUMBERS["dither"], 1500, squares))
        assert abs(errors.mean()) < 0.2

    @pytest.mark.parametrize(("code", "spans"), [(Root(8), [20]), (Root(4), [8, 10, 14])])
    def test_roots_that_only_decay_fall_as_fast_as_they_should(self, code, spans):
        """Over six octaves of √ν, in blocks whose ν spans so many. With lines on powers of two they fall faster."""
        decay, steps = 0.999, 8000
        for octaves, name in itertools.product(spans, ["dither", "stochastic"]):
            values = 2.0 ** np.random.default_rng(0).uniform(0, octaves, (64, 32)).astype(np.float32)
            after = np.asarray(decaying(code, NUMBERS[name], decay, steps, values), np.float64)
            fallen = np.log(after / values).mean() / (steps * math.log(decay))
            assert abs(fallen - 1) < {8: 0.01, 4: 0.045}[code.bits], (octaves, name)

    def test_projections_stay_while_gradients_shrink(self):
        """By e in 1.5 of the times that ν remembers: by the end the old gradients are nearly all of ν."""
        choices = "int8", "int4"
        for moments, early, late in zip(choices, *jax.device_get(shrinking(choices)), strict=True):
            assert early[0] == pytest.approx(1, abs={"int8": 0.003, "int4": 0.05}[moments])
            assert np.abs(late - early)[0] < {"int8": 0.005, "int4": 0.02}[moments]
            assert np.abs(late - early)[1] < {"int8": 0.01, "int4": 0.03}[moments]

    def test_thresholds_are_the_same_in_every_version(self):
        """Those of MurmurHash3 (Appleby, 2011), by its published constants, and of the golden ratio."""

        def finalized(number):
            number = (number ^ number >> 16) * 0x85EBCA6B % 2**32
            number = (number ^ number >> 13) * 0xC2B2AE35 % 2**32
            return number ^ number >> 16

        numbers = [0, 1, 2, 12345, 2**31, 2**32 - 1]
        np.testing.assert_array_equal(mixed(jnp.asarray(numbers, jnp.uint32)), list(map(finalized, numbers)))
        golden = round(2**32 * (math.sqrt(5) - 1) / 2)
        for salt, step in itertools.product((0, 1, 3), (1, 7, 2**31 - 1)):
            starts = [0x9E3779B1 * (16 * salt + axis + 1) % 2**32 for axis in (0, 1)]
            phase = finalized((5 + starts[0]) % 2**32) + finalized((3 + starts[1]) % 2**32)
            places = leading(phases((6, 4), salt))
            dither = int(ROUNDINGS["dither"](jnp.int32(step), places)[5, 3])
            assert dither == (phase + step * golden) % 2**32
            stochastic = int(ROUNDINGS["stochastic"](jnp.int32(step), places)[5, 3])
            assert stochastic == finalized((phase + finalized(step * golden % 2**32)) % 2**32)

    @pytest.mark.parametrize("rounding", ["dither", "stochastic"])
    def test_thresholds_are_even(self, rounding):
        places = leading(phases((64, 64), 3))
        for step in (1, 1000, 2**31 - 1):
            shares = np.asarray(ROUNDINGS[rounding](jnp.int32(step), places)) / 2**32
            counts = np.histogram(shares, 16, (0, 1))[0]
            # 256 expected in each bin; chi² of 15 degrees beyond 60 has a chance of 1e-6.
            assert np.sum((counts - 256) ** 2 / 256) < 60

    def test_phases_are_the_same_for_any_slice(self):
        whole = phases((64, 96), 1)
        for start, stop in [(0, 48), (16, 32), (95, 96)]:
            positions = np.arange(start, stop, dtype=np.uint32)
            np.testing.assert_array_equal(whole[1][start:stop], mixed(positions + salted(1, 1)))
        np.testing.assert_array_equal(phases((64, 8), 1)[0], whole[0])
        np.testing.assert_array_equal(phases((2, 48), 1)[1], whole[1][:48])

    def test_phases_of_moments_and_axes_have_nothing_in_common(self):
        drawn = [each for salt in range(4) for each in phases((512, 512), salt)]
        numbers = np.stack(drawn).astype(np.float64)
        related = np.corrcoef(numbers) - np.eye(len(drawn))
        assert np.abs(related).max() < 0.22  # five standard deviations of 1/√512
        assert len({tuple(np.asarray(each[:8])) for each in drawn}) == len(drawn)

    def test_hash_is_murmurs(self):
        """MurmurHash3's fmix32, as its reference implementation has it."""
        for number in (0, 1, 2, 12345, 2**32 - 1):
            expected = number ^ number >> 16
            expected = expected * 0x85EBCA6B % 2**32
            expected ^= expected >> 13
            expected = expected * 0xC2B2AE35 % 2**32
            expected ^= expected >> 16
            assert int(mixed(jnp.uint32(number))) == expected


# -------------------------------------------------------------------------------------------------------------- layouts


class TestBlockLength:
    @settings(max_examples=200, deadline=None)
    @given(length=st.integers(1, 5000), longest=st.sampled_from([16, 32, 64, 128, 256]), is_limit=st.booleans())
    def test_properties(self, length, longest, is_limit):
        block = block_length(length, longest, is_limit=is_limit)
        for_eight = length % (8 * block) == 0
        assert block % 2 == 0 or for_eight
        assert 2 <= block <= (longest if is_limit else 2 * longest)
        assert block >= 16 or block >= length or (block >= 12 and for_eight)
        divisors = [each for each in range(16, longest + 1, 2) if length % each == 0]
        sizes = range(12, (longest if is_limit else 2 * longest) + 1)
        assert for_eight or not any(length % (8 * each) == 0 for each in sizes)
        if [each for each in divisors if each >= min(longest, 32)]:
            assert length % block == 0
        assert block <= length + 1

    @pytest.mark.parametrize(
        ("length", "longest", "expected"),
        [
            *((4096, 128, 128), (512, 128, 64), (512, 64, 64), (128, 128, 16), (64, 32, 32)),
            *((200, 32, 25), (136, 32, 17), (96, 32, 12), (67, 32, 32), (3, 32, 4)),
        ],
    )
    def test_examples(self, length, longest, expected):
        assert block_length(length, longest) == expected


class TestLayout:
    @pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 70), (5, 33), (2, 200), (1, 1)])
    @pytest.mark.parametrize("lanes", [1, 2])
    def test_flat_undoes_as_blocks(self, shape, lanes):
        layout = Layout(shape, block_length(shape[-1], 32), lanes)
        array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        seen = np.asarray(jax.jit(layout.as_blocks)(array))
        assert seen.shape == (*layout.blocks, lanes, layout.slots // lanes)
        np.testing.assert_array_equal(jax.jit(layout.flat)(seen), array)
        assert layout.fits == (shape[-1] % layout.slots == 0)
        # What fills it up is zero, and is last in the array, or in each block of odd length.
        assert np.abs(seen).sum() == pytest.approx(np.abs(array).sum(), rel=1e-5)
        blocks = seen.reshape(*layout.blocks, -1)[..., : layout.length].reshape(*shape[:-1], -1)
        np.testing.assert_array_equal(blocks[..., : shape[-1]], array)

    def test_shapes_of_codes(self):
        layout = Layout((3, 70), 32, 2)
        assert layout.blocks == (3, 3)
        assert layout.codes_shape(two_a_byte=False) == (3, 70)
        assert layout.codes_shape(two_a_byte=True) == (3, 48)


class TestPacking:
    @staticmethod
    def words(bits, over):
        codes = [None if each is None else Root(each) for each in bits]
        members = (Member(code, np.dtype(np.float32), "dither", own) for code, own in zip(codes, over, strict=True))
        return Packing(tuple(members), (64, 64), 32).words

    def test_a_moment_is_packed_with_the_one_it_is_relative_to_if_that_has_as_many_bits(self):
        assert self.words([8, 8], [1, None]) == [Word((1, 0), 8)]
        assert self.words([4, 4], [1, None]) == [Word((1, 0), 4)]
        assert self.words([8, 4], [1, None]) == [Word((0,), 8), Word((1,), 4)]
        assert self.words([8, None], [1, None]) == [Word((0,), 8), Word((1,), None)]
        assert self.words([8, 8], [None, None]) == [Word((0,), 8), Word((1,), 8)]

    def test_one_guest_for_each_host(self):
        assert self.words([4, 4, 4, 4], [3, 3, 3, None]) == [Word((1,), 4), Word((2,), 4), Word((3, 0), 4)]

    @pytest.mark.parametrize("word", [Word((0,), 8), Word((1, 0), 8), Word((0,), 4), Word((1, 0), 4)])
    def test_parted_undoes_joined(self, word):
        codes = np.random.default_rng(0).integers(2**word.bits, size=(2 if word.two_a_byte else len(word.members), 100))
        numbers = word.joined([jnp.asarray(each, jnp.int32) << word.bits * place for place, each in enumerate(codes)])
        assert numbers.dtype == (np.uint16 if word.bits * len(codes) == 16 else np.uint8)
        for place, each in enumerate(codes):
            np.testing.assert_array_equal(word.parted(numbers, place), each)
        assert word.two_a_byte == (word.members == (0,) and word.bits == 4)


# --------------------------------------------------------------------------------------------------------------- choice


class TestBytes:
    @pytest.mark.parametrize(
        ("shape", "moments", "most"),
        [
            ((4096, 4096), "int8", 2.04),
            ((4096, 4096), "int4", 1.07),
            ((1024, 1024), "int8", 2.04),
            ((1024, 1024), "int4", 1.07),
            ((3, 3, 64, 64), "int8", 2.2),
            ((3, 3, 64, 64), "int4", 1.3),
            ((50257, 768), "int8", 2.045),
            ((4096, 4096), "bfloat16", 4.001),
            ((4096, 4096), "float32", 8.001),
        ],
    )
    def test_of_a_parameter(self, shape, moments, most):
        param = jax.ShapeDtypeStruct(shape, jnp.float32)
        state = jax.eval_shape(jaxopt_adam.adamw(1e-3, moments=moments).init, param)
        size = sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(state))
        least = {"int8": 2, "int4": 1, "bfloat16": 4, "float32": 8}[moments]
        assert least <= size / param.size <= most


class TestChoice:
    def test_names(self):
        assert NAMED["float32"] == Dense()
        assert NAMED["bfloat16"] == Dense("bfloat16")
        assert NAMED["int8"] == Blockwise(8)
        assert NAMED["int4"] == Blockwise(4)
        for name, storage in NAMED.items():
            assert valid_storage("moments", name) == name
            assert storages_of(name, ["mu"], ()) == [storage]
            assert storages_of(storage, ["mu"], ()) == [storage]

    def test_by_moment(self):
        chosen = valid_storage("moments", {"mu": "bfloat16", "nu": Blockwise(8, min_size=1)})
        expected = [Dense("bfloat16"), Blockwise(8, min_size=1), Dense()]
        assert storages_of(chosen, ["mu", "nu", "other"], ()) == expected

    def test_by_path(self):
        def by_path(path):
            return {"mu": "int4"} if path == ("a",) else "int8"

        assert valid_storage("moments", by_path) is by_path
        assert storages_of(by_path, ["mu"], ("a",)) == [Blockwise(4)]
        assert storages_of(by_path, ["nu"], ("a",)) == [Dense()]
        assert storages_of(by_path, ["mu"], ("b",)) == [Blockwise(8)]

    @pytest.mark.parametrize(
        ("value", "error", "named"),
        [
            ("int7", ValueError, r"moments must be one of 'float32'.*'int4'.*got 'int7'"),
            (8, TypeError, "moments must be .*got 8"),
            (None, TypeError, "moments must be .*got None"),
            ({"mu": "fp8"}, ValueError, r"moments\['mu'\] must be .*got 'fp8'"),
            ({"mu": 4}, TypeError, r"moments\['mu'\] must be .*got 4"),
            ({"mu": {"nu": "int8"}}, TypeError, r"moments\['mu'\] must be"),
        ],
    )
    def test_wrong_ones(self, value, error, named):
        with pytest.raises(error, match=named):
            valid_storage("moments", value)
        with pytest.raises(error, match=f"adam: {named}"):
            jaxopt_adam.adam(0.1, moments=value)

    @pytest.mark.parametrize(
        ("given", "error"), [("int7", ValueError), (None, TypeError), (lambda path: "int8", TypeError)]
    )
    def test_functions_that_give_wrong_ones(self, given, error):
        with pytest.raises(error, match=r"moments.* must "):
            storages_of(lambda path: given, ["mu"], ())

    @pytest.mark.parametrize(
        "arguments",
        [
            {"bits": 5},
            {"block_size": 15},
            {"block_size": 17},
            {"block_size": 32.0},
            {"rounding": "up"},
            {"min_size": 0},
            {"min_size": 1.5},
            {"implementation": "cuda"},
        ],
    )
    def test_wrong_blockwise(self, arguments):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f"Blockwise: {name} must be .*got {value!r}"):
            Blockwise(**arguments)

    @pytest.mark.parametrize("dtype", ["int32", "complex64", bool])
    def test_wrong_dense(self, dtype):
        with pytest.raises(ValueError, match="Dense: dtype must be a floating-point dtype or None, got"):
            Dense(dtype)

    def test_suits(self):
        storage = Blockwise(8)
        assert storage.suits((64, 64), np.dtype("float32"))
        assert not storage.suits((64, 63), np.dtype("float32"))
        assert not storage.suits((64, 64), np.dtype("float64"))
        assert not storage.suits((64, 64), np.dtype("complex64"))
        assert not storage.suits((0, 64), np.dtype("float32"))
        assert not dataclasses.replace(storage, min_size=1).suits((), np.dtype("float32"))

    @pytest.mark.parametrize("bits", [8, 4])
    @pytest.mark.parametrize("nonnegative", [True, False])
    def test_start_is_that_number_everywhere(self, bits, nonnegative):
        storage, initial = Blockwise(bits), [0.0, 1e-6, 0.1, 3.0]
        starts = jax.jit(lambda: [storage.start(each, nonnegative=nonnegative) for each in initial])()
        numbers, scales = (np.stack(each) for each in zip(*starts, strict=True))
        numbers = np.repeat(numbers[:, None], LENGTH, 1)
        code = storage.code(nonnegative=nonnegative)
        again = in_rows(read, code, numbers, np.ones(numbers.shape, np.float32), scales)
        # Half a spacing of the narrowest grid.
        np.testing.assert_allclose(again, np.repeat(initial, LENGTH).reshape(4, -1), rtol={8: 0.01, 4: 0.016}[bits])

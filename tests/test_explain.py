"""The interactive article without a browser: what it computes, what it packs, and the page that comes of it."""

import functools
import gzip
import importlib.resources
import itertools
import json
import math
import re
import types
from base64 import b64decode
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_adam import adam, descend, rmsprop, sgd
from jaxopt_adam.lab.cli import main
from jaxopt_adam.lab.explain import SECTIONS, encoding, exits, expected, hero, needed
from jaxopt_adam.lab.explain import rules as explain_rules
from jaxopt_adam.lab.explain.averages import DECAYS, MOMENTS
from jaxopt_adam.lab.explain.descent import RATES, VALLEY
from jaxopt_adam.lab.explain.descent import STEPS as DESCENT_STEPS
from jaxopt_adam.lab.explain.descent import _sentence as descent_sentence
from jaxopt_adam.lab.explain.digits import HIGH, SETTINGS
from jaxopt_adam.lab.explain.digits import RULES as RACERS
from jaxopt_adam.lab.explain.drawing import held, number
from jaxopt_adam.lab.explain.page import build
from jaxopt_adam.lab.explain.starts import LOWEST, STARTS
from jaxopt_adam.lab.explain.surfaces import BOX, SURFACES
from jaxopt_adam.lab.explain.usage import CODE
from jaxopt_adam.lab.explain.walks import RULES, STEPS, inside, one, settled, walk, walk_grid
from jaxopt_adam.lab.landscape import STEEPNESS, Landscape

pytestmark = pytest.mark.lab

TOLERANCE = 1e-5  # of a plot's range: a hundredth of a pixel


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def unpacked(table: list[dict], content: bytes) -> dict:
    """A section's numbers as page.js unpacks them: every field with all its rows."""

    def words(at: int, count: int) -> np.ndarray:
        return np.ascontiguousarray(np.frombuffer(content, np.uint8, 4 * count, at).reshape(4, count).T)

    fields = {}
    for entry in table:
        if "texts" in entry:
            fields[entry["name"]] = entry["axes"], np.array(entry["texts"], object)
            continue
        count = math.prod(entry["shape"])
        bits = words(entry["at"], count)
        if entry.get("kind") == "waves":
            folded = bits.view("<u4").astype(np.int64).reshape(-1, entry["shape"][-1])
            second = np.where(folded & 1, -(folded + 1) // 2, folded // 2)
            frames = np.frombuffer(content, "<f8", 2 * len(folded), entry["at"] + entry["frames"]).reshape(-1, 2)
            values = frames[:, :1] + np.cumsum(np.cumsum(second, axis=1), axis=1) * frames[:, 1:]
            values = 10**values if entry.get("log") else values
        else:
            values = bits.view("<f4").astype(float)
        fields[entry["name"]] = entry["axes"], values.reshape(entry["shape"])
    return fields


@functools.cache
def fields_of(name: str) -> dict:
    """The fields of a section as the page has them."""
    return unpacked(*encoding.packed(SECTIONS[name].fields()))


def shown(section, fields: dict, setting: dict) -> dict:
    """The numbers that the page's plots show at a setting."""
    controls = {control.axis: list(control.values) for control in section.controls} | {"start": list(section.starts)}

    def row(name: str) -> np.ndarray:
        axes, values = fields[name]
        return values[tuple(controls[axis].index(setting[axis]) for axis in axes)]

    return {
        plot.id: {
            trace.key: {
                axis: row(name)[: None if trace.length is None else int(row(trace.length).item())]
                for axis, name in (("x", trace.x), ("y", trace.y), ("z", trace.z))
                if name
            }
            for trace in plot.traces
        }
        for plot in section.plots
    }


@pytest.mark.parametrize("name", [name for name, section in SECTIONS.items() if section.starts])
def test_what_the_page_packs_for_a_moved_start_is_what_one_run_gives(name):
    section = SECTIONS[name]
    packed = unpacked(*encoding.packed(section.fields()))
    # While the start is moved, these take the place of the fields of the same names.
    moved = {each.removeprefix("moved "): packed[each] for each in packed if each.startswith("moved ")}
    assert set(moved) == {each for each in packed if f"moved {each}" in packed}
    assert not any("start" in axes for each, (axes, _) in packed.items() if not each.startswith("moved "))
    rates = next(control.values for control in section.controls if control.axis == "learning_rate")
    generator = np.random.default_rng(1)
    controls = {control.axis: list(control.values) for control in section.controls} | {"start": section.starts}
    for start in section.starts[:: len(section.starts) // 6]:
        chosen = {axis: values[generator.integers(len(values))] for axis, values in controls.items()}
        setting = {axis: chosen[axis] for axis in chosen if axis != "start"} | dict(section.usual)
        setting |= {"learning_rate": rates[generator.integers(len(rates))]}
        where = setting | {"start": start}
        page = shown(section, packed | moved, where)
        for plot, traces in expected(name, start=start, **setting).items():
            for key, arrays in traces.items():
                for axis, array in arrays.items():
                    drawn, height = page[plot][key][axis], "value" in axis_field(section, plot, key, axis)
                    if height:  # a logarithmic axis, for which the page rounds the logarithm
                        drawn, array = (np.log10(np.maximum(each, LOWEST)) for each in (drawn, array))
                    assert drawn.shape == array.shape, (where, plot, key, axis)
                    if array.size:
                        reach = np.nanmax(array) - np.nanmin(array) or 1
                        assert np.nanmax(np.abs(drawn - array)) <= 1e-3 * reach, (where, plot, key, axis)


def axis_field(section, plot: str, key: str, axis: str) -> str:
    """The name of the field that a trace draws along an axis."""
    traces = next(each.traces for each in section.plots if each.id == plot)
    return getattr(next(trace for trace in traces if trace.key == key), axis)


def test_starts_are_inside_of_the_picture_and_no_minimum():
    for x, y in STARTS:
        assert BOX[0] < x < BOX[1]
        assert BOX[2] < y < BOX[3]
        assert (x, y) not in {minimum for surface in SURFACES.values() for minimum in surface.minima}
    with pytest.raises(ValueError, match=r"adam: start must be one of .*, got \(0.0, 0.0\)"):
        expected("adam", start=(0.0, 0.0))
    with pytest.raises(ValueError, match="race: start must be one of"):
        expected("race", start=STARTS[0])


@pytest.mark.parametrize("name", hero.SHOWN)
def test_the_picture_at_the_top_has_the_rate_that_ends_lowest(name):
    rule = RULES[name]
    ends = {}
    for rate in rule.axes["learning_rate"]:
        way = one(rule, "valley", {"learning_rate": rate} | dict(rule.usual), bias_correction=rule.corrected)
        if inside(way["x"]) > STEPS:
            ends[rate] = way["value"][-1]
    assert hero.rate(name) == min(ends, key=ends.__getitem__)


def settings(section, count: int) -> list[dict]:
    """The defaults, and some more: the longest control's values in turn, the others' at random."""
    generator = np.random.default_rng(0)
    longest = max(len(control.values) for control in section.controls)

    def place(control, turn: int) -> int:
        return (turn if len(control.values) == longest else int(generator.integers(99))) % len(control.values)

    return [
        section.setting(),
        *(
            {control.axis: control.values[place(control, turn)] for control in section.controls}
            for turn in range(count)
        ),
    ]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gradient-descent", len(RATES)),
        ("batches", 3),
        ("averages", 15),
        ("momentum", 12),
        ("rmsprop", 12),
        ("adam", 12),
        ("race", 2),
    ],
)
def test_what_the_page_packs_is_what_one_run_gives(name, count):
    section = SECTIONS[name]
    fields = fields_of(name)
    compared = 0
    for setting in settings(section, count):
        page = shown(section, fields, setting)
        for plot, traces in expected(name, **setting).items():
            for key, arrays in traces.items():
                for axis, array in arrays.items():
                    drawn = page[plot][key][axis]
                    assert drawn.shape == array.shape, (setting, plot, key, axis)
                    if array.size and np.isfinite(array).any():
                        # A row of one value has no range of its own.
                        reach = np.nanmax(array) - np.nanmin(array) or np.abs(array).max()
                        np.testing.assert_allclose(
                            drawn,
                            array,
                            rtol=0,
                            atol=TOLERANCE * reach + 1e-30,
                            err_msg=f"{setting} {plot} {key} {axis}",
                        )
                        compared += 1
    assert compared > count


@pytest.mark.parametrize("name", SECTIONS)
def test_no_plot_is_empty_in_any_setting(name):
    fields = fields_of(name)
    for plot in SECTIONS[name].plots:
        axes = {axis: plot.layout.get(f"{axis}axis", {}) for axis in "xy"}
        for trace, moved in itertools.product(plot.traces, ("", "moved ")):
            if trace.key.startswith("stop"):
                continue  # there is none where nothing stops

            each = {name: fields.get(moved + name, fields[name]) for name in (trace.x, trace.y, trace.length) if name}
            every = max((of for of, _ in each.values()), key=len)

            def values(name, each=each, every=every):
                """The rows of a field, with an axis for each control that any of the fields depends on."""
                of, found = each[name]
                return found.reshape(*(found.shape[of.index(axis)] if axis in of else 1 for axis in every), -1)

            x, y = values(trace.x), values(trace.y)
            length = values(trace.length) if trace.length else np.array([x.shape[-1]])
            style = trace.style
            alone = style.get("type") == "bar" or "markers" in style.get("mode", "")
            assert length.min() >= (1 if alone else 2), (plot.id, trace.key)
            # Something of each is within the axes, and no path is a dot.
            if style.get("type") in ("contour", "mesh3d"):
                continue
            for axis, found in zip("xy", (x, y), strict=True):
                part = np.arange(found.shape[-1]) < length
                found = np.where(part, found, np.nan)
                assert (np.isfinite(found) | ~part | (trace.key in ("wires", "net"))).all(), (plot.id, trace.key, axis)
                if isinstance(axes[axis].get("range"), list):  # the others follow the controls
                    low, high = axes[axis]["range"]
                    if axes[axis].get("type") == "log":
                        low, high = 10.0**low, 10.0**high
                    assert ((found >= low) & (found <= high)).any(-1).all(), (plot.id, trace.key, axis)
            if plot.id.endswith("-path") and trace.x == "path-x":
                part = np.arange(x.shape[-1]) < length
                far = np.hypot(*(np.ptp(np.where(part, found, found[..., :1]), axis=-1) for found in (x, y)))
                assert (far > 0.05).all(), (plot.id, trace.key)


@pytest.mark.parametrize(("name", "steps"), [("gradient-descent", DESCENT_STEPS), ("momentum", STEPS)])
def test_a_walk_that_leaves_is_drawn_to_the_border_and_says_so(name, steps):
    fields = fields_of(name)
    for moved in ("", "moved "):
        x, y, points, drawn = (fields[moved + each][1] for each in ("path-x", "path-y", "points", "drawn"))
        leaves = points <= steps
        assert leaves.any()
        np.testing.assert_array_equal(drawn, np.where(leaves, points + 1, steps + 1))
        last = (drawn - 1)[..., None].astype(int)
        left, right, bottom, top = BOX
        end = [np.take_along_axis(each, last, axis=-1)[..., 0] for each in (x, y)]
        distance = np.minimum(
            np.minimum(abs(end[0] - left), abs(end[0] - right)), np.minimum(abs(end[1] - bottom), abs(end[1] - top))
        )
        assert distance[leaves].max() < 0.02
        words = fields[moved + "exit"][1]
        assert ((words != "") == leaves).all()
        assert set(words[leaves]) == {f"Step {int(each)} leaves the picture." for each in points[leaves]}


def test_the_border_is_on_the_line_of_the_step():
    right, top = BOX[1], BOX[3]
    x = np.array(
        [[[0, 0], [2 * right, top], [9, 9]], [[0, 0], [1, 1], [1, 2 * top - 1]], [[0, 0], [1, 1], [2, 2]]], float
    )
    found = exits.to_border(x, inside(x))
    np.testing.assert_allclose(found[0, 1], [right, top / 2])
    np.testing.assert_allclose(found[1, 2], [1, top])
    np.testing.assert_array_equal(found[2], x[2])
    np.testing.assert_array_equal(exits.drawn(inside(x), 2), [2, 3, 3])


# The rules over the whole of their grids, against NumPy's float64 and the papers' formulas.


def gradient(surface: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if surface == "saddle":
        return x * (x**2 - 9) / 9, 8 * y
    if surface == "valley":
        return x, STEEPNESS * y
    c, s = math.cos(math.pi / 6), math.sin(math.pi / 6)
    along, across = c * x + s * y, STEEPNESS * (-s * x + c * y)
    return c * along - s * across, s * along + c * across


def numpy_ways(rule: str, surface: str, corrected: bool) -> dict[str, np.ndarray]:
    axes = RULES[rule].axes
    grids = dict(zip(axes, np.meshgrid(*axes.values(), indexing="ij"), strict=True))
    rate = grids["learning_rate"][..., None]
    b1, b2 = (grids.get(name, np.zeros_like(grids["learning_rate"]))[..., None] for name in ("b1", "b2"))
    x = np.broadcast_to(np.array(SURFACES[surface].start), (*rate.shape[:-1], 2))
    mu, nu = np.zeros_like(x), np.zeros_like(x)
    kept: dict[str, list[np.ndarray]] = {name: [] for name in ("x", "mu", "mu_hat", "nu", "nu_hat", "step")}
    kept["x"].append(x)
    for t in range(1, STEPS + 1):
        g = np.stack(gradient(surface, x[..., 0], x[..., 1]), axis=-1)
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        mu_hat, nu_hat = mu / (1 - b1**t), nu / (1 - b2**t)
        up = mu_hat if corrected else mu
        if "b1" not in axes:
            up = g
        down = np.sqrt(nu_hat if corrected else nu) + grids["eps"][..., None] if "b2" in axes else 1.0
        step = -rate * up / down
        x = x + step
        for name, value in (("mu", mu), ("mu_hat", mu_hat), ("nu", nu), ("nu_hat", nu_hat), ("step", step), ("x", x)):
            kept[name].append(value)
    return {name: np.stack(values, axis=-2) for name, values in kept.items()}


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize("rule", ["momentum", "rmsprop", "adam"])
def test_every_row_of_a_grid_is_the_papers_rule(rule, surface):
    for corrected in (False, True):
        with np.errstate(over="ignore", invalid="ignore"):
            truth = numpy_ways(rule, surface, corrected)
        found = walk_grid(RULES[rule], surface, bias_correction=corrected)
        points = inside(found["x"])
        np.testing.assert_array_equal(points, inside(truth["x"]))
        for name in set(found) - {"value"}:
            length = points if name == "x" else points - 1
            ours, theirs = (held(np.moveaxis(each[name], -1, 0), length) for each in (found, truth))
            reach = np.ptp(np.nan_to_num(theirs), axis=-1, keepdims=True)
            drawn = np.broadcast_to(length > 0, ours.shape[:-1])
            rounding = 1e-14 * np.abs(theirs).max(axis=-1, keepdims=True)  # all that there is to a row that is constant
            assert (np.abs(ours - theirs) <= TOLERANCE * reach + rounding)[drawn].all(), name


def test_momentum_as_an_average_is_sgd_with_a_smaller_rate():
    ours = descend(VALLEY.function, jnp.array(VALLEY.start), explain_rules.momentum(0.1, 0.9), 50)
    theirs = descend(VALLEY.function, jnp.array(VALLEY.start), sgd(0.01, momentum=0.9), 50)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=0, atol=1e-12)


def test_adam_without_momentum_is_rmsprop_corrected():
    ours = descend(VALLEY.function, jnp.array(VALLEY.start), adam(0.1, b1=0.0, b2=0.9), 50)
    rule = rmsprop(0.1, decay=0.9, eps_in_sqrt=False, bias_correction=True)
    theirs = descend(VALLEY.function, jnp.array(VALLEY.start), rule, 50)
    np.testing.assert_allclose(ours.x, theirs.x, rtol=0, atol=1e-9)


# Section 1.


def test_the_cross_is_where_two_values_first_differ_by_less_than_the_tolerance():
    for rate in RATES:
        plot = expected("gradient-descent", learning_rate=rate)["descent-value"]
        values = plot["value"]["y"]
        close = np.flatnonzero(np.abs(np.diff(values)) < 1e-4)
        if len(close):
            assert plot["stop"]["x"].tolist() == [close[0] + 1]
            np.testing.assert_allclose(plot["stop"]["y"], values[close[0] + 1], rtol=1e-12)
        else:
            assert plot["stop"]["x"].size == 0


def article_steps(rate, most=100_000):
    """The steps of gradient descent down the valley until two successive values differ by less than 0.0001."""
    x, y = np.array(VALLEY.start, float)
    value = (x**2 + STEEPNESS * y**2) / 2
    for step in range(1, most):
        x, y = x - rate * x, y - rate * STEEPNESS * y
        before, value = value, (x**2 + STEEPNESS * y**2) / 2
        if abs(value - before) < 1e-4 or value > 1e9:
            return step
    return most


def test_the_words_say_what_gradient_descent_does():
    sentences = dict(zip(RATES, SECTIONS["gradient-descent"].fields()["sentence"].values, strict=True))
    border = 2 / STEEPNESS
    for rate, sentence in sentences.items():
        steps = article_steps(rate)
        word = sentence.split(":")[0]
        if rate > border:
            assert word == "Diverges"
        elif rate == border:
            assert word == "Bounces"
        elif steps > 300:
            assert word == "Crawls"
            assert f"{steps:,}" in sentence
        else:
            assert word == ("Oscillates" if rate > border / 2 else "Converges")
            assert f" {steps} steps" in sentence
    assert {sentence.split(":")[0] for sentence in sentences.values()} == {
        "Diverges",
        "Bounces",
        "Crawls",
        "Oscillates",
    }


def test_the_words_from_every_start_say_whether_the_path_overshoots():
    sentences = SECTIONS["gradient-descent"].fields()["moved sentence"].values
    for row in sentences:
        for rate, sentence in zip(RATES, row, strict=True):
            # At 1 / STEEPNESS the first step ends on the floor, but for rounding.
            if rate < 2 / STEEPNESS and not sentence.startswith("Crawls: "):
                assert sentence.startswith("Oscillates: " if rate > 1 / STEEPNESS else "Converges: ")
    middle = sentences[next(index for index, start in enumerate(STARTS) if start[0] == 0)]
    assert middle[RATES.index(1 / STEEPNESS)].endswith("ends the walk after 2 steps at a height of 0.")


@pytest.mark.parametrize("second", [-4e-17, 0.0, 4e-17])
def test_a_rounding_error_is_no_wall(second):
    """Compilers round the first step to the floor in different ways."""
    rows = {"points": np.array([DESCENT_STEPS + 1]), "value": np.zeros((1, 2)), "path-y": np.array([[-2.0, second]])}
    end = types.SimpleNamespace(steps=[2], value=[1e-64])
    assert descent_sentence(0, rows, end).startswith("Converges: ")


def test_the_words_on_an_average_count_its_values():
    sentences = SECTIONS["averages"].fields()["sentence"].values
    words = lambda decay, corrected, moment: sentences[DECAYS.index(decay)][corrected][MOMENTS.index(moment)]
    assert words(0.7, 0, 50).endswith("The last 3 values have 66 % of this sum.")
    assert words(0.0, 0, 50).endswith("The last value has 100 % of this sum.")
    assert words(0.9, 1, 1).endswith("contains 1 value. Its weight is 1, because it was divided by 1 − βᵗ.")


# Small parts.


def test_a_path_ends_before_its_first_point_outside_of_the_box():
    right = BOX[1]
    path = np.array([[[0, 0], [right, 0], [right + 1e-9, 0], [0, 0]], [[0, 0], [0, 1], [1, 1], [0, 0]]], float)
    assert inside(path).tolist() == [2, 4]
    path[1, 1] = np.nan
    assert inside(path).tolist() == [2, 1]
    np.testing.assert_array_equal(held(np.array([[1.0, 2, 3], [4, 5, 6]]), np.array([2, 0])), [[1, 2, 2], [4, 4, 4]])


def test_settled_is_the_step_after_the_last_that_is_high():
    values = np.array([100.0, 50, 0.5, 2, 0.9, 0.1])
    assert settled(values, 6) == 4
    assert settled(values, 5) is None
    assert settled(values[:4], 4) is None


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1e-8, "10⁻⁸"), (2.5e-4, "2.5·10⁻⁴"), (12345.6, "12,346"), (0, "0"), (1.0, "1")]
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_waves_keep_a_row_to_four_millionths_of_its_range():
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((50, 81)).cumsum(axis=1) * np.geomspace(1e-12, 1e12, 50)[:, None] + 7.0
    rows[3] = 7.0
    numbers, frames = encoding.waves(rows)
    entry = {"name": "row", "axes": [], "shape": [50, 81], "kind": "waves", "at": 0, "frames": len(numbers)}
    _, decoded = unpacked([entry], numbers + frames)["row"]
    assert (np.abs(decoded - rows).max(axis=1) <= 4e-6 * np.ptp(rows, axis=1) + 1e-15).all()


def test_what_expected_does_not_know_it_refuses():
    with pytest.raises(ValueError, match=r"section must be one of gradient-descent, .*, got 'nowhere'"):
        expected("nowhere")
    with pytest.raises(TypeError, match="momentum has no control eps; it has surface, learning_rate"):
        expected("momentum", eps=1e-8)
    with pytest.raises(ValueError, match=r"momentum: b1 must be one of \[0.0, .*\], got 0.91"):
        expected("momentum", b1=0.91)


def test_the_code_that_the_page_ends_with_runs(capsys):
    names: dict = {}
    with jax.enable_x64(False):
        for code in CODE.values():
            exec(code, names)
    np.testing.assert_allclose(names["params"]["w"], np.arange(8.0), atol=0.05)
    assert set(names["best"]) == {"learning_rate", "b1"}
    assert "CONVERGED" in capsys.readouterr().out


# The page.


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_command_writes_one_page_with_everything_in_it(article):
    file = article.folder / "explain.html"
    assert article.printed.strip() == f"Written: {file}"
    assert list(article.folder.iterdir()) == [file]
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < 8_000_000
    assert not re.search(
        r"\{\{|\}\}</|NaN|Infinity|undefined(?!,)", re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    )

    page = Page(text)
    # Nothing is fetched.
    for tag, attributes in page.elements:
        for name in ("src", "href", "data", "action"):
            target = attributes.get(name)
            if tag == "a" and (target or "").startswith("https://"):
                continue  # opened by the reader alone
            assert target is None or target.startswith(("#", "data:,")), (tag, attributes)
    assert "@import" not in text
    assert "url(" not in text

    # Its structure.
    assert page.all("html")[0]["lang"] == "en"
    assert [each["id"] for each in page.all("section")] == [*SECTIONS, "use"]
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(headings))
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    anchors = [each["href"][1:] for each in page.all("a") if each["href"].startswith("#")]
    assert set(anchors) <= set(identities)

    # The contract with the tests in a browser.
    plots = [each["id"] for each in page.all("div") if each.get("class") == "plot"]
    assert plots == [plot.id for section in SECTIONS.values() for plot in section.plots]
    labels = {each["for"] for each in page.all("label")}
    moved = set()
    for control in page.all("input"):
        assert control["id"] in labels
        assert control["data-plots"], control
        assert set(control["data-plots"].split()) <= set(plots)
        moved |= set(control["data-plots"].split())
        if control["type"] == "range":
            values = json.loads(control["data-values"])
            assert int(control["max"]) == len(values) - 1
            assert values == sorted(values)
            assert control["aria-valuetext"] == number(values[int(control["value"])])
    assert moved == set(plots)
    for each in page.all("button"):
        if each.get("class") == "try":
            assert json.loads(each["data-set"])

    # Its data can be unpacked.
    for name in SECTIONS:
        (packed,) = re.findall(rf'id="data-{name}">([^<]*)<', text)
        content = gzip.decompress(b64decode(packed))
        length = int.from_bytes(content[:4], "little")
        description = json.loads(content[4 : 4 + length])
        assert [plot["id"] for plot in description["plots"]] == [plot.id for plot in SECTIONS[name].plots]
        assert description["sentence"] in {field["name"] for field in description["fields"]}
    (plotly,) = re.findall(r'id="plotly">([^<]*)<', text)
    assert gzip.decompress(b64decode(plotly)).startswith(b"/**\n* plotly.js v")


def test_the_page_holds_the_races_of_all_rates():
    assert list(SECTIONS["race"].controls[0].values) == list(SETTINGS.learning_rates)
    assert {"sgd", "momentum", "rmsprop", "adam"} <= set(RACERS)


def test_adam_ends_high_at_more_learning_rates_of_the_race_than_what_has_no_scale():
    high = {rule: int((fields_of("race")[f"{rule}-final"][1] > HIGH).sum()) for rule in RACERS}
    assert high["adam"] == max(high.values())
    assert high["adam"] > max(high["sgd"], high["momentum"])


def test_a_bad_argument_is_one_line_and_code_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments in (["--wrong"], ["--out", str(tmp_path / "file")], ["more"]):
        with pytest.raises(SystemExit) as stop:
            main(["explain", *arguments])
        assert stop.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch, capsys):
    from jaxopt_adam.lab import interrupt

    class Stopped(BaseException):
        pass

    def stop():
        raise Stopped

    monkeypatch.setattr(interrupt, "check", stop)
    with pytest.raises(Stopped):
        build()
    assert not capsys.readouterr().out


# The text.


def test_a_button_moves_the_controls_of_its_own_section():
    text = importlib.resources.files("jaxopt_adam.lab.explain").joinpath("page.html").read_text(encoding="utf-8")
    buttons = 0
    for part in text.split("<section ")[1:]:
        (home,) = re.findall(r'^id="([^"]*)"', part)
        named = re.findall(r"\{\{try (\S+)", part)
        assert set(named) <= {home}, home
        buttons += len(named)
    assert buttons == text.count("{{try ")


def test_the_text_names_the_settings_of_the_table():
    # "On the turned valley, α = 0.08, β₁ = 0.8": the best that momentum can do, which Adam cannot.
    assert needed.tuned("momentum", "turned") == {"learning_rate": 0.08, "b1": 0.8}
    momentum, adam = (needed.needed(name, "turned", needed.tuned(name, "turned")) for name in needed.TUNED)
    assert int(momentum) < int(adam)
    # Section 6 opens where Adam arrives first.
    section = SECTIONS["adam"]
    opened = section.setting()
    assert opened["surface"] == "turned"
    assert {axis: opened[axis] for axis in RULES["adam"].axes} == needed.best("adam", "turned")
    first = int(needed.needed("adam", "turned", needed.best("adam", "turned")))
    for other in ("descent", "momentum", "rmsprop"):
        steps = needed.needed(other, "turned", needed.best(other, "turned"))
        assert steps.startswith("more than") or int(steps) > first
    # "On the other two surfaces RMSProp is faster than Adam."
    for surface in ("valley", "saddle"):
        rmsprop, adam = (int(needed.needed(name, surface, needed.best(name, surface))) for name in ("rmsprop", "adam"))
        assert rmsprop < adam


def test_the_text_on_rmsprop_says_what_the_figures_show():
    facts = needed.facts()
    # The long first steps are good luck in the long valley; in the turned valley the first one leaves the picture.
    assert int(facts["rmsprop uncorrected"]) < int(facts["rmsprop corrected"])
    assert 31 < float(facts["rmsprop first"]) / 0.1 < 32
    long = {"learning_rate": 0.1, "b2": 0.999, "eps": 1e-8}
    assert inside(one(RULES["rmsprop"], "turned", long)["x"]) == 1
    # It hovers with a short memory: to and fro, and each step α long.
    first = int(facts["rmsprop hovers"])
    steps = one(RULES["rmsprop"], "valley", needed.HOVERING)["step"]
    np.testing.assert_allclose(np.abs(steps[first - 1 :]), needed.HOVERING["learning_rate"], rtol=0.01)
    assert (steps[first:] * steps[first - 1 : -1] < 0).all()
    assert first < STEPS - 10
    # Its steps shrink until the end with the usual memory.
    usual = np.abs(one(RULES["rmsprop"], "valley", {"learning_rate": 0.1} | dict(RULES["rmsprop"].usual))["step"])
    assert (np.diff(usual.max(axis=-1)) < 0).all()
    assert usual[0, 0] == pytest.approx(usual[0, 1])
    # The first step on the saddle is as long along x, where the slope is faint, as along y.
    saddle = np.abs(one(RULES["rmsprop"], "saddle", {"learning_rate": 0.1} | dict(RULES["rmsprop"].usual))["step"])
    assert saddle[0, 0] == pytest.approx(saddle[0, 1], rel=1e-3)
    # From high up a wall gradient descent is the first to lose 99 % of the height.
    assert int(facts["wall descent"]) < int(facts["wall momentum"])


@pytest.mark.parametrize(("name", "smaller"), [("adam", 1), ("momentum", 1000)])
def test_adam_takes_the_same_steps_in_other_units_and_momentum_needs_another_rate(name, smaller):
    rule, surface, setting = RULES[name], SURFACES["turned"], needed.best(name, "turned")
    units = Landscape("", lambda x: 1000 * surface.function(x), surface.minima, surface.start, BOX)
    optimizers = [
        rule.factory(bias_correction=rule.corrected)(**rule.given(setting | {"learning_rate": rate}))
        for rate in (setting["learning_rate"], setting["learning_rate"] / smaller)
    ]
    ours, theirs = walk(optimizers[0], surface)["x"], walk(optimizers[1], units)["x"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


def test_the_text_says_what_the_figures_show():
    facts = needed.facts()
    # Without the correction the first step is three times too long, and the path arrives later.
    assert 3 < float(facts["first uncorrected"]) / 0.3 < 3.3
    assert int(facts["valley corrected"]) < int(facts["valley uncorrected"])
    # A longer memory of m or a shorter one of v is worse.
    assert facts["valley slow"].startswith("more than")
    assert int(facts["valley short"]) > int(facts["valley corrected"])
    # "The steps stay almost as long as α even at the bottom."
    short = {"learning_rate": 0.3, "b1": 0.9, "b2": 0.5, "eps": 1e-8}
    assert np.abs(one(RULES["adam"], "valley", short, bias_correction=True)["step"][-10:]).max() > 0.25

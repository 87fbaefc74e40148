"""The colours of the rules, by arithmetic: contrast with the background, and distances as the colour-blind see them."""

import importlib.resources
import itertools
import re

import numpy as np
import pytest

from jaxopt_adam.lab import explain, race, styles
from jaxopt_adam.lab.explain.legend import legend
from jaxopt_adam.lab.styles import COLOURS, DASHES, MARKERS, RULES

# Machado, Oliveira and Fernandes 2009, table 1: complete absence of one kind of cone, for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]
    ]),
}  # fmt: skip
# IEC 61966-2-1: from linear sRGB to XYZ.
XYZ = np.array([[0.412456, 0.357576, 0.180438], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]])
SCHEMES = ("light", "dark")
ON_THE_PAGE = ("sgd", "momentum", "rmsprop", "adam")

pytestmark = pytest.mark.lab


def linear(colour: str) -> np.ndarray:
    """Linear RGB of ``#rrggbb``."""
    given = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(given <= 0.04045, given / 12.92, ((given + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB, relative to white."""
    ratio = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2."""
    low, high = sorted(float(XYZ[1] @ linear(colour)) for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def distance(one: str, other: str, sight: str) -> float:
    return float(np.linalg.norm(np.subtract(*(lab(SIGHT[sight] @ linear(colour)) for colour in (one, other)))))


def chroma(colour: str) -> float:
    return float(np.hypot(*lab(linear(colour))[1:]))


def test_the_arithmetic_of_colours():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # as WebAIM has it
    np.testing.assert_allclose(lab(linear("#ff0000")), [53.24, 80.09, 67.20], atol=0.01)
    # A red and a green of equal lightness are far apart, but not without the cones for red or for green.
    assert distance("#d02020", "#5a7a00", "normal") > 70
    assert distance("#d02020", "#5a7a00", "deuteranopia") < 25


def test_every_rule_of_the_race_has_a_style():
    assert set(RULES) == set(race.RULES)
    assert {style.marker for style in RULES.values()} == set(MARKERS)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_line_stands_out_from_both_backgrounds(scheme):
    for ground, (name, style) in itertools.product(("background", "card"), RULES.items()):
        assert contrast(style.colour(scheme), COLOURS[ground][scheme == "dark"]) >= 3, (name, ground)
    for name in ("ink", "muted", "average"):
        assert contrast(*(COLOURS[each][scheme == "dark"] for each in (name, "background"))) >= 4.5, name


@pytest.mark.parametrize(("scheme", "sight"), [*itertools.product(SCHEMES, SIGHT)])
def test_the_lines_can_be_told_apart(scheme, sight):
    for one, other in itertools.combinations(RULES, 2):
        apart = distance(RULES[one].colour(scheme), RULES[other].colour(scheme), sight)
        # Around 2 is just visible side by side; thin lines need more.
        least = 20 if {one, other} <= set(ON_THE_PAGE) else 10
        assert apart >= least, (one, other, apart)
        assert apart >= 20 or RULES[one].dash != RULES[other].dash, (one, other, apart)


def test_each_line_has_its_own_dashes_and_marker():
    assert {name for name, style in RULES.items() if style.dash == "solid"} == {"adam", "sgd"}
    dashed = [DASHES[style.dash] for style in RULES.values() if style.dash != "solid"]
    assert len(set(dashed)) == len(dashed)
    assert len({style.marker for style in RULES.values()}) == len(RULES)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adam_is_the_line_that_the_eye_meets_first(scheme):
    adam = RULES["adam"]
    for name, style in RULES.items():
        if name != "adam":
            assert adam.width >= 1.5 * style.width
            assert chroma(adam.colour(scheme)) > 1.1 * chroma(style.colour(scheme)), name
            assert styles.line("adam")["zorder"] > styles.line(name)["zorder"]
    assert styles.adam_first(["sgd", "adam", "momentum"]) == ["adam", "sgd", "momentum"]


def test_the_page_has_the_rules_colours_from_the_table():
    css = importlib.resources.files(explain).joinpath("page.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in re.findall(r"{(.*?)}", css, re.DOTALL)[:2]
    )
    for scheme, variables in (("light", light), ("dark", dark)):
        assert not {"adam", "rmsprop", "momentum", "descent"} & set(variables)
        for name in set(variables) & set(COLOURS) - {"grid"}:
            assert variables[name] == COLOURS[name][scheme == "dark"]
        # The deepest ground is the darkest that a path crosses.
        for name in ON_THE_PAGE:
            assert contrast(RULES[name].colour(scheme), variables["ground-low"]) >= 3, name


def test_a_rule_has_one_line_in_all_plots_of_the_page():
    seen = set()
    for plot in (plot for section in explain.SECTIONS.values() for plot in section.plots):
        lines = [trace for trace in plot.traces if "line" in trace.style and "lines" in trace.style.get("mode", "")]
        for trace in lines:
            name = trace.style["line"]["color"].removeprefix("--")
            style = styles.on_page(name)
            if style:
                seen.add(name)
                assert trace.style["line"].get("dash", "solid") == style.dash, (plot.id, trace.key)
                assert trace.style["line"]["width"] <= RULES["adam"].width or "scatter3d" in trace.style.values()
        named = [trace.name for trace in lines if trace.name in {title for title, *_ in race.RULES.values()}]
        if "Adam" in named:
            assert named[-1] == "Adam"  # the last drawn
            assert legend(plot).partition("</li>")[0].endswith(">Adam")
    assert seen == {"descent", "momentum", "rmsprop", "adam"}

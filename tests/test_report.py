"""The report of a race in a browser: on screens of several widths, light and dark.

The tests need Chromium, wherever it is installed, and are skipped without it.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from jaxopt_adam.lab import data, figures, race, report, styles

from test_explain_page import CHROMIUM, launch  # isort: skip

SCREENSHOTS = Path(__file__).parent.parent / "artifacts" / "report"
FIGURES = ("accuracy", "cost", "rates", "observed", "batches")
# The texts that are seen: the figure, the words, the box, and the size of the font on the screen in pixels.
TEXTS = """[...document.querySelectorAll('figure svg text')].map(each => {
    const box = each.getBoundingClientRect(), scale = each.getScreenCTM();
    return box.width && {figure: each.closest('figure').id, words: each.textContent.trim(),
        box: [box.left, box.top, box.right, box.bottom],
        size: parseFloat(getComputedStyle(each).fontSize) * Math.hypot(scale.a, scale.b)};
}).filter(Boolean)"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # A browser's own threads and sockets end when they like.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def outcome(title: str, number: int) -> race.Outcome:
    """An entrant whose accuracy goes from 10 % to about 98 %."""
    generator = np.random.default_rng(number)
    at = np.arange(0, 301, 5)
    accuracy = 1 - 0.9 * np.exp(-at / (10 + 5 * number)) - 0.02 - 0.01 * generator.random((8, 3, len(at)))
    accuracy = accuracy * np.linspace(0.6, 1, 8)[:, None, None]
    cost = 2.3 * np.exp(-np.arange(300) / (60 + 10 * number)) * np.exp(0.1 * generator.standard_normal((8, 3, 300)))
    seen = {name: np.exp(generator.standard_normal((8, 3, len(at) - 1))) for name in figures.OBSERVED}
    entry = race.Entry(title, lambda: None, {}, 64)  # pyright: ignore[reportArgumentType]
    return race.Outcome(entry, np.array(race.Settings().learning_rates), cost, at, accuracy, accuracy, 1.0, seen)


@pytest.fixture(scope="module")
def report_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    outcomes = [outcome(title, number) for number, (title, *_) in enumerate(race.RULES.values())]
    batches = dict(zip(("all", "mini-batches", "single examples"), outcomes, strict=False))
    report.write(folder, data.embedded(), race.Settings(), outcomes, batches, [], "A verdict.")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        launched = launch(playwright)
        yield launched
        launched.close()


def overlap(one: list[float], other: list[float]) -> bool:
    """Whether two boxes have more than a pixel in common, in both directions."""
    return min(one[2], other[2]) - max(one[0], other[0]) > 1 and min(one[3], other[3]) - max(one[1], other[1]) > 1


@pytest.mark.parametrize(("width", "scheme"), [*itertools.product((375, 833, 1440), ("light", "dark"))])
def test_it_is_legible_on_every_screen(browser, report_file, width, scheme):
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        page = context.new_page()
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report_file.as_uri())
        assert requests == [report_file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        texts = page.evaluate(TEXTS)
        assert {each["figure"] for each in texts} == set(FIGURES)
        assert min(each["size"] for each in texts) >= 11
        for one, other in itertools.combinations(texts, 2):
            if one["figure"] == other["figure"]:
                assert not overlap(one["box"], other["box"]), (one, other)
        # Each figure is drawn once, in the colours of the scheme.
        for name in FIGURES:
            shown = page.locator(f"#{name} svg:visible")
            assert shown.count() == 1
            box = shown.bounding_box()
            assert 0 <= box["x"] <= box["x"] + box["width"] <= width
        ground, *strokes = page.evaluate(
            """[getComputedStyle(document.body).backgroundColor, ...new Set([...document.querySelectorAll('#cost path')]
                .filter(each => each.getBoundingClientRect().width).map(each => getComputedStyle(each).stroke))]"""
        )
        assert ground == rgb(styles.COLOURS["background"][scheme == "dark"])
        assert {rgb(each.colour(scheme)) for each in styles.RULES.values()} <= set(strokes)
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{width}-{scheme}.png", full_page=True)


def rgb(colour: str) -> str:
    """``#rrggbb`` as a browser says it."""
    return f"rgb({', '.join(str(int(colour[at : at + 2], 16)) for at in (1, 3, 5))})"


def test_it_is_for_everyone(browser, report_file):
    for scheme in ("light", "dark"):
        with browser.new_context(viewport={"width": 375, "height": 900}, color_scheme=scheme) as context:
            page = context.new_page()
            page.goto(report_file.as_uri())
            found = Axe().run(page).response["violations"]
            assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_accuracies_above_90_percent_have_half_of_the_axis(browser, report_file):
    for width in (375, 1440):
        with browser.new_context(viewport={"width": width, "height": 900}) as context:
            page = context.new_page()
            page.goto(report_file.as_uri())
            ticks = [
                (float(each["words"]), each["box"][1])
                for each in page.evaluate(TEXTS)
                if each["figure"] == "accuracy" and re.fullmatch(r"[\d.]+", each["words"])
            ]
        ticks = [(value, top) for value, top in ticks if 50 <= value < 100 and top < max(top for _, top in ticks) - 10]
        assert len(ticks) >= 7
        assert sorted(ticks) == sorted(ticks, key=lambda tick: -tick[1])  # the labels rise with the axis
        places = dict(ticks)
        assert (places[90] - places[98]) / (places[50] - places[98]) > 0.45


def test_the_ids_of_the_drawings_are_unique(report_file):
    page = report_file.read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)
    assert re.findall(r"(?:stroke|fill): #\w+", page) == []  # every colour is a variable

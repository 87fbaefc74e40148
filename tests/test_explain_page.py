"""The interactive article in a browser: what it draws, on which screens, and for whom.

The tests need Chromium, wherever it is installed, and are skipped without it.
"""

import functools
import io
import itertools
import json
import random
import shutil
from pathlib import Path

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from jaxopt_adam.lab.explain import SECTIONS, expected, hero

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SOFTWARE_WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SCREENSHOTS = Path(__file__).parent.parent / "artifacts" / "explain"
WIDTHS = {"phone": 375, "tablet": 768, "desktop": 1440}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    # A browser's own threads and sockets end when they like.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="session")
def page_file(article):
    return article.folder / "explain.html"


@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as started:
        yield started


def launch(playwright, *more):
    return playwright.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, *more])


@pytest.fixture(scope="module")
def browser(playwright):
    launched = launch(playwright)
    yield launched
    launched.close()


class Opened:
    """The page in a tab, with its errors and all that it asked for."""

    def __init__(self, browser, path, width=1440, height=900, **context):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # Playwright's own 30 s were too short on a busy machine
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: message.type == "error" and self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.evaluate("window.explain.ready")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def assert_silent(self):
        """Without an error, and without a request to the network."""
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []

    def draw_all(self):
        for plot in self.plots():
            self.drawn(plot)

    def plots(self, within=""):
        return self.page.evaluate(f"[...document.querySelectorAll('{within} div.plot')].map(each => each.id)")

    def drawn(self, plot):
        """The arrays x, y and z of a plot, by key."""
        return self.page.evaluate(
            """async (id) => {
                await window.explain.drawn(id);
                const lists = (value) => value == null ? null : Array.from(value, (each) =>
                    each != null && typeof each === "object" ? Array.from(each) : each);
                const shown = {};
                for (const trace of document.getElementById(id).data) {
                    if (trace.meta && trace.meta.key) {
                        shown[trace.meta.key] = {x: lists(trace.x), y: lists(trace.y), z: lists(trace.z)};
                    }
                }
                return shown;
            }""",
            plot,
        )

    def inputs(self, section):
        """The inputs of a section's controls, as the browser has them; one for each choice where one is chosen."""
        return self.page.evaluate(
            """(section) => [...document.querySelectorAll(`#${section} [data-axis]`)].map((each) => ({
                axis: each.dataset.axis, type: each.type, value: each.value, checked: each.checked,
                values: each.dataset.values || null, plots: each.dataset.plots}))""",
            section,
        )

    def controls(self, section):
        """The controls of a section: the axis, the values that it takes and the plots that it moves."""
        controls = {}
        for each in self.inputs(section):
            values = controls.setdefault(each["axis"], {"type": each["type"], "plots": each["plots"].split()})
            if each["type"] == "range":
                values["values"] = json.loads(each["values"])
            elif each["type"] == "checkbox":
                values["values"] = [False, True]
            else:
                values.setdefault("values", []).append(each["value"])
        return controls

    def set(self, section, axis, value):
        """Set a control as a reader does."""
        where = f"#{section} [data-axis='{axis}']"
        control = self.controls(section)[axis]
        if control["type"] == "range":
            place = control["values"].index(value)
            self.page.locator(where).fill(str(place))
        elif control["type"] == "checkbox":
            self.page.locator(where).set_checked(value)
        else:
            self.page.locator(f"{where}[value='{value}']").check()

    def setting(self, section):
        """The values of the controls of a section."""
        now = {}
        for each in self.inputs(section):
            if each["type"] == "range":
                now[each["axis"]] = json.loads(each["values"])[int(each["value"])]
            elif each["type"] == "checkbox":
                now[each["axis"]] = each["checked"]
            elif each["checked"]:
                now[each["axis"]] = each["value"]
        return now


@pytest.fixture(scope="module")
def opened(browser, page_file):
    with Opened(browser, page_file) as tab:
        yield tab


def assert_shown(shown, wanted, where):
    """The drawn numbers are the library's, to 1e-5 of the range of a plot."""
    for plot, traces in wanted.items():
        for key, axes in traces.items():
            assert key in shown[plot], (where, plot, key)
            for axis, values in axes.items():
                drawn, computed = shown[plot][key][axis], np.asarray(values)
                if computed.dtype.kind in "US" or (computed.size and isinstance(computed.ravel()[0], str)):
                    assert list(map(str, drawn)) == list(map(str, computed)), (where, plot, key, axis)
                    continue
                computed = computed.astype(float)
                drawn = np.array(drawn, float)
                assert drawn.shape == computed.shape, (where, plot, key, axis)
                if not computed.size:
                    continue
                np.testing.assert_array_equal(np.isnan(drawn), np.isnan(computed))
                spread = np.nanmax(computed) - np.nanmin(computed) or abs(np.nanmax(computed)) or 1.0
                off = np.nanmax(np.abs(drawn - computed), initial=0) / spread
                assert off <= 1e-5, (where, plot, key, axis, off)


def assert_roughly_shown(shown, wanted, where):
    """The drawn numbers are the library's, to the lower precision of walks from a moved start."""
    for plot, traces in wanted.items():
        for key, axes in traces.items():
            for axis, values in axes.items():
                drawn, computed = np.array(shown[plot][key][axis], float), np.asarray(values, float)
                assert drawn.shape == computed.shape, (where, plot, key, axis)
                if axis == "z" or (axis == "y" and plot.endswith("-value")):  # heights, which are kept as logarithms
                    drawn, computed = (np.log10(np.maximum(each, 1e-9)) for each in (drawn, computed))
                if computed.size:
                    off = np.nanmax(np.abs(drawn - computed))  # there is NaN between two wires
                    reach = np.nanmax(computed) - np.nanmin(computed) or 1
                    assert off <= 1e-3 * reach, (where, plot, key, axis, off)


@functools.cache
def computed(section, *setting):
    """The library's own answer for a setting, given as pairs."""
    return expected(section, **dict(setting))


def wanted_of(opened, section, setting, start=None):
    """The library's own numbers for the plots that this browser draws."""
    shown = {plot: opened.drawn(plot) for plot in opened.plots(f"#{section}")}
    wanted = computed(section, ("start", start), *setting.items())
    if "descent-surface" in shown:
        # With WebGL or without.
        keys = {"surface", "net", "path", "stop"}, {"wires", "path-projected", "stop-projected"}
        drawn = next(each for each in keys if each <= set(shown["descent-surface"]))
        surface = wanted["descent-surface"]
        wanted = wanted | {"descent-surface": {key: surface[key] for key in surface if key in drawn}}
    return shown, wanted


def test_the_sections_are_there_in_the_order_of_the_article(opened):
    ids = opened.page.evaluate("[...document.querySelectorAll('main section')].map(each => each.id)")
    article = ["gradient-descent", "batches", "averages", "momentum", "rmsprop", "adam", "race"]
    assert [each for each in ids if each in article] == article == list(SECTIONS)
    assert opened.page.locator("h1").count() == 1


@pytest.mark.parametrize("section", SECTIONS)
def test_each_control_moves_its_plots_to_what_the_library_computes(browser, page_file, section):
    with Opened(browser, page_file) as tab:
        controls = tab.controls(section)
        start = tab.setting(section)
        shown, wanted = wanted_of(tab, section, start)
        assert_shown(shown, wanted, start)
        for axis, control in controls.items():
            assert control["plots"], axis
            values = control["values"]
            tried = values if len(values) <= 3 else [values[0], values[len(values) // 3], values[-1]]
            changed = set()
            for value in tried:
                before, old = shown, tab.setting(section)[axis]
                tab.set(section, axis, value)
                setting = tab.setting(section)
                assert setting == start | {axis: value}
                shown, wanted = wanted_of(tab, section, setting)
                assert_shown(shown, wanted, setting)
                moved = {plot for plot in shown if shown[plot] != before[plot]}
                assert moved <= set(control["plots"]), (axis, value, moved)
                if value != old:
                    changed |= moved
            assert changed == set(control["plots"]), (axis, set(control["plots"]) - changed)
            tab.set(section, axis, start[axis])
            shown = {plot: tab.drawn(plot) for plot in tab.plots(f"#{section}")}
        # And some settings together.
        generator = random.Random(0)
        for _ in range(2):
            for axis, control in controls.items():
                tab.set(section, axis, generator.choice(control["values"]))
            setting = tab.setting(section)
            assert_shown(*wanted_of(tab, section, setting), setting)
        assert tab.complaints == []


def test_the_surface_in_three_dimensions(playwright, page_file):
    browser = launch(playwright, *SOFTWARE_WEBGL)
    try:
        with Opened(browser, page_file) as tab:
            if not tab.page.evaluate("Boolean(document.createElement('canvas').getContext('webgl2'))"):
                pytest.skip("this browser has no WebGL")
            tab.page.locator("#descent-surface").scroll_into_view_if_needed()
            for place in (0, 5):
                tab.page.locator("#gradient-descent input[type=range]").first.fill(str(place))
                setting = tab.setting("gradient-descent")
                shown = tab.drawn("descent-surface")
                wanted = expected("gradient-descent", **setting)["descent-surface"]
                keys = {"surface", "net", "path", "stop"}
                assert keys <= set(shown)
                drawn = {"descent-surface": {key: shown[key] for key in keys}}
                assert_shown(drawn, {"descent-surface": {key: wanted[key] for key in keys}}, setting)
            assert tab.complaints == []
            for width, step in ((375, 15), (1440, 30)):
                tab.page.set_viewport_size({"width": width, "height": 900})
                for angle in range(0, 180, step):
                    assert_labels_within(tab, (width, angle))
                    for _ in range(step // 15):
                        tab.page.locator("#turn [data-turn='1']").click()
    finally:
        browser.close()


PAINT = """async (colours) => {
    const picture = document.getElementById("descent-surface");
    await window.explain.drawn("descent-surface");
    await Plotly.relayout(picture, colours);
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}"""
COLOURS = {
    f"scene.{axis}axis.{font}.color": colour
    for (axis, font), colour in zip(
        itertools.product("xyz", ("tickfont", "title.font")),
        ("#ff0000", "#ffff00", "#00ff00", "#00ffff", "#0000ff", "#ff00ff"),
        strict=True,
    )
}


def assert_labels_within(tab, where):
    """Each title and some tick labels of the surface are in the picture, and away from its edges.

    They are pixels of a canvas, so each kind of label is painted in a colour that nothing else has.
    """
    tab.page.evaluate(PAINT, COLOURS)
    shot = plt.imread(io.BytesIO(tab.page.locator("#descent-surface").screenshot()))[..., :3]
    for label, colour in COLOURS.items():
        painted = np.abs(shot - matplotlib.colors.to_rgb(colour)).max(-1) < 0.25
        assert painted.sum() >= 10, (where, label)
        rows, columns = np.nonzero(painted)
        height, width = painted.shape
        margin = min(rows.min(), height - 1 - rows.max(), columns.min(), width - 1 - columns.max())
        assert margin >= 2, (where, label, margin)


SCREENS = [*itertools.product(("phone", "desktop"), ("light", "dark")), ("tablet", "light")]

BOXES = """(selector) => [...document.querySelectorAll(selector)].map((each) => {
    const box = each.getBoundingClientRect();
    return {
        left: box.left, right: box.right, top: box.top, bottom: box.bottom, text: each.textContent,
        home: each.closest("figure").querySelector(".plot").id,
        size: parseFloat(getComputedStyle(each).fontSize),
    };
})"""


def apart(boxes):
    """Assert that no two boxes overlap by more than a pixel."""
    for one, other in itertools.combinations(boxes, 2):
        across = min(one["right"], other["right"]) - max(one["left"], other["left"])
        down = min(one["bottom"], other["bottom"]) - max(one["top"], other["top"])
        assert min(across, down) <= 1, (one, other)


def amount(label):
    """The number that a label stands for."""
    text = label.replace("−", "-").replace(",", "")
    return 1000 * float(text[:-1]) if text.endswith("k") else float(text)


def assert_labels(tab):
    """Legends and the labels of axes are large enough and apart, and labels increase along their axes."""
    for selector in (".legend li", ".xtick text", ".ytick text"):
        boxes = tab.page.evaluate(BOXES, selector)
        assert boxes, selector
        for home, group in itertools.groupby(boxes, lambda each: each["home"]):
            group = list(group)
            apart(group)
            assert min(each["size"] for each in group) >= 14, home
            if selector == ".xtick text":
                group.sort(key=lambda each: each["left"])
            elif selector == ".ytick text":
                group.sort(key=lambda each: -each["top"])
            else:
                assert max(each["right"] for each in group) <= tab.page.viewport_size["width"], home
                continue
            values = [amount(each["text"]) for each in group]
            assert len(values) >= 2, (home, selector)
            assert values == sorted(set(values)), (home, selector, values)


@pytest.mark.parametrize(("screen", "scheme"), SCREENS)
def test_on_screens_and_for_everyone(browser, page_file, screen, scheme):
    assert page_file.stat().st_size < 8_000_000
    width = WIDTHS[screen]
    settings = {"color_scheme": scheme, "device_scale_factor": 1, "reduced_motion": "reduce"}
    with Opened(browser, page_file, width, **settings) as tab:
        tab.draw_all()
        tab.assert_silent()
        sizes = tab.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert sizes[0] <= sizes[1] <= width
        for plot in tab.plots():
            left, right = tab.page.evaluate(
                """(id) => {
                    const box = document.getElementById(id).getBoundingClientRect();
                    return [box.left, box.right];
                }""",
                plot,
            )
            assert left >= 0, plot
            assert right <= width, plot
        cut = tab.page.evaluate(
            """() => [...document.querySelectorAll("div.plot :is(.xtitle, .ytitle, .gtitle)")].filter((each) => {
                const [text, plot] = [each, each.closest("svg")].map((one) => one.getBoundingClientRect());
                return text.left < plot.left - 1 || text.right > plot.right + 1
                    || text.top < plot.top - 1 || text.bottom > plot.bottom + 1;
            }).map((each) => each.textContent)"""
        )
        assert cut == []
        if scheme == "light":
            for against in tab.controls("batches")["against"]["values"]:
                tab.set("batches", "against", against)
                tab.drawn("batches-cost")
                assert_labels(tab)
        results = Axe().run(tab.page)
        serious = [
            (each["id"], [node["html"][:200] for node in each["nodes"]])
            for each in results.response["violations"]
            if each["impact"] in ("serious", "critical")
        ]
        assert serious == []
        folder = SCREENSHOTS / f"{screen}-{scheme}"
        folder.mkdir(parents=True, exist_ok=True)
        # The bar with the links would lie across what it sticks to.
        tab.page.add_style_tag(content="nav { position: static !important; }")
        for section in SECTIONS:
            tab.page.locator(f"#{section}").screenshot(path=folder / f"{section}.png")
            assert (folder / f"{section}.png").stat().st_size > 10_000


FIGURES = """() => Object.fromEntries([...document.querySelectorAll("div.plot")].map((each) => {
    const svg = each.querySelector(".main-svg");
    return [each.id, {
        width: svg ? svg.getBoundingClientRect().width : 0,
        marks: each.parentElement.querySelectorAll(".trace, .contourlayer path, .layer path[d^=M]").length,
        count: window.explain.drawings[each.id] ? window.explain.drawings[each.id].count : 0,
    }];
}))"""


def test_what_is_printed_at_once_has_every_figure(browser, page_file):
    with browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="dark") as context:
        page = context.new_page()
        page.goto(page_file.as_uri())  # until the load event, as all do that print a page, and no longer
        page.evaluate(f"addEventListener('beforeprint', () => {{ window.printed = ({FIGURES})(); }})")
        paper = page.pdf(format="A4")
        printed = page.evaluate("window.printed")
        plots = {plot.id for section in SECTIONS.values() for plot in section.plots}
        assert set(printed) == plots
        for plot, figure in printed.items():
            assert figure["marks"] > 0, plot
            assert 500 < figure["width"] < 700, plot  # A4 is 794 wide
        assert len(paper) > 200_000
        # Afterwards the page is as before, and a browser that only changes its medium prints as much.
        assert page.evaluate("document.documentElement.className") == ""
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.emulate_media(media="print")
        page.wait_for_function("document.documentElement.className === 'printing'")
        again = page.evaluate(FIGURES)
        assert all(again[plot]["count"] > printed[plot]["count"] for plot in plots)
        assert page.evaluate("document.documentElement.dataset.theme") == "light"
        page.emulate_media(media="screen")
        page.wait_for_function("document.documentElement.className === ''")


@pytest.mark.parametrize("font", ["the page's", "DejaVu Sans"])
def test_hats_lie_above_their_letters(browser, page_file, font):
    # The second font has no table for formulas, as where the machine has no font for them.
    with Opened(browser, page_file, device_scale_factor=4) as tab:
        if font != "the page's":
            tab.page.add_style_tag(content=f"math {{ font-family: '{font}' !important; }}")
        hats = tab.page.locator("math mover")
        assert hats.count() >= 4
        for i in range(hats.count()):
            picture = plt.imread(io.BytesIO(hats.nth(i).screenshot()))[..., :3].mean(axis=-1)
            ink = (picture < 0.6).any(axis=1)
            # From top to bottom: a hat, a gap, a letter.
            assert np.count_nonzero(np.diff(ink.astype(int)) == 1) + ink[0] >= 2, i


def test_it_is_operated_with_the_keyboard_alone(browser, page_file):
    with Opened(browser, page_file) as tab:
        slider = tab.page.locator("#gradient-descent input[type=range]").first
        name = slider.get_attribute("id")
        for _ in range(60):
            tab.page.keyboard.press("Tab")
            if tab.page.evaluate("document.activeElement.id") == name:
                break
        assert tab.page.evaluate("document.activeElement.id") == name
        before, place = tab.drawn("descent-path") if "descent-path" in tab.plots() else None, slider.input_value()
        spoken = slider.get_attribute("aria-valuetext")
        tab.page.keyboard.press("ArrowLeft")
        assert int(slider.input_value()) == int(place) - 1
        assert slider.get_attribute("aria-valuetext") != spoken
        output = tab.page.locator(f"output[for='{name}']")
        assert output.text_content() == slider.get_attribute("aria-valuetext")
        (first, *_) = tab.controls("gradient-descent")["learning_rate"]["plots"]
        label = tab.page.locator(f"#{first}").get_attribute("aria-label")
        tab.drawn(first)
        tab.page.keyboard.press("Home")
        tab.drawn(first)
        assert tab.page.locator(f"#{first}").get_attribute("aria-label") != label
        assert before is None or tab.drawn("descent-path") != before


ON_SCREEN = """([section, part]) => {
    const {top, bottom} = document.querySelector(`#${section} .lab ${part}`).getBoundingClientRect();
    return top >= document.querySelector("nav").clientHeight && bottom <= innerHeight;
}"""


@pytest.mark.parametrize("size", [(1440, 900), (375, 812)], ids=str)
def test_a_button_in_the_text_shows_what_it_changes_and_leads_back(browser, page_file, size):
    with Opened(browser, page_file, *size, reduced_motion="reduce") as tab:
        buttons, back = tab.page.locator("button.try"), tab.page.locator("#back")
        assert not back.is_visible()
        went = 0
        for i in range(buttons.count()):
            button = buttons.nth(i)
            section = button.evaluate("each => each.closest('section').id")
            button.scroll_into_view_if_needed()
            button.click()
            for part in (".stage", ".say"):
                assert tab.page.evaluate(ON_SCREEN, [section, part]), (section, button.text_content(), part)
            # Every control is as the button says, whatever it was before.
            places = json.loads(button.get_attribute("data-set"))
            controls = tab.controls(section)
            assert tab.setting(section) == {axis: controls[axis]["values"][int(places[axis])] for axis in controls}
            if back.is_visible():
                went += 1
                assert back.evaluate("each => each === document.activeElement")
                back.press("Enter")
                assert not back.is_visible()
                assert button.evaluate("each => each === document.activeElement")
                box = button.bounding_box()
                assert 0 <= box["y"] <= size[1] - box["height"]
        assert went > 10
        assert tab.complaints == []


def test_every_figure_has_words_and_every_control_a_label(opened):
    opened.draw_all()
    for plot in opened.plots():
        figure = opened.page.locator(f"#{plot}")
        assert figure.get_attribute("role") == "img"
        assert len(figure.get_attribute("aria-label")) > 20
    unlabelled = opened.page.evaluate(
        """[...document.querySelectorAll('input, select')].filter(each => !each.labels.length)
            .map(each => each.outerHTML)"""
    )
    assert unlabelled == []
    for axis in opened.page.evaluate(
        """[...document.querySelectorAll('div.plot')].flatMap(each => ['xaxis', 'yaxis']
            .filter(name => each.layout[name] && !(each.layout[name].title && each.layout[name].title.text))
            .map(name => each.id + ' ' + name))"""
    ):
        pytest.fail(f"an axis without a title: {axis}")


def test_light_and_dark_are_chosen_by_the_system_and_by_a_button(browser, page_file):
    paper = "getComputedStyle(document.body).backgroundColor"
    with (
        Opened(browser, page_file, color_scheme="light") as light,
        Opened(browser, page_file, color_scheme="dark") as dark,
    ):
        colours = light.page.evaluate(paper), dark.page.evaluate(paper)
        assert colours[0] != colours[1]
        light.page.locator("#theme").click()
        assert light.page.evaluate(paper) == colours[1]


# The picture at the top, the players, and the starts.

FIRST_SCREENS = ((1440, 900), (768, 1024), (375, 812))
WALKED = [name for name, section in SECTIONS.items() if section.steps]
MOVED = [name for name, section in SECTIONS.items() if section.starts]


def step_of(tab, name):
    return int(tab.page.locator(f"#walk-{name}").input_value())


def ways(tab, within):
    """The points of the paths that have been walked, in pixels of their picture, in the order of drawing."""
    drawn = tab.page.evaluate(
        "(within) => [...document.querySelectorAll(within + ' .walk .done')].map(each => each.getAttribute('d'))",
        within,
    )
    return [np.array([point.split(",") for point in path[1:].split("L")], float) for path in drawn]


@pytest.mark.parametrize("size", FIRST_SCREENS, ids=str)
def test_the_first_screen_has_a_picture_that_waits_if_motion_is_unwanted(browser, page_file, size):
    with Opened(browser, page_file, *size, reduced_motion="reduce") as tab:
        tab.page.locator("#hero .player input").wait_for()
        for part in ("#hero .stage", "#hero .play", "#hero .player input"):
            box = tab.page.locator(part).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= size[0]
            assert box["y"] + box["height"] <= size[1], part
        after = "document.querySelector('h1').nextElementSibling.id"
        assert tab.page.evaluate(after) == "hero"
        tab.page.wait_for_timeout(200)
        assert step_of(tab, "hero") == hero.HERO.steps
        assert "Play" in tab.page.locator("#hero .play").text_content()
        # The whole paths are what the library computes, from the start of the picture and from others.
        handle = tab.page.locator("#hero .start")
        for key in (None, "ArrowRight", "ArrowUp"):
            if key:
                handle.press(key)
            start = handle.get_attribute("data-start")
            wanted = hero.single(tuple(json.loads(start)) if start else None)
            width, height = tab.page.evaluate(
                "(({clientWidth, clientHeight}) => [clientWidth, clientHeight])(document.querySelector('#hero .stage'))"
            )
            left, right, bottom, top = hero.BOX
            drawn = dict(zip(hero.SHOWN, ways(tab, "#hero"), strict=True))
            for name, points in drawn.items():
                x = (wanted[f"{name}-x"] - left) / (right - left) * width
                y = (top - wanted[f"{name}-y"]) / (top - bottom) * height
                np.testing.assert_allclose(points, np.stack([x, y], axis=1), rtol=0, atol=1.0)  # pixels


def test_the_picture_at_the_top_plays_by_itself_and_pauses(browser, page_file):
    with Opened(browser, page_file) as tab:
        button = tab.page.locator("#hero .play")
        tab.page.wait_for_function("Number(document.querySelector('#hero input')?.value) > 1")
        assert "Pause" in button.text_content()
        assert step_of(tab, "hero") < hero.HERO.steps
        button.click()
        assert "Play" in button.text_content()
        here = step_of(tab, "hero")
        tab.page.wait_for_timeout(200)
        assert step_of(tab, "hero") == here
        for points in ways(tab, "#hero"):
            assert len(points) == here + 1
        tab.page.locator("#hero .player input").fill("59")
        button.click()
        tab.page.wait_for_function("document.querySelector('#hero .play').textContent.includes('Play')")
        assert step_of(tab, "hero") == 60
        tab.assert_silent()


@pytest.mark.parametrize("name", WALKED)
def test_a_walk_is_stepped_and_played(opened, name):
    section = SECTIONS[name]
    (plot,) = (plot for plot in section.plots if plot.walked)
    whole = opened.drawn(plot.id)
    assert step_of(opened, name) == section.steps
    within = f".stage:has(> #{plot.id})"
    traces = [trace.key for trace in plot.traces if "lines" in trace.style.get("mode", "")]
    opened.page.locator(f"#{plot.id}").scroll_into_view_if_needed()
    slider, button = opened.page.locator(f"#walk-{name}"), opened.page.locator(f"#{name} .play")
    slider.fill("3")
    assert slider.get_attribute("aria-valuetext").startswith(f"3 of {section.steps}")
    # The page hears a little later that the picture is near the screen, and draws it then.
    opened.page.wait_for_function(
        "([within, points]) => [...document.querySelectorAll(within + ' .walk .done')]"
        ".every((each) => each.getAttribute('d').split('L').length === points)",
        arg=[within, 3 + 1],
    )
    assert [len(points) for points in ways(opened, within)] == [3 + 1] * len(traces)
    opened.page.locator(f"#{name} .by").last.click()
    assert step_of(opened, name) == 4
    slider.press("ArrowLeft")
    assert step_of(opened, name) == 3
    button.click()
    opened.page.wait_for_function("(id) => Number(document.getElementById(id).value) > 4", arg=f"walk-{name}")
    button.click()
    assert "Play" in button.text_content()
    assert opened.drawn(plot.id) == whole  # a step shows a part of the path, and the numbers are the whole
    slider.fill(str(section.steps))
    for key, points in zip(traces, ways(opened, within), strict=True):
        assert len(points) == len(whole[key]["x"])
    assert opened.complaints == []


@pytest.mark.parametrize("name", MOVED)
def test_the_start_is_moved_by_keys_and_by_dragging(opened, name):
    section = SECTIONS[name]
    (plot,) = (plot for plot in section.plots if plot.walked)
    opened.drawn(plot.id)
    handle = opened.page.locator(f"#{name} .start")
    assert handle.get_attribute("data-start") == ""
    words = opened.page.locator(f"#{name} .say")
    said = {words.text_content()}
    for axis in section.usual:  # settings without other starts are left for the usual ones
        values = next(control.values for control in section.controls if control.axis == axis)
        opened.set(name, axis, next(value for value in values if value != section.usual[axis]))
    handle.press("ArrowRight")
    opened.drawn(plot.id)
    first = tuple(json.loads(handle.get_attribute("data-start")))
    assert first in section.starts
    assert f"x = {first[0]:g}".replace("-", "−") in handle.get_attribute("aria-valuetext")
    setting = opened.setting(name)
    assert setting == section.setting(**section.usual)
    assert_roughly_shown(*wanted_of(opened, name, setting, first), (name, first))
    said.add(words.text_content())
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(*middle)
    opened.page.mouse.down()
    opened.page.mouse.move(middle[0] + 150, middle[1] - 20, steps=3)
    opened.page.mouse.up()
    opened.drawn(plot.id)
    second = tuple(json.loads(handle.get_attribute("data-start")))
    assert second[0] > first[0]
    said.add(words.text_content())
    assert len(said) > 1
    opened.set(name, "learning_rate", section.controls[0 if name == "gradient-descent" else 1].values[1])
    opened.drawn(plot.id)
    setting = opened.setting(name)
    assert handle.get_attribute("data-start") == json.dumps(second).replace(" ", "").replace(".0", "")
    assert_roughly_shown(*wanted_of(opened, name, setting, second), (name, second))
    # A setting without other starts puts the start back, and so does the Home key.
    if section.usual:
        opened.set(name, "bias_correction", not section.usual["bias_correction"])
        opened.page.wait_for_function("(name) => !document.querySelector(`#${name} .start`).dataset.start", arg=name)
        setting = opened.setting(name)
        assert_shown(*wanted_of(opened, name, setting), setting)
        handle.press("ArrowUp")
        opened.drawn(plot.id)
        assert handle.get_attribute("data-start") != ""
    handle.press("Home")
    opened.drawn(plot.id)
    assert handle.get_attribute("data-start") == ""
    setting = opened.setting(name)
    assert_shown(*wanted_of(opened, name, setting), setting)
    assert opened.complaints == []


def test_a_moved_start_says_which_controls_it_moved(opened):
    informed, changed = opened.page.locator("#momentum .informed"), opened.page.locator("#momentum .control.changed")
    handle = opened.page.locator("#momentum .start")
    opened.drawn("momentum-path")
    handle.press("Home")
    opened.set("momentum", "b1", 0.7)
    assert informed.text_content() == ""
    handle.press("ArrowRight")
    assert "the marked settings were reset" in informed.text_content()
    assert changed.count() == 1
    assert changed.locator("input").get_attribute("data-axis") == "b1"
    opened.set("momentum", "learning_rate", 0.05)  # walks from there were computed for every learning rate
    assert "the marked settings were reset" in informed.text_content()
    opened.set("momentum", "b1", 0.7)
    opened.page.wait_for_function("document.querySelector('#momentum .informed').textContent.includes('is back')")
    assert changed.count() == 0
    assert handle.get_attribute("data-start") == ""


def test_after_a_walk_has_left_the_player_says_when(opened):
    opened.drawn("momentum-path")
    opened.set("momentum", "learning_rate", 0.05)
    opened.set("momentum", "b1", 0.0)
    slider = opened.page.locator("#walk-momentum")
    slider.fill("60")
    assert slider.get_attribute("aria-valuetext") == "60 of 60, the path left the picture at step 1"
    slider.fill("1")
    assert "height" in slider.get_attribute("aria-valuetext")
    slider.fill("60")
    opened.set("momentum", "b1", 0.7)
    opened.page.wait_for_function(
        "document.querySelector('#walk-momentum').getAttribute('aria-valuetext').includes('height')"
    )


def test_a_learning_rate_for_all_turns_off_each_rules_own(opened):
    opened.set("race", "best", True)
    at_best = opened.drawn("race-rates")["chosen"]
    assert len(set(at_best["x"])) > 1
    assert opened.drawn("race-accuracy")["adam"]["y"][-1] == pytest.approx(at_best["y"][-1])
    for rate in at_best["x"]:
        assert f"{rate:.3g}" in opened.page.locator("#race .say").text_content()
    opened.set("race", "learning_rate", 0.1)
    assert opened.setting("race") == {"learning_rate": 0.1, "best": False}
    assert opened.drawn("race-rates")["chosen"]["x"] == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_slider_draws_what_it_moves_near_the_screen_and_once_in_a_frame(opened, name):
    """Counts, which a busy machine does not change; benchmarks/explain_page.py has the milliseconds."""
    opened.page.set_viewport_size({"width": 1440, "height": 560})  # so low that some plots are far away
    found = opened.page.evaluate(
        """async (name) => {
            const home = document.getElementById(name);
            const lab = home.querySelector(".lab");
            lab.scrollIntoView({block: "start", behavior: "instant"});
            const frames = (count) => new Promise((done) => {
                const next = () => count-- > 0 ? requestAnimationFrame(next) : done();
                next();
            });
            const all = [...home.querySelectorAll(".plot")].map((each) => each.id);
            for (const id of all) await explain.drawn(id);
            await frames(30);
            const count = (id) => explain.drawings[id].count;
            const slider = home.querySelector("input[type=range][data-axis]");
            const moved = slider.dataset.plots.split(" ");
            const ids = Object.keys(explain.drawings);
            const before = Object.fromEntries(ids.map((id) => [id, count(id)]));
            const most = Object.fromEntries(ids.map((id) => [id, 0]));
            const off = (id) => {  // pixels from the screen
                const box = document.getElementById(id).getBoundingClientRect();
                return Math.max(-box.bottom, box.top - innerHeight);
            };
            const near = ids.filter((id) => off(id) < 280);
            const far = ids.filter((id) => off(id) > 320);
            for (let frame = 0; frame < 6; frame++) {
                const start = Object.fromEntries(ids.map((id) => [id, count(id)]));
                for (let i = 0; i < 3; i++) {  // several events before one frame
                    slider.value = (Number(slider.value) + 1) % (Number(slider.max) + 1);
                    slider.dispatchEvent(new Event("input", {bubbles: true}));
                }
                await frames(1);
                for (const id of ids) most[id] = Math.max(most[id], count(id) - start[id]);
            }
            await frames(30);
            return {moved, near, far, most,
                drawn: Object.fromEntries(ids.map((id) => [id, count(id) - before[id]]))};
        }""",
        name,
    )
    opened.page.set_viewport_size({"width": 1440, "height": 900})
    drawn, moved, near, far = found["drawn"], *(set(found[each]) for each in ("moved", "near", "far"))
    redrawn = {plot for plot, count in drawn.items() if count}
    assert moved & near
    assert moved & near <= redrawn <= moved - far
    assert name != "adam" or (len(moved & near) > 1 and moved & far)
    assert max(found["most"].values()) == 1
    assert max(drawn.values()) <= 7  # six frames, and the rest of the last
    first = SECTIONS[name].plots[0]
    if first.id in moved and first.walked and name != "batches":
        assert drawn[first.id] == 6  # the walk is in every frame

"""Check the built documentation as a reader without a network sees it: python docs/check.py FOLDER.

Every link leads to a page and an anchor that are there. In Chromium, with all requests to other places blocked, no page
asks for anything from outside, no image is missing, every equation is drawn, no page is higher than 12,000 pixels at a
width of 1,440, and none is wider than a phone's screen of 375. The first screen of the index has a picture and code.
What does not hold is printed, and the exit code is 1.
"""

import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from playwright.sync_api import Page, Route, sync_playwright

HIGHEST = 12_000
WIDTH, SCREEN, PHONE = 1440, 900, 375
# What a page would show if an equation had been left as LaTeX.
LATEX = r"\\(frac|sqrt|hat|beta|text|operatorname|begin)\b|\$\$|\\\("
LOOK = """latex => {
    const empty = [...document.querySelectorAll("math")].filter(each => !each.getBoundingClientRect().height);
    const written = [...document.querySelectorAll("article")].filter(each => {
        const copy = each.cloneNode(true);
        copy.querySelectorAll("pre, code, math, script").forEach(part => part.remove());
        return new RegExp(latex).test(copy.textContent);
    });
    const missing = [...document.images].filter(each => each.complete && !each.naturalWidth);
    return {
        height: document.documentElement.scrollHeight,
        equations: empty.length + written.length + document.querySelectorAll("merror").length,
        images: missing.map(each => each.getAttribute("src")),
        first: ["article img", "article .cell_input"].map(
            each => document.querySelector(each)?.getBoundingClientRect().bottom),
    };
}"""


class Links(HTMLParser):
    """The addresses in a page and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag has of them."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.addresses.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def dead_links(folder: Path) -> Iterator[str]:
    """A line for each link from one page to another that leads nowhere."""
    found = {page: Links(page) for page in sorted(folder.rglob("*.html"))}
    for page, links in found.items():
        for address in sorted(set(links.addresses)):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.is_file():
                yield f"{page.relative_to(folder)}: {address} is not there"
            elif parts.fragment and target in found and unquote(parts.fragment) not in found[target].anchors:
                yield f"{page.relative_to(folder)}: {address} has no such anchor"


def faults(page: Page, file: Path, is_index: bool) -> Iterator[str]:
    """The faults of a page as the browser shows it."""
    outside: list[str] = []

    def answer(route: Route) -> None:
        if urlsplit(route.request.url).scheme in ("file", "data", "blob"):
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    page.route("**/*", answer)
    page.set_viewport_size({"width": WIDTH, "height": SCREEN})
    page.goto(file.as_uri())
    seen = page.evaluate(LOOK, LATEX)
    page.unroute("**/*")
    yield from (f"asks for {url}" for url in outside)
    yield from (f"image {name} is missing" for name in seen["images"])
    if seen["equations"]:
        yield f"{seen['equations']} equations are not drawn"
    if seen["height"] > HIGHEST:
        yield f"{seen['height']:,} pixels high, more than {HIGHEST:,}"
    if is_index and any(bottom is None or bottom > SCREEN for bottom in seen["first"]):
        yield f"no picture and code on the first {SCREEN} pixels"
    page.set_viewport_size({"width": PHONE, "height": 800})
    if (width := page.evaluate("document.documentElement.scrollWidth")) > PHONE:
        yield f"{width} pixels wide on a screen of {PHONE}"


def main() -> None:
    """Print what does not hold."""
    folder = Path(sys.argv[1]).resolve()
    # The sources of the modules are as long as they are, and the article has tests of its own.
    pages = [each for each in sorted(folder.rglob("*.html")) if "_modules" not in each.parts]
    lines = list(dead_links(folder))
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        for file in pages:
            if file.name != "explain.html":
                lines += [
                    f"{file.relative_to(folder)}: {fault}"
                    for fault in faults(page, file, file == folder / "index.html")
                ]
        browser.close()
    print("\n".join([*lines, f"{len(pages)} pages, {len(lines)} faults"]))  # noqa: T201
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()

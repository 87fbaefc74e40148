"""The time to make and to open the interactive article, and from a slider to its pictures.

Run it as python benchmarks/explain_page.py [--opens N] [--moves N] [--page FILE]. The page opens in headless Chromium,
each time in a new window. It is open when its controls work and its first plot is drawn. Then each slider is moved, in
a window of 1,440 by 900 pixels with the section at its top. The time runs from the input event to the end of the first
frame that shows the new picture, for each plot on the screen. With `--page` an existing file is measured. Needs the
extra `test` and Chromium.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

MOVE = """async ([input, moves]) => {
    const slider = document.getElementById(input);
    const painted = () => new Promise((done) => requestAnimationFrame(() => {
        const channel = new MessageChannel();  // its message comes after the frame is painted
        channel.port1.onmessage = () => done(performance.now());
        channel.port2.postMessage(0);
    }));
    const onScreen = (id) => {
        const box = document.getElementById(id).getBoundingClientRect();
        return box.bottom > 0 && box.top < innerHeight;
    };
    slider.closest(".lab").scrollIntoView({block: "start", behavior: "instant"});
    const plots = slider.dataset.plots.split(" ").filter(onScreen);
    for (const id of plots) await explain.drawn(id);
    const found = [];
    for (let i = 0; i < moves; i++) {
        await new Promise((done) => setTimeout(done, 300));
        slider.value = (Number(slider.value) + 1) % (Number(slider.max) + 1);
        const start = performance.now();
        slider.dispatchEvent(new Event("input", {bubbles: true}));
        const waiting = new Set(plots);
        while (waiting.size) {
            const now = await painted();
            for (const id of waiting) {
                if (explain.drawings[id].done < start) continue;
                waiting.delete(id);
                found.push([id, now - start]);
            }
        }
    }
    return found;
}"""


def launched(playwright) -> Browser:
    """Chromium without a window."""
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)


def open_times(browser: Browser, file: Path, opens: int) -> list[float]:
    """Seconds until the page is open."""
    seconds = []
    for _ in range(opens):
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(file.as_uri())
        page.evaluate("window.explain.ready")
        page.evaluate("window.explain.drawn(document.querySelector('.plot').id)")
        seconds.append(time.perf_counter() - start)
        page.close()
    return seconds


def move_times(page: Page, moves: int) -> dict[str, list[tuple[str, float]]]:
    """For each slider, the plots that it moved and the milliseconds until they were seen, one for each move."""
    sliders = page.evaluate("[...document.querySelectorAll('input[type=range][data-axis]')].map((each) => each.id)")
    return {slider: page.evaluate(MOVE, [slider, moves]) for slider in sliders}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opens", type=int, default=5)
    parser.add_argument("--moves", type=int, default=20)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = options.page
        if file is None:
            start = time.perf_counter()
            subprocess.run(["jaxopt-adam", "explain", "--out", folder], check=True, stdout=subprocess.DEVNULL)
            print(f"made in {time.perf_counter() - start:.0f} s")
            file = Path(folder) / "explain.html"
        browser = launched(playwright)
        seconds = open_times(browser, file.absolute(), options.opens)
        size, median, most = file.stat().st_size / 1e6, statistics.median(seconds), max(seconds)
        print(f"{size:.2f} MB, open after {median:.1f} s, at most {most:.1f} s")
        page = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        page.goto(file.absolute().as_uri())
        page.evaluate("window.explain.ready")
        flat, solid = [], []
        for slider, found in move_times(page, options.moves).items():
            spent = [each for _, each in found]
            print(f"{slider}: {statistics.median(spent):.0f} ms, at most {max(spent):.0f}")
            for plot, each in found:
                (solid if plot == "descent-surface" else flat).append(each)
        for name, spent in (("2-D plots", flat), ("the 3-D plot", solid)):
            if spent:
                worst = max(spent)
                print(f"slider to picture, {name}: median {statistics.median(spent):.0f} ms, at most {worst:.0f} ms")
        browser.close()


if __name__ == "__main__":
    main()

"""The time to make and to open the interactive article: python benchmarks/explain_page.py [--opens N].

It opens in headless Chromium, each time in a new window. A page is open when its controls work and its first plot is
drawn. Needs the extra `test` and Chromium.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opens", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(["jaxopt-adam", "explain", "--out", folder], check=True, stdout=subprocess.DEVNULL)
        made = time.perf_counter() - start
        page_file = Path(folder) / "explain.html"
        seconds = []
        with sync_playwright() as playwright:
            arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
            for _ in range(options.opens):
                page = browser.new_page()
                start = time.perf_counter()
                page.goto(page_file.as_uri())
                page.evaluate("window.explain.ready")
                page.evaluate("window.explain.drawn(document.querySelector('.plot').id)")
                seconds.append(time.perf_counter() - start)
                page.close()
            browser.close()
        size = page_file.stat().st_size / 1e6
        median, most = statistics.median(seconds), max(seconds)
        print(f"made in {made:.0f} s, {size:.2f} MB, open after {median:.1f} s, at most {most:.1f} s")


if __name__ == "__main__":
    main()

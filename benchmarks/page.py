"""Size of a page of many cases, how long it takes to make, to open and to scroll.

    python benchmarks/page.py --cases 10000

The cases are generated, each with a picture. Chromium opens the page from disk, without a network.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from playwright.sync_api import sync_playwright

import report_folders
from normalis.report import write_report

JUMPS = """async () => {
    const height = document.documentElement.scrollHeight, times = [];
    for (let i = 0; i < 40; i++) {
        const before = performance.now();
        scrollTo(0, (height * ((i * 7) % 40)) / 40);
        await new Promise(requestAnimationFrame);
        await new Promise(requestAnimationFrame);
        times.push(performance.now() - before);
    }
    return times;
}"""


def measured(page: Path, chromium: str) -> dict[str, float]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(300_000)
        start = time.perf_counter()
        tab.goto(page.as_uri())
        tab.locator(".cases .case[data-painted=yes]").first.wait_for()
        opened = time.perf_counter() - start
        times = tab.evaluate(JUMPS)
        start = time.perf_counter()
        tab.fill("#search", "img_0001")
        filtered = time.perf_counter() - start
        cards = tab.locator(".cases .case").count()
        browser.close()
    return {
        "open and first picture, s": opened,
        "jump until drawn, median ms": float(np.median(times)),
        "jump until drawn, worst ms": float(np.max(times)),
        "filter, s": filtered,
        "cards in the page": cards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = report_folders.score_folder(Path(name) / "scored", n=chosen.cases)
        start = time.perf_counter()
        page = write_report(folder, Path(name) / "page.html")
        print(f"{chosen.cases} cases, written in, s: {time.perf_counter() - start:.1f}")
        print(f"page, MB: {page.stat().st_size / 1e6:.2f}")
        beside = list(Path(name).glob("page_files/*.webp"))
        size = sum(file.stat().st_size for file in beside) / 1e6
        print(f"pictures beside it: {len(beside)}, MB: {size:.1f}")
        for what, value in measured(page, chosen.chromium).items():
            print(f"{what}: {value:.3g}")


if __name__ == "__main__":
    main()

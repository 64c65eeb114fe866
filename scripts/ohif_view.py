"""Look at result objects in OHIF: screenshots of every series of a generated study.

    npm pack @ohif/app@3.13.2 && tar xzf ohif-app-*.tgz
    python scripts/ohif_view.py package/dist --out shots [--modality MR]

An Orthanc of this machine keeps a generated study and what normalis made of it; OHIF's built
files are served from DIST beside Orthanc's DICOMweb, all on the loopback address. Each series is
opened in Chromium. For each is printed how many grey values the viewport shows (a blank one has one
or two) and what the console said. It takes a minute or two, needs `make pacs` and `make browser`,
and is run by hand before a release, not by the tests.
"""

from __future__ import annotations

import argparse
import base64
import http.server
import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from pydicom.uid import generate_uid

import dicom_studies
from normalis import AnomalyDetector
from normalis.datasets import open_dataset, phantom
from normalis.pacs.export import objects_of
from normalis.pacs.peer import peer_at
from normalis.pacs.scoring import score_studies
from pacs_peers import OURS, PASSWORD, Orthanc, free_port, orthanc

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
]  # fmt: skip
_SETTLE_MS = 4000
_WIDTH, _HEIGHT = 1500, 900
THUMBNAILS = '[data-cy="study-browser-thumbnail"], [data-cy="study-browser-thumbnail-no-image"]'
SOURCE = {
    "friendlyName": "Orthanc", "name": "orthanc", "qidoRoot": "/dicom-web",
    "wadoRoot": "/dicom-web", "wadoUriRoot": "/dicom-web", "qidoSupportsIncludeField": True,
    "imageRendering": "wadors", "thumbnailRendering": "wadors", "enableStudyLazyLoad": True,
    "supportsFuzzyMatching": False, "supportsWildcard": True,
    "omitQuotationForMultipartRequest": True,
    "bulkDataURI": {"enabled": True, "relativeResolution": "studies"},
}  # fmt: skip
CONFIG = {
    "routerBasename": "/", "extensions": [], "modes": [], "showStudyList": True,
    "maxNumberOfWebWorkers": 1, "showWarningMessageForCrossOrigin": False,
    "showCPUFallbackMessage": False, "strictZSpacingForVolumeViewport": False,
    "investigationalUseDialog": {"option": "never"}, "defaultDataSourceName": "dicomweb",
    "dataSources": [{
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "dicomweb", "configuration": SOURCE,
    }],
}  # fmt: skip


def study_and_results(modality: str, folder: Path, size: int = 128) -> list[Any]:
    """Return a generated study with a lesion, and the objects that normalis makes of it.

    The map is left out: once opened, OHIF keeps its colours for the images under it.
    """
    rng = np.random.default_rng(1)
    heads, _ = phantom.render(rng.uniform(-0.3, 0.3, (240, 4)), image_size=size)
    normals = (200 + 3000 * (heads + rng.normal(0, 0.02, heads.shape))).astype("float32")
    lowest = -1024 if modality == "CT" else 0  # a CT says its values in Hounsfield units
    window = (lowest, lowest + 4095)
    normals += lowest
    detector = AnomalyDetector(method="pca", image_size=size, window=window, fpr=0.05)
    fitted = detector.fit(normals).fitted_
    volume = _volume(size)
    shared = dicom_studies.study("PHANTOM")
    if modality in ("DX", "CR"):
        sources = [dicom_studies.image(modality, volume[4], shared, series=generate_uid())]
    else:
        sources = dicom_studies.series(modality, volume, shared)
    dicom_studies.write(folder, sources)
    (study,) = score_studies(fitted, open_dataset(folder).to_score(), fpr=0.05)
    return [*sources, *objects_of(study, ("sc", "sr", "seg"))]


def _volume(size: int) -> np.ndarray[Any, Any]:
    """Return nine slices (9, S, S) of one head, the middle one with a bright disc."""
    factors = np.tile(np.array([0.1, -0.2, 0.1, 0.0]), (9, 1))
    factors += 0.1 * np.linspace(-1, 1, 9)[:, None]
    slices, _ = phantom.render(factors, image_size=size)
    y, x = np.mgrid[:size, :size] / size
    disc = np.clip(1.5 - np.hypot(x - 0.62, y - 0.4) / 0.06, 0, 1)
    slices[4] = np.maximum(slices[4], disc)
    noise = np.random.default_rng(5).normal(0, 0.02, slices.shape)
    return 200 + 3000 * np.clip(slices + noise, 0, 1)


def handler(dist: Path, server: Orthanc, port: int) -> type[http.server.SimpleHTTPRequestHandler]:
    """Return what answers: OHIF's files, its settings, and Orthanc's DICOMweb."""
    login = base64.b64encode(f"{OURS.lower()}:{PASSWORD}".encode()).decode()
    settings = f"window.config = {json.dumps(CONFIG)};".encode()

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(dist))

        def log_message(self, *given: Any) -> None:
            """Say nothing."""

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if path.startswith("/dicom-web"):
                self.answer(*self.from_orthanc())
            elif path == "/app-config.js":
                self.answer(200, settings, "text/javascript")
            elif not (dist / path.lstrip("/")).is_file():
                self.answer(200, (dist / "index.html").read_bytes(), "text/html")
            else:
                super().do_GET()

        def from_orthanc(self) -> tuple[int, bytes, str]:
            root = f"http://127.0.0.1:{server.http}"
            headers = {
                "Authorization": f"Basic {login}", "Accept": self.headers.get("Accept", "*/*")
            }  # fmt: skip
            asked = urllib.request.Request(root + self.path, headers=headers)
            try:
                with urllib.request.urlopen(asked, timeout=60) as given:
                    kind, body = given.headers.get("Content-Type", ""), given.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read(), "text/plain"
            if "json" in kind:
                body = body.replace(root.encode(), f"http://127.0.0.1:{port}".encode())
            return 200, body, kind

        def answer(self, code: int, body: bytes, kind: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

    return Handler


def look(page: Page, out: Path, longest_s: float) -> None:
    """Open every series and keep a screenshot of it."""
    page.wait_for_selector(THUMBNAILS, timeout=120_000)
    page.add_style_tag(content="[class*=shepherd] { display: none !important; }")  # a tour
    for number in range(page.locator(THUMBNAILS).count()):
        one = page.locator(THUMBNAILS).nth(number)
        name = " ".join(one.inner_text().split())[:60]
        one.dblclick(timeout=20_000)
        page.wait_for_timeout(_SETTLE_MS)
        for words in ("Yes", "Confirm"):  # of questions such as: open this segmentation?
            asked = page.get_by_role("button", name=words)
            if asked.count():
                asked.first.click()
                page.wait_for_timeout(_SETTLE_MS)
        until = time.monotonic() + longest_s
        while (greys := shown(page)) < 10 and time.monotonic() < until:
            # A viewport whose image came before it was ready stays black until something happens.
            page.mouse.move(_WIDTH / 2, _HEIGHT / 2)
            page.keyboard.press("Space")  # the key that resets the view
            page.wait_for_timeout(_SETTLE_MS)
            width = _WIDTH - 40 if page.viewport_size["width"] == _WIDTH else _WIDTH
            page.set_viewport_size({"width": width, "height": _HEIGHT})  # draws it again
            page.wait_for_timeout(_SETTLE_MS)
            one.dblclick(timeout=20_000)
            page.wait_for_timeout(_SETTLE_MS)
        page.wait_for_timeout(_SETTLE_MS)
        page.screenshot(path=out / f"{number}.png")
        print(f"{number}.png  {greys:4d} grey values  {name}", flush=True)


def shown(page: Page) -> int:
    """Return how many grey values the middle of the viewport shows."""
    grey = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    return len(np.unique(grey[150:-150, 400:-400]))


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dist", type=Path, help="folder dist of the package @ohif/app")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--modality", choices=("DX", "CR", "CT", "MR"), default="MR")
    parser.add_argument("--wait", type=float, default=60.0, help="seconds for a series to load")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    port, said = free_port(), []
    with orthanc() as server, sync_playwright() as playwright:
        objects = study_and_results(given.modality, given.out / "dicom")
        states = {one.state for one in peer_at(server.address).store(objects)}
        print(f"{len(objects)} objects in Orthanc: {', '.join(sorted(states))}", flush=True)
        answers = handler(given.dist.resolve(), server, port)
        site = http.server.ThreadingHTTPServer(("127.0.0.1", port), answers)
        threading.Thread(target=site.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.on("console", lambda m: said.append(m.text[:200]) if m.type == "error" else None)
        page.on("pageerror", lambda error: said.append(f"thrown: {error}"[:200]))
        uid = objects[0].StudyInstanceUID
        page.goto(f"http://127.0.0.1:{port}/viewer?StudyInstanceUIDs={uid}")
        look(page, given.out, given.wait)
        browser.close()
        site.shutdown()
    for line in dict.fromkeys(said):
        print(f"console: {line}")
    print(f"{len(said)} errors on the console")


if __name__ == "__main__":
    main()

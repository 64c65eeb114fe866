"""The page in a real browser: sliders, sorting, filters, keys, notes, print, and no connection."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

import report_folders as folders
from normalis.report import write_report
from normalis.research.page import write_results
from normalis.storage import write_json

CHROMIUM = Path("/usr/bin/chromium")
# Without these Chromium looks up its maker's hosts at every start.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MANY = 5000

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason=f"no {CHROMIUM}: `make browser` installs it on Debian"
    ),
]


@pytest.fixture(scope="module")
def browser():
    with playwright_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = folders.score_folder(tmp_path_factory.mktemp("scored"), pictures=36)
    write_json(folder / "audit.json", folders.audit())
    write_json(folder / "evaluation.json", folders.evaluation())
    return write_report(folder, folder / "page.html")


@pytest.fixture
def opened(browser):
    """Open pages; at the end nothing may have been logged, thrown or requested."""
    contexts, wrong = [], []

    def opener(file: Path, *, init: str = "", **options):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda error: wrong.append(f"thrown: {error}"))
        local = ("file:", "data:", "blob:")
        page.on("request", lambda r: r.url.startswith(local) or wrong.append(f"request: {r.url}"))
        if init:
            page.add_init_script(init)
        page.set_default_timeout(60_000)
        page.goto(file.as_uri())
        page.evaluate("document.getElementById('triage')?.scrollIntoView()")
        return page

    yield opener
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def page(opened, report):
    return opened(report)


def names(page) -> list[str]:
    """Names of the cards in view, in their order on the page."""
    cards = page.locator(".cases .case").all()
    order = [
        (int(c.get_attribute("data-position")), c.locator(".file").inner_text()) for c in cards
    ]
    return [name for _, name in sorted(order)]


def counts(page) -> dict[str, str]:
    terms, values = page.locator("#counts dt"), page.locator("#counts dd")
    return dict(zip(terms.all_inner_texts(), values.all_inner_texts(), strict=True))


def set_range(page, selector: str, value: float) -> None:
    page.locator(selector).evaluate(
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def test_threshold_slider_counts(page):
    assert counts(page)["flagged"].endswith("/40")
    set_range(page, "#threshold", 1000)
    assert counts(page)["flagged"] == "0 % 0/40"
    assert counts(page)["sensitivity"] == "0 % 0/14"
    assert page.locator(".cases .case.above").count() == 0
    page.fill("#threshold-value", "0")
    assert counts(page)["flagged"] == "100 % 40/40"
    assert counts(page)["false-positive rate"] == "100 % 26/26"
    assert counts(page)["expected at most"] == "100 %"
    page.get_by_role("button", name="5 %", exact=True).click()
    assert counts(page)["expected at most"] == "4.94 %"
    assert page.locator("#presets [aria-pressed=true]").inner_text() == "5 %"


def test_threshold_slider_by_key(page):
    before = float(page.input_value("#threshold-value"))
    page.locator("#threshold").focus()
    page.keyboard.press("ArrowRight")
    assert float(page.input_value("#threshold-value")) > before


def test_cases_come_by_p_value_then_score(page):
    data = page.locator(".cases .case .meta").all_inner_texts()[:6]
    values = [(float(t.split()[1]), -float(t.split()[3])) for t in data]
    assert values == sorted(values)


def test_sorting(page):
    page.select_option("#sort", "path")
    assert names(page)[0] == "glioma/img_0000.png"
    assert names(page) == sorted(names(page))
    page.select_option("#sort", "-score")
    scores = [float(t.split()[3]) for t in page.locator(".cases .case .meta").all_inner_texts()]
    assert scores == sorted(scores)


def test_filters(page):
    page.select_option("#class", "normal")
    assert page.inner_text("#shown") == "26 of 40 images"
    page.select_option("#which", "alarms")
    flagged = int(page.inner_text("#shown").split()[0])
    assert flagged == int(counts(page)["false-positive rate"].split()[2].split("/")[0])
    page.get_by_role("button", name="reset").click()
    page.fill("#patient", "P003")
    assert sorted(names(page)) == ["glioma/img_0006.png", "normal/img_0007.png"]
    page.fill("#patient", "")
    page.fill("#search", "IMG_001")
    assert page.inner_text("#shown") == "10 of 40 images"
    page.select_option("#class", "kind:meningioma")
    assert names(page) == ["glioma/img_0015.png"]
    page.fill("#search", "nothing")
    assert page.locator("#none").is_visible()


def test_pictures_are_painted_and_the_opacity_slider_fades_the_map(page):
    card = page.locator(".cases .case[data-painted=yes]").first
    card.wait_for()
    inked = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 60)"
    for name in ("image", "rebuilt", "under", "map"):
        assert card.locator(f"canvas.{name}").evaluate(inked), name
    opacity = "e => getComputedStyle(e).opacity"
    set_range(page, "#opacity", 30)
    assert card.locator("canvas.map").evaluate(opacity) == "0.3"
    page.keyboard.press("m")
    assert card.locator("canvas.map").evaluate(opacity) == "0"
    page.keyboard.press("m")
    assert card.locator("canvas.map").evaluate(opacity) == "0.3"


def test_quiet_map_paints_nothing(page):
    page.select_option("#class", "normal")
    card = page.locator(".cases .case[data-painted=yes]").first
    card.wait_for()
    painted = "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0)"
    assert not card.locator("canvas.map").evaluate(painted)


def test_case_without_a_picture_says_so(page):
    page.select_option("#sort", "path")
    page.fill("#search", "img_0039")
    assert page.locator(".cases .nopicture").is_visible()


def test_keys(page):
    focused = "document.activeElement.dataset.position"
    page.keyboard.press("j")
    assert page.evaluate(focused) == "0"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert page.evaluate(focused) == "1"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == "3"
    page.keyboard.press("End")
    assert page.evaluate(focused) == "39"
    assert page.locator(".case:focus").bounding_box()["y"] > 0
    page.keyboard.press("Home")
    assert page.evaluate(focused) == "0"
    page.keyboard.press("f")
    assert page.locator(".case:focus .mark").get_attribute("aria-pressed") == "true"
    page.keyboard.press("n")
    page.keyboard.type("jfk /m")
    assert page.locator(".case.current .note").input_value() == "jfk /m"
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "0"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"


def test_tab_reaches_a_card_and_its_controls(page):
    page.locator("#print").focus()
    for expected in ("case", "mark", "note"):
        page.keyboard.press("Tab")
        assert expected in page.evaluate("document.activeElement.className")


def exported(page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="export as CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


def test_notes_are_kept_and_exported(page):
    page.keyboard.press("j")
    page.keyboard.press("f")
    page.keyboard.press("j")
    page.keyboard.press("n")
    page.keyboard.type('=1+1, "quoted"')
    assert page.inner_text("#notes-state").startswith("2 marked or noted, kept")
    page.reload()
    assert page.inner_text("#notes-state").startswith("2 marked")
    page.select_option("#which", "marked")
    first, second = names(page)
    rows = exported(page)
    assert [row["path"] for row in rows] == [f"/data/phantoms/test/{n}" for n in (first, second)]
    assert [row["marked"] for row in rows] == ["1", "0"]
    assert [row["note"] for row in rows] == ["", '\'=1+1, "quoted"']
    assert float(rows[0]["anomaly_score"]) > float(rows[0]["threshold"])
    assert rows[0]["above_threshold"] == "1"


def test_notes_without_storage_warn_and_still_export(opened, report):
    refuse = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }});"
    page = opened(report, init=refuse)
    page.keyboard.press("j")
    page.keyboard.press("f")
    assert "export before you close" in page.inner_text("#notes-state")
    assert len(exported(page)) == 1


def test_names_are_shown_as_text(opened, tmp_path):
    bad = "<img src=x onerror=alert(1)>.png"
    folder = folders.score_folder(
        tmp_path / "s", n=4, pictures=0, names={0: bad}, patient_names={0: "<b>'\"</b>"}
    )
    page = opened(write_report(folder, tmp_path / "page.html"))
    assert bad in names(page)
    assert page.locator(".cases img").count() == 0
    assert "<b>'\"</b>" in page.locator(".cases").inner_text()


def test_print_holds_the_first_cases(page):
    page.locator("#print-cases .case").nth(39).wait_for(state="attached")
    page.emulate_media(media="print")
    assert page.locator("#print-cases").is_visible()
    assert not page.locator(".side").is_visible()
    assert page.locator("#print-cases").inner_text().startswith("40 of 40 images")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_window(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("document.getElementById('cases').scrollIntoView()")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    box = page.locator(".cases .case").first.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_every_control_has_a_name(page):
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('main input, main select, main button')]
        .filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))
        .map(e => e.outerHTML)"""
    )
    assert unnamed == []


def test_dark_scheme_changes_paper_and_charts(opened, report):
    colours = {}
    for scheme in ("light", "dark"):
        page = opened(report, color_scheme=scheme)
        colours[scheme] = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
            getComputedStyle(document.querySelector('.chart svg text')).fill]"""
        )
    assert colours["light"][0] != colours["dark"][0]
    assert colours["light"][1] != colours["dark"][1]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = folders.score_folder(tmp_path_factory.mktemp("many"), n=MANY, pictures=60)
    return write_report(folder, folder / "page.html")


def scroll_time(page) -> float:
    """Milliseconds from a jump to a far place until its cards are drawn, the median of several."""
    times = page.evaluate(
        """async () => {
            const height = document.documentElement.scrollHeight, times = [];
            for (let i = 0; i < 15; i++) {
                const before = performance.now();
                scrollTo(0, (height * ((i * 7) % 15)) / 15);
                await new Promise(requestAnimationFrame);
                await new Promise(requestAnimationFrame);
                times.push(performance.now() - before);
            }
            return times;
        }"""
    )
    return float(np.median(times))


@pytest.mark.slow
def test_thousands_of_images_scroll_like_few(opened, many, report):
    few, page = opened(report), opened(many)
    assert page.inner_text("#shown") == f"{MANY} of {MANY} images"
    # A ratio within one run: seconds say more of the machine than of the page.
    assert scroll_time(page) < 5 * scroll_time(few) + 50
    assert page.locator(".cases .case").count() < 60
    page.fill("#search", "img_00")
    assert page.inner_text("#shown").startswith("100 of")
    set_range(page, "#threshold", 400)
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.position") == "99"


def test_sweep_table_sorts_and_filters(opened, tmp_path):
    page = opened(write_results(folders.results_folder(tmp_path / "r"), tmp_path / "page.html"))

    def column(number: int) -> list[str]:
        return page.locator(
            f"#experiments tbody tr:visible > :nth-child({number})"
        ).all_inner_texts()

    page.get_by_role("button", name="AUROC").click()
    values = [float(text.split()[0]) for text in column(7)]
    assert values == sorted(values, reverse=True)
    page.get_by_role("button", name="AUROC").click()
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.get_by_role("button", name="d ↕", exact=True).click()
    assert column(4)[-2:] == ["", ""]  # without a latent vector: last
    page.select_option("#f-dataset", "kermany_cxr")
    page.select_option("#f-method", "vae")
    assert page.inner_text("#experiments-count") == "4 of 18"
    assert set(column(1)) == {"kermany_cxr"}
    page.fill("#f-text", "nothing")
    assert page.inner_text("#experiments-count") == "0 of 18"

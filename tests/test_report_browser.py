"""The page in a real browser: sliders, sorting, filters, keys, notes, print, and no connection."""

import csv
import io
import shutil
import subprocess
import tarfile
import tempfile
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
KNOWN = {
    "view": ["PA", "AP"] * 20,
    "seen_by": ["feature-knn", "ae", "ae", "ae"] * 10,
    "study_uid": [f"1.2.840.113619.2.176.3596.6864755.{i // 4}" for i in range(40)],
    "accession_number": [f"ACC{i // 4:04d}" for i in range(40)],
}

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
    """One list, without groups."""
    page = opened(report)
    page.select_option("#group", "none")
    return page


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """Scored images with large pictures, views and studies; the last four have no picture."""
    folder = folders.score_folder(
        tmp_path_factory.mktemp("studies"), pictures=36, large=(500, 400), known=KNOWN
    )
    rows = [f"P{i:03d},{0.001 if i == 9 else 0.5}" for i in range(20)]
    (folder / "patients.csv").write_text("\n".join(["patient,p_value", *rows]) + "\n")
    return write_report(folder, folder / "page.html")


@pytest.fixture
def viewer(opened, studies):
    """The worst case of a list without groups, large."""
    page = opened(studies)
    page.select_option("#group", "none")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.locator("#viewer[data-painted]").wait_for()
    return page


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


# --- the viewer ---


def shown(page) -> str:
    return page.locator("#viewer-title").inner_text()


def lies(page, pane: str = "image") -> tuple[float, float, float]:
    """Zoom, and where the scene begins in its stage."""
    matrix = page.locator(f"#stage-{pane} .scene").evaluate(
        "e => { const m = new DOMMatrix(getComputedStyle(e).transform); return [m.a, m.e, m.f]; }"
    )
    return tuple(matrix)


def middle(page, selector: str) -> tuple[float, float]:
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_enter_opens_a_case_large_and_escape_returns_to_its_card(viewer):
    first = shown(viewer)
    assert viewer.locator("#viewer-place").inner_text() == "1 of 40"
    size = viewer.locator("#stage-image canvas").evaluate("c => [c.width, c.height]")
    assert size == [400, 500]
    assert viewer.locator("#viewer-size").inner_text() == "image, 400 × 500"
    viewer.keyboard.press("j")
    viewer.keyboard.press("PageDown")
    viewer.keyboard.press("k")
    assert viewer.locator("#viewer-place").inner_text() == "2 of 40"
    assert shown(viewer) != first
    viewer.keyboard.press("Escape")
    assert not viewer.locator("#viewer").is_visible()
    assert viewer.evaluate("document.activeElement.dataset.position") == "1"


def test_a_click_opens_a_case_and_buttons_lead_on(opened, studies):
    page = opened(studies)
    page.locator(".cases .case .panels").first.click()
    assert page.locator("#viewer").is_visible()
    assert page.locator("#v-prev").is_disabled()
    page.locator("#v-next").click()
    assert page.locator("#viewer-place").inner_text() == "2 of 40"
    page.locator("#v-close").click()
    assert page.evaluate("document.activeElement.classList.contains('case')")
    page.locator(".cases .case .open").nth(1).click()
    assert page.locator("#viewer-place").inner_text() == "2 of 40"


def test_both_panes_zoom_and_move_together(viewer):
    viewer.keyboard.press("+")
    viewer.keyboard.press("+")
    assert lies(viewer)[0] == pytest.approx(1.5625)
    viewer.keyboard.press("ArrowLeft")
    assert lies(viewer)[1] > 0
    assert lies(viewer) == pytest.approx(lies(viewer, "map"))
    viewer.keyboard.press("-")
    assert lies(viewer)[0] == pytest.approx(1.25)
    viewer.keyboard.press("0")
    assert lies(viewer) == (1, 0, 0)
    viewer.locator("#v-in").click()
    assert lies(viewer)[0] == pytest.approx(1.25)


def test_the_wheel_zooms_about_the_pointer(viewer):
    x, y = middle(viewer, "#stage-map")
    viewer.mouse.move(x + 60, y - 40)
    under = """([x, y]) => {
        const box = document.querySelector('#stage-map .scene').getBoundingClientRect();
        return [(x - box.left) / box.width, (y - box.top) / box.height];
    }"""
    before = viewer.evaluate(under, [x + 60, y - 40])
    viewer.mouse.wheel(0, -120)
    viewer.wait_for_function("document.getElementById('v-zoom').textContent !== '100 %'")
    assert lies(viewer)[0] == pytest.approx(np.exp(0.3))
    assert viewer.evaluate(under, [x + 60, y - 40]) == pytest.approx(before, abs=1e-3)


def test_drag_moves_and_right_drag_sets_window_and_level(viewer):
    for _ in range(4):
        viewer.keyboard.press("+")
    x, y = middle(viewer, "#stage-image")
    viewer.mouse.move(x, y)
    viewer.mouse.down()
    viewer.mouse.move(x + 30, y + 20)
    viewer.mouse.up()
    assert lies(viewer)[1:] == pytest.approx((30, 20), abs=0.5)
    viewer.mouse.move(x, y)
    viewer.mouse.down(button="right")
    viewer.mouse.move(x - 80, y - 40)
    viewer.mouse.up(button="right")
    assert lies(viewer)[1:] == pytest.approx((30, 20), abs=0.5)
    assert viewer.locator("#v-window-value").inner_text() == "80 %"
    assert viewer.locator("#v-level-value").inner_text() == "40 %"


def test_window_and_level_by_key_change_what_is_seen(viewer):
    """A window of a fifth about the middle stretches grey values five times."""
    for _ in range(20):
        viewer.keyboard.press("w")
    assert viewer.locator("#v-window-value").inner_text() == "20 %"
    slope = viewer.locator("#window-level feFuncR")
    assert float(slope.get_attribute("slope")) == pytest.approx(5)
    assert float(slope.get_attribute("intercept")) == pytest.approx(-2)
    filtered = "e => getComputedStyle(e).filter"
    assert "window-level" in viewer.locator("#stage-map .vimage").evaluate(filtered)
    viewer.keyboard.press("L")
    assert viewer.locator("#v-level-value").inner_text() == "52 %"
    set_range(viewer, "#v-window", 50)
    assert viewer.locator("#v-window-value").inner_text() == "50 %"
    viewer.keyboard.press("0")
    assert viewer.locator("#stage-map .vimage").evaluate(filtered) == "none"


def test_outlines_opacity_and_the_own_scale(viewer):
    line, ring = "#stage-map .vlines path.line", "#stage-map .vlines ellipse.line"
    assert viewer.locator(line).get_attribute("d").startswith("M")
    assert viewer.locator(ring).count() == 0
    painted = (
        "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        ".filter((v, k) => k % 4 === 3 && v > 0).length"
    )
    few = viewer.locator(".vmap").evaluate(painted)
    viewer.keyboard.press("s")
    viewer.locator("#viewer[data-painted]").wait_for()
    assert viewer.locator("#v-own").get_attribute("aria-pressed") == "true"
    assert viewer.locator(".vmap").evaluate(painted) > 2 * few
    assert viewer.locator(ring).count() == 1
    viewer.keyboard.press("o")
    assert viewer.locator(line).count() == 0
    set_range(viewer, "#v-opacity", 20)
    assert viewer.locator(".vmap").evaluate("e => getComputedStyle(e).opacity") == "0.2"
    viewer.keyboard.press("m")
    assert viewer.locator("#v-opacity-value").inner_text() == "0 %"
    assert viewer.input_value("#opacity") == "0"


def test_a_quiet_map_has_a_ring_and_no_outline(viewer):
    viewer.keyboard.press("Escape")
    viewer.select_option("#class", "normal")
    viewer.select_option("#which", "below")
    viewer.keyboard.press("j")
    viewer.keyboard.press("Enter")
    viewer.locator("#viewer[data-painted]").wait_for()
    assert viewer.locator(".vlines path").count() == 0
    assert viewer.locator(".vlines ellipse.line").count() == 1
    assert viewer.locator("#viewer-where").inner_text().startswith("Nothing is above")


def test_a_case_without_a_picture_says_so_in_the_viewer(viewer):
    viewer.keyboard.press("Escape")
    viewer.fill("#search", "img_0039")
    viewer.locator(".cases .open").click()
    viewer.locator("#viewer[data-painted=none]").wait_for()
    assert viewer.locator("#viewer-where").inner_text() == "no picture"


def test_a_scoring_without_large_pictures_shows_the_small_ones(opened, report):
    page = opened(report)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.locator("#viewer[data-painted]").wait_for()
    assert page.locator("#viewer-size").inner_text() == "image, 160 × 160"
    assert page.locator("#v-own").is_disabled()


def test_reviewed_marks_and_notes_are_undone_one_by_one(viewer):
    seen, pressed = viewer.locator("#v-seen"), "aria-pressed"
    viewer.keyboard.press("r")
    viewer.keyboard.press("f")
    viewer.keyboard.press("n")
    viewer.keyboard.type("left lower zone")
    viewer.keyboard.press("Enter")
    viewer.keyboard.press("j")
    viewer.keyboard.press("k")
    assert viewer.input_value("#v-note") == "left lower zone"
    viewer.keyboard.press("Control+z")
    assert viewer.input_value("#v-note") == ""
    viewer.keyboard.press("Control+z")
    assert viewer.locator("#v-mark").get_attribute(pressed) == "false"
    assert seen.get_attribute(pressed) == "true"
    viewer.keyboard.press("Escape")
    assert viewer.locator(".case.current .seen").get_attribute(pressed) == "true"
    assert viewer.inner_text("#reviewed-state") == "1 of 40 reviewed"
    viewer.keyboard.press("Control+z")
    assert viewer.inner_text("#reviewed-state") == "0 of 40 reviewed"
    assert viewer.locator("#undo").is_disabled()
    viewer.keyboard.press("Control+z")  # nothing is left to undo


def test_reviewed_is_kept_filtered_and_exported(page):
    page.keyboard.press("j")
    page.keyboard.press("r")
    page.reload()
    assert page.inner_text("#reviewed-state") == "1 of 40 reviewed"
    assert page.inner_text("#notes-state").startswith("0 marked")
    page.select_option("#which", "unread")
    assert page.inner_text("#shown") == "39 of 40 images"
    page.select_option("#which", "read")
    assert page.inner_text("#shown") == "1 of 40 images"
    rows = exported(page)
    assert [(row["reviewed"], row["marked"]) for row in rows] == [("1", "0")]


# --- groups and filters ---


def heads(page) -> list[str]:
    """Names of the groups in view, in their order on the page."""
    found = page.locator(".cases .ghead").all()
    order = [(int(h.get_attribute("data-start")), h.locator(".gname").inner_text()) for h in found]
    return [name for _, name in sorted(order)]


def test_patients_are_grouped_worst_first(opened, report):
    page = opened(report)
    assert page.input_value("#group") == "patient"
    worst = page.locator(".cases .case .meta").first.inner_text().split()
    assert heads(page)[0] == f"Patient {worst[5]}"
    patients = [t.split()[5] for t in page.locator(".cases .case .meta").all_inner_texts()]
    assert patients[::2] == patients[1::2]  # two images each, together
    scores = [float(t.split()[3]) for t in page.locator(".cases .case .meta").all_inner_texts()]
    assert scores[::2] == sorted(scores[::2], reverse=True)


def test_patients_come_by_their_own_p_value_where_it_is_known(opened, studies):
    page = opened(studies)
    assert heads(page)[0] == "Patient P009"
    assert "p of the patient 0.001" in page.locator(".gfacts").first.inner_text()


def test_studies_are_grouped_and_reviewed_at_once(opened, studies):
    page = opened(studies)
    page.select_option("#group", "study")
    assert heads(page)[0].startswith("Study ACC")
    page.locator(".gseen").first.click()
    assert page.inner_text("#reviewed-state") == "4 of 40 reviewed"
    assert page.locator(".gseen").first.inner_text() == "✓ all reviewed"
    page.locator("#undo").click()
    assert page.inner_text("#reviewed-state") == "0 of 40 reviewed"


def test_keys_move_through_groups(opened, studies):
    page = opened(studies)
    page.select_option("#group", "study")
    page.keyboard.press("j")
    for key, expected in (("ArrowDown", "2"), ("ArrowDown", "4"), ("ArrowRight", "5"),
                          ("ArrowUp", "3"), ("End", "39")):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.dataset.position") == expected


def test_filters_by_view_member_and_p_value(opened, studies):
    page = opened(studies)
    page.select_option("#view", "AP")
    assert page.inner_text("#shown") == "20 of 40 images"
    page.select_option("#seen_by", "feature-knn")
    assert page.inner_text("#shown") == "0 of 40 images"
    page.get_by_role("button", name="reset", exact=True).first.click()
    page.fill("#pmost", "0.05")
    below = int(page.inner_text("#shown").split()[0])
    assert 0 < below < 40
    values = [float(t.split()[1]) for t in page.locator(".cases .case .meta").all_inner_texts()]
    assert max(values) <= 0.05
    page.fill("#pmost", "")
    page.fill("#search", "acc0003")
    assert page.inner_text("#shown") == "4 of 40 images"


def test_long_names_are_cut_in_the_middle(opened, tmp_path):
    uids = {i: f"1.2.826.0.1.3680043.8.498.1005{'7' * 60}.{i}.dcm" for i in range(4)}
    folder = folders.score_folder(tmp_path / "s", n=4, pictures=0, names=uids)
    page = opened(write_report(folder, tmp_path / "page.html"))
    for card in page.locator(".cases .case").all():
        end, file = card.locator(".file .end"), card.locator(".file")
        assert end.inner_text().endswith(".dcm")
        inside, outside = end.bounding_box(), file.bounding_box()
        assert inside["x"] + inside["width"] <= outside["x"] + outside["width"] + 1
        start = card.locator(".file .start")
        assert start.evaluate("e => e.scrollWidth > e.clientWidth")


# --- pictures beside the page ---


def test_pictures_beside_the_page_are_loaded_when_seen(opened, tmp_path, monkeypatch):
    from normalis.report import triage

    monkeypatch.setattr(triage, "EMBEDDED", 10)
    folder = folders.score_folder(tmp_path / "s", n=200, large=(90, 60))
    page, asked = opened(write_report(folder, tmp_path / "page.html")), []
    page.on("request", lambda r: asked.append(r.url) if r.url.endswith(".webp") else None)
    page.reload()
    page.locator(".cases .case[data-painted=yes]").nth(1).wait_for()
    assert 0 < len(asked) < 100  # of 400 small pictures
    page.locator(".cases .open").first.click()
    page.locator("#viewer[data-painted]").wait_for()
    assert page.locator("#viewer-size").inner_text() == "image, 60 × 90"


# --- accessibility ---


@pytest.fixture(scope="session")
def axe():
    """axe-core as a text of JavaScript, from npm's cache or registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: axe-core cannot be fetched")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "axe-core@4", "--prefer-offline", "--silent"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"axe-core is neither in npm's cache nor to be had: {error}")
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as packed:
            return packed.extractfile("package/axe.min.js").read().decode()


def violations(page, axe: str) -> list[str]:
    page.evaluate(axe)
    return page.evaluate(
        """async () => (await axe.run(document, {resultTypes: ['violations']})).violations
        .flatMap(v => v.nodes.map(n => `${v.id}: ${v.help}: ${n.target} ${n.failureSummary}`))"""
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_the_worklist(opened, studies, axe, scheme):
    page = opened(studies, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.locator(".cases .case .seen").first.click()
    page.locator(".cases .case[data-painted=yes]").first.wait_for()
    assert violations(page, axe) == []


def test_axe_finds_nothing_in_the_viewer(viewer, axe):
    viewer.keyboard.press("r")
    assert violations(viewer, axe) == []


def test_axe_finds_nothing_on_a_phone_and_on_other_pages(opened, studies, tmp_path, axe):
    page = opened(studies)
    page.set_viewport_size({"width": 390, "height": 800})
    assert violations(page, axe) == []
    run = opened(write_report(folders.run_folder(tmp_path / "run"), tmp_path / "run.html"))
    assert violations(run, axe) == []
    sweep = opened(write_results(folders.results_folder(tmp_path / "r"), tmp_path / "sweep.html"))
    assert violations(sweep, axe) == []


def test_the_viewer_fits_a_phone(viewer):
    viewer.set_viewport_size({"width": 390, "height": 800})
    assert viewer.evaluate("document.documentElement.scrollWidth") <= 390
    for name in ("#stage-image", "#stage-map", "#v-seen"):
        box = viewer.locator(name).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390


def test_print_opens_what_is_folded(page):
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.more:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.more[open]").count() == 0


def test_links_open_what_is_folded(page):
    page.locator(".bar a[href='#calibration']").click()
    assert page.locator("#calibration table").is_visible()


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


BROKEN = """() => {
  const broken = [];
  for (const cell of document.querySelectorAll("td, th")) {
    for (const node of cell.childNodes) {
      if (node.nodeType !== Node.TEXT_NODE) continue;
      for (const word of node.textContent.matchAll(/[^\\s\\u2010-]+/g)) {
        const range = document.createRange();
        range.setStart(node, word.index);
        range.setEnd(node, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map((r) => Math.round(r.top)));
        if (lines.size > 1) broken.push(word[0]);
      }
    }
  }
  return broken;
}"""


@pytest.mark.parametrize("width", [1400, 1000, 390])
def test_no_table_of_a_run_breaks_a_word(browser, tmp_path, width):
    page_file = write_report(folders.run_folder(tmp_path / "run"), tmp_path / "page.html")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(page_file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert page.locator(".facts td").count() > 10
    assert page.evaluate(BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()

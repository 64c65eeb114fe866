"""The service's pages in a real browser: reviews, filters, login, narrow screens, accessibility."""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("highdicom", reason="needs the extra serve")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

import uvicorn

from normalis.pacs.transfer import file_name, save
from normalis.serve.store import Store
from normalis.serve.users import Users, add_user
from normalis.serve.web import WebSettings, make_app
from pacs_peers import free_port
from test_pacs_objects import BUILDERS, scored
from test_report_browser import axe, browser, pytestmark, violations  # noqa: F401 - fixtures, marks

SCHEMES = ("light", "dark")
WIDTHS = (1280, 500, 390)
PASSWORD = "a long password"


def fill(store: Store) -> str:
    """Put studies of every state into a store; return the address of one that is scored."""
    shown = ""
    for number in range(9):
        case = scored("DX" if number % 2 else "MR")
        uid = case.uid
        store.received(
            sop=f"{uid}.1", study=uid, series=f"{uid}.2", sop_class="1", path=store.spool / "a.dcm",
            sender="CT1", quiet_s=0 if number < 8 else 600,
        )  # fmt: skip
        if number == 8:
            break  # one that has not been scored yet
        job = store.next_job()
        if number == 7:
            store.not_scored(job, "none of its 3 images could be read", again=False)
            continue
        folder = store.outgoing / file_name(uid).removesuffix(".dcm")
        objects = {
            str(data.SOPInstanceUID): save(data, folder)
            for kind in ("sc", "sr")
            for data in BUILDERS[kind](case)
        }
        store.scored(uid, result(number, len(case.images)), objects)
        for sop in objects:
            if number == 1:
                for _ in range(8):
                    store.sent(sop, "refused", "status 0xA700")
            else:
                store.sent(sop, "kept", "")
        shown = shown or f"/study/{folder.name}"
    return shown


def result(number: int, images: int) -> dict:
    p_value = [0.0204, 0.0408, 0.3, 0.41, None, 0.77, 0.9][number]
    cases = [
        {"place": f"series 2 image {i}", "score": 0.1 / (i + 1), "p_value": p_value, "regions": 1}
        for i in range(images)
    ]
    notes = ["scanner B: no normal image of it calibrates, so that its 3 images have no p-value"]
    return {
        "p_value": p_value, "score": 0.1, "flagged": p_value is not None and p_value < 0.05,
        "calibration_units": 48 if p_value else None, "images": images,
        "aside": {"a localizer": 1} if number == 2 else {},
        "patient_id": f"PATIENT-{number:05d}", "study_date": "20260301",
        "accession_number": f"A00{number}", "description": "CHEST, PA AND LATERAL, ERECT",
        "modality": "DX", "worst": "series 2 image 1", "cases": cases, "model": "abc",
        "not_made": [], "notes": [] if p_value else notes,
        "within": "scanner" if number > 3 else "",
    }  # fmt: skip


@contextlib.contextmanager
def shown(folder, **settings):
    """Serve pages of a filled store; yield its address and that of a study."""
    store, port = Store(folder / "data"), free_port()
    study = fill(store)
    worker = SimpleNamespace(
        peer=object(), peer_problem=settings.pop("problem", ""), last_seen=store.now()
    )
    page = WebSettings(hosts=("127.0.0.1",), viewer="http://pacs/viewer?id={study}", **settings)
    server = uvicorn.Server(
        uvicorn.Config(make_app(store, worker, page), port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield SimpleNamespace(root=f"http://127.0.0.1:{port}", study=study, store=store)
    finally:
        server.should_exit = True
        thread.join(20)
        store.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with shown(tmp_path_factory.mktemp("s"), problem="PACS@10.0.0.5:4242: no association") as one:
        yield one


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service that asks who reads."""
    folder = tmp_path_factory.mktemp("g")
    add_user(folder / "users", "ada", PASSWORD)
    with shown(folder, users=Users.read(folder / "users")) as one:
        yield one


@pytest.fixture
def opened(browser):  # noqa: F811
    """Open pages; at the end nothing unexpected may have been logged, thrown or refused."""
    contexts, wrong = [], []

    def opener(url: str, *, width: int = 1280, scheme: str = "light", context=None):
        if context is None:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda error: wrong.append(f"thrown: {error}"))
        page.set_default_timeout(60_000)
        page.goto(url)
        return page

    yield opener
    for context in contexts:
        context.close()
    expected = ("401", "404", "409")  # answers that these tests ask for
    assert [w for w in wrong if not any(code in w for code in expected)] == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("where", ["worklist", "study", "error"])
def test_axe_finds_nothing_and_nothing_is_cut_off(opened, service, axe, where, width, scheme):  # noqa: F811
    path = {"worklist": "/", "study": service.study, "error": "/study/absent"}[where]
    page = opened(service.root + path, width=width, scheme=scheme)
    assert violations(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_login_is_in_order_before_and_after_a_wrong_password(
    opened,
    guarded,
    axe,  # noqa: F811
    width,
    scheme,
):
    page = opened(guarded.root + "/", width=width, scheme=scheme)
    assert page.url.endswith("/login")
    assert violations(page, axe) == []
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Log in").click()
    assert "is wrong" in page.get_by_role("alert").inner_text()
    assert violations(page, axe) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_reader_logs_in_where_he_wanted_to_be_reviews_and_logs_out(opened, guarded):
    page = opened(guarded.root + guarded.study)
    assert "/login?then=/study/" in page.url
    page.get_by_label("Name").fill("ada")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Password").press("Enter")
    page.wait_for_url("**/study/*")
    page.get_by_label("agree", exact=True).check()
    page.get_by_label("Note").fill("upper left")
    page.get_by_role("button", name="Keep").click()
    page.get_by_text("Kept.").wait_for()
    page.reload()
    assert page.get_by_label("agree", exact=True).is_checked()
    assert page.get_by_label("Note").input_value() == "upper left"
    assert "last by ada" in page.content()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    page.goto(guarded.root + guarded.study)
    assert "/login" in page.url


def test_two_tabs_do_not_overwrite_each_other(opened, service):
    first = opened(service.root + service.study)
    second = opened(service.root + service.study, context=first.context)
    first.get_by_label("disagree").check()
    first.get_by_role("button", name="Keep").click()
    first.get_by_text("Kept.").wait_for()
    second.get_by_label("seen").check()
    second.get_by_role("button", name="Keep").click()
    second.get_by_text('said "disagree" meanwhile').wait_for()
    second.reload()
    assert second.get_by_label("disagree").is_checked()


def test_the_list_is_filtered_and_says_how_many_are_shown(opened, service):
    page = opened(service.root + "/")
    assert page.locator("#shown").inner_text() == "9 studies"
    page.get_by_label("Search").fill("patient-00002")
    assert page.locator("#shown").inner_text() == "1 of 9 studies"
    assert page.locator("#studies tbody tr:visible").count() == 1
    page.get_by_label("Search").fill("")
    page.get_by_label("Show").select_option("new")
    assert "PATIENT-00005" in page.locator("#studies").inner_text()
    assert "no association" in page.get_by_role("alert").inner_text()


def test_the_keyboard_reaches_everything(opened, service):
    page = opened(service.root + "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "search"
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/study/*")


def test_what_was_given_up_is_tried_again(opened, service):
    page = opened(service.root + "/")
    page.get_by_role("link", name="PATIENT-00001").click()
    assert "status 0xA700" in page.content()
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("button", name="Try again").wait_for(state="detached")
    assert service.store.counts().get("objects_dead", 0) == 0


def test_the_page_says_why_there_is_no_p_value(opened, service):
    page = opened(service.root + "/")
    page.get_by_role("link", name="PATIENT-00004").click()
    said = page.locator(".facts").inner_text()
    assert "none: see the note" in said
    assert "scanner B: no normal image of it calibrates" in said

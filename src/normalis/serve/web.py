"""The page of the service: studies by p-value, their pictures, what readers say of them.

On a loopback address it needs no password. Anywhere else it starts only with a file of users, or
with the name of the header in which a reverse proxy says who has logged in there. What changes
anything needs a token of the session, so that no other site can do it in a reader's name.
"""

from __future__ import annotations

import csv
import hmac
import io
import ipaddress
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined, select_autoescape
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route

from normalis.errors import SettingsError
from normalis.files import safe_cell
from normalis.output.pseudonyms import no_pseudonyms
from normalis.pacs.transfer import file_name
from normalis.serve.store import REVIEW_STATES, Store
from normalis.serve.users import Session, Sessions, Users
from normalis.serve.worker import Worker

__all__ = ["WebSettings", "check_exposure", "make_app"]

_COOKIE = "normalis_session"
_LATE_S = 120.0
_LONGEST_NOTE = 2000
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class WebSettings:
    """How the page is shown, and to whom.

    Attributes:
        users: who may log in; None on a loopback address or behind a proxy.
        proxy_header: header in which a reverse proxy names the reader; None without one.
        hosts: names under which the page may be asked for.
        secure: whether it is served over TLS, so that cookies may say so.
        viewer: address of a study in a viewer, with ``{study}`` for its UID; empty without one.
        leaves: what turns cells of the downloaded table into those that may leave the hospital.
    """

    users: Users | None = None
    proxy_header: str | None = None
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    secure: bool = False
    viewer: str = ""
    leaves: Callable[[str, str], str] = no_pseudonyms


def check_exposure(host: str, settings: WebSettings) -> None:
    """Refuse to show patients' data to a network without asking who reads.

    Raises:
        SettingsError: if the address is no loopback one and nobody must log in.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback and settings.users is None and settings.proxy_header is None:
        raise SettingsError(
            f"the page on {host} could be read by anyone on the network: give --users FILE, or "
            "--proxy-header NAME where a reverse proxy asks who reads, or listen on 127.0.0.1"
        )


def make_app(store: Store, worker: Worker, settings: WebSettings) -> Starlette:
    """Return the web application."""
    page = _Page(store, worker, settings)
    routes = [
        Route("/", page.worklist),
        Route("/worklist.csv", page.table),
        Route("/study/{key}", page.study),
        Route("/study/{key}/picture/{number:int}.png", page.picture),
        Route("/study/{key}/review", page.review, methods=["POST"]),
        Route("/study/{key}/again", page.again, methods=["POST"]),
        Route("/login", page.login, methods=["GET", "POST"]),
        Route("/logout", page.logout, methods=["POST"]),
        Route("/static/{name}", page.static),
        Route("/health", page.health),
        Route("/ready", page.ready),
        Route("/metrics", page.metrics),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[*settings.hosts]),
        Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
    ]
    handlers: dict[Any, Any] = {HTTPException: page.failed}
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


async def _with_headers(
    request: Request, call: Callable[[Request], Awaitable[Response]]
) -> Response:
    answer = await call(request)
    for name, value in _HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


class _Page:
    def __init__(self, store: Store, worker: Worker, settings: WebSettings) -> None:
        self.store, self.worker, self.settings = store, worker, settings
        self.sessions = Sessions()
        self.token = secrets.token_urlsafe(32)  # of readers without a session of their own
        names = ("worklist.html", "study.html", "login.html", "error.html", "base.html")
        sources = {name: _template(name) for name in names}
        self.templates = Environment(
            loader=DictLoader(sources),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
        )
        self.templates.filters["day"] = _day

    # --- who ---

    def session(self, request: Request) -> Session:
        """Return who reads.

        Raises:
            HTTPException: 401 if nobody is logged in.
        """
        if self.settings.proxy_header is not None:
            user = request.headers.get(self.settings.proxy_header, "").strip()
            if not user:
                raise HTTPException(401, "the proxy names no reader")
            return Session(user, self.token, float("inf"))
        if self.settings.users is None:
            return Session("local", self.token, float("inf"))
        found = self.sessions.find(request.cookies.get(_COOKIE, ""))
        if found is None:
            raise HTTPException(401, "log in first")
        return found

    def changing(self, request: Request) -> Session:
        """Return who changes something.

        Raises:
            HTTPException: 403 without the session's token.
        """
        session = self.session(request)
        if not hmac.compare_digest(request.headers.get("X-CSRF-Token", ""), session.csrf):
            raise HTTPException(403, "the token of the page is missing or old; reload the page")
        return session

    def show(self, name: str, session: Session | None, **values: Any) -> HTMLResponse:
        """Render a page."""
        given = {
            "user": session.user if session else "",
            "csrf": session.csrf if session else "",
            "logs_in": self.settings.users is not None,
            "states": REVIEW_STATES,
        }
        return HTMLResponse(self.templates.get_template(name).render(**given, **values))

    async def login(self, request: Request) -> Response:
        """Ask who reads."""
        users = self.settings.users
        if users is None:
            return RedirectResponse("/", 303)
        if request.method == "GET":
            then = request.query_params.get("then", "")
            return self.show("login.html", None, problem="", then=_ours(then))
        form = await request.form()
        then = _ours(str(form.get("then", "")))
        name = str(form.get("name", ""))
        if not users.check(name, str(form.get("password", ""))):
            self.store.note(name[:64] or "nobody", "login failed")
            answer = self.show("login.html", None, problem="Name or password is wrong.", then=then)
            answer.status_code = 401
            return answer
        self.store.note(name, "login")
        welcome = RedirectResponse(then, 303)
        welcome.set_cookie(
            _COOKIE,
            self.sessions.begin(name),
            httponly=True,
            samesite="strict",
            secure=self.settings.secure,
        )
        return welcome

    async def failed(self, request: Request, error: Exception) -> Response:
        """Say what went wrong: to a reader as a page, else in one line."""
        assert isinstance(error, HTTPException)
        if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(error.detail, error.status_code)
        if error.status_code == 401 and self.settings.users is not None:
            then = _ours(request.url.path)
            return RedirectResponse("/login" if then == "/" else f"/login?then={then}", 303)
        answer = self.show("error.html", None, said=error.detail)
        answer.status_code = error.status_code
        return answer

    async def logout(self, request: Request) -> Response:
        """End the session."""
        session = self.changing(request)
        self.sessions.end(request.cookies.get(_COOKIE, ""))
        self.store.note(session.user, "logout")
        return JSONResponse({"done": True})

    # --- what is there ---

    async def worklist(self, request: Request) -> Response:
        """Show the studies by p-value."""
        session = self.session(request)
        return self.show(
            "worklist.html",
            session,
            studies=self._studies(),
            problem=self.worker.peer_problem,
        )

    def _studies(self) -> list[dict[str, Any]]:
        found = self.store.studies()
        for entry in found:
            entry["key"] = _key(entry["uid"])
        return found

    def _study(self, request: Request) -> dict[str, Any]:
        key = request.path_params["key"]
        for (uid,) in self.store.run("SELECT uid FROM study"):
            if hmac.compare_digest(_key(uid), key):
                (entry,) = self.store.studies(uid)
                return {**entry, "key": key}
        raise HTTPException(404, "there is no such study")

    async def study(self, request: Request) -> Response:
        """Show one study with its pictures."""
        session = self.session(request)
        entry = self._study(request)
        self.store.note(session.user, "opened", entry["uid"])
        objects = self.store.run(
            "SELECT sop,state,tries,error FROM outbox WHERE study=? ORDER BY sop", entry["uid"]
        )
        viewer = self.settings.viewer.replace("{study}", entry["uid"])
        return self.show(
            "study.html",
            session,
            study=entry,
            pictures=len(self._pictures(entry["key"])),
            objects=[dict(row) for row in objects],
            viewer=viewer,
            sends=self.worker.peer is not None,
        )

    def _pictures(self, key: str) -> list[Path]:
        """Return the files of a study's secondary captures, in their order."""
        import pydicom

        folder = self.store.outgoing / key
        numbered = []
        for path in sorted(folder.glob("*.dcm")) if folder.is_dir() else []:
            data = pydicom.dcmread(path, specific_tags=["SOPClassUID", "InstanceNumber"])
            if str(data.SOPClassUID) == "1.2.840.10008.5.1.4.1.1.7":
                numbered.append((int(data.InstanceNumber), path))
        return [path for _, path in sorted(numbered)]

    async def picture(self, request: Request) -> Response:
        """Show one picture of a study."""
        import pydicom
        from PIL import Image

        self.session(request)
        pictures = self._pictures(self._study(request)["key"])
        number = request.path_params["number"]
        if not 1 <= number <= len(pictures):
            raise HTTPException(404, "there is no such picture")
        shown = io.BytesIO()
        Image.fromarray(pydicom.dcmread(pictures[number - 1]).pixel_array).save(shown, "PNG")
        return Response(shown.getvalue(), media_type="image/png")

    async def table(self, request: Request) -> Response:
        """Return the worklist as CSV."""
        session = self.session(request)
        self.store.note(session.user, "exported the worklist")
        text = io.StringIO()
        columns = (
            "study_uid", "patient_id", "study_date", "accession_number", "modality", "state",
            "p_value", "score", "flagged", "images", "review", "note", "reader",
        )  # fmt: skip
        writer = csv.writer(text)
        writer.writerow(columns)
        for entry in self._studies():
            result = entry["result"]
            row = [
                entry["uid"], result.get("patient_id", ""), result.get("study_date", ""),
                result.get("accession_number", ""), result.get("modality", ""), entry["state"],
                result.get("p_value"), result.get("score"), result.get("flagged"),
                entry["images"], entry["review"], entry["note"], entry["reader"],
            ]  # fmt: skip
            said = ("" if v is None else str(v) for v in row)
            leaves = self.settings.leaves
            writer.writerow(
                [safe_cell(leaves(name, v)) for name, v in zip(columns, said, strict=True)]
            )
        return PlainTextResponse(
            "\ufeff" + text.getvalue(),
            media_type="text/csv",
            headers={"Content-Disposition": 'attachment; filename="worklist.csv"'},
        )

    async def static(self, request: Request) -> Response:
        """Return the style or the script."""
        kinds = {
            "serve.css": "text/css", "serve.js": "text/javascript", "icon.svg": "image/svg+xml",
        }  # fmt: skip
        name = request.path_params["name"]
        if name not in kinds:
            raise HTTPException(404, "there is no such file")
        return Response(_template(name), media_type=kinds[name])

    # --- what readers do ---

    async def review(self, request: Request) -> Response:
        """Keep what a reader says, unless somebody else said something meanwhile."""
        session, entry = self.changing(request), self._study(request)
        try:
            body = await request.json()
            state, note, version = str(body["state"]), str(body["note"]), int(body["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise HTTPException(400, "a review needs state, note and version") from error
        if state not in REVIEW_STATES or len(note) > _LONGEST_NOTE:
            raise HTTPException(
                400, f"state must be one of {', '.join(REVIEW_STATES)}, the note at most "
                f"{_LONGEST_NOTE} characters",
            )  # fmt: skip
        kept = self.store.set_review(
            entry["uid"], state=state, note=note, who=session.user, version=version
        )
        return JSONResponse(self.store.review(entry["uid"]), status_code=200 if kept else 409)

    async def again(self, request: Request) -> Response:
        """Let what was given up be tried again."""
        session, entry = self.changing(request), self._study(request)
        return JSONResponse({"again": self.store.send_again(entry["uid"], session.user)})

    # --- for machines ---

    async def health(self, request: Request) -> Response:
        """Say whether the service works; 503 if its worker does not."""
        late = self.store.now() - self.worker.last_seen
        free = shutil.disk_usage(self.store.folder).free
        said = {
            "worker_silent_s": round(late, 1),
            "oldest_waiting_s": round(self.store.oldest_wait_s(), 1),
            "disk_free_bytes": free,
            "pacs_problem": self.worker.peer_problem,
            **self.store.counts(),
        }
        return JSONResponse(said, status_code=200 if late < _LATE_S else 503)

    async def ready(self, request: Request) -> Response:
        """Say whether studies can be taken."""
        self.store.counts()
        return PlainTextResponse("ready")

    async def metrics(self, request: Request) -> Response:
        """Return the counts in the text format that Prometheus reads."""
        counts = {**self.store.counts(), "oldest_waiting_seconds": self.store.oldest_wait_s()}
        lines = [f"normalis_{name} {value:g}" for name, value in sorted(counts.items())]
        return PlainTextResponse("\n".join(lines) + "\n")


def _key(uid: str) -> str:
    """Return what names a study in addresses: no UID stands in a browser's history."""
    return file_name(uid).removesuffix(".dcm")


def _ours(path: str) -> str:
    """Return where a reader goes after login: a study's page if that was asked for."""
    study = path.removeprefix("/study/")
    return path if path.startswith("/study/") and study.isalnum() else "/"


def _day(text: str) -> str:
    """Return a date of DICOM as people write it; anything else as it is."""
    whole = len(text) == 8 and text.isdecimal()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if whole else text


def _template(name: str) -> str:
    return (files("normalis.serve") / "templates" / name).read_text(encoding="utf-8")

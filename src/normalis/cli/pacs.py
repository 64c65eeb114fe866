"""The commands that talk DICOM: export-dicom, pull, push, serve, serve-user."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from normalis.cli.console import console, errors, progress, table
from normalis.cli.stopping import Stopped
from normalis.errors import SettingsError
from normalis.errors.extras import require
from normalis.errors.words import counted

if TYPE_CHECKING:
    import ssl

    from normalis.fitted import FittedDetector
    from normalis.pacs.peer import Peer

__all__ = ["app"]

app = typer.Typer()

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `fit` wrote.")]
Pacs = Annotated[
    str,
    typer.Option(
        "--pacs",
        help="AET@HOST:PORT, or a DICOMweb address (user and password: NORMALIS_PACS_USER, "
        "NORMALIS_PACS_PASSWORD).",
    ),
]
OwnTitle = Annotated[str, typer.Option("--aet", help="Our title, which the PACS must know.")]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="sc (picture), sr (report), seg (regions of CT and MR), pm (map of CT and MR), pr "
        "(outlines); repeatable; by default sc, sr and seg.",
    ),
]
Fpr = Annotated[float, typer.Option(help="Share of normals that may be flagged.")]
CaFile = Annotated[
    Path | None, typer.Option("--tls-ca", help="Authority of the PACS's certificate: use TLS.")
]
Certificate = Annotated[
    Path | None, typer.Option("--tls-cert", help="Our certificate, with --tls-key.")
]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Key of our certificate.")]
Pseudonyms = Annotated[
    Path | None,
    typer.Option(
        "--pseudonyms",
        metavar="KEYFILE",
        help="Put what leaves the hospital under pseudonyms by a keyed hash; the key is made if "
        "the file is not there.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


Out = Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `score` wrote.")]
Images = Annotated[
    Path | None,
    typer.Option("--images", help="Where the images lie, if not where they were scored."),
]


@app.command("export-dicom")
def export_dicom(
    out: Out,
    to: Annotated[Path, typer.Option("--to", help="Folder to write.")],
    studies: Annotated[
        Path | None,
        typer.Argument(metavar="[STUDIES]", help="If OUT is a run: DICOM files to score by it."),
    ] = None,
    kind: Kinds = None,
    images: Images = None,
    pseudonyms: Pseudonyms = None,
    device: Device = "auto",
) -> None:
    """Write the results in OUT as DICOM objects, for a viewer or a PACS.

    With STUDIES, OUT is a run, which scores them first, into a folder scored/ beside the objects.
    """
    if studies is not None:
        from normalis.fitted import FittedDetector

        require("highdicom", extra="pacs", why="writing DICOM objects")
        _score_folder(FittedDetector.load(out, device=device), studies, to / "scored")
        out, images = to / "scored", None
    _export(out, to, kind, images, pseudonyms)
    console.print(f"next: normalis push {escape(str(to))} --pacs AET@HOST:PORT", soft_wrap=True)
    console.print("for triage and research, not for diagnosis")


def _export(
    out: Path,
    to: Path,
    kinds: list[str] | None,
    images: Path | None = None,
    pseudonyms: Path | None = None,
) -> None:
    from normalis.pacs.export import DEFAULT_KINDS, check_kinds, export_studies
    from normalis.pacs.pseudonymous import leaving
    from normalis.pacs.scored_folder import read_scored

    chosen = check_kinds(kinds or DEFAULT_KINDS)
    scored, leaves = read_scored(out, images=images), leaving(pseudonyms)
    if scored.details.get("pseudonyms") and pseudonyms is None:
        errors.print(
            "[yellow]note:[/] the tables have pseudonyms, the DICOM objects the true ids, as a "
            "PACS needs them; --pseudonyms KEYFILE puts them under pseudonyms too"
        )
    with progress("export") as bar:
        done = export_studies(
            scored.studies(), to, kinds=chosen, leaves=leaves,
            progress=lambda number: bar.update(number, scored.n_studies),
        )  # fmt: skip
    for path, reason in scored.skipped[:5]:
        errors.print(f"skipped {escape(str(path))}: {escape(reason)}", soft_wrap=True)
    if len(scored.skipped) > 5:
        errors.print(f"skipped {len(scored.skipped) - 5} more")
    for study, what, why in done.failed:
        errors.print(f"no {what} of study {study}: {escape(why)}", soft_wrap=True)
    console.print(
        f"{counted(len(done.paths), 'DICOM object')} of {counted(done.studies, 'study')}: {to}",
        soft_wrap=True,
    )


@app.command()
def pull(
    run: Run,
    pacs: Pacs,
    out: Annotated[Path, typer.Option("--out", help="Folder: dicom/ and scored/ go into it.")],
    since: Annotated[str | None, typer.Option(help="First study date, 2026-03-01.")] = None,
    until: Annotated[str | None, typer.Option(help="Last study date.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="Attribute of the studies, NAME=VALUE, as DICOM has it; repeatable."),
    ] = None,
    aet: OwnTitle = "NORMALIS",
    tls_ca: CaFile = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    pseudonyms: Pseudonyms = None,
    device: Device = "auto",
) -> None:
    """Fetch studies from a PACS and score them; what is there is not fetched again."""
    from normalis.fitted import FittedDetector
    from normalis.pacs.transfer import date_range
    from normalis.pacs.transfer import pull as fetch

    asked = {"StudyDate": date_range(since, until), **_pairs(query)}
    detector = FittedDetector.load(run, device=device)
    peer = _peer(pacs, aet, _tls(tls_ca, tls_cert, tls_key))
    with progress("fetch studies") as bar:
        found = fetch(peer, out / "dicom", query=asked, progress=bar.update)
    console.print(
        f"{counted(found.studies, 'study')}: {counted(found.images, 'image')} fetched, "
        f"{found.known} there already"
    )
    for uid, why in found.failed:
        errors.print(f"[yellow]study {uid} did not come:[/] {escape(why)}", soft_wrap=True)
    _score_folder(detector, out / "dicom", out / "scored", pseudonyms)
    console.print(
        f"next: normalis report {escape(str(out / 'scored'))}, or normalis export-dicom "
        f"{escape(str(out / 'scored'))} --to FOLDER",
        soft_wrap=True,
    )


def _score_folder(
    detector: FittedDetector, studies: Path, out: Path, pseudonyms: Path | None = None
) -> None:
    """Score DICOM files into a folder that is made anew."""
    from normalis.datasets import open_dataset
    from normalis.output.folder import ScoreOptions, score_to_folder

    dataset = detector.select(open_dataset(studies))
    options = ScoreOptions(overwrite=True, pseudonyms=pseudonyms)
    with progress("score") as bar:
        summary = score_to_folder(
            detector, dataset.to_score(), out, root=studies, options=options,
            progress=bar.update, aside=dataset.aside,
            drawn=lambda done, of: bar.update(done, of, "pictures"),
        )  # fmt: skip
    console.print(f"{counted(summary.images, 'image')} scored, {summary.skipped} skipped")
    console.print(f"table: {escape(str(out / 'scores.csv'))}", soft_wrap=True)


@app.command()
def push(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder that export-dicom or score wrote.")
    ],
    pacs: Pacs,
    aet: OwnTitle = "NORMALIS",
    tls_ca: CaFile = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    pseudonyms: Pseudonyms = None,
) -> None:
    """Send result objects to a PACS, and ask for each whether it is there.

    Of a folder that score wrote, the objects are made first, in OUT/dicom.
    """
    from normalis.pacs.peer import RIGHTS
    from normalis.pacs.pseudonymous import leaving
    from normalis.pacs.transfer import push as send

    if (out / "scores.csv").is_file():
        _export(out, out / "dicom", None)
        out /= "dicom"
    peer = _peer(pacs, aet, _tls(tls_ca, tls_cert, tls_key))
    paths = sorted(out.rglob("*.dcm")) if out.is_dir() else [out]
    with progress("send") as bar:
        told = send(peer, paths, leaves=leaving(pseudonyms), progress=bar.update)
    states = {
        state: sum(s.state == state for _, s in told)
        for state in ("kept", "sent", "refused", "unreached")
    }
    console.print(table("Sent", ["state", "objects"], [[k, v] for k, v in states.items() if v]))
    alike: dict[tuple[str, str], list[Path]] = {}
    for path, one in told:
        if one.problem:
            alike.setdefault((one.state, one.problem), []).append(path)
    for (state, problem), which in alike.items():
        more = f" and {len(which) - 1} more" if len(which) > 1 else ""
        errors.print(f"{escape(str(which[0]))}{more}: {state}, {escape(problem)}", soft_wrap=True)
    if states["refused"] or states["unreached"]:
        errors.print(f"hint: {RIGHTS}", soft_wrap=True)
        raise typer.Exit(1)


@app.command()
def serve(
    run: Run,
    listen: Annotated[
        str, typer.Option(help="Our title and where to listen, AET@ADDRESS:PORT.")
    ] = "NORMALIS@127.0.0.1:11112",
    pacs: Annotated[
        str | None, typer.Option("--pacs", help="Where results go; by default they are kept.")
    ] = None,
    web: Annotated[str, typer.Option(help="Address and port of the page.")] = "127.0.0.1:8080",
    data: Annotated[Path, typer.Option("--data", help="Folder that the service keeps.")] = Path(
        "normalis-data"
    ),
    allow: Annotated[
        list[str] | None, typer.Option(help="Title that may send; repeatable; by default all.")
    ] = None,
    quiet: Annotated[
        float,
        typer.Option(
            "--quiet-seconds", help="Seconds without a further image until a study is scored."
        ),
    ] = 60.0,
    kind: Kinds = None,
    fpr: Fpr = 0.05,
    quota_gb: Annotated[
        float, typer.Option(help="Gigabytes of images kept of studies that are done.")
    ] = 50.0,
    reserve_gb: Annotated[
        float, typer.Option(help="Free gigabytes below which nothing is accepted.")
    ] = 1.0,
    users: Annotated[
        Path | None, typer.Option(help="File of users (serve-user); needed off this machine.")
    ] = None,
    proxy_header: Annotated[
        str | None, typer.Option(help="Header in which a reverse proxy names the reader.")
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="Name under which the page is asked for; repeatable.")
    ] = None,
    viewer: Annotated[
        str, typer.Option(help="Address of a study in a viewer, with {study} for its UID.")
    ] = "",
    web_cert: Annotated[Path | None, typer.Option(help="Certificate of the page.")] = None,
    web_key: Annotated[Path | None, typer.Option(help="Key of the page's certificate.")] = None,
    listen_cert: Annotated[
        Path | None, typer.Option(help="Certificate of the listener: DICOM over TLS.")
    ] = None,
    listen_key: Annotated[Path | None, typer.Option(help="Key of that certificate.")] = None,
    listen_ca: Annotated[
        Path | None,
        typer.Option(help="Authority of senders' certificates: nobody else may send."),
    ] = None,
    aet: OwnTitle = "",
    tls_ca: CaFile = None,
    tls_cert: Certificate = None,
    tls_key: Key = None,
    pseudonyms: Pseudonyms = None,
    device: Device = "auto",
) -> None:
    """Receive studies, score them, send results back, and show them on a page."""
    for module, what in (("starlette", "the page"), ("uvicorn", "the page")):
        require(module, extra="serve", why=what)
    require("pynetdicom", extra="serve", why="the listener")
    from normalis.fitted import FittedDetector
    from normalis.output.pseudonyms import replaced
    from normalis.pacs.export import DEFAULT_KINDS, check_kinds
    from normalis.pacs.peer import parse_address
    from normalis.serve.service import ServiceSettings, run_service
    from normalis.serve.users import Users
    from normalis.serve.web import WebSettings, check_exposure

    host, port = _host_and_port(web)
    address = parse_address(listen)
    page = WebSettings(
        users=None if users is None else Users.read(users),
        proxy_header=proxy_header,
        hosts=tuple(host_name or ()) or ("127.0.0.1", "localhost", "[::1]"),
        secure=web_cert is not None,
        viewer=viewer,
        leaves=replaced(pseudonyms),
    )
    check_exposure(host, page)
    settings = ServiceSettings(
        listen=address, allowed=tuple(allow or ()), quiet_s=quiet,
        reserve_bytes=round(reserve_gb * 1e9), quota_bytes=round(quota_gb * 1e9),
        kinds=check_kinds(kind or DEFAULT_KINDS), fpr=fpr, web_host=host, web_port=port,
        web_certificate=web_cert, web_key=web_key, listen_certificate=listen_cert,
        listen_key=listen_key, senders_ca=listen_ca, pseudonyms=pseudonyms,
    )  # fmt: skip
    detector = FittedDetector.load(run, device=device)
    peer = (
        None if pacs is None else _peer(pacs, aet or address.aet, _tls(tls_ca, tls_cert, tls_key))
    )
    scheme = "https" if web_cert is not None else "http"
    console.print(f"listening as {address}; page: {scheme}://{host}:{port}/", soft_wrap=True)
    console.print("for triage and research, not for diagnosis")
    try:
        run_service(data, detector, peer, settings, page)
    except Stopped as stopped:
        console.print(f"ended by {stopped}: what was received is kept")


@app.command("serve-user")
def serve_user(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of users.")],
    name: Annotated[str, typer.Argument(metavar="NAME")],
    password: Annotated[str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)],
) -> None:
    """Add a user of the page of `serve`, or change a password."""
    from normalis.serve.users import add_user

    add_user(file, name, password)
    console.print(f"{escape(name)} may log in", soft_wrap=True)


def _peer(address: str, aet: str, tls: ssl.SSLContext | None) -> Peer:
    from normalis.pacs.peer import peer_at

    return peer_at(address, own_aet=aet, tls=tls)


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if ca is None and certificate is None:
        return None
    from normalis.pacs.peer import tls_context

    return tls_context(ca, certificate, key)


def _pairs(texts: list[str] | None) -> dict[str, Any]:
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--query must be NAME=VALUE, got {text!r}")
        pairs[name] = value
    return pairs


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise SettingsError(f"--web must be ADDRESS:PORT, got {text!r}")
    return host.strip("[]"), int(port)

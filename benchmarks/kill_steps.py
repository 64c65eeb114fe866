"""Kill commands at every step that they take on the file system, and compare what a rerun leaves.

A child process counts what it does to files: opening for writing, writing, renaming, removing,
making folders, waiting for the disk. At step k it is killed without a chance to clean up (SIGKILL)
or asked to end (SIGTERM, SIGINT). Then the same command runs again, and what lies there is
compared, byte for byte but for times, with what a run that nobody stopped left.

    python benchmarks/kill_steps.py                      # every step of every command
    python benchmarks/kill_steps.py --only fit --every 3
    python benchmarks/kill_steps.py --signal SIGTERM

Columns: steps of a whole run; kills; reruns that were refused; results that differ; runs that left
files over; kills after which neither the old nor the new result was there (of ``--overwrite``).
Children are forked from one process that has imported everything, so that a run takes a fraction of
a second. Writes of C libraries are seen by the renames around them.
"""

from __future__ import annotations

import argparse
import builtins
import io
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

#: What differs from run to run: times, and the checksum of the settings that hold them.
_TIMES = re.compile(
    rb'"(fit_s|load_s|score_s|finished|settings|identity)": ("[^"]*"|[-\d.e]+)'
    rb"|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?|(reading|fitting) took</t[hd]><td[^>]*>[^<]*"
    rb"|finished</t[hd]><td[^>]*>[^<]*"
)
TINY = ["--image-size", "16", "--device", "cpu"]


@dataclass
class Command:
    """A command, where its result lies, and what must have run before."""

    name: str
    arguments: list[str]
    output: str
    before: list[list[str]] = field(default_factory=list)


@dataclass
class Tally:
    """What the kills of one command came to; lists hold the steps."""

    steps: int = 0
    kills: int = 0
    refused: list[int] = field(default_factory=list)
    differing: list[int] = field(default_factory=list)
    litter: list[int] = field(default_factory=list)


def commands() -> list[Command]:
    """Return the commands; paths are relative to a folder of their own."""
    pca = ["--method", "pca", "--latent-dim", "4", *TINY]
    ae = ["--method", "ae", "--latent-dim", "2", "--epochs", "2", "--option", "hidden_dim=8", *TINY]
    fit = ["fit", "data", "--out", "run", *pca]
    trained = ["fit", "data", "--out", "run", *ae]
    score = ["score", "run", "new", "--out", "out", "--fpr", "0.3"]
    older = ["score", "run", "old", "--out", "out", "--fpr", "0.3"]
    sweep = ["research", "sweep", "plan.toml", "--out", "results", "--data", "sets"]
    return [
        Command("fit", fit, "run"),
        Command("fit, trained", trained, "run"),
        Command("fit --overwrite", [*trained, "--overwrite"], "run", [fit]),
        Command("score", score, "out", [fit]),
        Command("score --overwrite", [*score, "--overwrite"], "out", [fit, older]),
        Command("report", ["report", "out", "--out", "page/x.html"], "page", [fit, score]),
        Command("evaluate", ["evaluate", "run", "set", "--out", "e/x.json"], "e", [fit]),
        Command(
            "export",
            ["export", "run", "--out", "o/x.onnx", "--overwrite"],
            "o",
            [[*trained, "--calibration", "split"]],  # a file holds one network
        ),
        Command("research sweep", sweep, "results"),
    ]


def write_data(folder: Path) -> None:
    """Write normal images, new ones with a damaged file, older ones, a labelled set and a plan."""
    rng = np.random.default_rng(0)
    counts = {"data": 24, "new": 6, "old": 4, "set/train/good": 8, "set/test/good": 4,
              "set/test/odd": 4}  # fmt: skip
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            coarse = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
            coarse.resize((16, 16)).save(folder / name / f"{i:02d}.png")
    (folder / "new/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "sets/tiny").mkdir(parents=True)
    images = {s: rng.integers(0, 120, (12, 16, 16), dtype=np.uint8) for s in ("train", "test")}
    label = np.arange(12) % 2
    names = {f"{s}_names": [f"{s}{i}.png" for i in range(12)] for s in images}
    np.savez(folder / "sets/tiny/arrays_16.npz", test_label=label, **images, **names)
    (folder / "plan.toml").write_text(
        '[sweep]\ndatasets = ["tiny"]\nmethods = ["ae"]\nlatent_dims = [2, 4]\nseeds = [0]\n'
        'epochs = 2\nbatch_size = 8\nprecision = "float32"\noptions = {hidden_dim = 8}\n'
        "images = {image_size = 16}\n"
    )


# --- counting and killing -------------------------------------------------------------------------


def _count(hear: Callable[[str, object], None]) -> None:
    """Call a function before every step on the file system that this process takes from now on."""
    for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "ftruncate",
                 "chmod", "link", "symlink"):  # fmt: skip
        setattr(os, name, _heard(getattr(os, name), name, hear))
    plain_os_open, plain_open = os.open, io.open

    def os_open(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            hear("create", path)
        return plain_os_open(path, flags, *rest, **options)

    def counted(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        writes = set(mode) & set("wax+") and not isinstance(file, int)
        if writes:
            hear("open", file)
        opened = plain_open(file, mode, *rest, **options)
        if writes:
            opened = _Writes(opened, file, hear)
        return opened

    os.open = os_open  # type: ignore[assignment]
    builtins.open = io.open = counted  # type: ignore[assignment]


def _heard(original: Any, name: str, hear: Callable[[str, object], None]) -> Any:
    def heard(*arguments: Any, **options: Any) -> Any:
        hear(name, arguments[0] if arguments else "")
        return original(*arguments, **options)

    return heard


class _Writes:
    """An open file whose writes are heard; half of one may be on disk when it is killed."""

    def __init__(self, opened: Any, path: object, hear: Callable[[str, object], None]) -> None:
        self._opened, self._path, self._hear = opened, path, hear

    def write(self, data: Any) -> Any:
        if len(data) > 1:
            self._opened.write(data[: len(data) // 2])
            self._opened.flush()
            self._hear("write", self._path)
            return self._opened.write(data[len(data) // 2 :])
        self._hear("write", self._path)
        return self._opened.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def __iter__(self) -> Any:
        return iter(self._opened)

    def __enter__(self) -> _Writes:
        self._opened.__enter__()
        return self

    def __exit__(self, *error: object) -> Any:
        return self._opened.__exit__(*error)


def run(folder: Path, arguments: list[str], *, stop: int = 0, by: int = signal.SIGKILL) -> tuple[
    int, int
]:  # fmt: skip
    """Run a command in a child; return how it ended and how many steps it took."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _be_the_child(folder, arguments, stop, by, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        steps = len(stream.read())
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), steps


def _be_the_child(folder: Path, arguments: list[str], stop: int, by: int, writer: int) -> None:
    status = 99
    try:
        os.chdir(folder)
        log = os.open(os.devnull if stop else "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        count = [0]
        tell = os.write

        def hear(name: str, path: object) -> None:
            if isinstance(path, str | bytes | os.PathLike) and os.fspath(path) == os.devnull:
                return
            count[0] += 1
            tell(writer, b".")
            if count[0] == stop:
                os.kill(os.getpid(), by)

        _count(hear)
        from normalis.cli import main
        from normalis.training import checkpoints

        checkpoints.EVERY_S = -1.0  # a checkpoint after every epoch
        sys.argv = ["normalis", *arguments]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


# --- comparing ------------------------------------------------------------------------------------


def contents(work: Path, output: str) -> dict[str, bytes]:
    """Return every file below the output, times and the place of the work left out."""
    folder, place = work / output, os.fsencode(work)
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): _timeless(p).replace(place, b"") for p in files}


def _timeless(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        row = pq.ParquetFile(path).read().to_pylist()[0]
        return repr({k: v for k, v in row.items() if not k.endswith(("_s", "_at"))}).encode()
    return _TIMES.sub(b"", data) if path.suffix in (".json", ".html") else data


def tally(command: Command, base: Path, every: int, by: int, first: int = 1) -> Tally:
    """Kill a command at every step, run it again, and compare."""
    ready = base / "ready"
    write_data(ready)
    for arguments in command.before:
        status, _ = run(ready, arguments)
        if status:
            raise SystemExit(
                f"{command.name}: {arguments} failed:\n{(ready / 'log.txt').read_text()}"
            )
    whole = shutil.copytree(ready, base / "whole")
    status, steps = run(whole, command.arguments)
    if status:
        raise SystemExit(f"{command.name} failed:\n{(whole / 'log.txt').read_text()}")
    expected, found = contents(whole, command.output), Tally(steps=steps)
    for step in range(first, steps + 1, every):
        work = shutil.copytree(ready, base / "work")
        ended, _ = run(work, command.arguments, stop=step, by=by)
        found.kills += ended != 0
        again, _ = run(work, command.arguments)
        left = contents(work, command.output)
        if again:
            found.refused.append(step)
            print(f"# {command.name} {step}: {(work / 'log.txt').read_text()[-300:]}", flush=True)
        elif {k: left.get(k) for k in expected} != expected:
            found.differing.append(step)
            other = [k for k in expected if left.get(k) != expected[k]]
            print(f"# {command.name} {step}: {', '.join(other)}", flush=True)
        if extra := set(left) - set(expected):
            found.litter.append(step)
            print(f"# {command.name} {step}: left {', '.join(sorted(extra))}", flush=True)
        shutil.rmtree(work)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", action="append", help="name of a command; repeatable")
    parser.add_argument("--every", type=int, default=1, help="kill at every nth step")
    parser.add_argument("--signal", default="SIGKILL")
    given = parser.parse_args()
    import normalis.cli
    import normalis.detector
    import normalis.report.triage  # noqa: F401

    head = ("command", "signal", "steps", "kills", "refused", "differing", "litter")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for command in commands():
        if given.only and command.name not in given.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            by = getattr(signal, given.signal)
            t = tally(command, Path(folder), given.every, by)
        counts = (t.steps, t.kills, len(t.refused), len(t.differing), len(t.litter))
        print(f"| {command.name} | {given.signal} | {' | '.join(map(str, counts))} |", flush=True)


if __name__ == "__main__":
    main()

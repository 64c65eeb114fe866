"""What commands print: names of any kind on any terminal, and what is said when one is stopped."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest

from normalis.cli import main
from normalis.cli.console import PlainConsole, escape, table
from normalis.cli.stopping import Stopped, print_anything, stoppable
from normalis.files import visible
from small_runs import phantoms, write_pngs

TINY = ["--method", "pca", "--image-size", "16", "--calibration", "none", "--device", "cpu"]
ODD = ["[red]", "o[bold]", "[link=x]", ":smile:", "a\x1b[2Jb", "\x1b]0;t\x07", "x\ny",
       os.fsdecode(b"M\xfcller"), "日本", "a\\", "\u202egnp"]  # fmt: skip


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["normalis", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def written(draw, **options):
    """Return the bytes that a console writes."""
    stream = io.TextIOWrapper(io.BytesIO(), **({"encoding": "utf-8"} | options))
    draw(PlainConsole(file=stream, force_terminal=True, width=200, color_system=None))
    stream.flush()
    return stream.buffer.getvalue()


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_a_text_wherever_it_is_printed(name):
    for draw in (
        lambda c: c.print(f"run: {name}"),
        lambda c: c.styled(f"[bold]{escape(name)}[/]"),
        lambda c: c.print(table(name, [name], [[name], [1]])),
    ):
        raw = written(draw)
        assert b"\x1b]" not in raw
        assert b"\x1b[2J" not in raw
    shown = written(lambda c: c.print(f"run: {name}")).decode()
    assert visible(name) in shown or "\n" in name


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_terminals_that_lack_a_character_show_its_number(encoding):
    code = (
        "from normalis.cli.stopping import print_anything; print_anything()\n"
        "from normalis.cli.console import console, errors, table\n"
        "name = 'M\\udcfcller \\xfc \\u65e5'\n"
        "console.print(name); errors.print(name); console.print(table(name, [name], [[name]]))\n"
        "print(name)"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert b"M" in done.stdout
    assert b"ller" in done.stderr
    print_anything()


def test_names_with_markup_go_through_every_command(run, tmp_path, monkeypatch):
    """`[/x]` is a closing tag without an opening one, which used to end a command at its end."""
    monkeypatch.chdir(tmp_path)
    for kind, images in (("train/good", 24), ("test/good", 4), ("test/odd", 4)):
        write_pngs(tmp_path / "[" / "red]" / kind, phantoms(images, seed=images))
    data, out = "[/red]", "o[/x]"
    for command in (
        ["check", data],
        ["fit", data, "--out", f"run-{out}", *TINY],
        ["score", f"run-{out}", data, "--out", out],
        ["evaluate", f"run-{out}", data],
        ["evaluate", f"run-{out}", data, "--out", f"{out}.json"],
        ["report", out, "--out", f"{out}.html"],
    ):
        status, said, err = run(*command)
        assert status == 0, err
        assert "Traceback" not in err
    assert (tmp_path / f"{out}.html").is_file()
    assert f"page: {out}.html" in said


def test_names_that_are_not_utf8_go_through_every_command(run, tmp_path):
    data = tmp_path / "data"
    for path in write_pngs(data, phantoms(24)):
        path.rename(path.with_name(os.fsdecode(b"M\xfcller\r") + path.name))
    (data / os.fsdecode(b"bad\xff.png")).write_bytes(b"\x89PNG\r\n\x1a\n")
    for command in (
        ["check", data],
        ["fit", data, "--out", tmp_path / "run", *TINY],
        ["score", tmp_path / "run", data, "--out", tmp_path / "out"],
        ["report", tmp_path / "out", "--out", tmp_path / "page.html"],
        ["report", tmp_path / "run", "--out", tmp_path / "run.html"],
    ):
        status, _, err = run(*command)
        assert status == 0, err
    assert b"bad\xff.png" in (tmp_path / "run/skipped.csv").read_bytes()
    assert (tmp_path / "out/scores.csv").read_bytes().count(b"M\xfcller\\x0d") == 24
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "M\\xfcller" in page or "M\\\\xfcller" in page


# --- stopped --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_unwinds_and_is_told_apart(name):
    number = getattr(signal, name)
    asked = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    before = signal.getsignal(number)
    cleaned = []

    def work():
        with stoppable():
            try:
                os.kill(os.getpid(), number)
                time.sleep(5)
            finally:
                cleaned.append(True)

    try:
        with pytest.raises(Stopped) as raised:
            work()
        assert (raised.value.signal, cleaned) == (number, [True])
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, asked)


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def _heard():
    """Take signals as in a terminal: what a shell starts in the background ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_command_that_is_stopped_says_how_to_go_on_and_does(name, tmp_path):
    write_pngs(tmp_path / "data", phantoms(24))
    command = [sys.executable, "-m", "normalis", "fit", str(tmp_path / "data"), "--out",
               str(tmp_path / "run"), "--image-size", "16", "--device", "cpu",
               "--calibration", "none", "--epochs"]  # fmt: skip
    with subprocess.Popen(
        [*command, "1000000"], stderr=subprocess.PIPE, text=True, preexec_fn=_heard
    ) as process:
        for _ in range(600):
            if (tmp_path / "run/.lock").exists():
                break
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert "stopped by" in err
    assert "run the same command again to go on" in err
    assert "Traceback" not in err
    assert [p.name for p in (tmp_path / "run").iterdir()] == []

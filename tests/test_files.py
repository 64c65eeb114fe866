"""Files appear whole; names and texts of any bytes go through; file systems may lack much."""

import csv
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from normalis import files
from normalis.errors import RunError
from normalis.files import (
    ANY_NAME,
    is_temporary,
    read_csv,
    remove_temporaries,
    safe_cell,
    short_name,
    visible,
    write_atomically,
    write_csv,
    write_json,
)

NAMES = [
    "plain.png",
    os.fsdecode("Müller.png".encode("latin-1")),
    os.fsdecode(b"\x80\xff\xfe.dcm"),
    "日本.png",
    "a\rb.png",
    "a\nb.png",
    "a\r\nb.png",
    "tab\t.png",
    "quote\".png",
    "comma, semi;.png",
    "[/red].png",
    "\x1b]0;title\x07.png",
    "\x1b[2J.png",
    "\u202egnp.exe",
    "=HYPERLINK(1)",
    "'=already",
    "'quoted",
    "",
    " ",
    "trailing ",
]  # fmt: skip


def test_a_table_keeps_names_of_any_bytes(tmp_path):
    write_csv(tmp_path / "t.csv", ("path", "n"), [[name, i] for i, name in enumerate(NAMES)])
    assert [row["path"] for row in read_csv(tmp_path / "t.csv")] == NAMES
    raw = (tmp_path / "t.csv").read_bytes()
    assert b"M\xfcller.png" in raw


def test_a_lone_surrogate_of_no_byte_is_spelt_out(tmp_path):
    write_csv(tmp_path / "t.csv", ("x",), [["a\ud800b"]])
    assert read_csv(tmp_path / "t.csv") == [{"x": "a\\ud800b"}]
    write_json(tmp_path / "t.json", {"a\ud800": "\udcfc"})
    assert (tmp_path / "t.json").read_bytes().isascii()


FORMULAS = [
    "=cmd|' /C calc'!A0", "@SUM(1)", "+1+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "\t=1+1",
    "\r=1+1", " =1+1", "\uff1d1+1", "=HYPERLINK(1)/img.png", "'=1", "-", "+49 170 1", "\n=1",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula_and_every_text_comes_back(tmp_path, text):
    write_csv(tmp_path / "t.csv", ("x", "y"), [[text, Path(text)]])
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as stream:
        (_, row) = csv.reader(stream)
    assert all(cell.startswith("'") for cell in row)
    assert read_csv(tmp_path / "t.csv") == [{"x": text, "y": str(Path(text))}]


@pytest.mark.parametrize("text", ["-12", "-1e-5", "12", "a=b", "x-y", "2024-01-01", "'tis"])
def test_numbers_and_ordinary_texts_stay_as_they_are(tmp_path, text):
    write_csv(tmp_path / "t.csv", ("x", "y"), [[text, -0.5]])
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == f"{text},-0.5"
    assert read_csv(tmp_path / "t.csv")[0]["x"] == text


def test_a_table_that_is_none_is_said(tmp_path):
    for text in ("a,b\n1\n", "a,b\n1,2,3\n"):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match="cells for 2 columns"):
            read_csv(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes(b"")
    assert read_csv(tmp_path / "t.csv") == []


@pytest.mark.parametrize("name", NAMES)
def test_what_people_read_shows_what_cannot_be_seen(name):
    shown = visible(name)
    shown.encode("utf-8")
    assert shown.isprintable() or not shown
    assert visible(shown) == shown


def test_texts_that_can_be_seen_stay_as_they_are():
    text = "Größe 日本 👩\u200d⚕️ \\x1b [bold]"
    assert visible(text) == text


@pytest.mark.parametrize("name", ["a" * 300, "ß" * 200, os.fsdecode(b"\xff" * 256), "日" * 86])
def test_long_names_are_shortened_and_kept_apart(name):
    short = short_name(name)
    assert len(os.fsencode(short)) <= files.NAME_BYTES
    assert short[:5] == name[:5] or "\udcff" in name
    assert short != short_name(f"{name}x")
    assert short_name(short) == short
    assert short_name("b" * 255) == "b" * 255


# --- what killed processes leave ----------------------------------------------------------------


def left(folder, name, code="os.kill(os.getpid(), 9)"):
    """Kill a process while it writes a file."""
    program = (
        "import os, sys, pathlib; from normalis.files import write_atomically\n"
        f"write_atomically(pathlib.Path(sys.argv[1]), lambda p: (p.write_text('half'), {code}))"
    )
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", program, str(folder / name)], check=False)
    assert done.returncode == -signal.SIGKILL
    return [p.name for p in folder.iterdir() if is_temporary(p.name)]


def test_what_a_killed_process_left_is_removed(tmp_path):
    assert len(left(tmp_path, "a.html")) == 1
    assert len(left(tmp_path, "b.html")) == 2  # which knows nothing of a.html
    write_atomically(tmp_path / "a.html", lambda p: p.write_text("whole"))
    assert sum(is_temporary(p.name) for p in tmp_path.iterdir()) == 1
    left(tmp_path / "deep/er", "x.npy")
    remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.html"]


def test_what_another_process_is_writing_stays(tmp_path):
    inside, go = threading.Event(), threading.Event()

    def write(path):
        path.write_text("slow")
        inside.set()
        go.wait(10)

    file = tmp_path / "a.json"
    thread = threading.Thread(target=write_atomically, args=(file, write))
    thread.start()
    inside.wait(10)
    remove_temporaries(tmp_path)
    write_atomically(file, lambda p: p.write_text("fast"))
    go.set()
    thread.join()
    assert file.read_text() == "slow"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_only_our_own_temporaries_are_recognised():
    assert is_temporary(".normalis-0123abcd-x9_a81bc.tmp")
    for name in (".normalis-notes.tmp", "normalis-0123abcd-x9_a81bc.tmp", ".x.npy.f04chvb2"):
        assert not is_temporary(name)


# --- file systems that lack something -----------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_shares_without_permissions_or_fsync_are_written_to(tmp_path, monkeypatch, code):
    def lacking(*_, **__):
        raise OSError(code, os.strerror(code))

    for name in ("chmod", "fchmod", "fsync"):
        monkeypatch.setattr(os, name, lacking)
    monkeypatch.setattr(Path, "chmod", lacking)
    write_atomically(tmp_path / "a.txt", lambda p: p.write_text("whole"))
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    def failing(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RunError, match="Input/output error"):
        write_atomically(tmp_path / "a.txt", lambda p: p.write_text("whole"))
    assert list(tmp_path.iterdir()) == []


def test_locks_that_the_system_lacks_hinder_nobody(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="locks of Unix")

    def lacking(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", lacking)
    write_atomically(tmp_path / "a.txt", lambda p: p.write_text("whole"))
    fresh = tmp_path / ".normalis-0123abcd-x9_a81bc.tmp"
    fresh.touch()
    remove_temporaries(tmp_path)
    assert fresh.exists()  # somebody may be writing it
    os.utime(fresh, (0, 0))
    remove_temporaries(tmp_path)
    assert not fresh.exists()


def test_a_name_too_long_gets_advice_that_helps(tmp_path):
    with pytest.raises(RunError, match="shorten the names"):
        write_atomically(tmp_path / ("x" * 256), lambda p: p.write_text(""))
    with pytest.raises(RunError, match="is no name of a file"):
        write_atomically(tmp_path / "\ud800", lambda p: p.write_text(""))
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_255_bytes_is_written(tmp_path):
    file = tmp_path / ("x" * 255)
    write_atomically(file, lambda p: p.write_text("whole"))
    assert file.read_text() == "whole"


def test_bytes_of_names_are_written_in_any_text(tmp_path):
    with (tmp_path / "t").open("w", encoding="utf-8", errors=ANY_NAME) as stream:
        stream.write("\udcfc")
    assert (tmp_path / "t").read_bytes() == b"\xfc"


@pytest.mark.parametrize(
    "text",
    [
        *("a\x1b]0;title\x07.png", "\x1b[2J", "a\rb", "a\x9bb", "a\x7f", "=1+1\x1b", "\x1b=1"),
        *(r"a\x1b", r"C:\x86\x1b[2J", "plain\\name", r"\x5c", "a\tb", "a\nb", "ü日", "'\x1b'"),
        *("+1", "-1", "+1.5e3", "'+1", "=1", "@x", " =1", "", "1", "+", "-"),
    ],
)
def test_a_cell_is_read_back_and_holds_nothing_that_runs(tmp_path, text):
    write_csv(tmp_path / "t.csv", ("name", "n"), [(text, 1)])
    written = (tmp_path / "t.csv").read_bytes()
    assert not set(written) & (set(range(32)) - {9, 10, 13} | {127})
    assert "\x9b" not in written.decode()
    assert read_csv(tmp_path / "t.csv") == [{"name": text, "n": "1"}]


def test_a_patient_id_that_a_spreadsheet_would_turn_into_a_number_is_quoted():
    assert [safe_cell(v) for v in ("+1", "+1e5", "-1", "-0.5", 1.5, -2, None)] == [
        *("'+1", "'+1e5", "-1", "-0.5", 1.5, -2, None)
    ]

"""Edited and damaged files beside a report: a message that names the file, never a traceback."""

import json
import shutil

import pytest

from normalis.datasets import open_dataset
from normalis.errors import RunError
from normalis.output.folder import score_to_folder
from normalis.report import write_report
from small_runs import detector, phantoms, write_pngs


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    root = tmp_path_factory.mktemp("x")
    write_pngs(root / "in", phantoms(6))
    fitted = detector(method="pca", method_options={}).fit(phantoms())
    score_to_folder(fitted, open_dataset(root / "in").samples, root / "out", root=root / "in")
    fitted.save(root / "run")
    return root


def said(folder, page):
    """Return what is said of a folder, empty if it is shown."""
    try:
        write_report(folder, page)
    except RunError as error:
        return str(error)
    return ""


@pytest.fixture
def copied(scored, tmp_path):
    return shutil.copytree(scored / "out", tmp_path / "out")


VALUES = (3, "text", [1], {"a": 1}, [["x"]], [{"a": "b"}], True)
KEYS = ["drift", "history", "info", "params", "is_anomalous", "kind", "calibration", "fpr",
        "colour_scale", "decision_scores", "pictures"]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_parts_of_another_kind_are_said_or_shown(copied, tmp_path, key):
    body = json.loads((copied / "score.json").read_text())
    answers = []
    for value in VALUES:
        (copied / "score.json").write_text(json.dumps(body | {key: value}))
        answers.append(said(copied, tmp_path / "page.html"))
    refused = [answer for answer in answers if answer]
    assert len(refused) >= 3
    assert all("out" in answer for answer in refused)


@pytest.mark.parametrize("name", ["audit.json", "evaluation.json"])
@pytest.mark.parametrize("key", ["findings", "tables", "subsets", "lesions", "notes", "groups"])
def test_audits_and_evaluations_of_another_kind_are_said_or_shown(copied, tmp_path, name, key):
    for value in VALUES:
        (copied / name).write_text(json.dumps({key: value}))
        answer = said(copied, tmp_path / "page.html")
        assert not answer or "out" in answer


DAMAGE = [b"", b"\0" * 100, b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b"7", b'{"a": NaN}']


@pytest.mark.parametrize("name", ["score.json", "audit.json", "evaluation.json", "scores.csv",
                                  "skipped.csv", "findings.csv"])  # fmt: skip
@pytest.mark.parametrize("text", DAMAGE)
def test_damaged_files_are_said_or_shown(copied, tmp_path, name, text):
    (copied / name).write_bytes(text)
    answer = said(copied, tmp_path / "page.html")
    assert not answer or "out" in answer


@pytest.mark.parametrize("change", ["sorted", "one renamed"])
def test_labels_are_never_those_of_other_rows(copied, tmp_path, change):
    head, *rows = (copied / "scores.csv").read_text().splitlines()
    if change == "sorted":
        rows = sorted(rows, key=lambda row: -float(row.split(",")[3]))
    else:
        rows[0] = rows[0].replace(".png", "x.png")
    assert said(copied, tmp_path / "page.html") == ""
    (copied / "scores.csv").write_text("\n".join([head, *rows]))
    assert "labels of score.json beside it would be those of other rows" in said(
        copied, tmp_path / "page.html"
    )

"""What was said of an older model, or of images that a model knows, is not taken for news."""

import json

import pytest
from typer.testing import CliRunner

from normalis.cli import app
from normalis.errors import CalibrationWarning
from normalis.report.sources import read_run
from normalis.storage import RunFolder
from small_runs import detector, phantoms, write_mvtec, write_pngs


def evaluated(data, run):
    done = CliRunner().invoke(app, ["evaluate", str(run), str(data)])
    assert done.exit_code == 0, done.output


def test_an_evaluation_goes_with_the_run_that_it_is_of(tmp_path):
    data, run = write_mvtec(tmp_path / "m"), tmp_path / "run"
    detector().fit(data, run=run)
    evaluated(data, run)
    (file,) = run.glob("evaluation*.json")
    assert json.loads(file.read_text())["model"] == RunFolder(run).identity
    assert len(read_run(run).evaluations) == 1
    older = file.read_text()
    detector(random_state=1).fit(data, run=run, overwrite=True)
    assert not list(run.glob("evaluation*.json"))
    file.write_text(older)  # put back, or written by a process that was still at work
    assert read_run(run).evaluations == []


def test_a_run_that_is_kept_keeps_its_evaluations(tmp_path):
    data, run = write_mvtec(tmp_path / "m"), tmp_path / "run"
    detector().fit(data, run=run)
    evaluated(data, run)
    detector().fit(data, run=run)  # answered from what is there
    assert len(read_run(run).evaluations) == 1


def test_images_that_were_trained_on_are_said_when_they_are_scored(tmp_path, recwarn):
    old, new = write_pngs(tmp_path / "old", phantoms(30)), phantoms(4, seed=7)
    fitted = detector(calibration="none").fit(old)
    copies = [*write_pngs(tmp_path / "new", new), tmp_path / "new/copy.png"]
    copies[-1].write_bytes(old[3].read_bytes())
    recwarn.clear()
    fitted.anomaly_score(copies[:-1])
    assert not recwarn
    said = r"1 file of the 5 scored holds images that the model was trained on \(copy\.png\)"
    with pytest.warns(CalibrationWarning, match=said):
        fitted.anomaly_score(copies)
    fitted.save(tmp_path / "run")
    asked = ["score", str(tmp_path / "run"), str(tmp_path / "new"), "--out", str(tmp_path / "out")]
    with pytest.warns(CalibrationWarning, match=said):  # a line of the terminal there
        assert CliRunner().invoke(app, asked).exit_code == 0

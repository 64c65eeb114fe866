"""The commands as a user types them."""

import csv
import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import normalis
from normalis.cli import main
from normalis.cli.score import _most_anomalous
from normalis.fitted import FittedDetector
from small_runs import anomalies, phantoms, read_table, write_mvtec, write_pngs

SMALL = [
    "--method",
    "ae-u",
    "--image-size",
    "16",
    "--latent-dim",
    "2",
    "--epochs",
    "2",
    "--option",
    "hidden_dim=8",
    "--device",
    "cpu",
]
COMMANDS = [
    "calibrate",
    "check",
    "demo",
    "evaluate",
    "export",
    "fit",
    "methods",
    "report",
    "research",
    "score",
]


@pytest.fixture
def run(capsys, monkeypatch):
    """Return a function that runs a command: (exit status, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["normalis", *map(str, arguments)])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mvtec(tmp_path_factory.mktemp("data") / "head scans", train=30, test=6)


@pytest.fixture
def fitted(run, root, tmp_path):
    status, _, err = run("fit", root, "--out", tmp_path / "run", *SMALL)
    assert status == 0, err
    return tmp_path / "run"


def is_one_error_line(err):
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    return len(lines) == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    ("count", "options", "said", "not_said"),
    [
        (130, ["--calibration", "split"],
         "flagged if it scores above the highest of 26 images held out", "are too few to hold out"),
        (130, [], "calibrated on 130 images (cv+), which certify false-positive rates from 1/131 = "
         "0.76 %: 130 are too few to hold out the 119", "flagged if it scores above"),
        (400, [], "calibrated on 119 images (split), which certify false-positive rates from 1/120 "
         "= 0.83 %: 119 of 400 are held out", "flagged if it scores above"),
    ],
)  # fmt: skip
def test_a_fit_says_what_calibrates_and_what_is_weak(run, tmp_path, count, options, said, not_said):
    drawn = np.random.default_rng(0).integers(0, 256, (count, 32, 32), np.uint8)
    np.save(tmp_path / "x.npy", drawn)
    out = ["--out", tmp_path / "run", "--method", "pca", "--image-size", "32"]
    status, shown, err = run("fit", tmp_path / "x.npy", *out, *options)
    assert status == 0, err
    assert said in shown
    assert not_said not in shown
    assert "patients are unknown: each file counts as a patient of its own" in shown


# --- help and errors --------------------------------------------------------------------------


def test_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "not for diagnosis" in out
    assert all(re.search(rf"\b{name}\b", out) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run, command):
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"normalis {command}" in out


def test_version(run):
    assert run("--version")[:2] == (0, normalis.__version__ + "\n")


def test_methods_are_listed(run):
    status, out, _ = run("methods")
    assert status == 0
    assert {"ae", "vae", "pca"} <= set(out.split())
    assert "The variational autoencoder." in out
    assert "noise=2, clip=1" in out, "what fit sets beyond a method's defaults"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "absent"], "there is no such file or folder"),
        (["fit", "absent", "--out", "run"], "there is no such file or folder"),
        (["score", "absent", "absent", "--out", "out"], "must hold model.json"),
        (["evaluate", "absent", "absent"], "must hold model.json"),
        (["report", "absent", "--out", "page.html"], "does not exist"),
        (["research", "prepare", "phantom"], "--out is needed"),
        (["research", "prepare", "phantoms", "--out", "x"], "phantom"),
        (["research", "sweep", "absent.toml", "--out", "x"], "absent.toml"),
    ],
)
def test_errors_are_one_line_on_standard_error(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*arguments)
    assert status == 2
    assert is_one_error_line(err)
    assert message in err
    assert out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "vea"], "did you mean 'vae'"),
        (["--image-size", "30"], "image_size must be a multiple of 16"),
        (["--members", "ae-u", "--scorer", "l9"], "scorer must be one of"),
        (["--scorer-option", "share=0.1"], "a panel reads each member by the member's own scorer"),
        (["--method", "ae", "--scorer-option", "shar=0.1"], "did you mean 'share'"),
        (["--scorer", "l2"], "a panel reads each member by the member's own scorer"),
        (["--recipe", "slow"], "recipe must be one of paper, fast, got 'slow'"),
        (["--calibration", "cv"], "calibration must be auto, split, cv+ or none"),
        (["--device", "abacus"], "device must be auto, cpu or cuda"),
        (["--option", "depth=3"], "unknown setting 'depth'"),
        (["--option", "depth"], "--option must be NAME=VALUE"),
        (["--epochs", "many"], "Invalid value for '--epochs'"),
        (["--epoch", "3"], "No such option: --epoch"),
        (["--plane", "oblique"], "plane must be one of"),
    ],
)
def test_wrong_options_say_what_is_right(run, root, tmp_path, options, message):
    status, out, err = run("fit", root, "--out", tmp_path / "run", *options)
    assert status == 2
    assert message in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err
    assert out == ""
    assert not (tmp_path / "run/model.json").exists()


# --- check ------------------------------------------------------------------------------------


def test_check_prints_one_json_object(run, root, tmp_path):
    status, out, _ = run("check", root, "--json", "--out", tmp_path / "audit.json")
    assert status == 0
    found = json.loads(out)
    required = {"name", "layout", "images", "unreadable", "duplicates", "patients", "trivial"}
    assert required | {"differences", "shifts", "findings"} <= set(found)
    assert found["layout"] == "MVTec/BMAD"
    assert found["images"] == 42
    assert json.loads((tmp_path / "audit.json").read_text()) == found


@pytest.mark.parametrize("name", ["x" * 300, "loop/x"])
def test_a_path_that_the_file_system_refuses_is_one_error_line(run, root, fitted, tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    odd = tmp_path / name
    for command in (
        ("fit", root, "--out", odd, *SMALL), ("score", odd, root, "--out", tmp_path / "s"),
        ("score", fitted, root, "--out", odd), ("report", odd, "--out", tmp_path / "p.html"),
        ("report", fitted, "--out", odd), ("check", root, "--out", odd), ("check", odd),
        ("export", fitted, "--out", odd),
    ):  # fmt: skip
        status, _, err = run(*command)
        assert status == 2, command
        assert "Traceback" not in err


@pytest.mark.parametrize("at", [1, 3])
def test_an_empty_argument_is_never_the_current_folder(run, root, tmp_path, at):
    arguments = ["fit", str(root), "--out", str(tmp_path / "run")]
    arguments[at] = ""
    status, _, err = run(*arguments)
    assert status == 2
    assert "an argument is empty (after" in err


def test_json_of_something_else_is_not_overwritten_unasked(run, root, fitted, tmp_path):
    mine = tmp_path / "mine.json"
    for command in (("check", root), ("evaluate", fitted, root)):
        for text in ('{"mine": 1}', "no JSON"):
            mine.write_text(text)
            status, _, err = run(*command, "--out", mine)
            assert status == 2
            assert "not overwritten; choose another --out" in " ".join(err.split())
            assert mine.read_text() == text
        status, _, err = run(*command, "--out", tmp_path)
        assert status == 2
        assert "add a file name" in " ".join(err.split())
    run("check", root, "--out", tmp_path / "audit.json")
    assert run("check", root, "--out", tmp_path / "audit.json")[0] == 0, "the same again"


def test_check_says_how_the_data_were_understood(run, root):
    status, out, err = run("check", root)
    assert status == 0
    assert "layout MVTec/BMAD" in err
    assert "What was read" in out


def test_strict_fails_where_there_are_leaks_only(run, tmp_path):
    root = write_mvtec(tmp_path / "leaky", train=20, test=6)
    copied = root / "train/good/000.png"
    (root / "test/good/000.png").write_bytes(copied.read_bytes())
    assert run("check", root)[0] == 0
    status, out, _ = run("check", root, "--strict")
    assert status == 1
    assert "leak" in out
    write_pngs(tmp_path / "plain", phantoms(6))
    assert run("check", tmp_path / "plain", "--strict")[0] == 0


# --- the main job -----------------------------------------------------------------------------


def test_fit_score_evaluate_report(run, root, fitted, tmp_path):
    status, out, err = run("score", fitted, root, "--out", tmp_path / "out", "--fpr", "0.2")
    assert status == 0, err
    assert "12 images scored, 0 skipped" in out
    assert "not for diagnosis" in out
    rows = read_table(tmp_path / "out/scores.csv")
    assert len(rows) == len(list((tmp_path / "out/overlays").rglob("*.png"))) == 12
    assert all("/test/" in row["path"] for row in rows)

    status, out, err = run("evaluate", fitted, root, "--fpr", "0.2")
    assert status == 0, err
    metrics = json.loads((fitted / "evaluation_head scans.json").read_text())
    assert metrics["data"] == "head scans"
    assert metrics["method"] == "ae-u"
    assert "baseline" in out

    status, out, err = run("report", tmp_path / "out", "--out", tmp_path / "page.html")
    assert status == 0, err
    assert "not for diagnosis" in (tmp_path / "page.html").read_text(encoding="utf-8")


def row(path, number=None):
    return {"path": path, "slice": number, "anomaly_score": 1.5, "p_value": 0.25}


def test_the_table_of_scores_names_the_common_folder_once():
    table = _most_anomalous([row("/data/a/1.png"), row("/data/b [x]/2.png")])
    assert [c.header for c in table.columns] == ["image", "score", "p-value"], "no slice, no column"
    assert list(table.columns[0].cells) == ["a/1.png", "b [x]/2.png"]
    assert table.title == "Most anomalous, below /data"
    table = _most_anomalous([row("array, row 3", 2) | {"p_value": None}])
    assert [list(c.cells) for c in table.columns] == [["array, row 3"], ["2"], ["1.5"]]
    assert _most_anomalous([]).row_count == 0


def test_fit_is_resumable_and_finished_runs_are_kept(run, root, fitted):
    before = (fitted / "model.json").read_bytes()
    assert run("fit", root, "--out", fitted, *SMALL)[0] == 0, "the same again is answered"
    assert (fitted / "model.json").read_bytes() == before
    status, _, err = run("fit", root, "--out", fitted, *SMALL, "--seed", "1")
    assert status == 2
    assert is_one_error_line(err)
    assert "--overwrite" in err
    assert run("fit", root, "--out", fitted, *SMALL, "--overwrite")[0] == 0


def test_scoring_without_pictures_or_p_values(run, root, tmp_path):
    options = [*SMALL, "--calibration", "none"]
    assert run("fit", root, "--out", tmp_path / "run", *options)[0] == 0
    no = ["--no-maps", "--no-overlays"]
    status, out, _ = run("score", tmp_path / "run", root, "--out", tmp_path / "out", *no)
    assert status == 0
    assert "no p-values" in out
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"patients.csv", "scores.csv", "score.json", "skipped.csv"}


def test_another_scorer_reads_the_run_with_the_images_of_its_fit(run, root, fitted, tmp_path):
    small = ["--no-maps", "--no-overlays", "--scorer", "l1", "--reduction", "max"]
    given = [fitted, root, "--out", tmp_path / "out", *small]
    assert run("score", *given, "--normals", root)[0] == 0
    detector = FittedDetector.load(fitted).with_scorer("l1", root, reduction="max")
    params = json.loads((tmp_path / "out/score.json").read_text())["params"]
    assert (params["scorer"], params["reduction"]) == ("l1", "max")
    for row in read_table(tmp_path / "out/scores.csv")[:3]:
        assert float(row["anomaly_score"]) == detector.anomaly_score([row["path"]])[0]
    status, _, err = run("score", *given)
    assert status == 2
    assert "--scorer needs --normals" in err


def test_what_another_scorer_needs_is_not_ignored_without_one(run, root, fitted, tmp_path):
    for option in ("--reduction=max", "--scorer-option=a=1", "--normals=x"):
        status, _, err = run("score", fitted, root, "--out", tmp_path / "out", option)
        assert status == 2
        assert "need --scorer" in err
        assert not (tmp_path / "out").exists()


def test_a_rate_that_cannot_be_certified_is_told(run, root, fitted, tmp_path):
    given = ["--fpr", "0.001", "--no-overlays"]
    status, out, _ = run("score", fitted, root, "--out", tmp_path / "out", *given)
    assert status == 0
    assert "none flagged" in out
    assert run("score", fitted, root, "--out", tmp_path / "x", "--fpr", "2")[0] == 2


def test_skipped_files_are_reported(run, tmp_path):
    write_pngs(tmp_path / "in", phantoms(12))
    (tmp_path / "in/zz [1].png").write_bytes((tmp_path / "in/000.png").read_bytes()[:90])
    status, _, err = run("fit", tmp_path / "in", "--out", tmp_path / "run", *SMALL)
    assert status == 0
    assert "1 image could not be read, skipped" in err
    assert "zz [1].png" in err
    assert len(read_table(tmp_path / "run/skipped.csv")) == 1


def test_evaluations_of_array_files_lie_beside_the_run(run, root, fitted, tmp_path):
    import numpy as np

    labels = np.arange(12) >= 6
    test = np.concatenate([phantoms(6, seed=8), anomalies(6, seed=9)])
    arrays = {"train": phantoms(10), "test": test, "test_label": labels}
    np.savez(tmp_path / "x.npz", **arrays)
    status, _, err = run("evaluate", fitted, tmp_path / "x.npz")
    assert status == 0, err
    assert len(list(fitted.glob("evaluation_*x.json"))) == 1


def test_methods_without_a_latent_say_so(run, root, tmp_path):
    given = ["--method", "mean-image", "--image-size", "16"]
    for words, said in (([], False), (["--latent-dim", "8"], True)):
        out = tmp_path / f"run{len(words)}"
        status, _, err = run("fit", root, "--out", out, *given, *words)
        assert status == 0
        assert ("mean-image has no latent vector; --latent-dim 8 is ignored" in err) == said


def test_prepare_lists_and_builds(run, tmp_path):
    status, out, _ = run("research", "prepare")
    assert status == 0
    assert "brain_tumor" in out
    given = ["--out", tmp_path / "ph", "--option", "image_size=32"]
    status, out, err = run("research", "prepare", "phantom", *given)
    assert status == 0, err
    assert "600" in out
    assert (tmp_path / "ph").is_dir()


# --- as a program of its own ------------------------------------------------------------------


def test_help_needs_nothing_slow():
    code = "import sys, normalis.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = {"torch", "sklearn", "scipy", "pydicom", "nibabel", "matplotlib", "pyarrow"}
    assert not slow & set(done.stdout.split())


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="no build backend is installed")
def test_the_wheel_holds_what_is_no_python(tmp_path):
    source = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "-q", "-w", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("normalis-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = source / "src/normalis"
    wanted = {
        f"normalis/{p.relative_to(package).as_posix()}"
        for p in package.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert wanted <= inside
    assert "normalis/py.typed" in inside
    assert any(name.endswith("paper.json") for name in inside)
    assert any(name.endswith(".j2") for name in inside)
    assert not [name for name in inside if name.startswith("tests/")]


def test_pictures_in_the_readme_exist():
    source = Path(__file__).resolve().parents[1]
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", (source / "README.md").read_text()):
        with Image.open(source / name) as picture:
            assert picture.width > 200


def test_fit_makes_a_panel_unless_told_otherwise_and_score_says_who_saw(run, tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (60, 32, 32), np.uint8)
    np.save(tmp_path / "x.npy", drawn)
    given = ["--image-size", "32", "--epochs", "1", "--out"]
    status, shown, err = run("fit", tmp_path / "x.npy", *given, tmp_path / "run")
    assert status == 0, err
    assert "panel of ae-u, feature-knn, feature-gaussian, spade" in shown
    status, _, err = run("score", tmp_path / "run", tmp_path / "x.npy", "--out", tmp_path / "out")
    assert status == 0, err
    with (tmp_path / "out" / "scores.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["seen_by"] for row in rows} <= {"ae-u", "feature-knn", "feature-gaussian", "spade"}
    assert all(0 < float(row["p_value"]) <= 1 for row in rows)


def test_members_choose_the_panel_and_one_alone_is_that_method(run, tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (30, 32, 32), np.uint8)
    np.save(tmp_path / "x.npy", drawn)
    given = ["--image-size", "32", "--out"]
    status, shown, err = run(
        "fit", tmp_path / "x.npy", *given, tmp_path / "one", "--members", "pca"
    )
    assert status == 0, err
    assert "panel of" not in shown
    status, _, err = run("fit", tmp_path / "x.npy", *given, tmp_path / "no", "--members", "pca,sp")
    assert status == 2
    assert "method must be one of" in err


def test_scores_are_replaced_if_asked_and_named_by_the_scored_folder(run, root, fitted, tmp_path):
    command = ["score", fitted, root / "test", "--out", tmp_path / "out", "--no-overlays"]
    assert run(*command)[0] == 0
    first = (tmp_path / "out/scores.csv").read_bytes()
    status, _, err = run(*command, "--relative-paths")
    assert (status, is_one_error_line(err)) == (2, True)
    assert (tmp_path / "out/scores.csv").read_bytes() == first
    assert run(*command, "--relative-paths", "--overwrite")[0] == 0
    assert read_table(tmp_path / "out/scores.csv")[0]["path"] == "good/000.png"
    assert sorted(p.name[0] for p in (tmp_path / "out").iterdir()).count(".") == 0


def test_the_option_for_patients_has_a_new_name_and_the_old_one_works(run, tmp_path):
    for name in ("p1_a.png", "p1_b.png", "p2_a.png"):
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / name)
    new = run("check", tmp_path, "--patient-pattern", "(p[0-9])_", "--json")
    old = run("check", tmp_path, "--patients", "(p[0-9])_", "--json")
    assert new[0] == 0
    assert json.loads(new[1]) == json.loads(old[1])
    assert run("check", tmp_path, "--patients=(q)_", "--json")[0] == 2
    shown = run("check", "--help")[1]
    assert "--patient-pattern" in shown
    assert "--patients" not in shown

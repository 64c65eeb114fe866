"""Result objects made of the folder that `score` wrote, without the model."""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from dicom_studies import image, lesion_slices, series, study, write

pytest.importorskip("highdicom", reason="needs the extra pacs")

from normalis import AnomalyDetector
from normalis.cli import app
from normalis.datasets import open_dataset
from normalis.errors import CalibrationWarning, DataError, RunError
from normalis.output.folder import ScoreOptions, score_to_folder
from normalis.pacs.export import export_studies
from normalis.pacs.scored_folder import read_scored
from normalis.pacs.scoring import score_studies


@pytest.fixture(scope="module")
def detector():
    """Fitted on 24 images of 12 bit."""
    normals = np.concatenate([lesion_slices(slices=2, seed=s)[:1] for s in range(24)])
    fitted = AnomalyDetector(
        method="pca", image_size=32, window=(0, 4095), fpr=0.2, calibration="split"
    )
    return fitted.fit(normals.astype(np.float32)).fitted_


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A radiograph and an MR series of one patient, in two studies."""
    root = tmp_path_factory.mktemp("studies")
    write(root / "a", [image("DX", lesion_slices(seed=9)[2], study(), series=generate_uid())])
    write(root / "b", series("MR", lesion_slices(seed=8), study(), number=2))
    return root


def score(detector, root, out, **options):
    data = detector.select(open_dataset(root))
    given = {"overlays": False, "fpr": 0.2} | options
    score_to_folder(detector, data.to_score(), out, root=root, options=ScoreOptions(**given))
    return out


@pytest.fixture(scope="module")
def scored(detector, sources, tmp_path_factory):
    return score(detector, sources, tmp_path_factory.mktemp("out") / "scored")


def by_uid(studies):
    return {s.uid: s for s in studies}


def test_a_scored_folder_tells_what_the_model_told(detector, sources, scored):
    samples = open_dataset(sources).to_score()
    theirs = by_uid(score_studies(detector, samples, fpr=0.2))
    ours = by_uid(read_scored(scored).studies())
    assert ours.keys() == theirs.keys()
    for uid, study_ in ours.items():
        other = theirs[uid]
        assert (study_.model, study_.fpr) == (other.model, 0.2)
        assert study_.patient_p_value == other.patient_p_value
        assert study_.calibration_units == other.calibration_units
        assert len(study_.images) == len(other.images)
        for a, b in zip(study_.images, other.images, strict=True):
            assert a.source.SOPInstanceUID == b.source.SOPInstanceUID
            assert (a.score, a.p_value, a.flagged, a.regions) == (
                b.score, b.p_value, b.flagged, b.regions
            )  # fmt: skip
            assert (a.level, a.full) == (b.level, b.full)
            assert a.anomaly_map.shape == (48, 48)
            assert np.abs(a.anomaly_map - b.anomaly_map).max() < 1e-4 * b.anomaly_map.max()


def test_objects_of_the_folder_replace_those_of_the_service(detector, sources, scored, tmp_path):
    samples = open_dataset(sources).to_score()
    by_service = export_studies(score_studies(detector, samples, fpr=0.2), tmp_path / "a")
    by_folder = export_studies(read_scored(scored).studies(), tmp_path / "b")
    assert [p.relative_to(tmp_path / "a") for p in by_service.paths] == [
        p.relative_to(tmp_path / "b") for p in by_folder.paths
    ]
    assert by_folder.failed == []
    kinds = [pydicom.dcmread(p).Modality for p in by_folder.paths]
    assert {"SR", "MR", "DX"} <= set(kinds) | {"MR", "DX"}
    assert "SR" in kinds


def test_frames_of_an_enhanced_file_are_told_apart(detector, tmp_path):
    file = image("MR", lesion_slices(seed=8), study(), series=generate_uid())
    file.NumberOfFrames = 5
    write(tmp_path / "in", [file])
    out = score(detector, tmp_path / "in", tmp_path / "out")
    (found,) = read_scored(out).studies()
    assert sorted(i.frame for i in found.images) == [1, 2, 3, 4, 5]
    assert all(i.anomaly_map.shape == (48, 48) for i in found.images)


def test_images_that_moved(detector, sources, tmp_path):
    root = tmp_path / "first"
    shutil.copytree(sources, root)
    out = score(detector, root, tmp_path / "out", relative_paths=True)
    root.rename(tmp_path / "second")
    with pytest.raises(DataError, match="--images"):
        list(read_scored(out).studies())
    found = read_scored(out, images=tmp_path / "second")
    assert len(list(found.studies())) == 2
    assert found.skipped == []
    next((tmp_path / "second").rglob("DX*")).unlink()
    found = read_scored(out, images=tmp_path / "second")
    assert len(list(found.studies())) == 1
    assert [reason for _, reason in found.skipped] == ["no longer there"]


def test_images_that_moved_are_found_though_their_names_were_absolute(detector, sources, tmp_path):
    root = tmp_path / "first"
    shutil.copytree(sources, root)
    out = score(detector, root, tmp_path / "out")
    root.rename(tmp_path / "second")
    found = list(read_scored(out, images=tmp_path / "second").studies())
    assert len(found) == 2
    assert all(i.anomaly_map is not None for s in found for i in s.images)


def test_a_scoring_without_maps_has_pictures_and_scores(detector, sources, tmp_path):
    out = score(detector, sources, tmp_path / "out", maps=False)
    done = export_studies(read_scored(out).studies(), tmp_path / "dicom")
    kinds = [pydicom.dcmread(p).SeriesDescription for p in done.paths]
    assert done.failed == []
    assert any("pictures" in k for k in kinds)


@pytest.mark.parametrize("name", ["score.json", "scores.csv"])
def test_no_scored_folder_is_refused_by_name(scored, tmp_path, name):
    shutil.copytree(scored, tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    with pytest.raises(RunError, match=f"has no {name}"):
        read_scored(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("model"), "kept less"),
        (lambda d: d["map_scale"]["scale"].__setitem__(0, "1 x"), "map_scale is damaged"),
    ],
)
def test_a_damaged_folder_says_so(scored, tmp_path, change, said):
    shutil.copytree(scored, tmp_path / "out")
    details = json.loads((tmp_path / "out" / "score.json").read_text())
    change(details)
    (tmp_path / "out" / "score.json").write_text(json.dumps(details))
    with pytest.raises(Exception, match=said):
        list(read_scored(tmp_path / "out").studies())


def test_images_that_are_no_dicom_become_no_objects(detector, tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    Image.fromarray(lesion_slices()[2].astype(np.uint16)).save(tmp_path / "in" / "a.png")
    out = score(detector, tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="written for DICOM only"):
        list(read_scored(out).studies())


def test_the_command(scored, tmp_path):
    ran = CliRunner().invoke(app, ["export-dicom", str(scored), "--to", str(tmp_path / "to")])
    assert ran.exit_code == 0, ran.output
    files = list((tmp_path / "to").rglob("*.dcm"))
    assert f"{len(files)} DICOM objects of 2 studies" in ran.output.replace("\n", " ")
    sc = ["export-dicom", str(scored), "--to", str(tmp_path / "sc"), "--kind", "sc"]
    assert CliRunner().invoke(app, sc).exit_code == 0
    kinds = {pydicom.dcmread(p).SOPClassUID for p in (tmp_path / "sc").rglob("*.dcm")}
    assert kinds == {"1.2.840.10008.5.1.4.1.1.7"}


def test_the_command_scores_by_a_run_first_if_studies_are_given(detector, sources, tmp_path):
    detector.save(tmp_path / "run")
    command = ["export-dicom", str(tmp_path / "run"), str(sources), "--to", str(tmp_path / "to")]
    for _ in range(2):  # again is no error
        ran = CliRunner().invoke(app, command)
        assert ran.exit_code == 0, ran.output
    assert (tmp_path / "to/scored/scores.csv").is_file()
    assert len(list((tmp_path / "to").rglob("*.dcm"))) >= 4


@pytest.fixture(scope="module")
def by_view(detector):
    """Calibrated within views: 24 normals of PA, 3 of AP, none of LL."""
    volumes = [lesion_slices(slices=2, seed=100 + s)[:1] for s in range(27)]
    folder = Path(tempfile.mkdtemp())
    films = [
        image("DX", pixels[0], study(f"N{i}"), series=generate_uid(), number=i,
              ViewPosition="PA" if i < 24 else "AP")
        for i, pixels in enumerate(volumes)
    ]  # fmt: skip
    write(folder, films)
    with pytest.warns(CalibrationWarning):
        yield detector.calibrate(folder, by="view")
    shutil.rmtree(folder)


def test_studies_are_judged_within_groups_by_folder_and_service_alike(by_view, tmp_path):
    """A grouped model was once pooled by the service, and gave studies of a folder nothing."""
    assert {n: k.n_units for n, k in by_view.grouped.groups.items()} == {"AP": 3, "PA": 24}
    films = {
        view: image("DX", lesion_slices(seed=9)[2], study(view), series=generate_uid(), number=n,
                    ViewPosition=view)
        for n, view in enumerate(["PA", "AP", "LL"])
    }  # fmt: skip
    write(tmp_path / "in", list(films.values()))
    out = score(by_view, tmp_path / "in", tmp_path / "out")
    theirs = by_uid(score_studies(by_view, open_dataset(tmp_path / "in").to_score(), fpr=0.2))
    ours = by_uid(read_scored(out).studies())
    said = {}
    for view, film in films.items():
        a, b = ours[film.StudyInstanceUID], theirs[film.StudyInstanceUID]
        assert (a.patient_p_value, a.calibration_units) == (b.patient_p_value, b.calibration_units)
        assert a.images[0].p_value == b.images[0].p_value
        assert bool(a.images[0].flagged) == bool(b.images[0].flagged)
        said[view] = (b.patient_p_value, b.calibration_units, bool(b.flagged))
    assert said == {
        "PA": (pytest.approx(1 / 25), 24, True), "AP": (pytest.approx(1 / 4), 3, False),
        "LL": (None, None, False),
    }  # fmt: skip
    (note,) = theirs[films["LL"].StudyInstanceUID].notes
    assert note.startswith("view LL: no normal image of it calibrates")
    assert theirs[films["PA"].StudyInstanceUID].notes == ()
    kinds = ("sc", "sr", "seg")
    done = export_studies(read_scored(out).studies(), tmp_path / "dicom", kinds=kinds)
    assert (done.studies, done.failed) == (3, [])

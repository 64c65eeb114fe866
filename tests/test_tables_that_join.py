"""Tables that join with a hospital's: UIDs and numbers in scores.csv, one row a series."""

import csv
import json
import re
import stat

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from dicom_studies import image, lesion_slices, series, study, write
from normalis import AnomalyDetector
from normalis.datasets import open_dataset
from normalis.errors import SettingsError
from normalis.output.folder import ScoreOptions, score_to_folder
from normalis.output.pseudonyms import Pseudonyms
from normalis.studies.select import chosen_by

FIRST = ["path", "slice", "patient_id", "anomaly_score", "p_value", "flagged", "at_border"]


@pytest.fixture(scope="module")
def detector():
    normals = np.concatenate([lesion_slices(slices=2, seed=s)[:1] for s in range(24)])
    fitted = AnomalyDetector(
        method="pca", image_size=32, window=(0, 4095), fpr=0.2, calibration="split"
    )
    return fitted.fit(normals.astype(np.float32)).fitted_


@pytest.fixture
def studies(tmp_path):
    """A film and an MR series of five slices, of two patients, and a localizer."""
    root = tmp_path / "studies"
    write(root / "a", [image("DX", lesion_slices(seed=9)[2], study("A"), series=generate_uid())])
    shared = study("B")
    write(root / "b", series("MR", lesion_slices(seed=8), shared, number=2, description="FLAIR"))
    scout = image("MR", lesion_slices(seed=8)[0], shared, series=generate_uid(), number=1)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write(root / "c", [scout])
    return root


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def score(detector, root, out, *, rules=(), progress=None, **options):
    data = chosen_by(open_dataset(root), rules)
    given = {"overlays": False, "fpr": 0.2} | options
    score_to_folder(
        detector, data.to_score(), out, root=root, options=ScoreOptions(**given),
        aside=data.aside, progress=progress,
    )  # fmt: skip
    return out


def test_scores_name_study_series_and_instance(detector, studies, tmp_path):
    table = rows(score(detector, studies, tmp_path / "out") / "scores.csv")
    assert list(table[0]) == [
        *FIRST, "study_uid", "series_uid", "sop_uid", "instance_number", "series_number",
        "series_description", "view", "laterality", "accession_number",
    ]  # fmt: skip
    assert len(table) == 6
    for row in table:
        header = pydicom.dcmread(row["path"], stop_before_pixels=True)
        assert row["study_uid"] == header.StudyInstanceUID
        assert row["series_uid"] == header.SeriesInstanceUID
        assert row["sop_uid"] == header.SOPInstanceUID
        assert row["instance_number"] == str(header.InstanceNumber)
        assert row["accession_number"] == "A0001"
        assert row["series_description"] == header.SeriesDescription
    film = next(row for row in table if row["patient_id"] == "A")
    assert (film["view"], film["laterality"]) == ("PA", "U")
    found = rows(tmp_path / "out" / "findings.csv")
    by_sop = {row["sop_uid"]: row["path"] for row in table}
    assert {row["sop_uid"]: row["path"] for row in found} == by_sop


def test_one_row_a_series_says_where_the_worst_image_is(detector, studies, tmp_path):
    out = score(detector, studies, tmp_path / "out")
    table, found = rows(out / "scores.csv"), rows(out / "series.csv")
    assert len(found) == 2
    assert sorted(float(r["anomaly_score"]) for r in found)[::-1] == [
        float(r["anomaly_score"]) for r in found
    ]
    volume = next(row for row in found if row["series_description"] == "FLAIR")
    assert (volume["plane"], volume["images"]) == ("axial", "5")
    assert volume["lie"] == "a volume, 5 mm between slices"
    slices = [row for row in table if row["series_uid"] == volume["series_uid"]]
    worst = max(slices, key=lambda row: float(row["anomaly_score"]))
    assert volume["worst_path"] == worst["path"]
    assert volume["worst_sop_uid"] == worst["sop_uid"]
    calibration = detector.calibration
    scores = [float(row["anomaly_score"]) for row in slices]
    _, p = calibration.patient_p_values(scores, ["one"] * 5)
    assert float(volume["p_value"]) == p[0]


def test_frames_count_from_one(detector, tmp_path):
    file = image("MR", lesion_slices(seed=8), study(), series=generate_uid())
    file.NumberOfFrames = 5
    write(tmp_path / "in", [file])
    table = rows(score(detector, tmp_path / "in", tmp_path / "out") / "scores.csv")
    assert [(row["slice"], row["frame"]) for row in table] == [
        (str(i), str(i + 1)) for i in range(5)
    ]


def test_what_rules_left_aside_is_listed_with_its_reason(detector, studies, tmp_path):
    out = score(detector, studies, tmp_path / "out", rules=("Modality=MR",))
    aside = rows(out / "aside.csv")
    assert len(rows(out / "scores.csv")) == 5
    reasons = {row["path"].split("/")[-2]: row["reason"] for row in aside}
    assert reasons["c"] == "a localizer"
    assert "Modality" in reasons["a"]


def test_images_without_origin_have_todays_columns(detector, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        picture = lesion_slices(seed=i)[0].astype(np.uint16)
        Image.fromarray(picture).save(tmp_path / "in" / f"{i}.png")
    out = score(detector, tmp_path / "in", tmp_path / "out")
    assert list(rows(out / "scores.csv")[0]) == FIRST
    assert not (out / "series.csv").exists()
    assert not (out / "aside.csv").exists()


def test_a_scoring_that_was_killed_ends_in_the_same_bytes(detector, studies, tmp_path):
    whole = score(detector, studies, tmp_path / "whole", rules=("Modality=MR,DX",))

    class Killed(BaseException):
        pass

    def kill(done, total):
        raise Killed

    with pytest.raises(Killed):
        score(detector, studies, tmp_path / "cut", rules=("Modality=MR,DX",), progress=kill)
    cut = score(detector, studies, tmp_path / "cut", rules=("Modality=MR,DX",))
    for name in ("scores.csv", "series.csv", "findings.csv", "aside.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


# --- pseudonyms ---


def test_pseudonyms_join_and_name_nobody(detector, studies, tmp_path):
    key = tmp_path / "keys" / "key"
    plain = rows(score(detector, studies, tmp_path / "plain") / "scores.csv")
    out = score(detector, studies, tmp_path / "out", pseudonyms=key, relative_paths=True)
    hidden = rows(out / "scores.csv")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for row in hidden:
        assert re.fullmatch(r"[a-z2-7]{10}", row["patient_id"])
        assert re.fullmatch(r"2\.25\.\d+", row["study_uid"])
    by_place = {row["instance_number"] + row["series_number"]: row for row in plain}
    pairs = {
        (by_place[r["instance_number"] + r["series_number"]]["patient_id"], r["patient_id"])
        for r in hidden
    }
    assert len(pairs) == 2, "one pseudonym for each patient"
    assert [r["anomaly_score"] for r in hidden] == [r["anomaly_score"] for r in plain]
    joined = {row["series_uid"] for row in rows(out / "series.csv")}
    assert joined == {row["series_uid"] for row in hidden}
    known = {str(row[c]) for row in plain for c in ("study_uid", "series_uid", "sop_uid")}
    for path in out.glob("*.*"):
        text = path.read_text()
        assert not any(uid in text for uid in known), path.name
        assert "A0001" not in text
        assert str(tmp_path) not in text or path.name == "score.json"


def test_the_same_key_gives_the_same_names_and_another_others(tmp_path):
    one, again = Pseudonyms(tmp_path / "a"), Pseudonyms(tmp_path / "a")
    other = Pseudonyms(tmp_path / "b")
    assert one.person("P1") == again.person("P1") != other.person("P1")
    assert one.person("P1") != one.person("P2")
    assert one.uid("1.2.3") == again.uid("1.2.3") != other.uid("1.2.3")
    assert one.person("") == one.uid("") == ""
    assert one("view", "PA") == "PA"


def test_a_known_pseudonym(tmp_path):
    key = tmp_path / "key"
    key.write_text("00" * 32 + "\n")
    key.chmod(0o600)
    # printf 'person\0P1' | openssl dgst -sha256 -mac HMAC -macopt hexkey:00..00 -binary | base32
    assert Pseudonyms(key).person("P1") == "54jfzk5ptz"


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "\xff"])
def test_a_file_that_is_no_key_is_refused(tmp_path, text):
    key = tmp_path / "key"
    key.write_text(text, encoding="latin-1")
    key.chmod(0o600)
    with pytest.raises(SettingsError, match="key"):
        Pseudonyms(key)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    Pseudonyms(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        Pseudonyms(tmp_path / "key")


def test_score_json_of_what_is_shared_says_not_where_images_lie(detector, studies, tmp_path):
    out = score(detector, studies, tmp_path / "out", relative_paths=True)
    assert json.loads((out / "score.json").read_text())["root"] is None


# --- patients ---


def test_one_row_a_patient_with_an_exact_p_value(detector, studies, tmp_path):
    out = score(detector, studies, tmp_path / "out")
    table, found = rows(out / "scores.csv"), rows(out / "patients.csv")
    assert {row["patient"]: row["images"] for row in found} == {"A": "1", "B": "5"}
    for row in found:
        theirs = [r for r in table if r["patient_id"] == row["patient"]]
        scores = [float(r["anomaly_score"]) for r in theirs]
        worst = max(theirs, key=lambda r: float(r["anomaly_score"]))
        assert (row["worst_path"], row["anomaly_score"]) == (worst["path"], worst["anomaly_score"])
        _, p = detector.calibration.patient_p_values(scores, ["one"] * len(scores))
        assert float(row["p_value"]) == p[0]
        assert row["calibration_units"] == str(detector.calibration.n_units)
        assert bool(row["warning"]) == (row["patient"] == "B"), "calibrated on one image each"


def test_patients_are_flagged_by_the_false_discovery_rate(detector, studies, tmp_path):
    out = score(detector, studies, tmp_path / "out", fdr=0.9)
    for row in rows(out / "patients.csv"):
        assert float(row["adjusted_p_value"]) >= float(row["p_value"])
        assert row["flagged"] == str(int(float(row["adjusted_p_value"]) <= 0.9))


def test_patients_have_pseudonyms_too(detector, studies, tmp_path):
    out = score(detector, studies, tmp_path / "out", pseudonyms=tmp_path / "key")
    hidden = {row["patient_id"] for row in rows(out / "scores.csv")}
    assert {row["patient"] for row in rows(out / "patients.csv")} == hidden
    assert "A" not in hidden

"""What leaves the hospital under pseudonyms names nobody, and still fits together."""

import csv
import json
import shutil

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from dicom_studies import image, lesion_slices, study
from test_pacs_enhanced import errors_of, scored_frames
from test_pacs_folder import detector, score, sources  # noqa: F401 - fixtures
from test_pacs_objects import BUILDERS, MADE, scored

pytest.importorskip("highdicom", reason="needs the extra pacs")

import report_folders
from normalis.cli import app
from normalis.errors import DataError, SettingsError
from normalis.images.objects import equipment_of, why_left_aside
from normalis.output.pseudonyms import Pseudonyms, replaced
from normalis.pacs.pseudonymous import METHOD, leaving, pseudonymous
from normalis.report import write_report
from pacs_peers import embedded

SECRET = "SECRET"
#: Attributes of patients, studies and visits that a source may have.
IDENTIFYING = {
    "PatientName": "SECRET^Jane", "PatientID": "SECRET7", "OtherPatientIDs": "SECRET8",
    "PatientBirthName": "SECRET^Birth", "PatientMotherBirthName": "SECRET^M",
    "PatientAddress": "SECRET street 1", "PatientTelephoneNumbers": "SECRET 555",
    "PatientComments": "SECRET comment", "EthnicGroup": "SECRET", "Occupation": "SECRET",
    "AdditionalPatientHistory": "SECRET history", "MedicalRecordLocator": "SECRET",
    "PatientReligiousPreference": "SECRET", "MilitaryRank": "SECRET",
    "ResponsiblePerson": "SECRET^Parent", "ResponsibleOrganization": "SECRET",
    "IssuerOfPatientID": "SECRET", "AccessionNumber": "SECRETACC", "StudyID": "SECRETSTUDY",
    "StudyDescription": "SECRET study", "ReferringPhysicianName": "SECRET^Doctor",
    "ConsultingPhysicianName": "SECRET^Other", "PhysiciansOfRecord": "SECRET^Record",
    "NameOfPhysiciansReadingStudy": "SECRET^Reading", "OperatorsName": "SECRET^Op",
    "PerformingPhysicianName": "SECRET^Perf", "RequestingPhysician": "SECRET^Req",
    "InstitutionName": "SECRET hospital", "InstitutionAddress": "SECRET road",
    "InstitutionalDepartmentName": "SECRET ward", "StationName": "SECRETSTATION",
    "DeviceSerialNumber": "SECRETSERIAL", "ProtocolName": "SECRET protocol",
    "SeriesDescription": "SECRET series", "ImageComments": "SECRET image",
    "AdmissionID": "SECRETADM", "CurrentPatientLocation": "SECRET bed",
    "RequestedProcedureDescription": "SECRET procedure", "RequestedProcedureID": "SECRETPROC",
    "PerformedProcedureStepDescription": "SECRET step", "ClinicalTrialSubjectID": "SECRETTRIAL",
    "ClinicalTrialSponsorName": "SECRET sponsor", "ClinicalTrialProtocolID": "SECRETPROT",
    "DeidentificationMethod": "SECRET method", "PositionReferenceIndicator": "SECRET",
}  # fmt: skip
BIRTH, DAY = "19810101", "20260301"


@pytest.fixture
def names(tmp_path):
    return Pseudonyms(tmp_path / "key")


def with_secrets(case):
    for one in case.images:
        for name, value in IDENTIFYING.items():
            setattr(one.source, name, value)
        one.source.add(DataElement(0x00090010, "LO", "SECRET"))
        one.source.add(DataElement(0x00091001, "LO", "SECRET private"))
    return case


def case_of(modality):
    return with_secrets(scored_frames() if modality == "enhanced MR" else scored(modality))


def objects(modality, case):
    kinds = ("sc", "sr", "pr") if modality == "enhanced MR" else tuple(BUILDERS)
    return [data for kind in kinds for data in BUILDERS[kind](case)]


def uids_of(case):
    said = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
    every = {str(one.source.get(name, "")) for one in case.images for name in said}
    return every - {""}


@pytest.mark.parametrize("modality", [*MADE, "enhanced MR"])
def test_no_object_names_a_person_a_place_or_a_day(modality, names, tmp_path):
    case = case_of(modality)
    made = objects(modality, case)
    assert any(SECRET in str(data) for data in made), "else nothing is shown by this test"
    paths = []
    for number, data in enumerate(made):
        before = str(data)
        left = pseudonymous(data, names)
        assert str(data) == before, "the object itself stays as it is"
        paths.append(tmp_path / f"{number}.dcm")
        left.save_as(paths[-1], enforce_file_format=True)
        written = paths[-1].read_bytes()
        for secret in (SECRET, BIRTH, DAY, *uids_of(case)):
            assert secret.encode() not in written
        assert left.PatientID == names.person("SECRET7")
        assert left.AccessionNumber == names.person("SECRETACC")
        assert left.StudyInstanceUID == names.uid(case.uid)
        assert (left.PatientIdentityRemoved, left.DeidentificationMethod) == ("YES", METHOD)
        assert left.PatientSex == "F"
        assert why_left_aside(left.SOPClassUID, (), equipment_of(left)) is not None
        if "PixelData" in data:
            assert left.PixelData == data.PixelData
        if (checker := shutil.which("dciodvfy")) is not None:
            assert errors_of([checker, "-new", str(paths[-1])]) == []
    if (checker := shutil.which("dcentvfy")) is not None:
        assert errors_of([checker, *map(str, paths)]) == []


def test_objects_of_one_study_stay_together_and_replace_each_other(names):
    made = objects("MR", case_of("MR"))
    left = [pseudonymous(data, names) for data in made]
    assert len({d.StudyInstanceUID for d in left}) == 1
    assert len({d.SeriesInstanceUID for d in left}) == len({d.SeriesInstanceUID for d in made})
    again = [pseudonymous(data, names) for data in made]
    assert [d.SOPInstanceUID for d in again] == [d.SOPInstanceUID for d in left]
    report = next(d for d in left if d.Modality == "SR")
    assert "2.25." in str(report.CurrentRequestedProcedureEvidenceSequence[0].StudyInstanceUID)


def test_pseudonyms_are_given_once_and_to_our_objects_alone(names):
    case = case_of("DX")
    once = pseudonymous(BUILDERS["sc"](case)[0], names)
    assert pseudonymous(once, names) is once
    with pytest.raises(DataError, match="normalis made"):
        pseudonymous(case.images[0].source, names)


def test_another_key_gives_other_names(names, tmp_path):
    (made,) = BUILDERS["sr"](case_of("DX"))
    other = pseudonymous(made, Pseudonyms(tmp_path / "other"))
    ours = pseudonymous(made, names)
    for name in ("PatientID", "AccessionNumber", "StudyInstanceUID", "SOPInstanceUID"):
        assert other.get(name) != ours.get(name)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    (tmp_path / "key").write_text("0" * 64)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        leaving(tmp_path / "key")
    assert leaving(None)("itself") == "itself"


# --- the commands ---


def run(*command):
    ran = CliRunner().invoke(app, [str(part) for part in command])
    assert ran.exit_code == 0, ran.output
    return " ".join(ran.output.split())


@pytest.fixture(scope="module")
def out(detector, sources, tmp_path_factory):  # noqa: F811
    return score(detector, sources, tmp_path_factory.mktemp("scored") / "out")


def test_export_and_push_leave_no_true_id(out, names, tmp_path, monkeypatch):
    key, to = tmp_path / "key", tmp_path / "to"
    run("export-dicom", out, "--to", to, "--pseudonyms", key)
    run("export-dicom", out, "--to", tmp_path / "true")
    files = sorted(to.rglob("*.dcm"))
    assert len(files) == len(list((tmp_path / "true").rglob("*.dcm"))) >= 4
    assert {p.name for p in files}.isdisjoint(p.name for p in (tmp_path / "true").rglob("*"))
    for path in files:
        assert pydicom.dcmread(path).PatientID == names.person("P1")
        assert b"Doe" not in path.read_bytes()
    with embedded() as pacs:
        run("push", tmp_path / "true", "--pacs", pacs.address, "--pseudonyms", key)
        assert {str(d.PatientID) for d in pacs.kept.values()} == {names.person("P1")}
        sent = set(pacs.kept)
        assert sent == {str(pydicom.dcmread(p).SOPInstanceUID) for p in files}
        run("push", to, "--pacs", pacs.address, "--pseudonyms", key)
        assert set(pacs.kept) == sent, "once is enough"
        run("push", tmp_path / "true", "--pacs", pacs.address)
        assert {str(d.PatientID) for d in pacs.kept.values()} == {names.person("P1"), "P1"}


def test_true_ids_beside_tables_with_pseudonyms_are_said(detector, sources, tmp_path):  # noqa: F811
    scored_ = score(detector, sources, tmp_path / "out", pseudonyms=tmp_path / "key")
    said = run("export-dicom", scored_, "--to", tmp_path / "to")
    assert "the DICOM objects the true ids" in said
    said = run("export-dicom", scored_, "--to", tmp_path / "t2", "--pseudonyms", tmp_path / "key")
    assert "true ids" not in said
    study_p = json.loads((scored_ / "score.json").read_text())["study_p_values"]
    made = [pydicom.dcmread(p) for p in (tmp_path / "t2").rglob("*.dcm")]
    assert {d.StudyInstanceUID for d in made} == set(study_p), "tables and objects join"


def test_pull_writes_tables_under_pseudonyms(detector, names, tmp_path):  # noqa: F811
    detector.save(tmp_path / "run")
    film = image("DX", lesion_slices(seed=9)[2], study(), series=generate_uid())
    with embedded() as pacs:
        pacs.kept[str(film.SOPInstanceUID)] = film
        run("pull", tmp_path / "run", "--pacs", pacs.address, "--out", tmp_path / "out",
            "--pseudonyms", tmp_path / "key")  # fmt: skip
    with (tmp_path / "out/scored/scores.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["patient_id"] == names.person("P1")
    assert row["study_uid"] == names.uid(film.StudyInstanceUID)


def test_a_page_under_pseudonyms(tmp_path, names):
    known = {"accession_number": [f"ACC{i:04d}" for i in range(40)], "view": ["PA"] * 40}
    folder = report_folders.score_folder(tmp_path / "scored", pictures=2, known=known)
    rows = [f"P{i:03d},0.5" for i in range(20)]
    (folder / "patients.csv").write_text("\n".join(["patient,p_value", *rows]) + "\n")
    true = write_report(folder, tmp_path / "true.html").read_text()
    assert '"P001"' in true
    assert "ACC0001" in true
    page = write_report(
        folder, tmp_path / "page.html", leaves=replaced(tmp_path / "key")
    ).read_text()
    assert '"P001"' not in page
    assert "ACC0001" not in page
    assert names.person("P001") in page
    assert names.person("ACC0001") in page
    details = json.loads((folder / "score.json").read_text())
    (folder / "score.json").write_text(json.dumps({**details, "pseudonyms": True}))
    again = write_report(folder, tmp_path / "again.html", leaves=replaced(tmp_path / "key"))
    assert '"P001"' in again.read_text(), "what are pseudonyms already stay as they are"
    ran = CliRunner().invoke(app, ["report", str(folder), "--out", str(tmp_path / "c.html"),
                                   "--pseudonyms", str(tmp_path / "key")])  # fmt: skip
    assert ran.exit_code == 0, ran.output


def test_the_service_sends_pseudonyms_and_shows_readers_true_ids(detector, names, tmp_path):  # noqa: F811
    pytest.importorskip("starlette", reason="needs the extra serve")
    from starlette.testclient import TestClient

    from normalis.pacs.peer import peer_at
    from normalis.serve.store import Store
    from normalis.serve.web import WebSettings, make_app
    from normalis.serve.worker import Worker

    store = Store(tmp_path / "data")
    film = image("DX", lesion_slices(seed=9)[2], study(), series=generate_uid())
    path = store.spool / "one.dcm"
    film.save_as(path, enforce_file_format=True)
    store.received(
        sop=film.SOPInstanceUID, study=film.StudyInstanceUID, series=film.SeriesInstanceUID,
        sop_class=film.SOPClassUID, path=path, sender="X", quiet_s=0,
    )  # fmt: skip
    key = tmp_path / "key"
    with embedded() as pacs:
        worker = Worker(
            store, detector, kinds=("sc", "sr"), peer=peer_at(pacs.address), fpr=0.2,
            leaves=leaving(key),
        )  # fmt: skip
        assert worker.score_next()
        assert worker.send_due()
        assert {str(d.PatientID) for d in pacs.kept.values()} == {names.person("P1")}
        assert {d.StudyInstanceUID for d in pacs.kept.values()} == {
            names.uid(film.StudyInstanceUID)
        }
    assert store.counts()["objects_kept"] == len(pacs.kept)
    settings = WebSettings(hosts=("testserver",), leaves=replaced(key))
    client = TestClient(make_app(store, worker, settings))
    assert "P1" in client.get("/").text
    table = client.get("/worklist.csv").text
    (row,) = csv.DictReader(table.removeprefix("\ufeff").splitlines())
    assert row["patient_id"] == names.person("P1")
    assert row["accession_number"] == names.person("A0001")
    assert row["study_uid"] == names.uid(film.StudyInstanceUID)
    store.close()


def test_a_push_that_is_refused_names_titles_and_rights(out, tmp_path):
    run("export-dicom", out, "--to", tmp_path)
    with embedded() as pacs:
        command = ["push", str(tmp_path), "--pacs", str(pacs.address), "--aet", "STRANGER"]
        ran = CliRunner().invoke(app, command)
    said = " ".join(ran.output.split())
    assert ran.exit_code == 1
    assert "unreached" in said
    assert "hint: Most PACS answer only titles that are entered there" in said
    assert "rights to store, query and fetch" in said

"""Multi-frame images, consistency across objects, and what a real PACS shows of them."""

import shutil
import subprocess

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicom_studies import AXIAL, code, image, lesion_slices, study, write
from test_pacs_objects import BUILDERS, MADE, SIZE, scored

pytest.importorskip("highdicom", reason="needs the extra pacs")

from normalis.pacs import capture
from normalis.pacs import structured_report as report
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy
from normalis.pacs.peer import peer_at
from pacs_peers import PASSWORD, embedded, find_orthanc, orthanc

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def _one(**values):
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


def enhanced() -> Dataset:
    """An enhanced MR file of five frames, with what a checker asks of it."""
    volume = lesion_slices(SIZE)
    data = image("MR", volume, study(), series=generate_uid())
    for name in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
        "RepetitionTime", "EchoTime", "EchoTrainLength", "ScanningSequence", "SequenceVariant",
        "ScanOptions", "MRAcquisitionType", "WindowCenter", "WindowWidth", "AcquisitionDate",
        "AcquisitionTime",
    ):  # fmt: skip
        if name in data:
            delattr(data, name)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    data.NumberOfFrames, data.ImageType = 5, ["ORIGINAL", "PRIMARY", "OTHER", "NONE"]
    data.SharedFunctionalGroupsSequence = _one(
        PixelMeasuresSequence=_one(PixelSpacing=[1.0, 1.0], SliceThickness=4.0),
        PlaneOrientationSequence=_one(ImageOrientationPatient=list(AXIAL)),
        FrameVOILUTSequence=_one(WindowCenter=2048, WindowWidth=4096),
        FrameAnatomySequence=_one(
            FrameLaterality="U", AnatomicRegionSequence=[code("69536005", "SCT", "Head")]
        ),
    )
    data.PerFrameFunctionalGroupsSequence = [
        _one(
            PlanePositionSequence=_one(ImagePositionPatient=[0.0, 0.0, 4.0 * k]),
            FrameContentSequence=_one(StackID="1", InStackPositionNumber=k + 1),
        )[0]
        for k in range(5)
    ]
    return data


def scored_frames() -> ScoredStudy:
    source = enhanced()
    images = []
    for frame in range(1, 6):
        hit = frame == 3
        values = np.zeros((SIZE, SIZE), np.float32)
        values[12:20, 18:26] = 3.0 if hit else 0.0
        box = Region(left=18, top=12, right=26, bottom=20, peak=3.0, p_value=0.01)
        images.append(
            ScoredImage(
                source=source, frame=frame, score=5.0 if hit else 1.0, p_value=0.01,
                flagged=hit, anomaly_map=values, level=1.0, full=3.0, regions=(box,) if hit else (),
            )
        )  # fmt: skip
    images.sort(key=lambda one: -one.score)
    return ScoredStudy(uid=str(source.StudyInstanceUID), model="abc123", images=tuple(images))


def errors_of(command):
    said = subprocess.run(command, capture_output=True, text=True)
    lines = (said.stdout + said.stderr).splitlines()
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("kind", ["sc", "sr"])
def test_results_of_frames_say_which_frame_and_have_no_error(kind, tmp_path):
    made = {"sc": capture, "sr": report}[kind].build(scored_frames())
    first = made[0]
    if kind == "sc":
        assert len(made) == 3
        assert first.SourceImageSequence[0].ReferencedFrameNumber == 3
        frames = [d.SourceImageSequence[0].ReferencedFrameNumber for d in made]
        assert len(set(frames)) == 3
        assert len({d.SOPInstanceUID for d in made}) == 3
    else:
        assert "Referenced Frame Number" in str(first)
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy is not installed (make pacs)")
    for number, data in enumerate(made):
        data.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
        assert errors_of([checker, "-new", str(tmp_path / f"{number}.dcm")]) == []


@pytest.mark.parametrize("modality", [*MADE, "enhanced MR"])
def test_sources_and_results_are_consistent(modality, tmp_path):
    checker = shutil.which("dcentvfy")
    if checker is None:
        pytest.skip("dcentvfy is not installed (make pacs)")
    case = scored_frames() if modality == "enhanced MR" else scored(modality)
    kinds = ("sc", "sr") if modality == "enhanced MR" else tuple(BUILDERS)
    sources = list({i.source.SOPInstanceUID: i.source for i in case.images}.values())
    results = [data for kind in kinds for data in BUILDERS[kind](case)]
    paths = []
    for number, data in enumerate([*sources, *results]):
        paths.append(tmp_path / f"{number}.dcm")
        data.save_as(paths[-1], enforce_file_format=True)
    assert errors_of([checker, *map(str, paths)]) == []


@pytest.mark.parametrize(
    "modality", ["DX", *(pytest.param(m, marks=pytest.mark.slow) for m in ("MR", "enhanced MR"))]
)
def test_a_pacs_draws_the_picture(modality, tmp_path, monkeypatch):
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed (make pacs)")
    monkeypatch.setenv("NORMALIS_PACS_USER", "normalis")
    monkeypatch.setenv("NORMALIS_PACS_PASSWORD", PASSWORD)
    case = scored_frames() if modality == "enhanced MR" else scored(modality)
    made = capture.build(case)
    with orthanc() as server:
        assert {one.state for one in peer_at(server.address).store(made)} == {"kept"}
        for one in server.json("/instances"):
            png = server.get(f"/instances/{one}/preview")
            assert png[:4] == b"\x89PNG"
            assert len(png) > 2000, "a picture, not a blank one"


@pytest.mark.slow
def test_every_object_of_every_modality_goes_there_and_back(tmp_path, monkeypatch):
    """Made, checked, stored in a real PACS, found, fetched over both protocols, and drawn."""
    if find_orthanc() is None:
        pytest.skip("Orthanc is not installed (make pacs)")
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy is not installed (make pacs)")
    monkeypatch.setenv("NORMALIS_PACS_USER", "normalis")
    monkeypatch.setenv("NORMALIS_PACS_PASSWORD", PASSWORD)
    expected = MADE | {"enhanced MR": {"sc": 3, "sr": 1, "seg": 0, "pm": 0, "pr": 0}}
    with orthanc() as server:
        dimse, web = peer_at(server.address), peer_at(server.web)
        for modality, counts in expected.items():
            case = scored_frames() if modality == "enhanced MR" else scored(modality)
            made = {kind: build(case) for kind, build in BUILDERS.items()}
            assert {kind: len(some) for kind, some in made.items()} == counts, modality
            sources = list({i.source.SOPInstanceUID: i.source for i in case.images}.values())
            objects = [data for some in made.values() for data in some]
            for number, data in enumerate(objects):
                data.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
                assert errors_of([checker, "-new", str(tmp_path / f"{number}.dcm")]) == []
            every = [*sources, *objects]
            assert {one.state for one in dimse.store(every)} == {"kept"}, modality
            uids = {str(data.SOPInstanceUID) for data in every}
            for peer in (dimse, web):
                found = {one["StudyInstanceUID"] for one in peer.find({})}
                assert case.uid in found, modality
                assert {str(d.SOPInstanceUID) for d in peer.fetch(case.uid)} == uids, modality
            pictures = {str(data.SOPInstanceUID) for data in made["sc"]}
            for one in server.json("/instances?expand"):
                if one["MainDicomTags"]["SOPInstanceUID"] in pictures:
                    png = server.get(f"/instances/{one['ID']}/preview")
                    assert png[:4] == b"\x89PNG"
                    assert len(png) > 2000, "a picture, not a blank one"


def test_segmentations_that_a_pacs_refuses_stop_nothing_else():
    case = scored("MR")
    made = [data for kind in ("sc", "sr", "seg") for data in BUILDERS[kind](case)]
    with embedded() as server:
        server.refused.add("1.2.840.10008.5.1.4.1.1.66.4")
        told = peer_at(server.address).store(made)
    states = {data.Modality: one.state for data, one in zip(made, told, strict=True)}
    assert states.pop("SEG") == "refused"
    assert set(states.values()) == {"kept"}


def test_the_index_knows_the_plane_of_frames(tmp_path):
    from normalis.studies.index import read_header

    (path,) = write(tmp_path, [enhanced()])
    entry = read_header(path)
    assert (entry.plane, entry.frames) == ("axial", 5)

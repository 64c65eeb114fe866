"""Result objects: what they say, that a checker accepts them, and where their regions lie."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dicom_studies import AXIAL, image, lesion_slices, series, study
from normalis.images.objects import equipment_of, why_left_aside
from normalis.pacs.capture import picture
from normalis.pacs.cases import Region, ScoredImage, ScoredStudy, tall_grey

hd = pytest.importorskip("highdicom", reason="needs the extra pacs")

from normalis.pacs import capture, parametric_map, presentation, segmentation  # noqa: E402
from normalis.pacs import structured_report as report  # noqa: E402
from normalis.pacs.marks import SERIES_NUMBERS, WORDS, stable_uid  # noqa: E402

OBLIQUE = (0.8, 0.6, 0.0, -0.36, 0.48, 0.8)  # orthonormal
SIZE = 48
BOX = (SIZE // 4 + 6, SIZE // 4, SIZE // 4 + SIZE // 6 + 6, SIZE // 4 + SIZE // 6)


def scored(kind: str, orientation=AXIAL, *, region: bool = True) -> ScoredStudy:
    """A study whose lesion was found: the map is 3 inside its square and 0 elsewhere."""
    volume = lesion_slices(SIZE)
    shared = study()
    if kind in ("DX", "CR"):
        sources = [image(kind, volume[2], shared, series=generate_uid())]
    else:
        sources = series(kind, volume, shared, orientation=orientation, thickness=4.0)
    left, top, right, bottom = BOX
    images = []
    for number, source in enumerate(sources):
        hit = region and (len(sources) == 1 or number == 2)
        values = np.zeros((SIZE, SIZE), np.float32)
        if hit:
            values[top:bottom, left:right] = 3
        box = Region(left=left, top=top, right=right, bottom=bottom, peak=3.0, p_value=0.01)
        images.append(
            ScoredImage(
                source=source, score=5.0 if hit else 1.0, p_value=0.01 if hit else 0.6,
                flagged=hit, anomaly_map=values, level=1.0, full=3.0, regions=(box,) if hit else (),
            )
        )  # fmt: skip
    images.sort(key=lambda one: -one.score)
    return ScoredStudy(
        uid=shared["StudyInstanceUID"], model="abc123", images=tuple(images),
        patient_p_value=0.02, calibration_units=49,
    )  # fmt: skip


BUILDERS = {
    "sc": capture.build, "sr": report.build, "seg": segmentation.build,
    "pm": parametric_map.build, "pr": presentation.build,
}  # fmt: skip
MADE = {
    "DX": {"sc": 1, "sr": 1, "seg": 0, "pm": 0, "pr": 1},
    "CR": {"sc": 1, "sr": 1, "seg": 0, "pm": 0, "pr": 1},
    "CT": {"sc": 3, "sr": 1, "seg": 1, "pm": 1, "pr": 1},
    "MR": {"sc": 3, "sr": 1, "seg": 1, "pm": 1, "pr": 1},
}
CASES = [(modality, kind) for modality in MADE for kind in BUILDERS]


@pytest.mark.parametrize(("modality", "kind"), CASES)
def test_what_becomes_what(modality, kind):
    made = BUILDERS[kind](scored(modality))
    assert len(made) == MADE[modality][kind]
    for data in made:
        assert data.SeriesNumber == SERIES_NUMBERS[kind]
        assert "research" in data.SeriesDescription
        assert data.PatientID == "P1"
        assert "normalis" in equipment_of(data)
        aside = why_left_aside(data.SOPClassUID, equipment=equipment_of(data))
        assert aside == "a result that normalis wrote"
        assert why_left_aside(data.SOPClassUID), "by its class alone it is no image either"


@pytest.mark.parametrize(("modality", "kind"), CASES)
def test_a_checker_finds_no_error(modality, kind, tmp_path):
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy is not installed (make pacs)")
    for number, data in enumerate(BUILDERS[kind](scored(modality))):
        file = tmp_path / f"{number}.dcm"
        data.save_as(file, enforce_file_format=True)
        said = subprocess.run([checker, "-new", str(file)], capture_output=True, text=True)
        errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
        assert errors == []


@pytest.mark.parametrize("modality", list(MADE))
def test_the_sources_of_these_tests_have_no_error_either(modality, tmp_path):
    checker = shutil.which("dciodvfy")
    if checker is None:
        pytest.skip("dciodvfy is not installed (make pacs)")
    source = scored(modality).images[0].source
    source.save_as(tmp_path / "s.dcm", enforce_file_format=True)
    said = subprocess.run(
        [checker, "-new", str(tmp_path / "s.dcm")], capture_output=True, text=True
    )
    assert [line for line in said.stderr.splitlines() if line.startswith("Error")] == []


@pytest.mark.parametrize("kind", list(BUILDERS))
def test_a_resend_replaces(kind):
    first = scored("MR")
    one, other = BUILDERS[kind](first), BUILDERS[kind](first)
    assert [d.SOPInstanceUID for d in one] == [d.SOPInstanceUID for d in other]
    assert len({d.SOPInstanceUID for d in one}) == len(one)
    elsewhere = BUILDERS[kind](scored("MR"))
    assert not {d.SOPInstanceUID for d in one} & {d.SOPInstanceUID for d in elsewhere}


def test_stable_uids_are_valid():
    uid = hd.UID(stable_uid("a", "b"))
    assert uid.is_valid
    assert len(uid) <= 64
    assert uid == stable_uid("a", "b") != stable_uid("ab")


def test_every_group_of_the_report_has_a_region():
    for study_ in (scored("MR"), scored("DX")):
        (made,) = report.build(study_)
        groups = _groups(made)
        assert groups
        for group in groups:
            kinds = {item.ValueType for item in _walk(group)}
            assert "SCOORD" in kinds
        words = " ".join(str(item.get("ConceptNameCodeSequence")) for item in _walk(made))
        assert "PATIENTPVALUE" in words
        assert made.PreliminaryFlag == "PRELIMINARY"
        assert made.VerificationFlag == "UNVERIFIED"


def test_a_study_without_any_region_has_no_report_but_a_picture():
    quiet = scored("DX", region=False)
    assert report.build(quiet) == []
    assert len(capture.build(quiet)) == 1


def test_the_picture_shows_the_words_and_no_name():
    first = scored("DX").images[0]
    shown = picture(first)
    assert shown.shape[2] == 3
    assert shown[:46].any(), "the words stand above"
    half = shown.shape[1] // 2
    grey, painted = shown[46:, :half].astype(int), shown[46:, half:].astype(int)
    assert (grey.max(2) == grey.min(2)).all(), "the image itself is grey"
    assert (painted.max(2) - painted.min(2)).max() > 50, "the map is coloured"
    assert WORDS.startswith("RESEARCH")


@pytest.mark.parametrize("inverted", [False, True])
def test_monochrome1_is_shown_inverted(inverted):
    source = scored("DX").images[0].source
    before = tall_grey(ScoredImage(source=source, score=1.0))
    if inverted:
        source.PhotometricInterpretation = "MONOCHROME1"
    after = tall_grey(ScoredImage(source=source, score=1.0))
    assert (after == (255 - before if inverted else before)).mean() > 0.98


@pytest.mark.parametrize("modality", ["CT", "MR", "DX"])
def test_slices_of_one_series_are_shown_on_one_scale(modality):
    """A slice with a bright lesion once made its own disc darker than that of its neighbours."""
    volume, shared = lesion_slices(SIZE), study()
    discs = set()
    for pixels in volume[1:3]:  # without the lesion, and with it
        source = image(modality, pixels, shared, series="1.2.3")
        grey = tall_grey(ScoredImage(source=source, score=1.0))
        discs.add(round(float(np.median(grey[SIZE // 2 : SIZE // 2 + 8, SIZE // 2 :][:, :8]))))
    assert max(discs) - min(discs) <= 2
    assert 10 < max(discs) < 250


def test_a_lookup_table_and_colours_have_their_own_scale():
    source = image("DX", np.full((8, 8), 3), study(), series="1.2.3")
    del source.WindowCenter, source.WindowWidth
    item = pydicom.Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 12], np.full(4096, 819, "<u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    source.VOILUTSequence = [item]
    assert np.unique(tall_grey(ScoredImage(source=source, score=1.0))).tolist() == [51]


@pytest.mark.parametrize("orientation", [AXIAL, (1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1), OBLIQUE])
@pytest.mark.parametrize("shuffled", [False, True])
def test_regions_lie_on_the_lesion_in_the_patient(orientation, shuffled):
    """SR, SEG and map name the same millimetres, whatever the direction and order of slices."""
    case = scored("MR", orientation)
    if shuffled:
        order = np.random.default_rng(1).permutation(len(case.images))
        images = (case.images[0], *(case.images[i] for i in order if i))
        case = ScoredStudy(
            uid=case.uid, model=case.model, images=images, patient_p_value=0.02,
            calibration_units=49,
        )  # fmt: skip
    hit = case.images[0].source
    left, top, right, bottom = BOX
    wanted = _millimetres(hit, (left + right) / 2 - 0.5, (top + bottom) / 2 - 0.5)

    (seg,) = segmentation.build(case)
    (pm,) = parametric_map.build(case)
    for made, values in ((seg, seg.pixel_array > 0), (pm, pm.pixel_array > 1)):
        assert len(values) == len(case.images), "empty frames are kept"
        found = [_centre(made, k, frame) for k, frame in enumerate(values) if frame.any()]
        assert len(found) == 1
        np.testing.assert_allclose(found[0], wanted, atol=0.02)

    (sr,) = report.build(case)
    (scoord,) = [item for item in _walk(sr) if item.ValueType == "SCOORD"]
    corners = np.array(scoord.GraphicData, float).reshape(-1, 2)
    reference = scoord.ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == hit.SOPInstanceUID
    middle = corners[:4].mean(0) - 0.5  # 0 is the outer corner of the first pixel
    np.testing.assert_allclose(_millimetres(hit, *middle), wanted, atol=0.02)


def _walk(data):
    for item in data.get("ContentSequence", []):
        yield item
        yield from _walk(item)


def _groups(made):
    return [
        item
        for item in _walk(made)
        if item.ValueType == "CONTAINER" and item.ConceptNameCodeSequence[0].CodeValue == "125007"
    ]


def _millimetres(source, column, row):
    """PS3.3 C.7.6.2.1.1: column and row of a pixel's centre to the patient's space."""
    o = np.array(source.ImageOrientationPatient, float)
    down, across = map(float, source.PixelSpacing)
    return (
        np.array(source.ImagePositionPatient, float) + o[:3] * across * column + o[3:] * down * row
    )


def _centre(made, number, frame):
    groups = made.PerFrameFunctionalGroupsSequence[number]
    shared = made.SharedFunctionalGroupsSequence[0]
    position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
    holder = shared if "PlaneOrientationSequence" in shared else groups
    o = np.array(holder.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    measures = (shared if "PixelMeasuresSequence" in shared else groups).PixelMeasuresSequence[0]
    down, across = map(float, measures.PixelSpacing)
    rows, columns = np.nonzero(frame)
    return position + o[:3] * across * columns.mean() + o[3:] * down * rows.mean()

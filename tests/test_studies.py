"""Studies: rules about headers, what is left aside and why, and how slices lie in space."""

import itertools
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from normalis.datasets import Dataset, Sample
from normalis.errors import DataError, SettingsError
from normalis.images import remarks
from normalis.images.objects import why_left_aside
from normalis.studies.geometry import plane_of, stack_of
from normalis.studies.index import index_files, read_header, series_of
from normalis.studies.select import select
from normalis.studies.where import answer, parse, parse_all

DX = "1.2.840.10008.5.1.4.1.1.1.1"
MR = "1.2.840.10008.5.1.4.1.1.4"
AXIAL = [1, 0, 0, 0, 1, 0]


def write(path: Path, **attributes) -> Path:
    """Write a small DICOM file without pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Header()
    values = {"SOPClassUID": MR, "SOPInstanceUID": generate_uid(), "Modality": "MR"}
    for name, value in (values | attributes).items():
        if value is not None:
            setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.save_as(path, enforce_file_format=True)
    return path


def of_files(*paths, **header) -> Dataset:
    samples = tuple(Sample(path=p, split="train", is_anomalous=False, header=header) for p in paths)
    return Dataset(name="x", root=paths[0].parent, layout="folder of images", samples=samples)


# --- rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "holds"),
    [
        ("Modality=DX", True),
        ("modality = dx", True),
        ("Modality=CR,DX", True),
        ("Modality=CR", False),
        ("Modality!=CR,CT", True),
        ("Modality!=DX", False),
        ("SeriesDescription~chest.*pa", True),
        ("SeriesDescription~^pa", False),
        ("slices>=20", True),
        ("slices<20", False),
        ("thickness<=1.5", True),
        ("thickness>1.5", False),
        ("EchoTime=5", True),  # 5.0 is 5
        ("ViewPosition=PA", None),
        ("ViewPosition!=PA", None),
        ("StationName~x", None),
        ("SeriesDescription<3", None),
    ],
)
def test_rules(rule, holds):
    known = {
        "modality": "DX", "seriesdescription": "CHEST 2 views, PA", "slices": 20,
        "thickness": "1.5", "echotime": 5.0, "viewposition": "", "stationname": None,
    }  # fmt: skip
    assert parse(rule).holds(known) is holds


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("Modality", "KEY=VALUE"),
        ("=DX", "KEY=VALUE"),
        ("Modality=", "KEY=VALUE"),
        ("slices>many", "a number"),
        ("View~(", "regular expression"),
        ("", "KEY=VALUE"),
    ],
)
def test_what_is_no_rule_is_refused(rule, said):
    with pytest.raises(SettingsError, match=said):
        parse(rule)


def test_all_rules_must_hold_and_a_failure_outweighs_an_unknown():
    rules = parse_all(["ViewPosition=PA", "Modality=CR"])
    assert answer(rules, {"modality": "DX"}) == (False, rules[1])
    assert answer(rules, {"modality": "CR"}) == (None, rules[0])
    assert answer(rules, {"modality": "CR", "viewposition": "pa"}) == (True, None)
    assert answer((), {}) == (True, None)


@given(st.text(max_size=40))
def test_any_text_is_a_rule_that_reads_back_or_is_refused(text):
    with suppress(SettingsError):
        rule = parse(text)
        assert rule.holds({}) is None
        assert parse(str(rule)) == rule


# --- what is an image -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sop_class", "said"),
    [
        (DX, None),
        (MR, None),
        ("1.2.840.10008.5.1.4.1.1.2.1", None),  # enhanced CT
        ("1.2.840.10008.5.1.4.1.1.77.1.5.1", None),  # ophthalmic photography
        ("1.2.840.10008.5.1.4.1.1.7", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.7.4", "secondary capture"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "segmentation"),
        ("1.2.840.10008.5.1.4.1.1.30", "parametric map"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "presentation state"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "structured report"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "key object"),
        ("1.2.840.10008.5.1.4.1.1.481.3", "radiotherapy"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "document"),
        ("1.2.840.10008.5.1.4.1.1.66", "raw data"),
        ("", None),
    ],
)
def test_the_sop_class_decides(sop_class, said):
    found = why_left_aside(sop_class)
    assert found is None if said is None else said in found


def test_derived_and_secondary_images_are_images_and_localizers_are_not():
    assert why_left_aside(MR, ["DERIVED", "SECONDARY", "MPR"]) is None
    assert why_left_aside(MR, ["ORIGINAL", "PRIMARY", "LOCALIZER"]) == "a localizer"
    assert "normalis wrote" in why_left_aside(MR, equipment=["Siemens", "normalis"])


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("orientation", "plane"),
    [
        (AXIAL, "axial"),
        ([1, 0, 0, 0, 0, -1], "coronal"),
        ([0, 1, 0, 0, 0, -1], "sagittal"),
        ([1, 0, 0, 0, np.cos(0.4), np.sin(0.4)], "axial"),
        ([1, 0, 0, 0, np.cos(0.76), np.sin(0.76)], "oblique"),
        ([0, 0, 0, 0, 0, 0], None),
        ([1, 0, 0], None),
        ([np.nan] * 6, None),
        (None, None),
    ],
)
def test_planes(orientation, plane):
    assert plane_of(orientation) == plane


def positions(along, tilt_deg=0.0):
    shear = np.tan(np.radians(tilt_deg))
    return [(0.0, shear * z, float(z)) for z in along]


@pytest.mark.parametrize(
    ("along", "tilt", "verdict", "said"),
    [
        ([0, 2, 4, 6], 0, "even", "a volume, 2 mm"),
        ([0, 2, 4.01, 6], 0, "even", "a volume"),
        ([0, 2, 5, 7], 0, "uneven", "from 2 to 3 mm"),
        ([0, 2, 4, 6], 24, "tilted", "24 degrees"),
        ([0, 0, 2, 2, 4, 4], 0, "repeats", "several slices at one position"),
        ([0, 2], 0, "few", "fewer than 3"),
    ],
)
def test_stacks(along, tilt, verdict, said):
    placed = positions(along, tilt)
    for order in itertools.islice(itertools.permutations(range(len(along))), 20):
        stack = stack_of([placed[i] for i in order], [AXIAL] * len(along))
        assert stack.verdict == verdict
        assert said in stack.sentence()
        if verdict not in ("few", "repeats"):
            assert [order[i] for i in stack.order] == list(range(len(along)))


def test_a_position_that_is_missing_or_another_direction_is_no_stack():
    placed = positions([0, 1, 2])
    assert stack_of([*placed[:2], None], [AXIAL] * 3).verdict == "unplaced"
    turned = [AXIAL, AXIAL, [0, 1, 0, 0, 0, -1]]
    assert stack_of(placed, turned).verdict == "unplaced"


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "images", "verdict"),
    [("mr_t1_sagittal", 192, "even"), ("ct_ge_tilted", 28, "tilted")],
)
def test_real_series(real_data, folder, images, verdict):
    files = [p for p in sorted((real_data / "series" / folder).rglob("*")) if p.is_file()]
    series = series_of(e for e in index_files(files).values() if e.aside is None)
    largest = max(series.values(), key=lambda s: s.images)
    assert largest.images == images
    assert largest.stack.verdict == verdict


# --- headers and selections -----------------------------------------------------------------------


def test_a_header_gives_what_tables_need(tmp_path):
    file = write(
        tmp_path / "a", PatientID="P1", StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3",
        SeriesDescription="T1 sag", InstanceNumber=7, AccessionNumber="A1", Laterality="L",
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[1, 2, 3],
        SliceThickness="1.5", ImageType=["ORIGINAL", "PRIMARY"],
    )  # fmt: skip
    entry = read_header(file)
    assert entry.columns["series_description"] == "T1 sag"
    assert entry.columns["laterality"] == "L"
    assert entry.columns["instance_number"] == "7"
    assert entry.plane == "sagittal"
    assert entry.position == (1, 2, 3)
    assert entry.values["SliceThickness"] == 1.5
    assert entry.aside is None


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\x08", b"DICM", b"\0" * 300])
def test_what_is_no_dicom_has_no_entry(tmp_path, content):
    file = tmp_path / "x"
    file.write_bytes(content)
    assert read_header(file) is None
    assert read_header(tmp_path / "absent") is None


def test_an_enhanced_object_knows_its_plane_and_frames(tmp_path):
    orientation, position = Header(), Header()
    orientation.ImageOrientationPatient = AXIAL
    position.ImagePositionPatient = [0, 0, 5]
    shared, frame = Header(), Header()
    shared.PlaneOrientationSequence = [orientation]
    frame.PlanePositionSequence = [position]
    file = write(
        tmp_path / "e", NumberOfFrames=3, SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[frame] * 3,
    )  # fmt: skip
    entry = read_header(file)
    assert (entry.frames, entry.plane, entry.position) == (3, "axial", (0, 0, 5))


def test_a_selection_keeps_what_matches_and_says_why_not(tmp_path):
    made = [
        write(tmp_path / "pa", SOPClassUID=DX, Modality="DX", ViewPosition="PA"),
        write(tmp_path / "ap", SOPClassUID=DX, Modality="DX", ViewPosition="AP"),
        write(tmp_path / "ll", SOPClassUID=DX, Modality="DX", ViewPosition="LL"),
        write(tmp_path / "none", SOPClassUID=DX, Modality="DX"),
        write(tmp_path / "seg", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG"),
    ]
    (tmp_path / "png").write_bytes(b"\x89PNG\r\n\x1a\n")
    found = select(of_files(*made, tmp_path / "png"), parse_all(["ViewPosition=PA,AP"]))
    assert [s.path.name for s in found.dataset.samples] == ["pa", "ap"]
    assert found.dataset.selected_by == ("ViewPosition=PA,AP",)
    assert len(found.dataset.aside) == 4
    assert found.reasons() == {
        "unknown: nothing says ViewPosition": 2,
        "not ViewPosition=PA,AP": 1,
        "a segmentation": 1,
    }


def test_computed_keys(tmp_path):
    long = [
        write(
            tmp_path / f"l{i}", SeriesInstanceUID="1.1", ImageOrientationPatient=AXIAL,
            ImagePositionPatient=[0, 0, i], InstanceNumber=9 - i,
        )
        for i in range(4)
    ]  # fmt: skip
    short = write(
        tmp_path / "s", SeriesInstanceUID="1.2", ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )
    rules = parse_all(["plane=axial", "slices>=3"])
    found = select(of_files(*long, short), rules)
    assert len(found.dataset.samples) == 4
    assert found.dataset.samples[0].header["slices"] == 4
    assert [e.path.name for e in found.series["1.1"].entries] == ["l0", "l1", "l2", "l3"]
    assert found.series["1.1"].stack.is_volume


def test_columns_of_a_manifest_answer_and_win(tmp_path):
    file = write(tmp_path / "a", SOPClassUID=DX, Modality="DX", ViewPosition="AP")
    data = of_files(file, view="PA", site="north")
    assert (
        select(data, parse_all(["view=PA", "site=north"])).dataset.samples[0].header["view"] == "PA"
    )


def test_nothing_left_is_an_error_that_counts(tmp_path):
    file = write(tmp_path / "a", Modality="MR")
    with pytest.raises(DataError, match=r"no image is left of 1 \(not Modality=CT: 1\)"):
        select(of_files(file), parse_all(["Modality=CT"]))


def test_a_damaged_header_is_left_to_the_reader(tmp_path):
    file = write(tmp_path / "a", ImagePositionPatient=[0, 0, 1])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) - 7])
    found = select(of_files(file))
    assert len(found.dataset.samples) == 1


def test_headers_against_the_standard_are_remarked_on_once(tmp_path, recwarn):
    remarks.taken()
    files = [write(tmp_path / str(i), AccessionNumber="A1") for i in range(3)]
    for file in files:  # a value too long, as some exports have it
        file.write_bytes(file.read_bytes().replace(b"SH\x02\x00A1", b"SH\x14\x00" + b"A" * 20))
    assert len(index_files(files)) == 3
    assert not list(recwarn)
    (found,) = remarks.taken()
    assert "exceeds the maximum length of 16 allowed for VR SH" in str(found)
    assert set(found.files) == set(files)

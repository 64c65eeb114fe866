"""A fitted detector and labels to the honest table."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normalis.datasets import open_dataset
from normalis.errors import DataError
from normalis.evaluation import of_detector
from normalis.evaluation.of_detector import evaluate_detector
from normalis.images import decoding
from small_runs import anomalies, detector, phantoms, write_mvtec, write_pngs


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mvtec(tmp_path_factory.mktemp("mvtec"), train=40, test=10)


@pytest.fixture(scope="module")
def fitted(root):
    return detector(epochs=20, learning_rate=0.01).fit(root)


@pytest.fixture(scope="module")
def assessed(fitted, root):
    heard = []
    result = evaluate_detector(
        fitted, open_dataset(root), fpr=0.2, progress=lambda stage, share: heard.append(stage)
    )
    return *result, heard


def rows_of(result, section, subset="all"):
    return {r.name: r for r in result.table() if (r.section, r.subset) == (section, subset)}


def test_figures_are_those_of_the_scores(assessed, fitted, root):
    from sklearn.metrics import roc_auc_score

    result, _, skipped, heard = assessed
    samples = open_dataset(root).split("test")
    scores = fitted.anomaly_score([s.path for s in samples])
    labels = [s.is_anomalous for s in samples]
    ranking = rows_of(result, "ranking")
    assert ranking["auroc"].value == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert ranking["auroc"].low <= ranking["auroc"].value <= ranking["auroc"].high
    assert "pixel_average_precision" in {r.name for r in result.table()}
    assert skipped == []
    assert heard[0] == "scores"
    assert heard[-1] == "metrics"


def test_baselines_stand_beside(assessed):
    result, *_ = assessed
    assert len(rows_of(result, "baseline")) >= 3
    assert result.beats_baselines in (True, False)


def test_flags_are_those_of_the_threshold(assessed, fitted, root):
    result, *_ = assessed
    deployed = rows_of(result, "deployable")
    assert deployed
    normals = [s.path for s in open_dataset(root).split("test") if not s.is_anomalous]
    share = fitted.predict(normals).mean()
    assert any(row.value == pytest.approx(share) for row in deployed.values())


def test_without_calibration_nothing_is_deployable(root):
    plain = detector(calibration="none").fit(root)
    result, *_ = evaluate_detector(plain, open_dataset(root))
    assert not rows_of(result, "deployable")
    assert rows_of(result, "ranking")


def test_a_rate_that_cannot_be_certified_is_left_out(fitted, root):
    result, *_ = evaluate_detector(fitted, open_dataset(root), fpr=0.001)
    assert not rows_of(result, "deployable")


def test_copies_of_training_images_are_told_and_left_out_beside(tmp_path):
    root = write_mvtec(tmp_path, train=30, test=8)
    copied = sorted((root / "train/good").iterdir())[0]
    (root / "test/good/000.png").write_bytes(copied.read_bytes())
    fitted = detector().fit(root)
    result, found, _ = evaluate_detector(fitted, open_dataset(root))
    assert found.has_leaks
    assert any(r.subset.startswith("without") for r in result.table())


def test_an_unreadable_test_image_is_skipped(fitted, tmp_path):
    root = write_mvtec(tmp_path, train=10, test=6)
    broken = root / "test/good/001.png"
    broken.write_bytes(broken.read_bytes()[:90])
    result, _, skipped = evaluate_detector(fitted, open_dataset(root))
    assert [path.name for path, _ in skipped] == ["001.png"]
    assert rows_of(result, "ranking")["auroc"].n_images == 11


def test_without_labels_there_is_nothing_to_evaluate(fitted, tmp_path):
    write_pngs(tmp_path, phantoms(4))
    with pytest.raises(DataError, match=r"must have labelled test images .* has none"):
        evaluate_detector(fitted, open_dataset(tmp_path))


def test_test_images_alone_can_be_evaluated(fitted, tmp_path):
    write_pngs(tmp_path, np.concatenate([phantoms(6, seed=8), anomalies(6, seed=9)]))
    rows = [f"{i:03d}.png,{int(i >= 6)},test" for i in range(12)]
    (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(rows))
    result, *_ = evaluate_detector(fitted, open_dataset(tmp_path), fpr=0.2)
    assert rows_of(result, "ranking")["auroc"].n_images == 12


def test_rows_of_arrays_are_evaluated(fitted, tmp_path):
    test = np.concatenate([phantoms(6, seed=8), anomalies(6, seed=9)])
    np.savez(
        tmp_path / "x.npz",
        train=phantoms(10, seed=5),
        test=test,
        test_label=np.arange(12) >= 6,
    )
    result, *_ = evaluate_detector(fitted, open_dataset(tmp_path / "x.npz"), fpr=0.2)
    assert rows_of(result, "ranking")["auroc"].n_images == 12


@pytest.fixture
def counts(monkeypatch):
    """How often each file has been decoded."""
    found, plain = Counter(), decoding.read_frames

    def counting(path, **options):
        found[Path(path)] += 1
        return plain(path, **options)

    monkeypatch.setattr(decoding, "read_frames", counting)
    return found


def test_each_image_is_decoded_once(fitted, tmp_path, counts):
    root = write_mvtec(tmp_path, train=20, test=4)
    gone = []

    def vanish(stage, _):
        if stage == "metrics" and not gone:  # scored and audited: the baselines need no file
            gone.extend(path.unlink() for path in root.glob("t*/*/*.png"))

    evaluate_detector(fitted, open_dataset(root), progress=vanish)
    assert len(gone) == len(counts) == 28
    assert set(counts.values()) == {1}


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("deep", [False, True])
def test_an_image_decoded_once_is_the_image(tmp_path, monkeypatch, counts, image_size, deep):
    """Sizes as the audit's and others; 8 bit, and deeper by a rule: the same to the last bit."""
    root = write_mvtec(tmp_path, train=16, test=4)
    for file in sorted(root.glob("t*/*/*.png")) if deep else []:
        values = np.asarray(Image.open(file).convert("L"), np.uint16) * 90
        Image.fromarray(values).save(file)
    fitted = detector(image_size=image_size, epochs=1).fit(root)
    counts.clear()
    once, found, _ = evaluate_detector(fitted, open_dataset(root))
    assert set(counts.values()) == {1}
    monkeypatch.setattr(of_detector, "decoded_once", lambda *recipes: nullcontext())
    twice, other, _ = evaluate_detector(fitted, open_dataset(root))
    assert set(counts.values()) == {3}
    assert repr(once.to_dict()) == repr(twice.to_dict())
    assert repr(found.to_dict()) == repr(other.to_dict())


def write_volumes(root, *, with_masks):
    """Six normal volumes to train on, three normal and three anomalous ones of four slices."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    rows = ["path,label,split,mask"]
    for i in range(12):
        bad = i >= 9
        values = rng.integers(90, 110, (32, 32, 4), dtype=np.uint8)
        mask = np.zeros_like(values)
        if bad:
            mask[10:20, 10:20, 2] = 1
            values[mask > 0] = 250
            nib.save(nib.Nifti1Image(mask, np.eye(4)), root / f"m{i}.nii")
        nib.save(nib.Nifti1Image(values, np.eye(4)), root / f"v{i}.nii")
        split = "train" if i < 6 else "test"
        named = f"m{i}.nii" if bad and with_masks else ""
        rows.append(f"v{i}.nii,{int(bad)},{split},{named}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return open_dataset(root / "list.csv")


def test_slices_of_anomalous_volumes_count_by_their_masks(tmp_path):
    data = write_volumes(tmp_path, with_masks=True)
    result, *_ = evaluate_detector(detector(method="pca", calibration="none").fit(data), data)
    (subset,) = (s for s in result.subsets if s.name == "all")
    assert (subset.n_normal, subset.n_anomalous) == (12 + 9, 3)
    assert result.notes[0].startswith("9 of 12 slices of anomalous files have no marked pixel")
    assert rows_of(result, "ranking")["auroc"].value == 1


def test_slices_without_masks_are_said_to_count_as_their_file(tmp_path):
    data = write_volumes(tmp_path, with_masks=False)
    result, *_ = evaluate_detector(detector(method="pca", calibration="none").fit(data), data)
    (subset,) = (s for s in result.subsets if s.name == "all")
    assert subset.n_anomalous == 12
    assert result.notes[0].startswith("All 12 slices of anomalous files count as anomalous")


def write_classes(root: Path, *, normal: int = 10, seed: int = 9) -> Path:
    write_pngs(root / "good", phantoms(normal, seed=seed))
    write_pngs(root / "pneumonia", anomalies(6, seed=10))
    return root


@pytest.mark.parametrize("name", ["test", "films"])
def test_class_folders_without_a_split_are_evaluated_whole(fitted, tmp_path, name):
    data = open_dataset(write_classes(tmp_path / name), normal_class="good")
    result, found, _ = evaluate_detector(fitted, data, fpr=0.2)
    assert rows_of(result, "ranking")["auroc"].n_images == 16
    assert found.is_test.all()


def test_a_table_without_a_column_of_splits_is_evaluated_whole(fitted, tmp_path):
    root = write_classes(tmp_path / "films")
    listed = [f"{p.relative_to(root)},{p.parent.name}" for p in sorted(root.rglob("*.png"))]
    (root / "films.csv").write_text("\n".join(["path,label", *listed]))
    data = open_dataset(root / "films.csv", normal_class="good")
    result, _, _ = evaluate_detector(fitted, data, fpr=0.2)
    assert rows_of(result, "ranking")["auroc"].n_images == 16


def test_a_table_with_a_split_is_not_divided_again(tmp_path):
    write_classes(tmp_path)
    rows = ["good/000.png,0,train", "good/001.png,0,test", "pneumonia/000.png,1,test"]
    (tmp_path / "m.csv").write_text("\n".join(["path,label,split", *rows]))
    data = open_dataset(tmp_path / "m.csv")
    assert data.to_evaluate() is data


def test_images_that_were_trained_on_do_not_stand_for_new_ones(tmp_path):
    root = write_classes(tmp_path / "films", normal=20)
    data = open_dataset(root, normal_class="good")
    run = detector().fit(data)
    with pytest.raises(DataError, match=r"trained on 1[0-9] of the 20 images that count as normal"):
        evaluate_detector(run, data, fpr=0.2)
    write_pngs(root / "good/new", phantoms(30, seed=11))
    again = open_dataset(root, normal_class="good")
    result, _, _ = evaluate_detector(run, again, fpr=0.2)
    assert any("figures without trained" in note for note in result.notes)
    n_trained = len(run.fitted_.trained_on)
    assert rows_of(result, "ranking", "without trained")["auroc"].n_images == 56 - n_trained

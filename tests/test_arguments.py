"""Whatever is handed to a public function, the answer is a result or a NormalisError that helps."""

import pathlib

import numpy as np
import pandas
import pytest
import scipy.sparse
import torch

import normalis
from normalis.errors import DataError, NormalisError, SettingsError
from normalis.errors.arguments import check_kind, path_of, rate_of, shown
from small_runs import detector, phantoms, write_mvtec, write_pngs

NO_IMAGES = {
    "None": (None, "got None"),
    "int": (3, "got 3"),
    "float": (2.5, "got 2.5"),
    "bool": (True, "got True"),
    "dict": ({"a": 1}, "got dict"),
    "bytes": (b"abc", "got bytes"),
    "set": ({1, 2}, "got a set"),
    "generator": ((i for i in range(3)), r"got generator: give list"),
    "iterator": (iter(["a.png"]), r"got list_iterator: give list"),
    "function": (len, "got builtin_function_or_method"),
    "class": (int, "got <class 'int'>"),
    "empty list": ([], "at least one image is needed"),
    "list of None": ([None], "got dtype object"),
    "list of numbers": ([1, 2], r"shape \(N, H, W\)"),
    "ragged list": ([[1, 2], [3]], "of one shape"),
    "two sizes": ([np.zeros((8, 8)), np.zeros((4, 4))], "of one shape"),
    "files and None": (["a.png", None], "holds None"),
    "no name": ([""], "must have a name"),
    "empty text": ("", "no empty one"),
    "NUL": (["a\0b"], "without NUL"),
    "object array": (np.array([None, "x", 3], dtype=object), "holds None"),
    "strings of no files": (["a", "b"], "none of the 2 images is readable"),
    "array of strings": (np.array(["a", "b"]), "none of the 2 images is readable"),
    "NaN": (np.full((3, 32, 32), np.nan), "image 0 holds NaN"),
    "infinity": (torch.full((3, 32, 32), torch.inf), "image 0 holds NaN"),
    "one axis": (np.zeros(3), r"shape \(N, H, W\)"),
    "two axes": (np.zeros((3, 3)), r"give x\[None\]"),
    "five axes": (np.zeros((2, 2, 2, 2, 2)), r"shape \(N, H, W\)"),
    "no axis": (np.zeros(()), r"shape \(N, H, W\)"),
    "channels last": (np.zeros((3, 32, 32, 3)), "channels come second"),
    "no images": (np.zeros((0, 32, 32)), "must not be empty"),
    "boolean": (np.zeros((3, 32, 32), bool), "a mask is not an image"),
    "complex": (np.zeros((3, 32, 32), complex), "got dtype complex128"),
    "masked": (np.ma.masked_less(np.zeros((3, 32, 32)), 1), r"give x\.filled\(value\)"),
    "sparse": (scipy.sparse.csr_array(np.eye(4)), "uint8, integers or floats|shape"),
    "sparse tensor": (torch.zeros((2, 32, 32)).to_sparse(), "got Tensor that is none"),
    "meta tensor": (torch.zeros((2, 32, 32), device="meta"), "got Tensor that is none"),
    "table": (pandas.DataFrame({"path": ["a.png"]}), "give its column of paths"),
}


@pytest.fixture(scope="module")
def fitted():
    return detector().fit(phantoms(30)).fitted_


@pytest.mark.parametrize("given", NO_IMAGES)
@pytest.mark.parametrize("verb", ["anomaly_score", "predict", "calibrate", "reconstruct"])
def test_images_of_no_kind(fitted, given, verb):
    value, said = NO_IMAGES[given]
    if given in ("generator", "iterator"):
        value = iter(["a.png"]) if given == "iterator" else (i for i in range(3))
    with pytest.raises(DataError, match=said):
        getattr(fitted, verb)(value)


@pytest.mark.parametrize("given", NO_IMAGES)
def test_fit_on_no_images(given):
    value, _ = NO_IMAGES[given]
    with pytest.raises(DataError):
        detector().fit(value)


def test_columns_and_arrays_of_paths_are_lists_of_files(fitted, tmp_path):
    paths = write_pngs(tmp_path, phantoms(4))
    expected = fitted.anomaly_score(paths)
    texts = [str(path) for path in paths]
    column = pandas.Series(["x", *texts])[1:]  # its first row has the label 1
    for given in (texts, tuple(texts), np.array(texts), np.array(paths, dtype=object), column):
        np.testing.assert_array_equal(fitted.anomaly_score(given), expected)


ODD = {
    "None": None, "int": -1, "nan": float("nan"), "dict": {"a": 1}, "list": [], "text": "abc",
    "empty": "", "array": np.zeros(3), "object": object(), "bytes": b"a", "class": int,
    "huge": 10**9, "true": True,
}  # fmt: skip
#: Parameter -> values of `ODD` that it may have.
MAY_BE = {
    "image_size": ["None"], "epochs": ["None", "huge"], "batch_size": ["huge"],
    "learning_rate": ["None"], "standardize": ["true"], "reduction": ["None"], "folds": ["huge"],
    "window": ["None"], "where": ["list"], "random_state": ["huge"], "keep_similar": ["true"],
    "method_options": ["None"], "scorer_options": ["None"], "members": ["None"],
}  # fmt: skip


@pytest.mark.parametrize("name", list(detector().get_params()))
@pytest.mark.parametrize("value", ODD)
def test_every_parameter_of_every_kind(name, value):
    made = detector(**{name: ODD[value]})
    if value in MAY_BE.get(name, []):
        made._checked()
        return
    if (name, value) in (("method_options", "dict"), ("scorer_options", "dict")):
        match = "a"
    else:
        match = name
    with pytest.raises(SettingsError, match=match):
        made._checked()


def test_every_further_argument(fitted, tmp_path):
    x, data = phantoms(30, seed=9), write_mvtec(tmp_path / "m")
    run = fitted.save(tmp_path / "run")
    image = str(data / "train/good/000.png")
    calls = {
        "patient_ids": lambda v: fitted.calibrate(x, patient_ids=v),
        "by": lambda v: fitted.calibrate(x, by=v),
        "fpr": lambda v: fitted.predict(x, fpr=v),
        "k": lambda v: fitted.similar_normals(x, v),
        "scorer": lambda v: fitted.with_scorer(v, x),
        "reduction": lambda v: fitted.with_scorer("l1", x, reduction=v),
        "scorer_options": lambda v: fitted.with_scorer("l1", x, scorer_options=v),
        "save": lambda v: fitted.save(v),
        "load": lambda v: normalis.AnomalyDetector.load(v),
        "device": lambda v: normalis.FittedDetector.load(run, device=v),
        "run": lambda v: detector().fit(x, run=v),
        "progress": lambda v: detector().fit(x, progress=v),
        "open_dataset": lambda v: normalis.open_dataset(v),
        "normal_class": lambda v: normalis.open_dataset(data, normal_class=v),
        "check": lambda v: normalis.check(v),
        "image_size": lambda v: normalis.check(data, image_size=v),
        "pattern": lambda v: normalis.check(data, patient_pattern=v),
        "evaluate": lambda v: normalis.evaluate(fitted, v),
        "detector": lambda v: normalis.evaluate(v, data),
        "evaluate fpr": lambda v: normalis.evaluate(fitted, data, fpr=v),
        "read_frames": lambda v: list(normalis.read_frames(v)),
        "plane": lambda v: list(normalis.read_frames(image, plane=v)),
        "slice_range": lambda v: list(normalis.read_frames(image, slice_range=v)),
        "report": lambda v: normalis.write_report(v, tmp_path / "r.html"),
        "index": lambda v: fitted.plot_case(x, v),
    }
    fine = {
        "patient_ids": ["None"], "by": ["None"], "fpr": ["None"], "reduction": ["None"],
        "scorer_options": ["None"], "run": ["None", "text"], "save": ["text"],
        "progress": ["None", "true", "class"], "pattern": ["None"], "index": ["int"],
        "normal_class": ["list"],
    }  # fmt: skip
    wrong = []
    for name, call in calls.items():
        for kind, value in ODD.items():
            if kind in fine.get(name, []):
                continue
            try:
                call(value)
            except NormalisError:
                continue
            except Exception as error:
                wrong.append(f"{name} = {kind}: {type(error).__name__}: {error}")
            else:
                wrong.append(f"{name} = {kind}: taken")
    assert not wrong, "\n".join(wrong)


def test_check_and_evaluate_open_a_folder(fitted, tmp_path):
    data = write_mvtec(tmp_path / "m")
    assert normalis.check(str(data)).layout == "MVTec/BMAD"
    result, _, _ = normalis.evaluate(fitted, data)
    assert result.n_images == 16 if hasattr(result, "n_images") else result is not None


def test_messages_show_what_was_given_and_stay_short():
    with pytest.raises(SettingsError, match=r"^size must be a whole number or None, got 'x'$"):
        check_kind("size", "x", "whole?")
    with pytest.raises(SettingsError, match=r"^rate must be in \(0, 1\), got 1$"):
        rate_of("rate", 1)
    with pytest.raises(DataError, match=r"^a file must be a path, got 3$"):
        path_of("a file", 3, DataError)
    assert path_of("a file", "a") == pathlib.Path("a")
    assert shown("x" * 100) == f"'{'x' * 59}..."
    assert shown(list(range(100))) == "a value of type list"
    assert shown({"a": 1}) == "{'a': 1}"

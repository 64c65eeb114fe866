"""Pages say what the folders say, hold everything they need, and escape what users named."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import precision_recall_curve, roc_curve

import report_folders as folders
from normalis.datasets import open_dataset
from normalis.errors import RunError
from normalis.output.folder import score_to_folder
from normalis.report import pictures, triage, write_report
from normalis.report.contours import contour_path
from normalis.report.curves import precision_recall, roc
from normalis.report.marks import read_marks
from normalis.report.sections import display_name, fact_tables
from normalis.report.sources import detect, read_run, read_scores
from normalis.research.page import read_records, rows_of, write_results
from normalis.storage import write_json
from small_runs import detector, phantoms, write_pngs


class Page(HTMLParser):
    """What a test asks of a page: its tags, their attributes, and the JSON it carries."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.text = file.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.lasttag == "script" and data.strip():
            self.scripts.append(data)

    @property
    def cases(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = folders.score_folder(tmp_path_factory.mktemp("scored"))
    write_json(folder / "audit.json", folders.audit())
    write_json(folder / "evaluation.json", folders.evaluation())
    return folder


@pytest.fixture(scope="module")
def page(scored):
    return Page(write_report(scored, scored / "page.html"))


# --- one file that needs nothing else ---


def test_page_refers_to_nothing_outside_itself(page):
    references = [
        (tag, name, value)
        for tag, attributes in page.tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "action", "data") or (name == "href" and value[:1] != "#")
        or (name.endswith(":href") and value[:1] != "#")
    ]  # fmt: skip
    assert references == []
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "img")]
    assert not re.findall(r"url\((?!#)|@import", page.text)


def test_policy_admits_this_script_and_no_connection(page):
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_ids_are_unique_and_references_lead_somewhere(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for t, a in page.tags if t == "a"}
    assert links <= set(ids)
    labelled = {a["for"] for t, a in page.tags if t in ("label", "output") and "for" in a}
    assert labelled <= set(ids)
    clips = set(re.findall(r"url\(#([\w-]+)\)", page.text))
    assert clips
    assert clips <= set(ids)


def test_two_hundred_cases_stay_below_two_megabytes(page):
    cases = sum(len(p) for p in page.cases["photo"] + page.cases["level"])
    assert len(page.text) - cases + 200 * cases / len(page.cases["photo"]) < 2e6


def test_report_imports_no_torch(scored, tmp_path):
    code = (
        "import sys; from normalis.report import write_report; "
        f"write_report({str(scored)!r}, {str(tmp_path / 'p.html')!r}); "
        "sys.exit(sum(m in sys.modules for m in ('torch', 'matplotlib.pyplot')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_caution_is_said_at_the_top_and_beside_the_cases(page):
    assert page.text.lower().count("for triage and research, not for diagnosis") >= 3


# --- what it says ---


def test_every_chart_is_there_and_described(page):
    titles = re.findall(r"<figure class=\"chart[^>]*>\s*<h3>([^<]*)", page.text)
    assert titles == ["Training", "Anomaly scores", "ROC curve", "Precision and recall",
                      "Calibration"]  # fmt: skip
    described = [a for t, a in page.tags if t == "div" and a.get("role") == "img"]
    assert len(described) == 5
    assert all(a["aria-label"] for a in described)


def test_charts_follow_the_colours_of_the_page(page):
    svg = page.text[page.text.index("<svg") : page.text.rindex("</svg>")]
    assert "var(--ink)" in svg
    assert "var(--anomalous)" in svg
    assert "#010203" not in svg
    assert "mathdefault" not in svg


def test_triage_data_are_the_table(page, scored):
    source, cases = read_scores(scored), page.cases
    assert cases["score"] == source.cases.anomaly_score.tolist()
    assert cases["p"] == source.cases.p_value.tolist()
    assert cases["root"] == "/data/phantoms/test"
    assert cases["path"][0] == "glioma/img_0000.png"
    assert cases["label"][:3] == [1, 0, 0]
    assert cases["pictures"] == 40
    assert cases["threshold"] == source.calibration.threshold(0.05)
    assert [preset["rate"] for preset in cases["presets"]] == [0.1, 0.05]


def test_expected_rate_of_the_page_is_the_p_value(scored):
    source = read_scores(scored)
    tail = triage.triage_data(source)["calibration"]
    for threshold in source.cases.anomaly_score[:10]:
        beyond = sum(score > threshold for score in tail["scores"])
        rate = (1 + (tail["above"][beyond - 1] if beyond else 0)) / (tail["units"] + 1)
        assert rate == pytest.approx(source.calibration.p_values([np.nextafter(threshold, 1)])[0])


def test_levels_that_cannot_be_certified_are_named(page):
    rows = re.findall(r"<th scope=\"row\">([\d.]+ %)</th>\s*<td class=\"num\">([^<]*)", page.text)
    certified = {rate: shown != "cannot be certified" for rate, shown in rows}
    assert certified == {"10 %": True, "5 %": True, "1 %": False, "0.1 %": False}
    assert "1/81 = 1.23 %" in page.text


def test_audit_and_evaluation_are_shown_and_oracles_apart(page):
    assert "12 of 100 test images are training images." in page.text
    assert "does not beat every score" in page.text
    assert "2 anomalous images have an empty mask." in page.text
    ranking = page.text[page.text.index("<h3>Ranking</h3>") :]
    ranking = ranking[: ranking.index("</table>")]
    assert "0.870" in ranking
    assert "best Dice" not in ranking
    assert "<h3>Label-tuned</h3>" in page.text
    assert re.search(r'<tr class="marked">\s*<th scope="row">file 512</th>', page.text)


def test_groups_and_lesions_are_shown(page):
    groups = page.text[page.text.index("<h3>False-positive rate by group</h3>") :]
    assert re.search(r"sex</th>.{0,60}>M<.{0,60}>0.090<", groups.replace("\n", ""))
    lesions = page.text[page.text.index("<h3>What maps show</h3>") :]
    assert "lesions of 1 to 16 px coloured" in lesions
    assert re.search(
        r"17 or more px coloured</th>.{0,60}>0.710<.{0,60}>0.400 to 1.000<",
        lesions.replace("\n", ""),
    )


def test_drift_is_shown_where_the_figures_begin(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=12)
    details = json.loads((folder / "score.json").read_text())
    write_json(folder / "score.json", details | {"drift": ["contrast: 90 % are <above> 0.4"]})
    page = Page(write_report(folder, tmp_path / "page.html"))
    assert "<b>drift</b> contrast: 90 % are &lt;above&gt; 0.4" in page.text


def test_scores_without_labels_patients_and_calibration(tmp_path):
    folder = folders.score_folder(
        tmp_path / "s", n=12, labels=False, patients=False, calibrated=False
    )
    page = Page(write_report(folder, tmp_path / "page.html"))
    assert "ROC curve" not in page.text
    assert page.cases["calibration"] is None
    assert page.cases["presets"] == []
    assert set(page.cases["p"]) == {None}


def test_without_labels_no_column_of_labelled_images(tmp_path, page):
    folder = folders.score_folder(tmp_path / "s", n=12, labels=False)
    plain = Page(write_report(folder, tmp_path / "page.html"))
    for column, always in (("images flagged", True), ("labelled anomalies found", False)):
        assert column in page.text
        assert (column in plain.text) == always


def test_scores_csv_alone_is_enough(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=6)
    (folder / "score.json").unlink()
    page = Page(write_report(folder, tmp_path / "page.html"))
    assert "does not say with which settings" in page.text
    assert len(page.cases["score"]) == 6


def test_one_class_only_draws_no_curves(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=1)
    page = Page(write_report(folder, tmp_path / "page.html"))
    assert "ROC curve" not in page.text


def test_run_page(tmp_path):
    run = folders.run_folder(tmp_path / "run")
    page = Page(write_report(run, tmp_path / "page.html"))
    assert "cases-data" not in page.text.replace('getElementById("cases-data")', "")
    assert "held-out normal (n = 80)" in page.text


def test_a_page_is_named_by_the_images_that_were_scored(tmp_path):
    source = read_scores(folders.score_folder(tmp_path / "out", n=4))
    for root, name in ((["films/new", "/data/films/new"], "new"), (None, "out"), ([], "out")):
        assert display_name(replace(source, details=source.details | {"root": root})) == name
    run = read_run(folders.run_folder(tmp_path / "run"))
    assert display_name(run) == run.details["info"]["data"]["name"]


def test_settings_of_a_run_are_those_that_were_set(tmp_path):
    source = read_run(folders.run_folder(tmp_path / "run"))
    odd = {"members": None, "window": None, "calibration_share": 1 / 3}
    details = source.details | {"params": source.details["params"] | odd}
    details["info"] = details["info"] | {"members": ["ae-u", "spade"]}
    tables = fact_tables(replace(source, details=details))
    (settings,) = [t for t in tables if t.title == "Settings"]
    shown = dict(settings.rows)
    assert shown["members"] == "ae-u, spade"
    assert shown["calibration share"] == "0.3333"
    assert "none" not in shown.values()


def test_run_without_calibration(tmp_path):
    run = folders.run_folder(tmp_path / "run", calibrated=False)
    text = write_report(run, tmp_path / "page.html").read_text()
    assert "training normal (n = 80)" in text
    assert "nothing held out" in text


# --- what users named ---

NASTY = "\"><script>alert(1)</script>'&$x_1$ </script>.png"


def test_names_are_escaped_everywhere(tmp_path):
    folder = folders.score_folder(
        tmp_path / "s", n=6, pictures=0, names={0: NASTY}, patient_names={1: "<script>p</script>"}
    )
    details = json.loads((folder / "score.json").read_text())
    details["info"]["data"]["name"] = NASTY
    details["params"]["method"] = "<img src=x onerror=alert(1)>"
    write_json(folder / "score.json", details)
    write_json(
        folder / "audit.json", {"findings": [{"severity": "<b>", "text": "<svg onload=alert(1)>"}]}
    )
    page = Page(write_report(folder, tmp_path / "page.html"))
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not [a for _, a in page.tags if "onerror" in a or "onload" in a]
    assert page.cases["path"][0] == NASTY
    assert page.cases["patient"][1] == "<script>p</script>"


def test_names_of_experiments_are_escaped(tmp_path):
    records = [
        {"dataset": NASTY, "method": "<i>ae</i>", "latent_dim": d, "seed": 0, "auroc": 0.5 + d / 50,
         "settings": {}, "metrics": {}}
        for d in (2, 4)
    ]  # fmt: skip
    from normalis.research.records import Records

    for i, record in enumerate(records):
        Records(tmp_path / "r").append(str(i), record)
    with pytest.raises(RunError, match="normalis research page"):
        write_report(tmp_path / "r", tmp_path / "page.html")
    page = Page(write_results(tmp_path / "r", tmp_path / "page.html"))
    assert [tag for tag, _ in page.tags if tag in ("script", "i")] == ["script"]


# --- pictures ---


def picture_of(tmp_path, strip: Image.Image):
    strip.save(tmp_path / "strip.png")
    return pictures.read_picture(tmp_path / "strip.png")


def decode(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L")).astype(float)


def test_picture_keeps_image_and_map(tmp_path, rng):
    strip = folders.strip(rng, spot=1.0)
    found, whole = picture_of(tmp_path, strip), np.asarray(strip).astype(float)
    assert np.abs(decode(found.photo) - whole[:, :320]).mean() < 4
    level = whole[:, 320:].reshape(80, 2, 80, 2).mean((1, 3))
    assert np.abs(decode(found.level) - level).max() <= 9


def test_quiet_map_stays_exactly_empty(tmp_path, rng):
    assert decode(picture_of(tmp_path, folders.strip(rng, spot=0.0)).level).max() == 0


def test_method_without_reconstruction(tmp_path, rng):
    found = picture_of(tmp_path, folders.strip(rng, spot=1.0, rebuilt=False))
    assert not found.rebuilt
    assert decode(found.photo).shape == (160, 160)


def test_damaged_or_foreign_picture_is_left_out(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG no")
    assert pictures.read_picture(tmp_path / "bad.png") is None
    assert picture_of(tmp_path, Image.new("L", (100, 100))) is None


def test_longest_path_finds_the_picture(tmp_path):
    folder = folders.score_folder(
        tmp_path / "s", n=3, names={0: "a/x.png", 1: "b/x.png", 2: "b/x.jpg"}
    )
    cases = read_scores(folder).cases
    found = pictures.find_pictures(folder, cases, [0, 1, 2])
    names = [found[i].relative_to(folder / "thumbnails" / "test").as_posix() for i in range(3)]
    assert names == ["a/x.png", "b/x.png", "b/x.jpg.png"]


def test_slice_of_a_volume_finds_its_picture(tmp_path, rng):
    folder = folders.score_folder(tmp_path / "s", n=1, pictures=0, names={0: "v.nii.gz"})
    table = (folder / "scores.csv").read_text().replace("v.nii.gz,,", "v.nii.gz,12,")
    (folder / "scores.csv").write_text(table)
    (folder / "thumbnails").mkdir()
    folders.strip(rng, spot=1.0).save(folder / "thumbnails" / "v.nii.gz_0012.png")
    assert list(pictures.find_pictures(folder, read_scores(folder).cases, [0])) == [0]


@pytest.mark.parametrize("limit", ["EMBEDDED", "LARGE_EMBEDDED"])
def test_pictures_too_many_or_too_large_lie_beside_the_page(tmp_path, monkeypatch, limit):
    folder = folders.score_folder(tmp_path / "s", n=20, large=(90, 60))
    whole = Page(write_report(folder, tmp_path / "whole.html"))
    assert not (tmp_path / "whole_files").exists()
    monkeypatch.setattr(triage, limit, 5)
    page = Page(write_report(folder, tmp_path / "a page.html"))
    cases, beside = page.cases, tmp_path / "a page_files"
    assert cases["beside"] == "a%20page_files/"
    assert cases["pictures"] == 20
    for column, size in (("photo", (320, 160)), ("level", (80, 80)), ("large", (60, 90)),
                         ("own", (80, 80))):  # fmt: skip
        for name in cases[column]:
            with Image.open(beside / name) as picture:
                assert picture.size == size
    pictures_of = ("photo", "level", "large", "own")
    held = sum(len(t) for c in pictures_of for t in whole.cases[c])
    assert len(page.text) < len(whole.text) - held + 3000  # names instead
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert "img-src data: blob: 'self' file:;" in policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    write_report(folder, tmp_path / "a page.html")  # its own folder is replaced
    assert len(list(beside.glob("*.webp"))) == 80
    assert not list(tmp_path.glob(".*"))


def test_a_folder_of_others_beside_the_page_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(triage, "EMBEDDED", 1)
    folder = folders.score_folder(tmp_path / "s", n=3)
    (tmp_path / "page_files").mkdir()
    (tmp_path / "page_files" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else"):
        write_report(folder, tmp_path / "page.html")
    assert (tmp_path / "page_files" / "thesis.txt").read_text() == "mine"


def test_large_pictures_are_embedded_as_they_were_written(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=4, pictures=3, large=(90, 60))
    (folder / "pictures" / "test" / "normal" / "img_0001.png.webp").write_bytes(b"no picture")
    cases = Page(write_report(folder, tmp_path / "page.html")).cases
    written = (folder / "pictures" / "test" / "glioma" / "img_0000.png.webp").read_bytes()
    assert base64.b64decode(cases["large"][0]) == written
    assert decode(cases["own"][0]).max() == 248  # of 255, in steps of 8
    assert [bool(text) for text in cases["large"]] == [True, False, True, False]


def test_maps_beside_the_page_are_coloured(tmp_path, rng):
    folders.strip(rng, spot=1.0).save(tmp_path / "strip.png")
    found = pictures.read_picture(tmp_path / "strip.png", coloured=True)
    painted = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.level))))
    grey = decode(pictures.read_picture(tmp_path / "strip.png").level).astype(int)
    expected = pictures.palette()[grey]
    assert (painted[..., 3] == expected[..., 3]).all()
    assert (painted[grey > 0] == expected[grey > 0]).all()


def test_contours_go_around_what_is_painted():
    level = np.zeros((100, 50), np.uint8)
    level[20:40, 10:30] = 9
    level[90:, :] = 200  # to the edges
    lines = contour_path(level).split("Z")[:-1]
    boxes = []
    for line in lines:
        points = np.array([pair.split() for pair in line[1:].split("L")], int)
        boxes.append((*points.min(0).tolist(), *points.max(0).tolist()))
    assert sorted(boxes) == [(0, 900, 1000, 1000), (200, 200, 600, 400)]
    assert contour_path(np.zeros((8, 8))) == ""


def test_contours_are_those_of_scikit_image(rng):
    from skimage.measure import approximate_polygon, find_contours

    level = np.maximum(gaussian_filter(rng.standard_normal((64, 64)), 3) - 0.05, 0)
    areas = (np.pad(level, 1) > 0).astype(np.float32)
    expected = sum(len(approximate_polygon(line, 0.35)) - 1 for line in find_contours(areas, 0.5))
    found = contour_path(level).split("Z")[:-1]
    assert len(found) == len(find_contours(areas, 0.5)) > 2
    assert sum(line.count("L") + 1 for line in found) == pytest.approx(expected, rel=0.1)


def test_columns_that_are_there_are_shown(tmp_path):
    known = {"view": ["PA", "AP"] * 3, "seen_by": ["", *["ae"] * 5], "laterality": [""] * 6}
    folder = folders.score_folder(tmp_path / "s", n=6, known=known)
    (folder / "patients.csv").write_text("patient,p_value\nP000,0.02\nP001,\n")
    cases = Page(write_report(folder, tmp_path / "page.html")).cases
    assert cases["known"] == {"view": known["view"], "seen_by": known["seen_by"]}
    assert cases["patients"] == {"P000": 0.02}
    (folder / "patients.csv").write_text("patient,p_value\nP000,low\n")
    with pytest.raises(RunError, match=r"patients\.csv: column p_value must hold numbers"):
        write_report(folder, tmp_path / "page.html")


def test_cases_come_first_and_figures_below(page):
    order = [page.text.index(f'id="{name}"') for name in
             ("triage", "overview", "evaluation", "calibration", "audit", "run")]  # fmt: skip
    assert order == sorted(order)
    folded = [a for t, a in page.tags if t == "details" and a.get("class") == "more"]
    assert len(folded) == 5
    assert not any("open" in a for a in folded)


def test_figures_of_a_run_are_open(tmp_path):
    page = Page(write_report(folders.run_folder(tmp_path / "run"), tmp_path / "page.html"))
    folded = [a for t, a in page.tags if t == "details" and a.get("class") == "more"]
    assert folded
    assert all("open" in a for a in folded)


# --- curves ---


def test_curves_are_those_of_scikit_learn(rng):
    labels = rng.random(200) < 0.4
    scores = np.round(rng.normal(labels, 1.0), 1)  # with ties
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = roc(scores, labels, n=20)
    assert np.allclose(found.x, fpr)
    assert np.allclose(found.y, tpr)
    precision, recall, _ = precision_recall_curve(labels, scores)
    found = precision_recall(scores, labels, n=20)
    assert np.allclose(found.x, recall[::-1])
    assert np.allclose(found.y[1:], precision[::-1][1:])


def test_bands_hold_the_curve_and_widen_with_patients(rng):
    patient = np.repeat(np.arange(40), 5)
    labels = patient % 2 == 0
    scores = labels + np.repeat(rng.normal(0, 1, 40), 5)
    alone = roc(scores, labels)
    grouped = roc(scores, labels, groups=patient)
    inside = np.interp(alone.grid, alone.x, alone.y)
    assert np.mean((alone.low <= inside + 1e-9) & (inside <= alone.high + 1e-9)) > 0.9
    assert (grouped.high - grouped.low).mean() > 1.5 * (alone.high - alone.low).mean()


def test_too_few_units_give_no_band():
    assert roc(np.array([0.1, 0.9]), np.array([False, True]), groups=np.array([1, 1])).low.size == 0


# --- sweeps ---


def test_seeds_are_taken_together(tmp_path):
    records = read_records(folders.results_folder(tmp_path))
    rows = rows_of(records)
    assert len(records) == 36
    assert len(rows) == 18
    assert {row.seeds for row in rows} == {2}
    one = [r["auroc"] for r in records if (r["dataset"], r["method"], r["latent_dim"]) ==
           ("brain_tumor", "ae", 8)]  # fmt: skip
    row = next(r for r in rows if (r.dataset, r.method, r.latent_dim) == ("brain_tumor", "ae", 8))
    assert row.values["auroc"].mean == pytest.approx(np.mean(one))
    assert row.values["auroc"].sd == pytest.approx(np.std(one, ddof=1))
    assert row.values["auroc"].low == pytest.approx(np.mean(one) - 0.02)


def test_results_page(tmp_path):
    page = Page(write_results(folders.results_folder(tmp_path / "r"), tmp_path / "page.html"))
    assert page.text.count("<figure") == 2
    assert page.text.count("<tr>") == 19
    assert "vae" in page.text
    assert "standardize" in page.text


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "words"),
    [("", "holds neither"), ("progress.jsonl", "normalis score"),
     ("checkpoint.safetensors", "normalis fit")],
)  # fmt: skip
def test_folder_that_is_nothing_or_unfinished(tmp_path, name, words):
    if name:
        (tmp_path / name).write_text("x")
    with pytest.raises(RunError, match=words):
        detect(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        write_report(tmp_path / "no", tmp_path / "page.html")


def test_own_page_is_replaced_and_another_file_is_not(tmp_path):
    run, page = folders.run_folder(tmp_path / "run"), tmp_path / "page.html"
    write_report(run, page)
    write_report(run, page)
    page.write_text("my thesis")
    with pytest.raises(RunError, match="not overwritten"):
        write_report(run, page)
    assert page.read_text() == "my thesis"


def test_damaged_files_are_named(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=4)
    body = json.loads((folder / "score.json").read_text())
    write_json(folder / "score.json", {**body, "is_anomalous": [True]})
    with pytest.raises(RunError, match=r"as many rows as score\.json"):
        write_report(folder, tmp_path / "page.html")
    (folder / "score.json").write_text("{")
    with pytest.raises(RunError, match=r"score\.json: cannot be read as JSON"):
        write_report(folder, tmp_path / "page.html")


def test_the_areas_of_findings_are_on_the_page(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=12)
    source = read_scores(folder)
    marks = read_marks(folder, source.cases)
    assert len(marks) == 12
    above = [row[0][6] for row in marks]
    assert above == [int(score > 0.05) for score in source.cases.anomaly_score]
    # 50 to 70 of 100 columns, 120 to 160 of 200 rows, the peak at (60, 140)
    assert marks[0][0] == [0.5, 0.6, 0.7, 0.8, 0.6, 0.7, above[0], 0.02, 610.0, 152.5, 0]
    page = Page(write_report(folder, tmp_path / "page.html"))
    assert "[0.5, 0.6, 0.7, 0.8, 0.6, 0.7" in page.text or "[0.5,0.6,0.7,0.8,0.6,0.7" in page.text


def test_a_scoring_without_findings_has_a_page_and_a_damaged_one_says_so(tmp_path):
    folder = folders.score_folder(tmp_path / "s", n=6)
    (folder / "findings.csv").write_text("path,slice\na,\n")
    with pytest.raises(RunError, match=r"findings\.csv: cannot be read"):
        write_report(folder, tmp_path / "page.html")
    (folder / "findings.csv").unlink()
    assert read_marks(folder, read_scores(folder).cases) == [[]] * 6
    write_report(folder, tmp_path / "page.html")


def test_a_page_flags_nothing_where_the_held_out_images_certify_no_such_rate(tmp_path):
    """As `normalis score` says it: with 8 held-out images no image is above at 5 %."""
    few = detector(calibration="split", calibration_share=0.2).fit(phantoms(40))
    assert few.calibration_.smallest_rate > 0.05
    write_pngs(tmp_path / "in", phantoms(12, seed=3))
    data = open_dataset(tmp_path / "in")
    score_to_folder(few, data.samples, tmp_path / "out", root=tmp_path / "in")
    source = read_scores(tmp_path / "out")
    start = triage._start(source)
    assert start is not None
    assert not (source.cases.anomaly_score > start).any()

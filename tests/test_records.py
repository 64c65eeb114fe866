import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from normalis.errors import RunError, SettingsError
from normalis.files import read_csv
from normalis.research import packed
from normalis.research.records import Records, listing
from normalis.storage import (
    ClaimedError,
    RunFolder,
    content_hash,
    exclusive,
    write_atomically,
    write_csv,
    write_json,
)


def example(**changes):
    return {
        "dataset": "toy",
        "method": "ae",
        "latent_dim": 4,
        "seed": 0,
        "auroc": 0.75,
        "settings": {"options": {}, "training": {"epochs": 2}},
        "metrics": {"auroc": {"value": 0.75}},
        "path": np.array(["a.png", "b.png"]),
        "is_anomalous": np.array([False, True]),
        "anomaly_score": np.array([0.1, 0.2], np.float32),
        "nearest_ncc": np.array([np.nan, 0.5], np.float32),
        **changes,
    }


def test_hash_ignores_the_order_of_keys_and_nothing_else():
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": [1, 2], "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
    with pytest.raises(ValueError):
        content_hash({"a": float("nan")})


def test_record_comes_back_as_it_was(tmp_path):
    records = Records(tmp_path)
    records.append("x", example())
    back = records.read("x")
    assert "x" in records
    assert records.identities() == ["x"]
    assert back["path"] == ["a.png", "b.png"]
    assert np.float32(back["anomaly_score"][0]) == np.float32(0.1)
    assert json.loads(back["settings"])["training"]["epochs"] == 2
    assert [r["id"] for r in records.all()] == ["x"]


def test_record_is_never_rewritten(tmp_path):
    records = Records(tmp_path)
    records.append("x", example())
    records.append("x", example(auroc=0.1))
    assert records.read("x")["auroc"] == 0.75


def test_missing_latent_dim_keeps_its_column_type(tmp_path):
    import pyarrow.dataset as ds

    records = Records(tmp_path)
    records.append("x", example(latent_dim=None))
    records.append("y", example())
    table = ds.dataset(records.folder).to_table(columns=["latent_dim"])
    assert sorted(table["latent_dim"].to_pylist(), key=str) == [4, None]


def test_table_leaves_images_out_and_reads_json(tmp_path):
    records = Records(tmp_path)
    records.append("x", example())
    (row,) = records.table()
    assert "anomaly_score" not in row
    assert row["settings"]["training"] == {"epochs": 2}


def test_damaged_record_names_its_file(tmp_path):
    records = Records(tmp_path)
    records.folder.mkdir()
    (records.folder / "x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match=r"x\.parquet"):
        records.read("x")
    with pytest.raises(RunError, match=r"x\.parquet"):
        records.table()


def test_listing_filters_sorts_and_helps(tmp_path):
    records = Records(tmp_path)
    for i, auroc in enumerate((0.6, 0.9, 0.7)):
        records.append(f"id{i}", example(auroc=auroc, seed=i))
    head, rows = listing(tmp_path, columns=["seed", "auroc"], sort="auroc")
    assert head == ["seed", "auroc"]
    assert rows == [[1, 0.9], [2, 0.7], [0, 0.6]]
    assert listing(tmp_path, where={"seed": "2"}, columns=["id"])[1] == [["id2"]]
    with pytest.raises(SettingsError, match="did you mean 'method'"):
        listing(tmp_path, where={"metod": "ae"})


def test_claim_is_exclusive_and_freed(tmp_path):
    records = Records(tmp_path)
    with records.claim("x"):
        with pytest.raises(ClaimedError), records.claim("x"):
            pass
        with records.claim("y"):
            pass
    with records.claim("x"):
        pass


def test_claim_of_a_killed_process_is_free(tmp_path):
    code = (
        "import sys, time; from normalis.research.records import Records\n"
        "with Records(sys.argv[1]).claim('x'): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(ClaimedError), Records(tmp_path).claim("x"):
            pass
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with Records(tmp_path).claim("x"):
                return
        except ClaimedError:
            time.sleep(0.05)
    pytest.fail("the lock of a killed process was not freed")


def test_exclusive_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match="cannot be written"),
        exclusive(tmp_path / "file/x", what=""),
    ):
        pass


def test_atomic_write_leaves_the_old_file_and_no_litter(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_and_csv(tmp_path):
    write_json(tmp_path / "a.json", {"x": np.float64(0.1), "y": np.arange(2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1, "y": [0, 1]}
    write_csv(tmp_path / "a.csv", ["a", "b"], [[1, "x, y"]])
    assert (tmp_path / "a.csv").read_text() == 'a,b\n1,"x, y"\n'


def test_run_folder_round_trip_and_checkpoint(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert not folder.finished
    assert folder.read_checkpoint() is None
    folder.write_checkpoint({"w": np.ones(2)}, {"epoch": 3})
    arrays, progress = folder.read_checkpoint()
    assert progress == {"epoch": 3}
    assert arrays["w"].tolist() == [1, 1]
    assert folder.unfinished
    folder.write({"w": np.zeros(2)}, {"a": 1})
    assert folder.finished
    assert not folder.unfinished
    assert folder.read_settings()["a"] == 1
    assert folder.read_arrays()["w"].tolist() == [0, 0]


def test_run_folder_notices_changes(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write({"w": np.zeros(2)}, {"a": 1})
    settings = folder.path / folder.SETTINGS
    settings.write_text(settings.read_text().replace('"a": 1', '"a": 2'))
    with pytest.raises(RunError, match="changed after"):
        folder.read_settings()
    folder.write({"w": np.zeros(2)}, {"a": 1})
    model = folder.path / folder.MODEL
    model.write_bytes(model.read_bytes()[:-1] + b"\1")
    with pytest.raises(RunError, match="not the file"):
        folder.read_arrays()


def test_run_folder_refuses_to_lose_something(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write({"w": np.zeros(2)}, {"a": 1})
    with pytest.raises(RunError, match="finished run"):
        folder.check_writable(overwrite=False)
    folder.check_writable(overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        RunFolder(other).check_writable(overwrite=True)


def test_arrays_in_another_memory_order_come_back_right(tmp_path):
    folder = RunFolder(tmp_path / "run")
    images = np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)
    folder.write_checkpoint({"w": images, "step": np.float32(3)}, {})
    arrays, _ = folder.read_checkpoint()
    assert (arrays["w"] == images).all()
    assert arrays["step"].shape == ()
    folder.write({"w": images}, {})
    assert (folder.read_arrays()["w"] == images).all()


# --- an older run is never lost -------------------------------------------------------------------


def test_at_every_step_of_replacing_a_run_one_of_the_two_is_there(tmp_path, monkeypatch):
    """Stop before each rename, as a killed process would."""
    renames = []
    original = Path.replace

    def until(stop):
        def replace(self, target):
            renames.append(target)
            if len(renames) > stop:
                raise KeyboardInterrupt
            return original(self, target)

        return replace

    for stop in range(20):
        folder = RunFolder(tmp_path / f"run{stop}")
        folder.write({"w": np.zeros(2)}, {"a": "old"}, [("x.png", "old")])
        folder.write_checkpoint({"w": np.ones(2)}, {})
        renames.clear()
        monkeypatch.setattr(Path, "replace", until(stop))
        try:
            folder.write({"w": np.ones(2)}, {"a": "new"}, [("x.png", "new")])
            done = True
        except KeyboardInterrupt:
            done = False
        monkeypatch.setattr(Path, "replace", original)
        for _ in range(2):
            state = folder.read_settings()["a"]
            assert folder.read_arrays()["w"].tolist() == {"old": [0, 0], "new": [1, 1]}[state]
            assert read_csv(folder.file(folder.SKIPPED))[0]["reason"] == state
            with folder.locked():  # which goes on from there
                pass
            assert folder.read_settings()["a"] == state
        expected = {folder.MODEL, folder.SETTINGS, folder.SKIPPED}
        expected |= set() if state == "new" else {folder.CHECKPOINT}
        assert {p.name for p in folder.path.iterdir()} == expected
        if done:
            break
    assert stop == 6


@pytest.mark.parametrize("name", [".checkpoint.safetensors.f04chvb2", ".skipped.csv.a_3bcdef",
                                  ".normalis-0123abcd-x9_a81bc.tmp", ".new-model.safetensors",
                                  ".new-skipped.csv", ".lock"])  # fmt: skip
def test_what_a_killed_fit_left_is_not_foreign(tmp_path, name):
    (tmp_path / name).write_text("half")
    folder = RunFolder(tmp_path)
    folder.check_writable(overwrite=False)
    with folder.locked():
        pass
    assert list(tmp_path.iterdir()) == []


def test_foreign_parquet_and_json_are_said(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = Records(tmp_path)
    records.folder.mkdir()
    file = records.folder / "x.parquet"
    for table, words in (
        (pa.table({"a": [1, 2]}), "no column 'id'"),
        (
            pa.table({k: [1, 2] for k in ("id", "dataset", "method", "latent_dim", "seed")}),
            "2 rows",
        ),
    ):
        pq.write_table(table, file)
        for read in (lambda: records.read("x"), records.table, lambda: listing(tmp_path)):
            with pytest.raises(RunError, match=rf"x\.parquet.*{words}"):
                read()
    file.unlink()
    records.append("x", example(settings="{not json"))
    with pytest.raises(RunError, match=r"x\.parquet"):
        records.table()


def test_records_take_names_that_are_not_utf8(tmp_path):
    records = Records(tmp_path)
    records.append("x", example(path=["a\udcfc.png", "b.png"]))
    assert records.read("x")["path"] == ["a\\xfc.png", "b.png"]


def test_packed_records_read_as_the_files_did(tmp_path):
    records = Records(tmp_path / "results")
    scores = np.linspace(0.1, 0.9, 2, dtype=np.float32)
    for seed in range(3):
        records.append(f"id{seed}", example(seed=seed, anomaly_score=scores + seed))
    made = packed.pack(records.all(), tmp_path / "packed")
    again = Records(tmp_path / "packed")
    assert [file.name for file in made] == ["records.parquet", "images.parquet"]
    assert len(pq.read_table(made[1])) == 1, "the same images are kept once"
    assert again.identities() == records.identities()
    assert again.table() == records.table()
    for one, other in zip(again.all(), records.all(), strict=True):
        np.testing.assert_allclose(one.pop("anomaly_score"), other.pop("anomaly_score"), rtol=1e-4)
        whole = {k: v for k, v in one.items() if k in other}
        assert repr(dict(sorted(whole.items()))) == repr(dict(sorted(other.items())))  # with NaN
    again.append("id9", example(seed=9))
    assert "id1" in again
    assert again.identities() == ["id0", "id1", "id2", "id9"]


def test_rounding_keeps_so_many_bits():
    x = np.float32([1 / 3, -1e-20, 12345.678, 0.0])
    np.testing.assert_allclose(packed.rounded(x, 14), x, rtol=2.0**-15)
    assert not (packed.rounded(x, 14).view(np.uint32) & np.uint32((1 << 9) - 1)).any()

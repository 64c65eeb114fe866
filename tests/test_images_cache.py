"""Decoded images between runs: found again, never stale, bounded, safe."""

import os
import threading
import time

import numpy as np
import pytest

from normalis.images.cache import ArrayCache, cache_folder, cache_key, stamp


@pytest.fixture
def cache(tmp_path):
    return ArrayCache(tmp_path / "cache", limit=10_000)


def arrays(value, size=100):
    return {"a": np.full(size, value, np.uint8), "b": np.arange(3.0)}


def test_an_entry_comes_back(cache):
    assert cache.get("k") is None
    assert cache.put("k", arrays(1))
    found = cache.get("k")
    assert found.keys() == {"a", "b"}
    np.testing.assert_array_equal(found["a"], np.ones(100))
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("NORMALIS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "normalis"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "normalis"
    monkeypatch.setenv("NORMALIS_CACHE", str(tmp_path / "n"))
    assert cache_folder() == tmp_path / "n"


def test_the_entries_used_longest_ago_go_first(cache):
    for number in range(3):
        cache.put(f"k{number}", arrays(number, 2500))
        os.utime(cache.folder / f"k{number}.npz", (number + 1, number + 1))
    assert cache.get("k0") is not None  # used now, so that k1 is the oldest
    cache.put("k3", arrays(3, 2500))
    assert cache.get("k1") is None
    assert cache.get("k0") is not None
    assert cache.get("k3") is not None


def test_what_exceeds_the_limit_is_not_written(cache):
    assert not cache.put("k", arrays(1, 20_000))
    assert not cache.folder.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a zip"])
def test_a_damaged_entry_is_none_and_is_removed(cache, content):
    cache.put("k", arrays(1))
    (cache.folder / "k.npz").write_bytes(content)
    assert cache.get("k") is None
    assert not (cache.folder / "k.npz").exists()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = ArrayCache(tmp_path / "file")
    assert not cache.put("k", arrays(1))
    assert cache.get("k") is None


def test_abandoned_temporary_files_are_removed_and_young_ones_kept(cache):
    cache.put("k", arrays(1))
    old, young = cache.folder / "old.tmp", cache.folder / "young.tmp"
    old.write_bytes(b"x")
    young.write_bytes(b"x")
    os.utime(old, (1, 1))
    cache.put("l", arrays(2))
    assert not old.exists()
    assert young.exists()


def test_writers_and_readers_at_once_see_whole_entries(cache):
    wrong = []

    def work(value):
        for _ in range(30):
            cache.put("k", arrays(value))
            found = cache.get("k")
            if found is not None and len(set(found["a"].tolist())) != 1:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(v,)) for v in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert [p.suffix for p in cache.folder.iterdir()] == [".npz"]


def test_the_key_depends_on_everything():
    base = cache_key({"size": 64}, [("a", (1, 2, 3))])
    assert base == cache_key({"size": 64}, [("a", (1, 2, 3))])
    assert base != cache_key({"size": 32}, [("a", (1, 2, 3))])
    assert base != cache_key({"size": 64}, [("a", (1, 2, 4))])
    assert base != cache_key({"size": 64}, [("b", (1, 2, 3))])


def test_a_stamp_moves_with_the_file_and_needs_some_age(tmp_path):
    path = tmp_path / "a"
    assert stamp(path) == (-1, 0, 0)
    path.write_bytes(b"one")
    assert stamp(path) is None  # too young to tell two writes apart
    time.sleep(0.12)
    first = stamp(path)
    assert first is not None
    path.write_bytes(b"two")
    os.utime(path, ns=(first[1], first[1]))  # the same size and time of modification
    time.sleep(0.12)
    assert stamp(path) != first

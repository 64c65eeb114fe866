"""Records named anew: what they are called follows from their settings, and settings are added.

::

    normalis research rekey RESULTS

An experiment's name is the hash of all its settings (`normalis.research.experiments`). A version
that has one more setting gives other names; the records' own settings say which. A setting that a
record does not know is at its default, so that one is added with the value that leaves everything
as it was, and its default changes afterwards, if at all. `rekey` rewrites

* records, packed or one file each: ``id``, ``training_key``, ``settings``. ``old_id`` is what the
  record was called first, which is what others may have cited;
* fitted models in ``RESULTS/models``, so that they are found;
* every other table (CSV or Parquet) of the folder that cites a name in a column.

It can be killed and started again. Nothing that was measured is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normalis.errors import NormalisError, RunError
from normalis.files import exclusive, write_atomically
from normalis.research import packed
from normalis.research.experiments import Experiment
from normalis.research.records import FORMAT, Records

__all__ = ["Rekeyed", "check_names", "rekey"]

_NOT_UNDERSTOOD = (NormalisError, LookupError, TypeError, ValueError)
#: What a name looks like, and columns of other tables in which records and trainings are cited.
_NAME = re.compile(rb"\b[0-9a-f]{64}\b")
_CITED = ("identity", "id", "training_key")


@dataclass(kw_only=True)
class Rekeyed:
    """What was renamed.

    Attributes:
        names: old name of a record or a training -> the new one, where they differ.
        records: records that were rewritten.
        models: fitted models that were renamed.
        tables: other tables that were rewritten.
        left: records that this version does not understand -> why; they stay as they are.
    """

    names: dict[str, str] = field(default_factory=dict)
    records: int = 0
    models: int = 0
    tables: list[Path] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)


def check_names(results: str | Path) -> None:
    """Raise if records are named as another version names them, which would be made again.

    Raises:
        RunError: with the line that names them anew.
    """
    stale = sum(_is_stale(row) for row in Records(results).named())
    if stale:
        raise RunError(
            f"{results}: {stale} records are named as another version of normalis names them, so "
            f"that their experiments would be run again; first: normalis research rekey {results}"
        )


def _is_stale(row: Mapping[str, Any]) -> bool:
    try:
        return _names(row["settings"])["id"] != str(row["id"])
    except _NOT_UNDERSTOOD:  # of a method that is gone: nobody asks for it
        return False


def rekey(results: str | Path) -> Rekeyed:
    """Name all records of a results folder by the settings that this version knows.

    Args:
        results: the results folder; nobody else may be working in it.

    Returns:
        What was renamed.

    Raises:
        RunError: if a record or a table is damaged.
    """
    store, done = Records(results), Rekeyed()
    with exclusive(store.path / ".claims" / "rekey", what="naming records anew"):
        for row in store.named():
            _note(row, done)
        # What cites a record comes first: once records are renamed, nobody knows the old names.
        _rename_models(store.path, done)
        for file in _tables(store.path):
            _rewrite_table(file, done)
        _rekey_files(store, done)
        _rekey_packed(store.path, done)
    return done


def _note(row: Mapping[str, Any], done: Rekeyed) -> None:
    """Take down what a record and its training will be called, or why that is not known."""
    try:
        names = _names(row["settings"])
    except _NOT_UNDERSTOOD as error:
        done.left[row["id"]] = str(error)
        return
    done.names |= {row[k]: v for k, v in names.items() if row.get(k) not in (None, v)}


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    experiment = Experiment.from_settings(settings)
    return {"id": experiment.identity, "training_key": experiment.training_key}


def _renamed(record: Mapping[str, Any], done: Rekeyed) -> dict[str, Any] | None:
    """Return a record by its new name; None where it says all that already."""
    if record["id"] in done.left:
        return None
    experiment = Experiment.from_settings(json.loads(record["settings"]))
    settings = json.dumps(experiment.settings(), sort_keys=True)
    new = {**record, **_names(json.loads(settings)), "format": FORMAT, "settings": settings}
    if new["id"] != record["id"] and not record.get("old_id"):
        new["old_id"] = record["id"]
    done.records += new != record
    return new if new != record else None


def _rekey_files(store: Records, done: Rekeyed) -> None:
    for file in sorted(store.folder.glob("*.parquet")):
        record = store.read(file.stem)
        new = _renamed(record, done)
        if new is not None:
            store.write(new)
        if new is not None and new["id"] != file.stem:
            file.unlink()


def _rekey_packed(folder: Path, done: Rekeyed) -> None:
    before = done.records
    rows = [_renamed(record, done) or record for record in packed.read(folder)]
    if done.records > before:
        packed.pack(rows, folder)


def _rename_models(folder: Path, done: Rekeyed) -> None:
    for old, new in done.names.items():
        kept, place = folder / "models" / old, folder / "models" / new
        if kept.is_dir() and not place.exists():
            kept.rename(place)
            done.models += 1


def _tables(folder: Path) -> Iterator[Path]:
    """Yield the tables that are no records."""
    own = {folder / packed.RECORDS, folder / packed.IMAGES}
    for file in sorted([*folder.rglob("*.csv"), *folder.rglob("*.parquet")]):
        first = file.relative_to(folder).parts[0]
        if file not in own and first not in ("records", "models") and not first.startswith("."):
            yield file


def _rewrite_table(file: Path, done: Rekeyed) -> None:
    """Replace the names that a table cites."""
    if file.suffix == ".csv":
        old = file.read_bytes()
        new = _NAME.sub(lambda m: done.names.get(m[0].decode(), m[0].decode()).encode(), old)
        if new != old:
            write_atomically(file, lambda path: path.write_bytes(new))
            done.tables.append(file)
        return
    pa, pq = packed.arrow()
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{file}: cannot be read as a table ({error})") from error
    cited = [n for n in _CITED if n in table.schema.names]
    rows = table.select(cited).to_pylist()
    if _replace(rows, done.names):
        for name in cited:
            column = pa.array([row[name] for row in rows], pa.string())
            table = table.set_column(table.schema.get_field_index(name), name, column)
        packed.write_arrow(file, table)
        done.tables.append(file)


def _replace(rows: list[dict[str, Any]], names: Mapping[str, str]) -> bool:
    """Replace names in place; return whether there were any."""
    found = False
    for row in rows:
        for column in _CITED:
            if row.get(column) in names:
                row[column] = names[row[column]]
                found = True
    return found

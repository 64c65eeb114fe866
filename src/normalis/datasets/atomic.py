"""A new folder that appears when it is complete, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normalis.errors import DataError

__all__ = ["new_folder"]


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a working folder beside the target, which becomes the target at the end.

    Args:
        target: a folder that does not exist yet, or is empty.

    Raises:
        DataError: if the target exists and is not empty, or the disk refuses; whatever was
            written is removed then.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: must be a new folder, and exists already; choose another name")
    work = target.with_name(f".{target.name}-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        work.mkdir(parents=True)
        yield work
        work.replace(target)
    except OSError as error:
        raise DataError(
            f"{target}: the folder cannot be made ({error}); nothing of it was left behind"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)

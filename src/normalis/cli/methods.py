"""``normalis methods``: what there is to fit."""

from __future__ import annotations

import sys
from inspect import cleandoc

from normalis.cli.console import cell, console, table

__all__ = ["methods"]


def methods() -> None:
    """List the methods that `fit --method` takes, what they are, and what `fit` sets of them."""
    from normalis.models import model_class, model_names

    rows = []
    for name in model_names():
        cls = model_class(name)
        said = sys.modules[cls.__module__].__doc__ or cls.__doc__ or ""
        usual = ", ".join(f"{k}={cell(v)}" for k, v in cls.default_options.items())
        rows.append([name, " ".join(cleandoc(said).split("\n\n")[0].split()), usual])
    shown = table("Methods", ["method", "what it is", "set by fit"], rows)
    shown.columns[0].no_wrap = True
    for column in shown.columns:
        column.justify = "left"
    console.print(shown)

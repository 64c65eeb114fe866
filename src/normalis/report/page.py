"""Templates -> one HTML text: everything inlined, everything escaped, nothing loaded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from normalis.storage import versions

__all__ = ["render"]


def render(template: str, context: Mapping[str, Any], *, beside: bool = False) -> str:
    """Return the page.

    Args:
        template: file in ``templates``.
        beside: whether its pictures lie in a folder beside it.
        context: plain values; all text is escaped, SVG of `normalis.report.charts` alone is not.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("normalis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    script = "\n".join(
        _asset(name) for name in ("tables.js", "viewer.js", "triage.js", "similar.js")
    )
    return environment.get_template(template).render(
        **context,
        style=_asset("page.css"),
        script=script,
        policy=_policy(script, beside=beside),
        beside=beside,
        version=versions().get("normalis", "unknown"),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _asset(name: str) -> str:
    return (files("normalis.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(script: str, *, beside: bool) -> str:
    """Return a policy under which only this script runs and nothing is loaded or sent.

    With pictures beside the page, pictures from where it lies are the exception.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pictures = "data: blob: 'self' file:" if beside else "data: blob:"
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src {pictures}; base-uri 'none'; form-action 'none'"
    )

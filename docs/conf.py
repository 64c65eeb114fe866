"""Settings of the documentation's HTML, built by `make docs`."""

project = "normalis"
author = "The normalis authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
myst_heading_anchors = 3
exclude_patterns = ["_build"]
autodoc_typehints = "description"
# Equations in docstrings are plain text; links between docstrings use `single quotes` as code.
default_role = "code"
# scikit-learn adds methods whose docstrings link into its own glossary.
suppress_warnings = ["myst.xref_missing", "ref.term", "ref.ref"]

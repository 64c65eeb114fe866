"""Draw the generated parts of docs/results.md and the figure anew from results/records.

python docs/make_results.py
"""

from pathlib import Path

from normalis.reproduce import figure3
from normalis.tables import fill_in, write_figure

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def main() -> None:
    """Rewrite the page and the figure."""
    page = HERE / "results.md"
    page.write_text(fill_in(page.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    curves = [c for c in figure3(RESULTS) if max(c.latent_dims) >= 512]
    if curves:
        write_figure(curves, HERE / "images")


if __name__ == "__main__":
    main()

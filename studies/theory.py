"""Measure the claims of docs/explanation/theory.md on normal images.

Rewrites its tables and figures.

    python studies/theory.py [--only rate intrinsic latent lesion phantoms]

Reads the array ``train`` of brain_tumor, kermany_cxr and lgg_flair (``arrays_64.npz``) from the
folder NORMALIS_DATA, else ../shared/data beside the checkout, and nothing of any test set. Tables
go between the markers ``<!-- measured: NAME -->`` and ``<!-- end -->`` of the page.
"""

import argparse
import os
import re
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from scipy.stats import rankdata

from normalis.datasets.phantom import PhantomSettings, generate
from normalis.entropy import (
    blob,
    blob_spectrum,
    coding_rate,
    distinct_images,
    encode_components,
    gaussian_entropy,
    gaussian_rate_distortion,
    half_sampling,
    heldout_spectrum,
    kozachenko_leonenko,
    levina_bickel,
    near_copies,
    participation_ratio,
    pca_dimension,
    predicted_auroc,
    predicted_auroc_from,
    rate_distortion_curve,
    spectrum,
    two_nn,
)
from pages import publish

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
PAGE, IMAGES = ROOT / "docs" / "explanation" / "theory.md", ROOT / "docs" / "images"
SETS = ("brain_tumor", "kermany_cxr", "lgg_flair")
GREY = np.geomspace(5, 60, 40)  # allowed error, root mean square, of 255 grey levels
LEVELS = (12, 16, 24, 32)
SCALES = (1, 2, 4, 8, 16, 32)
RANKS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 448])
ENERGY, TALLEST = 0.25, 0.5  # share of the normal images' variance; largest height of a blob
COLOURS = {"brain_tumor": "#7a5195", "kermany_cxr": "#003f5c", "lgg_flair": "#ef5675"}


def load() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder = Path(os.environ.get("NORMALIS_DATA") or ROOT.parent / "shared" / "data")
    found = {}
    for name in SETS:
        file = folder / name / "arrays_64.npz"
        if not file.is_file():
            print(f"skipped {name}: no {file.name} in {folder}")
            continue
        with np.load(file) as data:
            x = data["train"].reshape(len(data["train"]), -1) / 255.0
            known = "train_patient" in data.files  # else images alike at 0.95 are one group
            groups = data["train_patient"] if known else look_alikes(x)
        found[name] = (x, np.unique(groups, return_inverse=True)[1])
    return found


def look_alikes(x: np.ndarray, similarity: float = 0.95) -> np.ndarray:
    """Give each image the group of the first distinct image that it resembles."""
    kept = distinct_images(x, similarity=similarity)
    unit = x - x.mean(axis=1, keepdims=True)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return kept[np.argmax(unit @ unit[kept].T, axis=1)]


def split(groups: np.ndarray, shares: tuple[float, ...], seed: int) -> list[np.ndarray]:
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    edges = np.round(np.cumsum(shares) * len(names)).astype(int)
    parts = np.split(names, edges[:-1])
    return [np.isin(groups, part) for part in parts]


def write_table(name: str, lines: list[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    body = publish(PAGE, name, "\n".join(lines), longest=6).rstrip("\n")
    pattern = rf"(<!-- measured: {name} -->\n).*?(<!-- end -->)"
    new, count = re.subn(pattern, lambda m: f"{m[1]}\n{body}\n\n{m[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{PAGE.name} has no place for the table {name!r}")
    PAGE.write_text(new, encoding="utf-8")
    print(f"\n{name}\n{body}")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)]


def number(value: float, digits: int = 1) -> str:
    return "NaN" if np.isnan(value) else f"{value:.{digits}f}"


def rate(data: dict) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), dpi=110)
    rows, pixels = [], 4096
    for name, (x, groups) in data.items():
        one, other = split(groups, (0.5, 0.5), 0)
        whole, fitted = spectrum(x), spectrum(x[one])
        seen = heldout_spectrum(fitted, x[other])
        allowed = (GREY / 255) ** 2
        own = rate_distortion_curve(whole.eigenvalues, allowed, pixels=pixels, samples=len(x))
        held = rate_distortion_curve(
            seen.eigenvalues, allowed, pixels=pixels, remainder=seen.remainder
        )
        axes[0].plot(GREY, [p.rate for p in held], color=COLOURS[name], label=f"{name}, held out")
        axes[0].plot(GREY, [p.rate for p in own], "--", color=COLOURS[name], label="own spectrum")
        axes[1].plot(GREY, [p.effective_dimension for p in own], color=COLOURS[name], label=name)
        bars = half_sampling(rate_numbers, x, groups=groups, repeats=10)
        for i, level in enumerate(LEVELS):
            d = (level / 255) ** 2
            own_d = gaussian_rate_distortion(whole.eigenvalues, d, pixels=pixels, samples=len(x))
            held_d = gaussian_rate_distortion(
                seen.eigenvalues, d, pixels=pixels, remainder=seen.remainder
            )
            width = [f" ± {(b.high - b.low) / 2:.1f}" for b in bars[2 * i : 2 * i + 2]]
            if np.isnan(own_d.rate):
                width = ["", ""]
            rows.append([
                name, str(level), f"{100 * d * pixels / whole.total:.0f} %",
                number(own_d.rate) + width[0], number(held_d.rate),
                number(own_d.effective_dimension) + width[1], str(own_d.components),
            ])  # fmt: skip
    axes[0].set(yscale="log", ylim=(0.3, 1500), ylabel="R(D), nats per image")
    axes[1].set(yscale="log", ylim=(0.8, 1500), ylabel="effective dimension −2 dR/d log D")
    for axis in axes:
        axis.set(xscale="log", xlabel="allowed error, r.m.s. grey levels of 255")
        axis.set_xticks([5, 10, 20, 40, 60], ["5", "10", "20", "40", "60"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(IMAGES / "theory_rate_distortion.png")
    head = ["set", "r.m.s. error, grey levels", "share of variance given up", "R, own spectrum",
            "R, held out", "effective dimension", "directions above water"]  # fmt: skip
    write_table("rate", table(head, rows))


def rate_numbers(part: np.ndarray) -> list[float]:
    """Return R and the effective dimension at each of `LEVELS`, without the limit on n."""
    centred = part - part.mean(axis=0)
    values = np.linalg.eigvalsh(centred @ centred.T).clip(min=0) / (len(part) - 1)
    allowed = (np.array(LEVELS) / 255) ** 2
    points = rate_distortion_curve(values, allowed, pixels=part.shape[1])
    return [v for p in points for v in (p.rate, p.effective_dimension)]


def intrinsic(data: dict) -> None:
    rows = []
    for name, (x, groups) in data.items():
        for similarity in (None, 0.999, 0.95):
            kept = (
                np.arange(len(x))
                if similarity is None
                else distinct_images(x, similarity=similarity)
            )
            part = x[kept]
            copies = near_copies(part)
            if similarity is not None and len(kept) == len(x):
                continue
            verdict = " (refused)" if np.isnan(two_nn(part)) else ""
            (nn, lb) = half_sampling(
                lambda p: (two_nn(p, allow_copies=True), levina_bickel(p, allow_copies=True)),
                reduce(part),
                groups=groups[kept],
                repeats=10,
            )
            what = "as they lie" if similarity is None else f"distinct at {similarity}"
            rows.append([
                name, what, str(len(kept)), f"{copies:.0%}",
                bar(nn) + verdict, bar(lb) + verdict,
                str(pca_dimension(part)), number(participation_ratio(spectrum(part).eigenvalues)),
            ])  # fmt: skip
    head = ["set", "images", "N", "near copies", "TwoNN", "Levina-Bickel", "PCA 95 %",
            "participation ratio"]  # fmt: skip
    write_table("intrinsic", table(head, rows))


def phantoms(_: dict) -> None:
    rows = []
    for factors in (1, 2, 4, 8):
        for noise in (0.0, 0.02):
            images = generate(1500, PhantomSettings(factors=factors, noise=noise, seed=1)).images
            x = reduce(images.reshape(len(images), -1).astype(np.float64))
            rows.append([
                str(factors), f"{noise:g}", number(two_nn(x)), number(levina_bickel(x)),
                str(pca_dimension(x)), number(participation_ratio(spectrum(x).eigenvalues)),
            ])  # fmt: skip
    head = ["factors", "noise", "TwoNN", "Levina-Bickel", "PCA 95 %", "participation ratio"]
    write_table("phantoms", table(head, rows))


def latent(data: dict) -> None:
    """H(Z) of a linear latent, as the equations of the paper would read it."""
    rows = []
    for name, (x, groups) in data.items():
        one, other = split(groups, (0.5, 0.5), 0)
        fitted = spectrum(x[one])
        scale = 1 / (12 / 255 * 64 / np.sqrt(64))  # unit noise: r.m.s. 12 grey levels at d = 64
        for d in (1, 2, 4, 8, 16, 64):
            z = (x[other] - fitted.mean) @ fitted.directions[:d].T
            rows.append([
                name, str(d), number(gaussian_entropy(z)), number(gaussian_entropy(10 * z)),
                number(kozachenko_leonenko(z)), number(coding_rate(scale * z)),
            ])  # fmt: skip
    head = ["set", "d", "h(Z), Gaussian", "h(10 Z), Gaussian", "h(Z), nearest neighbours",
            "coding rate"]  # fmt: skip
    write_table("latent", table(head, rows))


def lesion(data: dict, *, splits: int = 5, places: int = 8) -> None:
    rows, passed, curves = [], [], {}
    for name, (x, groups) in data.items():
        measured, bright, closed, normal, through, kept = [], [], [], [], [], []
        for seed in range(splits):
            parts = split(groups, (0.6, 0.2, 0.2), seed)
            fit, held = x[parts[0]], x[parts[2]]
            measured.append(pca_experiment(fit, held, places=places, seed=seed))
            bright.append(pca_experiment(fit, held, places=places, seed=seed, signs=(1.0,)))
            found = closed_form(fit, x[parts[1]])
            for into, values in zip((closed, normal, through, kept), found, strict=True):
                into.append(values)
        curves[name] = (np.array(measured), np.array(closed))
        for i, scale in enumerate(SCALES):
            m, c, g, b = (np.mean(v, axis=0)[i] for v in (measured, closed, normal, bright))
            best = [int(np.argmax(v)) for v in (m, c, g)]
            rows.append([
                name, str(scale), *(str(RANKS[r]) for r in best),
                *(f"{100 * v[best[0]]:.1f}" for v in (m, c, g)),
                *(f"{100 * (m.max() - m[r]):.1f}" for r in best[1:]),
                f"{100 * (b.max() - b[best[1]]):.1f}",
                f"{np.mean([k[i] for k in kept]):.0f}",
            ])  # fmt: skip
        share = np.mean(through, axis=0)
        passed += [
            [name, str(r), *(f"{100 * share[i, list(RANKS).index(r)]:.0f}" for i in range(6))]
            for r in (4, 16, 64, 256)
        ]
    head = [
        "set", "lesion, px", "best rank: experiment", "(3)", "(2)", "AUROC there: experiment",
        "(3)", "(2)", "points lost by the rank of (3)", "of (2)", "of (3), bright only",
        "directions with λ > g",
    ]  # fmt: skip
    write_table("lesion", table(head, rows))
    write_table("passed", table(["set", "rank", *(f"{s} px" for s in SCALES)], passed))
    draw_best(curves)
    draw_auroc(curves)


def heights(total: float, scale: float, size: int = 64) -> float:
    drawn = blob(size, scale_px=scale, row=size // 2, column=size // 2)
    return float(min(TALLEST, np.sqrt(ENERGY * total / (drawn**2).sum())))


def body(x: np.ndarray) -> np.ndarray:
    mean = x.mean(axis=0)
    return (mean > 0.1 * mean.max()).reshape(64, 64)


def pca_experiment(
    fit: np.ndarray,
    held: np.ndarray,
    *,
    places: int,
    seed: int,
    signs: tuple[float, ...] = (1.0, -1.0),
) -> np.ndarray:
    """Add blobs to images that neither the directions nor the closed form have seen."""
    fitted, rng = spectrum(fit), np.random.default_rng(seed)
    directions = fitted.directions[: RANKS[-1]]
    inside = np.argwhere(body(fit))
    centred = held - fitted.mean
    result = np.empty((len(SCALES), len(RANKS)))
    for i, scale in enumerate(SCALES):
        height = heights(fitted.total, scale)
        where = inside[rng.integers(len(inside), size=places * len(held))]
        shape = [blob(64, scale_px=scale, row=r, column=c).ravel() for r, c in where]
        drawn = height * rng.choice(signs, (len(where), 1)) * np.array(shape)
        plain = residual(centred, directions)
        odd = residual(np.tile(centred, (places, 1)) + drawn, directions)
        ranks = rankdata(np.vstack([plain, odd]), axis=0)
        n, m = len(plain), len(odd)
        result[i] = (ranks[n:].sum(axis=0) - m * (m + 1) / 2) / (n * m)
    return result


def residual(centred: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Return (N, ranks) energy left after removal of the leading directions."""
    energy = np.cumsum((centred @ directions.T) ** 2, axis=1)
    whole = (centred**2).sum(axis=1, keepdims=True)
    return np.hstack([whole, whole - energy])[:, RANKS]


def closed_form(
    fit: np.ndarray, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    fitted = spectrum(fit)
    leading = replace(fitted, directions=fitted.directions[: RANKS[-1]])
    seen = heldout_spectrum(leading, held)
    centred = held - fitted.mean
    energies = (centred @ seen.directions.T) ** 2
    whole = (centred**2).sum(axis=1, keepdims=True)
    variance = np.var(np.hstack([whole, whole - np.cumsum(energies, axis=1)]), axis=0)
    outside = (whole[:, 0] - energies.sum(axis=1)).clip(min=0)
    auroc, normal, through, kept = [], [], [], []
    for scale in SCALES:
        found = blob_spectrum(
            seen, scale_px=scale, contrast=heights(fitted.total, scale), positions=body(fit)
        )
        predicted = predicted_auroc(
            seen.eigenvalues, found, remainder=seen.remainder, normal_variance=variance
        )
        normal.append(predicted[RANKS])
        auroc.append(
            predicted_auroc_from(energies, found, outside=outside, pixels=4096, ranks=RANKS)
        )
        share = np.concatenate([[0.0], np.cumsum(found.energy)]) / found.total
        through.append(share[RANKS])
        kept.append(encode_components(seen.eigenvalues, found.energy).components)
    return np.array(auroc), np.array(normal), np.array(through), kept


def draw_best(curves: dict) -> None:
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3.5), dpi=110, sharey=True)
    for axis, (name, (measured, closed)) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        mean, form = measured.mean(axis=0), closed.mean(axis=0)
        low, high = zip(*(plateau(row) for row in mean), strict=True)
        axis.fill_between(SCALES, low, high, color=COLOURS[name], alpha=0.2, lw=0,
                          label="experiment, within 1 point")  # fmt: skip
        axis.plot(SCALES, RANKS[mean.argmax(axis=1)], "o", color=COLOURS[name],
                  label="experiment, best")  # fmt: skip
        axis.plot(SCALES, RANKS[form.argmax(axis=1)], "k-", lw=1.5, label="closed form")
        axis.set(xscale="log", xlabel="lesion diameter, pixels of 64", title=name)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_yticks([0, 1, 4, 16, 64, 256], ["0", "1", "4", "16", "64", "256"])
        axis.set_xticks(SCALES, [str(s) for s in SCALES])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("best number of components")
    np.atleast_1d(axes)[0].legend(fontsize=7, frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(IMAGES / "theory_lesion_scale.png")


def plateau(auroc: np.ndarray, points: float = 0.01) -> tuple[int, int]:
    near = RANKS[auroc >= auroc.max() - points]
    return int(near.min()), int(near.max())


def draw_auroc(curves: dict) -> None:
    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3.5), dpi=110, sharey=True)
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(SCALES)))
    for axis, (name, (measured, closed)) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        for i, scale in enumerate(SCALES):
            axis.plot(RANKS, measured.mean(axis=0)[i], color=shades[i], label=f"{scale} px")
            axis.plot(RANKS, closed.mean(axis=0)[i], "--", color=shades[i], lw=1)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks([0, 1, 4, 16, 64, 256], ["0", "1", "4", "16", "64", "256"])
        axis.set(xlabel="components", title=name)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("AUROC (dashed: closed form)")
    np.atleast_1d(axes)[0].legend(fontsize=7, frameon=False, title="lesion", title_fontsize=7)
    figure.tight_layout()
    figure.savefig(IMAGES / "theory_lesion_auroc.png")


def reduce(x: np.ndarray) -> np.ndarray:
    """Rotate N samples into their N - 1 dimensions: equal distances, less to compute."""
    fitted = spectrum(x)
    return (x - fitted.mean) @ fitted.directions.T


def bar(estimate: object) -> str:
    return f"{estimate.value:.1f} ± {(estimate.high - estimate.low) / 2:.1f}"


def main() -> None:
    steps = {f.__name__: f for f in (rate, intrinsic, phantoms, latent, lesion)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(steps), default=list(steps))
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    warnings.simplefilter("ignore")
    data = load()
    for name in given.only:
        steps[name](data)


if __name__ == "__main__":
    main()

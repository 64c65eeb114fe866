"""Does a promised false-positive rate hold on real normal images? Repeated splits tell.

    python benchmarks/calibration.py DATA_FOLDER --figure docs/images/calibration.png
    python benchmarks/calibration.py --scores scores.csv

In each of 200 repeats the normal images are split at random by patient: one part fits a PCA of 16
components (its squared residual is the score: cheap enough to refit 200 times, and no label is
seen), one calibrates, the rest shows which rate is realised. Theory says where it may lie.

With ``--scores`` the scores of one fitted model are split instead (columns ``anomaly_score``,
``is_anomalous`` and, if known, ``patient_id``); it must not have been fitted on its normal images.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normalis.baselines import pca_residual
from normalis.calibration.conformal import calibrate, realised_rate_interval

RATES = (0.2, 0.1, 0.05, 0.02, 0.01)
SHARES = (0.0, 0.01, 0.05, 0.10)


@dataclass
class Pool:
    """Images of one data set: normal ones, and anomalous ones for the contamination."""

    name: str
    images: Any  # (N, S, S), or (N,) finished scores
    patient: Any
    is_anomalous: Any
    parts: tuple[float, float]  # share of patients that fit, and that calibrate


def kermany(folder: Path) -> Pool:
    """Chest X-rays, the first normal image of each patient: independent images."""
    with np.load(folder / "kermany_cxr" / "arrays_64.npz") as z:
        patient = np.append(z["train_patient"], z["test_patient"])
        label = np.append(np.zeros(len(z["train"]), bool), z["test_label"].astype(bool))
        images = np.append(z["train"], z["test"], axis=0)
    first = np.zeros(len(label), bool)
    first[np.unique(patient, return_index=True)[1]] = True
    keep = first | label
    return Pool("kermany_cxr", images[keep], patient[keep], label[keep], (0.4, 0.3))


def lgg(folder: Path) -> Pool:
    """FLAIR slices of 109 patients, about 18 lesion-free ones each: far from independent."""
    with np.load(folder / "lgg_flair" / "arrays_64.npz") as z:
        patient = np.append(z["train_patient"], z["test_patient"])
        label = np.append(np.zeros(len(z["train"]), bool), z["test_label"].astype(bool))
        images = np.append(z["train"], z["test"], axis=0)
    return Pool("lgg_flair", images, patient, label, (0.3, 0.37))


def from_csv(path: Path) -> Pool:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    label = np.array([row["is_anomalous"].strip().lower() in ("1", "true") for row in rows])
    named = [row.get("patient_id") or f"image {i}" for i, row in enumerate(rows)]
    scores = np.array([float(row["anomaly_score"]) for row in rows])
    return Pool(path.stem, scores, np.array(named), label, (0.0, 0.5))


def splits(pool: Pool, repeats: int) -> Iterator[tuple[Any, Any, Any]]:
    """Yield masks (N,) of the images that fit, calibrate and test, by patient."""
    names, member = np.unique(pool.patient, return_inverse=True)
    normal = np.zeros(names.size, bool)
    normal[member[~pool.is_anomalous]] = True
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(np.flatnonzero(normal))
        ends = (np.cumsum(pool.parts) * order.size).round().astype(int)
        part = np.full(names.size, 3)
        for number, chosen in enumerate(np.split(order, ends)):
            part[chosen] = number
        yield tuple(part[member] == number for number in range(3))  # type: ignore[misc]


def score(pool: Pool, fit: Any) -> Any:
    """Scores of all images by a model of the images in ``fit``; finished scores as they are."""
    if pool.images.ndim == 1:
        return pool.images
    return pca_residual(pool.images, pool.images[fit])


def rates_of(pool: Pool, repeats: int, *, by_patient: bool) -> dict[tuple[str, float], list[Any]]:
    """Return (statement, rate) -> (realised rate, low, high) of each repeat."""
    found: dict[tuple[str, float], list[Any]] = {}
    for fit, calibration, test in splits(pool, repeats):
        scores = score(pool, fit & ~pool.is_anomalous)
        cal, new = (part & ~pool.is_anomalous for part in (calibration, test))
        naive = calibrate(scores[cal])
        known = calibrate(scores[cal], patients=pool.patient[cal])
        _, p_patient = known.patient_p_values(scores[new], pool.patient[new])
        p_image, p_naive = known.p_values(scores[new]), naive.p_values(scores[new])
        member = np.unique(pool.patient[new], return_inverse=True)[1]
        weight = 1 / np.bincount(member)[member] / (member.max() + 1)
        any_naive = np.bincount(member, p_naive <= 0.05) > 0
        for rate in RATES:
            if rate < known.smallest_rate - 1e-9:
                continue
            patients = realised_rate_interval(known.n_units, member.max() + 1, rate)
            images = realised_rate_interval(naive.n_units, int(new.sum()), rate)
            rows = {"patients, any image": (np.mean(p_patient <= rate + 1e-9), *patients)}
            if by_patient:
                share = np.sum(weight * (p_image <= rate + 1e-9))
                rows["images, patients weigh equally"] = (share, np.nan, np.nan)
                rows["slices as if independent"] = (np.mean(p_naive <= rate + 1e-9), *images)
            for name, row in rows.items():
                found.setdefault((name, rate), []).append(row)
        if by_patient:
            low_high = realised_rate_interval(known.n_units, member.max() + 1, 0.05)
            found.setdefault(("patients, slices as if independent", 0.05), []).append(
                (any_naive.mean(), *low_high)
            )
    return found


def contaminated(pool: Pool, repeats: int) -> dict[float, list[tuple[float, float]]]:
    """Return share of anomalies among the training normals -> (false-positive rate, sensitivity).

    They are in both parts that a hospital would have taken for normal: what fits and what
    calibrates. The test stays clean; what was mixed in is not tested on. Patients who have both
    normal and anomalous slices stay in their part with all of them.
    """
    found: dict[float, list[tuple[float, float]]] = {}
    for seed, (fit, calibration, test) in enumerate(splits(pool, repeats)):
        rng = np.random.default_rng(10_000 + seed)
        for share in SHARES:
            mix_fit, mix_cal = (part & ~pool.is_anomalous for part in (fit, calibration))
            for mix, part in ((mix_fit, fit), (mix_cal, calibration)):
                own = pool.is_anomalous & part
                free = pool.is_anomalous & ~(fit | calibration | test | mix_fit | mix_cal)
                candidates = np.flatnonzero(own if own.any() else free)
                wanted = round(share / (1 - share) * mix.sum())
                mix[rng.permutation(candidates)[:wanted]] = True
            scores = score(pool, mix_fit)
            known = calibrate(scores[mix_cal], patients=pool.patient[mix_cal])
            flagged = known.p_values(scores) <= 0.05 + 1e-9
            clean = test & ~pool.is_anomalous
            held = pool.is_anomalous & ~(fit | calibration | mix_fit | mix_cal)
            found.setdefault(share, []).append((flagged[clean].mean(), flagged[held].mean()))
    return found


def few(pool: Pool, repeats: int, *, count: int, folds: int = 5) -> dict[str, list[Any]]:
    """Return kind -> (false-positive rate, sensitivity) at 5 %, of so few normal images in all.

    ``split`` fits on four fifths and calibrates on the rest, ``cv+`` fits five times; both are
    tested on all other normal images. One image per patient.
    """
    found: dict[str, list[Any]] = {"split": [], "cv+": []}
    normal = np.flatnonzero(~pool.is_anomalous)
    for seed in range(repeats):
        order = np.random.default_rng(seed).permutation(normal)
        known, fold = order[:count], np.arange(count) % folds
        new = np.append(order[count:], np.flatnonzero(pool.is_anomalous))
        clean = ~pool.is_anomalous[new]
        scores = np.stack([pca_residual(pool.images, pool.images[known[fold != k]])
                           for k in range(folds)])  # fmt: skip
        one = calibrate(scores[0, known[fold == 0]])
        own = scores[fold, known]  # each by the model that was fitted without its fold
        for kind, held, seen in (
            ("split", one, scores[0, new]),
            ("cv+", calibrate(own, kind="cv+", fold=fold), scores[:, new]),
        ):
            flagged = held.flags(held.p_values(seen), 0.05)
            found[kind].append((flagged[clean].mean(), flagged[~clean].mean()))
    return found


def report_few(name: str, count: int, found: dict[str, list[Any]]) -> None:
    print(f"\n{name}: {count} normal images in all, nominal rate 5 %")
    print("| calibration | false-positive rate | 2.5 % to 97.5 % | sensitivity | 2.5 % to 97.5 % |")
    print("|---|---|---|---|---|")
    for kind, rows in found.items():
        cells = []
        for values in 100 * np.array(rows).T:
            low, high = np.quantile(values, [0.025, 0.975])
            cells.append(f"{values.mean():.2f} % | {low:.1f} to {high:.1f} %")
        print(f"| {kind} | {' | '.join(cells)} |")


def report_rates(name: str, found: dict[tuple[str, float], list[Any]]) -> None:
    print(f"\n{name}")
    print("| statement | nominal | mean realised | 2.5 % to 97.5 % | theory, 95 % | inside |")
    print("|---|---|---|---|---|---|")
    for (statement, rate), rows in found.items():
        values = np.array(rows)
        low, high = np.quantile(values[:, 0], [0.025, 0.975])
        theory, inside = "–", "–"
        if np.isfinite(values[:, 1]).all():
            within = (values[:, 0] >= values[:, 1] - 1e-9) & (values[:, 0] <= values[:, 2] + 1e-9)
            bounds = np.median(values[:, 1:], axis=0)
            theory = f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
            inside = f"{100 * within.mean():.0f} %"
        print(
            f"| {statement} | {100 * rate:.0f} % | {100 * values[:, 0].mean():.2f} % "
            f"| {100 * low:.1f} to {100 * high:.1f} % | {theory} | {inside} |"
        )


def report_contamination(name: str, found: dict[float, list[tuple[float, float]]]) -> None:
    print(f"\n{name}: anomalies among the normal images that fit and calibrate, nominal rate 5 %")
    print("| contamination | false-positive rate | sensitivity |\n|---|---|---|")
    for share, rows in found.items():
        rate, hit = np.mean(rows, axis=0)
        spread = np.std(rows, axis=0)
        print(
            f"| {100 * share:.0f} % | {100 * rate:.2f} ± {100 * spread[0]:.2f} % "
            f"| {100 * hit:.1f} ± {100 * spread[1]:.1f} % |"
        )


def draw_rates(
    axis: Any, title: str, found: dict[tuple[str, float], list[Any]], which: str
) -> None:
    """One column per rate: every repeat as a dot, theory as a band."""
    rates = [rate for name, rate in found if name == which]
    for place, rate in enumerate(rates):
        values = 100 * np.array(found[which, rate])
        low, high = np.median(values[:, 1:], axis=0)
        inside = (values[:, 0] >= values[:, 1] - 1e-7) & (values[:, 0] <= values[:, 2] + 1e-7)
        axis.fill_between([place - 0.4, place + 0.4], low, high, color="#c8d8e8", zorder=0)
        x = place + np.random.default_rng(0).uniform(-0.3, 0.3, len(values))
        for chosen, colour in ((inside, "#1f4e79"), (~inside, "#c8500a")):
            axis.plot(x[chosen], values[chosen, 0], ".", ms=3, color=colour, alpha=0.6)
        axis.plot([place - 0.4, place + 0.4], [100 * rate] * 2, "k-", lw=1)
        axis.text(place, 1.0, f"{100 * inside.mean():.0f} %", ha="center", va="bottom",
                  fontsize=8, transform=axis.get_xaxis_transform())  # fmt: skip
    axis.set_xticks(range(len(rates)), [f"{100 * rate:.0f} %" for rate in rates])
    axis.set_title(title, fontsize=9, pad=16)
    axis.set_xlabel("nominal false-positive rate")
    axis.set_ylabel("realised, %")
    axis.set_ylim(bottom=0)


def draw(path: Path, panels: list[Any], contamination: dict[float, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7.2), layout="constrained")
    for axis, (title, found, which) in zip(axes.flat, panels, strict=False):
        draw_rates(axis, title, found, which)
    axis = axes.flat[3]
    values = 100 * np.array(list(contamination.values()))
    x = 100 * np.array(list(contamination))
    for column, (name, colour) in enumerate(
        (("false-positive rate", "#1f4e79"), ("sensitivity", "#c8500a"))
    ):
        low, middle, high = np.quantile(values[:, :, column], [0.025, 0.5, 0.975], axis=1)
        axis.fill_between(x, low, high, color=colour, alpha=0.2)
        axis.plot(x, middle, "o-", color=colour, label=name)
    axis.axhline(5, color="k", lw=0.8)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("anomalies among the training normals, %")
    axis.set_ylabel("%")
    axis.set_title("kermany_cxr, undetected anomalies, nominal rate 5 %", fontsize=9)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, help="folder of kermany_cxr and lgg_flair")
    parser.add_argument("--scores", type=Path, help="CSV of finished scores instead")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--figure", type=Path, help="PNG to write")
    args = parser.parse_args()
    if args.scores:
        pool = from_csv(args.scores)
        shared = np.unique(pool.patient).size < pool.patient.size
        report_rates(pool.name, rates_of(pool, args.repeats, by_patient=shared))
        return
    if args.data is None:
        parser.error("name the folder of real images, or --scores")
    chest, head = kermany(args.data), lgg(args.data)
    images = rates_of(chest, args.repeats, by_patient=False)
    patients = rates_of(head, args.repeats, by_patient=True)
    report_rates("kermany_cxr, one image per patient", images)
    report_rates("lgg_flair, slices of patients", patients)
    for count in (50, 100, 200):
        report_few(chest.name, count, few(chest, args.repeats, count=count))
    contamination = contaminated(chest, args.repeats)
    report_contamination(chest.name, contamination)
    report_contamination(head.name, contaminated(head, args.repeats))
    if args.figure:
        panels = [
            ("kermany_cxr, independent images", images, "patients, any image"),
            ("lgg_flair, calibrated by patient", patients, "patients, any image"),
            ("lgg_flair, slices as if independent", patients, "slices as if independent"),
        ]
        draw(args.figure, panels, contamination)


if __name__ == "__main__":
    main()

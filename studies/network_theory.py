"""Measure the claims of docs/explanation/theory.md on trained networks.

Rewrites its tables and its figure.

    python studies/network_theory.py [--results results] [--draw-only]

Takes the plain autoencoders (``ae``, as the paper trains it) whose record and fitted model lie in
the results folder, measures those that are not in ``results/theory/*.csv`` yet, and says which
latent dimensions have no model. ``--draw-only`` remakes the page from the CSV files alone.

Held-out normals are *normal test images* without a twin in training. Anomalous test images are read
for one column alone, the coding rate of their latent vectors; nothing is chosen by them. The closed
form sees training normals only, split by patient.
"""

import argparse
import csv
import os
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from scipy.stats import rankdata

from normalis.entropy import (
    blob,
    blob_spectrum,
    coding_rate,
    decoder_coding_rate,
    decoder_geometry,
    decoder_referred_rate,
    distinct_images,
    gaussian_entropy,
    gaussian_rate_distortion,
    heldout_spectrum,
    pass_through,
    predicted_auroc_from,
    spectrum,
)
from normalis.models.base import Autoencoder
from normalis.research.data import Arrays, Store, nearest
from normalis.research.experiments import Experiment, Subset, default_epochs
from normalis.research.jobs import fitted
from normalis.research.records import Records
from normalis.storage import RunFolder
from theory import IMAGES, ROOT, body, heights, look_alikes, number, split, table, write_table

mpl.use("Agg")
from matplotlib import pyplot as plt

OUT = ROOT / "results" / "theory"
SCALES = (1, 2, 4, 8, 16, 32)
PLACES = 2  # of a lesion in each image
MOST = 400  # held-out images
JACOBIANS = 24  # latent vectors at which the decoder is differentiated
PIXELS = 64 * 64
NOISE = (12 / 255) ** 2 * PIXELS / 64  # of the coding rate, as in the table of linear latents
FINE = (4 / 255) ** 2  # allowed error of the decoder-referred rate
SHOWN = (1, 4, 16, 64, 128, 512, 1024)  # of which the figure draws the pass-through
LEAST = 4  # latent dimensions without which a best one means nothing
TWIN = 0.95
LEAK_FREE = Subset(drop_train_twins=TWIN)
NAMES = {"brain_tumor": "brain_tumor, official split", "brain_tumor*": "brain_tumor, no leak"}
ORDER = ("kermany_cxr", "lgg_flair", "brain_tumor*", "brain_tumor")


def trained(results: Path) -> list[tuple[str, Experiment, float]]:
    """List (set, experiment, AUROC of the data set's own anomalies) of the plain trainings."""
    found = []
    for row in Records(results).table():
        experiment = Experiment.from_settings(row["settings"])
        plain = replace(experiment, subset=Subset())
        usual = Experiment(
            dataset=plain.dataset,
            data=plain.data,
            train_data=plain.train_data,
            latent_dim=plain.latent_dim,
            seed=plain.seed,
            training=replace(plain.training, epochs=default_epochs(plain.dataset)),
        )
        if plain.identity != usual.identity or plain.training != usual.training:
            continue
        if plain.training.standardize or experiment.subset not in (Subset(), LEAK_FREE):
            continue
        mark = "*" if experiment.subset == LEAK_FREE else ""
        found.append((experiment.dataset + mark, experiment, float(row["auroc"])))
    return sorted(found, key=lambda f: (f[0], f[1].latent_dim, f[1].seed))


def flat(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(len(pixels), -1) / (255.0 if pixels.dtype == np.uint8 else 1.0)


def images_of(arrays: Arrays) -> tuple[np.ndarray, ...]:
    """Return training normals (N, P), their groups, held-out normals and anomalies, in [0, 1]."""
    train = arrays.of("train")
    patients = arrays.patient_id[arrays.split == "train"]
    groups = look_alikes(flat(train)) if (patients == "").any() else patients
    test, sick = arrays.of("test"), arrays.is_anomalous[arrays.split == "test"]
    healthy = test[~sick]
    held = healthy[nearest(healthy, train) < TWIN]
    if (patients == "").any():
        held = held[distinct_images(flat(held), similarity=TWIN)]
    members = np.unique(groups, return_inverse=True)[1]
    return flat(train), members, flat(some(held)), flat(some(test[sick]))


def some(pixels: np.ndarray) -> np.ndarray:
    chosen = np.random.default_rng(0).permutation(len(pixels))[:MOST]
    return pixels[np.sort(chosen)]


@torch.no_grad()
def through(model: Autoencoder, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (z, x̂) of images (N, P) in [0, 1], x̂ on the same scale."""
    codes, rebuilt = [], []
    for part in torch.from_numpy(x.astype(np.float32)).split(256):
        z = model.encode(2 * part.view(-1, 1, 64, 64) - 1)
        codes.append(z.double().numpy())
        rebuilt.append((model.decode(z).flatten(1).double().numpy() + 1) / 2)
    return np.concatenate(codes), np.concatenate(rebuilt)


class Lesions:
    """The same blobs for every model of a data set, and what linear models make of them."""

    def __init__(self, train: np.ndarray, groups: np.ndarray, held: np.ndarray) -> None:
        self.fitted, rng = spectrum(train), np.random.default_rng(0)
        self.held, inside = held, np.argwhere(body(train))
        self.plain = np.tile(held, (PLACES, 1))
        self.drawn, self.closed = {}, {}
        fit, rest = split(groups, (0.7, 0.3), 0)
        first = spectrum(train[fit])
        first = replace(first, directions=first.directions[:512])
        seen = heldout_spectrum(first, train[rest])
        centred = train[rest] - first.mean
        self.energies = (centred @ first.directions.T) ** 2
        outside = ((centred**2).sum(axis=1) - self.energies.sum(axis=1)).clip(min=0)
        self.ranks = np.arange(min(len(first.directions), 512) + 1)
        known = self.ranks[np.isin(self.ranks, 2 ** np.arange(10)) | (self.ranks % 128 == 0)]
        for scale in SCALES:
            height = heights(self.fitted.total, scale)
            where = inside[rng.integers(len(inside), size=len(self.plain))]
            shape = [blob(64, scale_px=scale, row=r, column=c).ravel() for r, c in where]
            sign = rng.choice([-1.0, 1.0], (len(where), 1))
            self.drawn[scale] = height * sign * np.array(shape)
            lesion = blob_spectrum(seen, scale_px=scale, contrast=height, positions=body(train))
            auroc = predicted_auroc_from(
                self.energies, lesion, outside=outside, pixels=PIXELS, ranks=known
            )
            self.closed[scale] = dict(zip(known.tolist(), auroc, strict=True))

    def linear(self, d: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the directions and mean of PCA of rank d; None if there are not as many."""
        if d > len(self.fitted.directions):
            return None
        return self.fitted.directions[:d], self.fitted.mean


def auroc(plain: np.ndarray, odd: np.ndarray) -> float:
    ranks = rankdata(np.concatenate([plain, odd]))
    n, m = len(plain), len(odd)
    return float((ranks[n:].sum() - m * (m + 1) / 2) / (n * m))


def energy(x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    return ((x - x_hat) ** 2).sum(axis=1)


def measure_lesions(lesions: Lesions, model: Autoencoder, d: int) -> list[dict]:
    rows, axes = [], lesions.linear(d)
    clean = np.tile(through(model, lesions.held)[1], (PLACES, 1))
    normal = energy(lesions.held, clean[: len(lesions.held)])
    for scale, delta in lesions.drawn.items():
        odd = lesions.plain + delta
        rebuilt = through(model, odd)[1]
        passed = pass_through(clean, rebuilt, delta)
        clipped = odd.clip(0, 1)
        row = {
            "scale_px": scale,
            "auroc": auroc(normal, energy(odd, rebuilt)),
            "auroc_clipped": auroc(normal, energy(clipped, through(model, clipped)[1])),
            "passed": passed.along.mean(),
            "passed_sd": passed.along.std(),
            "across": passed.across.mean(),
            "closed_form": lesions.closed[scale].get(d, np.nan),
            "pca_auroc": np.nan,
            "pca_passed": np.nan,
        }
        if axes is not None:
            left = [linear_residual(x, *axes) for x in (lesions.held, odd)]
            row["pca_auroc"] = auroc(*left)
            share = ((delta @ axes[0].T) ** 2).sum(axis=1) / (delta**2).sum(axis=1)
            row["pca_passed"] = share.mean()
        rows.append(row)
    return rows


def linear_residual(x: np.ndarray, directions: np.ndarray, mean: np.ndarray) -> np.ndarray:
    centred = x - mean
    return (centred**2).sum(axis=1) - ((centred @ directions.T) ** 2).sum(axis=1)


def measure_latent(
    lesions: Lesions, model: Autoencoder, train: np.ndarray, sick: np.ndarray
) -> dict:
    """Entropies of Z, in the decoder's scale, and what the reconstruction leaves out."""
    held, fitted_ = lesions.held, lesions.fitted
    (z, x_hat), (z_train, x_hat_train) = through(model, held), through(model, train)
    at = torch.from_numpy(z[:: max(1, len(z) // JACOBIANS)][:JACOBIANS].astype(np.float32))
    d = z.shape[1]
    geometry = decoder_geometry(lambda v: (model.decode(v) + 1) / 2, at, chunk=max(1, 128 // d))
    seen = heldout_spectrum(fitted_, held)
    mse, mse_train = energy(held, x_hat).mean(), energy(train, x_hat_train).mean()
    needed = gaussian_rate_distortion(
        seen.eigenvalues, mse / PIXELS, pixels=PIXELS, remainder=seen.remainder
    )
    axes = lesions.linear(d)
    linear = np.nan
    if axes is not None:
        linear = coding_rate((held - axes[1]) @ axes[0].T / np.sqrt(NOISE))
    return {
        "held_out": len(held),
        "training": len(train),
        "entropy": gaussian_entropy(z),
        "entropy_training": gaussian_entropy(z_train),
        "rate": decoder_coding_rate(z, geometry, NOISE),
        "rate_training": decoder_coding_rate(z_train, geometry, NOISE),
        "rate_anomalous": decoder_coding_rate(through(model, sick)[0], geometry, NOISE),
        "rate_pca": linear,
        "rate_decoder": decoder_referred_rate(z, geometry, FINE),
        "rate_needed": needed.rate,
        "error": mse / PIXELS,
        "error_training": mse_train / PIXELS,
        "left_out": mse / seen.total,
        "left_out_training": mse_train / fitted_.total,
    }


def read(file: Path) -> list[dict]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as opened:
        return [{k: _typed(k, v) for k, v in row.items()} for row in csv.DictReader(opened)]


def _typed(name: str, text: str) -> object:
    if name in ("set", "training_key"):
        return text
    return (
        int(text)
        if name in ("latent_dim", "seed", "scale_px", "held_out", "training")
        else (float(text))
    )


def write(file: Path, rows: list[dict]) -> None:
    rows = sorted(rows, key=lambda r: (r["set"], r["latent_dim"], r["seed"], r.get("scale_px", 0)))
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})


def measure(results: Path, root: Path) -> None:
    """Measure every model that is there and not measured yet; keep what was measured after each."""
    store = Store(results, root)
    latent, lesion = read(OUT / "latent.csv"), read(OUT / "lesions.csv")
    done = {row["training_key"] for row in latent} & {row["training_key"] for row in lesion}
    last, parts = "", None
    for name, experiment, own in trained(results):
        key = experiment.training_key
        if key in done:
            continue
        if not RunFolder(results / "models" / key).finished:
            print(f"no model of {name} d={experiment.latent_dim} seed={experiment.seed}")
            continue
        if not store.file(experiment.data).is_file():
            store.fingerprints(experiment.dataset, experiment.images, experiment.subset)
        arrays = store.get(experiment.data)
        if parts is None or last != experiment.data:
            parts, last = images_of(arrays), experiment.data
            lesions = Lesions(*parts[:3])
        model, _ = fitted(experiment, arrays, results, device="cpu")
        d = experiment.latent_dim
        head = {"set": name, "latent_dim": d, "seed": experiment.seed, "training_key": key}
        row = measure_latent(lesions, model, parts[0], parts[3])
        latent = [r for r in latent if r["training_key"] != key] + [head | row | {"auroc_own": own}]
        if all(r["training_key"] != key for r in lesion):
            lesion += [head | r for r in measure_lesions(lesions, model, d)]
        write(OUT / "latent.csv", latent)
        write(OUT / "lesions.csv", lesion)
        print(f"measured {name} d={experiment.latent_dim} seed={experiment.seed}")


def by_set(rows: list[dict], value: str) -> dict[str, dict[tuple[int, int], float]]:
    """Return set -> (d, scale) -> mean over seeds."""
    cells: dict = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["set"]][row["latent_dim"], row.get("scale_px", 0)].append(row[value])
    means = {s: {k: float(np.mean(v)) for k, v in c.items()} for s, c in cells.items()}
    return {s: means[s] for s in ORDER if s in means}


def say_missing(rows: list[dict]) -> None:
    for name, cells in by_set(rows, "seed").items():
        there = {d for d, _ in cells}
        gone = [str(2**k) for k in range(8) if 2**k not in there]
        if gone:
            print(f"{NAMES.get(name, name)}: no model for d = {', '.join(gone)}")


def latent_table(rows: list[dict]) -> list[str]:
    head = [
        "set", "d", "h(Z), Gaussian, held out", "coding rate, held out", "training", "anomalous",
        "PCA", "R_dec, 4 grey levels", "R(D) at the network's D", "variance left out, held out",
        "training", "AUROC, the set's own anomalies",
    ]  # fmt: skip
    columns = [
        "entropy",
        "rate",
        "rate_training",
        "rate_anomalous",
        "rate_pca",
        "rate_decoder",
        "rate_needed",
    ]
    shares = ("left_out", "left_out_training")
    values = {c: by_set(rows, c) for c in (*columns, *shares, "auroc_own")}
    lines = []
    for name, cells in values["rate"].items():
        for d, _ in sorted(cells):
            lines.append([
                NAMES.get(name, name), str(d), *(number(values[c][name][d, 0]) for c in columns),
                *(f"{100 * values[c][name][d, 0]:.0f} %" for c in shares),
                number(100 * values["auroc_own"][name][d, 0]),
            ])  # fmt: skip
    return table(head, lines)


def best(cells: dict, scale: int) -> tuple[int, float]:
    """Return the d with the largest value at a scale, of those that have one."""
    known = {d: v for (d, s), v in cells.items() if s == scale and not np.isnan(v)}
    return max(known.items(), key=lambda item: (item[1], -item[0]))


def swept(values: dict) -> dict:
    """Return the sets with enough latent dimensions to speak of a best one."""
    return {name: c for name, c in values.items() if len({d for d, _ in c}) >= LEAST}


def lesion_table(rows: list[dict]) -> list[str]:
    head = ["set", "lesion, px", "best d: network", "PCA", "closed form", "AUROC there: network",
            "PCA", "closed form", "within 1 point", "points the network loses by the d of PCA",
            "of the closed form", "by 16", "by 8", "best d, clipped to [0, 1]"]  # fmt: skip
    names = ("auroc", "pca_auroc", "closed_form", "auroc_clipped")
    values = {c: by_set(rows, c) for c in names}
    lines = []
    for name, cells in swept(values["auroc"]).items():
        for scale in SCALES:
            found = [best(values[c][name], scale) for c in names]
            top = found[0][1]
            near = sorted(d for (d, s), v in cells.items() if s == scale and v >= top - 0.01)
            lost = [
                number(100 * (top - cells.get((d, scale), np.nan)))
                for d in (found[1][0], found[2][0], 16, 8)
            ]
            lines.append([
                NAMES.get(name, name), str(scale), *(str(f[0]) for f in found[:3]),
                *(number(100 * f[1]) for f in found[:3]), ", ".join(map(str, near)), *lost,
                str(found[3][0]),
            ])  # fmt: skip
    return table(head, lines)


def passed_table(rows: list[dict]) -> list[str]:
    values = {c: by_set(rows, c) for c in ("passed", "across", "pca_passed")}
    lines = []
    for name, cells in values["passed"].items():
        for d in sorted({d for d, _ in cells} & {4, 16, 64, 128, 512}):
            texts = []
            for scale in SCALES:
                s, o, p = (100 * values[c][name][d, scale] for c in values)
                texts.append(f"{s:.0f}, {o:.0f} ({number(p, 0)})")
            lines.append([NAMES.get(name, name), str(d), *texts])
    return table(["set", "d", *(f"{s} px" for s in SCALES)], lines)


def draw(rows: list[dict]) -> None:
    """Draw AUROC over lesion size and d, and below it the share of the lesion that is rebuilt."""
    aurocs = swept(by_set(rows, "auroc"))
    if not aurocs:
        return
    count, width = len(aurocs), 3.4 * len(aurocs) + 1.2
    figure, axes = plt.subplots(
        2, count, figsize=(width, 7.4), dpi=110, height_ratios=(1.35, 1), squeeze=False
    )
    closed, shown = by_set(rows, "closed_form"), None
    passed, linear = by_set(rows, "passed"), by_set(rows, "pca_passed")
    for column, (name, cells) in enumerate(aurocs.items()):
        shown = draw_auroc(axes[0, column], cells, closed[name])
        draw_passed(axes[1, column], passed[name], linear[name])
        axes[0, column].set_title(NAMES.get(name, name))
    axes[0, 0].set_ylabel("latent dimension d")
    axes[1, 0].set_ylabel("share of the lesion rebuilt, %\n(dotted: PCA of the same d)")
    figure.tight_layout(rect=(0, 0, 1 - 1.1 / width, 0.95))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper center", ncols=2,
                  frameon=False, markerscale=0.6)  # fmt: skip
    place = axes[0, -1].get_position()
    bar = figure.add_axes((1 - 0.95 / width, place.y0, 0.15 / width, place.height))
    label = "AUROC points below the best d for that lesion"
    figure.colorbar(shown, cax=bar, label=label, extend="max")
    figure.savefig(IMAGES / "theory_networks.png")
    plt.close(figure)


def draw_auroc(axis: plt.Axes, cells: dict, closed: dict) -> mpl.image.AxesImage:
    dims, columns = sorted({d for d, _ in cells}), range(len(SCALES))
    grid = 100 * np.array([[cells[d, s] for s in SCALES] for d in dims])
    lost = grid.max(axis=0) - grid
    shown = axis.imshow(lost, origin="lower", aspect="auto", cmap="magma_r", vmin=0, vmax=10)
    form = [dims.index(best(closed, s)[0]) for s in SCALES]
    axis.plot(columns, form, "-", color="#00a0b0", lw=5, alpha=0.5, solid_capstyle="round",
              label="best d of the closed form, from training normals")  # fmt: skip
    axis.plot(columns, grid.argmax(axis=0), "o", ms=18, mfc="none", mec="#005f73", mew=2.2,
              label="best d of the network")  # fmt: skip
    for (i, j), value in np.ndenumerate(grid):
        shade = "white" if lost[i, j] > 5 else "black"
        axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=7, color=shade)
    axis.set_xticks(columns, [str(s) for s in SCALES])
    axis.set_yticks(range(len(dims)), [str(d) for d in dims])
    return shown


def draw_passed(axis: plt.Axes, passed: dict, linear: dict) -> None:
    dims = [d for d in SHOWN if (d, 1) in passed]
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(dims)))
    for d, shade in zip(dims, shades, strict=True):
        axis.plot(SCALES, [100 * passed[d, s] for s in SCALES], "o-", ms=3, color=shade,
                  label=f"d = {d}")  # fmt: skip
        axis.plot(SCALES, [100 * linear[d, s] for s in SCALES], ":", lw=1.2, color=shade)
    axis.set(xscale="log", xlabel="lesion diameter, pixels of 64", ylim=(-3, 100))
    axis.set_xticks(SCALES, [str(s) for s in SCALES])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False, loc="upper left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--draw-only", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not given.draw_only:
        data = os.environ.get("NORMALIS_DATA") or ROOT.parent / "shared" / "data"
        measure(given.results, Path(data))
    latent, lesion = read(OUT / "latent.csv"), read(OUT / "lesions.csv")
    if not lesion:
        raise SystemExit(f"{OUT}: nothing measured, and no models below {given.results}/models")
    say_missing(latent)
    write_table("network latent", latent_table(latent))
    write_table("network lesion", lesion_table(lesion))
    write_table("network passed", passed_table(lesion))
    draw(lesion)


if __name__ == "__main__":
    main()

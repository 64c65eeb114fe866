"""Is there a latent dimension to choose, if what the latent absorbs is counted too?

    python benchmarks/feature_theory.py ROOT [--cache FEATURES] [--sets kermany_cxr lgg_flair]
    python benchmarks/feature_theory.py --draw-only

ROOT holds one folder a set, in a layout that normalis knows. Features are those of `feature-knn`:
each of the network's taps scaled to length 1 at each place, averaged over places, each feature
divided by its spread over the normal training images (496 numbers an image). ``--cache`` takes
them from a folder with ``SET/{train,test}_{a,b,c,g}.npy`` (N, C, h, w) and ``test_label.npy``.

Everything is fitted on normal training images. Labels of the test are read for AUROC and to tell
whose coding rate is measured; d is not chosen, all of them are shown. Development sets.

Writes docs/data/theory_features.csv and docs/images/theory_features.png.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from normalis import models
from normalis.entropy import coding_rate_from_covariance
from normalis.loading.arrays import ImageSettings, load
from normalis.models.feature_knn import FeatureKNN
from normalis.models.inputs import to_model_input
from normalis.storage import write_csv

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE, FIGURE = DOCS / "data/theory_features.csv", DOCS / "images/theory_features.png"
COLUMNS = ("data", "quantity", "of", "d", "value", "low", "high")
SETS = ("kermany_cxr", "brain_tumor", "lgg_flair", "fundus", "breast_us_patches")
COLOURED = ("fundus",)
DIMS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 496)
NETWORK_DIMS = (4, 16, 64)
HIDDEN, EPOCHS, BATCH = 256, 80, 64
DRAWS = 200  # of a bootstrap, and of subsets of equal size
FLAT = 1e-6

Matrix = NDArray[np.float64]
Row = tuple[str, str, str, int | str, float, float | str, float | str]


class Features(NamedTuple):
    """Standardised features of one set: (N, D) each, and which test images are anomalous."""

    train: Matrix
    test: Matrix
    anomalous: NDArray[np.bool_]


# --- features ---


def computed(root: Path, name: str) -> Features:
    """Return the features of a set, by the network."""
    from feature_methods import dataset_of

    data, test = dataset_of(root, name)
    channels = 3 if name in COLOURED else 1
    model = models.build("feature-knn", image_size=128, channels=channels)
    assert isinstance(model, FeatureKNN)

    def pooled(samples: list) -> Matrix:
        pixels = load(samples, ImageSettings(image_size=128, channels=channels)).pixels
        parts = torch.from_numpy(pixels).split(64)
        return torch.cat([model.pooled(to_model_input(p)) for p in parts]).double().numpy()

    labels = np.array([bool(s.is_anomalous) for s in test])
    return standardised(pooled(data.samples), pooled(test), labels)


def cached(folder: Path) -> Features:
    """Return the features of a set whose maps lie in a folder."""

    def kept(split: str, array: NDArray) -> NDArray:
        file = folder / f"{split}_keep.npy"  # of brain_tumor: what is not leaked
        return array[np.load(file)] if file.exists() else array

    def pooled(split: str) -> Matrix:
        parts = []
        for tap in "abcg":
            maps = np.load(folder / f"{split}_{tap}.npy").astype(np.float32)
            length = np.sqrt((maps**2).sum(1, keepdims=True)) + 1e-12
            parts.append((maps / length).mean((2, 3)))
        return kept(split, np.concatenate(parts, 1).astype(np.float64))

    labels = kept("test", np.load(folder / "test_label.npy").astype(bool))
    return standardised(pooled("train"), pooled("test"), labels)


def standardised(train: Matrix, test: Matrix, anomalous: NDArray[np.bool_]) -> Features:
    mean, spread = train.mean(0), train.std(0) + FLAT
    return Features((train - mean) / spread, (test - mean) / spread, anomalous)


# --- a Gaussian, and what a latent of d of its directions leaves and absorbs ---


def gaussian_parts(f: Features) -> tuple[Matrix, Matrix]:
    """Return squared coordinates (N, D) along the principal directions, and variances (D,)."""
    values, vectors = np.linalg.eigh(ledoit_wolf(f.train)[0])
    return (f.test @ vectors[:, ::-1]) ** 2, values[::-1]


def by_dimension(f: Features) -> Iterator[tuple[str, int, Matrix]]:
    """Yield the three scores of each d.

    The likelihood is the one of probabilistic PCA (Tipping & Bishop 1999): what is left has one
    variance, the mean of the eigenvalues that are left.
    """
    squares, variances = gaussian_parts(f)
    for d in (k for k in DIMS if k <= len(variances)):
        absorbed = (squares[:, :d] / variances[:d]).sum(1)
        yield "PCA absorbed", d, absorbed
        if d < len(variances):
            left = squares[:, d:].sum(1)
            yield "PCA residual", d, left
            absorbed = absorbed + left / variances[d:].mean()
        yield "PCA likelihood", d, absorbed


def full_likelihood(f: Features) -> Matrix:
    squares, variances = gaussian_parts(f)
    return (squares / variances).sum(1)


# --- a small autoencoder ---


class Network(nn.Module):
    """D -> HIDDEN -> d -> HIDDEN -> D."""

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, d))
        self.decoder = nn.Sequential(nn.Linear(d, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, width))


def network_scores(f: Features, d: int, seed: int = 0) -> dict[str, Matrix]:
    """Return the error of a trained network, and the sum with what its latent absorbs.

    A fifth of the training images is held out to measure the error's variance and the latents'
    covariance as new normal images have them; the network never sees it.
    """
    torch.manual_seed(seed)
    train, test = (torch.from_numpy(x).float() for x in (f.train, f.test))
    held = torch.randperm(len(train)) < len(train) // 5
    network = trained(Network(train.shape[1], d), train[~held])
    with torch.no_grad():
        (z_new, left_new), (z, left) = (coded(network, x) for x in (test, train[held]))
    inside = np.linalg.inv(np.atleast_2d(ledoit_wolf(z)[0]))
    away = z_new - z.mean(0)
    absorbed = np.einsum("ni,ij,nj->n", away, inside, away)
    return {
        "MLP error": left_new,
        "MLP error + absorbed": absorbed + left_new / (left.mean() / f.train.shape[1]),
    }


def trained(network: Network, x: Tensor) -> Network:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(EPOCHS):
        for some in torch.randperm(len(x)).split(BATCH):
            loss = (network.decoder(network.encoder(x[some])) - x[some]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


def coded(network: Network, x: Tensor) -> tuple[Matrix, Matrix]:
    """Return latents (N, d) and squared errors (N,)."""
    z = network.encoder(x)
    return z.double().numpy(), (network.decoder(z) - x).square().sum(1).double().numpy()


# --- coding rate ---


def coding_rates(f: Features) -> Iterator[tuple[str, float, float, float]]:
    """Yield the coding rate of as many normal, held-out and anomalous images: mean, 95 % of draws.

    So few images say little of the rate of a population; of equal numbers they can be compared.
    """
    groups = {
        "training normal": f.train,
        "test normal": f.test[~f.anomalous],
        "test anomalous": f.test[f.anomalous],
    }
    count, draw = min(map(len, groups.values())) * 4 // 5, np.random.default_rng(0)
    for name, x in groups.items():
        found = [
            coding_rate_from_covariance(np.cov(x[draw.permutation(len(x))[:count]], rowvar=False))
            for _ in range(DRAWS // 10)
        ]
        low, high = np.quantile(found, [0.025, 0.975])
        yield name, float(np.mean(found)), float(low), float(high)


# --- table and figure ---


def auroc(f: Features, score: Matrix) -> float:
    return 100 * float(roc_auc_score(f.anomalous, score))


def interval(f: Features, score: Matrix) -> tuple[float, float]:
    """Return a 95 % bootstrap interval of the AUROC over images of each class."""
    draw, (bad, good) = np.random.default_rng(0), (score[f.anomalous], score[~f.anomalous])
    found = []
    for _ in range(DRAWS):
        one, two = draw.choice(bad, len(bad)), draw.choice(good, len(good))
        labels = np.repeat([True, False], [len(one), len(two)])
        found.append(100 * roc_auc_score(labels, np.concatenate([one, two])))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def measured(name: str, f: Features, *, networks: bool) -> Iterator[Row]:
    full = full_likelihood(f)
    yield name, "AUROC", "Gaussian likelihood", "", auroc(f, full), *interval(f, full)
    for of, d, score in by_dimension(f):
        yield name, "AUROC", of, d, auroc(f, score), "", ""
    for d in NETWORK_DIMS if networks else ():
        for of, score in network_scores(f, d).items():
            yield name, "AUROC", of, d, auroc(f, score), "", ""
    for of, value, low, high in coding_rates(f):
        yield name, "coding rate, nats", of, "", value, low, high


STYLES = {
    "PCA residual": ("#c1440e", "-", ""),
    "PCA absorbed": ("#7a8b99", "-", ""),
    "PCA likelihood": ("#1b5e8c", "-", ""),
    "MLP error": ("#e08a2c", ":", "o"),
    "MLP error + absorbed": ("#3f9c8f", ":", "s"),
}


def draw(table: list[dict[str, str]]) -> None:
    names = list(dict.fromkeys(row["data"] for row in table))
    figure, axes = plt.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for axis, name in zip(axes.flat, names, strict=False):
        draw_one(axis, name, [row for row in table if row["data"] == name])
    draw_rates(axes.flat[-1], names, [r for r in table if r["quantity"] != "AUROC"])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(FIGURE, dpi=90)


def draw_one(axis: plt.Axes, name: str, rows: list[dict[str, str]]) -> None:
    for of, (colour, line, marker) in STYLES.items():
        mine = [(int(r["d"]), float(r["value"])) for r in rows if r["of"] == of]
        if mine:
            axis.plot(*zip(*mine, strict=True), line, marker=marker, ms=4, color=colour, label=of)
    full = next(float(r["value"]) for r in rows if r["of"] == "Gaussian likelihood")
    axis.axhline(full, color="black", ls="--", lw=1, label="full Gaussian likelihood (no d)")
    axis.set(xscale="log", title=name, xlabel="d", ylabel="AUROC, %")
    axis.grid(alpha=0.3)


def draw_rates(axis: plt.Axes, names: list[str], rows: list[dict[str, str]]) -> None:
    groups = list(dict.fromkeys(r["of"] for r in rows))
    for k, group in enumerate(groups):
        values = [float(r["value"]) for r in rows if r["of"] == group]
        places = np.arange(len(names)) + 0.27 * (k - 1)
        colour = ("#7a8b99", "#1b5e8c", "#c1440e")[k]
        axis.bar(places, values, 0.25, label=group, color=colour)
    axis.set(title="coding rate of features", ylabel="nats, equal numbers of images")
    axis.set_xticks(np.arange(len(names)), [n.split("_")[0] for n in names])
    axis.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--no-networks", action="store_true")
    parser.add_argument("--draw-only", action="store_true")
    given = parser.parse_args()
    if not given.draw_only:
        rows: list[Row] = []
        for name in given.sets:
            f = cached(given.cache / name) if given.cache else computed(given.root, name)
            rows += measured(name, f, networks=not given.no_networks)
            print(name, "measured", flush=True)
        shown = [[f"{v:.2f}" if isinstance(v, float) else v for v in row] for row in rows]
        write_csv(TABLE, COLUMNS, shown)
    with TABLE.open(newline="", encoding="utf-8") as stream:
        draw(list(csv.DictReader(stream)))


if __name__ == "__main__":
    main()

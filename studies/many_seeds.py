"""What more seeds say than records have: of the default, of a nested latent, of a rate.

    python studies/many_seeds.py --data ROOT [--results results] [--device auto] [--only PART]
        [--draw-only]

Three parts, each a file of ``results/many_seeds``, trained by the recipe ``fast`` in float32:

* ``members``: 24 AE-U with the options that `fit` sets, d = 16, on the images of the study
  (docs/reference/selection_study.md); AUROC of each by ``median``, and of k of them together, in
  groups that share no member: the mean of their maps, of the logarithms of these or of their
  scores, and the error of their mean reconstruction over the variance of the mixture.
* ``nested``: the AE at every d, and one nested latent read at every d, of 1.7 times the steps.
* ``rates``: what `fit --method rate-ae --option rate=16` trains, for six draws of the images held
  out times two seeds, without and with ``unbiased``; the rate of normal images that were
  neither trained on nor watched.

On one H100 eight to fourteen processes side by side took 20 minutes (`members` also by the recipe
``paper`` there, for one set); on two cores it would be two days. What a file holds is not done
again. Rewrites three tables of docs/reference/selection_study.md.
"""

import argparse
import csv
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normalis import models, scorers
from normalis.duplicates import likeness_groups
from normalis.entropy import coding_rate_from_covariance, coding_rate_of_groups
from normalis.loading.arrays import ImageSettings
from normalis.loading.held_out import normal_images, split, units_of
from normalis.metrics import auroc
from normalis.models.inputs import as_tensor, to_model_input
from normalis.research.data import Store
from normalis.research.experiments import Subset
from normalis.scorers.base import reduce_map
from normalis.scorers.median import median_filter
from normalis.storage import write_csv
from normalis.training.loop import Training, pick_device
from normalis.training.settings import TrainingSettings, settings_for
from pages import fill
from seeds import source

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "selection_study.md"
#: data set -> (its part in the study, epochs of the recipe ``fast``, of the nested latent)
SETS = {
    "kermany_cxr": (Subset(drop_train_twins=0.95, validation_share=0.2), 83, 141),
    "lgg_flair": (Subset(position=(0.4, 0.85), validation_share=0.2), 83, 141),
    "brain_tumor": (Subset(drop_train_twins=0.95, validation_share=0.2), 200, 340),
}
LATENTS = (1, 2, 4, 8, 16, 32, 64, 128)
TOGETHER = (1, 2, 3, 4, 6, 8, 12)
RATE, DRAWS, SEEDS = 16.0, 6, 2
COLUMNS = {
    "members": ("dataset", "recipe", "together", "how", "group", "auroc"),
    "nested": ("dataset", "method", "latent_dim", "reading", "seed", "auroc"),
    "rates": (
        "dataset",
        "draw",
        "seed",
        "unbiased",
        "images",
        "groups",
        "covariance",
        "rate",
        "low",
        "high",
    ),
}


def images(data: Path, results: Path, dataset: str) -> tuple[Any, Any, Any]:
    """Return training pixels, test pixels and labels; of copies in the test the first."""
    store, (subset, _, _) = Store(results, data), SETS[dataset]
    arrays = store.get(store.fingerprints(dataset, {}, subset)[0])
    test = arrays.take(arrays.split == "test")
    if (test.patient_id == "").any():
        first = np.unique(likeness_groups(test.pixels), return_index=True)[1]
        test = test.take(np.isin(np.arange(len(test.split)), first))
    return arrays.of("train"), test.pixels, test.is_anomalous


def fast(epochs: int) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, recipe="fast", learning_rate=4e-3, precision="float32")


def trained(built: list[Any], seeds: list[int], pixels: Any, **given: Any) -> list[Any]:
    training = Training(built, as_tensor(pixels), seeds=seeds, **given)
    training.run()
    return [member.model.eval() for member in training.members]


@torch.no_grad()
def scores(model: Any, x: Tensor, reading: str) -> Any:
    scorer = scorers.build(reading)
    return torch.cat([scorer.anomaly_score(model, part) for part in x.split(256)]).cpu().numpy()


@torch.no_grad()
def together(chosen: list[Any], x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the scores of some networks by each way of joining them, (N,)."""
    pairs = [model.decode_both(model.encode(x)) for model in chosen]
    mean, var = torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]).exp()
    maps = ((x - mean).square() / var).mean(2)

    def by_median(anomaly_map: Tensor) -> Tensor:
        return reduce_map(median_filter(anomaly_map, 5), "top:0.02")

    yield "maps", by_median(maps.mean(0))
    if len(chosen) > 1:
        yield "log maps", by_median(maps.clamp(min=1e-6).log().mean(0).exp())
        yield "scores", torch.stack([by_median(m).log() for m in maps]).mean(0)
        spread = var.mean(0) + mean.var(0, unbiased=False)
        yield "mixture", by_median(((x - mean.mean(0)).square() / spread).mean(1))


def members(data: Path, results: Path, device: torch.device, dataset: str) -> list[tuple[Any, ...]]:
    pixels, test, sick = images(data, results, dataset)
    seeds = list(range(24))
    options = models.model_class("ae-u").default_options
    built = [models.build("ae-u", seed=s, **options) for s in seeds]
    settings = fast(SETS[dataset][1])
    networks = trained(built, seeds, pixels, settings=settings, device=device)
    parts = to_model_input(as_tensor(test)).to(device).split(256)
    rows = []
    for k in TOGETHER:
        for group in range(len(networks) // k):
            found = defaultdict(list)
            for x in parts:
                for how, some in together(networks[group * k : group * k + k], x):
                    found[how].append(some.cpu())
            for how, several in found.items():
                value = auroc(torch.cat(several).numpy(), sick)
                rows.append((dataset, "fast", k, how, group, f"{value:.5f}"))
    return rows


def nested(data: Path, results: Path, device: torch.device, dataset: str) -> list[tuple[Any, ...]]:
    pixels, test, sick = images(data, results, dataset)
    x = to_model_input(as_tensor(test)).to(device)
    _, epochs, longer = SETS[dataset]
    rows = []

    def note(model: Any, method: str, latent_dim: int, seed: int) -> None:
        for reading in ("native", "median"):
            value = auroc(scores(model, x, reading), sick)
            rows.append((dataset, method, latent_dim, reading, seed, f"{value:.5f}"))

    for seed in range(6):
        built = [models.build("ae", seed=seed, latent_dim=d) for d in LATENTS]
        given: dict[str, Any] = {"settings": fast(epochs), "device": device}
        for d, model in zip(LATENTS, trained(built, [seed] * 8, pixels, **given), strict=True):
            note(model, "ae", d, seed)
    for seed in range(8):
        model: Any = models.build("nested-ae", seed=seed, latent_dim=128, balance=True)
        trained([model], [seed], pixels, settings=fast(longer), device=device)
        for d in LATENTS:
            note(model.at(d), "nested-ae", d, seed)
    return rows


def rates(data: Path, results: Path, device: torch.device, dataset: str) -> list[tuple[Any, ...]]:
    cells = [(d, s, u) for d in range(DRAWS) for s in range(SEEDS) for u in (False, True)]
    return [rate_of_a_fit(data, device, dataset, *cell) for cell in cells]


def rate_of_a_fit(
    data: Path, device: torch.device, dataset: str, draw: int, seed: int, unbiased: bool
) -> tuple[Any, ...]:
    found = normal_images(source(data, dataset), ImageSettings(), hold_out=0.2, seed=draw)
    assert found.held is not None
    watched, left = split(found.held, 0.5, draw)
    options: dict[str, Any] = {"rate": RATE, "held_out": True, "damping": 0.1, "unbiased": unbiased}
    (model,) = trained(
        [models.build("rate-ae", seed=seed, **options)],
        [seed],
        found.train.pixels,
        settings=settings_for("fast", n_images=len(found.train.rows), precision="float32"),
        device=device,
        held=as_tensor(watched.pixels),
    )
    with torch.no_grad():
        x = to_model_input(as_tensor(left.pixels)).to(device)
        codes = torch.cat([model.encode(part) for part in x.split(256)]).cpu().numpy()
    fit = (dataset, draw, seed, int(unbiased))
    return rate_row(fit, codes.astype(np.float64), units_of(left).member)


def rate_row(fit: tuple[Any, ...], codes: Any, groups: Any) -> tuple[Any, ...]:
    plain = coding_rate_from_covariance(np.cov(codes, rowvar=False))
    rate = coding_rate_of_groups(codes, groups)
    nats = [f"{v:.3f}" for v in (plain, rate.value, rate.low, rate.high)]
    return (*fit, len(codes), len(np.unique(groups)), *nats)


PARTS: dict[str, Callable[[Path, Path, torch.device, str], list[tuple[Any, ...]]]] = {
    "members": members,
    "nested": nested,
    "rates": rates,
}


def read(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def measure(data: Path, results: Path, device: torch.device, only: str | None) -> None:
    """Train and score what the files do not hold, one data set of one part after the other."""
    for part, run in PARTS.items():
        if only not in (None, part):
            continue
        file = results / "many_seeds" / f"{part}.csv"
        rows = [tuple(row.values()) for row in read(file)]
        for dataset in SETS:
            if any(row[0] == dataset for row in rows):
                continue
            rows += run(data, results, device, dataset)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_csv(file, COLUMNS[part], rows)
            print(part, dataset, flush=True)


def members_table(rows: list[dict[str, str]]) -> str:
    names = {
        "maps": "mean map",
        "log maps": "mean of log maps",
        "scores": "mean of log scores",
        "mixture": "mixture",
    }
    lines = [
        f"| set | recipe | joined by | {' | '.join(map(str, TOGETHER))} |",
        f"| --- | --- | --- | {' | '.join('---:' for _ in TOGETHER)} |",
    ]
    for dataset, recipe in dict.fromkeys((r["dataset"], r["recipe"]) for r in rows):
        for how, name in names.items():
            cells = []
            for k in TOGETHER:
                # One network is the same by each way.
                wanted = (dataset, recipe, str(k), how if k > 1 else "maps")
                values = values_of(rows, wanted, ("dataset", "recipe", "together", "how"))
                cells.append(f"{values.mean():.1f} ± {values.std():.1f}")
            lines.append(f"| {dataset} | {recipe} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def values_of(rows: list[dict[str, str]], wanted: tuple[str, ...], by: tuple[str, ...]) -> Any:
    chosen = [r for r in rows if tuple(r[c] for c in by) == wanted]
    return 100 * np.array([float(r["auroc"]) for r in chosen])


def nested_table(rows: list[dict[str, str]]) -> str:
    by = ("dataset", "method", "latent_dim", "reading")
    head = " | ".join(map(str, LATENTS))
    lines = [
        f"| set | reading | method | {head} | mean |",
        f"| --- | --- | --- | {'---: | ' * len(LATENTS)}---: |",
    ]
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        for reading in ("native", "median"):
            each = {
                m: [values_of(rows, (dataset, m, str(d), reading), by) for d in LATENTS]
                for m in ("ae", "nested-ae")
            }
            for method, of in each.items():
                cells = [f"{v.mean():.1f}" for v in of]
                named = f"{'one nested' if method != 'ae' else 'separate'}, {len(of[0])} seeds"
                mean = np.mean([v.mean() for v in of])
                lines.append(
                    f"| {dataset} | {reading} | {named} | {' | '.join(cells)} | {mean:.1f} |"
                )
            gain = [b.mean() - a.mean() for a, b in zip(*each.values(), strict=True)]
            error = [
                (a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) ** 0.5
                for a, b in zip(*each.values(), strict=True)
            ]
            cells = [f"{g:+.1f} ± {e:.1f}" for g, e in zip(gain, error, strict=True)]
            lines.append(
                f"| {dataset} | {reading} | **difference** | {' | '.join(cells)} "
                f"| {np.mean(gain):+.1f} |"
            )
    return "\n".join(lines)


def rates_table(rows: list[dict[str, str]]) -> str:
    lines = [
        "| set | watched by | fits | groups measured | plain covariance | bias removed "
        "| least to most | half a 95 % interval | 16 inside | within 5 % |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for dataset, unbiased in sorted({(r["dataset"], r["unbiased"]) for r in rows}):
        mine = [r for r in rows if (r["dataset"], r["unbiased"]) == (dataset, unbiased)]
        plain, rate, low, high, groups = (
            np.array([float(r[c]) for r in mine])
            for c in ("covariance", "rate", "low", "high", "groups")
        )
        inside, near = (low <= RATE) & (high >= RATE), abs(rate / RATE - 1) < 0.05
        by = "rate, bias removed" if int(unbiased) else "ratio to training images"
        lines.append(
            f"| {dataset} | {by} | {len(mine)} | {groups.mean():.0f} | {plain.mean():.1f} "
            f"| {rate.mean():.1f} | {rate.min():.1f} to {rate.max():.1f} "
            f"| {(high - low).mean() / 2:.1f} | {inside.sum()} | {near.sum()} |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[list[dict[str, str]]], str]] = {
    "members": members_table,
    "nested": nested_table,
    "rates": rates_table,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--draw-only", action="store_true")
    given = parser.parse_args()
    if not given.draw_only:
        if given.data is None:
            parser.error("needs --data, or --draw-only")
        measure(given.data, given.results, pick_device(given.device), given.only)
    folder = given.results / "many_seeds"
    found = {part: read(folder / f"{part}.csv") for part in PARTS}
    fill(PAGE, {f"many {part}": TABLES[part](rows) for part, rows in found.items() if rows})


if __name__ == "__main__":
    main()

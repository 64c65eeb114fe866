"""The only training loop: fits a stack of models on the same normal images together.

The images lie on the device once, as they were read (``uint8`` where they can); batches are drawn
by index; nothing global is changed. Each model has its own order of batches, its own noise and its
own optimiser, all from its own seed, so that a model in a stack is the model that would have come
out alone, and a resumed training is the training that was interrupted.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normalis.errors import DataError, SettingsError, TrainingError
from normalis.errors.arguments import shown
from normalis.models.base import AnomalyModel, Autoencoder, CompositeModel, DirectModel
from normalis.models.inputs import to_model_input
from normalis.training.keeping import Best, is_looked_at, pseudo_anomalies, watched
from normalis.training.member import Member, autocast, load_slots, one_cycle, step_of
from normalis.training.settings import TrainingSettings
from normalis.training.stack import Stack, groups
from normalis.training.threads import choose_threads, threads

__all__ = ["Progress", "Training", "batches", "fit", "fit_parts", "pick_device", "train"]

_log = logging.getLogger("normalis.training")

_WATCHED = 2000  # training images that a method looks at beside held-out ones


@dataclass(frozen=True)
class Progress:
    """What a callback hears after each epoch.

    Attributes:
        epoch: epochs finished.
        epochs: epochs in all.
        losses: mean of each loss term over the epoch, averaged over the stack.
        elapsed_s: seconds since training began or was resumed.
    """

    epoch: int
    epochs: int
    losses: dict[str, float]
    elapsed_s: float


def pick_device(device: str = "auto") -> torch.device:
    """Return a torch device; ``auto`` takes a GPU where there is one."""
    if not isinstance(device, str):
        raise SettingsError(f"device must be auto, cpu or cuda[:N], got {shown(device)}")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingsError(f"device must be auto, cpu or cuda[:N], got {device!r}") from error
    if picked.type not in ("cpu", "cuda"):
        raise SettingsError(f"device must be auto, cpu or cuda[:N], got {device!r}")
    if picked.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"device {device!r} was asked for and no CUDA device is available")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"device {device!r} was asked for and there are {torch.cuda.device_count()}, from 0"
        )
    return picked


def batches(n: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return a random partition of n images into batches of at least two.

    A remainder of one image joins the batch before it: batch normalisation has no variance to
    divide by with one image.
    """
    parts = list(torch.randperm(n, generator=generator).split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        last = parts.pop()
        parts[-1] = torch.cat([parts[-1], last])
    return parts


class Training:
    """The training of a stack of models, which can be stopped and resumed after any epoch.

    Args:
        models: autoencoders for the same image size; they are changed in place.
        pixels: (N, C, S, S) normal images, ``uint8`` or float with nominal range [0, 1].
        settings: shared by the stack.
        seeds: one seed per model.
        device: where to train.
        stacked: whether models that allow it are computed as one (`normalis.training.stack`);
            None does so on a GPU. The numbers are those of models trained one by one, up to
            rounding.
        rows: for each model the indices of the images that it is trained on, as for folds; None
            for all images. Such models are trained one after the other.
        held: (M, C, S, S) normal images for methods that watch some they are not trained on
            (`Autoencoder.needs_held_out`), and for ``keep_epoch``.

    Raises:
        DataError: if there are fewer than two images to train on, or to watch where they are
            needed.
    """

    def __init__(
        self,
        models: Sequence[Autoencoder],
        pixels: Tensor,
        *,
        settings: TrainingSettings,
        seeds: Sequence[int],
        device: str | torch.device = "auto",
        stacked: bool | None = None,
        rows: Sequence[Tensor] | None = None,
        held: Tensor | None = None,
    ) -> None:
        fewest = min([len(pixels), *map(len, rows or [])])
        if fewest < 2:
            raise DataError(
                f"training needs at least 2 normal images, got {fewest}: "
                "batch normalisation has no variance with one"
            )
        self.device = pick_device(device) if isinstance(device, str) else device
        self.pixels = pixels.to(self.device)
        watching = settings.looks or any(model.needs_held_out for model in models)
        if watching and (held is None or len(held) < 2):
            raise DataError(
                "a training that watches held-out normal images needs at least 2, got "
                f"{0 if held is None else len(held)}: hold some out (calibration split, or a "
                "validation_share), or do without keep_epoch and the method's option held_out"
            )
        self.held = held.to(self.device) if watching and held is not None else None
        self.settings = settings
        self.epoch = 0
        self.seconds = 0.0
        self.threads: int | None = None  # of a CPU; chosen by `run`, kept by a checkpoint
        # Channels-last convolutions are a third faster on CPUs (docs/reference/performance.md).
        for model in models:
            model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        parts: Sequence[Tensor | None] = [None] * len(models) if rows is None else rows
        self.members = [
            Member(model, seed, settings, part)
            for model, seed, part in zip(models, seeds, parts, strict=True)
        ]
        self._looked_at: tuple[Tensor, Tensor] | None = None
        if settings.looks and self.held is not None:
            normal = self._input(watched(self.held))
            odd = pseudo_anomalies(normal).contiguous(memory_format=torch.channels_last)
            self._looked_at = normal, odd
        wanted = self.device.type == "cuda" if stacked is None else stacked
        self.stacked = wanted and rows is None
        self._stacks: list[tuple[Stack, list[Member]]] = []

    def run(self, callback: Callable[[Progress], None] | None = None) -> None:
        """Train to the last epoch, calling back after each."""
        started = time.perf_counter()
        for member in self.members:
            member.model.train()
        self._stacks = self._make_stacks()
        self._tell_of_idle_phases()
        if self.threads is None and self.device.type == "cpu":
            self.threads = choose_threads(self._trial())
        try:
            while self.epoch < self.settings.epochs:
                epoch_started = time.perf_counter()
                with threads(self.threads or torch.get_num_threads()):
                    self._train_one_epoch()
                    self._look()
                self.epoch += 1
                self.seconds += time.perf_counter() - epoch_started
                _log.info("epoch %d of %d", self.epoch, self.settings.epochs)
                if callback:
                    means = _average([member.history[-1] for member in self.members])
                    elapsed = time.perf_counter() - started
                    callback(Progress(self.epoch, self.settings.epochs, means, elapsed))
        finally:
            self._hand_back()
            self._stacks = []
        for member in self.members:
            if member.best.state:
                member.model.load_state_dict(member.best.state)
                _log.info("kept the model of epoch %d", member.best.epoch)
            member.model.eval()
            if type(member.model).finish is not Autoencoder.finish:
                member.model.finish(self._input(self._sample(member)))

    def _look(self) -> None:
        """After an epoch, see which of the models are the best that they have been."""
        if self._looked_at is None:
            return
        over, epochs = self.epoch + 1, self.settings.epochs
        due = [m for m in self.members if is_looked_at(over, epochs, m.begins)]
        if due:
            self._hand_back()
        for member in due:
            member.look(*self._looked_at, over)

    def _trial(self) -> Callable[[], None]:
        """Return what does the work of one step on a copy, so that nothing is learned from it."""
        member = self.members[0]
        model = copy.deepcopy(member.model)
        generator = torch.Generator().manual_seed(0)
        x = self._input(self.pixels[: self.settings.batch_size])
        if len(x) < 2:
            x = x.expand(2, -1, -1, -1)

        done = self.epoch / self.settings.epochs

        def step() -> None:
            for phase in model.phases():
                for _ in range(phase.repeat if phase.has_turn(done) else 0):
                    draws = {k: v.to(x.device) for k, v in model.draw(x, generator).items()}
                    step_of(phase, x, draws, self.settings.precision)

        return step

    def _tell_of_idle_phases(self) -> None:
        """Warn of phases whose span is so short that they never step."""
        for member in self.members:
            n = len(self.pixels) if member.rows is None else len(member.rows)
            epochs = self.settings.epochs
            per_epoch = len(batches(n, self.settings.batch_size, torch.Generator()))
            turns = [(e + i / per_epoch) / epochs for e in range(epochs) for i in range(per_epoch)]
            for phase in member.phases:
                if not any(map(phase.has_turn, turns)):
                    _log.warning(
                        "%s: the phase %r, from %g to %g of the training, has none of its %d "
                        "steps, so that what it trains stays as it was drawn: take more epochs",
                        type(member.model).__name__, phase.name.strip(), *phase.span, len(turns),
                    )  # fmt: skip

    def _make_stacks(self) -> list[tuple[Stack, list[Member]]]:
        if not self.stacked:
            return []
        parts = [[self.members[i] for i in g] for g in groups([m.model for m in self.members])]
        rate = self.settings.learning_rate
        return [
            (
                Stack(
                    [m.model for m in p],
                    [m.optimisers[0] for m in p],
                    learning_rate=rate,
                    clip=p[0].phases[0].clip,
                ),
                p,
            )
            for p in parts
            if len(p) > 1
        ]

    def _hand_back(self) -> None:
        for stack, _ in self._stacks:
            stack.hand_back()

    def _train_one_epoch(self) -> None:
        for stack, members in self._stacks:
            self._train_stack(stack, members)
        together = {id(member) for _, members in self._stacks for member in members}
        for member in self.members:
            if id(member) not in together:
                self._train_epoch(member)
            if self.held is not None and member.model.needs_held_out:
                member.model.watch(self._input(self.held), self._input(self._sample(member)))

    def _sample(self, member: Member) -> Tensor:
        """Return at most `_WATCHED` of the images that a model is trained on, evenly spread."""
        rows = torch.arange(len(self.pixels)) if member.rows is None else member.rows
        return self.pixels[rows[:: -(-len(rows) // _WATCHED)].to(self.device)]

    def _input(self, pixels: Tensor) -> Tensor:
        x = to_model_input(pixels, standardize=self.settings.standardize)
        return x.contiguous(memory_format=torch.channels_last)

    def _train_stack(self, stack: Stack, members: Sequence[Member]) -> None:
        n, size = len(self.pixels), self.settings.batch_size
        parts = zip(*(batches(n, size, m.generator) for m in members), strict=True)
        n_parts = len(range(0, n, size))
        totals: dict[str, Tensor] = {}
        for i, indices in enumerate(parts):
            done = (self.epoch + i / n_parts) / self.settings.epochs
            if self.settings.recipe == "fast":
                stack.set_rate(self.settings.learning_rate * one_cycle(done))
            for member in members:
                member.set_rate(done)
            index = torch.stack(indices)
            x = to_model_input(
                self.pixels[index.flatten().to(self.device)],
                standardize=self.settings.standardize,
            ).unflatten(0, index.shape)
            drawn = [m.model.draw(x[j], m.generator) for j, m in enumerate(members)]
            draws = {k: torch.stack([d[k] for d in drawn]).to(self.device) for k in drawn[0]}
            context = autocast(self.settings.precision, self.device)
            for name, value in stack.step(x, draws, context).items():
                share = value * (index.shape[1] / n)
                totals[name] = totals[name] + share if name in totals else share
        columns = {name: value.tolist() for name, value in totals.items()}
        for j, member in enumerate(members):
            means = {name: column[j] for name, column in columns.items()}
            _check_finite(means, self.epoch + 1, self.settings)
            member.history.append(means)

    def _train_epoch(self, member: Member) -> None:
        n = len(self.pixels) if member.rows is None else len(member.rows)
        parts = batches(n, self.settings.batch_size, member.generator)
        totals: dict[str, Tensor] = {}
        seen: dict[str, int] = {}  # images by loss: a phase may begin or end within an epoch
        for i, index in enumerate(parts):
            done = (self.epoch + i / len(parts)) / self.settings.epochs
            chosen = index if member.rows is None else member.rows[index]
            x = self._input(self.pixels[chosen.to(self.device)])
            for name, value in member.step(x, done).items():
                share = value * (len(index) / n)
                totals[name] = totals[name] + share if name in totals else share
                seen[name] = seen.get(name, 0) + len(index)
        means = {name: float(value) * (n / seen[name]) for name, value in totals.items()}
        _check_finite(means, self.epoch + 1, self.settings)
        member.history.append(means)

    def state(self) -> dict[str, Tensor]:
        """Return everything that a resumed training needs, as named tensors."""
        self._hand_back()
        state: dict[str, Tensor] = {}
        for i, member in enumerate(self.members):
            state |= {f"{i}.model.{k}": v for k, v in member.model.state_dict().items()}
            state |= {f"{i}.best.{k}": v for k, v in member.best.state.items()}
            state[f"{i}.generator"] = member.generator.get_state()
            for j, optimiser in enumerate(member.optimisers):
                for index, slots in optimiser.state_dict()["state"].items():
                    state |= {f"{i}.optimiser.{j}.{index}.{k}": v for k, v in slots.items()}
        return state

    @property
    def history(self) -> list[dict[str, float]]:
        """The losses by epoch, averaged over the models."""
        return [_average(epoch) for epoch in zip(*(m.history for m in self.members), strict=True)]

    def progress(self) -> dict[str, Any]:
        """Return the plain part of the state: the epoch and the losses so far."""
        histories = [member.history for member in self.members]
        best = [member.best.progress() for member in self.members] if self.settings.looks else []
        return {
            **({"best": best} if best else {}),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "threads": self.threads,  # another number rounds differently in the last digit
            "history": histories,
        }

    def resume(self, state: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Continue from `state` and `progress` of an interrupted training of the same stack."""
        for i, member in enumerate(self.members):
            member.model.load_state_dict(_below(f"{i}.model.", state))
            if progress.get("best"):
                member.best = Best(**progress["best"][i], state=_below(f"{i}.best.", state))
            member.generator.set_state(state[f"{i}.generator"].cpu())
            member.history = progress["history"][i]
            for j, optimiser in enumerate(member.optimisers):
                load_slots(optimiser, state, f"{i}.optimiser.{j}.")
        self.epoch, self.seconds = progress["epoch"], progress["seconds"]
        self.threads = progress.get("threads")


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _average(means: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for m in means for name in m)
    return {n: sum(m[n] for m in means if n in m) / sum(n in m for m in means) for n in names}


def _check_finite(means: dict[str, float], epoch: int, settings: TrainingSettings) -> None:
    bad = [f"{name} = {value}" for name, value in means.items() if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"losses must be finite, got {', '.join(bad)} in epoch {epoch}: try a learning rate "
            f"below {settings.learning_rate:g} or precision float32 (now {settings.precision})"
        )


def train(
    models: Sequence[Autoencoder],
    pixels: Tensor,
    *,
    settings: TrainingSettings,
    seeds: Sequence[int],
    device: str | torch.device = "auto",
    rows: Sequence[Tensor] | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Training:
    """Train a stack of models on normal images; see `Training` for the arguments."""
    training = Training(models, pixels, settings=settings, seeds=seeds, device=device, rows=rows)
    training.run(callback)
    return training


def fit(
    model: AnomalyModel,
    pixels: Tensor,
    *,
    settings: TrainingSettings,
    seed: int = 0,
    device: str | torch.device = "auto",
    callback: Callable[[Progress], None] | None = None,
) -> list[dict[str, float]]:
    """Fit one model of either kind on normal images; return the losses by epoch.

    Args:
        model: changed in place.
        pixels: (N, C, S, S) normal images.
        settings: for what is trained; of a `DirectModel` only ``standardize`` matters.
        seed: of the order of batches and the noise.
        device: where to fit.
        callback: called after each epoch.
    """
    if isinstance(model, Autoencoder):
        training = train(
            [model], pixels, settings=settings, seeds=[seed], device=device, callback=callback
        )
        return training.members[0].history
    place = pick_device(device) if isinstance(device, str) else device
    if isinstance(model, CompositeModel):
        given: dict[str, Any] = {"settings": settings, "seed": seed, "callback": callback}
        fit_parts(model, pixels, lambda part, seen, _: fit(part, seen, device=place, **given))
        return []
    if not isinstance(model, DirectModel):
        raise SettingsError(
            f"a method must be an Autoencoder or a DirectModel, got {type(model).__name__}"
        )
    model.fit(to_model_input(pixels.to(place), standardize=settings.standardize), seed=seed)
    return []


def fit_parts(
    model: CompositeModel, pixels: Tensor, fit_one: Callable[[AnomalyModel, Tensor, str], object]
) -> None:
    """Fit the parts of a model one by one; one that cannot be fitted is left out with its reason.

    Args:
        model: changed in place.
        pixels: (N, C, S, S) normal images.
        fit_one: called with a part, the images as it sees them, and its name.

    Raises:
        DataError: if no part can be fitted.
    """
    for name, part in list(model.parts().items()):
        try:
            fit_one(part, _pixels_of_part(model, name, pixels), name)
        except (DataError, TrainingError) as error:
            model.leave_out(name, str(error))


def _pixels_of_part(model: CompositeModel, name: str, pixels: Tensor) -> Tensor:
    """Return images at the size that a part sees, of the same type, in little memory."""
    if model.parts()[name].settings.image_size == pixels.shape[-1]:
        return pixels
    parts = []
    for some in pixels.split(_WATCHED):
        seen = model.seen_by_part(name, some.float())
        whole = pixels.dtype == torch.uint8
        parts.append(seen.round().clamp(0, 255).to(torch.uint8) if whole else seen)
    return torch.cat(parts)

"""Scores and maps computed by onnxruntime instead of PyTorch, on CPUs (extra ``onnx``).

::

    x (B, C, S, S) -> anomaly_score (B,), anomaly_map (B, S, S)      float32, any batch size B

A model and its scorer are traced together; to the rest of the package the result is a scorer, so
that scoring, outputs and reports work as they do with PyTorch. What comes before (decoding,
resizing, the intensity rule, standardisation) and reconstructions for pictures stay as they are.

p-values keep their meaning: the held-out normal images were scored with PyTorch, and both engines
agree to `TOLERANCE`, which is checked when one is built. A p-value can differ only for an image
whose score lies within that distance of a held-out one, and then by the step of one image,
1 / (K + 1).

Tracing takes seconds, a constant price that only large archives earn back
(docs/reference/performance.md).

Reference: `onnxruntime <https://onnxruntime.ai/docs/api/python/api_summary.html>`_.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from normalis.engines.export import trace
from normalis.errors import SettingsError
from normalis.errors.extras import require
from normalis.fitted import fitted_of
from normalis.models.base import AnomalyModel
from normalis.scorers.base import Scorer

if TYPE_CHECKING:
    from normalis.detector import AnomalyDetector
    from normalis.fitted import FittedDetector

__all__ = ["ENGINES", "TOLERANCE", "OnnxScorer", "on_engine"]

#: What computes scores; the first is the default.
ENGINES = ("torch", "onnx")
#: Largest difference of scores from PyTorch, as a share of the largest, with which they are used.
#: On a processor without AVX-512 SSIM, the most sensitive reading, differs by 1.3e-5.
TOLERANCE = 2e-5
#: The same of maps. Single pixels of structural similarity divide small numbers.
MAP_TOLERANCE = 1e-4

_OUTPUTS = ("anomaly_score", "anomaly_map")


def on_engine(detector: AnomalyDetector | FittedDetector, engine: str = "onnx") -> FittedDetector:
    """Return a detector that scores with another engine; the one given is left as it is.

    Args:
        detector: fitted.
        engine: ``onnx``, on the CPU, or ``torch``, which is what every detector starts with.

    Raises:
        MissingExtraError: without the extra ``onnx``.
        SettingsError: if the engine is unknown or cannot compute what the detector does, or a GPU
            was asked for.
    """
    if engine not in ENGINES:
        raise SettingsError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    fitted = fitted_of(detector)
    if engine == "torch":
        return fitted
    device = fitted.params["device"]
    if device not in ("auto", "cpu"):
        raise SettingsError(f"engine onnx computes on the CPU, got device={device!r}")
    models = tuple(_on_cpu(model) for model in fitted.models)
    pairs = zip(models, fitted.scorers, strict=True)
    scorers = tuple(OnnxScorer(model, scorer) for model, scorer in pairs)
    return replace(fitted, device=torch.device("cpu"), models=models, scorers=scorers)


class OnnxScorer(Scorer):
    """Another scorer's reading of one model, computed by onnxruntime.

    Args:
        model: fitted, on the CPU.
        scorer: how it is read; fitted if it needs to be.

    Raises:
        MissingExtraError: without the extra ``onnx``.
        SettingsError: if the two cannot be traced, or if the result differs from PyTorch's.
    """

    def __init__(self, model: AnomalyModel, scorer: Scorer) -> None:
        super().__init__(scorer.settings)
        gradients = "it takes gradients while it scores" if scorer.needs_gradients else ""
        if why := gradients or model.not_exportable:
            raise SettingsError(
                f"engine onnx cannot compute {_names(model, scorer)}: {why}, which an ONNX file "
                "does not hold: use engine torch"
            )
        runtime = _packages()
        scorer.check(model)
        self.model, self.scorer = model, scorer
        self._file = _traced(model, scorer)
        self._session = _start(runtime, self._file)
        self._check()

    def anomaly_map(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the scorer's map (B, H, W)."""
        return self._run(model, x, "anomaly_map")[0]

    def anomaly_score(self, model: AnomalyModel, x: Tensor) -> Tensor:
        """Return the scorer's score (B,)."""
        return self._run(model, x, "anomaly_score")[0]

    def read(
        self, model: AnomalyModel, x: Tensor, *, maps: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Return scores and maps, in one pass."""
        scores, *shown = self._run(model, x, *_OUTPUTS[: 1 + maps])
        return scores, shown[0] if shown else None

    def state(self) -> dict[str, Tensor]:
        """Return the scorer's fitted arrays."""
        return self.scorer.state()

    def _run(self, model: AnomalyModel, x: Tensor, *outputs: str) -> list[Tensor]:
        if model is not self.model:
            raise SettingsError("this engine computes the model that it was built from, no other")
        # The layout that PyTorch prefers is not the one that ONNX means.
        given = {"x": np.ascontiguousarray(x.numpy())}
        return [torch.from_numpy(found) for found in self._session.run(list(outputs), given)]

    def _check(self) -> None:
        """Compare with PyTorch on generated images.

        Raises:
            SettingsError: if scores or maps differ by more than their tolerance.
        """
        for count in (1, 3):
            x = _images(self.model, count)
            with torch.inference_mode():
                expected = self.scorer.read(self.model, x)
            found = self.read(self.model, x)
            for a, b, most in zip(found, expected, (TOLERANCE, MAP_TOLERANCE), strict=True):
                if not (differs := _difference(a, b)) <= most:
                    raise SettingsError(
                        f"engine onnx must agree with PyTorch to {most:g}, but differs by "
                        f"{differs:.2g} for {_names(self.model, self.scorer)}: use engine torch"
                    )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the session, which cannot be copied or pickled."""
        return {k: v for k, v in self.__dict__.items() if k != "_session"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._session = _start(_packages(), self._file)


class _Reading(nn.Module):
    """Score and map of a batch, as one computation."""

    def __init__(self, model: AnomalyModel, scorer: Scorer) -> None:
        super().__init__()
        self.model, self.scorer = model, scorer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.scorer.read(self.model, x)


def _packages() -> Any:
    for package in ("onnx", "onnxscript"):
        require(package, extra="onnx", why="engine onnx")
    return require("onnxruntime", extra="onnx", why="engine onnx")


def _on_cpu(model: AnomalyModel) -> Any:
    moved: Any = copy.deepcopy(model)
    moved = moved.to("cpu")
    return moved.eval() if isinstance(moved, nn.Module) else moved


def _traced(model: AnomalyModel, scorer: Scorer) -> bytes:
    try:
        program = trace(_Reading(model, scorer).eval(), model, _OUTPUTS)
        return bytes(program.model_proto.SerializeToString())
    except SettingsError:  # the method says why
        raise
    except Exception as error:  # exporters raise almost anything
        raise SettingsError(
            f"engine onnx cannot compute {_names(model, scorer)}, which torch.onnx does not "
            f"translate ({type(error).__name__}): use engine torch"
        ) from error


def _names(model: AnomalyModel, scorer: Scorer) -> str:
    return f"method {type(model).__name__} read by {type(scorer).__name__}"


def _start(runtime: Any, file: bytes) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # batches are computed side by side: normalis.scoring
    options.log_severity_level = 3
    return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _images(model: AnomalyModel, count: int) -> Tensor:
    """Return images with coarse and fine structure in [-1, 1]."""
    size, channels = model.settings.image_size, model.settings.channels
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    fine = torch.rand(count, channels, size, size, generator=generator)
    x = 2 * (0.9 * smooth + 0.1 * fine) - 1
    return x.contiguous(memory_format=torch.channels_last)


def _difference(found: Tensor | None, expected: Tensor | None) -> float:
    """Return the largest difference as a share of the largest value."""
    a, b = (np.asarray([] if t is None else t, np.float64) for t in (found, expected))
    scale = np.abs(b).max(initial=np.finfo(np.float32).tiny)
    return float(np.abs(a - b).max(initial=0.0) / scale)

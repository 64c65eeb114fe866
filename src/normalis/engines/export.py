"""A fitted model as one ONNX file, for runtimes that have neither Python nor PyTorch.

::

    x (B, C, S, S) float32, as `models.inputs.to_model_input` gives it: [-1, 1] unless standardised
      -> anomaly_map (B, S, S), reconstruction (B, C, S, S)      float32, any batch size B

The file holds the network only. What comes before it (decoding, resizing, the intensity rule) and
after it (a scorer other than the mean of the map, p-values, the threshold) stays with the caller;
the file's metadata names the method, the image size and whether images are standardised.

Reference: `torch.onnx.export <https://docs.pytorch.org/docs/stable/onnx_export.html>`_.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normalis import __version__
from normalis.errors import RunError, SettingsError
from normalis.errors.extras import require
from normalis.files import write_atomically
from normalis.fitted import fitted_of
from normalis.models import method_name
from normalis.models.base import AnomalyModel, Autoencoder
from normalis.models.inputs import FLAT

if TYPE_CHECKING:
    from normalis.detector import AnomalyDetector
    from normalis.fitted import FittedDetector

    Source = AnomalyDetector | FittedDetector | AnomalyModel

__all__ = ["OUTPUTS", "export_onnx", "trace"]

#: Names of the outputs, in order.
OUTPUTS = ("anomaly_map", "reconstruction")


class _Both(nn.Module):
    """Map and reconstruction in one pass over the image."""

    def __init__(self, model: Autoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.anomaly_map(x), self.model.reconstruct(x)


def export_onnx(
    source: AnomalyDetector | FittedDetector | AnomalyModel,
    path: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the network of a fitted detector, or a model, as ONNX.

    Args:
        source: a fitted detector, or an autoencoder; it is left as it is.
        path: the file, by custom with the ending ``.onnx``.
        overwrite: whether a file that is there may be replaced.

    Returns:
        The path.

    Raises:
        MissingExtraError: without the extra ``onnx``.
        SettingsError: if the method has no network, none that can be written so, or if it is read
            by gradients of it.
        RunError: if the file exists, or cannot be written.
    """
    for package in ("onnx", "onnxscript"):
        require(package, extra="onnx", why="an export to ONNX")
    path = Path(path)
    if path.exists() and not overwrite:
        raise RunError(f"{path}: exists; choose another file, or allow it to be replaced")
    model, metadata = _model_of(source)
    program = trace(_Both(model).eval(), model, OUTPUTS)
    program.model.metadata_props.update(metadata)
    _write(program, path)
    return path


def _model_of(
    source: AnomalyDetector | FittedDetector | AnomalyModel,
) -> tuple[Autoencoder, dict[str, str]]:
    """Return a copy of the network, ready to be read, and what a reader of the file must know."""
    model, standardize = source, None
    if not isinstance(source, AnomalyModel):
        source = fitted_of(source)
        if len(source.models) > 1:
            raise SettingsError(
                f"a file holds one network, and calibration cv+ made {len(source.models)}: export "
                "each of the models, or fit with calibration split"
            )
        if source.scorers[0].needs_gradients:
            name = type(source.scorers[0]).__name__
            raise SettingsError(
                f"scorer {name} takes gradients of the network, and an ONNX file holds none: score "
                "with PyTorch, or export the run as read by with_scorer('native')"
            )
        model, standardize = source.models[0], source.standardize
    if not isinstance(model, Autoencoder):
        raise SettingsError(
            f"only methods with a network can be exported, got {type(model).__name__}"
        )
    settings = model.settings
    metadata = {
        "normalis": __version__,
        "method": method_name(type(model)),
        "image_size": str(settings.image_size),
        "channels": str(settings.channels),
    }
    if standardize is not None:
        metadata["standardize"] = f"(x - mean) / (2 max(std, {FLAT:.3g}))" if standardize else "no"
    return copy.deepcopy(model).to("cpu", torch.float32).eval(), metadata


def trace(module: nn.Module, model: AnomalyModel, outputs: Sequence[str]) -> Any:
    """Return what a module computes of a batch of a model's images as an ONNX program.

    Args:
        module: in evaluation mode, on the CPU; takes x (B, C, S, S).
        model: whose image size and channels count.
        outputs: names of what the module returns.

    Raises:
        SettingsError: if the method says that it cannot be written so.
    """
    if model.not_exportable:
        raise SettingsError(
            f"{method_name(type(model))} cannot be written as ONNX: {model.not_exportable}"
        )
    size = model.settings.image_size
    # Two images: a batch of one would be taken for a constant.
    example = torch.zeros(2, model.settings.channels, size, size)
    with warnings.catch_warnings(), torch.no_grad(), _quiet():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        return torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["x"],
            output_names=list(outputs),
            dynamic_shapes={"x": {0: torch.export.Dim("batch", min=1)}},
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from telling of operators of packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _write(program: Any, path: Path) -> None:
    """Write so that a file is there whole or not at all.

    Raises:
        RunError: if it cannot be written.
    """

    def write(temporary: Path) -> None:
        try:
            program.save(temporary, external_data=False)
        except OSError:
            raise
        except Exception as error:  # of a full disk the exporter says it in its own ways
            raise OSError(f"the exporter stopped: {error}") from error

    write_atomically(path, write)

"""What only a GPU can say: without one these are skipped."""

import numpy as np
import pytest
import torch

from normalis import AnomalyDetector, models
from normalis.training.loop import Training
from normalis.training.settings import TrainingSettings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL = {"image_size": 32, "hidden_dim": 64}


def images(n=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 32, 32), dtype=torch.uint8, generator=generator)


def losses_of(method, *, stacked, precision, **options):
    built = [
        models.build(method, seed=s, latent_dim=d, **SMALL, **options)
        for d in (2, 8)
        for s in (0, 1)
    ]
    settings = TrainingSettings(epochs=3, batch_size=32, precision=precision)
    training = Training(
        built, images(), settings=settings, seeds=[0, 1, 0, 1], device="cuda", stacked=stacked
    )
    training.run()
    return torch.tensor([[list(e.values()) for e in m.history] for m in training.members])


@pytest.mark.parametrize("method", ["ae", "ae-u", "ae-spatial"])
@pytest.mark.parametrize(("precision", "rtol"), [("float32", 5e-3), ("bfloat16", 3e-2)])
def test_a_stack_on_a_gpu_trains_as_models_alone(method, precision, rtol):
    options = models.model_class(method).default_options
    one = losses_of(method, stacked=True, precision=precision, **options)
    other = losses_of(method, stacked=False, precision=precision, **options)
    torch.testing.assert_close(one, other, rtol=rtol, atol=5e-3)


@pytest.mark.parametrize("method", sorted(set(models.MODELS) - {"ae-perceptual"}))
def test_every_method_trains_and_scores_on_a_gpu(method, tmp_path):
    given = {
        "method": method,
        "image_size": 32,
        "epochs": 2,
        "device": "cuda",
        "calibration": "none",
    }
    detector = AnomalyDetector(**given).fit(images().numpy()[:, 0])
    detector.save(tmp_path / "run")
    scores = detector.anomaly_score(images(20, seed=1).numpy()[:, 0])
    assert np.isfinite(scores).all()
    on_cpu = AnomalyDetector.load(tmp_path / "run", device="cpu")
    again = on_cpu.anomaly_score(images(20, seed=1).numpy()[:, 0])
    np.testing.assert_allclose(scores, again, rtol=2e-2)

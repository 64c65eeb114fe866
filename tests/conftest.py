"""Fixtures shared by all tests."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# A busy machine is no reason to fail: hypothesis's 200 ms per example is a stopwatch, not a test.
settings.register_profile("normalis", deadline=None)
settings.load_profile("normalis")


#: Files whose tests train networks: what they assert must hold in float32 and in bfloat16.
TRAINING = {
    "test_assessment", "test_cross_fitting", "test_detector", "test_export", "test_fitted",
    "test_models", "test_onnx_engine", "test_outputs", "test_panel", "test_scorers",
    "test_scoring", "test_stack", "test_sweep", "test_training",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in TRAINING:
            item.add_marker(pytest.mark.trains)


def find_real_data() -> Path | None:
    """Return the folder of real images: NORMALIS_DATA, else ../shared/data beside the checkout."""
    here = Path(__file__).resolve().parents[1]
    candidates = [os.environ.get("NORMALIS_DATA"), here.parent / "shared" / "data"]
    return next((Path(c) for c in candidates if c and Path(c).is_dir()), None)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images, or a skip that says what was not tested."""
    folder = find_real_data()
    if folder is None:
        pytest.skip("no real images: set NORMALIS_DATA to their folder to test on them")
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keep decoded images of the tests out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMALIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

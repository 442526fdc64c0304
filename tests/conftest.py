import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # time decides nothing
settings.load_profile("patient")


@pytest.fixture
def rng():
    return np.random.default_rng(20240109)


@pytest.fixture(scope="session")
def sample_data():
    """The folder of real pictures, captions and masks; tests that need it skip without it."""
    folder = Path(os.environ.get("SPARC_REF_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no sample data at {folder}; set SPARC_REF_DATA to its folder")
    return folder


def _numpy(x):
    return x


def _read_only(x):
    x = np.array(x)
    x.flags.writeable = False
    return x


def _strict(x):
    import array_api_strict

    return array_api_strict.asarray(x, device=array_api_strict.Device("device1"))


def _torch(x):
    import torch

    return torch.from_numpy(np.array(x))


BACKENDS = {"numpy": _numpy, "numpy read-only": _read_only, "array_api_strict device1": _strict, "torch": _torch}


@pytest.fixture(params=BACKENDS, ids=lambda name: name.replace(" ", "-"))
def array(request):
    """Turns a NumPy array into one of the backend's."""
    return BACKENDS[request.param]

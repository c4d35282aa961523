"""What every test runs under: seeded generators, few threads, one hypothesis profile."""

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

import tests.torchvision_cpu  # noqa: F401  (before anything imports torchvision or timm)

# CI tries the same examples at every run; a developer's machine looks for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

# The models are small: more than four threads only wait for each other, and the workers of
# pytest-xdist share the cores.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, min(4, torch.get_num_threads() // WORKERS)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

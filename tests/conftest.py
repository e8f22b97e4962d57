"""What several tests share."""

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # the networks here are tiny: a second thread costs them more than it gives


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)

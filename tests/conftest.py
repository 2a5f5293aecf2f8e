# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures that every test may use."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("fastdet", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("fastdet")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return request.param

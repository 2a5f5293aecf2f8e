# SPDX-License-Identifier: BSD-3-Clause
"""What `fastdet info` says of the CUDA operators."""

import pytest
import torch

from fastdet import _native
from fastdet.ops import library


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ("13.0", "13.2", "loaded"),
        ("", "13.0", "loaded"),
        ("13.0", None, "loaded"),
        (
            "13.0",
            "12.8",
            "loaded; built with CUDA 13.0, but torch with CUDA 12.8: the driver must be for both",
        ),
    ],
)
def test_another_cuda_than_torchs_is_named(monkeypatch, ours, theirs, said):
    monkeypatch.setattr(library, "_why_no_cuda", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_native, "cuda_version", ours)
    monkeypatch.setattr(torch.version, "cuda", theirs)
    assert library.info()["CUDA ops"] == said

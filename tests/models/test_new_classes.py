# SPDX-License-Identifier: BSD-3-Clause
"""What replace_classes refuses; what it does, `test_every_family.py` tests."""

import pytest
from torch import nn

from fastdet.models import replace_classes

from .scenes import small_model


def test_what_cannot_be() -> None:
    model = small_model("faster_rcnn")
    with pytest.raises(
        ValueError, match="num_classes: expected at least 2, background and one class"
    ):
        replace_classes(model, 1)
    model.roi_heads.box_predictor = nn.Identity()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"expected one of the layers roi_heads\.box_predictor"):
        replace_classes(model, 5)

# SPDX-License-Identifier: BSD-3-Clause
"""Old keywords of the operators: accepted with a warning, also under torch.compile."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdet
import fastdet.numpy as fnp
from fastdet.renamed import renamed_keywords

SIZES = torch.tensor([[60, 80]])
ANCHORS = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 50, 60]])
LOGITS = torch.tensor([[2.0, 1, -1]])
DELTAS = torch.zeros(1, 3, 4)


def propose(**thresholds: float) -> tuple[Tensor, ...]:
    return fastdet.rpn_proposals([LOGITS], [DELTAS], ANCHORS, SIZES, 10, 5, **thresholds)


def detect(**thresholds: float) -> tuple[Tensor, ...]:
    return fastdet.retinanet_detections(
        [LOGITS[..., None]],
        [DELTAS],
        ANCHORS,
        SIZES,
        topk_candidates=10,
        detections_per_img=5,
        **thresholds,
    )


def detect_in_rois(**thresholds: float) -> tuple[Tensor, ...]:
    logits, deltas = torch.stack([-LOGITS, LOGITS], 2), DELTAS[:, :, None].repeat(1, 1, 2, 1)
    return fastdet.roi_detections(
        logits,
        deltas,
        ANCHORS[None],
        None,
        SIZES,
        (1, 1, 1, 1),
        detections_per_img=5,
        **thresholds,
    )


def detect_in_numpy(**thresholds: float) -> tuple[np.ndarray, ...]:
    return fnp.retinanet_detections(
        [LOGITS[..., None].numpy()],
        [DELTAS.numpy()],
        ANCHORS.numpy(),
        SIZES.numpy(),
        topk_candidates=10,
        detections_per_img=5,
        **thresholds,
    )


def pick(**thresholds: Any) -> tuple[np.ndarray, ...]:
    return fnp.soft_nms(ANCHORS.numpy(), np.array([0.9, 0.8, 0.3], "f4"), **thresholds)


THRESHOLDS = {"nms_thresh": "iou_threshold", "score_thresh": "score_threshold"}
RENAMED = [
    (propose, THRESHOLDS),
    (detect, THRESHOLDS),
    (detect_in_rois, THRESHOLDS),
    (detect_in_numpy, THRESHOLDS),
    (pick, {"min_score": "score_threshold"}),
]


@pytest.mark.parametrize(("call", "names"), RENAMED)
def test_old_keywords_warn_and_mean_the_same(call, names):
    expected = call(**dict.fromkeys(names.values(), 0.4))
    assert len(expected[0])
    with pytest.warns(DeprecationWarning, match=" is now ") as warned:
        got = call(**dict.fromkeys(names, 0.4))
    assert [str(w.message).split(": ")[1] for w in warned] == [
        f"{old} is now {new}" for old, new in names.items()
    ]
    assert {w.filename for w in warned} == {__file__}
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours == theirs).all()


@pytest.mark.parametrize(("call", "names"), RENAMED)
def test_both_names_at_once_are_refused(call, names):
    old, new = next(iter(names.items()))
    with pytest.raises(TypeError, match=f"expected {new} or {old}, got both"):
        call(**{old: 0.4, new: 0.4})


@pytest.mark.parametrize("call", [propose, detect, detect_in_rois])
@pytest.mark.parametrize("names", [THRESHOLDS.values(), THRESHOLDS.keys()], ids=["new", "old"])
def test_both_names_compile_without_a_graph_break(call, names):
    thresholds = dict.fromkeys(names, 0.4)

    def boxes() -> Tensor:
        return call(**thresholds)[0] * 2

    compiled = torch.compile(boxes, fullgraph=True, backend="eager")
    assert compiled().equal(call(**dict.fromkeys(THRESHOLDS.values(), 0.4))[0] * 2)


def test_positional_arguments_and_names_stay():
    @renamed_keywords(a="b")
    def pair(b: int, c: int = 2) -> tuple[int, int]:
        """A pair."""
        return b, c

    assert pair(1) == (1, 2)
    assert pair(c=3, b=1) == (1, 3)
    assert (pair.__name__, pair.__doc__) == ("pair", "A pair.")

# SPDX-License-Identifier: BSD-3-Clause
"""Whole detectors on a GPU: losses, gradients and detections as on the CPU, and no host sync.

In float64, where the convolutions of the two devices differ too little to swap two detections.
"""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.models import MODELS, Batch, Detector
from tests.on_gpu import captured, cuda_kernels, gpu_only, no_sync, on_cuda_kernels

from .scenes import named, scene, small_model, spread_scores

pytestmark = pytest.mark.parametrize("family", MODELS)

# The sampling of anchors must not be random: all of them are sampled. So the box head is narrow.
ALL_SAMPLES = {
    "rpn_batch_size_per_image": 20_000,
    "box_batch_size_per_image": 8_000,
    "representation_size": 32,
}

# Some gradients are zero but for rounding: of a bias before a batch norm, or of attention's keys.
NOTHING = 1e-6


@functools.lru_cache(maxsize=1)
def _model(family: str) -> Detector:
    model = small_model(family)
    if hasattr(model, "rpn"):
        model = small_model(family, **ALL_SAMPLES)
    return spread_scores(model)


@functools.cache
def _batch() -> Batch:
    return small_model("mask_rcnn").pad(*scene())  # other families ignore the masks


def model_on(device: str, family: str, dtype: torch.dtype = torch.float32) -> Detector:
    return copy.deepcopy(_model(family)).to(device, dtype)


def batch_on(device: str, dtype: torch.dtype = torch.float32) -> Batch:
    batch = _batch()
    moved = batch._make(t if t is None else t.to(device) for t in batch)
    return moved._replace(images=moved.images.to(dtype), gt_boxes=moved.gt_boxes.to(dtype))


def mirrored(batch: Batch) -> Batch:
    """Other images with the same ground truth."""
    return batch._replace(images=batch.images.flip(3))


def losses_and_gradients(model: Detector, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(0)  # of dropout and denoising
    losses = model.losses(batch)
    parameters = dict(model.named_parameters())
    total = torch.stack(list(losses.values())).sum()
    gradients = torch.autograd.grad(total, list(parameters.values()))
    return {k: v.detach() for k, v in losses.items()} | dict(
        zip(parameters, gradients, strict=True)
    )


def assert_close(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Relative to the largest value of each tensor, or to NOTHING; integers are equal."""
    assert set(got) == set(expected)
    for name, value in expected.items():
        ours, theirs = got[name].cpu(), value.cpu()
        if theirs.is_floating_point():
            scale = max(float(theirs.abs().max()), NOTHING)
            assert float((ours - theirs).abs().max()) <= tolerance * scale, name
        else:
            assert ours.equal(theirs), name


@on_cuda_kernels
def test_losses_and_gradients_equal_the_cpus(kernels: str, family: str) -> None:
    def run(device: str) -> dict[str, Tensor]:
        model = model_on(device, family, torch.float64)
        return losses_and_gradients(model, batch_on(device, torch.float64))

    with cuda_kernels(kernels) as device:
        got = run(device)
    assert_close(got, run("cpu"), tolerance=1e-6)


@on_cuda_kernels
def test_detections_equal_the_cpus(kernels: str, family: str) -> None:
    @torch.no_grad()
    def run(device: str) -> dict[str, Tensor]:
        model = model_on(device, family, torch.float64).eval()
        return named(model.detect(batch_on(device, torch.float64)))

    with cuda_kernels(kernels, launches=family != "detr") as device:  # whose layers are torch's
        got = run(device)
    expected = run("cpu")
    assert bool((expected["counts"] > 10).all())
    assert_close(got, expected, tolerance=1e-6)


@gpu_only
def test_nothing_waits_for_the_host(family: str) -> None:
    model, batch = model_on("cuda", family), batch_on("cuda")
    losses_and_gradients(model, batch)  # to compute the anchors of this shape
    with no_sync():
        losses_and_gradients(model, batch)
    model.eval()
    with torch.no_grad(), no_sync():
        model.detect(batch)


@gpu_only
def test_detect_as_a_graph(family: str) -> None:
    model, batch = model_on("cuda", family).eval(), batch_on("cuda")
    with torch.no_grad():
        before = model.detect(batch)
        expected = named(model.detect(mirrored(batch)))
        graph, got = captured(lambda: model.detect(batch))
    batch.images.copy_(mirrored(batch).images)
    graph.replay()
    torch.cuda.synchronize()
    assert not before.scores.equal(expected["scores"])
    assert_close(named(got), expected, tolerance=1e-3)


@gpu_only
def test_a_training_step_as_a_graph(family: str) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model, batch = model_on("cuda", family), batch_on("cuda")
        before = losses_and_gradients(model, batch)
        expected = losses_and_gradients(model, mirrored(batch))
        graph, got = captured(lambda: losses_and_gradients(model, batch))
    finally:
        torch.use_deterministic_algorithms(False)
    batch.images.copy_(mirrored(batch).images)
    graph.replay()
    torch.cuda.synchronize()
    changed = next(iter(expected))
    assert not before[changed].equal(expected[changed])
    assert_close(got, expected, tolerance=1e-3)

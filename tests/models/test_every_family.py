# SPDX-License-Identifier: BSD-3-Clause
"""Laws that every family of MODELS keeps, whatever it computes.

A family that joins MODELS is in this suite by itself: it is built by its builder (`small_model`, a
ResNet-18 with a pyramid) and from its parts (`tiny_model`, two levels and no pyramid, for what
traces a graph). Only LOSSES has to name what it learns.
"""

import contextlib
import copy
import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import onnx
import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import fastdet
import fastdet.numpy
from fastdet.data import write_shapes
from fastdet.deploy import export
from fastdet.deploy.export import export_candidates, export_detector, metadata
from fastdet.engine.fused import unfused
from fastdet.models import MODELS, Batch, Detections, Detector, describe, replace_classes
from fastdet.models.batch import image_of
from fastdet.models.cascade_rcnn import CascadeRoIHeads
from fastdet.models.roi_heads import RoIHeads
from fastdet.training.metrics_log import read_metrics
from fastdet.training.options import TrainOptions
from fastdet.training.train import train
from tests.deploy.detectors import (
    CLASSES,
    SEVERAL,
    SIZE,
    assert_same,
    detect,
    detector,
    last_heads,
    pixels,
)
from tests.deploy.runtimes import RUNTIMES, Arrays, constants

from .scenes import (
    NUM_CLASSES,
    few,
    garbage_beyond_counts,
    named,
    scene,
    small_model,
    spread_scores,
    tiny_model,
    without_zeros,
)

QUICK = ("faster_rcnn", "retinanet")  # one of two stages and one of one, for `make check`
every_family = pytest.mark.parametrize(
    "family",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)

TWO_STAGES = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
CASCADE = (
    *(f"loss_{name}_{stage}" for stage in range(3) for name in ("classifier", "box_reg")),
    "loss_objectness",
    "loss_rpn_box_reg",
)
QUERIES = ("classification", "bbox_regression", "bbox_giou")
LOSSES = {
    "atss": ("classification", "bbox_regression", "bbox_ctrness"),
    "cascade_mask_rcnn": (*CASCADE, "loss_mask"),
    "cascade_rcnn": CASCADE,
    "d_fine": (*QUERIES, "bbox_distribution", "distillation"),
    "deformable_detr": QUERIES,
    "detr": QUERIES,
    "faster_rcnn": TWO_STAGES,
    "fcos": ("classification", "bbox_regression", "bbox_ctrness"),
    "mask_rcnn": (*TWO_STAGES, "loss_mask"),
    "retinanet": ("classification", "bbox_regression"),
    "rt_detr": QUERIES,
    "tood": ("classification", "bbox_regression"),
    "vfnet": ("classification", "bbox_regression", "bbox_refinement"),
}
CLASS_LAYERS = ("cls_score", "bbox_pred", "mask_fcn_logits", "cls_logits", "label_embedding")
NO_DEFORM_CONV = "openvino"  # this runtime has no DeformConv
DEFORMING = ("tood", "vfnet")


def fresh(family: str, **numbers: Any) -> Detector:
    """`small_model`; without further numbers a copy of one that is built once."""
    return small_model(family, **numbers) if numbers else copy.deepcopy(_built(family))


@functools.cache
def _built(family: str) -> Detector:
    return small_model(family)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def assert_equal(found: Detections, expected: Detections, tolerance: float = 0.0) -> None:
    for name, value in named(expected).items():
        torch.testing.assert_close(
            getattr(found, name), value, rtol=tolerance, atol=tolerance, msg=name
        )


def test_no_family_is_left_out() -> None:
    assert set(LOSSES) == set(MODELS)


# ---- losses and detections -----------------------------------------------------------------------


@every_family
def test_forward_follows_the_mode(family: str) -> None:
    model = spread_scores(fresh(family))
    images, targets = scene()
    losses = model(images, targets)
    assert set(losses) == set(LOSSES[family])
    with pytest.raises(ValueError, match="targets: expected one for each image"):
        model(images)
    detections = model.eval()(images)
    assert len(detections) == len(images)
    for image, of_image in zip(images, detections, strict=True):
        boxes, labels, scores = (of_image[key] for key in ("boxes", "labels", "scores"))
        assert boxes.shape == (len(scores), 4)
        assert bool((boxes >= 0).all())
        limit = torch.tensor([image.shape[2], image.shape[1]]).repeat(2)
        assert bool((boxes <= limit + 1e-3).all())
        assert bool((scores.diff() <= 0).all())
        assert bool((labels < model.num_classes).all())


@every_family
def test_losses_and_detections_are_those_of_the_two_calls(family: str) -> None:
    model = spread_scores(fresh(family)).eval()
    images, targets = scene()
    batch = model.pad(images, targets)
    with torch.no_grad():
        torch.manual_seed(5)
        losses, detections = model.losses_and_detections(batch)
        torch.manual_seed(5)
        expected_losses, expected = model.losses(batch), model.detect(batch)
    for name, loss in expected_losses.items():
        assert torch.equal(losses[name], loss), name
    assert_equal(detections, expected, 1e-4)  # of images together, and of each alone


@every_family
@pytest.mark.parametrize("threads", [1, 2])
def test_the_batch_changes_no_bit_on_a_cpu(family: str, threads: int) -> None:
    """Images are computed one by one, with one thread for each while there are two of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    model = spread_scores(fresh(family)).eval()
    batch = model.pad(scene()[0])
    try:
        with torch.inference_mode():
            together = model.detect(batch)
            for i in range(len(batch.images)):  # three; the last one is left over for both threads
                torch.set_num_threads(threads if i == 2 else 1)
                row = Detections(*(x if x is None else x[i : i + 1] for x in together))
                assert_equal(model.detect(image_of(batch, i)), row)
    finally:
        torch.set_num_threads(before)


@every_family
def test_an_image_finds_the_same_alone_and_in_a_batch(family: str) -> None:
    """In float64, so that rounding changes the order of no two detections."""
    model = spread_scores(tiny_model(family)).double().eval()
    batch = model.pad([image.double() for image in scene()[0]])
    with torch.no_grad(), unfused():  # else no batch is computed together
        together = model.detect(batch)
        for i, count in enumerate(together.counts.tolist()):
            assert count > 0
            alone = model.detect(Batch(*(x if x is None else x[i : i + 1] for x in batch)))
            row = Detections(*(x if x is None else x[i : i + 1] for x in together))
            assert_equal(alone, row, tolerance=1e-7)


@every_family
def test_a_loss_weight_scales_its_loss_alone(family: str) -> None:
    option = {loss: f"{loss.rstrip('_012')}_weight" for loss in LOSSES[family]}  # of all stages
    weights = {name: 2.0 + i for i, name in enumerate(dict.fromkeys(option.values()))}
    results = []
    for numbers in (dict.fromkeys(weights, 1.0), weights):
        model = without_zeros(tiny_model(family, **numbers))
        torch.manual_seed(2)
        results.append(model(*scene()))
    single, weighted = results
    for name in LOSSES[family]:
        expected = weights[option[name]] * single[name]
        torch.testing.assert_close(weighted[name], expected, msg=name)
        assert single[name] > 0, name


@every_family
def test_half_precision_batch_under_autocast(family: str) -> None:
    model = fresh(family)
    images, targets = scene()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(images, targets)
        detections = spread_scores(model).eval()(images)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert all(of_image["boxes"].dtype == torch.float32 for of_image in detections)


@every_family
def test_an_unknown_option_is_named(family: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'min_sise'"):
        small_model(family, min_sise=96)


@every_family
def test_our_operators_are_used_already(family: str) -> None:
    """Overriding torchvision's operators changes nothing."""
    model = spread_scores(tiny_model(family)).eval()
    batch = model.pad(*scene())
    results = []
    for override in (contextlib.nullcontext, fastdet.override_torchvision):
        torch.manual_seed(1)
        with torch.no_grad(), override():
            results.append(model.losses(batch) | named(model.detect(batch)))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


# ---- pictures and ground truth of any size -------------------------------------------------------


@every_family
@pytest.mark.parametrize("rows", ["padded", "none"])
def test_no_ground_truth_in_the_whole_batch(family: str, rows: str) -> None:
    model = without_zeros(fresh(family))
    images, targets = scene()
    empty = [{key: value[:0] for key, value in target.items()} for target in targets]
    batch = model.pad(images, empty)
    if rows == "none":
        masks = None if batch.gt_masks is None else batch.gt_masks[:, :0]
        boxes, labels = batch.gt_boxes[:, :0], batch.gt_labels[:, :0]
        batch = batch._replace(gt_boxes=boxes, gt_labels=labels, gt_masks=masks)
    losses = model.losses(batch)
    total(losses).backward()
    for name, loss in losses.items():
        assert bool(loss.isfinite()), name
        assert (loss == 0) == ("box" in name or "mask" in name), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


@every_family
def test_odd_sizes(family: str) -> None:
    """No level of the pyramid is half as large as the one before."""
    model = spread_scores(fresh(family, size_divisor=1, fixed_size=(75, 101)))
    images, targets = scene()
    batch = model.pad(images, targets)
    assert batch.images.shape[2:] == (75, 101)
    losses = model.losses(batch)
    total(losses).backward()
    assert all(bool(loss.isfinite()) for loss in losses.values())
    with torch.no_grad():
        # No padding: there all scores are equal, and rounding decides their order.
        generator = torch.Generator().manual_seed(3)
        whole = model.pad([torch.rand(3, 75, 101, generator=generator) for _ in images])
        found = model.eval().detect(whole)
        with unfused():
            assert_equal(model.detect(whole)._replace(masks=None), found._replace(masks=None), 1e-3)
    assert bool((found.counts > 0).all())
    assert bool((found.boxes <= torch.tensor([101.0, 75, 101, 75])).all())


@every_family
def test_no_detections(family: str) -> None:
    model = fresh(family).eval()
    part = last_heads(model)
    part.score_thresh = 1.0
    images, _ = scene()
    with torch.no_grad():
        found = model.detect(model.pad(images))
        answers = model(images)
    assert found.counts.tolist() == [0, 0, 0]
    assert not any(value.any() for value in named(found).values())
    for image, answer in zip(images, answers, strict=True):
        shapes = {name: tuple(value.shape) for name, value in answer.items()}
        masks = {"masks": (0, 1, *image.shape[1:])} if model.learns_masks else {}
        assert shapes == {"boxes": (0, 4), "scores": (0,), "labels": (0,)} | masks


@every_family
def test_padding_rows_change_nothing(family: str) -> None:
    batch = tiny_model(family).pad(*scene())
    results: list[dict[str, Any]] = []
    for padded in (batch, garbage_beyond_counts(batch)):
        model = spread_scores(tiny_model(family))
        torch.manual_seed(3)
        losses = model.losses(padded)
        total(losses).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        detections = named(model.eval().detect(padded))
        results.append(losses | gradients | detections)
    assert not torch.equal(batch.gt_boxes, garbage_beyond_counts(batch).gt_boxes)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


@every_family
def test_more_rows_of_padding_change_nothing(family: str) -> None:
    model = tiny_model(family)
    batch = model.pad(*scene())
    wider = batch._replace(
        gt_boxes=nn.functional.pad(batch.gt_boxes, (0, 0, 0, 24)),
        gt_labels=nn.functional.pad(batch.gt_labels, (0, 24)),
        gt_masks=None
        if batch.gt_masks is None
        else nn.functional.pad(batch.gt_masks, (0, 0, 0, 0, 0, 24)),
    )
    # Sample all proposals: else the number of rows would change which ones are sampled.
    for module in model.modules():
        if hasattr(module, "batch_size_per_image"):
            module.batch_size_per_image = 20_000  # type: ignore[assignment]
    results = []
    for padded in (batch, wider):
        torch.manual_seed(3)  # of dropout
        results.append(model.losses(padded))
    losses, wider_losses = results
    for name, loss in losses.items():
        torch.testing.assert_close(wider_losses[name], loss, rtol=1e-5, atol=0, msg=name)


@every_family
def test_trimming_is_the_same_as_computing_every_row(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spread_scores(fresh(family)).eval()
    batch = model.pad(scene()[0])
    with torch.no_grad():
        trimmed = model.detect(batch)
        for module in (CascadeRoIHeads, RoIHeads):
            monkeypatch.setattr(
                sys.modules[module.__module__], "rows_in_use", lambda counts, rows: rows
            )
        full = model.detect(batch)
    assert_equal(trimmed, full, tolerance=1e-5)


# ---- one graph of fixed shapes -------------------------------------------------------------------


@every_family
def test_losses_backward_and_detect_read_no_value(family: str) -> None:
    """A fake tensor has no value, so `.item()`, `nonzero` and boolean indexing raise an error."""
    with FakeTensorMode():
        model = small_model(family)
        batch = Batch(
            images=torch.rand(2, 3, 96, 128).contiguous(memory_format=torch.channels_last),
            sizes=torch.ones(2, 2, dtype=torch.int64),
            gt_boxes=torch.rand(2, 8, 4),
            gt_labels=torch.ones(2, 8, dtype=torch.int64),
            gt_counts=torch.ones(2, dtype=torch.int64),
            gt_masks=torch.ones(2, 8, 96, 128, dtype=torch.bool),
        )
        total(model.losses(batch)).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        detections = model.eval().detect(batch)
    assert isinstance(detections.boxes, FakeTensor)
    rows = detections.scores.shape[1]
    assert detections.boxes.shape == (2, rows, 4)
    assert detections.labels.shape == (2, rows)
    assert detections.counts.shape == (2,)


@pytest.mark.slow
@every_family
def test_detect_compiles_as_one_graph(family: str) -> None:
    """Dynamo alone: an export takes the same graph through AOTAutograd."""
    model = spread_scores(tiny_model(family)).eval()
    batch = model.pad(scene()[0])
    with torch.no_grad(), unfused():
        expected = model.detect(batch)
        got = torch.compile(model.detect, fullgraph=True, backend="eager")(batch)
    assert bool((expected.counts > 10).all())
    assert_equal(got, expected, tolerance=1e-4)


@pytest.mark.slow
@every_family
def test_losses_and_gradients_compile_as_one_graph(family: str) -> None:
    """In float64, so that rounding changes no sample."""
    results: list[dict[str, Any]] = []
    images, targets = scene()
    in_one_graph = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
    for compiled in (lambda losses: losses, in_one_graph):
        model = tiny_model(family).double()
        batch = model.pad([image.double() for image in images], targets)
        torch.manual_seed(3)
        losses = compiled(model.losses)(batch)
        total(losses).backward()
        results.append(losses | {name: p.grad for name, p in model.named_parameters()})
    for name, value in results[0].items():
        off = (results[1][name] - value).abs().max() / value.abs().max().clamp(min=1e-9)
        assert off < 1e-6, f"{name}: {off:.1e} of the largest"


# ---- exported files ------------------------------------------------------------------------------


class Exported(NamedTuple):
    """A model and its files for any number of images. In one of PICTURES it finds nothing."""

    model: Detector
    package: Path
    onnx: Path


def black_and_others() -> tuple[Tensor, Tensor]:
    """A black picture, a usual one and one of high contrast: scores differ between them."""
    images, sizes = pixels((96, 128), (92, 124), (90, 128))
    images[0] = 0
    images[2] = (0.5 + 2 * (images[2] - 0.5)).clamp(0, 1)
    return images, sizes


PICTURES = black_and_others()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The files of a family, which are made once, from one trace. Do not change them."""

    @functools.cache
    def exported(family: str) -> Exported:
        model, folder = detector(f"tiny_{family}"), tmp_path_factory.mktemp(family)
        find_none_some_and_many(model)
        files = Exported(model, folder / "detector.pt2", folder / "detector.onnx")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "_program", functools.cache(export._program))
            for path in (files.package, files.onnx):
                export_detector(model, path, SIZE, batch_size=None, classes=CLASSES)
        return files

    return exported


def find_none_some_and_many(model: Detector) -> None:
    """Raises the threshold until a picture has no detection; if possible another fills all rows."""
    part = last_heads(model)
    low, high = 0.0, 1.0
    for _ in range(12):
        part.score_thresh = (low + high) / 2
        if int(detect(model, *PICTURES).counts.min()) == 0:
            high = part.score_thresh
        else:
            low = part.score_thresh
    part.score_thresh = high
    none, some, many = detect(model, *PICTURES).counts.sort().values.tolist()
    assert none == 0 < some
    part.detections_per_img = many - 1 if many - 1 > some else many + 1


def feed(images: Tensor, sizes: Tensor) -> Arrays:
    return {"images": images.numpy(), "sizes": sizes.numpy()}


def runtimes(family: str) -> list[Callable[[Path, Arrays], Arrays]]:
    deforms = family in DEFORMING
    return [run for name, run in RUNTIMES.items() if not (deforms and name == NO_DEFORM_CONV)]


@pytest.mark.slow
@every_family
def test_onnx_finds_what_the_model_finds(family: str, exported: Callable[[str], Exported]) -> None:
    model, _, path = exported(family)
    for pictures in (PICTURES, SEVERAL, pixels((81, 128))):
        expected = detect(model, *pictures)
        for run in runtimes(family):
            assert_same(run(path, feed(*pictures)), expected, least=0)
    for node in onnx.load(path).graph.node:
        assert not any(attribute.HasField("g") for attribute in node.attribute), node.op_type
    for name, values in constants(path):
        assert np.isfinite(values).all(), name


@pytest.mark.slow
@every_family
def test_numpy_finishes_what_a_file_begins(family: str, tmp_path: Path) -> None:
    model, path = detector(f"tiny_{family}"), tmp_path / "candidates.onnx"
    if model.suppression() is None:
        with pytest.raises(ValueError, match=f"of one stage .*, got {type(model).__name__}"):
            export_candidates(model, path, SIZE)
        return
    export_candidates(model, path, SIZE, batch_size=3, classes=CLASSES)
    expected = detect(model, *SEVERAL)
    about = metadata(path)
    assert about["classes"] == CLASSES
    not_portable = {"NonMaxSuppression", "RoiAlign", "TopK", "NonZero", "ScatterND", "GatherND"}
    assert not not_portable & {node.op_type for node in onnx.load(path).graph.node}
    for run in runtimes(family):
        found = run(path, feed(*SEVERAL))
        assert list(found) == ["boxes", "scores"]
        assert_same(finished(found, about["suppression"], expected.boxes.shape[1]), expected)


def finished(found: Arrays, suppression: dict[str, float], rows: int) -> Arrays:
    """Detections in the form of a file with suppression."""
    boxes = np.zeros((len(found["boxes"]), rows, 4), np.float32)
    scores, labels = np.zeros(boxes.shape[:2], np.float32), np.zeros(boxes.shape[:2], np.int64)
    counts = np.zeros(len(boxes), np.int64)
    for i in range(len(boxes)):
        kept = fastdet.numpy.multiclass_nms(found["boxes"][i], found["scores"][i], **suppression)
        counts[i] = len(kept[0])
        for own, of_image in zip((boxes, scores, labels), kept, strict=True):
            own[i, : counts[i]] = of_image
    return {"boxes": boxes, "scores": scores, "labels": labels, "counts": counts}


WITHOUT_THE_CODE = """
import json, sys
sys.modules["fastdet.models"] = sys.modules["fastdet.deploy.export"] = None
import torch, fastdet.ops
inputs = torch.load(sys.argv[1])
about = []
for path in sys.argv[2:]:
    extra = {"metadata.json": ""}
    package = torch.export.load(path, extra_files=extra).module()
    torch.save([package(*pictures) for pictures in inputs], f"{path}.found")
    about.append(json.loads(extra["metadata.json"]))
assert not {"timm", "torchvision", "lightning"} & set(sys.modules)
print(json.dumps(about))
"""


@pytest.mark.slow
def test_a_package_runs_without_the_models_code(
    exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    """One process loads the packages of all families."""
    files = [exported(family) for family in MODELS]
    torch.save([PICTURES, SEVERAL], tmp_path / "inputs")
    packages = [str(of_family.package) for of_family in files]
    run = [sys.executable, "-c", WITHOUT_THE_CODE, str(tmp_path / "inputs"), *packages]
    result = subprocess.run(run, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for (model, package, _), about in zip(files, json.loads(result.stdout), strict=True):
        both = torch.load(f"{package}.found")
        for pictures, found in zip((PICTURES, SEVERAL), both, strict=True):
            arrays = {key: rows.numpy() for key, rows in found.items()}
            assert_same(arrays, detect(model, *pictures), least=0)
        assert about["classes"] == CLASSES
        assert about["image_size"] == list(SIZE)


# ---- other classes, costs, training --------------------------------------------------------------


@every_family
def test_new_classes_get_the_shapes_of_a_new_model_and_keep_the_other_weights(family: str) -> None:
    model = fresh(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert replace_classes(model, NUM_CLASSES + 3) is model
    new = small_model(family, num_classes=NUM_CLASSES + 3)
    shapes = {name: value.shape for name, value in new.state_dict().items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes
    changed = {
        name
        for name, value in model.state_dict().items()
        if value.shape != before[name].shape or not torch.equal(value, before[name])
    }
    assert changed
    for name in changed:
        assert name.split(".")[-2] in CLASS_LAYERS, name
    for name, bias in new.state_dict().items():
        if name.endswith("cls_logits.bias") and "classification" in name:
            assert torch.equal(model.state_dict()[name], bias)


@every_family
def test_new_classes_are_learned_and_found(family: str) -> None:
    model = fresh(family)
    torch.manual_seed(0)  # families draw different random numbers before
    replace_classes(model, 9)
    images, targets = scene()
    targets[0]["labels"] = torch.tensor([8, 5, 1])
    total(model(images, targets)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    labels = torch.cat([found["labels"] for found in spread_scores(model).eval()(images)])
    assert labels.max() > NUM_CLASSES - 1
    with pytest.raises(ValueError, match=r"expected 1 \.\. 8"):
        model.train()(images, [{**target, "labels": target["labels"] + 8} for target in targets])


@every_family
def test_describe_leaves_out_no_part_and_the_model_stays_as_it_is(family: str) -> None:
    model = fresh(family)
    model.get_submodule("backbone.body").requires_grad_(False).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    found = describe(model, (90, 65))
    assert found.image_size == (96, 96)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.parts[0].trainable == 0
    assert found.trainable == found.parameters - found.parts[0].parameters
    assert all(part.flops > 0 for part in found.parts)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=4, val=1, size=64)


@pytest.mark.slow
@every_family
def test_a_resumed_training_is_as_if_unbroken(
    family: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on from what its folder held when its second epoch, of two steps, began."""
    unbroken = TrainOptions(
        data=shapes,
        out=tmp_path / "unbroken",
        model=family,  # type: ignore[arg-type]
        backbone="test_resnet",
        epochs=2,
        batch_size=2,
        min_size=64,
        max_size=64,
        fpn_channels=8,
    )
    resumed = replace(unbroken, out=tmp_path / "resumed", resume=True)
    kind = get_type_hints(MODELS[family])["return"]
    honest, steps = kind.losses, []

    def copying(self: Detector, batch: Batch) -> dict[str, Tensor]:
        steps.append(batch)
        if len(steps) == 3:
            shutil.copytree(unbroken.out, resumed.out)
        return honest(self, batch)

    monkeypatch.setattr(kind, "losses", copying)
    train(unbroken, model_options=few(family))
    train(resumed, model_options=few(family))
    assert len(steps) == 4 + 2
    ours, theirs = (
        torch.load(options.out / "last.ckpt", weights_only=True) for options in (resumed, unbroken)
    )
    assert ours["global_step"] == theirs["global_step"] == 4
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    logs = [read_metrics(options.out / "metrics.csv") for options in (resumed, unbroken)]
    assert logs[0] == logs[1]

# SPDX-License-Identifier: BSD-3-Clause
"""Converted detectors compared with the torchvision models that they come from.

Random weights give no detections. So BatchNorms first see two pictures, and then the last layers
are scaled until scores and deltas vary enough for detections. Such a network amplifies rounding.
Therefore all detections are compared in float64. In float32 torchvision's model also computes in
channels_last, because convolutions round differently in another layout.
"""

import copy
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection, get_model_weights, mobilenet_v2, resnet18
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fastdet.engine.fused import has_form, unfused
from fastdet.models import from_torchvision, load_torchvision_weights

from .scenes import Detect, ellipses, named

NUMBERS: dict[str, Any] = {"min_size": 64, "max_size": 100}
PROPOSALS = {"rpn_post_nms_top_n_train": 25, "rpn_post_nms_top_n_test": 25}
SPREADS = {
    "bbox_ctrness": 1.0,
    "cls_logits": 1.0,
    "cls_score": 1.0,
    "bbox_pred": 0.3,
    "bbox_reg": 0.3,
    "mask_fcn_logits": 1.0,
}


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Blurred noise: neighbour pixels are similar, regions are different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, height // 12 + 2, width // 12 + 2, generator=generator)
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


def targets_for(images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Three objects in every image except the last, which has none."""
    targets = []
    for image in images:
        corner = torch.tensor([image.shape[2], image.shape[1]]).repeat(2).float()
        shares = torch.tensor([[0.05, 0.1, 0.5, 0.6], [0.4, 0.3, 0.95, 0.9], [0.1, 0.6, 0.35, 0.8]])
        boxes, labels = shares * corner, torch.tensor([1, 3, 2])
        targets.append({"boxes": boxes, "labels": labels, "masks": ellipses(boxes, image).byte()})
    targets[-1] = {key: value[:0] for key, value in targets[-1].items()}
    return targets


def outputs_of(layer: nn.Module, model: nn.Module, images: list[Tensor]) -> Tensor:
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _, inputs, output: seen.append(output.flatten()))
    model(images)
    hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def with_detections(model: Any) -> Any:
    """The model in eval mode, in float32."""
    images = [picture(100, 130, seed=1), picture(128, 110, seed=2)]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    model.train()(images, targets_for(images))
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
    names = ("rpn.head", "roi_heads") if hasattr(model, "rpn") else ("head", "heads")
    modules = dict(model.named_modules())
    heads = [modules[name] for name in names if name in modules]
    layers = [named for head in heads for named in head.named_modules()]
    for name, layer in layers:
        kind = name.split(".")[-1]
        if kind in SPREADS:
            if not layer.weight.any():  # a DETR's boxes start where their queries are
                layer.weight.normal_(std=0.01)
                continue
            outputs = outputs_of(layer, model, images)
            factor, mean = SPREADS[kind] / outputs.std(), outputs.mean()
            layer.weight.mul_(factor)  # after that, the outputs' mean is 0
            layer.bias.sub_(layer.bias.mean() + factor * (mean - layer.bias.mean()))
            if kind == "cls_logits":
                layer.bias.sub_(1)
            if kind == "bbox_reg" and isinstance(model, detection.FCOS):
                layer.bias.add_(1)  # distances must not be negative
    return model.to(memory_format=torch.channels_last)


def resnet18_pyramid(**numbers: Any) -> BackboneWithFPN:
    layers = {"layer2": "c3", "layer3": "c4", "layer4": "c5"}
    return BackboneWithFPN(resnet18(weights=None), layers, [128, 256, 512], 32, **numbers)


def faster_rcnn_of_parts() -> nn.Module:
    """A model that pools two of four levels, with other bins, anchors and options."""
    return detection.FasterRCNN(
        resnet18_pyramid(),
        4,
        min_size=(96, 128),
        max_size=180,
        size_divisible=64,
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.3, 0.2, 0.25],
        rpn_anchor_generator=AnchorGenerator(
            ((16, 24), (32, 48), (64, 96), (128, 256)), (0.7, 1.4)
        ),
        rpn_nms_thresh=0.6,
        rpn_score_thresh=0.2,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=150,
        box_roi_pool=MultiScaleRoIAlign(["c4", "c5"], 5, 0, canonical_scale=100),
        box_score_thresh=0.1,
        box_nms_thresh=0.3,
        box_detections_per_img=30,
        box_fg_iou_thresh=0.6,
        box_bg_iou_thresh=0.4,
        bbox_reg_weights=(5.0, 5.0, 2.0, 2.0),
    )


def faster_rcnn_of_one_map() -> nn.Module:
    """A model with a backbone that returns one map, not a dict; a user's box head; a fixed size."""
    backbone = mobilenet_v2(weights=None).features[:7]
    backbone.out_channels = 32  # type: ignore[assignment]
    return detection.FasterRCNN(
        backbone,
        None,
        fixed_size=(160, 128),
        rpn_anchor_generator=AnchorGenerator(((32, 64, 96),), ((0.5, 1.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], (3, 4), 2),
        box_head=nn.Sequential(nn.Conv2d(32, 16, 1), nn.BatchNorm2d(16), nn.Flatten(), nn.ReLU()),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(16 * 12, 5),
    )


def mask_rcnn_of_parts() -> nn.Module:
    """A model with masks of other sizes, pooled from other levels than boxes, and BatchNorms."""
    norm = nn.BatchNorm2d
    return detection.MaskRCNN(
        resnet18_pyramid(),
        None,
        **NUMBERS,
        **PROPOSALS,
        rpn_anchor_generator=AnchorGenerator(((24,), (48,), (96,), (192,)), ((0.7, 1.4),) * 4),
        box_roi_pool=MultiScaleRoIAlign(["c3", "c4", "c5"], 5, 2),
        box_head=detection.faster_rcnn.TwoMLPHead(32 * 25, 64),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(64, 4),
        mask_roi_pool=MultiScaleRoIAlign(["c4", "c5"], 10, 1, canonical_scale=120),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(32, [16, 24], 1, norm_layer=norm),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(24, 16, 4),
    )


def retinanet_of_parts(box_loss: str = "smooth_l1") -> nn.Module:
    backbone = resnet18_pyramid(extra_blocks=LastLevelP6P7(512, 32))
    generator = AnchorGenerator(tuple((s, 1.3 * s) for s in (24, 48, 96, 192, 300)), (0.6, 1.5))
    model = detection.RetinaNet(
        backbone,
        4,
        **NUMBERS,
        anchor_generator=generator,
        proposal_matcher=Matcher(0.45, 0.35, allow_low_quality_matches=False),
        score_thresh=0.3,
        nms_thresh=0.4,
        detections_per_img=40,
        topk_candidates=100,
    )
    model.head.regression_head._loss_type = box_loss
    return model


def fcos_of_parts() -> nn.Module:
    return detection.FCOS(
        resnet18_pyramid(),
        4,
        **NUMBERS,
        anchor_generator=AnchorGenerator(((6,), (10,), (18,), (45,)), ((1.0,),) * 4),
        center_sampling_radius=2.5,
        score_thresh=0.5,
        nms_thresh=0.4,
        detections_per_img=30,
        topk_candidates=50,
    )


def builder(name: str) -> Callable[[], nn.Module]:
    build = getattr(detection, name)
    numbers = NUMBERS | (PROPOSALS if "rcnn" in name else {"score_thresh": 0.6})
    if name.startswith("mask"):
        numbers |= {"box_detections_per_img": 12}  # few, because each needs a mask
    return lambda: build(weights=None, weights_backbone=None, num_classes=5, **numbers)


BUILDERS = (
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
)
MODELS: dict[str, Callable[[], nn.Module]] = {name: builder(name) for name in BUILDERS} | {
    "faster_rcnn_of_parts": faster_rcnn_of_parts,
    "faster_rcnn_of_one_map": faster_rcnn_of_one_map,
    "mask_rcnn_of_parts": mask_rcnn_of_parts,
    "retinanet_of_parts": retinanet_of_parts,
    "fcos_of_parts": fcos_of_parts,
}
QUICK = [name for name in MODELS if "_of_" in name]
every_model = pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.slow) for x in MODELS]
)


@functools.cache
def torchvision_model(name: str) -> Any:
    """The models in eval mode. Do not change them."""
    torch.manual_seed(0)
    return with_detections(MODELS[name]())


def assert_same_detections(theirs: nn.Module, ours: nn.Module, images: list[Tensor]) -> int:
    """Compares in the models' dtype; returns the smallest number of detections of an image."""
    dtype = next(theirs.parameters()).dtype
    images = [image.to(dtype) for image in images]
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    for own, other in zip(found, expected, strict=True):
        if dtype == torch.float32:
            own = in_the_order_of(other, own)
        assert torch.equal(own["labels"], other["labels"])
        torch.testing.assert_close(own["boxes"], other["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(own["scores"], other["scores"], rtol=0, atol=1e-5)
        assert own.keys() == other.keys()
        if "masks" in other:
            assert_same_masks(own["masks"], other["masks"])
    return min(len(of_image["scores"]) for of_image in expected)


def in_the_order_of(other: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """`own`, each row where the same detection is in `other`.

    Two float32 computations may swap detections whose scores differ by less than rounding.
    """
    if len(own["labels"]) != len(other["labels"]) or not len(own["labels"]):
        return own
    off = (other["boxes"][:, None] - own["boxes"]).abs().amax(dim=2) / 1e-3  # (K, K)
    off += (other["scores"][:, None] - own["scores"]).abs() / 1e-5
    off[other["labels"][:, None] != own["labels"]] = torch.inf
    rows = []
    for row in off:
        rows.append(int(row.argmin()))
        off[:, rows[-1]] = torch.inf  # is taken
    return {name: values[rows] for name, values in own.items()}


def assert_same_masks(own: Tensor, other: Tensor) -> None:
    """Compares mask probabilities (K, 1, H, W)."""
    torch.testing.assert_close(own, other, rtol=0, atol=1e-5)
    decided = (other - 0.5).abs() > 1e-5
    assert torch.equal((own > 0.5)[decided], (other > 0.5)[decided])
    if len(other):
        assert 0.02 < float((other > 0.5).sum() / (other > 0).sum()) < 0.98


@every_model
def test_detections_equal_torchvisions(name: str) -> None:
    theirs = copy.deepcopy(torchvision_model(name))
    ours = from_torchvision(theirs)
    assert not ours.training
    odd = [picture(90, 133, seed=3), picture(121, 71, channels=1, seed=4)]
    with unfused():  # folded norms also round differently: see the next test
        assert assert_same_detections(theirs, ours, odd) >= 10
        theirs, ours = theirs.double(), ours.double()
        assert assert_same_detections(theirs, ours, odd) >= 10
    # Magnified, this picture is flat: in float32 scores tie.
    assert assert_same_detections(theirs, ours, [picture(5, 7, seed=5)]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"]
)
def test_folded_norms_give_torchvisions_detections(name: str) -> None:
    """Without amplified rounding: residual branches add little, as in a trained network."""
    torch.manual_seed(0)
    theirs = MODELS[name]()
    for key, norm in theirs.named_modules():
        if key.endswith(".bn3"):
            nn.init.constant_(norm.weight, 0.02)  # type: ignore[arg-type]
    theirs = with_detections(theirs)
    ours = from_torchvision(theirs)
    odd = [picture(90, 133, seed=3), picture(121, 71, channels=1, seed=4)]
    assert assert_same_detections(theirs, ours, odd) >= 10
    assert has_form(ours.backbone)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["faster_rcnn_of_parts", "retinanet_of_parts"])
def test_no_detections(name: str) -> None:
    theirs = copy.deepcopy(torchvision_model(name))
    (theirs.roi_heads if hasattr(theirs, "rpn") else theirs).score_thresh = 1.0
    images = [picture(90, 133), picture(60, 60)]
    assert assert_same_detections(theirs, from_torchvision(theirs), images) == 0


def learning_pair(name: str, samples: int = 20_000) -> tuple[nn.Module, nn.Module]:
    """In training mode and float64. All anchors and proposals are sampled, so nothing is random."""
    theirs = copy.deepcopy(torchvision_model(name)).train().double()
    if hasattr(theirs, "rpn"):
        for part in (theirs.rpn, theirs.roi_heads):
            part.fg_bg_sampler.batch_size_per_image = samples
    return theirs, from_torchvision(theirs)


def losses_of(model: nn.Module) -> dict[str, Tensor]:
    images = [picture(90, 133, seed=6), picture(121, 71, channels=1, seed=7), picture(60, 60)]
    torch.manual_seed(0)
    dtype = next(model.parameters()).dtype
    targets = targets_for(images)
    for target in targets:
        target["boxes"] = target["boxes"].to(dtype)
    return model([image.to(dtype) for image in images], targets)


@every_model
def test_losses_and_gradients_equal_torchvisions(name: str) -> None:
    theirs, ours = learning_pair(name)
    assert ours.training
    expected, losses = losses_of(theirs), losses_of(ours)
    assert set(losses) == set(expected)
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(expected[key].item(), rel=1e-5, abs=1e-7), key
        assert loss > 0, key
    torch.stack(list(expected.values())).sum().backward()
    torch.stack(list(losses.values())).sum().backward()
    parameters = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        assert parameter.requires_grad == parameters[key].requires_grad
        if parameter.grad is not None:
            scale = parameter.grad.abs().max() + 1e-9
            assert (parameters[key].grad - parameter.grad).abs().max() <= 1e-4 * scale, key
    buffers = dict(ours.named_buffers())
    for key, buffer in theirs.named_buffers():
        torch.testing.assert_close(buffers[key], buffer, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("box_loss", ["giou", "diou", "ciou"])
def test_box_losses_of_retinanet(box_loss: str) -> None:
    torch.manual_seed(0)
    theirs = retinanet_of_parts(box_loss).double().train()
    ours = from_torchvision(theirs)
    expected, losses = losses_of(theirs), losses_of(ours)
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(expected[key].item(), rel=1e-5, abs=1e-7), key
    losses["bbox_regression"].backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in ours.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lr"),
    [
        ("faster_rcnn_of_one_map", 0.02),
        ("mask_rcnn_of_parts", 0.02),
        ("retinanet_of_parts", 0.002),
    ],
)
def test_training_follows_torchvisions_curve(name: str, lr: float) -> None:
    curves = []
    for model in learning_pair(name):
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        curve = []
        for _ in range(5):
            loss = torch.stack(list(losses_of(model).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < 0.95 * curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


@every_model
def test_state_dicts_fit_and_share_nothing(name: str) -> None:
    theirs = torchvision_model(name)
    ours = from_torchvision(theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(map(str, state)) == list(map(str, expected))
    for key, value in state.items():
        assert torch.equal(value, expected[key]), key
        assert value.data_ptr() != expected[key].data_ptr(), key


def test_levels_of_a_pooler_that_has_run_are_kept() -> None:
    theirs = copy.deepcopy(torchvision_model("faster_rcnn_of_parts"))
    assert theirs.roi_heads.box_roi_pool.scales == [1 / 16, 1 / 32]
    assert from_torchvision(theirs).roi_heads.pooling.scales == {1: 1 / 16, 2: 1 / 32}  # type: ignore[union-attr]
    theirs.roi_heads.box_roi_pool.scales = [1 / 8, 1 / 16]
    assert from_torchvision(theirs).roi_heads.pooling.scales == {1: 1 / 8, 2: 1 / 16}  # type: ignore[union-attr]


# ---- graphs --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_exported_detect_equals_eager(name: str) -> None:
    ours = from_torchvision(copy.deepcopy(torchvision_model(name)).double())
    batch = ours.pad([picture(90, 133, seed=3).double(), picture(121, 71, seed=4).double()])
    exported = torch.export.export(Detect(ours), (batch,), strict=True).module()
    with torch.no_grad():
        expected, found = ours.detect(batch), exported(batch)
    assert bool((expected.counts > 5).all())
    for key, value in named(expected).items():
        torch.testing.assert_close(getattr(found, key), value, rtol=1e-6, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_compiled_losses_and_gradients_equal_eager(name: str) -> None:
    _, ours = learning_pair(name, samples=40)
    images = [picture(90, 133, seed=6).double(), picture(121, 71, seed=7).double()]
    batch = ours.pad(images, targets_for(images))
    compiled = torch.compile(ours.losses, fullgraph=True, backend="aot_eager")
    results = []
    for losses_of_batch in (ours.losses, compiled):
        torch.manual_seed(3)  # for the samplers
        losses = losses_of_batch(batch)
        ours.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        results.append(losses | {key: p.grad for key, p in ours.named_parameters()})
    for key, value in results[0].items():
        if value is not None:
            scale = value.abs().max() + 1e-9
            assert (results[1][key] - value).abs().max() <= 1e-5 * scale, key


# ---- checkpoints ---------------------------------------------------------------------------------

LIGHT = "fasterrcnn_mobilenet_v3_large_320_fpn"


def without_counts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model with frozen BatchNorms."""
    return {key: value for key, value in state.items() if "num_batches_tracked" not in key}


@pytest.mark.slow
def test_a_file_equals_the_same_weights_from_the_enum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = NUMBERS | PROPOSALS | {"box_score_thresh": 0.0}
    torch.manual_seed(0)
    model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    state = without_counts(with_detections(model).state_dict())
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    asked = []

    def download(url: str, **_: Any) -> Any:
        asked.append(url)
        return torch.load(path)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    downloaded = load_torchvision_weights(LIGHT, **numbers)
    assert asked == [detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.DEFAULT.url]
    monkeypatch.undo()
    loaded = load_torchvision_weights(LIGHT, path, **numbers)
    for ours in (downloaded, loaded):
        assert not ours.training
        assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
        assert set(ours.state_dict()) == set(state)
        assert all(torch.equal(ours.state_dict()[key], value) for key, value in state.items())
    image = picture(90, 120)
    with torch.no_grad():
        (expected,), (found,) = downloaded([image]), loaded([image])
    assert len(expected["scores"]) >= 10
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_file_of_other_classes_whose_batch_norms_learn(tmp_path: Path) -> None:
    theirs = torchvision_model(LIGHT)
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "model_3.pth")
    ours = load_torchvision_weights(LIGHT, tmp_path / "model_3.pth", **NUMBERS, **PROPOSALS)
    assert ours.num_classes == 5
    assert any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    with unfused():
        assert assert_same_detections(theirs, ours, [picture(90, 133, seed=3)]) >= 10


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"other.pth: expected a torchvision detector's keys, missing"
    ):
        load_torchvision_weights(LIGHT, tmp_path / "other.pth")
    torch.save(torchvision_model(LIGHT).state_dict(), tmp_path / "light.pth")
    with pytest.raises(RuntimeError, match="Missing key"):
        load_torchvision_weights("fasterrcnn_resnet50_fpn", tmp_path / "light.pth")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_eps_of_the_first_checkpoints(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.pth"
    torch.save(without_counts(torchvision_model(name).state_dict()), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    own = get_model_weights(name).COCO_V1.value  # type: ignore[attr-defined]
    for url, eps in ((own.url, 1e-5), (f"https://host/name-{digest[:8]}.pth", 0.0)):
        monkeypatch.setattr(own, "url", url)
        norms = load_torchvision_weights(name, path).modules()
        assert {norm.eps for norm in norms if isinstance(norm, FrozenBatchNorm2d)} == {eps}


# ---- errors --------------------------------------------------------------------------------------


class OtherBoxes(BoxCoder):
    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        return rel_codes


class NormedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(32)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.norm(pooled).mean((2, 3))


def set_part(path: str, part: Callable[[], Any]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        *owners, last = path.split(".")
        for owner in owners:
            model = getattr(model, owner)
        setattr(model, last, part())

    return change


@pytest.mark.parametrize(
    ("path", "part", "message"),
    [
        ("roi_heads.keypoint_head", nn.Identity, "roi_heads.keypoint_head: expected None"),
        ("roi_heads.mask_head", nn.Identity, "roi_heads.mask_roi_pool: expected all of .*got None"),
        ("roi_heads.box_coder", lambda: OtherBoxes((1.0,) * 4), "own decode, got OtherBoxes's"),
        ("rpn.box_coder", lambda: BoxCoder((2.0,) * 4), r"rpn.box_coder.weights: .*got \(2"),
        ("rpn.anchor_generator", lambda: AnchorGenerator(((32,),)), "for .* 4 levels, got 1"),
        ("rpn.head", lambda: detection.rpn.RPNHead(32, 7), r"rpn.head: .*got \[\(7, 28\)"),
        ("roi_heads.box_predictor.bbox_pred", lambda: nn.Linear(1024, 4), "4 deltas for 4 classes"),
        ("roi_heads.box_roi_pool.featmap_names", lambda: ["p9"], r"some of \['c3', .*got \['p9'\]"),
        ("roi_heads.box_roi_pool.scales", lambda: [0.5, 0.125], r"half the scale .*\[0.5, 0.125\]"),
        ("roi_heads.proposal_matcher", lambda: Matcher(0.5, 0.5, True), "_matches: expected False"),
        ("roi_heads.box_head", NormedHead, "box_head: expected BatchNorm2d only in Sequentials"),
        ("transform._skip_resize", lambda: True, "transform._skip_resize: expected False"),
        ("transform", nn.Identity, "transform: expected .*GeneralizedRCNNTransform, got Identity"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(
    path: str, part: Callable[[], Any], message: str
) -> None:
    model = faster_rcnn_of_parts()
    if path == "roi_heads.box_head":
        model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(32, 4)
    set_part(path, part)(model)
    with pytest.raises(ValueError, match=message):
        from_torchvision(model)


@pytest.mark.parametrize(
    ("path", "part", "message"),
    [
        ("roi_heads.mask_predictor", lambda: None, "roi_heads.mask_predictor: .* got None"),
        ("roi_heads.mask_predictor.mask_fcn_logits", lambda: nn.Conv2d(16, 3, 1), "of 4 .* got 3"),
        ("roi_heads.mask_roi_pool.featmap_names", lambda: ["p9"], r"mask_roi_pool.* got \['p9'\]"),
    ],
)
def test_mask_parts_without_counterpart_are_refused(
    path: str, part: Callable[[], Any], message: str
) -> None:
    model = mask_rcnn_of_parts()
    set_part(path, part)(model)
    with pytest.raises(ValueError, match=message):
        from_torchvision(model)


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got torchvision.models.detection.ssd.SSD"):
        from_torchvision(detection.ssd300_vgg16(weights=None, weights_backbone=None))

# SPDX-License-Identifier: BSD-3-Clause
"""DETRs that are converted from transformers: same detections and losses, and all that ours can."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.deploy.export import export_detector
from fastdet.engine.fused import unfused
from fastdet.models import (
    DETR,
    Border,
    DeformableDETR,
    Detector,
    from_transformers,
    replace_classes,
)
from fastdet.models.transformers_weights import border_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 12,
    "id2label": {0: "N/A", 1: "cat", 2: "dog"},
    "class_cost": 1,
    "auxiliary_loss": True,
    "dropout": 0.0,
}
SIZE = {"shortest_edge": 64, "longest_edge": 90}
IMAGES = [(60, 81), (120, 48), (64, 64)]


def resnet(*stages: str) -> Any:
    """A ResNet of transformers."""
    return transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 72, 80, 96],
        depths=[1, 1, 1, 2],
        layer_type="basic",
        out_features=list(stages),
    )


def timm_backbone(*indices: int) -> Any:
    return transformers.TimmBackboneConfig(
        backbone="resnet10t", out_indices=list(indices), use_pretrained_backbone=False
    )


def detr(backbone: Any = None, **options: Any) -> Any:
    config = transformers.DetrConfig(
        backbone_config=backbone or resnet("stage4"), **(SMALL | options)
    )
    return transformers.DetrForObjectDetection(config)


def deformable_detr(backbone: Any = None, **options: Any) -> Any:
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone or resnet("stage2", "stage3", "stage4"), **(SMALL | options)
    )
    return transformers.DeformableDetrForObjectDetection(config)


TWO_STAGE = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 12}
MODELS: dict[str, Callable[[], Any]] = {
    "detr": detr,
    "detr_without_auxiliary_loss": lambda: detr(auxiliary_loss=False),
    "detr_timm": lambda: detr(timm_backbone(1, 2, 3, 4), activation_function="gelu"),
    "deformable_detr": deformable_detr,
    "deformable_detr_timm": lambda: deformable_detr(
        timm_backbone(2, 3, 4), encoder_n_points=2, decoder_n_points=3
    ),
    "deformable_detr_refined": lambda: deformable_detr(with_box_refine=True),
    "deformable_detr_two_stage": lambda: deformable_detr(**TWO_STAGE),
    "deformable_detr_one_level": lambda: deformable_detr(resnet("stage4"), num_feature_levels=1),
}


def spread(model: Any) -> Any:
    """The model in eval mode, with random numbers in every weight that starts at a constant."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif "query_position" in name or "class" in name:
                tensor.normal_()
            elif name.endswith("_proj.weight"):  # else all queries attend to the same
                tensor.normal_(std=0.5)
            elif tensor.dim() < 2 or "sampling" in name or "bbox" in name:
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    return model.eval()


def images(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator).to(dtype) for size in IMAGES]


def processor_of(model: Any) -> Any:
    name = type(model).__name__.replace("ForObjectDetection", "ImageProcessor")
    return getattr(transformers, name)(size=SIZE)


@torch.no_grad()
def theirs(model: Any, processor: Any, pictures: list[Tensor]) -> list[dict[str, Tensor]]:
    """What transformers finds, clipped to the images and sorted."""
    inputs = processor(pictures, do_rescale=False, return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].to(pictures[0].dtype)
    outputs = model(**inputs)
    sizes = torch.tensor([picture.shape[1:] for picture in pictures])
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    answers = []
    for own, (height, width) in zip(found, sizes.tolist(), strict=True):
        limits = torch.tensor([width, height, width, height])
        order = own["scores"].argsort(descending=True)
        boxes = own["boxes"].clamp(min=0).minimum(limits)
        answers.append(
            {"boxes": boxes[order], "scores": own["scores"][order], "labels": own["labels"][order]}
        )
    return answers


def assert_same(found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    for own, other in zip(found, expected, strict=True):
        assert len(own["scores"]) == len(other["scores"]) >= 12
        torch.testing.assert_close(own["scores"], other["scores"], rtol=0, atol=1e-5)
        # Of equal scores the order may differ: each detection has its counterpart.
        off = (own["boxes"][:, None] - other["boxes"]).abs().amax(-1) / 1e-3
        off = off.maximum((own["scores"][:, None] - other["scores"]).abs() / 1e-5)
        off = off.where(own["labels"][:, None] == other["labels"] + 1, torch.inf)
        assert off.amin(0).max() < 1
        assert off.amin(1).max() < 1


@pytest.mark.parametrize("name", MODELS)
def test_detections_are_those_of_transformers(name: str) -> None:
    """In float64: in float32 rounding may be as large as the tolerance."""
    model, pictures = spread(MODELS[name]()).double(), images(torch.float64)
    processor = processor_of(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    detector = from_transformers(model, processor)
    expected = theirs(model, processor, pictures)
    with torch.no_grad():
        assert_same(detector(pictures), expected)
    assert all(float(found["scores"].std()) > 1e-4 for found in expected)
    assert detector.classes == ["background", "N/A", "cat", "dog"]
    assert not detector.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["detr_timm", "deformable_detr_two_stage"])
def test_a_local_folder(name: str, tmp_path: Path) -> None:
    model = spread(MODELS[name]())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    processor = processor_of(model)
    processor.save_pretrained(tmp_path)
    detector = from_transformers(tmp_path).double()
    assert not detector.training
    pictures = images(torch.float64)
    with torch.no_grad():
        assert_same(detector(pictures), theirs(model.double(), processor, pictures))


def targets() -> list[dict[str, Tensor]]:
    boxes = [[[5.0, 8, 40, 50], [20, 4, 75, 30]], [[3.0, 20, 45, 110]], []]
    return [
        {
            "boxes": torch.tensor(own).view(-1, 4),
            "labels": torch.arange(len(own)) + 2,
        }
        for own in boxes
    ]


@pytest.mark.parametrize(
    "name", ["detr", "detr_without_auxiliary_loss", "deformable_detr", "deformable_detr_refined"]
)
def test_losses_and_gradients_are_those_of_transformers(name: str) -> None:
    pytest.importorskip("scipy", reason="transformers' matchers need SciPy")
    model = spread(MODELS[name]())
    processor = processor_of(model)
    detector = from_transformers(model, processor)
    losses = detector.losses(detector.pad(images(), targets()))
    labels = []
    for target, (height, width) in zip(targets(), IMAGES, strict=True):
        low, high = target["boxes"][:, :2], target["boxes"][:, 2:]
        sides = torch.tensor([width, height, width, height])
        boxes = torch.cat(((low + high) / 2, high - low), 1) / sides
        labels.append({"class_labels": target["labels"] - 1, "boxes": boxes})
    inputs = processor(images(), do_rescale=False, return_tensors="pt")
    expected = model(**inputs, labels=labels)
    total = torch.stack(list(losses.values())).sum()
    torch.testing.assert_close(total, expected.loss, rtol=1e-4, atol=1e-4)
    total.backward()
    expected.loss.backward()
    ours = detector.get_submodule("backbone.fpn.projections.0.0").weight.grad
    projection = "input_proj.0.0" if name.startswith("def") else "input_projection"
    other = model.model.get_submodule(projection).weight.grad
    assert float(ours.norm()) > 0  # type: ignore[union-attr]
    torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@pytest.fixture(scope="module")
def converted() -> dict[str, Detector]:
    models = {name: spread(MODELS[name]()) for name in ("detr", "deformable_detr_two_stage")}
    return {name: from_transformers(model, processor_of(model)) for name, model in models.items()}


def test_it_trains(converted: dict[str, Detector]) -> None:
    """Frozen is what is frozen in transformers: all of its ResNet, and of timm's the norms."""
    for detector in converted.values():
        losses = detector.train()(images(), targets())
        torch.stack(list(losses.values())).sum().backward()
        for name, parameter in detector.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert bool(parameter.grad.isfinite().all()), name
        detector.eval()
    timm_model = from_transformers(MODELS["detr_timm"]())
    assert all(parameter.requires_grad for parameter in timm_model.parameters())
    for name, parameter in converted["detr"].named_parameters():
        assert parameter.requires_grad != name.startswith("backbone.body."), name


@pytest.mark.slow
def test_two_stages_export(converted: dict[str, Detector], tmp_path: Path) -> None:
    """The suite of all families has one stage."""
    detector = converted["deformable_detr_two_stage"].eval()
    batch = detector.pad(images()[:1])
    size = (batch.images.shape[2], batch.images.shape[3])
    export_detector(detector, tmp_path / "it.pt2", size)
    package = torch.export.load(tmp_path / "it.pt2").module()
    pixels = torch.rand(1, 3, *size)
    mean, std = (
        torch.tensor(x)[:, None, None]
        for x in (detector.border.image_mean, detector.border.image_std)
    )
    with torch.no_grad(), unfused():
        expected = detector.detect(batch._replace(images=(pixels - mean) / std))
    from_file = package(pixels, batch.sizes)
    torch.testing.assert_close(from_file["scores"], expected.scores, rtol=0, atol=1e-4)


def test_other_classes(converted: dict[str, Detector]) -> None:
    for detector in converted.values():
        before = detector.get_parameter("backbone.fpn.projections.0.0.weight").clone()
        replace_classes(detector, 7)
        found = detector.eval()(images())
        assert all(bool((own["labels"] < 7).all()) for own in found)
        assert torch.equal(detector.get_parameter("backbone.fpn.projections.0.0.weight"), before)


def test_kinds_and_options() -> None:
    one = from_transformers(detr(eos_coefficient=0.3, bbox_loss_coefficient=7))
    assert isinstance(one, DETR)
    assert (one.no_object_weight, one.loss_weights["bbox_regression"]) == (0.3, 7)
    assert (one.border.min_size, one.border.max_size) == (800, 1333)
    assert one.training  # as transformers' model
    two = from_transformers(deformable_detr(focal_alpha=0.4, auxiliary_loss=False))
    assert isinstance(two, DeformableDETR)
    assert (two.focal_alpha, two.aux_weight, len(two.heads)) == (0.4, 0.0, 1)


def test_borders() -> None:
    processor = transformers.DetrImageProcessor(
        size={"height": 32, "width": 48}, do_normalize=False
    )
    border = border_of(processor)
    assert border == Border(
        fixed_size=(32, 48), size_divisor=1, image_mean=(0.0,) * 3, image_std=(1.0,) * 3,
        antialias=True,
    )  # fmt: skip
    for options, message in (
        ({"do_resize": False}, "processor.do_resize: expected True"),
        ({"rescale_factor": 1.0}, "processor.rescale_factor: expected 1/255, got 1.0"),
        ({"resample": 3}, "processor.resample: expected bilinear"),
        ({"size": {"max_height": 9, "max_width": 9}}, "processor.size: expected shortest_edge"),
    ):
        with pytest.raises(ValueError, match=message):
            border_of(transformers.DetrImageProcessor(**options))


@pytest.mark.parametrize(
    ("height", "width"), [(480, 640), (640, 427), (1333, 799), (100, 3000), (800, 800), (99, 98)]
)
def test_images_get_the_size_of_transformers(height: int, width: int) -> None:
    processor = transformers.DetrImageProcessor()
    image = torch.rand(3, height, width)
    expected = processor([image], do_rescale=False, return_tensors="pt")["pixel_values"]
    found = border_of(processor).pad([image], num_classes=2).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "model: expected transformers' Detr.*got torch.nn"),
        (lambda: detr(position_embedding_type="learned"), "position_embedding_type: .*'learned'"),
        (lambda: detr(activation_function="tanh"), "activation_function: .* got tanh"),
        (lambda: detr(decoder_ffn_dim=24), "config.decoder_ffn_dim: expected .*16, got 24"),
        (
            lambda: detr(
                transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4)
            ),
            "embedding_size: expected 64, got 8",
        ),
        (
            lambda: detr(
                transformers.ConvNextConfig(
                    hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"]
                )
            ),
            "model_type: expected timm_backbone or resnet, got convnext",
        ),
        (
            lambda: detr(
                transformers.TimmBackboneConfig(
                    backbone="resnet10t", out_indices=[2, 3], use_pretrained_backbone=False
                )
            ),
            r"backbone_config: layer4\..*: expected this weight in both models, got it here alone",
        ),
        (  # transformers replaces norms with an activation by norms without
            lambda: detr(
                transformers.TimmBackboneConfig(
                    backbone="mobilenetv3_small_050",
                    out_indices=[1, 2, 3, 4],
                    use_pretrained_backbone=False,
                )
            ),
            "backbone_config: expected a network whose last maps are those of timm's",
        ),
    ],
)
def test_what_has_no_counterpart_is_named(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_transformers(build())


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json, got .*nothing"):
        from_transformers(tmp_path / "nothing")
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": ["YolosForObjectDetection"]})
    )
    with pytest.raises(ValueError, match=r"architectures: expected Detr.*, got Yolos"):
        from_transformers(tmp_path)
    model = detr()
    state = model.state_dict()
    del state["bbox_predictor.layers.1.weight"]
    model.save_pretrained(tmp_path / "cut", state_dict=state)
    with pytest.raises(ValueError, match=r"missing bbox_predictor\.layers\.1\.weight"):
        from_transformers(tmp_path / "cut")

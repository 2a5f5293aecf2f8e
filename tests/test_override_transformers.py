# SPDX-License-Identifier: BSD-3-Clause
"""transformers' DETRs on fastdet's operators: same outputs, losses and gradients, then undone."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastdet
from fastdet import override_transformers

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("scipy", reason="transformers' matchers need SciPy")

SMALL: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": 20,
    "num_labels": 5,
}


def resnet(*stages: str) -> Any:
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1] * 4, out_features=list(stages)
    )


def detr() -> Any:
    config = transformers.DetrConfig(
        backbone_config=resnet("stage4"), backbone=None, use_timm_backbone=False, **SMALL
    )
    return transformers.DetrForObjectDetection(config)


def deformable_detr() -> Any:
    config = transformers.DeformableDetrConfig(
        backbone_config=resnet("stage2", "stage3", "stage4"),
        backbone=None,
        use_timm_backbone=False,
        **SMALL,
    )
    return transformers.DeformableDetrForObjectDetection(config)


def rt_detr_numbers() -> dict[str, Any]:
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    numbers = SMALL | {
        "backbone_config": backbone,
        "encoder_hidden_dim": 32,
        "encoder_in_channels": [16, 24, 32],
        "decoder_in_channels": [32, 32, 32],
        "num_denoising": 4,
    }
    del numbers["encoder_ffn_dim"], numbers["decoder_ffn_dim"]
    return numbers


def rt_detr() -> Any:
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(**rt_detr_numbers()))


def rt_detr_v2(**more: Any) -> Any:
    config = transformers.RTDetrV2Config(**rt_detr_numbers(), **more)
    return transformers.RTDetrV2ForObjectDetection(config)


def d_fine() -> Any:
    """With other numbers of points on each level."""
    config = transformers.DFineConfig(**rt_detr_numbers(), decoder_n_points=[3, 6, 3])
    return transformers.DFineForObjectDetection(config)


# The operators that each is expected to run.
BOTH = {"match_queries", "ms_deform_attn"}
MODELS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "DETR": (detr, {"match_queries"}),
    "Deformable DETR": (deformable_detr, BOTH),
    "RT-DETR": (rt_detr, BOTH),
    "RT-DETRv2": (rt_detr_v2, BOTH),
    "RT-DETRv2, discrete": (lambda: rt_detr_v2(decoder_method="discrete"), {"match_queries"}),
    "D-FINE": (d_fine, BOTH),
}


def targets() -> list[dict[str, Tensor]]:
    """Three objects in one image, none in the other."""
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2], [0.5, 0.5, 0.8, 0.9]])
    return [
        {"class_labels": torch.tensor([1, 3, 4]), "boxes": boxes},
        {
            "class_labels": torch.zeros(0, dtype=torch.int64),
            "boxes": torch.zeros(0, 4),
        },
    ]


def step(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and losses of a training step, and gradients."""
    torch.manual_seed(1)  # for denoising queries
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    out = model(pixel_values=images, labels=targets())
    out.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    losses = {name: value.detach() for name, value in out.loss_dict.items()}
    return {"logits": out.logits.detach(), "boxes": out.pred_boxes.detach(), **losses}, gradients


@pytest.mark.parametrize("name", MODELS)
def test_outputs_losses_and_gradients_are_the_same(name: str) -> None:
    build, operators = MODELS[name]
    torch.manual_seed(0)
    model = build().eval()
    for key, parameter in model.named_parameters():
        if "sampling_offsets" in key:  # they begin at pixel centres, where the gradient jumps
            parameter.data += 0.1 * torch.randn(parameter.shape)
    expected, expected_gradients = step(model)
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found, gradients = step(model)
    ran = {event.key.removeprefix("fastdet::") for event in profiled.key_averages()}
    assert ran & BOTH == operators
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for key, gradient in expected_gradients.items():  # rounding may switch a ReLU
        off = float((gradients[key] - gradient).abs().max())
        assert off <= 1e-3 * float(gradient.abs().max()) + 1e-5 * largest, key


@pytest.mark.parametrize("model", override_transformers._WITH_CLASS)
def test_attention_of_each_model_is_the_same(model: str) -> None:
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    attention = module.MultiScaleDeformableAttention()
    shapes = [(4, 6), (2, 3)]
    value, locations = torch.rand(2, 30, 2, 8), torch.rand(2, 5, 2, 2, 3, 2) * 1.4 - 0.2
    weights = torch.rand(2, 5, 2, 2, 3)
    starts = torch.tensor([0, 24])
    arguments = (value, torch.tensor(shapes), shapes, starts, locations, weights, 64)
    expected = attention(*arguments)
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found = attention(*arguments)
    assert any(event.key == "fastdet::ms_deform_attn" for event in profiled.key_averages())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def owners() -> dict[str, Any]:
    """What an override replaces."""
    found = {}
    for path in (
        "models.deformable_detr.modeling_deformable_detr.MultiScaleDeformableAttention.forward",
        "models.rt_detr.modeling_rt_detr.MultiScaleDeformableAttention.forward",
        "models.rt_detr_v2.modeling_rt_detr_v2.multi_scale_deformable_attention_v2",
        "loss.loss_for_object_detection.HungarianMatcher.forward",
        "loss.loss_deformable_detr.DeformableDetrHungarianMatcher.forward",
        "loss.loss_rt_detr.RTDetrHungarianMatcher.forward",
    ):
        parts = path.split(".")
        length = 3 if parts[0] == "models" else 2
        value: Any = importlib.import_module(".".join(["transformers", *parts[:length]]))
        for part in parts[length:]:
            value = getattr(value, part)
        found[path] = value
    return found


def test_undo_leaves_no_trace() -> None:
    before = owners()
    first, second = fastdet.override_detr(), fastdet.override_detr()
    assert all(value is not before[path] for path, value in owners().items())
    first.undo()
    first.undo()
    assert all(value is not before[path] for path, value in owners().items())
    second.undo()
    assert all(value is before[path] for path, value in owners().items())
    assert override_transformers._REPLACEMENTS._restore == []


@pytest.mark.slow
def test_a_model_that_was_made_in_an_override_keeps_nothing_of_it() -> None:
    with fastdet.override_detr():
        models = [build() for build, _ in MODELS.values()]
    for model in models:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step(model.eval())
        assert not any(event.key.startswith("fastdet::") for event in profiled.key_averages())


def test_an_exception_undoes_it() -> None:
    before = owners()
    with pytest.raises(ZeroDivisionError), fastdet.override_detr():
        raise ZeroDivisionError
    assert owners() == before


def test_without_transformers_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match="transformers"):
        fastdet.override_detr()

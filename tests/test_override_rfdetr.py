# SPDX-License-Identifier: BSD-3-Clause
"""RF-DETR on fastdet's operators: same outputs, matches, losses and gradients, then undone."""

import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fastdet

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("rfdetr", reason="rfdetr is not installed")
attention: Any = importlib.import_module("rfdetr.models.ops.modules.ms_deform_attn")
matching: Any = importlib.import_module("rfdetr.models.matcher")


def operators(profiled: profile) -> set[str]:
    names = (event.key for event in profiled.key_averages())
    return {n.removeprefix("fastdet::") for n in names if n.startswith("fastdet::")}


@pytest.mark.parametrize("with_shapes", [False, True])
@pytest.mark.parametrize("sides", [2, 4])
@pytest.mark.parametrize("shapes", [[(5, 7)], [(6, 8), (3, 4), (2, 2)]])
def test_attention_is_the_same(
    shapes: list[tuple[int, int]], sides: int, with_shapes: bool
) -> None:
    torch.manual_seed(0)
    levels, pixels = len(shapes), sum(height * width for height, width in shapes)
    module = attention.MSDeformAttn(32, levels, 4, 2).double()
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    query = torch.randn(2, 9, 32, dtype=torch.float64, requires_grad=True)
    pyramid = torch.randn(2, pixels, 32, dtype=torch.float64, requires_grad=True)
    references = torch.rand(2, 9, levels, sides, dtype=torch.float64)
    padding = torch.rand(2, pixels) < 0.2
    sizes = torch.tensor(shapes)
    starts = torch.tensor([0, *(h * w for h, w in shapes[:-1])]).cumsum(0)
    arguments = (query, references, pyramid, sizes, starts, padding)

    def run() -> list[Tensor]:
        out = module(*arguments, shapes if with_shapes else None)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        inputs = (query, pyramid, *module.parameters())
        return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs)]

    expected = run()
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found = run()
    assert operators(profiled) == {"ms_deform_attn", "ms_deform_attn_backward"}
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_attention_in_export_mode_is_rfdetrs() -> None:
    module = attention.MSDeformAttn(32, 1, 4, 2)
    module.export()
    sizes, starts = torch.tensor([(5, 7)]), torch.tensor([0])
    arguments = torch.randn(1, 9, 32), torch.rand(1, 9, 1, 4), torch.randn(1, 35, 32), sizes, starts
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        module(*arguments, None, [(5, 7)])
    assert operators(profiled) == set()


def predictions(layers: int, images: int, queries: int = 26) -> list[dict[str, Tensor]]:
    return [
        {
            "pred_logits": 3 * torch.randn(images, queries, 7),
            "pred_boxes": 0.3 + 0.3 * torch.rand(images, queries, 4),
        }
        for _ in range(layers)
    ]


def targets(*counts: int) -> list[dict[str, Tensor]]:
    return [
        {"labels": torch.randint(0, 7, (n,)), "boxes": 0.3 + 0.3 * torch.rand(n, 4)} for n in counts
    ]


@pytest.mark.parametrize("groups", [1, 13])
@pytest.mark.parametrize("counts", [(3,), (4, 0, 2), (40, 1)])
def test_matches_are_the_same(counts: tuple[int, ...], groups: int) -> None:
    torch.manual_seed(0)
    matcher = matching.HungarianMatcher(2, 5, 2, focal_alpha=0.3)
    layers, wanted = predictions(3, len(counts)), targets(*counts)
    expected = [matcher(outputs, wanted, groups) for outputs in layers]
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found = [matcher(outputs, wanted, groups) for outputs in layers]
        many = matcher._match_many(layers, wanted, group_detr=groups)
    assert operators(profiled) == {"match_queries"}
    for layer in (found, many):
        torch.testing.assert_close(layer, expected, rtol=0, atol=0)


@pytest.mark.parametrize("what", ["masks", "valid", "half", "NaN", "no targets", "groups"])
def test_what_ours_does_not_take_is_rfdetrs(what: str) -> None:
    torch.manual_seed(0)
    matcher = matching.HungarianMatcher(2, 5, 2)
    (outputs,), wanted = predictions(1, 2), targets(*((0, 0) if what == "no targets" else (3, 3)))
    if what == "masks":
        outputs["pred_masks"] = torch.randn(2, 26, 8, 8)
        wanted = [{**w, "masks": torch.ones(len(w["boxes"]), 8, 8)} for w in wanted]
    elif what == "valid":
        wanted = [{**w, "valid": torch.arange(len(w["boxes"])) < 2} for w in wanted]
    elif what == "half":
        outputs = {name: value.bfloat16() for name, value in outputs.items()}
        wanted = [{**w, "boxes": w["boxes"].bfloat16()} for w in wanted]
    elif what == "NaN":
        outputs["pred_logits"][0, 3] = float("nan")

    def run() -> Any:
        torch.manual_seed(1)  # masks are compared at random points
        try:
            return matcher(outputs, wanted, 5 if what == "groups" else 1)
        except ValueError as error:
            return str(error)

    expected = run()
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found = run()
    assert operators(profiled) == set()
    if what == "groups":
        assert found == expected
        assert "divisible" in found
    else:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.slow
def test_a_training_step_is_the_same() -> None:
    """RF-DETR Nano on small images, with random weights."""
    config: Any = importlib.import_module("rfdetr.config")
    building: Any = importlib.import_module("rfdetr.models.lwdetr")
    small = {"pretrain_weights": None, "device": "cpu", "resolution": 64}
    nano = config.RFDETRNanoConfig(**small, positional_encoding_size=4, num_queries=20)
    torch.manual_seed(0)
    model = building.build_model_from_config(nano).train()
    options = config.TrainConfig(dataset_dir=".", output_dir=".")
    criterion, _ = building.build_criterion_from_config(nano, options)
    images, wanted = torch.rand(2, 3, 64, 64), targets(3, 2)

    def step() -> tuple[dict[str, Tensor], list[Tensor]]:
        torch.manual_seed(1)
        losses = criterion(model(images, wanted), wanted)
        total = sum(losses[name] * weight for name, weight in criterion.weight_dict.items())
        weights = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(total, weights, allow_unused=True)
        return losses, [g for g in gradients if g is not None]

    expected, expected_gradients = step()
    with fastdet.override_detr(), profile(activities=[ProfilerActivity.CPU]) as profiled:
        found, gradients = step()
    assert operators(profiled) >= {"match_queries", "ms_deform_attn"}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        off = float((ours - theirs).abs().max())
        assert off <= 1e-3 * float(theirs.abs().max()) + 1e-4 * largest


def test_undo_leaves_no_trace() -> None:
    def replaced() -> list[Any]:
        matcher = vars(matching.HungarianMatcher)
        core = vars(attention)["ms_deform_attn_core_pytorch"]
        return [core, matcher["forward"], matcher["_match_many"]]

    before = replaced()
    with fastdet.override_detr():
        assert all(ours is not theirs for ours, theirs in zip(replaced(), before, strict=True))
    assert all(ours is theirs for ours, theirs in zip(replaced(), before, strict=True))


def test_another_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(value: Tensor) -> Tensor:
        return value

    monkeypatch.setattr(attention, "ms_deform_attn_core_pytorch", other)
    monkeypatch.setattr(matching.HungarianMatcher, "forward", other)
    with fastdet.override_detr():
        assert attention.ms_deform_attn_core_pytorch is other
        assert matching.HungarianMatcher.forward is other


def test_it_is_not_imported_for_this() -> None:
    code = (
        "import sys, fastdet\n"
        "with fastdet.override_detr():\n"
        "    assert not any(name.partition('.')[0] == 'rfdetr' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

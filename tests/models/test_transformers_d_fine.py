# SPDX-License-Identifier: BSD-3-Clause
"""D-FINE of transformers, converted: same weights, same detections, same losses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.engine.fused import has_form, unfused
from fastdet.models import DFINE, replace_classes
from fastdet.models.relative_boxes import relative_boxes
from fastdet.models.transformers_d_fine import d_fine_from_transformers

from .transformers_parity import (
    BORDER,
    CLASSES,
    HEIGHT,
    SMALL,
    WIDTH,
    assert_a_folder_is_converted,
    assert_same_detections,
    detections_of,
    images,
    randomised,
)

transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed")

KINDS = ("light", "wider levels", "two levels", "discrete")
OF_D_FINE: dict[str, Any] = {
    "encoder_in_channels": [24, 32, 40],
    "decoder_n_points": [3, 6, 3],
    "depth_mult": 0.34,
    "lqe_hidden_dim": 8,
}
TWO_LEVELS: dict[str, Any] = {
    "encoder_in_channels": [32, 40],
    "decoder_in_channels": [16, 16],
    "feat_strides": [16, 32],
    "encode_proj_layers": [1],
    "num_feature_levels": 2,
    "decoder_n_points": 2,
}


def config_of(kind: str = "light", **further: Any) -> Any:
    light = kind == "light"
    levels = 2 if kind == "two levels" else 3
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 24, 32],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[16, 24, 32, 40],
        hidden_sizes=[16, 24, 32, 40],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[1, 2, 1, 1],
        use_learnable_affine_block=light,
        out_features=["stage2", "stage3", "stage4"][-levels:],
    )
    options = SMALL | OF_D_FINE | {"backbone_config": backbone}
    options |= {"freeze_backbone_batch_norms": not light}
    if kind == "wider levels":
        options |= {"encoder_hidden_dim": 24, "decoder_in_channels": [24, 24, 24]}
        options |= {"encoder_layers": 2, "depth_mult": 0.67, "reg_scale": 8.0, "max_num_bins": 16}
    options |= TWO_LEVELS if kind == "two levels" else {}
    options |= {"decoder_method": "discrete"} if kind == "discrete" else {}
    return transformers.DFineConfig(**(options | further))


def theirs_of(kind: str = "light", **further: Any) -> Any:
    torch.manual_seed(0)
    return randomised(transformers.DFineForObjectDetection(config_of(kind, **further)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_detections(kind: str) -> None:
    theirs = theirs_of(kind)
    ours = d_fine_from_transformers(theirs, BORDER)
    assert ours.num_classes == CLASSES + 1
    assert not ours.training
    expected = detections_of(theirs)
    with torch.no_grad():
        assert_same_detections(ours(list(images())), expected)
        assert has_form(ours.backbone)
        with unfused():
            assert_same_detections(ours(list(images())), expected)


def test_a_local_folder_with_images_of_another_size(tmp_path: Path) -> None:
    theirs = theirs_of(id2label={0: "cat", 1: "dog", 2: "N/A"})
    assert_a_folder_is_converted(theirs, DFINE, tmp_path)


def targets() -> list[dict[str, Tensor]]:
    boxes = [[[3.0, 4, 60, 50], [20, 20, 31, 29]], [[40.0, 8, 95, 60]]]
    return [
        {"boxes": torch.tensor(own), "labels": torch.tensor(labels)}
        for own, labels in zip(boxes, ([1, 3], [2]), strict=True)
    ]


def union(matches: list[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor]]:
    """For each image, the queries that any layer matches, and for each the gt of most layers."""
    pairs = []
    for of_image in zip(*matches, strict=True):
        gts: dict[int, list[int]] = {}
        for queries, own in of_image:
            for query, gt in zip(queries.tolist(), own.tolist(), strict=True):
                gts.setdefault(query, []).append(gt)
        chosen = {  # of equals that of the last layer
            query: max(of_query, key=lambda gt: (of_query.count(gt), of_query[::-1].index(gt) * -1))
            for query, of_query in gts.items()
        }
        pairs.append((torch.tensor([*chosen]), torch.tensor([*chosen.values()])))
    return pairs


def losses_of_theirs(model: Any, labels: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """By transformers' criterion, for the layers and the matches of the authors' code.

    transformers itself pairs the distributions of a layer with the boxes of the one before, has
    none of the last layer, and does not join the matches.
    """
    pytest.importorskip("scipy", reason="transformers' matcher needs SciPy")
    from transformers.loss.loss_d_fine import DFineLoss

    criterion = DFineLoss(model.config)
    out = model(pixel_values=images().double())
    # The criterion takes float32 alone.
    scores, boxes = out.intermediate_logits.float(), out.intermediate_reference_points.float()
    layers = [{"logits": out.enc_topk_logits.float(), "pred_boxes": out.enc_topk_bboxes.float()}]
    layers += [
        {"logits": own, "pred_boxes": of_layer}
        for own, of_layer in zip(scores.unbind(1), boxes.unbind(1), strict=True)
    ]
    corners = out.intermediate_predicted_corners.float()
    for number, layer in enumerate(layers[2:]):
        layer |= {
            "pred_corners": corners[:, number],
            "ref_points": out.initial_reference_points[:, number].float(),
            "teacher_corners": corners[:, -1],
            "teacher_logits": scores[:, -1],
        }
    matches = [criterion.matcher(layer, labels) for layer in layers]
    joined = union(matches)
    number, pairs = sum(len(x["boxes"]) for x in labels), sum(len(x) for x, _ in joined)
    assert pairs > number
    found: dict[str, list[Tensor]] = {}
    for layer, match in zip(layers, matches, strict=True):
        losses = criterion.get_loss("vfl", layer, labels, match, number)
        for kind in ("boxes", "local"):
            losses |= criterion.get_loss(kind, layer, labels, joined, pairs)
        for name, loss in losses.items():
            found.setdefault(name, []).append(loss * criterion.weight_dict[name])
    return {name: torch.stack(losses).sum() for name, losses in found.items()}


@pytest.mark.parametrize("kind", ["light", "two levels"])
def test_the_same_losses_and_gradients(kind: str) -> None:
    """Without denoising, whose random numbers differ; in float64, as norms enlarge rounding."""
    theirs = theirs_of(kind, num_denoising=0).double().train()
    ours = d_fine_from_transformers(theirs, BORDER)
    assert ours.training
    size = torch.tensor([[HEIGHT, WIDTH]])
    given = [
        {"class_labels": t["labels"] - 1, "boxes": relative_boxes(t["boxes"][None], size)[0]}
        for t in targets()
    ]
    expected = losses_of_theirs(theirs, given)
    losses = ours.losses(ours.pad(list(images().double()), targets()))
    names = {
        "classification": "loss_vfl",
        "bbox_regression": "loss_bbox",
        "bbox_giou": "loss_giou",
        "bbox_distribution": "loss_fgl",
        "distillation": "loss_ddf",
    }
    assert set(losses) == set(names)
    for name, of_theirs in names.items():
        wanted = expected[of_theirs].double()
        torch.testing.assert_close(losses[name], wanted, rtol=1e-4, atol=1e-5)
        assert losses[name] > 0.01
    for of_side in (losses, expected):
        torch.stack(list(of_side.values())).sum().backward()
    own = ours.get_parameter("backbone.fpn.laterals.0.0.weight").grad
    other = theirs.model.get_parameter("encoder_input_proj.0.0.weight").grad
    assert own is not None
    torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_it_trains_with_denoising_and_for_other_classes() -> None:
    theirs = theirs_of()
    ours = d_fine_from_transformers(theirs.train(), BORDER)
    embedding = theirs.model.denoising_class_embed.weight
    assert torch.equal(ours.head.selection.label_embedding.weight[1:], embedding[:-1])
    replace_classes(ours, 6)
    target = {"boxes": torch.tensor([[3.0, 4, 60, 50]]), "labels": torch.tensor([5])}
    losses = ours(list(images()), [target, target])
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_what_has_no_counterpart_is_named() -> None:
    theirs = theirs_of()
    for name, value, expected in (
        ("learn_initial_query", True, "False"),
        ("eval_idx", 0, "1"),
        ("encode_proj_layers", [1], r"\[2\]"),
        ("feat_strides", [4, 8, 16], r"\[8, 16, 32\]"),
    ):
        config = copy.deepcopy(theirs.config)
        setattr(theirs.config, name, value)
        with pytest.raises(ValueError, match=f"config.{name}: expected {expected}, got"):
            d_fine_from_transformers(theirs, BORDER)
        theirs.config = config
    theirs.config.backbone_config.stem_strides = (1, 1, 1, 2, 1)
    with pytest.raises(ValueError, match=r"config\.backbone_config\.stem_strides: expected"):
        d_fine_from_transformers(theirs, BORDER)

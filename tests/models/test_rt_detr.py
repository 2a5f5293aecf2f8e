# SPDX-License-Identifier: BSD-3-Clause
"""RT-DETR: its denoising queries, its selection, and that it learns; see also the conversion."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdet.models import rt_detr
from fastdet.models.denoising import (
    Denoising,
    DenoisingOptions,
    attention_mask,
    denoising_queries,
)
from fastdet.models.hybrid_encoder import AIFI, grid_positions
from fastdet.models.query_selection import location_boxes
from fastdet.models.relative_boxes import corners
from fastdet.models.rt_detr import RTDETRHead

from .scenes import scene, tiny_model

NUM_CLASSES, PAIRS = 5, 10
COUNTS = torch.tensor([3, 0, 1, 14])


def ground_truth() -> tuple[Tensor, Tensor, Tensor]:
    """For 4 images, up to 14 boxes of 0.1 to 0.3 of the image, cxcywh, away from its sides."""
    generator = torch.Generator().manual_seed(0)
    boxes = 0.4 + 0.2 * torch.rand(4, 16, 4, generator=generator)
    boxes[..., 2:] = 0.1 + 0.2 * torch.rand(4, 16, 2, generator=generator)
    labels = torch.randint(1, NUM_CLASSES, (4, 16), generator=generator)
    return boxes, labels, COUNTS


def denoised(**numbers: Any) -> Denoising:
    torch.manual_seed(1)
    options = DenoisingOptions(queries=PAIRS)._replace(**numbers)
    return denoising_queries(*ground_truth(), NUM_CLASSES, options)


def test_ground_truths_take_turns() -> None:
    found = denoised(label_noise=0.0)
    _, labels, counts = ground_truth()
    assert found.labels.shape == found.match.shape == (4, 2 * PAIRS)
    for i, count in enumerate(counts.tolist()):
        turns = [] if not count else [*range(count)] * max(1, PAIRS // count)
        turns = turns[:PAIRS]  # of 14 boxes, the first 10
        idle = [-1] * (PAIRS - len(turns))
        assert found.match[i].tolist() == [*turns, *idle, *[-1] * PAIRS]
        assert found.used[i].tolist() == 2 * [*[True] * len(turns), *[False] * len(idle)]
        groups = [turn // count for turn in range(len(turns))]
        assert found.groups[i, : len(turns)].tolist() == groups
        assert found.groups[i, PAIRS : PAIRS + len(turns)].tolist() == groups
        expected = labels[i, turns].tolist() + [0] * len(idle)
        assert found.labels[i].tolist() == 2 * expected


def test_positives_move_by_less_than_half_a_side_and_negatives_by_more() -> None:
    found = denoised(box_noise=0.8)
    boxes = ground_truth()[0]
    for i, count in enumerate(COUNTS.tolist()):
        for query in range(2 * PAIRS):
            if not found.used[i, query]:
                continue
            own = boxes[i, (query % PAIRS) % count]
            moved = (corners(found.boxes[i, query]) - corners(own)).abs()
            share = moved / own[2:].repeat(2) / 0.4  # of 0.8 times half a side
            assert bool(((share < 1.001) if query < PAIRS else (share > 0.999)).all())
            assert bool((share < 2.001).all())
    assert torch.equal(
        denoised(box_noise=0.0).boxes[:, :PAIRS], denoised(box_noise=0.0).boxes[:, PAIRS:]
    )


def test_half_of_the_share_of_labels_is_drawn_anew() -> None:
    quiet, noisy = denoised(label_noise=0.0), denoised(label_noise=1.0)
    changed = (quiet.labels != noisy.labels)[quiet.used].float().mean()
    assert 0.1 < changed < 0.6  # 0.5 * 3 / 4 of the labels
    assert bool((noisy.labels[noisy.used] >= 1).all())
    assert not noisy.labels[~noisy.used].any()


def test_neither_padding_nor_its_number_of_rows_is_read() -> None:
    boxes, labels, counts = ground_truth()
    beyond = torch.arange(16) >= counts[:, None]
    results = []
    for more in (0, 8):
        bad = boxes.where(~beyond[..., None], torch.nan), labels.where(~beyond, -7)
        bad = (
            torch.nn.functional.pad(bad[0], (0, 0, 0, more)),
            torch.nn.functional.pad(bad[1], (0, more)),
        )
        torch.manual_seed(1)
        results.append(denoising_queries(*bad, counts, NUM_CLASSES, DenoisingOptions(PAIRS)))
    for first, second, good in zip(*results, denoised(), strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, good)


def test_who_sees_whom() -> None:
    found = denoised()
    mask = attention_mask(found, 3)[:, 0]
    number = 2 * PAIRS
    assert bool(mask[:, :, number:].all())  # everybody sees the queries
    assert not mask[:, number:, :number].any()  # they see no denoising query
    same = found.groups[:, :, None] == found.groups[:, None]
    assert torch.equal(mask[:, :number, :number], same)


def test_queries_do_not_depend_on_denoising() -> None:
    head, features = RTDETRHead(16, NUM_CLASSES, 2, layers=2, heads=2).train(), maps()
    extents = torch.ones(4, 2)
    with torch.no_grad():
        alone, none = head(features, extents, None)
        beside, known = head(features, extents, denoised())
    assert none is None
    assert known.logits.shape == (2, 4, 2 * PAIRS, NUM_CLASSES - 1)
    for first, second in zip(alone, beside, strict=True):
        torch.testing.assert_close(first, second)


def maps() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(4, 16, side, side + 1, generator=generator) for side in (6, 3)]


def test_locations_are_relative_to_the_image_and_its_padding_is_not_chosen() -> None:
    extents = torch.tensor([[1.0, 1.0], [0.5, 0.75]])
    boxes = location_boxes([(2, 4), (1, 2)], extents)
    assert boxes.shape == (2, 10, 4)
    torch.testing.assert_close(boxes[0, 5], torch.tensor([0.375, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(boxes[1, 5], torch.tensor([0.75, 1.0, 0.05, 0.05]))
    torch.testing.assert_close(boxes[0, 9], torch.tensor([0.75, 0.5, 0.1, 0.1]))
    head = RTDETRHead(16, NUM_CLASSES, 2, num_queries=9, layers=1, heads=2).eval()
    with torch.no_grad():
        found, _ = head(maps(), torch.tensor([[1.0, 1.0], [0.5, 0.75]] * 2), None)
    centres = found.boxes[0, :, :, :2]
    assert bool((centres[1::2] < 1).all())  # of 6 x 7 and 3 x 4 locations enough lie in the image
    sides = found.boxes[0, :, :, 2:]
    assert bool(((sides - 0.05).abs() < 1e-6).logical_or((sides - 0.1).abs() < 1e-6).all())


def test_positions_of_a_grid() -> None:
    """Written out for one pixel; 6 channels have four waves and two zeros."""
    found = grid_positions(torch.zeros(1, 8, 3, 5), 10_000.0)
    assert found.shape == (15, 8)
    row, column = torch.tensor(2.0), torch.tensor(3.0)
    waves = [(row / w).sin() for w in (1, 100)] + [(row / w).cos() for w in (1, 100)]
    waves += [(column / w).sin() for w in (1, 100)] + [(column / w).cos() for w in (1, 100)]
    torch.testing.assert_close(found[2 * 5 + 3], torch.stack(waves))
    assert not grid_positions(torch.zeros(1, 6, 3, 5), 10_000.0)[:, 4:].any()


@pytest.mark.parametrize("images", [1, 2])
def test_attention_keeps_the_layout(images: int) -> None:
    """Also of one image: torch tells the layout by all strides, with those of single rows."""
    x = torch.rand(images, 32, 4, 5).contiguous(memory_format=torch.channels_last)
    found = AIFI(32, layers=1, heads=4, feedforward=64, temperature=100.0)(x)
    assert found.shape == x.shape
    assert found.stride() == x.stride()


def test_points_of_each_level_and_single_pixels() -> None:
    """A level with fewer points than another has no weight on the others."""
    head = RTDETRHead(16, NUM_CLASSES, 2, layers=1, heads=2, points=(1, 3))
    reading: Any = head.layers[0].get_submodule("layer.cross_attention")
    with torch.no_grad():
        for parameter in reading.parameters():
            parameter.normal_()
    queries, positions = torch.randn(4, 5, 16), torch.randn(4, 5, 16)
    boxes, pyramid = torch.rand(4, 5, 4), torch.randn(4, 2 * 3 + 2, 16)
    shapes = [(2, 3), (1, 2)]
    with torch.no_grad():
        found = reading(queries, positions, boxes, pyramid, shapes)
        weights = reading.attention_weights.weight.view(2, 2, 3, 16)
        weights[:, 0, 1:] = 100.0  # of points that do not exist
        reading.sampling_offsets.weight.view(2, 2, 3, 2, 16)[:, 0, 1:] = -9.0
        torch.testing.assert_close(reading(queries, positions, boxes, pyramid, shapes), found)
    with pytest.raises(ValueError, match=r"points: expected one number for each of 2 levels"):
        RTDETRHead(16, NUM_CLASSES, 2, points=(1, 2, 3))


def test_numbers_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="denoising: expected a number from 0 on, got -1"):
        tiny_model("rt_detr", denoising=-1)
    with pytest.raises(ValueError, match="num_queries: expected a number from 1 on, got 0"):
        tiny_model("rt_detr", num_queries=0)


def test_the_builder_follows_the_backbone() -> None:
    small = rt_detr("resnet10t", 3, fpn_channels=16)
    large = rt_detr("resnet26", 3, fpn_channels=16, encoder_layers=2)
    assert [len(model.head.layers) for model in (small, large)] == [3, 6]
    convs: list[Any] = [
        model.get_submodule("backbone.fpn.top_down.0.blocks.0.wide.0") for model in (small, large)
    ]
    assert [conv.out_channels for conv in convs] == [8, 16]
    attention: Any = large.get_submodule("backbone.fpn.attention.layers")
    assert len(attention) == 2


def test_norms_behind_the_backbone_start_at_one() -> None:
    model = rt_detr("resnet10t", 3, fpn_channels=16)
    norms = {
        path: norm
        for path, norm in model.named_modules()
        if isinstance(norm, torch.nn.BatchNorm2d) and not path.startswith("backbone.body")
    }
    assert len(norms) > 20
    for path, norm in norms.items():
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)), path


@pytest.mark.slow
@pytest.mark.parametrize("family", ["rt_detr", "d_fine"])
def test_it_learns_a_few_images(family: str) -> None:
    """With a body of four convolutions: it finds the objects, and few others with a high score."""
    images, targets = scene()
    targets[0] = {key: value[:2] for key, value in targets[0].items()}  # not that of 9 pixels
    torch.manual_seed(0)
    model = tiny_model(family, min_size=96, max_size=96)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(150):
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model(images)
    for of_image, target in zip(found, targets, strict=True):
        sure = of_image["scores"] > 0.4
        objects = len(target["boxes"])
        assert objects <= int(sure.sum()) <= objects + (objects > 0)
        for label, box in zip(target["labels"], target["boxes"], strict=True):
            same = of_image["boxes"][sure & (of_image["labels"] == label)]
            assert float((same - box).abs().amax(dim=1).min()) < 12


def test_selection_is_that_of_a_pyramid_with_zeros_at_the_border() -> None:
    torch.manual_seed(0)
    selection = RTDETRHead(32, NUM_CLASSES, 2, num_queries=40).selection
    shapes = [(8, 8), (4, 4)]
    locations = location_boxes(shapes, torch.tensor([[1.0, 1.0], [0.6, 0.8]]))
    # Some locations of the first level's are in the padding, and one is near the border.
    locations[0, 5, :2] = 0.005
    pyramid = torch.randn(2, 80, 32)
    near = ((locations > 0.01) & (locations < 0.99)).all(dim=2)
    assert near.any()
    assert not near.all()
    found = selection(pyramid, locations)
    expected = selection(pyramid * near[..., None], locations)
    for x, own in zip(found, expected, strict=True):
        torch.testing.assert_close(x, own)

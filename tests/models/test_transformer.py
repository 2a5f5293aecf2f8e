# SPDX-License-Identifier: BSD-3-Clause
"""The parts of transformers: against their definitions, and positions against transformers'."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdet.models.relative_boxes import absolute_boxes, inverse_sigmoid, relative_boxes
from fastdet.models.transformer import (
    MLP,
    Attention,
    FeedForward,
    pixel_mask,
    real_pixels,
    sine_positions,
    tokens_of,
)

SIZES = torch.tensor([[75, 101], [33, 64], [1, 100]])
IMAGES = torch.zeros(3, 3, 75, 101)


def attention_by_hand(layer: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Query by query and head by head."""
    width = q.shape[2] // layer.heads
    q, k, v = layer.q_proj(q), layer.k_proj(k), layer.v_proj(v)
    rows = []
    for b in range(len(q)):
        for i in range(q.shape[1]):
            parts = []
            for head in range(layer.heads):
                own = slice(head * width, (head + 1) * width)
                weights = [
                    math.exp(float(q[b, i, own] @ k[b, j, own]) / math.sqrt(width))
                    * bool(mask[b, j])
                    for j in range(k.shape[1])
                ]
                parts.append(sum(w / sum(weights) * v[b, j, own] for j, w in enumerate(weights)))
            rows.append(torch.cat(parts))  # type: ignore[arg-type]
    return layer.out_proj(torch.stack(rows).view_as(q))


@torch.no_grad()
def test_attention_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    layer = Attention(8, heads=2).double()
    q, k, v = (torch.randn(2, n, 8, dtype=torch.float64) for n in (3, 5, 5))
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()
    found = layer(q, k, v, mask[:, None, None])
    torch.testing.assert_close(found, attention_by_hand(layer, q, k, v, mask))
    k = k.where(mask[..., None], 1e3)  # what is masked does not matter
    torch.testing.assert_close(
        layer(q, k, v.where(mask[..., None], 1e3), mask[:, None, None]), found
    )


def test_the_dropout_of_attention_is_that_of_training() -> None:
    layer, tokens = Attention(8, heads=2, dropout=0.9), torch.randn(1, 6, 8)
    assert not torch.equal(layer(tokens, tokens, tokens), layer(tokens, tokens, tokens))
    layer.eval()
    assert torch.equal(layer(tokens, tokens, tokens), layer(tokens, tokens, tokens))


def test_bad_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="heads: expected a divisor of 10 channels, got 4"):
        Attention(10, heads=4)
    with pytest.raises(ValueError, match=r"activation: expected one of relu, .*, got 'tanh'"):
        FeedForward(8, 16, activation="tanh")
    with pytest.raises(ValueError, match="channels: expected a multiple of 4, got 6"):
        sine_positions(*real_pixels(IMAGES, IMAGES, SIZES), 6, torch.float32)


def test_an_mlp_has_relu_between_its_layers() -> None:
    mlp = MLP(4, 6, 3, depth=3)
    x = torch.randn(2, 5, 4)
    expected = x
    for i, layer in enumerate(mlp.layers):
        expected = layer(expected.clamp(min=0) if i else expected)
    assert [layer.out_features for layer in mlp.layers] == [6, 6, 3]
    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize("shape", [(3, 4), (10, 13), (75, 101)])
def test_real_pixels_are_a_resized_mask(shape: tuple[int, int]) -> None:
    mask = torch.zeros(3, 75, 101)
    for own, (height, width) in zip(mask, SIZES.tolist(), strict=True):
        own[:height, :width] = 1
    expected = F.interpolate(mask[None], shape)[0].bool()
    rows, columns = real_pixels(torch.zeros(3, 8, *shape), IMAGES, SIZES)
    assert torch.equal(pixel_mask(rows, columns), expected.flatten(1))
    assert bool(rows[:, 0].all())  # every image has a pixel
    assert bool(columns[:, 0].all())


@pytest.mark.parametrize(("family", "offset"), [("detr", 0.0), ("deformable_detr", -0.5)])
def test_positions_are_those_of_transformers(family: str, offset: float) -> None:
    models = pytest.importorskip("transformers.models", reason="transformers is not installed")
    name = {"detr": "Detr", "deformable_detr": "DeformableDetr"}[family]
    theirs = getattr(
        getattr(getattr(models, family), f"modeling_{family}"), f"{name}SinePositionEmbedding"
    )(8, normalize=True)
    rows, columns = real_pixels(torch.zeros(3, 8, 10, 13), IMAGES, SIZES)
    mask = pixel_mask(rows, columns)
    expected = theirs((3, 8, 10, 13), mask.device, torch.float32, mask.view(3, 10, 13))
    found = sine_positions(rows, columns, 16, torch.float32, offset)
    expected = tokens_of([expected])
    real = mask[..., None]
    torch.testing.assert_close(found.where(real, 0.0), expected.where(real, 0.0))
    assert bool(found.isfinite().all())


def test_relative_boxes_and_back() -> None:
    boxes = torch.tensor([[[10.0, 5, 30, 45], [0, 0, 100, 50]]]).expand(3, -1, -1)
    back = absolute_boxes(relative_boxes(boxes, SIZES), SIZES)
    torch.testing.assert_close(back, boxes)


def test_inverse_sigmoid() -> None:
    fractions = torch.tensor([0.1, 0.5, 0.999], dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(fractions).sigmoid(), fractions)
    assert bool(inverse_sigmoid(torch.tensor([0.0, 1.0, -3.0, 4.0])).isfinite().all())

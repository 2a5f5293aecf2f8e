# SPDX-License-Identifier: BSD-3-Clause
"""How the decoders of RT-DETR and D-FINE get their queries: from the locations of a pyramid.

Paper: https://arxiv.org/abs/2304.08069. The locations with the highest class scores become queries.
In training, denoising queries (`denoising.py`) come before them. Definitions are those of the
authors' code.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdet.models.batch import Batch
from fastdet.models.denoising import FAR, Denoising, attention_mask
from fastdet.models.losses import PRIOR_LOGIT, widened
from fastdet.models.transformer import MLP
from fastdet.ops.padded_rows import take_rows

FINEST_SIDE = 0.05  # of a location's box at the finest level, as a share of the image; then doubled
MARGIN = 0.01  # locations nearer to the border than this share of the image propose nothing
LEAST = 1e-5  # the smallest side of a reference box; see `inverse_sigmoid`

# A NamedTuple of tensors (L, B, Q, ...), with `logits` and `boxes` among them.
AnyPredictions = TypeVar("AnyPredictions", bound=Any)


class Queries(NamedTuple):
    """What a decoder starts from. The denoising queries come first.

    Attributes:
        tokens: (B, Q, C).
        boxes: (B, Q, 4) cxcywh in fractions of the image.
        mask: which query sees which, see `attention_mask`; None: each one sees all.
        known: number of denoising queries.
    """

    tokens: Tensor
    boxes: Tensor
    mask: Tensor | None = None
    known: int = 0


class BoxHead(nn.Module):
    """A perceptron whose outputs are 0 at the start.

    Args:
        channels: of the input.
        outputs: their number, such as four for a box.
    """

    def __init__(self, channels: int, outputs: int = 4) -> None:
        super().__init__()
        self.hidden = MLP(channels, channels, channels, depth=2)
        self.bbox_reg = nn.Linear(channels, outputs)
        nn.init.zeros_(self.bbox_reg.weight)
        nn.init.zeros_(self.bbox_reg.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., outputs)."""
        return self.bbox_reg(F.relu(self.hidden(x)))


def class_layer(channels: int, num_classes: int) -> nn.Linear:
    """The last layer of a classifier. At the start every probability is near 0.01."""
    layer = nn.Linear(channels, num_classes - 1)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.constant_(layer.bias, PRIOR_LOGIT)
    return layer


class LevelProjections(nn.ModuleList):
    """A 1x1 convolution and a norm for each level."""

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """L maps -> L maps."""
        return [projection(x) for projection, x in zip(self, features, strict=True)]


class QuerySelection(nn.Module):
    """Makes queries of the locations of a pyramid whose largest class score is highest.

    Args:
        channels: of the pyramid.
        num_classes: with background.
        num_queries: their number, if there are as many locations.
    """

    def __init__(self, channels: int, num_classes: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.project = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))
        self.cls_logits = class_layer(channels, num_classes)
        self.box_head = BoxHead(channels)
        # Tokens of denoising queries by their label; 0 for a query that is not used.
        self.label_embedding = nn.Embedding(num_classes, channels, padding_idx=0)

    def forward(self, pyramid: Tensor, locations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Selects K queries of each image.

        Args:
            pyramid: (B, S, C), the pixels of all levels.
            locations: (B, S, 4), see `location_boxes`.

        Returns:
            Tokens (B, K, C), class logits (B, K, num_classes - 1) and boxes (B, K, 4).
        """
        inside = (locations[..., :2] < 1).all(dim=2)  # not in the padding
        near = ((locations > MARGIN) & (locations < 1 - MARGIN)).all(dim=2)  # (B, S)
        tokens = self.project(pyramid)
        logits = self.cls_logits(tokens)
        # The other locations count as pixels that are 0. So many tokens and logits are not masked:
        # it would take a pass over them, and in training their memory.
        zero = self.project(pyramid.new_zeros(1, 1, pyramid.shape[2]))
        of_zero = self.cls_logits(zero)
        scores = torch.where(near, logits.amax(dim=2), of_zero.amax(dim=2))
        scores = scores.masked_fill(~inside, -FAR)
        # A stable sort: locations of equal pixels have equal scores, and the first ones are taken.
        order = scores.sort(dim=1, descending=True, stable=True).indices
        chosen = order[:, : self.num_queries]  # (B, K)
        # Of the other locations nothing has a use.
        near = near.gather(1, chosen)[..., None]
        tokens = torch.where(near, take_rows(tokens, chosen), zero)
        logits = torch.where(near, take_rows(logits, chosen), of_zero)
        locations = take_rows(locations, chosen)
        starts = torch.logit(locations.where(near, 0.5)).where(near, FAR)
        boxes = (widened(self.box_head(tokens)) + starts).sigmoid()
        return tokens.detach(), logits, boxes

    def start(
        self,
        pyramid: Tensor,
        shapes: Sequence[tuple[int, int]],
        extents: Tensor,
        denoising: Denoising | None,
    ) -> tuple[Queries, Tensor, Tensor]:
        """What a decoder starts from, and the logits and boxes of the selection.

        Args:
            pyramid: (B, S, C), the pixels of all levels.
            shapes: (height, width) of each level.
            extents: see `image_extents`.
            denoising: further queries.
        """
        tokens, logits, selected = self(pyramid, location_boxes(shapes, extents))
        queries = Queries(tokens, selected.detach())
        if denoising is not None:
            embedded = self.label_embedding(denoising.labels).to(tokens.dtype)
            boxes = denoising.boxes.clamp(LEAST, 1 - LEAST).to(selected.dtype)
            queries = Queries(
                torch.cat([embedded, tokens], dim=1),
                torch.cat([boxes, queries.boxes], dim=1),
                attention_mask(denoising, tokens.shape[1]),
                known=denoising.labels.shape[1],
            )
        return queries, logits, selected


def location_boxes(shapes: Sequence[tuple[int, int]], extents: Tensor) -> Tensor:
    """A box around the centre of each pixel of all levels, cxcywh in fractions of the image.

    Its sides are a fixed share of the image and double from level to level, as in the authors'
    code. In the padding a centre is above 1.

    Args:
        shapes: (height, width) of each level.
        extents: (B, 2), width and height of each image as shares of the padded image.

    Returns:
        (B, S, 4), row by row, level by level.
    """
    levels = []
    for level, (height, width) in enumerate(shapes):
        y, x = (
            (torch.arange(side, device=extents.device, dtype=extents.dtype) + 0.5) / side
            for side in (height, width)
        )
        grid = x.expand(height, width), y[:, None].expand(height, width)
        centres = torch.stack(grid, dim=2).flatten(0, 1) / extents[:, None]  # (B, S_l, 2)
        levels += [torch.cat([centres, torch.full_like(centres, FINEST_SIDE * 2.0**level)], dim=2)]
    return torch.cat(levels, dim=1)


def image_extents(batch: Batch) -> Tensor:
    """(B, 2), width and height of each image as shares of the padded image."""
    height, width = batch.images.shape[2:]
    sizes = batch.sizes.to(batch.gt_boxes.dtype)
    return torch.stack([sizes[:, 1] / width, sizes[:, 0] / height], dim=1)


def split_known(predictions: AnyPredictions, known: int) -> tuple[AnyPredictions, AnyPredictions]:
    """The predictions of the first `known` queries, and those of the others.

    Args:
        predictions: a NamedTuple of tensors (L, B, Q, ...), with L layers.
        known: number of denoising queries.
    """
    first, others = (
        type(predictions)(*parts)
        for parts in zip(
            *(x.split([known, x.shape[2] - known], dim=2) for x in predictions), strict=True
        )
    )
    return first, others


def with_selection(predictions: AnyPredictions, logits: Tensor, boxes: Tensor) -> AnyPredictions:
    """The predictions of the layers, after those of the selection: (B, Q, C - 1), (B, Q, 4)."""
    return predictions._replace(
        logits=torch.cat([logits[None].to(predictions.logits.dtype), predictions.logits]),
        boxes=torch.cat([boxes[None], predictions.boxes]),
    )

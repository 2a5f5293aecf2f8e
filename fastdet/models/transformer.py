# SPDX-License-Identifier: BSD-3-Clause
"""What the transformers of DETRs are made of: attention, layers, positions and padding masks.

Tokens are (B, N, D): the pixels of a map, row by row, or the queries. A layer adds and normalises
after each part ("post-norm"), as in DETR. A mask is True for tokens that may be attended to.
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Attention(nn.Module):
    """Scaled dot-product attention with several heads.

    Args:
        channels: D, of all tokens; a multiple of heads.
        heads: number of heads.
        dropout: of the attention weights.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.dropout = dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(channels, channels) for _ in range(4)
        )

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Queries (B, Q, D), keys and values (B, N, D) -> (B, Q, D).

        Args:
            queries: with their positions.
            keys: with their positions.
            values: of the keys, without positions.
            mask: bool, broadcast to (B, heads, Q, N); True: this query may attend to this key.
        """
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, queries), (self.k_proj, keys), (self.v_proj, values))
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        channels: D, of the tokens.
        hidden: channels between the layers.
        dropout: after the activation.
        activation: a key of ACTIVATIONS.
    """

    def __init__(
        self, channels: int, hidden: int, dropout: float = 0.0, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, hidden)
        self.activation = activation_named(activation)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.linear2(self.dropout(self.activation(self.linear1(tokens))))


class EncoderLayer(nn.Module):
    """Attention between the pixels of a map, then a feed-forward network.

    Args:
        attention: of the pixels; called as `attention(tokens, positions, *further)`.
        feed_forward: such as FeedForward.
        channels: D.
        dropout: of what each of the two adds.
    """

    def __init__(
        self, attention: nn.Module, feed_forward: nn.Module, channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.attention = attention
        self.norm1 = nn.LayerNorm(channels)
        self.feed_forward = feed_forward
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, positions: Tensor, *further: object) -> Tensor:
        """Tokens and their positions (B, N, D) -> (B, N, D); `further` goes to the attention."""
        tokens = self.norm1(tokens + self.dropout(self.attention(tokens, positions, *further)))
        return self.norm2(tokens + self.dropout(self.feed_forward(tokens)))


class DecoderLayer(nn.Module):
    """Attention between queries, then to the pixels, then a feed-forward network.

    Args:
        self_attention: of the queries.
        cross_attention: to the pixels; called as `cross_attention(queries, positions, *further)`.
        feed_forward: such as FeedForward.
        channels: D.
        dropout: of what each of the three adds.
    """

    def __init__(
        self,
        self_attention: Attention,
        cross_attention: nn.Module,
        feed_forward: nn.Module,
        channels: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attention = cross_attention
        self.norm2 = nn.LayerNorm(channels)
        self.feed_forward = feed_forward
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, positions: Tensor, *further: object, mask: Tensor | None = None
    ) -> Tensor:
        """Queries and their positions (B, Q, D) -> (B, Q, D).

        Args:
            queries, positions: see above.
            further: goes to the cross-attention.
            mask: bool, broadcast to (B, heads, Q, Q): which queries see which; for denoising.
        """
        placed = queries + positions
        added = self.self_attention(placed, placed, queries, mask)
        queries = self.norm1(queries + self.dropout(added))
        added = self.cross_attention(queries, positions, *further)
        queries = self.with_read(queries, self.dropout(added))
        return self.norm3(queries + self.dropout(self.feed_forward(queries)))

    def with_read(self, queries: Tensor, added: Tensor) -> Tensor:
        """Queries and what they read from the pixels, (B, Q, D) each -> (B, Q, D)."""
        return self.norm2(queries + added)


class MLP(nn.Module):
    """Linear layers with ReLU between them, such as the head that predicts boxes.

    Args:
        in_channels: of the input.
        hidden: of the layers between.
        out_channels: of the output.
        depth: number of layers.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, depth: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * (depth - 1), out_channels]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in itertools.pairwise(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_channels) -> (..., out_channels)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


def activation_named(name: str) -> nn.Module:
    """The activation of this name in ACTIVATIONS.

    Raises:
        ValueError: another name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def check_heads(channels: int, heads: int) -> None:
    """Raises ValueError unless the channels can be divided among the heads."""
    if heads < 1 or channels % heads:
        raise ValueError(f"heads: expected a divisor of {channels} channels, got {heads}")


def xavier(module: nn.Module) -> None:
    """Gives each matrix of a module Xavier's uniform weights, as DETR does for its transformer."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def real_pixels(feature: Tensor, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (B, h) and the columns (B, w) of a map that lie in the image, not in its padding.

    A pixel of the map belongs to the pixel of the image at its upper left corner: nearest-neighbour
    resizing of a mask of the image.

    Args:
        feature: (B, C, h, w).
        images: (B, 3, H, W), padded at the right and below.
        sizes: (B, 2), height and width without the padding.
    """

    def real(of_map: int, of_images: int, own: Tensor) -> Tensor:
        first = torch.arange(of_map, device=own.device) * of_images // of_map
        return first < own[:, None]

    height, width = sizes.unbind(1)
    return (
        real(feature.shape[2], images.shape[2], height),
        real(feature.shape[3], images.shape[3], width),
    )


def pixel_mask(rows: Tensor, columns: Tensor) -> Tensor:
    """(B, h * w) bool from `real_pixels`: True for a pixel of the image."""
    return (rows[:, :, None] & columns[:, None]).flatten(1)


def sine_positions(
    rows: Tensor, columns: Tensor, channels: int, dtype: torch.dtype, offset: float = 0.0
) -> Tensor:
    """Sine embeddings (B, h * w, channels) of the places of pixels in their image.

    Half of the channels are of the row and half of the column; from the first pixel to the last
    one of the image the angle goes to 2 pi. In the padding the embeddings are finite.

    Args:
        rows, columns: (B, h) and (B, w) bool, see `real_pixels`.
        channels: a multiple of 4.
        dtype: of the result.
        offset: added to the number of a row and of a column, which start at 1: 0 in DETR, -0.5 in
            Deformable DETR.
    """
    if channels % 4:
        raise ValueError(f"channels: expected a multiple of 4, got {channels}")
    height, width = rows.shape[1], columns.shape[1]
    own = [_sines(real, channels // 2, dtype, offset) for real in (rows, columns)]
    of_rows, of_columns = own[0][:, :, None], own[1][:, None]
    grid = torch.cat(
        (of_rows.expand(-1, -1, width, -1), of_columns.expand(-1, height, -1, -1)), dim=3
    )
    return grid.flatten(1, 2)


def _sines(real: Tensor, channels: int, dtype: torch.dtype, offset: float) -> Tensor:
    """(B, n) bool, True up to the image's last pixel -> (B, n, channels)."""
    number = torch.arange(1, real.shape[1] + 1, dtype=dtype, device=real.device)
    last = real.sum(dim=1, keepdim=True).to(dtype)  # (B, 1)
    places = (number.minimum(last) + offset) / (last + 1e-6) * (2 * math.pi)  # (B, n)
    return sines(places, channels)


def sines(angles: Tensor, channels: int) -> Tensor:
    """Angles (...) -> (..., channels): sine and cosine of the angle divided by falling periods."""
    pair = torch.arange(channels // 2, dtype=angles.dtype, device=angles.device)
    angles = angles[..., None] / 10000 ** (2 * pair / channels)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


def tokens_of(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, D, h, w) -> the tokens (B, N, D) of all their pixels, map by map, row by row."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)

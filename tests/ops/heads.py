# SPDX-License-Identifier: BSD-3-Clause
"""Outputs of dense heads, the inputs of rpn_proposals and retinanet_detections."""

from typing import NamedTuple

import torch
from torch import Tensor

INF, NAN = float("inf"), float("nan")
SIZE = (70, 90)  # height and width of the first image; the others are smaller


class Head(NamedTuple):
    """logits L x (B, A_l, C), deltas L x (B, A_l, 4), anchors (A, 4), sizes (B, 2)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: Tensor
    sizes: Tensor

    def to(self, where: str | torch.dtype) -> "Head":
        """The head moved to a device, or with logits and deltas converted to a dtype."""
        logits = [x.to(where) for x in self.logits]
        deltas = [x.to(where) for x in self.deltas]
        if isinstance(where, torch.dtype):
            return Head(logits, deltas, self.anchors, self.sizes)
        return Head(logits, deltas, self.anchors.to(where), self.sizes.to(where))

    def image(self, b: int) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """The arguments of the reference for image b."""
        cpu = self.to("cpu")
        return [x[b] for x in cpu.logits], [x[b] for x in cpu.deltas], cpu.anchors, cpu.sizes[b]


def head(
    logits: list[list[list[float]]], anchors: list[list[float]], size: tuple[int, int] = SIZE
) -> Head:
    """One image. logits[level][anchor] has one number per class. Deltas are 0: boxes = anchors."""
    levels = [torch.tensor(x, dtype=torch.float32)[None] for x in logits]
    deltas = [torch.zeros(1, x.shape[1], 4) for x in levels]
    return Head(
        levels,
        deltas,
        torch.tensor(anchors, dtype=torch.float32).reshape(-1, 4),
        torch.tensor([size]),
    )


def random_head(
    counts: tuple[int, ...], images: int = 2, num_classes: int = 3, seed: int = 0
) -> Head:
    """Boxes that overlap often, some outside; logits rounded coarsely, so that many are equal."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    corner = torch.rand(sum(counts), 2, generator=generator) * 90 - 5
    sides = 4 + torch.rand(sum(counts), 2, generator=generator) * 40
    return Head(
        [(noise(images, n, num_classes) * 16).round() / 8 for n in counts],
        [noise(images, n, 4) * 0.3 for n in counts],
        torch.cat([corner, corner + sides], 1),
        torch.tensor(SIZE) - 8 * torch.arange(images)[:, None],
    )


def poisoned_head() -> Head:
    """Logits and deltas that are not finite, among others that are."""
    h = random_head((40, 20), images=1, seed=5)
    for i, value in enumerate((NAN, INF, -INF)):
        h.logits[0][0, 3 * i] = value
        h.deltas[0][0, 3 * i + 1, i] = value
    return h


def as_maps_leave_it(h: Head) -> Head:
    """The same values with strides that are not dense, as the rows of a contiguous (NCHW) map."""
    logits = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in h.logits]
    deltas = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in h.deltas]
    return h._replace(logits=logits, deltas=deltas, sizes=h.sizes.t().contiguous().t())


def parts_of_one_tensor(h: Head) -> Head:
    """The levels as views of one tensor with all levels: rows are dense, images are far apart."""
    counts = [x.shape[1] for x in h.logits]
    logits, deltas = torch.cat(h.logits, 1), torch.cat(h.deltas, 1)
    return h._replace(logits=list(logits.split(counts, 1)), deltas=list(deltas.split(counts, 1)))


Kept = tuple[Tensor, Tensor, Tensor, Tensor]


def assert_kept(got: Kept, b: int, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    """Image b of the results has the expected boxes, scores and labels, then zeros."""
    *rows, counts = (x.cpu() for x in got)
    count = int(counts[b])
    assert count == len(expected[0])
    for row, own in zip(rows, expected, strict=True):
        assert not row[b, count:].any()
        torch.testing.assert_close(row[b, :count], own, rtol=1e-5, atol=1e-4)
    assert rows[2][b, :count].equal(expected[2])


def assert_same(got: Kept, expected: Kept) -> None:
    """The same rows; scores may differ by the rounding of a sigmoid."""
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.dtype == b.dtype
        if i == 1:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        else:
            assert a.equal(b)

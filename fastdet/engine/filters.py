# SPDX-License-Identifier: BSD-3-Clause
"""The filters of a convolution and the norms after it, without a second copy of the weights.

A norm in eval mode scales each filter. In float32, the scaled filters are made in each call and
freed after it: to scale them takes about as long as to read the weights from memory, and they stay
in the cache until the convolution reads them. A kept copy would take as much memory as the weights.
Small filters are kept: the calls that make them take longer than their numbers. They are many, but
not much memory: of a D-FINE-S 57 of 99 weights, and 1.3 of 19 MiB.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdet.memory import mapped_empty

FOLDED_AT_ONCE = 1 << 16  # numbers in float64
SMALL = 1 << 16  # bytes of filters that are kept in float32, too


class Filters(NamedTuple):
    """A weight whose filters have a factor each.

    Attributes:
        weight: (O, C, h, w), usually a module's own memory.
        scale: (O,), the factors; None: 1.
        centre: filters that are added in the middle of these: both sides are as odd as h and w, and
            not larger; or None.
    """

    weight: Tensor
    scale: Tensor | None = None
    centre: "Filters | None" = None

    def times(self, scale: Tensor) -> "Filters":
        """Each filter times a further factor, (O,)."""
        own = scale if self.scale is None else self.scale * scale
        return Filters(self.weight, own, None if self.centre is None else self.centre.times(scale))

    def ready(self, dtype: torch.dtype) -> "Filters":
        """For calls in a dtype. In float32 only small filters are kept; in other types all are."""
        if self.weight.dtype == dtype and self.scale is None and self.centre is None:
            return self
        is_small = self.weight.numel() * dtype.itemsize <= SMALL
        if dtype != torch.float32 or self.weight.dtype != dtype or is_small:
            return Filters(self.folded(dtype))
        scale = None if self.scale is None else self.scale.to(dtype)
        return Filters(
            self.weight, scale, None if self.centre is None else self.centre.ready(dtype)
        )

    def whole(self) -> Tensor:
        """(O, C, h, w): the weight itself if nothing changes it, else a new tensor for one call."""
        if self.scale is None and self.centre is None:
            return self.weight
        return self._rows(slice(None))

    def folded(self, dtype: torch.dtype) -> Tensor:
        """A copy to keep, in channels_last, rounded once.

        It is computed in float64, some filters at a time: the whole would take twice the memory of
        the weight.
        """
        outputs, inputs, height, width = self.weight.shape
        folded = mapped_empty((outputs, height, width, inputs), dtype).permute(0, 3, 1, 2)
        rows = max(1, FOLDED_AT_ONCE * outputs // max(1, self.weight.numel()))
        exact = self._in_float64()
        for first in range(0, outputs, rows):
            some = slice(first, first + rows)
            folded[some] = exact._rows(some)
        return folded

    def _in_float64(self) -> "Filters":
        """With factors in float64, so that products are in float64."""
        scale = self.weight.new_ones(len(self.weight)) if self.scale is None else self.scale
        centre = None if self.centre is None else self.centre._in_float64()
        return Filters(self.weight, scale.double(), centre)

    def _rows(self, some: slice) -> Tensor:
        """Some of the filters, new."""
        weight = self.weight[some]
        total = weight.clone() if self.scale is None else weight * _of_filters(self.scale[some])
        if self.centre is not None:
            added = self.centre.weight[some]
            top, left = (
                (n - m) // 2 for n, m in zip(total.shape[2:], added.shape[2:], strict=True)
            )
            middle = total[:, :, top:, left:][:, :, : added.shape[2], : added.shape[3]]
            if self.centre.scale is None:
                middle += added
            else:
                middle.addcmul_(added, _of_filters(self.centre.scale[some]))
        return total


def _of_filters(scale: Tensor) -> Tensor:
    return scale[:, None, None, None]

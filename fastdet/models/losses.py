# SPDX-License-Identifier: BSD-3-Clause
"""The regression loss of the two-stage heads, over the rows of a mask."""

import torch.nn.functional as F
from torch import Tensor


def box_regression_loss(deltas: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Smooth L1 (beta 1/9) of deltas against targets (..., 4), summed over positive rows (...).

    Targets of the other rows may hold anything, infinities and NaN included: they give no loss and
    no gradient. Beta is torchvision's, in the RPN and in fastrcnn_loss.
    """
    # A NaN would survive the product with zero and the backward of `where` around the loss, so the
    # targets themselves are replaced, by what gives a loss of zero.
    targets = targets.where(positive[..., None], deltas.detach())
    return F.smooth_l1_loss(deltas, targets, beta=1 / 9, reduction="sum")

# SPDX-License-Identifier: BSD-3-Clause
"""1x1 convolutions with a stride, as a 1x1 convolution without one on every second pixel.

The result is the same. Of such a layer with few input channels in channels_last, torch 2.13 and
2.14 write beyond their memory on the CPU when they compute gradients. RepVGG and FastViT have such
layers.
"""

import torch.nn.functional as F
from torch import Tensor, nn

FEW_CHANNELS = 16  # layers with this number of input channels or more are right


class StridedPointwiseConv2d(nn.Conv2d):
    """An nn.Conv2d of kernel 1, without padding, that first takes the pixels which it reads."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        pixels = input[:, :, :: self.stride[0], :: self.stride[1]]
        return F.conv2d(pixels, self.weight, self.bias, groups=self.groups)


def replace_strided_pointwise(module: nn.Module) -> None:
    """Makes the narrow, strided 1x1 convolutions in `module` StridedPointwiseConv2d, in place."""
    for conv in module.modules():
        if (
            type(conv) is nn.Conv2d
            and conv.kernel_size == (1, 1)
            and max(conv.stride) > 1
            and conv.padding == (0, 0)
            and conv.in_channels // conv.groups < FEW_CHANNELS
        ):
            conv.__class__ = StridedPointwiseConv2d

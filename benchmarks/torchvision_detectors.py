# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's own detectors on the same timm backbone as ours: the peer of the benchmarks."""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from fastdet.models.backbones import timm_body

CANDIDATES = 500  # pairs of box and class above the score threshold
# For small runs: most of the time of a two-stage detector is spent on its proposals.
FEW_PROPOSALS = {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20}


class Pyramid(nn.Module):
    """A timm body with torchvision's pyramid, in the form that torchvision's detectors take."""

    def __init__(self, backbone: str, out_channels: int, first_stage: int, extra_blocks: Any):
        super().__init__()
        self.body, channels = timm_body(backbone)
        self.first_stage = first_stage
        self.fpn = FeaturePyramidNetwork(channels[first_stage:], out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)[self.first_stage :]
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))


def resnet_faster_rcnn(backbone: str, *, norms: Any = FrozenBatchNorm2d, **numbers: Any) -> Any:
    """fasterrcnn_resnet50_fpn of another ResNet. Its checkpoints have frozen norms.

    Without weights torchvision makes it with nn.BatchNorm2d, and trains all layers.
    """
    return FasterRCNN(_resnet(backbone, norms), 91, **numbers)


def resnet_retinanet(backbone: str, *, norms: Any = FrozenBatchNorm2d, **numbers: Any) -> Any:
    """retinanet_resnet50_fpn of another ResNet; see `resnet_faster_rcnn`."""
    extra = LastLevelP6P7(256, 256)
    return RetinaNet(
        _resnet(backbone, norms, returned_layers=[2, 3, 4], extra_blocks=extra), 91, **numbers
    )


def _resnet(backbone: str, norms: Any, **options: Any) -> nn.Module:
    trained = 3 if norms is FrozenBatchNorm2d else 5
    return resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=norms, trainable_layers=trained, **options
    )


def faster_rcnn(
    backbone: str, num_classes: int, *, fpn_channels: int, anchor_sizes: list[int], **numbers: Any
) -> nn.Module:
    """torchvision's FasterRCNN; the arguments of fastdet's constructor."""
    return _two_stages(FasterRCNN, backbone, num_classes, fpn_channels, anchor_sizes, numbers)


def mask_rcnn(
    backbone: str, num_classes: int, *, fpn_channels: int, anchor_sizes: list[int], **numbers: Any
) -> nn.Module:
    """torchvision's MaskRCNN; the arguments of fastdet's constructor."""
    width = fpn_channels
    numbers["mask_head"] = MaskRCNNHeads(width, [width] * 4, 1)
    model = _two_stages(MaskRCNN, backbone, num_classes, fpn_channels, anchor_sizes, numbers)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(width, width, num_classes)
    return model


def _two_stages(
    family: type[FasterRCNN],
    backbone: str,
    num_classes: int,
    fpn_channels: int,
    anchor_sizes: list[int],
    numbers: dict[str, Any],
) -> Any:
    ratios = ((0.5, 1.0, 2.0),) * len(anchor_sizes)
    return family(
        Pyramid(backbone, fpn_channels, 0, LastLevelMaxPool()),
        num_classes,
        rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in anchor_sizes), ratios),
        **numbers,
    )


def retinanet(
    backbone: str, num_classes: int, *, fpn_channels: int, anchor_sizes: list[int], **numbers: Any
) -> nn.Module:
    """torchvision's RetinaNet; the arguments of fastdet's constructor."""
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in anchor_sizes)
    ratios = ((0.5, 1.0, 2.0),) * len(sizes)
    return RetinaNet(
        Pyramid(backbone, fpn_channels, 1, LastLevelP6P7(fpn_channels, fpn_channels)),
        num_classes,
        anchor_generator=AnchorGenerator(sizes, ratios),
        **numbers,
    )


def let_candidates_pass(network: Any, image: Tensor) -> float:
    """Sets the score threshold so that CANDIDATES pairs of box and class are above it; returns it.

    With random weights no score is above the usual one.
    """
    one_stage = isinstance(network, RetinaNet)
    owner = network if one_stage else network.roi_heads
    head: Any = network.head if one_stage else owner.box_predictor
    outputs: list[Any] = []
    hook = head.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    network([image])
    hook.remove()
    (output,) = outputs
    scores = output["cls_logits"].sigmoid() if one_stage else output[0].softmax(1)[:, 1:]
    owner.score_thresh = scores.flatten().kthvalue(scores.numel() - CANDIDATES).values.item()
    return owner.score_thresh

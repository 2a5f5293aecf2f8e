# SPDX-License-Identifier: BSD-3-Clause
"""SSD's crop, which shows at least one object: torchvision's RandomIoUCrop, for any image."""

from typing import Any

from torchvision import tv_tensors
from torchvision.transforms import v2


class CropKeepingBoxes(v2.RandomIoUCrop):
    """A random part of the image with the centre of an object in it.

    Objects whose centre is outside the crop get empty boxes, which `SanitizeBoundingBoxes` removes.
    An image without objects stays whole; torchvision draws hundreds of crops for it and refuses
    them all. An image of a few pixels stays whole too; there torchvision divides by zero.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the crop."""
        objects = sum(len(x) for x in flat_inputs if isinstance(x, tv_tensors.BoundingBoxes))
        if not objects or min(v2.query_size(flat_inputs)) * self.min_scale < 1:
            return {}
        return super().make_params(flat_inputs)

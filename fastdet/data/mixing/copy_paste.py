# SPDX-License-Identifier: BSD-3-Clause
"""Copy-paste: objects with masks are cut out of one picture and pasted on another.

Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", without blending of the edges. The jitter of the two pictures is that of the data
set's transforms: with large-scale jitter it is the paper's.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdet.data.mixing.items import MIN_VISIBLE, as_item, extents, joined, laid_into
from fastdet.data.mixing.mixed import Item
from fastdet.data.transforms.visible import chosen


class CopyPaste:
    """Two items: some objects of the second on the picture of the first.

    The second picture is resized to fit into the first, its aspect kept, at a random place. Each of
    its objects is pasted with a probability of one half, one of them in any case. What it hides is
    taken from the masks below; their boxes shrink to what is left, and an object of which less than
    a tenth is left is no target.

    Raises:
        ValueError: when called on targets without masks.
    """

    items = 2

    def __call__(self, items: Sequence[Item]) -> Item:
        """The first item with objects of the second."""
        for _, target in items:
            if "masks" not in target:
                raise ValueError(
                    f"copy-paste: expected targets with masks, got {', '.join(target)} "
                    f"(image id {target.get('image_id')})"
                )
        image, target = as_item(items[0])
        other, source = laid_into(items[1], image)
        objects = len(source["boxes"])
        if not objects:
            return image, target
        pasted = torch.rand(objects) < 0.5
        pasted[torch.randint(objects, ())] = True
        source = chosen(source, pasted)
        on_top = source["masks"].as_subclass(Tensor).bool().any(0)  # (H, W)
        image = torch.where(on_top, other, image.as_subclass(Tensor))
        return as_item((image, joined(_below(target, on_top), source)))


def _below(target: dict[str, Any], on_top: Tensor) -> dict[str, Any]:
    """The target less what `on_top` (H, W) hides of it."""
    masks = target["masks"].as_subclass(Tensor)
    left = masks * ~on_top
    before, after = (some.flatten(1).count_nonzero(1) for some in (masks, left))
    boxes = target["boxes"].as_subclass(Tensor).clone()
    cut = after < before
    boxes[cut] = extents(left[cut]).to(boxes)
    below = {**target, "boxes": boxes, "masks": left}
    return chosen(below, (after > 0) & (after >= MIN_VISIBLE * before))

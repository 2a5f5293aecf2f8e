# SPDX-License-Identifier: BSD-3-Clause
"""The pictures that a training learns from, after augmentation, as one HTML file.

They come from the training's own batches: the same seed, epoch and image give the same picture.
"""

from dataclasses import asdict
from typing import Any

from PIL import Image
from torch import Tensor

from fastdet.evaluation.pictures import draw_boxes
from fastdet.files import refuse_existing
from fastdet.models import MODELS
from fastdet.models.border import Border
from fastdet.report.page import facts, picture_sheet, write_page
from fastdet.training.data_module import OF_ONE_PICTURE
from fastdet.training.multi_scale import batch_border
from fastdet.training.options import ShowOptions
from fastdet.training.train import on_gpu, training_data

LONGEST_SIDE = 640  # of a picture in the page, in pixels


def show(options: ShowOptions, transforms: Any = None) -> int:
    """Write the page.

    Args:
        options: see `ShowOptions`. What does not change the pictures is ignored.
        transforms: of the training; see `fastdet.training.data_module.DetectionDataModule`.

    Returns:
        The number of pictures.

    Raises:
        FileExistsError: the file exists, and overwriting was not asked for.
        ValueError: as `fastdet.training.train.train`.
    """
    options.check()
    options = options.complete(on_gpu(options.device))
    options.check()
    assert options.backbone is not None
    refuse_existing(options.out, options.overwrite)
    data = training_data(options, transforms=transforms)
    sizes = {name: getattr(options, name) for name in ("min_size", "max_size", "size_divisor")}
    model = MODELS[options.model](options.backbone, num_classes=len(data.classes), **sizes)
    if model.learns_masks:
        data.read_masks()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(options.epoch - 1)  # type: ignore[union-attr]
    pictures: list[tuple[str, Image.Image]] = []
    scales = options.augmentation.multi_scale
    for number, (images, targets) in enumerate(loader):
        border = model.border
        if scales is not None:
            border = batch_border(border, scales, options.seed, options.epoch - 1, number)
        wanted = list(zip(images, targets, _seen_sizes(border, images), strict=True))
        for image, target, size in wanted[: options.images - len(pictures)]:
            pictures.append(_picture(image, target, data.classes, size))
        if len(pictures) == options.images:
            break
    introduction = (
        f"The first {len(pictures)} pictures of epoch {options.epoch} of {options.epochs}, seed "
        f"{options.seed}, after augmentation, as a training with the same options takes them."
    )
    body = f"<section>{facts(_facts(options, transforms))}{picture_sheet(pictures)}</section>"
    write_page(options.out, f"What the model sees of {options.data.name}", introduction, [body])
    return len(pictures)


def _seen_sizes(border: Border, images: list[Tensor]) -> list[tuple[int, int]]:
    """Height and width of each image once the model has resized it."""
    sizes = border.pad(images, num_classes=2).sizes
    return [(height, width) for height, width in sizes.tolist()]


def _picture(
    image: Tensor, target: dict[str, Any], classes: list[str], seen: tuple[int, int]
) -> tuple[str, Image.Image]:
    masks = target["masks"][:, None].bool() if "masks" in target else None
    drawn = draw_boxes(image, target["boxes"], target["labels"], classes, masks=masks)
    drawn.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    height, width = image.shape[-2:]
    caption = f"image id {target['image_id']}: {width} x {height}"
    if seen != (height, width):
        caption += f", resized to {seen[1]} x {seen[0]}"
    return caption, drawn


def _facts(options: ShowOptions, transforms: Any) -> dict[str, str]:
    """The options that change the pictures, in words."""
    shown: dict[str, str] = {"model": options.model}
    replaced = set() if transforms is None else {*OF_ONE_PICTURE}
    if replaced:
        shown["transforms"] = type(transforms).__name__
    for name, value in asdict(options.augmentation).items():
        if value and name not in replaced:
            some = value if isinstance(value, tuple) else (value,)
            shown[name.replace("_", " ")] = " to ".join(f"{x:g}" for x in some)
    return shown

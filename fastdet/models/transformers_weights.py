# SPDX-License-Identifier: BSD-3-Clause
"""Converts the DETRs of transformers to ours: same weights, same options, same detections.

Every weight is copied under our name; all else is ours. What has no counterpart here raises an
error that names it. The module of each family knows the names of its weights. transformers is
imported where it is needed, and not before.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from torch import nn

from fastdet.models.border import Border
from fastdet.models.detector import Detector
from fastdet.models.transformers_d_fine import d_fine_from_transformers
from fastdet.models.transformers_detr import (
    deformable_detr_from_transformers,
    detr_from_transformers,
)
from fastdet.models.transformers_rt_detr import rt_detr_from_transformers

BILINEAR = 2  # Pillow's number
PIXEL = 1 / 255  # transformers' factor of pixels in 0 .. 255


class Converter(NamedTuple):
    """How a model of transformers is converted.

    Attributes:
        convert: (model, border) -> detector.
        processor: the name of the image processor of transformers that is used if none is given.
    """

    convert: Callable[[Any, Border], Detector]
    processor: str


# By the names of transformers' classes.
CONVERTERS: dict[str, Converter] = {
    "DetrForObjectDetection": Converter(detr_from_transformers, "DetrImageProcessor"),
    "DeformableDetrForObjectDetection": Converter(
        deformable_detr_from_transformers, "DeformableDetrImageProcessor"
    ),
    "RTDetrForObjectDetection": Converter(rt_detr_from_transformers, "RTDetrImageProcessor"),
    "RTDetrV2ForObjectDetection": Converter(rt_detr_from_transformers, "RTDetrImageProcessor"),
    "DFineForObjectDetection": Converter(d_fine_from_transformers, "RTDetrImageProcessor"),
}


def from_transformers(model: nn.Module | str | Path, processor: Any = None) -> Detector:
    """Converts a DETR of transformers to ours, with the same weights and options.

    Args:
        model: of one of the classes of CONVERTERS, such as RTDetrForObjectDetection; or a local
            folder that `save_pretrained` wrote. Nothing is downloaded. The model is not changed.
        processor: the image processor, which says how images are resized and normalised. None: the
            one in the folder, if there is one, else the default one of the family.

    Returns:
        A detector in the mode and dtype and on the device of `model`, in eval mode from a folder.
        Class i of transformers is label i + 1, as label 0 is background; the attribute `classes`
        has the names by label, from id2label. Detections are those of the processor's
        `post_process_object_detection` with threshold 0, clipped to the image and sorted;
        `score_thresh` is the threshold.

    Raises:
        ValueError: a model, an option or a weight has no counterpart here; the message names it.
        FileNotFoundError: no such folder, or one without config.json.
        ModuleNotFoundError: a folder, but transformers is not installed.
    """
    if isinstance(model, str | Path):
        folder = Path(model)
        model = _read(folder)
        if processor is None and (folder / "preprocessor_config.json").exists():
            processor = _transformers().AutoImageProcessor.from_pretrained(
                folder, local_files_only=True
            )
    name = _name(model)
    if processor is None:
        processor = getattr(_transformers(), CONVERTERS[name].processor)()
    detector = CONVERTERS[name].convert(model, border_of(processor))
    detector.classes = ["background", *class_names(model)]  # type: ignore[assignment]
    return detector


def border_of(processor: Any) -> Border:
    """How an image processor of transformers resizes and normalises images.

    Raises:
        ValueError: an option has no counterpart here.
    """
    if not processor.do_resize:
        _refuse("processor.do_resize", True, False)
    if not processor.do_rescale or abs(processor.rescale_factor - PIXEL) > 1e-9:
        _refuse("processor.rescale_factor", "1/255", processor.rescale_factor)
    if int(processor.resample) != BILINEAR:
        _refuse("processor.resample", "bilinear", processor.resample)
    size = {name: value for name, value in dict(processor.size).items() if value is not None}
    sizes: dict[str, Any]
    if set(size) == {"shortest_edge", "longest_edge"}:
        sizes = {"min_size": size["shortest_edge"], "max_size": size["longest_edge"]}
    elif set(size) == {"height", "width"}:
        sizes = {"fixed_size": (size["height"], size["width"])}
    else:
        _refuse("processor.size", "shortest_edge and longest_edge, or height and width", size)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    # transformers pads to the largest image of the batch, and padding changes the features near it.
    return Border(**sizes, size_divisor=1, image_mean=mean, image_std=std, antialias=True)


def class_names(model: Any) -> list[str]:
    """The names of the classes of a model of transformers, in its order."""
    names = model.config.id2label
    return [str(names[number]) for number in range(model.config.num_labels)]


def _read(folder: Path) -> Any:
    """The model that `save_pretrained` wrote, in eval mode."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"model: expected a model of transformers, or its folder with config.json, got {folder}"
        )
    architectures = json.loads(config_file.read_text(encoding="utf-8")).get("architectures") or []
    name = architectures[0] if architectures else "no architectures"
    if name not in CONVERTERS:
        _refuse(f"{config_file}: architectures", " or ".join(CONVERTERS), name)
    transformers = _transformers()
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if hasattr(config.backbone_config, "use_pretrained_backbone"):
        config.backbone_config.use_pretrained_backbone = False  # all weights are in the folder
    model, loaded = getattr(transformers, name).from_pretrained(
        folder, config=config, local_files_only=True, output_loading_info=True
    )
    for missing in sorted(loaded["missing_keys"]):
        raise ValueError(f"{folder}: expected the weights of a {name}, missing {missing}")
    return model.eval()


def _name(model: Any) -> str:
    """The name of the model's class in CONVERTERS."""
    name, module = type(model).__name__, type(model).__module__
    if name not in CONVERTERS or not module.startswith("transformers."):
        _refuse("model", f"transformers' {' or '.join(CONVERTERS)}", f"{module}.{name}")
    return name


def _transformers() -> Any:
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. from_transformers needs it: pip install transformers", name=error.name
        ) from error
    return transformers


def _refuse(name: str, expected: Any, got: Any) -> NoReturn:
    raise ValueError(f"{name}: expected {expected}, got {got}")

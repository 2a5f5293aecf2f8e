# SPDX-License-Identifier: BSD-3-Clause
"""What an exported file says of itself: classes, image size, normalisation.

Plain data as JSON: a package has it as the extra file metadata.json, ONNX as one metadata property
for each key.
"""

import json
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fastdet
from fastdet.models import Detector

METADATA = "metadata.json"  # the file in a .pt2 package


def metadata(
    path: str | Path | Detector,
    image_size: tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What a file of `export_detector` says of itself; nothing in it is run.

    Images were resized in training so that the shorter side was `min_size`, or less where the
    longer one would have exceeded `max_size`. The file itself normalises, by `image_mean` and
    `image_std`.

    Args:
        path: a .pt2 or .onnx file.
        image_size: deprecated; with a Detector as `path`, the metadata that its file would have.
        classes: deprecated, as image_size.

    Returns:
        model, classes (None: not given), num_classes, image_size, min_size, max_size, image_mean,
        image_std and fastdet, the version that wrote the file. Of a file without suppression also
        suppression: the arguments of `fastdet.numpy.multiclass_nms` that make detections of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file that fastdet wrote.
        ModuleNotFoundError: an .onnx file, and onnx is absent; it says what to install.
    """
    if isinstance(path, Detector):
        warnings.warn(
            "metadata(model, ...) is deprecated: give metadata the path of an exported file",
            DeprecationWarning,
            stacklevel=2,
        )
        assert image_size is not None
        return about_model(path, classes) | {"image_size": list(image_size)}
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    found = _of_onnx(path) if path.suffix == ".onnx" else _of_package(path)
    if "fastdet" not in found:
        raise ValueError(f"{path}: expected a .pt2 or .onnx file that fastdet exported")
    return found


def about_model(model: Detector, classes: Sequence[str] | None) -> dict[str, Any]:
    """What the user of an exported model may need to know; plain data.

    Raises:
        ValueError: a wrong number of classes.
    """
    if classes is not None and len(classes) != model.num_classes:
        raise ValueError(f"classes: expected {model.num_classes} names, got {len(classes)}")
    border = model.border
    return {
        "model": type(model).__name__,
        "classes": None if classes is None else list(classes),
        "num_classes": model.num_classes,
        "min_size": border.min_size if isinstance(border.min_size, int) else list(border.min_size),
        "max_size": border.max_size,
        "image_mean": list(border.image_mean),
        "image_std": list(border.image_std),
        "fastdet": fastdet.__version__,
    }


def _of_package(path: Path) -> dict[str, Any]:
    """Without torch.export.load, which would need every operator of the program."""
    try:
        with zipfile.ZipFile(path) as package:
            (file,) = (name for name in package.namelist() if name.endswith(f"/extra/{METADATA}"))
            return json.loads(package.read(file))
    except (zipfile.BadZipFile, ValueError):  # the second: no such file in it, or not JSON
        return {}


def _of_onnx(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error}. ONNX needs more packages: pip install "fastdet[export]"', name=error.name
        ) from error
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        return {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    except (DecodeError, ValueError):
        return {}

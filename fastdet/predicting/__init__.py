# SPDX-License-Identifier: BSD-3-Clause
"""Detectors applied to pictures, and the results written.

Names load at their first use: the options of the command line lie here too, and need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdet.predicting.detecting import detect, propose
    from fastdet.predicting.ids import Ids, match_images, read_ids
    from fastdet.predicting.pictures import Picture, drawing_names, picture_files
    from fastdet.predicting.run import Prediction, predict

__all__ = [
    "Ids",
    "Picture",
    "Prediction",
    "detect",
    "drawing_names",
    "match_images",
    "picture_files",
    "predict",
    "propose",
    "read_ids",
]

_PLACES = {
    "detecting": ("detect", "propose"),
    "ids": ("Ids", "match_images", "read_ids"),
    "pictures": ("Picture", "drawing_names", "picture_files"),
    "run": ("Prediction", "predict"),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'fastdet.predicting' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fastdet.predicting.{_MODULE_OF[name]}"), name)

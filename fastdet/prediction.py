# SPDX-License-Identifier: BSD-3-Clause
"""Deprecated name of `fastdet.predicting`."""

import warnings

from fastdet.predicting import (
    Ids,
    Picture,
    Prediction,
    detect,
    drawing_names,
    match_images,
    picture_files,
    predict,
    propose,
    read_ids,
)

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

warnings.warn("fastdet.prediction is now fastdet.predicting", DeprecationWarning, stacklevel=2)

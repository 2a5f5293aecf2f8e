# SPDX-License-Identifier: BSD-3-Clause
"""Keywords that have a new name: the old one is still accepted, with a DeprecationWarning."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_keywords(
    is_compiling: Callable[[], bool] | None = None, /, **new_names: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator that accepts old keywords, given as `old="new"`.

    Args:
        is_compiling: where it returns True there is no warning, for torch.compile cannot trace it;
            `torch.compiler.is_compiling` for functions of tensors. None: always warns.
        new_names: the new name of each old keyword.

    Example:
        @renamed_keywords(nms_thresh="iou_threshold")
        def suppress(boxes, iou_threshold): ...
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            for old, new in new_names.items():
                if old not in kwargs:
                    continue
                if new in kwargs:
                    raise TypeError(f"{function.__name__}: expected {new} or {old}, got both")
                if is_compiling is None or not is_compiling():
                    warnings.warn(
                        f"{function.__name__}: {old} is now {new}", DeprecationWarning, stacklevel=2
                    )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate

# SPDX-License-Identifier: BSD-3-Clause
"""Old attributes, constructors and keywords. They work and give a DeprecationWarning."""

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from typing_extensions import ParamSpec

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def moved_to_border(name: str) -> property:
    """The deprecated attribute `name` of a Detector, now an attribute of its border."""
    warning = f"model.{name} is deprecated: use model.border.{name}"

    def read(model: Any) -> Any:
        warnings.warn(warning, DeprecationWarning, stacklevel=2)
        return getattr(model.border, name)

    def write(model: Any, value: Any) -> None:
        warnings.warn(
            warning, DeprecationWarning, stacklevel=3
        )  # one more for nn.Module's __setattr__
        model.border = dataclasses.replace(model.border, **{name: value})

    return property(read, write)


def batch_norm_from_frozen(build: Callable[..., Result]) -> Callable[..., Result]:
    """Lets a builder with the keyword batch_norm also take the deprecated frozen_batch_norm.

    True is batch_norm="frozen", False is batch_norm="train", and None is no value.
    """

    @functools.wraps(build)
    def either(*args: Any, frozen_batch_norm: bool | None = None, **options: Any) -> Result:
        if frozen_batch_norm is not None:
            if options.get("batch_norm") is not None:
                raise TypeError(
                    f"{build.__name__}: expected batch_norm or frozen_batch_norm, got both"
                )
            options["batch_norm"] = "frozen" if frozen_batch_norm else "train"
            warnings.warn(
                f"{build.__name__}: frozen_batch_norm is deprecated: use "
                f"batch_norm={options['batch_norm']!r}",
                DeprecationWarning,
                stacklevel=2,
            )
        return build(*args, **options)

    return either


def or_from_options(
    parts_of: Callable[..., dict[str, Any]],
) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Lets the __init__ of a detector also take the deprecated (backbone, num_classes, **options).

    Args:
        parts_of: converts the deprecated arguments to the arguments of the __init__.
    """

    def decorate(init: Callable[Parameters, None]) -> Callable[Parameters, None]:
        @functools.wraps(init)
        def either(self: Any, *args: Any, **options: Any) -> None:
            first = args[0] if args else options.get("border", options.get("backbone"))
            if not isinstance(first, nn.Module):
                return init(self, *args, **options)  # type: ignore[call-arg]
            name = type(self).__name__
            warnings.warn(
                f"{name}(backbone, num_classes, ...) is deprecated: build it from a Border and its "
                "parts, or with its builder function",
                DeprecationWarning,
                stacklevel=2,
            )
            return init(self, **parts_of(*args, **options))  # type: ignore[call-arg]

        return either  # type: ignore[return-value]

    return decorate

# SPDX-License-Identifier: BSD-3-Clause
"""Weights of a backbone from a local file, by name, with a report of what was loaded.

Names of other libraries are renamed (`weight_names.py`), then timm's own filter for the model
resizes what depends on the image size. Only tensors and plain data are unpickled.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from fastdet.models.body_stages import FLAT_WRAPPERS, WRAPPERS
from fastdet.models.weight_names import timm_names

# Where the tensors are in the files of training scripts; averaged weights first.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# timm's names for the function that takes a model's original files.
FILTERS = ("checkpoint_filter_fn", "pretrained_filter_fn", "_filter_fn")
OF_FEATURES = ("features_only", "out_indices", "feature_cls")
ENOUGH = 0.9  # of the tensors of a body
LIST_OF_TENSORS = "tensors of the backbone loaded"  # in the first line of each list

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedWeights:
    """What a file of weights gave to a body. Printed, it is one line.

    Attributes:
        path: the file.
        loaded: names of the body's tensors that were loaded.
        missing: names of the body's tensors that the file lacks.
        other_shapes: names of the body's tensors, with the shape in the file and in the body.
        unused: names in the file, after renaming, that the body has no place for.
    """

    path: Path
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    other_shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    unused: tuple[str, ...]

    @property
    def total(self) -> int:
        """Number of tensors that the body needs."""
        return len(self.loaded) + len(self.missing) + len(self.other_shapes)

    @property
    def random(self) -> tuple[str, ...]:
        """Names of the body's tensors that were not loaded."""
        return (*self.missing, *(name for name, _, _ in self.other_shapes))

    def __str__(self) -> str:
        first = ", ".join(self.random[:3]) + (", ..." if len(self.random) > 3 else "")
        return (
            f"{self.path.name}: {len(self.loaded)} of {self.total} {LIST_OF_TENSORS}, "
            f"{len(self.missing)} not in the file, {len(self.other_shapes)} of other shapes; "
            f"{len(self.unused)} of the file not used" + (f"; random: {first}" if first else "")
        )

    def lines(self) -> list[str]:
        """The whole list: a line for each tensor."""
        return [
            str(self),
            *(f"loaded {name}" for name in self.loaded),
            *(f"not in the file {name}" for name in self.missing),
            *(f"other shape {n}: {file} in the file, {own}" for n, file, own in self.other_shapes),
            *(f"not used {name}" for name in self.unused),
        ]


def load_backbone_weights(
    body: nn.Module, name: str, options: Mapping[str, Any], path: str | Path
) -> LoadedWeights:
    """Loads a file of weights into a body that `timm_body` builds.

    Args:
        body: the module; it gets the weights.
        name: timm's name of the model.
        options: the arguments of timm.create_model with which it was built.
        path: a .safetensors file, or one that torch.load reads. Its names are those of timm (also
            of a detector of ours), of torchvision's ResNet, ConvNeXt and Swin, of DINO's and
            DINOv2's ViT, or of the ResNet and Swin of mmdetection and mmpretrain.

    Returns:
        What was loaded; the log of level INFO has the whole list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or fewer than 90 % of the body's tensors in it.
    """
    path = Path(path)
    with torch.device("meta"):
        plain = {key: value for key, value in options.items() if key not in OF_FEATURES}
        model = timm.create_model(name, **plain)
    tensors = timm_names(read_tensors(path))
    # A filter may spoil names that are timm's already.
    converted = max((_filtered(tensors, model), tensors), key=lambda found: _fitting(found, model))
    report = _load(body, path, {_flat(key): (key, x) for key, x in converted.items()}, model)
    if not report.loaded or len(report.loaded) < ENOUGH * report.total:
        examples = (
            ("that the file lacks", [WRAPPERS.sub("", name) for name in report.missing]),
            ("of another shape", [WRAPPERS.sub("", name) for name, _, _ in report.other_shapes]),
            ("not used", report.unused),
        )
        raise ValueError(
            f"{path}: expected the weights of {name}, got {len(report.loaded)} of its "
            f"{report.total} tensors; "
            + ", ".join(f"the first {what} is {names[0]!r}" for what, names in examples if names)
        )
    _log.info("\n".join(report.lines()))
    return report


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, without what wraps them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    try:
        content = _read(path)
    except Exception as error:  # whatever torch and safetensors say of another file
        raise ValueError(
            f"{path}: expected a file of tensors and plain data (.pth or .safetensors), got one "
            f"that cannot be read so: {_first_sentence(error)}"
        ) from None
    while isinstance(content, dict):
        inner = [content[key] for key in CONTAINERS if isinstance(content.get(key), dict)]
        if not inner:
            break
        content = inner[0]
    tensors = content.items() if isinstance(content, dict) else ()
    found = {str(key): value for key, value in tensors if isinstance(value, Tensor)}
    if not found:
        raise ValueError(f"{path}: expected tensors by name, got none")
    return found


def _first_sentence(error: Exception) -> str:
    """What the error says, without what colours it and without torch's advice to trust the file."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return " ".join(plain.split()).split(". ")[0][:200]


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # The scripts of DINO, ConvNeXt and timm save their arguments beside the tensors.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _filtered(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors after timm's filter for the model, if it has one and it knows these names."""
    module = sys.modules[type(model).__module__]
    filters = [getattr(module, name) for name in FILTERS if hasattr(module, name)]
    if not filters:
        return tensors
    try:
        return filters[0](dict(tensors), model)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return tensors  # of another model; the count of what matched tells


def _fitting(tensors: Mapping[str, Tensor], model: nn.Module) -> int:
    """How many tensors of the model have one of the same name and shape."""
    own = {_flat(name): x.shape for name, x in model.state_dict().items()}
    return sum(own.get(_flat(name)) == x.shape for name, x in tensors.items())


def _load(
    body: nn.Module, path: Path, given: dict[str, tuple[str, Tensor]], model: nn.Module
) -> LoadedWeights:
    """Copies what has the right name and shape."""
    known = {_flat(name) for name in model.state_dict()}
    own = {_flat(name): (name, x) for name, x in body.state_dict().items() if _is_weight(name)}
    # A pyramid's layers are only in files of our own detectors.
    needed = {key: pair for key, pair in own.items() if key in known or key in given}
    loaded: dict[str, Tensor] = {}
    other_shapes = []
    for key, (name, x) in needed.items():
        value = given[key][1] if key in given else None
        if value is None:
            continue
        if not (value.is_floating_point() and bool(value.isfinite().all())):
            raise ValueError(
                f"{path}: expected finite numbers of a floating-point type, got {value.dtype} with "
                f"other ones in {given[key][0]!r}"
            )
        if value.shape == x.shape:
            loaded[name] = value
        else:
            other_shapes.append((name, tuple(value.shape), tuple(x.shape)))
    body.load_state_dict(loaded, strict=False)
    missing = [name for key, (name, _) in needed.items() if key not in given]
    unused = [name for key, (name, _) in given.items() if key not in needed and _is_weight(name)]
    return LoadedWeights(path, tuple(loaded), tuple(missing), tuple(other_shapes), tuple(unused))


def _flat(name: str) -> str:
    """A name without wrappers; where timm flattens a model it writes "_" for "."."""
    return FLAT_WRAPPERS.sub("", name.replace(".", "_"))


def _is_weight(name: str) -> bool:
    """Whether a result depends on the tensor; older files lack these counters."""
    return not name.endswith("num_batches_tracked")

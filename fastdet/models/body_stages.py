# SPDX-License-Identifier: BSD-3-Clause
"""The stem and the four stages of a body, as sets of its parameters, to freeze the first of them.

A stage is what its map depends on and no earlier map does. That is read from the graph that
autograd records, so it holds for any body, whatever its modules are called.
"""

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastdet.models.simple_pyramid import SimpleFeaturePyramid

PARTS = 5  # the stem and four stages
NEVER_FROZEN = PARTS  # new layers, which have no pretrained weights
UNUSED = -1  # no map depends on these
# The maps of HRNet all depend on all of its stages, which are these modules.
HRNET_STAGES = ("layer1", "stage2", "stage3", "stage4")
# What wraps timm's modules; the rest of a parameter's name is timm's.
WRAPPERS = re.compile(r"^((body|model)\.)+")
FLAT_WRAPPERS = re.compile(r"^((body|model)_)+")


def parts_of(body: Any, maps: Sequence[Tensor], first_stage: str) -> dict[str, int] | None:
    """The part of each parameter, by its name: 0 for the stem, 1 .. 4 for the stages.

    Args:
        body: a module whose parameters all require a gradient.
        maps: its four maps for some image, finest first, with their graph.
        first_stage: timm's name of the module that gives the first map. What is registered before
            it is the stem; if there is no such module, the child with the first convolution is.

    Returns:
        Also `UNUSED` and `NEVER_FROZEN`. None if some stage has no parameters of its own.
    """
    names = {id(parameter): name for name, parameter in body.named_parameters()}
    parts = dict.fromkeys(names.values(), UNUSED)
    for stage, x in reversed(list(enumerate(maps, start=1))):
        parts |= {names[one]: stage for one in _parameters_behind(x) if one in names}
    pyramid = next((m for m in body.modules() if isinstance(m, SimpleFeaturePyramid)), None)
    if pyramid is not None:
        return {name: _part_in_vit(pyramid, name, part) for name, part in parts.items()}
    if all(hasattr(body, name) for name in HRNET_STAGES):
        return dict(zip(parts, _parts_in_hrnet(body), strict=True))
    if not set(range(1, PARTS)) <= set(parts.values()):
        return None
    for name in _stem(body, [name for name, part in parts.items() if part == 1], first_stage):
        parts[name] = 0
    return parts


def coarsest_maps(body: nn.Module, maps: Sequence[Tensor]) -> dict[str, int]:
    """For each parameter, by its name, which map is the coarsest that depends on it: 1 .. 4.

    Args:
        body: a module whose parameters all require a gradient.
        maps: its four maps for some image, finest first, with their graph.
    """
    names = {id(parameter): name for name, parameter in body.named_parameters()}
    found: dict[str, int] = {}
    for stage, x in enumerate(maps, start=1):
        found |= {names[one]: stage for one in _parameters_behind(x) if one in names}
    return found


def freeze_first_parts(body: nn.Module, parts: dict[str, int], trainable: int) -> None:
    """Freezes the first parts, so that the last `trainable` of the five are trained.

    Parameters that no map depends on are frozen, too: they never get a gradient.
    """
    for name, parameter in body.named_parameters():
        if parts[name] < PARTS - trainable:
            parameter.requires_grad_(False)


def _parameters_behind(x: Tensor) -> set[int]:
    """The id() of each parameter in the graph of `x`."""
    found: set[int] = set()
    seen: set[Any] = set()
    waiting: list[Any] = [x.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        waiting += [before for before, _ in node.next_functions]
    return found


def _stem(body: nn.Module, names: list[str], first_stage: str) -> list[str]:
    """Of the parameters that the first map depends on, those of the stem."""
    timms = [WRAPPERS.sub("", name) for name in names]
    # Where timm flattens a model, it writes "_" for the "." between a module and its child.
    prefix = first_stage.replace(".", "_") + "_"
    inside = [i for i, name in enumerate(timms) if name.replace(".", "_").startswith(prefix)]
    if inside:
        return names[: inside[0]]
    shapes = dict(body.named_parameters())
    convs = (own for own, name in zip(timms, names, strict=True) if shapes[name].dim() == 4)
    child = next(convs, timms[0]).split(".")[0]
    return [
        name
        for name, own in zip(names, timms, strict=True)
        if "." not in own or own.split(".")[0] == child
    ]


def _parts_in_hrnet(body: nn.Module) -> list[int]:
    """The part of each parameter: a child belongs to the stage that it is, or that follows it."""
    parts = []
    ended = 0
    for name, child in body.named_children():
        if name in HRNET_STAGES:
            ended = 1 + HRNET_STAGES.index(name)
            part = ended
        else:
            part = min(ended + 1, PARTS - 1) if ended else 0
        parts += [part for _ in child.parameters()]
    return parts


def _part_in_vit(pyramid: SimpleFeaturePyramid, name: str, part: int) -> int:
    """A quarter of the blocks is a stage, what is before them is the stem."""
    if part == UNUSED:
        return UNUSED
    if ".four_times." in f".{name}" or ".twice." in f".{name}":
        return NEVER_FROZEN
    blocks = [re.match(r"(?:.*\.)?blocks\.(\d+)\.", n) for n, _ in pyramid.named_parameters()]
    depth = 1 + max((int(block[1]) for block in blocks if block), default=0)
    block = re.match(r"(?:.*\.)?blocks\.(\d+)\.", name)
    return 0 if block is None else 1 + int(block[1]) * (PARTS - 1) // depth

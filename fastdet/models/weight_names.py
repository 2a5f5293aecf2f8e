# SPDX-License-Identifier: BSD-3-Clause
"""timm's names for the weights of other libraries: the same networks, written down differently.

Each library is recognised by a name that only it has. What is not recognised keeps its name; most
libraries call the layers of a ResNet or a ViT as timm does.
"""

import re
from collections.abc import Callable

from torch import Tensor

Tensors = dict[str, Tensor]

# Of whole models and detectors, and of what wraps them in training.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "body.")
# Of SimpleFeaturePyramid, beside the network that it wraps.
PYRAMID = ("four_times.", "twice.")


def timm_names(tensors: Tensors) -> Tensors:
    """The tensors under timm's names, without prefixes.

    If some names begin with one of `PREFIXES`, only these are taken: the others are of a head.
    """
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), None)
    if prefix is not None:
        inner = {
            n.removeprefix(prefix): x
            for n, x in tensors.items()
            if n.startswith((prefix, *PYRAMID))
        }
        return timm_names(inner)
    for pattern, rename in _LIBRARIES.items():
        if any(re.search(pattern, name) for name in tensors):
            return rename(tensors)
    return tensors


def _renamed(tensors: Tensors, patterns: dict[str, str]) -> Tensors:
    """The tensors, each renamed by all patterns in turn."""
    renamed = {}
    for name, x in tensors.items():
        for pattern, new in patterns.items():
            name = re.sub(pattern, new, name)
        renamed[name] = x
    return renamed


def _stage(offset: int, rest: str) -> Callable[[re.Match[str]], str]:
    """Half of the number in a name of torchvision, whose stages and downsamplings alternate."""
    return lambda match: rest.format((int(match[1]) + offset) // 2, *match.groups()[1:])


def _torchvision_features(tensors: Tensors, stages: str) -> Tensors:
    """features.1, 3, 5, 7 are the stages, features.2, 4, 6 the downsamplings before a stage."""
    renamed = {}
    for name, x in tensors.items():
        name = re.sub(r"^features\.([1357])\.(\d+)\.", _stage(-1, stages + ".{}.blocks.{}."), name)
        name = re.sub(r"^features\.([246])\.", _stage(0, stages + ".{}.downsample."), name)
        renamed[name] = x
    return renamed


def _torchvision_convnext(tensors: Tensors) -> Tensors:
    renamed = _renamed(
        _torchvision_features(tensors, "stages"),
        {
            r"^features\.0\.": "stem.",
            r"\.block\.0\.": ".conv_dw.",
            r"\.block\.2\.": ".norm.",
            r"\.block\.3\.": ".mlp.fc1.",
            r"\.block\.5\.": ".mlp.fc2.",
            r"\.layer_scale$": ".gamma",
            r"^classifier\.0\.": "head.norm.",
            r"^classifier\.2\.": "head.fc.",
        },
    )
    return {n: x.flatten() if n.endswith(".gamma") else x for n, x in renamed.items()}


def _torchvision_swin(tensors: Tensors) -> Tensors:
    renamed = _renamed(
        _torchvision_features(tensors, "layers"),
        {
            r"^features\.0\.0\.": "patch_embed.proj.",
            r"^features\.0\.2\.": "patch_embed.norm.",
            r"\.mlp\.0\.": ".mlp.fc1.",
            r"\.mlp\.3\.": ".mlp.fc2.",
            r"^head\.": "head.fc.",
        },
    )
    second_version = any(".cpb_mlp." in name for name in renamed)
    for name in list(renamed):
        if "relative_position_index" in name or "relative_coords_table" in name:
            del renamed[name]  # numbers, not weights
        elif second_version and name.endswith(".attn.qkv.bias"):
            query, _, value = renamed.pop(name).chunk(3)  # that of the keys is zero
            renamed[name.replace("qkv.bias", "q_bias")] = query
            renamed[name.replace("qkv.bias", "v_bias")] = value
    return renamed


def _openmmlab_swin(tensors: Tensors) -> Tensors:
    """Swin of mmdetection and mmpretrain."""
    renamed = _renamed(
        tensors,
        {
            r"^patch_embed\.projection\.": "patch_embed.proj.",
            r"^stages\.": "layers.",
            r"\.attn\.w_msa\.": ".attn.",
            r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
            r"\.ffn\.layers\.1\.": ".mlp.fc2.",
        },
    )
    ordered = {}
    for name, x in renamed.items():
        if ".downsample.norm." in name:
            x = _in_patch_order(x[None])[0]
        elif ".downsample.reduction." in name:
            x = _in_patch_order(x)
        if "relative_position_index" not in name:
            # A stage ends with its downsampling there; timm's next stage begins with it.
            next_stage = r"^layers\.(\d+)\.downsample\."
            name = re.sub(next_stage, lambda m: f"layers.{int(m[1]) + 1}.downsample.", name)
            ordered[name] = x
    return ordered


def _in_patch_order(x: Tensor) -> Tensor:
    """(K, 4 C) whose columns are those of nn.Unfold, C x (2 x 2) -> column by column of the patch.

    Swin joins the pixels of a patch as (0, 0), (1, 0), (0, 1), (1, 1), row and column.
    """
    by_pixel = x.unflatten(1, (-1, 4)).transpose(1, 2)  # (K, 4, C), row by row
    return by_pixel[:, [0, 2, 1, 3]].flatten(1)


def _dinov2(tensors: Tensors) -> Tensors:
    """Blocks in chunks, blocks.CHUNK.BLOCK, as some of its files have them."""
    return _renamed(tensors, {r"^blocks\.\d+\.(\d+)\.": r"blocks.\1."})


# By a pattern that only names of this library match.
_LIBRARIES: dict[str, Callable[[Tensors], Tensors]] = {
    r"^features\.\d+\.\d+\.layer_scale$": _torchvision_convnext,
    r"^features\.\d+\.\d+\.attn\.": _torchvision_swin,
    r"\.attn\.w_msa\.": _openmmlab_swin,
    r"^mask_token$": _dinov2,
}

# SPDX-License-Identifier: BSD-3-Clause
"""Bodies from timm: any model that yields feature maps, with maps of strides 4, 8, 16 and 32.

How a model must be built is found by a trial: one image without values goes through it, and its
maps must have the right shapes. A model that has passed in timm's usual form is used as it is.
Others are built to take images of any size, get padded images, or get a simple feature pyramid.
"""

import contextlib
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastdet.models.backbone_weights import load_backbone_weights
from fastdet.models.batch_norms import (
    BatchNormMode,
    check_batch_norm,
    start_batch_norms_at_one,
    with_batch_norms,
)
from fastdet.models.body_stages import PARTS, coarsest_maps, freeze_first_parts, parts_of
from fastdet.models.deprecation import batch_norm_from_frozen
from fastdet.models.simple_pyramid import SimpleFeaturePyramid
from fastdet.models.strided_pointwise import replace_strided_pointwise

STRIDES = (4, 8, 16, 32)
DIVISOR = 32  # pixels; an image of such sides has maps without a remainder
TRIAL_SIZE = (96, 160)  # odd multiples of 32: what fits these fits any multiple
LONG_SIZE = (64, 608)  # longer than the images for which timm's tables of positions are made
# Sides that windowed attention may need in place of 32: windows of 2 .. 16 pixels at stride 32.
WINDOW_DIVISORS = range(64, 513, DIVISOR)
EXAMPLES = "resnet50, convnext_tiny, swin_tiny_patch4_window7_224 or vit_base_patch16_224"
FOUR_MAPS: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1)}
# As the model's method forward_intermediates gives them: NCHW, whatever the model computes in.
BY_GETTER: dict[str, Any] = FOUR_MAPS | {"feature_cls": "getter"}
VIT_STRIDE = 16  # of the map that a simple feature pyramid takes
# The defaults where there are weights.
LAYERS_WITH_WEIGHTS = 3
NORM_WITH_WEIGHTS: BatchNormMode = "frozen"
LAST_MAP: dict[str, Any] = {"features_only": True, "out_indices": (-1,)}


class PaddedBody(nn.Module):
    """A body that needs images whose sides are multiples of a number of pixels.

    Images are padded with zeros at the right and below, and the maps are cut to the image.

    Args:
        body: images -> four maps of strides 4, 8, 16 and 32.
        divisor: of the sides, in pixels.
    """

    def __init__(self, body: nn.Module, divisor: int) -> None:
        super().__init__()
        self.body = body
        self.divisor = divisor

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps (B, C_l, ceil(H / stride), ceil(W / stride))."""
        height, width = images.shape[2], images.shape[3]
        below, right = -height % self.divisor, -width % self.divisor
        if below or right:
            images = F.pad(images, (0, right, 0, below))
        return [
            x[:, :, : -(-height // stride), : -(-width // stride)]
            for x, stride in zip(self.body(images), STRIDES, strict=True)
        ]


@dataclass(frozen=True)
class Way:
    """How a timm model becomes a body.

    Attributes:
        options: further arguments of timm.create_model.
        divisor: of the sides of a `PaddedBody`; None: the model as it is.
        plain_vit: whether a simple feature pyramid makes the maps from the model's last one.
    """

    options: Mapping[str, Any] = field(default_factory=lambda: FOUR_MAPS)
    divisor: int | None = None
    plain_vit: bool = False

    def build(self, name: str, pretrained: bool) -> Any:
        """The body; its `channels` are those of its maps."""
        return self.wrap(timm.create_model(name, pretrained=pretrained, **self.options))

    def wrap(self, body: Any) -> Any:
        """The body of a model that was created with the options."""
        channels = body.feature_info.channels()
        if self.plain_vit:
            body = SimpleFeaturePyramid(body, channels[-1])
            channels = body.channels
        if self.divisor is not None:
            body = PaddedBody(body, self.divisor)
        body.channels = channels
        replace_strided_pointwise(body)
        return body


@dataclass(frozen=True)
class Fit:
    """A way that passed its trial, and what `parts_of` and `coarsest_maps` give."""

    way: Way
    parts: dict[str, int] | None
    coarsest: dict[str, int]


_fits: dict[Any, Fit] = {}  # of this process, by `_key`; a trial takes time


@batch_norm_from_frozen
def timm_body(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    trainable_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    image_size: tuple[int, int] | None = None,
    maps: int = 4,
) -> tuple[nn.Module, list[int]]:
    """A timm model as a module that returns a list of four feature maps.

    Args:
        name: timm's model name, e.g. "resnet18". A plain ViT gets a simple feature pyramid.
        pretrained: use timm's weights, which are downloaded at the first use.
        weights: a file with the weights of the model; see `load_backbone_weights`. The module's
            attribute `loaded_weights`, a LoadedWeights, says what was loaded.
        trainable_layers: in 0 .. 5, how many of the five parts (stem and four stages) are trained,
            counted from the last stage. None: 3 with pretrained weights, else 5.
        batch_norm: see `with_batch_norms`. None: "frozen" with pretrained weights, else "train".
        image_size: height and width of all images, padded, if they are known. A few models, which
            take images of one size only, need it.
        maps: how many of the maps are used, the last ones. What only the others depend on is
            frozen, because it never gets a gradient.

    Returns:
        The module and the channels of its four maps. The module's attribute `stages` has the part
        of each parameter, by its name; None where parts share parameters.

    Raises:
        ValueError: unknown name; strides other than 4, 8, 16 and 32; an option out of range; a file
            that does not fit the model.

    Follows torchvision's _resnet_fpn_extractor and _validate_trainable_layers.
    """
    if pretrained and weights is not None:
        raise ValueError(f"weights: expected no file together with pretrained, got {weights}")
    has_weights = pretrained or weights is not None
    if trainable_layers is None:
        trainable_layers = LAYERS_WITH_WEIGHTS if has_weights else PARTS
    if not 0 <= trainable_layers <= PARTS:
        raise ValueError(f"trainable_layers: expected 0 .. 5, got {trainable_layers}")
    if batch_norm is None:
        batch_norm = NORM_WITH_WEIGHTS if has_weights else "train"
    check_batch_norm(batch_norm)
    if ":" not in name and not timm.is_model(name):  # a colon: an address, e.g. hf-hub:
        near = ", ".join(difflib.get_close_matches(name, timm.list_models(), n=4)) or "none"
        raise ValueError(
            f"backbone: expected the name of a timm model, got {name!r}; similar: {near}"
        )
    base, _, tag = name.partition(".")
    if ":" not in name and tag and name not in (tags := timm.list_pretrained(f"{base}.*")):
        raise ValueError(
            f"backbone: expected {base} or {base}.TAG with a tag of timm, got {name!r}; tags: "
            f"{', '.join(known.partition('.')[2] for known in tags) or 'none'}"
        )
    body, fit = _build(name, pretrained, image_size)
    channels: list[int] = body.channels
    loaded = None
    if weights is not None:
        loaded = load_backbone_weights(body, name, fit.way.options, weights)
    elif not pretrained:
        start_batch_norms_at_one(body)
    _freeze(body, name, fit.parts, trainable_layers)
    random = set(loaded.random if loaded else ())  # these must learn
    for own, parameter in body.named_parameters():
        if own in random:
            parameter.requires_grad_(True)
        if fit.coarsest.get(own, 0) <= len(STRIDES) - maps:
            parameter.requires_grad_(False)
    body = with_batch_norms(body, batch_norm)
    body.stages = fit.parts
    if loaded is not None:
        body.loaded_weights = loaded
    return body, channels


def fit_of(name: str, image_size: tuple[int, int] | None = None) -> Fit:
    """How a body of this process was built, by the arguments of its `timm_body`."""
    return _fits[_key(name, image_size)]


def _key(name: str, image_size: tuple[int, int] | None) -> Any:
    """Models without values pass an easier trial."""
    return name, image_size, torch.empty(0).is_meta


def _build(name: str, pretrained: bool, image_size: tuple[int, int] | None) -> tuple[Any, Fit]:
    """The body of the first way that passes its trial."""
    key = _key(name, image_size)
    if key in _fits:
        return _fits[key].way.build(name, pretrained), _fits[key]
    random_numbers = torch.get_rng_state()
    body = fit = None
    small_tables = False
    with contextlib.suppress(AssertionError, IndexError):  # timm's for fewer than four maps
        body = Way().build(name, pretrained)
        fit = _tried(Way(), body, TRIAL_SIZE)
        small_tables = fit is not None and not _reaches(body, LONG_SIZE)
    if body is None or fit is None or small_tables:
        fit = _search(name, image_size, of_one_size=small_tables)
        # The random weights of a seed do not depend on how many ways were tried.
        torch.set_rng_state(random_numbers)
        body = fit.way.build(name, pretrained)
    if ":" not in name:  # what is at an address may change
        _fits[key] = fit
    return body, fit


def _search(name: str, image_size: tuple[int, int] | None, of_one_size: bool) -> Fit:
    """The first of the other ways that passes its trial, with models without values.

    Args:
        name, image_size: see `timm_body`.
        of_one_size: whether only ways for images of `image_size` are tried.

    Raises:
        ValueError: there is none.
    """
    strides = _strides(name)
    plain_vit = len(set(strides)) == 1
    if not plain_vit and strides[-4:] != STRIDES:
        raise ValueError(
            f"backbone {name!r}: expected strides {STRIDES}, got {strides}; use another one, for "
            f"example {EXAMPLES}"
        )
    for options, divisors in _candidates(plain_vit, image_size):
        if of_one_size and "img_size" not in options:
            continue
        with torch.device("meta"), contextlib.suppress(*_NO_SUCH_OPTION):
            model = timm.create_model(name, pretrained=False, **options)
            for divisor in divisors:
                way = Way(options, divisor, plain_vit)
                # Two sizes that are no multiples of a larger divisor; or the only size.
                size = TRIAL_SIZE if divisor == DIVISOR else (divisor, 3 * divisor)
                fit = _tried(way, way.wrap(model), options.get("img_size", size))
                if fit is not None:
                    return fit
    sizes, advice = "any size", "if it is made for one size, give fixed_size=(height, width)"
    if image_size is not None:
        sizes, advice = f"{image_size[0]} x {image_size[1]}", "give another fixed_size"
    raise ValueError(
        f"backbone {name!r} has no maps of strides {STRIDES} for images of {sizes}: {advice}, or "
        f"use another backbone, for example {EXAMPLES}"
    )


# Of a model without the option, or whose numbers do not fit it.
_NO_SUCH_OPTION = (TypeError, ValueError, AssertionError, IndexError, AttributeError, RuntimeError)


def _candidates(
    plain_vit: bool, image_size: tuple[int, int] | None
) -> Iterator[tuple[dict[str, Any], Sequence[int]]]:
    """Options of timm.create_model, and the divisors to try with them, the best first."""
    # Swin shifts its windows at every size only with always_partition.
    shifted = {"dynamic_img_size": True, "always_partition": True}
    any_size: list[dict[str, Any]] = [
        *([] if plain_vit else [shifted]),
        {"dynamic_img_size": True},
        {"strict_img_size": False},
        {},
    ]
    one_size: list[dict[str, Any]] = []
    if image_size is not None:
        side = -(-max(image_size) // DIVISOR) * DIVISOR
        one_size = [{"img_size": image_size}, {"img_size": (side, side)}]  # some take squares only
    if plain_vit:
        for patch in ({}, {"patch_size": VIT_STRIDE}):
            for further in (*any_size, *one_size):
                options = LAST_MAP | patch | further
                yield options, (_divisor(options, image_size),)
        return
    for further in any_size:
        yield BY_GETTER | further, (DIVISOR,)
    for options in (BY_GETTER, FOUR_MAPS):
        yield options, WINDOW_DIVISORS
        for further in one_size:
            yield options | further, (_divisor(further, image_size),)


def _divisor(options: dict[str, Any], image_size: tuple[int, int] | None) -> int:
    """That of the sides of images: of a square, its side, to which all images are padded."""
    size = options.get("img_size", image_size)
    return DIVISOR if size == image_size else size[0]


def _strides(name: str) -> tuple[int, ...]:
    """The strides of all maps of a model."""
    with torch.device("meta"):
        body: Any = timm.create_model(name, features_only=True)
    return tuple(body.feature_info.reduction(list(range(len(body.feature_info.info)))))


def _tried(way: Way, body: Any, size: tuple[int, int]) -> Fit | None:
    """What one image of this height and width, without values, shows; None if it does not fit."""
    maps = _maps_of(body, size)
    shapes = [
        (1, channels, size[0] // stride, size[1] // stride)
        for channels, stride in zip(body.channels, STRIDES, strict=True)
    ]
    if [tuple(x.shape) for x in maps] != shapes:
        return None
    return Fit(way, parts_of(body, maps, _first_stage(body)), coarsest_maps(body, maps))


def _maps_of(body: nn.Module, size: tuple[int, int]) -> Sequence[Tensor]:
    """The maps of one image, with their graph; empty if the body cannot compute them."""
    parameter = next(body.parameters())
    has_values = not parameter.is_meta and not isinstance(parameter, FakeTensor)
    mode = FakeTensorMode(allow_non_fake_inputs=True) if has_values else contextlib.nullcontext()
    log = logging.getLogger("torch._subclasses.fake_tensor")
    logs, log.disabled = log.disabled, True  # it reports each wrong shape with a traceback
    body.eval()
    try:
        with mode, torch.enable_grad():
            return body(torch.zeros((1, 3, *size), device=parameter.device, dtype=parameter.dtype))
    except Exception:  # of any type: timm asserts, indexes and reshapes
        return ()
    finally:
        body.train()
        log.disabled = logs


@torch.no_grad()
def _reaches(body: nn.Module, size: tuple[int, int]) -> bool:
    """Whether an image of this size has no pixel beyond the model's tables of positions.

    Only values show that; shapes do not. A body without tables, or without values, is not run.
    """
    parameter = next(body.parameters())
    has_values = not parameter.is_meta and not isinstance(parameter, FakeTensor)
    tables = any(
        x.dim() > 1 and not type(module).__module__.startswith("torch.nn")
        for module in body.modules()
        for x in module.parameters(recurse=False)
    )
    if not has_values or not tables:
        return True
    body.eval()
    try:
        body(torch.zeros((1, 3, *size), device=parameter.device, dtype=parameter.dtype))
    except IndexError:
        return False
    finally:
        body.train()
    return True


def _first_stage(body: nn.Module) -> str:
    """timm's name of the module that gives the first map."""
    infos = (module.feature_info for module in body.modules() if hasattr(module, "feature_info"))
    return next(infos).module_name()[0]  # type: ignore[union-attr,operator]


def _freeze(body: nn.Module, name: str, parts: dict[str, int] | None, trainable: int) -> None:
    """Freezes the first parts and what no map depends on."""
    if parts is not None:
        freeze_first_parts(body, parts, trainable)
    elif trainable == 0:
        body.requires_grad_(False)
    elif trainable < PARTS:
        raise ValueError(
            f"backbone {name!r}: its stages have no parameters of their own: expected "
            f"trainable_layers 0 or {PARTS}, got {trainable}"
        )

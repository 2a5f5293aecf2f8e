# SPDX-License-Identifier: BSD-3-Clause
"""Files of weights in the names of each library give the original network's maps."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from fastdet.models import MODELS
from fastdet.models.backbone_weights import LoadedWeights
from fastdet.models.backbones import timm_body
from fastdet.models.timm_bodies import fit_of

Tensors = dict[str, Tensor]


def loaded(body: Any) -> LoadedWeights:
    return body.loaded_weights


def random_state(model: nn.Module) -> Tensors:
    """The state of a model with random weights, also where a fresh one has zeros and ones."""
    torch.manual_seed(0)
    for name, x in model.state_dict().items():
        if x.is_floating_point():
            x.uniform_(0.5, 1.5) if x.dim() == 1 or "var" in name else x.normal_(0, 0.05)
    return model.state_dict()


def body_of(name: str, content: Any, path: Path) -> nn.Module:
    torch.save(content, path)
    return timm_body(name, weights=path, batch_norm="train")[0].eval()


@torch.no_grad()
def assert_maps_equal(body: nn.Module, expected: list[Tensor], images: Tensor) -> None:
    for found, x in zip(body(images), expected, strict=True):
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


@torch.no_grad()
def torchvisions_maps(model: Any, images: Tensor) -> list[Tensor]:
    if isinstance(model, torchvision.models.ResNet):
        x, maps = model.maxpool(model.relu(model.bn1(model.conv1(images)))), []
        for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
            maps.append(x := stage(x))
        return maps
    x, maps = images, []
    for layer in model.features:
        maps.append(x := layer(x))
    nhwc = isinstance(model, torchvision.models.SwinTransformer)
    return [x.permute(0, 3, 1, 2) if nhwc else x for x in maps[1::2]]


# torchvision's builder, timm's name, and sizes at which both divide maps into the same windows:
# torchvision shifts none at the coarsest level of smaller images; timm shifts before it pads.
FROM_TORCHVISION: list[tuple[Callable[[], nn.Module], str, tuple[int, int]]] = [
    (torchvision.models.resnet18, "resnet18", (64, 96)),
    (torchvision.models.convnext_tiny, "convnext_tiny", (32, 64)),
    (torchvision.models.swin_t, "swin_tiny_patch4_window7_224", (448, 448)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "name", "size"), FROM_TORCHVISION)
def test_torchvisions_names(
    build: Callable[[], nn.Module], name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    model = build()
    body = body_of(name, random_state(model), tmp_path / "w.pth")
    report = loaded(body)
    assert len(report.loaded) == report.total
    assert all(n.startswith(("fc.", "head.", "norm.")) for n in report.unused)
    images = torch.rand(1, 3, *size)
    assert_maps_equal(body, torchvisions_maps(model.eval(), images), images)


def test_torchvisions_second_swin(tmp_path: Path) -> None:
    """Its names only: its smallest network takes seconds to run."""
    state = random_state(torchvision.models.swin_v2_t())
    report = loaded(body_of("swinv2_tiny_window8_256", state, tmp_path / "w.pth"))
    assert len(report.loaded) == report.total
    assert all(n.startswith(("head.", "norm.")) for n in report.unused)


SWIN = "swin_tiny_patch4_window7_224"
# Of timm's names, in this order, those that mmdetection's Swin has in their place.
OPENMMLAB_SWIN = {
    r"patch_embed\.proj\.": "patch_embed.projection.",
    r"\.attn\.": ".attn.w_msa.",
    r"\.mlp\.fc1\.": ".ffn.layers.0.0.",
    r"\.mlp\.fc2\.": ".ffn.layers.1.",
    r"^layers\.1\.downsample": "stages.0.downsample",
    r"^layers\.2\.downsample": "stages.1.downsample",
    r"^layers\.3\.downsample": "stages.2.downsample",
    r"^layers\.": "stages.",
}


def in_openmmlabs_names(state: Tensors) -> Tensors:
    """A detector's file: its patches are joined by nn.Unfold, channel by channel."""
    renamed = {"bbox_head.conv.weight": torch.rand(3), "backbone.norm0.weight": torch.rand(96)}
    for name, x in state.items():
        if ".downsample." in name:
            unfold = torch.empty_like(x)
            channels = x.shape[-1] // 4
            for pixel, (row, column) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
                for channel in range(channels):
                    theirs = 4 * channel + 2 * row + column
                    unfold[..., theirs] = x[..., pixel * channels + channel]
            x = unfold
        for pattern, new in OPENMMLAB_SWIN.items():
            name = re.sub(pattern, new, name)
        renamed[f"backbone.{name}"] = x
    return renamed


def test_openmmlabs_swin(tmp_path: Path) -> None:
    state = random_state(timm.create_model(SWIN, num_classes=0))
    content = {"meta": {"epoch": 12}, "state_dict": in_openmmlabs_names(state)}
    body = body_of(SWIN, content, tmp_path / "w.pth")
    assert loaded(body).unused == ("norm0.weight", "norm.weight", "norm.bias")
    found = body.state_dict()
    for name in loaded(body).loaded:
        assert torch.equal(found[name], state[name.removeprefix("body.model.")]), name
    assert len(loaded(body).loaded) == len(state) - 2


def test_openmmlabs_resnet_in_a_detector(tmp_path: Path) -> None:
    state = random_state(timm.create_model("resnet18", num_classes=0))
    content = {
        "state_dict": {f"backbone.{n}": x for n, x in state.items()} | {"neck.a": state["bn1.bias"]}
    }
    body = body_of("resnet18", content, tmp_path / "w.pth")
    assert all(torch.equal(x, state[name]) for name, x in body.state_dict().items())
    assert loaded(body).unused == ()


def test_dinos_vit_inside_its_checkpoint(tmp_path: Path) -> None:
    """DINO has timm's names, below the teacher's backbone."""
    name = "vit_tiny_patch16_224"
    state = random_state(timm.create_model(name, num_classes=0))
    teacher = {f"backbone.{n}": x for n, x in state.items()} | {"head.last.weight": torch.rand(3)}
    body = body_of(name, {"teacher": teacher, "student": {}, "epoch": 1}, tmp_path / "w.pth")
    report = loaded(body)
    assert len(report.loaded) == report.total == len(state) - 2  # without the last norm
    own = {n for n in body.state_dict() if "four_times" in n or "twice" in n}
    assert not own & {*report.loaded, *report.missing}  # the pyramid's layers are new
    assert not own & {n for n, p in body.named_parameters() if not p.requires_grad}


def test_dinov2s_vit_in_chunks_with_patches_of_14(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2"
    state = random_state(timm.create_model(name, num_classes=0, img_size=70))
    theirs = {re.sub(r"^blocks\.(\d+)", r"blocks.0.\1", n): x for n, x in state.items()}
    theirs["mask_token"] = torch.rand(1, 384)
    body = body_of(name, theirs, tmp_path / "w.pth")
    report = loaded(body)
    assert len(report.loaded) == report.total == len(state) - 2
    found = body.state_dict()["body.body.model.blocks.11.ls2.gamma"]
    assert torch.equal(found, state["blocks.11.ls2.gamma"])
    patches = body.state_dict()["body.body.model.patch_embed.proj.weight"]
    assert patches.shape[2:] == (16, 16)  # resampled


def test_a_safetensors_file_and_a_detector_of_ours_with_another_body_form(tmp_path: Path) -> None:
    torch.manual_seed(1)
    detector = MODELS["fcos"]("convnext_atto", 3, fpn_channels=8)
    state = {f"model.{n}": x.contiguous() for n, x in detector.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    body, _ = timm_body("convnext_atto", weights=tmp_path / "w.safetensors")
    expected = detector.get_submodule("backbone.body").state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in body.state_dict().items())
    save_file(timm.create_model("convnext_atto").state_dict(), tmp_path / "c.safetensors")
    body, _ = timm_body("convnext_atto", weights=tmp_path / "c.safetensors")
    assert len(loaded(body).loaded) == loaded(body).total == len(expected)


def test_what_was_not_loaded_is_listed(tmp_path: Path) -> None:
    state = random_state(timm.create_model("resnet18", num_classes=0))
    first = state["conv1.weight"]
    del state["layer4.1.bn2.bias"]
    state |= {"conv1.weight": torch.rand(64, 1, 7, 7), "extra": torch.rand(2)}
    body = body_of("resnet18", state, tmp_path / "w.pth")
    assert body.get_parameter("conv1.weight").requires_grad  # of a frozen part, but random
    assert not body.get_parameter("layer1.0.conv1.weight").requires_grad
    report = loaded(body)
    assert report.missing == ("layer4.1.bn2.bias",)
    assert report.other_shapes == (("conv1.weight", (64, 1, 7, 7), tuple(first.shape)),)
    assert report.unused == ("extra",)
    assert str(report) == (
        "w.pth: 98 of 100 tensors of the backbone loaded, 1 not in the file, 1 of other shapes; "
        "1 of the file not used; random: layer4.1.bn2.bias, conv1.weight"
    )
    assert len(report.lines()) == 1 + 100 + 1
    assert "other shape conv1.weight: (64, 1, 7, 7) in the file, (64, 3, 7, 7)" in report.lines()


def test_weights_decide_what_is_frozen(tmp_path: Path) -> None:
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "w.pth")
    body, _ = timm_body("resnet10t", weights=tmp_path / "w.pth")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in body.modules())
    frozen = {n.split(".")[0] for n, p in body.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}
    assert fit_of("resnet10t").way.divisor is None


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(FileNotFoundError, match=r"w.pth: no such file of weights"):
        timm_body("resnet18", weights=path)
    path.write_text("no weights")
    with pytest.raises(ValueError, match=r"w.pth: expected a file of tensors and plain data"):
        timm_body("resnet18", weights=path)
    torch.save(nn.Linear(2, 2), path)  # a pickled module: its code would run
    with pytest.raises(ValueError, match=r"w.pth: expected a file of tensors and plain data"):
        timm_body("resnet18", weights=path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"w.pth: expected tensors by name, got none"):
        timm_body("resnet18", weights=path)
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    expected = r"expected the weights of resnet18, got \d+ of its 100 tensors; the first that the"
    with pytest.raises(ValueError, match=expected):
        timm_body("resnet18", weights=path)
    with pytest.raises(ValueError, match=r"no file together with pretrained, got .*w.pth"):
        timm_body("resnet18", weights=path, pretrained=True)
    state = timm.create_model("resnet10t").state_dict()
    for wrong in (
        torch.full_like(state["conv1.0.weight"], torch.nan),
        torch.ones(24, 3, 3, 3).int(),
    ):
        torch.save(state | {"conv1.0.weight": wrong}, path)
        with pytest.raises(ValueError, match=r"finite numbers .* other ones in 'conv1.0.weight'"):
            timm_body("resnet10t", weights=path)


# timm flattens the first; the second has a pyramid; timm's filter spoils the third's own names.
OF_OURS = ["tresnet_m", "vit_tiny_patch16_224", "swiftformer_xs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_OURS)
def test_a_file_of_our_own_detector_is_whole(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    body, _ = timm_body(name)
    state = {f"backbone.body.{key}": x for key, x in body.state_dict().items()}
    torch.manual_seed(2)
    again = body_of(name, state, tmp_path / "w.pth")
    assert loaded(again).random == ()
    for key, x in again.state_dict().items():
        # timm's filter for TResNet adds 1e-5 to some.
        torch.testing.assert_close(x, body.state_dict()[key], rtol=0, atol=2e-5, msg=key)
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"expected the weights of {name}, got 0 of its"):
        timm_body(name, weights=tmp_path / "w.pth")

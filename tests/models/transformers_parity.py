# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of converted RT-DETRs and D-FINEs share: small models, images, and the comparison.

It imports transformers only where a test calls it.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdet.models import Border, from_transformers

HEIGHT, WIDTH, CLASSES = 64, 96, 3
BORDER = Border(fixed_size=(HEIGHT, WIDTH), image_mean=(0, 0, 0), image_std=(1, 1, 1))
SMALL: dict[str, Any] = {
    "num_labels": CLASSES,
    "encoder_hidden_dim": 16,
    "encoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_in_channels": [16, 16, 16],
    "d_model": 16,
    "decoder_ffn_dim": 20,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "num_queries": 30,
    "hidden_expansion": 0.5,
}
SCALES = ("running_var", "norm.weight", "normalization.weight", "lab.scale")
COMPUTED = ("n_points_scale", "num_points_scale", "decoder.up", "decoder.reg_scale")


@torch.no_grad()
def randomised(model: Any) -> Any:
    """The model in eval mode, with weights and statistics random enough to be told apart."""
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        if key.endswith(COMPUTED) or not tensor.is_floating_point():
            continue
        if key.endswith(SCALES):
            tensor.uniform_(0.8, 1.2)
        elif tensor.dim() == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape))
        else:
            tensor.add_(torch.randn(tensor.shape) / tensor[0].numel() ** 0.5)
    return model.eval()


def images() -> Tensor:
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def detections_of(theirs: Any) -> list[dict[str, Tensor]]:
    """What a model of transformers and its processor find in `images()`."""
    transformers: Any = importlib.import_module("transformers")
    processor = transformers.RTDetrImageProcessor()
    outputs = theirs(pixel_values=images())
    sizes = [(HEIGHT, WIDTH)] * 2
    return processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)


def assert_same_detections(
    found: Sequence[dict[str, Tensor]], expected: Sequence[dict[str, Tensor]]
) -> None:
    """Ours are clipped to the image, and their labels start at 1."""
    limit = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    for of_image, wanted in zip(found, expected, strict=True):
        boxes = wanted["boxes"].clamp(min=0).minimum(limit)
        assert len(of_image["boxes"]) == SMALL["num_queries"]
        torch.testing.assert_close(of_image["scores"], wanted["scores"], rtol=0, atol=1e-5)
        torch.testing.assert_close(of_image["boxes"], boxes, rtol=0, atol=1e-3)
        assert torch.equal(of_image["labels"], wanted["labels"] + 1)
        assert wanted["scores"].std() > 1e-3
        assert boxes.std(dim=0).min() > 1


def assert_a_folder_is_converted(theirs: Any, kind: type, folder: Path) -> None:
    """A model of the classes cat, dog and N/A, saved there; an image of another size."""
    transformers: Any = importlib.import_module("transformers")
    theirs.save_pretrained(folder)
    processor = transformers.RTDetrImageProcessor(size={"height": HEIGHT, "width": WIDTH})
    processor.save_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    ours = from_transformers(folder)
    assert isinstance(ours, kind)
    assert ours.classes == ["background", "cat", "dog", "N/A"]
    image = torch.rand(3, 90, 70, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        outputs = theirs(**processor([image], do_rescale=False, return_tensors="pt"))
        (found,) = ours([image])
    (expected,) = processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[(90, 70)]
    )
    boxes = expected["boxes"].clamp(min=0).minimum(torch.tensor([70, 90, 70, 90]))
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["boxes"], boxes, rtol=0, atol=1e-3)

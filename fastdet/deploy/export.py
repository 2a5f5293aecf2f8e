# SPDX-License-Identifier: BSD-3-Clause
"""Exports a detector as one file that runs without its code: a torch.export package or ONNX.

The file normalises the pixels and computes `detect`, for one image size. A package calls fastdet's
operators: import `fastdet.ops` before you load it; nothing else of fastdet is needed. An ONNX file
has only standard operators (`fastdet.deploy.onnx_ops`) and needs no fastdet.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastdet.deploy.image_size import check_size, training_size
from fastdet.deploy.metadata import METADATA, about_model, metadata
from fastdet.engine import is_quantized
from fastdet.files import replacing
from fastdet.models import Batch, Detector
from fastdet.ops.detections import Candidates, Detections

__all__ = ["DetectFromPixels", "export_candidates", "export_detector", "metadata"]

OPSET = 18  # of ONNX: the first with Split, ReduceMax and Pad in the form that torch.onnx writes
DEFORM_CONV_OPSET = 19  # the first with DeformConv


def export_detector(
    model: Detector,
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    *,
    batch_size: int | None = 1,
    classes: Sequence[str] | None = None,
) -> None:
    """Writes `model.detect` to a .pt2 or .onnx file.

    Both take `images` (B, C, H, W), float32 in [0, 1], RGB, and `sizes` (B, 2) int64, the height
    and width of each image. An image begins at the upper left corner. Pixels outside it are padding
    and do not change the result.
    Both return `boxes` (B, D, 4) xyxy in pixels of `images`, `scores` (B, D), `labels` (B, D) int64
    and `counts` (B,) int64, highest score first; rows from an image's count on are 0. A model with
    a mask head also returns `masks` (B, D, M, M) in [0, 1]; each mask covers its box.

    How to run a .pt2:

        import fastdet.ops
        detect = torch.export.load("detector.pt2").module()
        found = detect(images, sizes)

    How to run an .onnx:

        session = onnxruntime.InferenceSession("detector.onnx")
        boxes, scores, labels, counts = session.run(None, {"images": images, "sizes": sizes})

    `metadata` reads what the file says of itself, such as the names of the classes.

    Args:
        model: any detector of `fastdet.models`, of float32, in either mode.
        path: the file, .pt2 or .onnx; it is replaced whole.
        image_size: H and W, multiples of model.border.size_divisor; None: the training's, see
            `fastdet.deploy.image_size.training_size`.
        batch_size: B; None: any number.
        classes: names by label, "background" first.

    Raises:
        ValueError: another suffix, or .pt2 for a quantised model; an image_size that is not a
            multiple of the divisor; a wrong number of classes.
        ModuleNotFoundError: the ONNX packages are missing; the message says what to install.
    """
    _export(model, path, image_size, batch_size, about_model(model, classes))


def export_candidates(
    model: Detector,
    path: str | Path,
    image_size: tuple[int, int] | None = None,
    *,
    batch_size: int | None = 1,
    classes: Sequence[str] | None = None,
) -> None:
    """Writes what `model` finds before any suppression, for runtimes without one.

    As `export_detector`, but the file gives `boxes` (B, A, 4) and `scores` (B, A, C) of everything
    that may become a detection, and has no NonMaxSuppression and no RoiAlign in it. Without torch,
    `fastdet.numpy` makes detections of them:

        boxes, scores = session.run(None, {"images": images, "sizes": sizes})
        suppression = metadata("detector.onnx")["suppression"]
        boxes, scores, labels = fastdet.numpy.multiclass_nms(boxes[0], scores[0], **suppression)

    These are the model's, and may be more where a level has more than topk_candidates pairs above
    the threshold: the file has no such limit.

    Args:
        model: as in `export_detector`, of one stage, such as RetinaNet or ATSS.
        path: as in `export_detector`.
        image_size: as in `export_detector`.
        batch_size: as in `export_detector`.
        classes: as in `export_detector`.

    Raises:
        ValueError: as `export_detector`; a model of two stages.
        ModuleNotFoundError: as `export_detector`.
    """
    suppression = model.suppression()
    if suppression is None:
        raise ValueError(
            "expected a model of one stage for an export without suppression, got "
            f"{type(model).__name__}"
        )
    about = about_model(model, classes) | {"suppression": suppression}
    _export(WithoutSuppression(model), path, image_size, batch_size, about)


def _export(
    model: "Detector | WithoutSuppression",
    path: str | Path,
    image_size: tuple[int, int] | None,
    batch_size: int | None,
    about: dict[str, Any],
) -> None:
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"path: expected a name that ends in .pt2 or .onnx, got {path.name}")
    if path.suffix == ".pt2" and is_quantized(model):
        raise ValueError(
            f"path: expected a name that ends in .onnx for a quantised detector, got {path.name}"
        )
    image_size = training_size(model.border) if image_size is None else image_size
    check_size(image_size, model.border.size_divisor)
    program = _program(model, image_size, batch_size)
    about = {**about, "image_size": list(image_size)}
    with replacing(path) as temporary:
        if path.suffix == ".pt2":
            torch.export.save(program, temporary, extra_files={METADATA: json.dumps(about)})
        else:
            _save_onnx(program, temporary, about)


class WithoutSuppression(nn.Module):
    """A detector of one stage whose `detect` returns the candidates.

    Args:
        model: see `export_candidates`.
    """

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model
        self.border = model.border

    def detect(self, batch: Batch) -> Candidates:
        """What the suppression would get."""
        return self.model.candidates_of(self.model.outputs(batch), batch)


class DetectFromPixels(nn.Module):
    """The exported module: normalisation, then `detect`. Takes tensors and returns a dict.

    Args:
        model: see `export_detector`.
    """

    def __init__(self, model: Detector | WithoutSuppression) -> None:
        super().__init__()
        self.model = model
        border = model.border
        self.mean: Tensor
        self.std: Tensor
        for name, values in (("mean", border.image_mean), ("std", border.image_std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """(B, C, H, W) in [0, 1] and (B, 2) -> the fields of what `detect` returns, by name."""
        height, width = sizes.view(-1, 2, 1, 1, 1).unbind(1)
        row = torch.arange(images.shape[2], device=images.device)[:, None]
        column = torch.arange(images.shape[3], device=images.device)
        real = (row < height) & (column < width)  # (B, 1, H, W)
        pixels = ((images - self.mean) / self.std).where(real, 0.0)
        no_boxes = images.new_zeros((images.shape[0], 1, 4))
        batch = Batch(
            pixels.contiguous(memory_format=torch.channels_last),
            sizes,
            gt_boxes=no_boxes,
            gt_labels=torch.zeros_like(no_boxes[..., 0], dtype=torch.int64),
            gt_counts=torch.zeros_like(sizes[:, 0]),
        )
        found = self.model.detect(batch)._asdict()
        return {name: rows for name, rows in found.items() if rows is not None}


@torch.no_grad()
def _program(
    model: Detector | WithoutSuppression, image_size: tuple[int, int], batch_size: int | None
) -> torch.export.ExportedProgram:
    any_batch = {0: torch.export.Dim("batch")}
    images = torch.zeros(batch_size or 2, len(model.border.image_mean), *image_size)
    sizes = torch.tensor([image_size] * len(images))
    # A copy without gradients, so that the exported model runs without torch.no_grad.
    model = copy.deepcopy(model).eval().requires_grad_(False)
    return torch.export.export(
        DetectFromPixels(model),
        (images, sizes),
        dynamic_shapes={"images": any_batch, "sizes": any_batch} if batch_size is None else None,
        strict=False,  # half the time; test_every_family.py tests that `detect` is one graph
    )


def _save_onnx(program: torch.export.ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    try:
        from fastdet.deploy.onnx_ops import translations
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error}. ONNX needs more packages: pip install "fastdet[export]"', name=error.name
        ) from error
    import onnx

    outputs = len(program.graph_signature.output_specs)
    converted = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=["images", "sizes"],
        output_names=Detections._fields[:outputs],
        opset_version=_opset(program),
        custom_translation_table=translations(),
    )
    assert converted is not None
    model = converted.model_proto
    _lower_version(model)
    onnx.helper.set_model_props(model, {name: json.dumps(about[name]) for name in about})
    path.write_bytes(model.SerializeToString())


def _opset(program: torch.export.ExportedProgram) -> int:
    deform_conv2d = torch.ops.fastdet.deform_conv2d.default
    deforms = any(node.target is deform_conv2d for node in program.graph.nodes)
    return DEFORM_CONV_OPSET if deforms else OPSET


def _lower_version(model: Any) -> None:
    """Gives a model the lowest version of the format that its operator set needs.

    Notes on nodes and values, which torch writes, came with a later one.
    """
    import onnx

    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("metadata_props")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)

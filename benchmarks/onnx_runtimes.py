# SPDX-License-Identifier: BSD-3-Clause
"""A detector's ONNX file in the runtimes that people use on a CPU, as sides of a benchmark.

A runtime that is not installed has no side. All use as many threads as torch.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.alternate import Side
from fastdet.deploy.export import export_detector
from fastdet.models import Detector

Arrays = dict[str, np.ndarray[Any, Any]]

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"
PACKAGES = {ONNX_RUNTIME: "onnxruntime", OPENVINO: "openvino"}


def installed() -> list[str]:
    """The runtimes that this machine has; none without the packages that write a file."""
    if not all(find_spec(name) for name in ("onnx", "onnxscript")):
        return []
    return [name for name, package in PACKAGES.items() if find_spec(package)]


def export(model: Detector, image: Tensor, folder: Path) -> Path:
    """The file of a detector for one image (3, H, W) of multiples of the detector's divisor."""
    path = folder / "detector.onnx"
    export_detector(model, path, (image.shape[1], image.shape[2]))
    return path


def can_quantise() -> bool:
    """Whether this machine has what `in_int8` needs."""
    return OPENVINO in installed() and find_spec("nncf") is not None


def in_int8(path: Path, images: Sequence[Tensor]) -> Path:
    """OpenVINO's file in 8-bit integers, which nncf makes of a file of `export` by its defaults.

    Args:
        path: the file.
        images: (3, H, W) each, of the size of the file, to calibrate with.
    """
    import nncf  # pyright: ignore[reportMissingImports]
    import openvino

    dataset = nncf.Dataset([_feed(image) for image in images])
    model = openvino.Core().read_model(path)
    target = path.with_name("int8.xml")
    quantised = nncf.quantize(model, dataset, subset_size=len(images))
    openvino.save_model(quantised, target, compress_to_fp16=False)
    return target


def side(runtime: str, path: Path, image: Tensor, bfloat16: bool = False) -> Side:
    """`opened` on one image.

    Returns:
        A function that gives the detections of the image as torchvision's detectors do.
    """
    run, feed = opened(runtime, path, bfloat16), _feed(image)
    return lambda: _detections(run(feed))


def opened(runtime: str, path: Path, bfloat16: bool = False) -> Callable[[Arrays], Arrays]:
    """A file in a runtime, in float32 or, OpenVINO alone, in bfloat16: inputs -> outputs."""
    threads = torch.get_num_threads()
    if runtime == ONNX_RUNTIME:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda feed: dict(zip(names, map(np.asarray, session.run(None, feed)), strict=True))
    import openvino

    hint = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", hint)

    def run(feed: Arrays) -> Arrays:
        found = compiled(feed)
        return {output.any_name: found[output] for output in compiled.outputs}

    return run


def _feed(image: Tensor) -> dict[str, Any]:
    return {"images": image[None].numpy(), "sizes": torch.tensor([image.shape[1:]]).numpy()}


def _detections(found: dict[str, Any]) -> list[dict[str, Tensor]]:
    count = int(found["counts"][0])
    return [
        {name: torch.from_numpy(found[name][0, :count]) for name in ("boxes", "scores", "labels")}
    ]

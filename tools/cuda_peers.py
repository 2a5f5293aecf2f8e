# SPDX-License-Identifier: BSD-3-Clause
"""The bytes that torchvision's CUDA kernels move, counted without a GPU.

An operator that torchvision writes in Python runs on the CPU, and each call of torch in it counts
as one kernel, which reads its tensors once and writes its results once. An operator in C++ counts
by what its CUDA source does (torchvision/csrc/ops/cuda), kernel by kernel: see FORMULAS.

    python -m tools.cuda_roofline --peers

writes the comparison with our kernels into benchmarks/results/cuda_roofline.md.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torchvision
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdet
from benchmarks.gpu.case import GpuCase


class Launch(NamedTuple):
    """What one kernel moves, in bytes.

    Attributes:
        name: of the kernel, or of torch's function.
        tensors: each tensor that it reads once, and each that it writes once.
        asked: what all threads load, store and add; between this and `tensors` lies what reaches
            the L2 cache.
    """

    name: str
    tensors: int
    asked: int


def launch(name: str, tensors: int, asked: int | None = None) -> Launch:
    """One whose threads load no byte twice, unless `asked` says so."""
    return Launch(name, tensors, tensors if asked is None else asked)


def distinct_bytes(tensor: Tensor) -> int:
    """The bytes that a tensor takes in memory; expanded dimensions take none of their own."""
    size = tensor.element_size()
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        size *= length if stride or not length else 1
    return size


# ---- torchvision's kernels in C++ ---------------------------------------------------------------

NMS_BLOCK = 64  # boxes, one bit each of a word


def nms(boxes: Tensor, scores: Tensor, kept: Sequence[int]) -> list[Launch]:
    """The mask of all pairs, above its diagonal of blocks, and one block that walks through it.

    Args:
        boxes: (N, 4).
        scores: (N,).
        kept: the places of the kept boxes in the order of the scores, rising.
    """
    n = len(boxes)
    blocks = -(-n // NMS_BLOCK)
    words = sum(blocks - row // NMS_BLOCK for row in range(n))
    # A block of threads loads its row's boxes and its column's.
    pairs = [
        min(NMS_BLOCK, n - row * NMS_BLOCK) + min(NMS_BLOCK, n - column * NMS_BLOCK)
        for row in range(blocks)
        for column in range(row, blocks)
    ]
    box = boxes.element_size() * 4
    walked = 8 * sum(blocks - row // NMS_BLOCK for row in kept)
    return [
        launch("sort", 2 * scores.nbytes + 8 * n),
        launch("index_select", 2 * boxes.nbytes + 8 * n),
        launch("nms_kernel_impl", boxes.nbytes + 8 * words, box * sum(pairs) + 8 * words),
        launch("zeros", n),
        launch("gather_keep_from_mask", walked + len(kept)),
        launch("masked_select", 9 * n + 8 * len(kept)),
    ]


def num_samples(rois: Tensor, scale: float, bins: Sequence[int], ratio: int, aligned: bool) -> int:
    """Of all RoIs, in all bins of one channel. (K, 5)."""
    if ratio > 0:
        return len(rois) * bins[0] * bins[1] * ratio**2
    sides = (rois[:, 3:] - rois[:, 1:3]) * scale
    if not aligned:
        sides = sides.clamp(min=1)
    per_bin = (sides / torch.tensor([bins[1], bins[0]])).ceil().prod(1)
    return int(per_bin.sum()) * bins[0] * bins[1]


def roi_align(
    input: Tensor, rois: Tensor, scale: float, height: int, width: int, ratio: int, aligned: bool
) -> list[Launch]:
    """A thread for each output, four loads for each sample, in NCHW."""
    size = input.element_size()
    outputs = len(rois) * input.size(1) * height * width
    samples = num_samples(rois, scale, (height, width), ratio, aligned) * input.size(1)
    copy = [] if input.is_contiguous() else [launch("contiguous", 2 * input.nbytes)]
    asked = size * (4 * samples + 5 * outputs + outputs)
    read = min(input.nbytes, 4 * size * samples)
    moved = read + rois.nbytes + size * outputs
    zeros = launch("new_zeros", size * outputs)
    return [zeros, *copy, launch("roi_align_forward_kernel_impl", moved, asked)]


def roi_align_backward(
    grad: Tensor,
    rois: Tensor,
    scale: float,
    height: int,
    width: int,
    batch: int,
    channels: int,
    rows: int,
    columns: int,
    ratio: int,
    aligned: bool,
) -> list[Launch]:
    """A thread for each output, four atomic additions for each sample."""
    size = grad.element_size()
    gradient = size * batch * channels * rows * columns
    samples = num_samples(rois, scale, (height, width), ratio, aligned) * channels
    asked = size * (4 * samples + 5 * grad.numel() + grad.numel())
    touched = min(gradient, 4 * size * samples)
    moved = distinct_bytes(grad) + rois.nbytes + 2 * touched
    return [launch("new_zeros", gradient), launch("roi_align_backward_kernel_impl", moved, asked)]


class Convolution(NamedTuple):
    """Bytes of the tensors of a deformable convolution."""

    input: int
    offset: int
    mask: int
    weight: int
    output: int
    columns: int  # (C * kh * kw, images that are taken at once * h * w)
    chunks: int  # of the images, at most 32 each

    @classmethod
    def of(
        cls, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, *, use_mask: bool
    ) -> "Convolution":
        """Of the operator's arguments."""
        batch, taps = input.size(0), weight.size(2) * weight.size(3)
        at_once = next(k for k in range(min(batch, 32), 0, -1) if batch % k == 0)
        places = input.element_size() * offset.size(2) * offset.size(3)
        return cls(
            input.nbytes,
            offset.nbytes,
            mask.nbytes if use_mask else 0,
            weight.nbytes,
            places * batch * weight.size(0),
            places * at_once * input.size(1) * taps,
            batch // at_once,
        )

    def im2col(self) -> Launch:
        """A column: a load of two offsets, of a mask value and of four pixels, and a store."""
        loads = 7 if self.mask else 6
        columns = self.columns * self.chunks
        read = self.input + self.offset + self.mask
        return launch("deformable_im2col_kernel", read + columns, (loads + 1) * columns)


def deform_conv2d(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *numbers: int,
) -> list[Launch]:
    """All columns are cleared, written, and multiplied by the weights; then the output is copied.

    In the source each product is assigned to itself, which torch recognises and does not copy.
    """
    c = Convolution.of(input, weight, offset, mask, use_mask=bool(numbers[-1]))
    columns = c.columns * c.chunks
    return [
        launch("zeros, output", c.output),
        launch("zeros, buffer", c.output),
        launch("zeros, columns", c.columns),
        c.im2col(),
        launch("addmm_", c.weight * c.chunks + columns + 2 * c.output),
        launch("copy_", 2 * c.output),
        launch("add", 2 * c.output + bias.nbytes),
    ]


def deform_conv2d_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *numbers: int,
) -> list[Launch]:
    """The gradient of all columns; those of offsets, mask and input; then all columns again."""
    c = Convolution.of(input, weight, offset, mask, use_mask=bool(numbers[-1]))
    columns = c.columns * c.chunks
    places = c.offset + c.mask
    # For y and for x, of each column: its gradient, two offsets, a mask value, four pixels; for y
    # again the pixels, for the gradient of the mask.
    loads = 2 * 8 + 4 if c.mask else 2 * 7
    copied = input.size(0) > c.chunks  # several images at once: their positions side by side
    return [
        launch("zeros_like", c.input + places),
        launch("zero_, columns", columns),
        launch("addmm_", c.weight * c.chunks + c.output + 2 * columns),
        launch(
            "deformable_col2im_coord_kernel",
            columns + c.input + 2 * places,
            loads * columns + places,
        ),
        launch(
            "deformable_col2im_kernel",
            columns + places + 2 * c.input,
            (8 if c.mask else 7) * columns,
        ),
        launch("zeros_like, weight", c.weight),
        *([launch("contiguous", 2 * c.output)] if copied else []),
        c.im2col(),
        launch("addmm_, weight", columns + c.output + 2 * c.weight * c.chunks),
        launch("sum", c.output + bias.nbytes),
        launch("ones_like", bias.nbytes),
        launch("mul", 3 * bias.nbytes),
    ]


FORMULAS: dict[str, Callable[..., list[Launch]]] = {
    "torchvision::roi_align": roi_align,
    "torchvision::_roi_align_backward": roi_align_backward,
    "torchvision::deform_conv2d": deform_conv2d,
    "torchvision::_deform_conv2d_backward": deform_conv2d_backward,
}  # and nms, which needs the result


# ---- torch's kernels ----------------------------------------------------------------------------

NOTHING = re.compile(
    r"aten::(empty|new_empty|empty_like|empty_strided|new_empty_strided|_local_scalar_dense"
    r"|is_same_size|detach|set_|resize_)$"
)
ONLY_WRITTEN = ("aten::fill_", "aten::zero_", "aten::copy_")
GATHERS = ("aten::index", "aten::index_select", "aten::gather")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of an argument or a result."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def torch_launches(function: Any, args: Sequence[Any], kwargs: Any, result: Any) -> list[Launch]:
    """One, or none for a view, or several for a function that is several on a GPU, too."""
    schema = function._schema
    name = schema.name
    short = name.removeprefix("aten::")
    if NOTHING.match(name):
        return []
    if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
        return []
    written = sum(distinct_bytes(t) for t in tensors_in(result))
    if name == "aten::binary_cross_entropy_with_logits":
        size = args[0].nbytes
        steps = {"log_sigmoid": 2, "rsub": 2, "mul_": 3, "sub_": 3}
        return [launch(step, reads_and_writes * size) for step, reads_and_writes in steps.items()]
    if name in ("aten::index_put_", "aten::index_put"):
        written = args[0][tuple(slice(None) if i is None else i for i in args[1])].nbytes
        read = sum(distinct_bytes(t) for t in tensors_in([*args[1], args[2]]))
        copied = 2 * args[0].nbytes if name == "aten::index_put" else 0
        return [launch(short, read + written + copied)]
    read = 0
    for i, argument in enumerate(schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        is_written = argument.alias_info is not None and argument.alias_info.is_write
        if is_written and name in ONLY_WRITTEN:
            continue
        of_argument = sum(distinct_bytes(t) for t in tensors_in(value))
        read += min(of_argument, written) if name in GATHERS and i == 0 else of_argument
    return [launch(short, read + written)]


# ---- a run --------------------------------------------------------------------------------------


def rank_of_kept(boxes: Tensor, scores: Tensor, keep: Tensor) -> list[int]:
    """The places of the kept boxes in torchvision's order."""
    order = scores.sort(stable=True, descending=True).indices
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    return places[keep].sort().values.tolist()


class Peer(TorchDispatchMode):
    """Collects the launches of what runs in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "torchvision::nms":
            boxes, scores, threshold = args
            result = fastdet.nms(boxes, scores, threshold)  # equal, and faster on a CPU
            found = nms(boxes, scores, rank_of_kept(boxes, scores, result)) if len(boxes) else []
        else:
            result = func(*args, **kwargs)
            if name.startswith("torchvision::"):
                found = FORMULAS[name](*args)
            else:
                found = torch_launches(func, args, kwargs, result)
        self.launches += found
        return result


@contextmanager
def branches_of_a_gpu() -> Iterator[None]:
    """torchvision's batched_nms goes another way on a CPU from 1,000 boxes on."""
    boxes = torchvision.ops.boxes
    vanilla, trick = boxes._batched_nms_vanilla, boxes._batched_nms_coordinate_trick

    def chosen(rows: Tensor, *rest: Any) -> Tensor:
        return (vanilla if rows.numel() > 100_000 else trick)(rows, *rest)

    with mock.patch.object(boxes, "_batched_nms_vanilla", chosen):
        yield


def count(case: GpuCase) -> list[Launch]:
    """What torchvision launches for the case; preparing it is not counted."""
    side = case.sides["torchvision"](*case.inputs)
    with branches_of_a_gpu(), Peer() as peer:
        side()
    return peer.launches


# ---- the table ----------------------------------------------------------------------------------

TITLE = "## Beside torchvision\n"
ON_THE_HOST = ("encode_masks", "paste_masks_rle")

NOTES = f"""{TITLE}
The same inputs, whole. Both sides are counted and not measured.

- **ours**: the sums of our kernels above: what they exchange with the L2 cache. Of `deform_conv2d`
  the products are torch's and not among ours.
- **torchvision**: the launches of its kernels and of torch's, without those inside a sort; MB of
  the tensors that each of them reads once and writes once; and MB that their threads ask for. The
  caches of the multiprocessors serve a part of that, which cannot be counted here.
- **ratio**: torchvision's tensors, the least that its kernels move, to ours, which has repeated
  accesses of the L2 cache, too. A ratio below 1 leaves open who moves more.

Where torchvision's operator is Python, each call of torch counts as a kernel, as it runs on a CPU.
A sort counts as one read and one write, a reduction as one kernel, an index by a mask as one: at
least that. Its kernels in C++ count by what their source does, for N boxes, S samples and K
columns (a column is a channel's sample at a tap and a position):

- `nms`: a sort; boxes in that order; of each box and each block of 64 boxes from its own on a word
  of 8 bytes; one block reads the words of the kept boxes. Nothing but the number of kept boxes goes
  to the host. Of the threads' loads, two blocks of 64 boxes for each block of words.
- `roi_align`: zeros and a write of the output, a read of the input (channels_last: copied first).
  The threads ask for 4 S pixels and 5 numbers of the RoI for each output. Backward: zeros, a read
  of the gradient, and 4 S atomic additions, of which the tensor is read and written once.
- `deform_conv2d`: zeros of K columns; K columns written, and read by the product; the output
  written by zeros twice, by the product, a copy and the bias. The threads ask for 4 pixels, 2
  offsets and a mask value for each column. Backward: the columns' gradient is cleared, written by
  the product, and read by two kernels; the first asks for 20 numbers a column (14 without a mask),
  the second for 4, and 4 atomic additions; then the columns are written and read once more.

What does not appear has no kernel of torchvision: the attention, the assignments, merging,
Soft-NMS, and run lengths, which pycocotools makes on the host.

| operator | workload | ours MB | torchvision launches | tensors MB | asked MB | ratio |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def ours(lines: Sequence[str]) -> dict[tuple[str, str], float]:
    """MB of our kernels by operator and workload, from the lines of the roofline's table."""
    found: dict[tuple[str, str], float] = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) < 10 or not cells[3].strip().replace(".", "").isdigit():
            continue
        key = cells[0], re.sub(r" / \d+$", "", cells[1])
        found[key] = found.get(key, 0) + float(cells[5])
    return found


def row(case: GpuCase, our_megabytes: float) -> str:
    """A line of the table."""
    launches = count(case)
    tensors, asked = (sum(x) / 1e6 for x in zip(*(found[1:] for found in launches), strict=True))
    cells = [
        case.op,
        case.workload,
        f"{our_megabytes:.2f}",
        f"{len(launches):,}",
        f"{tensors:.2f}",
        f"{asked:.2f}",
        f"{tensors / our_megabytes:.1f}x",
    ]
    return f"| {' | '.join(cells)} |"


def rows(lines: Sequence[str], cases: Iterable[GpuCase]) -> Iterator[str]:
    """A line for each case that has a kernel of torchvision beside one of ours."""
    known = ours(lines)
    for case in cases:
        key = case.op, case.workload
        if "torchvision" in case.sides and case.op not in ON_THE_HOST and key in known:
            yield row(case, known[key])

# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels of every operator, with the calls of test_every_op.py: one test per property.

On a GPU and under the emulator: results agree with the CPU. Only on a GPU: there is no host sync, a
CUDA graph can be replayed with new inputs, the current stream is used, gradients are deterministic
with torch.use_deterministic_algorithms, and offsets have 64 bits.
"""

import pytest
import torch
from torch import Tensor

import fastdet
from benchmarks.gpu.device import Device
from tests.on_gpu import captured, cuda_kernels, gpu_only, no_sync, on_cuda_kernels

from .test_every_op import BIG, ON_CUDA, Call, assert_same_bits, bits, boxes, calls, noise, rois_of

ROWS = 65
DYNAMIC = ("nms", "batched_nms", "pasted_mask_edges", "mask_edges")  # results of dynamic size
FIXED = [name for name in ON_CUDA if name not in DYNAMIC]
ATOMIC = [
    name for name in ON_CUDA if "roi_align" in name or "deform" in name
]  # gradients are summed in any order


def a_call(name: str, n: int, extent: float = 100) -> Call:
    """The call. Random seeds become tensors of the call, as generators differ between devices."""
    call = calls(n, extent)[name]
    if name != "sample_matches":
        return call
    (index,) = call.tensors
    seeds = noise(len(index)).double()
    return Call(lambda i, s: torch.ops.fastdet.sample_matches(i, s, 16, 0.5), (index, seeds))


def on(device: str, call: Call) -> Call:
    return call._replace(tensors=tuple(t.to(device) for t in call.tensors))


def in_dtype(call: Call, dtype: torch.dtype) -> Call:
    tensors = (t.to(dtype) if t.is_floating_point() else t for t in call.tensors)
    return call._replace(tensors=tuple(tensors))


def cuda_bits(kernels: str, call: Call, launches: bool = True) -> list[Tensor]:
    with cuda_kernels(kernels, launches) as device:
        return [t.cpu() for t in bits(on(device, call))]


def assert_agrees(name: str, got: list[Tensor], expected: list[Tensor]) -> None:
    """Indices are equal; floats to their rounding, because sums may have another order."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        if a.is_floating_point():
            loose = 2e-5 if a.dtype == torch.float32 else None
            torch.testing.assert_close(a, b, rtol=loose, atol=loose, msg=lambda m: f"{name}: {m}")
        else:
            assert a.equal(b), name


@on_cuda_kernels
@pytest.mark.parametrize("n", [0, 1, ROWS, 333])
@pytest.mark.parametrize("name", ON_CUDA)
def test_equals_the_cpu(kernels, name, n):
    call = a_call(name, n)
    assert_agrees(name, cuda_bits(kernels, call, launches=n > 0), bits(call))


@on_cuda_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in ON_CUDA if name != "sample_matches"])
def test_equals_the_cpu_in_other_dtypes(kernels, name, dtype):
    call = in_dtype(a_call(name, ROWS), dtype)
    assert_agrees(name, cuda_bits(kernels, call), bits(call))


# ---- only on a GPU ------------------------------------------------------------------------------

TILED = ["nms", "batched_nms", "nms_padded", "nmm", "nmm, transitive"]  # beyond 2^15 rows


@gpu_only
@pytest.mark.parametrize("name", TILED)
def test_equals_the_cpu_where_rows_are_sorted_by_tiles(name):
    call = a_call(name, 2**15 + 1, extent=4000)
    assert_agrees(name, cuda_bits("cuda", call), bits(call))


def rolled(call: Call) -> Call:
    """Other inputs of the same shapes."""
    return call._replace(tensors=tuple(t.roll(1, 0) for t in call.tensors))


@gpu_only
@pytest.mark.parametrize("name", FIXED)
def test_nothing_waits_for_the_host(name):
    call = on("cuda", a_call(name, ROWS))
    bits(call)
    with no_sync():
        bits(call)


@gpu_only
@pytest.mark.parametrize("name", FIXED)
def test_the_profiler_sees_no_wait_either(name):
    """No sync in our own host code either, which torch's sync debug mode cannot see."""
    call = on("cuda", a_call(name, ROWS))
    bits(call)
    work = Device("cuda", small=True).work(lambda: bits(call), calls=3)
    if work is None:
        pytest.skip("the profiler sees nothing of this GPU")
    assert work.launches > 0
    assert work.syncs == 0


@gpu_only
@pytest.mark.parametrize("name", FIXED)
def test_a_graph_replays_on_new_inputs(name):
    first, then = on("cuda", a_call(name, ROWS)), on("cuda", rolled(a_call(name, ROWS)))
    of_first, expected = bits(first), bits(then)
    graph, got = captured(lambda: bits(first))
    for tensor, new in zip(first.tensors, then.tensors, strict=True):
        tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    if name in ATOMIC:
        assert_agrees(name, got, expected)
    else:
        assert_same_bits(got, expected)
    assert any(not a.equal(b) for a, b in zip(of_first, expected, strict=True))


@gpu_only
@pytest.mark.parametrize("name", ON_CUDA)
def test_runs_on_the_current_stream(name):
    """The inputs are written late, on a side stream. On another stream the op would read zeros."""
    call = on("cuda", a_call(name, ROWS))
    expected = bits(call)
    late = call._replace(tensors=tuple(torch.zeros_like(t) for t in call.tensors))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for tensor, values in zip(late.tensors, call.tensors, strict=True):
            tensor.copy_(values)
        got = bits(late)
    stream.synchronize()
    assert_agrees(name, got, expected)


@gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ATOMIC)
def test_gradients_are_deterministic_where_they_must_be(name, dtype):
    call = on("cuda", in_dtype(a_call(name, 700), dtype))
    torch.use_deterministic_algorithms(True)
    try:
        expected = bits(call)
        for _ in range(5):
            assert_same_bits(bits(call), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@gpu_only
@pytest.mark.parametrize("name", ATOMIC)
def test_a_deterministic_gradient_can_be_captured(name):
    call = on("cuda", a_call(name, ROWS))
    torch.use_deterministic_algorithms(True)
    try:
        expected = bits(call)
        graph, got = captured(lambda: bits(call))
    finally:
        torch.use_deterministic_algorithms(False)
    graph.replay()
    torch.cuda.synchronize()
    assert_same_bits(got, expected)


@gpu_only
def test_sampling_draws_anew_in_each_replay():
    index = a_call("sample_matches", 5000).tensors[0].cuda()
    graph, (indices, valid) = captured(lambda: fastdet.sample_matches(index, 64, 0.5))
    draws = []
    for _ in range(2):
        graph.replay()
        draws.append(indices.clone())
        assert valid.all()
        drawn = index.gather(1, indices)
        assert (drawn[:, :32] >= 0).all()
        assert (drawn[:, 32:] == -1).all()
    assert not draws[0].equal(draws[1])


# ---- beside torchvision's CUDA kernels ----------------------------------------------------------


@pytest.fixture
def torchvision():
    return pytest.importorskip("torchvision", exc_type=ImportError)


@gpu_only
@pytest.mark.parametrize("n", [1, 64, 1000, 5000])
def test_nms_equals_torchvisions(torchvision, n):
    # Halves of pixels: products and sums are exact, with fused multiply-adds and without.
    rows, scores = (2 * boxes(n, extent=300)).round().cuda() / 2, noise(n).cuda()
    ids = (torch.arange(n) % 7).cuda()
    for iou_threshold in (0.1, 0.5, 0.9):
        expected = torchvision.ops.nms(rows, scores, iou_threshold)
        assert fastdet.nms(rows, scores, iou_threshold).equal(expected)
    expected = torchvision.ops.batched_nms(rows, scores, ids, 0.5)
    assert fastdet.batched_nms(rows, scores, ids, 0.5).equal(expected)


@gpu_only
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_equals_torchvisions(torchvision, layout, ratio):
    results = []
    for roi_align in (fastdet.roi_align, torchvision.ops.roi_align):
        x = noise(2, 20, 24, 40).cuda().to(memory_format=layout).requires_grad_()
        out = roi_align(x, rois_of(boxes(300)).cuda(), 7, 0.25, ratio, True)
        results.append([out, *torch.autograd.grad((out * out.detach()).sum(), x)])
    assert_agrees("roi_align", *results)


@gpu_only
def test_focal_loss_and_box_iou_equal_torchvisions(torchvision):
    logits, targets = noise(3000, 20).cuda(), noise(3000, 20, seed=2).cuda().sigmoid()
    expected = torchvision.ops.sigmoid_focal_loss(logits, targets)
    got = fastdet.sigmoid_focal_loss(logits, targets)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    rows, others = boxes(3000).cuda(), boxes(70, seed=3).cuda()
    for kind in ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou"):
        expected = getattr(torchvision.ops, kind)(rows, others)
        got = getattr(fastdet, kind)(rows, others)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# ---- 2^20 rows, and more than 2^31 elements ------------------------------------------------------


@gpu_only
@pytest.mark.parametrize("name", [name for name in ON_CUDA if name not in ATOMIC])
def test_a_million_rows_equal_the_cpus(name):
    # A pasted mask has 1,320 bytes: as many as exceed what one stride of a grid writes.
    call = a_call(name, BIG // 4 if name == "paste_masks" else BIG, extent=20_000)
    got = [t.cpu() for t in bits(on("cuda", call))]
    assert_agrees(name, got, bits(call))


def skip_without_memory(gigabytes: int) -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free / 1e9:.0f} GB are free")


@gpu_only
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_roi_align_of_a_tensor_beyond_2_31_elements(layout):
    skip_without_memory(24)
    shape, last = (2049, 256, 64, 64), 2048
    x = torch.empty(shape, dtype=torch.float16, device="cuda", memory_format=layout).zero_()
    assert x.numel() > 2**31
    x[last] = noise(*shape[1:]).cuda().half()
    rois = torch.cat([torch.full((9, 1), float(last)), boxes(9, extent=50)], 1).cuda()
    alone = rois.clone()
    alone[:, 0] = 0
    results = []
    for features, own in ((x, rois), (x[last:], alone)):
        leaf = features.detach().requires_grad_()
        pooled = fastdet.roi_align(leaf, own, 7, 1.0, 2)
        (grad,) = torch.autograd.grad(pooled.sum(), leaf)
        results.append([pooled.detach(), grad[-1]])
        del grad
    assert results[0][0].any()
    assert_agrees("roi_align", *results)


@gpu_only
def test_box_iou_of_more_than_2_31_pairs():
    n = 46_400
    skip_without_memory(12)
    rows, others = boxes(n).cuda(), boxes(n, seed=3).cuda()
    iou = fastdet.box_iou(rows, others)
    assert iou.numel() > 2**31
    for begin in (0, n // 2, n - 100):
        piece = fastdet.box_iou(rows[begin : begin + 100], others)
        assert iou[begin : begin + 100].equal(piece)
        assert piece.any()

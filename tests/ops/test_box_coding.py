# SPDX-License-Identifier: BSD-3-Clause
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import decode_boxes, encode_boxes
from tests import reference

INF, NAN = float("inf"), float("nan")
Weights = tuple[float, float, float, float]
ONES: Weights = (1.0, 1.0, 1.0, 1.0)
RCNN: Weights = (10.0, 10.0, 5.0, 5.0)
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * 100
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=generator) * 60], -1)


def random_deltas(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(seed))


def samples(device: str) -> dict[str, tuple[Tensor, Tensor, Weights]]:
    """Name -> (boxes, anchors, weights)."""
    unit = torch.tensor([[0.0, 0, 10, 10]])
    table = {
        "hand-worked": (torch.tensor([[5.0, 0, 25, 10]]), unit, RCNN),
        "empty": (torch.zeros(0, 4), torch.zeros(0, 4), ONES),
        "no boxes, one anchor": (torch.zeros(3, 0, 4), unit, ONES),
        "one, without a batch": (unit[0] + 3, unit[0], ONES),
        "zero width": (torch.tensor([[3.0, 3, 3, 9], [1, 1, 2, 2]]), unit, ONES),
        "zero height of the anchor": (unit, torch.tensor([[3.0, 3, 9, 3], [1, 1, 2, 2]]), ONES),
        "inverted": (torch.tensor([[9.0, 9, 3, 3]]), unit, ONES),
        "not finite": (torch.tensor([[NAN, 0, 1, 1], [0, 0, INF, 1], [-INF, 0, 1, 1]]), unit, ONES),
        "anchors shared by a batch": (random_boxes(3, 17), random_boxes(17, seed=1), ONES),
        "images of more than a block": (random_boxes(3, 300), random_boxes(300, seed=1), RCNN),
        "a box per class": (random_boxes(2, 9, 5), random_boxes(2, 9, 1, seed=1), RCNN),
        "all pairs": (random_boxes(7, 1), random_boxes(1, 9, seed=1), RCNN),
        "strided": (random_boxes(9, 6).transpose(0, 1)[:, ::2], random_boxes(5, seed=1), ONES),
        "between vectors": (
            random_boxes(10).flatten()[1:-3].view(3, 3, 4),
            random_boxes(4, seed=1).flatten()[3:-1].view(3, 4),
            RCNN,
        ),
        "rows of five": (random_boxes(10).flatten().unfold(0, 4, 5), random_boxes(8), RCNN),
        "coordinate planes": (random_boxes(9).t().contiguous().t(), unit, ONES),
    }
    for n in (15, 16, 17, 63, 64, 65, 9000):
        table[f"random {n}"] = (random_boxes(n, seed=n), random_boxes(n, seed=n + 1), RCNN)
    return {
        name: (boxes.to(device), anchors.to(device), weights)
        for name, (boxes, anchors, weights) in table.items()
    }


SAMPLES = list(samples("cpu"))


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert actual.dtype == dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual.double().cpu(), expected, rtol=tolerance, atol=tolerance * 4, equal_nan=True
    )


@pytest.mark.parametrize("name", SAMPLES)
def test_encode_equals_reference(name, device):
    boxes, anchors, weights = samples(device)[name]
    expected = reference.encode_boxes(boxes.cpu(), anchors.cpu(), weights)
    deltas = encode_boxes(boxes, anchors, weights)
    assert deltas.is_contiguous()
    assert_close(deltas, expected)


def as_deltas(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Deltas with the shapes and strides of the samples, some of them beyond the clamp."""
    if boxes.dim() < anchors.dim() or any(
        a not in (1, b) for a, b in zip(anchors.shape[::-1], boxes.shape[::-1], strict=False)
    ):
        boxes = boxes.expand(torch.broadcast_shapes(boxes.shape, anchors.shape))
    return boxes / 20 - 2


def decodings() -> list[tuple[str, bool]]:
    """Each sample without clipping; samples with a batch dimension also with clipping."""
    batched = [name for name, (boxes, anchors, _) in samples("cpu").items() if boxes.dim() > 1]
    return [(name, False) for name in SAMPLES] + [(name, True) for name in batched]


@pytest.mark.parametrize(("name", "clipped"), decodings())
def test_decode_equals_reference(name, clipped, device):
    boxes, anchors, weights = samples(device)[name]
    deltas = as_deltas(boxes, anchors)
    sizes = torch.arange(2 * len(deltas), device=device).reshape(-1, 2) * 7 if clipped else None
    expected = reference.decode_boxes(
        deltas.cpu(), anchors.cpu(), weights, None if sizes is None else sizes.cpu()
    )
    got = decode_boxes(deltas, anchors, weights, sizes)
    assert got.is_contiguous()
    assert_close(got, expected)


def test_hand_worked():
    boxes, anchors, weights = samples("cpu")["hand-worked"]
    deltas = encode_boxes(boxes, anchors, weights)
    assert_close(deltas, torch.tensor([[10.0, 0, 5 * math.log(2), 0]], dtype=torch.float64))
    assert_close(decode_boxes(deltas, anchors, weights), boxes.double())
    sizes = torch.tensor([[4, 20]])  # height, width
    assert decode_boxes(deltas, anchors, weights, sizes).tolist() == [[5, 0, 20, 4]]


@pytest.mark.parametrize("name", ["inverted", "not finite"])
def test_degenerate_pairs_encode_to_zeros(name, device):
    assert not encode_boxes(*samples(device)[name]).any()


def test_log_ratios_are_clamped_and_do_not_overflow(device):
    anchors = torch.tensor([[0.0, 0, 16, 16]], device=device)
    deltas = torch.tensor([[0.0, 0, 1000, INF]], device=device)
    assert_close(decode_boxes(deltas, anchors), torch.tensor([[-492.0, -492, 508, 508]]).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype, device):
    boxes, anchors = random_boxes(65).to(dtype), random_boxes(65, seed=1).to(dtype)
    deltas = encode_boxes(boxes.to(device), anchors.to(device), RCNN)
    assert_close(deltas, reference.encode_boxes(boxes, anchors, RCNN), dtype)
    deltas, sizes = random_deltas(65).to(dtype), torch.tensor([[90, 110]]).expand(65, 2)
    got = decode_boxes(deltas.to(device), anchors.to(device), RCNN, sizes.to(device))
    assert_close(got, reference.decode_boxes(deltas, anchors, RCNN, sizes), dtype)


def test_float32_anchors_keep_their_precision_under_half_deltas(device):
    deltas = random_deltas(65).half()
    anchors = random_boxes(65) + 3000.3
    leaf = deltas.to(device).requires_grad_()
    got = decode_boxes(leaf, anchors.to(device))
    assert_close(got.detach(), reference.decode_boxes(deltas, anchors, ONES))
    got.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.float16


def test_equal_torchvision(device):
    pytest.importorskip("torchvision", exc_type=ImportError)
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import clip_boxes_to_image

    boxes, anchors = random_boxes(200), random_boxes(200, seed=1)
    coder = BoxCoder(RCNN)
    deltas = encode_boxes(boxes.to(device), anchors.to(device), RCNN).cpu()
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors), rtol=1e-5, atol=1e-5)
    deltas = random_deltas(200, 3) * 12
    expected = coder.decode_single(deltas.flatten(1), anchors).reshape(200, 3, 4)
    got = decode_boxes(deltas.to(device), anchors[:, None].to(device), RCNN)
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-3)
    sizes = torch.tensor([[90, 110]], device=device)
    got = decode_boxes(deltas[None].to(device), anchors[:, None].to(device), RCNN, sizes)
    expected = clip_boxes_to_image(expected, (90, 110))
    torch.testing.assert_close(got[0].cpu(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_gradcheck(clipped, shared, device):
    anchors = random_boxes(5 if shared else 2, *(() if shared else (5,))).double().to(device)
    deltas = random_deltas(2, 5).double().to(device) * 3
    sizes = torch.tensor([[60, 80], [40, 90]], device=device) if clipped else None
    decoded = decode_boxes(deltas, anchors, RCNN, sizes)
    if clipped:  # the sample has both kinds of coordinates
        limits = torch.tensor([[80.0, 60, 80, 60], [90, 40, 90, 40]], device=device)[:, None]
        at_limit = (decoded == 0) | (decoded == limits)
        assert at_limit.any()
        assert not at_limit.all()
    assert torch.autograd.gradcheck(
        lambda d: decode_boxes(d, anchors, RCNN, sizes), deltas.requires_grad_()
    )


def test_gradient_is_zero_where_clamped_and_passes_on_the_limit(device):
    anchors = torch.tensor([[[0.0, 0, 16, 16]]], device=device)
    sizes = torch.tensor([[16, 16]], device=device)
    deltas = torch.zeros(1, 1, 4, device=device, requires_grad=True)
    decode_boxes(deltas, anchors, sizes=sizes)[..., 2].sum().backward()  # x2 = width
    assert deltas.grad is not None
    assert deltas.grad.tolist() == [[[16, 0, 8, 0]]]
    beyond = torch.tensor([[0.0, 0, 5, 4]], device=device, requires_grad=True)
    decode_boxes(beyond, anchors[0])[..., 2:].sum().backward()
    assert beyond.grad is not None
    assert beyond.grad[0, 2] == 0
    assert beyond.grad[0, 3] > 0


def test_nothing_but_deltas_gets_a_gradient(device):
    boxes = random_boxes(3).to(device).requires_grad_()
    anchors = random_boxes(3, seed=1).to(device).requires_grad_()
    assert not encode_boxes(boxes, anchors).requires_grad
    decode_boxes(random_deltas(3).to(device).requires_grad_(), anchors).sum().backward()
    assert anchors.grad is None


@given(st.integers(0, 10**6), st.integers(0, 40), st.sampled_from([ONES, RCNN]))
def test_decode_inverts_encode(seed, n, weights):
    boxes, anchors = random_boxes(n, seed=seed), random_boxes(n, seed=seed + 1)
    back = decode_boxes(encode_boxes(boxes, anchors, weights), anchors, weights)
    torch.testing.assert_close(back, boxes, rtol=1e-4, atol=1e-2)


@given(st.integers(0, 10**6), st.integers(-50, 50), st.sampled_from([0.5, 2.0, 4.0]))
def test_deltas_ignore_a_common_shift_and_scale(seed, shift, scale):
    boxes, anchors = random_boxes(9, seed=seed).double(), random_boxes(9, seed=seed + 1).double()
    moved = encode_boxes(boxes * scale + shift, anchors * scale + shift)
    torch.testing.assert_close(moved, encode_boxes(boxes, anchors), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    deltas, anchors = random_deltas(3, 5000), random_boxes(5000)
    sizes = torch.tensor([[50, 60], [70, 80], [90, 100]])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(decode_boxes(deltas, anchors, sizes=sizes))
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1])


def test_opcheck(device):
    deltas, anchors = random_deltas(2, 5).to(device), random_boxes(5).to(device).expand(2, 5, 4)
    sizes = torch.tensor([[60, 80], [40, 90]], device=device)
    ops = torch.ops.fastdet
    torch.library.opcheck(ops.encode_boxes, (anchors, anchors, *RCNN))
    for limits in (None, sizes):
        torch.library.opcheck(ops.decode_boxes, (deltas.requires_grad_(), anchors, *RCNN, limits))
        arguments = (deltas.detach(), deltas.detach(), anchors, *RCNN, limits)
        torch.library.opcheck(ops.decode_boxes_backward, arguments)


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def loss(deltas: Tensor, anchors: Tensor, sizes: Tensor) -> Tensor:
        boxes = decode_boxes(deltas, anchors, RCNN, sizes)
        return (boxes * encode_boxes(boxes, anchors)).sum()

    anchors, sizes = random_boxes(30).to(device), torch.tensor([[60, 80], [40, 90]], device=device)
    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, dynamic=True)):
        deltas = random_deltas(2, 30).to(device).requires_grad_()
        function(deltas, anchors, sizes).backward()
        assert deltas.grad is not None
        gradients.append(deltas.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_bad_input_is_named(device):
    deltas, anchors = random_deltas(2, 5).to(device), random_boxes(5).to(device)
    for wrong in (0, -1, math.nan, math.inf):
        for code in (encode_boxes, decode_boxes):
            expected = rf"weights: expected four finite numbers > 0, got \(1, {wrong}, 1, 1\)"
            with pytest.raises(ValueError, match=expected):
                code(deltas, anchors, (1, wrong, 1, 1))
    with pytest.raises(
        ValueError, match=r"encode_boxes: expected rows of 4, got boxes \(2, 5, 3\)"
    ):
        encode_boxes(deltas[..., :3], anchors)
    with pytest.raises(
        ValueError, match=r"encode_boxes: expected shapes that broadcast.*\(2, 5, 4\).*\(4, 4\)"
    ):
        encode_boxes(deltas, anchors[:4])
    with pytest.raises(ValueError, match=r"decode_boxes: anchors: .*deltas \(5, 4\).*\(1, 5, 4\)"):
        decode_boxes(deltas[0], anchors[None])
    with pytest.raises(RuntimeError, match=r"encode_boxes: boxes: expected floating.*got Long"):
        encode_boxes(deltas.long(), anchors.long())
    with pytest.raises(RuntimeError, match=r"sizes: expected int64 \(B, 2\).*got Int \(2, 2\)"):
        decode_boxes(deltas, anchors, sizes=torch.ones(2, 2, dtype=torch.int32, device=device))
    with pytest.raises(RuntimeError, match=r"sizes: expected int64 \(B, 2\).*got Long \(3, 2\)"):
        decode_boxes(deltas, anchors, sizes=torch.ones(3, 2, dtype=torch.int64, device=device))
    with pytest.raises(RuntimeError, match=r"decode_boxes: anchors: expected the shape and dtype"):
        torch.ops.fastdet.decode_boxes(deltas, anchors, 1, 1, 1, 1, None)

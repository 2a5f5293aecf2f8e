# SPDX-License-Identifier: BSD-3-Clause
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdet.ops import sigmoid_focal_loss
from tests import reference
from tests.cuda_emulation import emulated_kernels

OPS = torch.ops.fastdet
WEIGHTS = [(0.25, 2.0), (-1, 2.0), (0.75, 0.0), (0.25, 0.5), (0.1, 1.0), (-1, 3.5)]
REDUCTIONS = ["none", "mean", "sum"]


@pytest.fixture
def device(device: str, request, monkeypatch) -> str:
    """As in conftest.py; emulated kernels also write the gradient in forward, as on a GPU."""
    if "emulated" in request.node.callspec.params.values():
        monkeypatch.setitem(sigmoid_focal_loss.__globals__, "_WRITING_DEVICES", {"cpu"})
    return device


def random_logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 4).to(dtype)


def random_labels(*shape: int, num_classes: int, seed: int = 0) -> Tensor:
    """Labels: half are background, some are ignored, some are of each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-2, num_classes, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, -1, labels)


def random_targets(*shape: int, seed: int = 0) -> Tensor:
    """Dense targets: 0, 1 and numbers between."""
    generator = torch.Generator().manual_seed(seed)
    soft = torch.rand(*shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, soft, soft.round())


def samples(device: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Name -> (inputs, targets)."""
    table = {
        "hand-worked": (torch.tensor([0.0, 0.0, math.log(3)]), torch.tensor([0.0, 1.0, 0.0])),
        "hand-worked labels": (torch.zeros(4, 2), torch.tensor([-1, -2, 0, 1])),
        "one number": (torch.tensor(0.5), torch.tensor(1.0)),
        "one label": (torch.tensor([0.5, -0.5, 2.0]), torch.tensor(1)),
        "empty": (torch.zeros(0, 3), torch.zeros(0, 3)),
        "no rows": (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)),
        "no classes": (torch.zeros(3, 0), torch.tensor([-1, -2, -1])),
        "one class": (random_logits(9, 1), random_labels(9, num_classes=1)),
        "no class of that number": (torch.zeros(3, 2), torch.tensor([2, -3, 1])),
        "zero logits": (torch.zeros(5), torch.linspace(0, 1, 5)),
        "huge logits": (
            torch.tensor([1e4, -1e4, 1e4, -1e4, 1e4, 90, -90, 3e38, -3e38]),
            torch.tensor([0, 0, 1, 1, 0.5, 1, 1, 0, 1]),
        ),
        "huge logits of labels": (
            torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [95, -95]]),
            torch.tensor([-1, 0, 0, 1]),
        ),
        "not finite but ignored": (torch.full((1, 3), math.nan), torch.tensor([-2])),
        "non-contiguous": (random_logits(6, 5, 4).permute(2, 0, 1), random_targets(5, 6, 4).mT.mT),
        "expanded": (random_logits(1, 5).expand(7, 5), random_labels(1, num_classes=5).expand(7)),
        "channels last": (
            random_logits(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
            random_targets(2, 3, 4, 5),
        ),
        "images": (random_logits(2, 50, 20), random_labels(2, 50, num_classes=20)),
    }
    for kind, targets in (
        ("dense", random_targets(68).flatten()[3:].view(13, 5)),
        ("labels", random_labels(13, num_classes=5)),
    ):  # memory that is not aligned to vectors
        table[f"between vectors, {kind}"] = random_logits(66)[1:].view(13, 5), targets
    for width in (2, 3, 5, 7, 9):  # a row ends within a vector, or a vector has several rows
        table[f"rows of {width}"] = (
            random_logits(39, width),
            random_labels(39, num_classes=width),
        )
    inputs, targets = table["non-contiguous"]
    table["non-contiguous"] = inputs, targets.permute(2, 1, 0)
    for n in (15, 16, 17, 63, 64, 65, 1023, 1025):
        table[f"dense {n}"] = random_logits(n), random_targets(n)
        table[f"labels {n}"] = random_logits(3, n), random_labels(3, num_classes=n)
    return {name: (a.to(device), b.to(device)) for name, (a, b) in table.items()}


SAMPLES = list(samples("cpu"))


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize(("alpha", "gamma"), WEIGHTS)
def test_equals_reference(name, alpha, gamma, device):
    inputs, targets = samples(device)[name]
    got = sigmoid_focal_loss(inputs, targets, alpha, gamma)
    expected = reference.sigmoid_focal_loss(inputs.cpu(), targets.cpu(), alpha, gamma)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.cpu().double(), expected, rtol=4e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("kind", ["dense", "labels"])
def test_sum_of_many(kind, device):
    # More than one block on the GPU, and rows wider than one block on the CPU.
    for shape in ((700, 90), (3, 9001)):
        inputs = random_logits(*shape).to(device)
        dense, labels = random_targets(*shape), random_labels(shape[0], num_classes=shape[1])
        targets = (dense if kind == "dense" else labels).to(device)
        got = sigmoid_focal_loss(inputs, targets, reduction="sum")
        expected = sigmoid_focal_loss(inputs, targets).double().sum()
        torch.testing.assert_close(got.double(), expected, rtol=2e-6, atol=0)


def test_hand_worked(device):
    inputs, targets = samples(device)["hand-worked"]
    got = sigmoid_focal_loss(inputs, targets).cpu()
    third = 0.75 * 0.75**2 * math.log(4)
    expected = [0.75 * math.log(2) / 4, 0.25 * math.log(2) / 4, third]
    torch.testing.assert_close(got, torch.tensor(expected))
    inputs, targets = samples(device)["hand-worked labels"]
    off, on = expected[:2]
    rows = torch.tensor([[off, off], [0, 0], [on, off], [off, on]])
    torch.testing.assert_close(sigmoid_focal_loss(inputs, targets).cpu(), rows)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", SAMPLES)
def test_gradient_equals_reference(name, reduction, device):
    inputs, targets = samples(device)[name]
    for alpha, gamma in ((0.25, 2.0), (-1, 3.5)):
        leaf, cpu = inputs.detach().requires_grad_(), inputs.cpu().double().requires_grad_()
        out = sigmoid_focal_loss(leaf, targets, alpha, gamma, reduction)
        expected = reference.sigmoid_focal_loss(cpu, targets.cpu(), alpha, gamma)
        if reduction != "none":
            count = max(expected.numel(), 1) if reduction == "mean" else 1
            expected = expected.sum() / count
        generator = torch.Generator().manual_seed(0)
        grad = torch.rand(out.shape, generator=generator, dtype=torch.float64) + 0.5
        (got,) = torch.autograd.grad(out, leaf, grad.float().to(device))
        (wanted,) = torch.autograd.grad(expected, cpu, grad)
        if name == "no class of that number" and reduction == "none":
            assert got[:2].isnan().all()
            got, wanted = got[2:], wanted[2:]
        elif name == "not finite but ignored":
            wanted = torch.zeros_like(wanted)
        torch.testing.assert_close(got.cpu().double(), wanted, rtol=2e-5, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("dims", [(2,), (1, 2), (0, 2), (0,)])
def test_gradient_of_partial_sums(dims, device):
    # The incoming gradient is expanded over the summed dimensions.
    inputs, targets = samples(device)["images"]
    leaf = inputs.requires_grad_()
    sums = sigmoid_focal_loss(leaf, targets).sum(dims)
    weights = torch.rand(sums.shape, generator=torch.Generator().manual_seed(0)).to(device)
    (got,) = torch.autograd.grad(sums, leaf, weights)
    for dim in sorted(dims):
        weights = weights.unsqueeze(dim)
    loss = sigmoid_focal_loss(leaf, targets)
    (expected,) = torch.autograd.grad(loss, leaf, weights.expand_as(loss).contiguous())
    assert got.equal(expected)


@pytest.mark.parametrize(("alpha", "gamma"), WEIGHTS)
def test_labels_equal_their_dense_targets(alpha, gamma, device):
    inputs, labels = samples(device)["images"]
    dense = (labels[..., None] == torch.arange(20, device=device)).float()
    leaves = [inputs.clone().requires_grad_() for _ in range(2)]
    rows = [
        sigmoid_focal_loss(leaf, targets, alpha, gamma)[labels != -2]
        for leaf, targets in zip(leaves, (labels, dense), strict=True)
    ]
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-9)
    grads = [torch.autograd.grad(r.sum(), leaf)[0] for r, leaf in zip(rows, leaves, strict=True)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(("alpha", "gamma"), WEIGHTS)
def test_equals_torchvision(alpha, gamma, reduction, device):
    torchvision = pytest.importorskip("torchvision", exc_type=ImportError)
    inputs = random_logits(40, 7, dtype=torch.float64)
    targets = random_targets(40, 7).double()
    leaf, theirs = inputs.to(device).requires_grad_(), inputs.requires_grad_()
    out = sigmoid_focal_loss(leaf, targets.to(device), alpha, gamma, reduction)
    expected = torchvision.ops.sigmoid_focal_loss(theirs, targets, alpha, gamma, reduction)
    torch.testing.assert_close(out.cpu(), expected)
    (got,) = torch.autograd.grad(out.sum(), leaf)
    (wanted,) = torch.autograd.grad(expected.sum(), theirs)
    torch.testing.assert_close(got.cpu(), wanted)


@pytest.mark.parametrize("kind", ["dense", "labels"])
@pytest.mark.parametrize(("alpha", "gamma"), WEIGHTS)
def test_gradcheck(kind, alpha, gamma, device):
    inputs = random_logits(4, 5, dtype=torch.float64).to(device).requires_grad_()
    dense = random_targets(4, 5).double().to(device)
    targets = dense if kind == "dense" else torch.tensor([-1, 3, -2, 0], device=device)
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, targets, alpha, gamma), (inputs,), nondet_tol=0.0
    )


def test_no_gradient_for_targets_and_no_second_derivative(device):
    inputs = random_logits(4, 5).to(device).requires_grad_()
    targets = random_targets(4, 5).to(device).requires_grad_()
    out = sigmoid_focal_loss(inputs, targets, reduction="sum")
    (first,) = torch.autograd.grad(out, inputs, create_graph=True)
    assert torch.autograd.grad(
        sigmoid_focal_loss(inputs, targets).sum(), targets, allow_unused=True
    ) == (None,)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("kind", ["dense", "labels"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(kind, dtype, device):
    # Also logits and gradients that are subnormal or very large in float16; blocks are not full.
    inputs = random_logits(30, 17, dtype=dtype).to(device)
    inputs[3], inputs[4, :4] = inputs[3] * 2e-7, torch.tensor([60000.0, -60000, 14, -14])
    inputs.requires_grad_()
    targets = random_targets(30, 17) if kind == "dense" else random_labels(30, num_classes=17)
    targets = targets.to(device)
    wide = inputs.detach().float().requires_grad_()
    out, expected = (sigmoid_focal_loss(x, targets) for x in (inputs, wide))
    assert out.equal(expected)
    (got,) = torch.autograd.grad(out.sum(), inputs)
    (wanted,) = torch.autograd.grad(expected.sum(), wide)
    assert got.dtype == dtype
    assert got.equal(wanted.to(dtype))


def test_finite_at_every_finite_logit(device):
    big = torch.finfo(torch.float32).max
    inputs = torch.tensor([-big, -1e4, -104, -88, -87, 0, 87, 88, 104, 1e4, big]).to(device)
    for target in (0.0, 0.5, 1.0):
        for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
            leaf = inputs.clone().requires_grad_()
            out = sigmoid_focal_loss(leaf, torch.full_like(leaf, target), gamma=gamma)
            (grad,) = torch.autograd.grad(out.sum(), leaf)
            assert out.isfinite().all()
            assert out.min() >= 0
            assert grad.isfinite().all()


def test_a_logit_that_is_nan_shows_in_the_loss(device):
    inputs = torch.zeros(3, 4, device=device)
    inputs[1, 2] = math.nan
    labels = torch.tensor([0, -1, 3], device=device)
    for targets in (labels, torch.zeros(3, 4, device=device)):
        assert sigmoid_focal_loss(inputs, targets).isnan().equal(inputs.isnan())


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 1), st.floats(0, 5))
def test_laws(seed, n, alpha, gamma):
    inputs, targets = random_logits(n, seed=seed), random_targets(n, seed=seed)
    loss = sigmoid_focal_loss(inputs, targets, alpha, gamma)
    assert loss.min() >= 0
    mirrored = sigmoid_focal_loss(-inputs, 1 - targets, 1 - alpha, gamma)
    torch.testing.assert_close(loss, mirrored, rtol=1e-5, atol=1e-6)
    harder = sigmoid_focal_loss(inputs, targets, alpha, gamma + 1)
    assert (harder <= loss * (1 + 1e-5)).all()
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert loss[order].equal(sigmoid_focal_loss(inputs[order], targets[order], alpha, gamma))


@pytest.mark.parametrize("kind", ["dense", "labels"])
def test_result_does_not_depend_on_the_thread_count(kind):
    inputs = random_logits(3000, 17).requires_grad_()
    targets = random_targets(3000, 17) if kind == "dense" else random_labels(3000, num_classes=17)
    results = []
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            out = sigmoid_focal_loss(inputs, targets)
            total = sigmoid_focal_loss(inputs, targets, reduction="sum")
            results.append((out, total, *torch.autograd.grad(out.sum(), inputs)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.cuda
@pytest.mark.parametrize("name", SAMPLES)
def test_cuda_equals_cpu(name):
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    for alpha, gamma in WEIGHTS:
        results = []
        for device in ("cpu", "cuda"):
            inputs, targets = samples(device)[name]
            leaf = inputs.detach().requires_grad_()
            out = sigmoid_focal_loss(leaf, targets, alpha, gamma)
            results.append([out.detach().cpu(), torch.autograd.grad(out.sum(), leaf)[0].cpu()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("kind", ["dense", "labels"])
def test_opcheck(kind, device):
    inputs = random_logits(6, 5).to(device)
    targets = random_targets(6, 5) if kind == "dense" else random_labels(6, num_classes=5)
    targets, grad = targets.to(device), torch.rand(6, 5, device=device)
    ops = torch.ops.fastdet
    leaf = inputs.clone().requires_grad_()
    torch.library.opcheck(ops.sigmoid_focal_loss, (leaf, targets, 0.25, 2.0))
    torch.library.opcheck(ops.sigmoid_focal_loss_sum, (leaf, targets, 0.25, 2.0))
    torch.library.opcheck(ops.sigmoid_focal_loss_backward, (grad, inputs, targets, 0.25, 2.0))


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return sigmoid_focal_loss(inputs * 2, labels, reduction="mean")

    labels = random_labels(6, num_classes=5).to(device)
    results = []
    for run in (loss, torch.compile(loss, fullgraph=True, dynamic=True)):
        leaf = random_logits(6, 5).to(device).requires_grad_()
        out = run(leaf, labels)
        results.append((out, *torch.autograd.grad(out, leaf)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_input_is_named(device):
    inputs = random_logits(6, 5).to(device)
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="reduction: expected 'none', 'mean' or 'sum', got 'max'"):
        sigmoid_focal_loss(inputs, labels, reduction="max")
    with pytest.raises(ValueError, match=r"alpha: expected a number in \[0, 1\], or -1, got 1.5"):
        sigmoid_focal_loss(inputs, labels, alpha=1.5)
    for gamma in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"gamma: expected a finite number >= 0, got"):
            sigmoid_focal_loss(inputs, labels, gamma=gamma)
    with pytest.raises(RuntimeError, match=r"sigmoid_focal_loss: inputs: expected floating of any"):
        sigmoid_focal_loss(inputs.long(), labels)
    wrong = (labels.int(), labels[:5], labels[:, None].expand(6, 5), inputs[:, :4], labels[0])
    for targets in wrong:
        with pytest.raises(RuntimeError, match=r"targets: expected floating with the shape of"):
            sigmoid_focal_loss(inputs, targets)
    with pytest.raises(RuntimeError, match=r"grad: expected one number for each logit"):
        torch.ops.fastdet.sigmoid_focal_loss_backward(inputs[:5], inputs, labels, 0.25, 2.0)


# ---- the gradient that forward writes on a GPU ---------------------------------------------------

NUMBER = torch.tensor(7)
USES: dict[str, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "as it is": lambda loss, x: [*torch.autograd.grad(loss, x)],
    "scaled": lambda loss, x: [*torch.autograd.grad(loss / 3, x)],
    "used twice": lambda loss, x: [*torch.autograd.grad(loss + 2 * loss, x)],
    "not finite": lambda loss, x: [*torch.autograd.grad(loss * math.nan, x)],
    "two backwards": lambda loss, x: [
        *torch.autograd.grad(loss, x, retain_graph=True),
        *torch.autograd.grad(loss / 3, x, retain_graph=True),
        *torch.autograd.grad(loss, x),
    ],
    "scaled, then as it is": lambda loss, x: [
        *torch.autograd.grad(loss / 3, x, retain_graph=True),
        *torch.autograd.grad(loss, x),
    ],
    "differentiable, then as it is": lambda loss, x: [
        *torch.autograd.grad(loss, x, create_graph=True),
        *torch.autograd.grad(loss, x),
    ],
}


def losses_and_sum(
    dtype: torch.dtype, shape: tuple[int, ...], reduction: str, device: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits, their loss, and the same loss from the losses of all logits."""
    for kind in ("dense", "labels"):
        dense, labels = random_targets(*shape), random_labels(*shape[:-1], num_classes=shape[-1])
        targets = (dense if kind == "dense" else labels).to(device)
        for gamma in (2.0, 0.5):
            leaf = random_logits(*shape, dtype=dtype).to(device).requires_grad_()
            single = sigmoid_focal_loss(leaf, targets, gamma=gamma)
            if reduction == "divided":
                number = NUMBER.to(device)
                loss = sigmoid_focal_loss(leaf, targets, 0.25, gamma, "sum", number)
                yield leaf, loss, single.sum() / number
            else:
                loss = sigmoid_focal_loss(leaf, targets, 0.25, gamma, reduction)
                yield leaf, loss, single.sum() if reduction == "sum" else single.mean()


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("reduction", ["sum", "mean", "divided"])
def test_gradient_of_a_sum_however_it_is_used(reduction, use, device):
    for leaf, loss, expected in losses_and_sum(torch.float32, (13, 5), reduction, device):
        torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
        for got, wanted in zip(USES[use](loss, leaf), USES[use](expected, leaf), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use", ["as it is", "scaled"])
def test_gradient_of_a_sum_is_rounded_once(use, dtype, device):
    # Also one logit, and many blocks on a GPU.
    for shape in ((1, 1), (700, 90)):
        for leaf, loss, expected in losses_and_sum(dtype, shape, "sum", device):
            (got,), (wanted,) = USES[use](loss, leaf), USES[use](expected, leaf)
            assert got.dtype == dtype
            assert got.equal(wanted)


def test_no_second_derivative_of_a_sum(device):
    for leaf, loss, _ in losses_and_sum(torch.float32, (4, 5), "mean", device):
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            first.sum().backward()


def test_divisor(device):
    inputs, labels = random_logits(6, 5).to(device), torch.zeros(6, dtype=torch.int64).to(device)
    total = sigmoid_focal_loss(inputs, labels, reduction="sum")
    for number in (torch.tensor(4), torch.tensor([4.0]), torch.tensor(4.0, dtype=torch.float64)):
        leaf, by = inputs.clone().requires_grad_(), number.to(device)
        for logits in (inputs, leaf):
            got = sigmoid_focal_loss(logits, labels, reduction="sum", divisor=by)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, total / 4)
    by = torch.tensor(4.0, device=device, requires_grad=True)
    loss = sigmoid_focal_loss(leaf, labels, reduction="sum", divisor=by)
    torch.testing.assert_close(torch.autograd.grad(loss, by)[0], -total / 16)
    for wrong, reduction in ((torch.ones(2), "sum"), (torch.ones(()), "mean")):
        with pytest.raises(ValueError, match="divisor: expected one number, with reduction 'sum'"):
            sigmoid_focal_loss(inputs, labels, reduction=reduction, divisor=wrong.to(device))


@pytest.fixture(params=[pytest.param("emulated", marks=pytest.mark.emulation)])
def writing_device(request) -> Iterator[str]:
    """Where forward also writes the gradient; test_cuda.py has the tests on a GPU."""
    with emulated_kernels():
        yield "cpu"


def test_an_upstream_gradient_of_one_leaves_the_gradient_alone(writing_device):
    inputs, labels = random_logits(6, 5), random_labels(6, num_classes=5)
    for divisor in (None, torch.tensor(7.0)):
        for upstream in (0.0, 0.5, 1.0, -1.0):
            kept, grad = torch.full((6, 5), 9.0), torch.tensor(upstream)
            OPS.sigmoid_focal_loss_correct_grad(kept, grad, inputs, labels, divisor, 0.25, 2.0)
            scaled = (grad if divisor is None else grad / divisor).expand(6, 5)
            expected = OPS.sigmoid_focal_loss_backward(scaled, inputs, labels, 0.25, 2.0)
            assert kept.equal(torch.full((6, 5), 9.0) if upstream == 1 else expected)


def test_opcheck_of_the_written_gradient(writing_device):
    leaf, labels = random_logits(6, 5).requires_grad_(), random_labels(6, num_classes=5)
    grad, by = torch.tensor(0.5), torch.tensor(7.0)
    both, correct = OPS.sigmoid_focal_loss_sum_and_grad, OPS.sigmoid_focal_loss_correct_grad
    # Not test_aot_dispatch: compiled code takes another path, since backward changes an output.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(both, (leaf, labels, by, 0.25, 2.0), test_utils=tests)
    arguments = (torch.zeros(6, 5), grad, leaf.detach(), labels, by, 0.25, 2.0)
    torch.library.opcheck(correct, arguments, test_utils=tests)


@pytest.mark.emulation
def test_wrong_numbers_are_named():
    with emulated_kernels(launches=False):
        inputs, labels = random_logits(6, 5), random_labels(6, num_classes=5)
        with pytest.raises(
            RuntimeError, match="divisor: expected one number of the dtype of the loss"
        ):
            OPS.sigmoid_focal_loss_sum_and_grad(inputs, labels, torch.ones(2), 0.25, 2.0)
        one = torch.ones(())
        with pytest.raises(
            RuntimeError, match="grad: expected one number of the dtype of the loss"
        ):
            OPS.sigmoid_focal_loss_correct_grad(
                inputs, one.double(), inputs, labels, None, 0.25, 2.0
            )
        with pytest.raises(RuntimeError, match="written: expected the shape and dtype of inputs"):
            OPS.sigmoid_focal_loss_correct_grad(inputs[1:], one, inputs, labels, None, 0.25, 2.0)
        turned = random_logits(5, 6).mT
        with pytest.raises(RuntimeError, match="written: expected contiguous"):
            OPS.sigmoid_focal_loss_correct_grad(turned, one, inputs, labels, None, 0.25, 2.0)


def test_no_gradient_is_written_where_none_is_wanted(device):
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not OPS.sigmoid_focal_loss_sum_and_grad.default
            return func(*args, **(kwargs or {}))

    leaf = random_logits(6, 5).to(device).requires_grad_()
    labels = random_labels(6, num_classes=5).to(device)
    with Names():
        sigmoid_focal_loss(leaf.detach(), labels, reduction="sum")
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                sigmoid_focal_loss(leaf, labels, reduction="mean")

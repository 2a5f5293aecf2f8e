# SPDX-License-Identifier: BSD-3-Clause
"""linear_assignment: total costs against SciPy's, and against all assignments of small problems."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import linear_assignment

linear_sum_assignment = pytest.importorskip(
    "scipy.optimize", reason="the reference solves with SciPy"
).linear_sum_assignment

INF, NAN = math.inf, math.nan


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(*shape: int, high: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, shape, generator=generator).double()


def forbid(cost: Tensor, share: float, seed: int = 1) -> Tensor:
    """The costs with about that share of pairs forbidden, in each way that forbids a pair."""
    drawn = uniform(*cost.shape, seed=seed)
    values = torch.tensor([INF, -INF, NAN], dtype=cost.dtype)
    reasons = values[(drawn * 3e6).long() % 3]
    return torch.where(drawn < share, reasons, cost)


def allowed_total(cost: Tensor, index: Tensor) -> tuple[int, float]:
    """The number of pairs and their total cost, after a check that the assignment is one."""
    assert index.dtype == torch.int64
    assert index.shape == cost.shape[:1]
    rows = (index >= 0).nonzero().flatten()
    columns = index[rows]
    assert ((index >= -1) & (index < cost.size(1))).all()
    assert len(columns.unique()) == len(columns)
    chosen = cost.double()[rows, columns]
    assert chosen.isfinite().all()
    return len(rows), math.fsum(chosen.tolist())


def scipy_total(cost: Tensor) -> float:
    rows, columns = linear_sum_assignment(cost.double().numpy())
    return math.fsum(cost.double().numpy()[rows, columns].tolist())


def best_of_all(cost: Tensor) -> tuple[int, float]:
    """The most pairs, and their least total, of all assignments."""
    if cost.size(0) > cost.size(1):
        cost = cost.T
    rows = cost.tolist()
    best = (0, 0.0)
    for columns in itertools.permutations(range(cost.size(1)), cost.size(0)):
        chosen = [row[j] for row, j in zip(rows, columns, strict=True) if math.isfinite(row[j])]
        found = (len(chosen), math.fsum(chosen))
        if (-found[0], found[1]) < (-best[0], best[1]):
            best = found
    return best


def expect_least(cost: Tensor, index: Tensor) -> None:
    pairs, total = allowed_total(cost, index)
    assert pairs == min(cost.shape)
    assert total == pytest.approx(scipy_total(cost), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ([[4, 1, 3], [2, 0, 5], [3, 2, 2]], [1, 0, 2]),
        ([[1, 2], [1, 5]], [1, 0]),  # the greedy choice of row 0 would cost 6
        ([[7, 2, 9]], [1]),
        ([[7], [2], [9]], [-1, 0, -1]),
        ([[0, 0], [0, 0], [0, 0]], None),
        ([[INF, 1], [INF, 2]], [1, -1]),
        ([[INF, 2], [INF, 1]], [-1, 1]),
        ([[NAN, 1, 5], [-INF, 1, INF]], [2, 1]),
        ([[INF, INF], [INF, INF]], [-1, -1]),
        ([[3]], [0]),
        ([[-INF]], [-1]),
        ([[-5, -1], [-4, -3]], [0, 1]),
    ],
)
def test_hand_worked(cost, expected, device):
    index = linear_assignment(torch.tensor(cost, dtype=torch.float32, device=device)).cpu()
    if expected is None:
        assert sorted(index.tolist()) == [-1, 0, 1]
    else:
        assert index.tolist() == expected


SHAPES = [(1, 1), (2, 2), (7, 7), (8, 8), (9, 9), (3, 17), (17, 3), (16, 64), (65, 40), (63, 65)]


@pytest.mark.parametrize("shape", [*SHAPES, (120, 120)])
def test_total_of_random_costs(shape, device):
    for seed in range(3):
        for cost in (
            uniform(*shape, seed=seed),
            uniform(*shape, seed=seed) * 1e6 - 5e5,
            integers(*shape, high=5, seed=seed),
            integers(*shape, high=100, seed=seed),
            uniform(shape[0], 1, seed=seed) + uniform(1, shape[1], seed=seed + 9),
            torch.zeros(*shape),
        ):
            expect_least(cost, linear_assignment(cost.to(device)).cpu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_types(dtype, device):
    for shape in ((20, 33), (33, 20)):
        cost = (uniform(*shape) * 100).to(dtype)
        expect_least(cost, linear_assignment(cost.to(device)).cpu())


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7, 0.9])
def test_forbidden_pairs_against_all_assignments(share, device):
    shapes = [(rows, columns) for rows in range(1, 6) for columns in range(1, 6)]
    for seed, (rows, columns) in enumerate(shapes * 4):
        values = uniform(rows, columns, seed=seed) if seed % 2 else integers(
            rows, columns, high=4, seed=seed
        )  # fmt: skip
        cost = forbid(values, share, seed=seed + 1000)
        pairs, total = allowed_total(cost, linear_assignment(cost.to(device)).cpu())
        assert (pairs, total) == (best_of_all(cost)[0], pytest.approx(best_of_all(cost)[1]))


@pytest.mark.parametrize("shape", [(30, 30), (20, 45), (45, 20)])
def test_forbidden_pairs_that_leave_an_assignment(shape, device):
    for seed in range(4):
        cost = uniform(*shape, seed=seed)
        keep = linear_sum_assignment(uniform(*shape, seed=seed + 50).numpy())
        forbidden = forbid(cost, 0.8, seed=seed)
        forbidden[keep] = cost[keep]
        pairs, total = allowed_total(forbidden, linear_assignment(forbidden.to(device)).cpu())
        assert pairs == min(shape)
        assert total == pytest.approx(scipy_total(forbidden.nan_to_num(INF, INF, INF)), rel=1e-12)


def padded_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Problems of every kind of size in one batch; what lies beyond the counts would be chosen."""
    row_counts = torch.tensor([[9, 0, 3, 14], [1, 14, 5, 99]])
    col_counts = torch.tensor([[9, 4, 11, 2], [0, 11, -3, 11]])
    cost = torch.full((2, 4, 14, 11), -1e9, dtype=torch.float64)
    for b, (rows, columns) in enumerate(
        zip(row_counts.flatten(), col_counts.flatten(), strict=True)
    ):
        rows, columns = min(int(rows), 14), max(int(columns), 0)
        cost.view(8, 14, 11)[b, :rows, :columns] = uniform(rows, columns, seed=b)
    return cost, row_counts, col_counts


def test_padded_problems(device):
    cost, row_counts, col_counts = padded_batch()
    index = linear_assignment(cost.to(device), row_counts.to(device), col_counts.to(device)).cpu()
    assert index.shape == (2, 4, 14)
    for b in range(8):
        rows = min(int(row_counts.flatten()[b]), 14)
        columns = max(int(col_counts.flatten()[b]), 0)
        own = index.view(8, 14)[b]
        assert (own[rows:] == -1).all()
        expect_least(cost.view(8, 14, 11)[b, :rows, :columns], own[:rows])


def test_one_kind_of_count_is_enough(device):
    cost = uniform(3, 6, 5).to(device)
    counts = torch.tensor([6, 2, 4], device=device)
    index = linear_assignment(cost, row_counts=counts)
    full = torch.full((3,), 5, device=device)
    assert index.equal(linear_assignment(cost, counts, full))
    index = linear_assignment(cost, col_counts=counts)
    assert index.equal(linear_assignment(cost, torch.full((3,), 6, device=device), counts))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3, 4), (0, 5, 3), (2, 5, 0)])
def test_empty(shape, device):
    index = linear_assignment(torch.zeros(shape, device=device))
    assert index.shape == shape[:-1]
    assert (index == -1).all()


def test_extreme_costs_end(device):
    for scale in (1e-310, 1e300, 1e308):
        cost = (uniform(12, 12) - 0.5) * scale
        index = linear_assignment(cost.to(device)).cpu()
        assert sorted(index.tolist()) == list(range(12)) or scale == 1e308


def test_more_columns_than_shared_memory_holds(device):
    """The device keeps larger problems elsewhere."""
    cost = uniform(6, 1500)
    expect_least(cost, linear_assignment(cost.to(device)).cpu())
    expect_least(cost.T, linear_assignment(cost.T.to(device)).cpu())


def test_the_transposed_problem_has_the_same_total(device):
    cost = forbid(uniform(25, 25), 0.9)
    forward = allowed_total(cost, linear_assignment(cost.to(device)).cpu())
    backward = allowed_total(cost.T, linear_assignment(cost.T.to(device)).cpu())
    assert forward == (backward[0], pytest.approx(backward[1]))


def test_of_equal_columns_the_lowest_are_taken(device):
    cost = uniform(6, 5).repeat_interleave(4, 1)
    index = linear_assignment(cost.to(device)).cpu()
    taken = torch.zeros(20, dtype=torch.bool)
    taken[index] = True
    for of_equal in taken.view(5, 4).tolist():
        assert of_equal == sorted(of_equal, reverse=True)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
def test_permuted_rows_keep_the_total(seed, rows, columns):
    cost = forbid(uniform(rows, columns, seed=seed), 0.4, seed=seed + 1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    expected = allowed_total(cost, linear_assignment(cost))
    got = allowed_total(cost[order], linear_assignment(cost[order]))
    assert got == (expected[0], pytest.approx(expected[1]))


@given(st.integers(0, 10**6), st.floats(-100, 100))
def test_a_constant_added_to_a_row_changes_nothing(seed, constant):
    cost = uniform(7, 9, seed=seed)
    shifted = cost.clone()
    shifted[seed % 7] += constant
    assert linear_assignment(shifted).equal(linear_assignment(cost))


@pytest.mark.slow
def test_total_of_a_hundred_thousand_problems():
    generator = np.random.default_rng(0)
    for _ in range(20):
        rows, columns = generator.integers(1, 14, 2).tolist()
        costs = torch.from_numpy(generator.random((5000, rows, columns)))
        costs[2500:] = (costs[2500:] * generator.integers(1, 12)).floor()
        index = linear_assignment(costs)
        assert (index >= 0).sum() == 5000 * min(rows, columns)
        ours = costs.gather(2, index.clamp(min=0)[..., None])[..., 0].where(index >= 0, 0).sum(1)
        for cost, total in zip(costs.numpy(), ours.tolist(), strict=True):
            assert total == pytest.approx(cost[linear_sum_assignment(cost)].sum(), abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(400, 400), (1000, 1000), (300, 900)])
def test_total_of_large_problems(shape):
    for cost in (uniform(*shape), integers(*shape, high=50), integers(*shape, high=shape[0] * 10)):
        expect_least(cost, linear_assignment(cost))


@pytest.mark.parametrize("counts", [False, True])
def test_opcheck(counts, device):
    cost, row_counts, col_counts = (tensor.to(device) for tensor in padded_batch())
    arguments = (cost, row_counts, col_counts) if counts else (cost, None, None)
    torch.library.opcheck(torch.ops.fastdet.linear_assignment, arguments)


def test_gradients_do_not_flow(device):
    cost = uniform(3, 4).to(device).requires_grad_()
    assert not linear_assignment(cost).requires_grad


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def total(cost: Tensor) -> Tensor:
        return cost.gather(-1, linear_assignment(cost)[..., None]).sum((-1, -2))

    cost = uniform(3, 5, 9).to(device)
    compiled = torch.compile(total, fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(cost), total(cost))


def test_bad_input_is_named(device):
    cost = torch.zeros(2, 3, 4, device=device)
    counts = torch.tensor([1, 2], device=device)
    with pytest.raises(
        RuntimeError, match=r"cost: expected floating \(..., R, C\).*got Float \(4\)"
    ):
        linear_assignment(cost[0, 0])
    with pytest.raises(RuntimeError, match=r"cost: expected floating .*got Long \(2, 3, 4\)"):
        linear_assignment(cost.long())
    with pytest.raises(
        RuntimeError, match=r"row_counts: expected int64 \(...\) with the .*got Int"
    ):
        linear_assignment(cost, counts.int())
    with pytest.raises(RuntimeError, match=r"col_counts: expected int64 \(...\) .*got Long \(1\)"):
        linear_assignment(cost, None, counts[:1])

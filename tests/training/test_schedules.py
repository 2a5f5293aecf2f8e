# SPDX-License-Identifier: BSD-3-Clause
"""The learning rate rises, falls, and ends where it should."""

import itertools

import pytest

from fastdet.training.schedules import warmup_cosine


def test_rises_then_falls() -> None:
    factors = [warmup_cosine(step, 200) for step in range(200)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert warmup_cosine(200, 200) == pytest.approx(0.01)
    assert warmup_cosine(10_000, 200) == pytest.approx(0.01)


@pytest.mark.parametrize("total", [1, 2, 3])
def test_tiny_trainings(total: int) -> None:
    assert all(0 < warmup_cosine(step, total) <= 1 for step in range(total + 1))


def test_warm_up_is_at_most_1000_steps() -> None:
    assert warmup_cosine(999, 1_000_000) == 1.0

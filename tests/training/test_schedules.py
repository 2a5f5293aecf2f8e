# SPDX-License-Identifier: BSD-3-Clause
"""The learning rate rises, falls, and ends where it should."""

import itertools

import pytest

from fastdet.training.options import OptimizationOptions
from fastdet.training.schedules import schedule, warmup_cosine


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


def factors(total: int = 120, epochs: int = 12, **options) -> list[float]:
    factor = schedule(OptimizationOptions(**options), total, epochs)
    return [factor(step) for step in range(total)]


def test_the_default_is_the_cosine() -> None:
    assert factors() == [warmup_cosine(step, 120) for step in range(120)]


def test_steps_down_at_the_ends_of_epochs() -> None:
    found = factors(schedule="step", warmup_steps=0)
    assert found == pytest.approx([1.0] * 80 + [0.1] * 30 + [0.01] * 10)
    found = factors(schedule="step", milestones=(1, 2.5), gamma=0.5, warmup_steps=4)
    expected = [0.25, 0.5, 0.75, 1.0] + [1.0] * 6 + [0.5] * 15 + [0.25] * 95
    assert found == pytest.approx(expected)


def test_constant_after_a_warm_up_in_epochs() -> None:
    found = factors(schedule="constant", warmup_epochs=0.5)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 116)


@pytest.mark.parametrize("warmup", [0, 7])
def test_a_cosine_after_a_warm_up_in_steps(warmup: int) -> None:
    found = factors(warmup_steps=warmup)
    assert found[:warmup] == pytest.approx([(step + 1) / 7 for step in range(warmup)])
    assert found[warmup] == 1.0

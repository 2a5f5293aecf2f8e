# SPDX-License-Identifier: BSD-3-Clause
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdet.ops import sample_matches
from tests import reference


class Sample(NamedTuple):
    match_index: Tensor  # (B, A)
    seeds: Tensor  # (B,) float64, read as 64 bits
    num: int
    positive_fraction: float


SEED = 11  # orders the anchors 0 to 6 by their keys as 5, 0, 4, 3, 1, 6, 2


def random_index(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-3, 3, shape, generator=torch.Generator().manual_seed(seed))


def random_seeds(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeds_of(*bits: int) -> Tensor:
    return torch.tensor(bits).view(torch.float64)


def samples(device: str) -> dict[str, Sample]:
    def one(index: list[int], num: int, positive_fraction: float) -> Sample:
        row = torch.tensor([index], dtype=torch.int64)
        return Sample(row, seeds_of(SEED), num, positive_fraction)

    index = [3, -1, 0, -2, -1, 5, -1]
    table = {
        "hand-worked": one(index, 4, 0.5),
        "positives fill up": one(index, 6, 1.0),
        "no positives wanted": one(index, 2, 0.0),
        "too few negatives": one([0, 1, 2, -1], 4, 0.5),
        "fewer anchors than num": one([0, -1], 5, 0.5),
        "nothing to draw": one([-2, -3], 3, 0.5),
        "no anchors": one([], 3, 0.5),
        "num 0": one(index, 0, 0.5),
        "the fraction rounds down": one(index, 3, 0.5),
        # 0.29 * 100 is 28.999999999999996
        "the fraction rounds as in Python": Sample(
            torch.zeros(1, 200, dtype=torch.int64), random_seeds(1), 100, 0.29
        ),
        "no images": Sample(random_index(0, 5), random_seeds(0), 3, 0.5),
        "strided": Sample(random_index(40, 3).t(), random_seeds(6)[::2], 10, 0.25),
        "extreme seeds": Sample(
            random_index(5, 100), seeds_of(-1, 2**63 - 1, -(2**63), 2**32, 2**31), 9, 0.5
        ),
        # Many more candidates than samples: bounds are lowered several times.
        "few of many": Sample(random_index(2, 5000), random_seeds(2), 5, 0.5),
    }
    for n in (15, 16, 17, 63, 64, 65, 511, 512, 513, 1000):
        table[f"random {n}"] = Sample(random_index(3, n, seed=n), random_seeds(3, seed=n), 16, 0.3)
    return {
        name: sample._replace(
            match_index=sample.match_index.to(device), seeds=sample.seeds.to(device)
        )
        for name, sample in table.items()
    }


SAMPLES = list(samples("cpu"))


@pytest.mark.parametrize("name", SAMPLES)
def test_equals_reference(name, device):
    sample = samples(device)[name]
    indices, valid = torch.ops.fastdet.sample_matches(*sample)
    assert indices.shape == valid.shape == (len(sample.match_index), sample.num)
    assert valid.dtype == torch.bool
    for b in range(len(sample.match_index)):
        expected, drawn = reference.sample_matches(
            sample.match_index[b].cpu(),
            int(sample.seeds.view(torch.int64)[b]),
            sample.num,
            sample.positive_fraction,
        )
        assert indices[b].tolist() == expected
        assert valid[b].tolist() == [k < drawn for k in range(sample.num)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hand-worked", [5, 0, 4, 1]),
        ("positives fill up", [5, 0, 2, 4, 1, 6]),
        ("too few negatives", [0, 1, 3, 0]),
        ("the fraction rounds down", [5, 4, 1]),
    ],
)
def test_hand_worked(name, expected):
    assert torch.ops.fastdet.sample_matches(*samples("cpu")[name])[0].tolist() == [expected]


def test_tied_keys_go_to_the_lower_anchor(device):
    keys = reference.sample_keys(SEED, 20_000)
    first: dict[int, int] = {}
    low, high = next((first[k], a) for a, k in enumerate(keys) if first.setdefault(k, a) != a)
    for label in (0, -1):
        index = torch.full((1, 20_000), -2, device=device)
        index[0, [low, high]] = label
        for num in (1, 2):
            seeds = seeds_of(SEED).to(device)
            indices, _ = torch.ops.fastdet.sample_matches(index, seeds, num, 1.0)
            assert indices.tolist() == [[low, high][:num]]


def test_a_seed_reproduces_the_draw(device):
    index = random_index(2, 500).to(device)

    def draw(seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        return sample_matches(index, 64, 0.5, generator)[0]

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))
    torch.manual_seed(5)
    first = sample_matches(index, 64, 0.5)[0]
    torch.manual_seed(5)
    assert sample_matches(index, 64, 0.5)[0].equal(first)


def test_every_candidate_is_drawn_equally_often(device):
    num_images, num_anchors = 1000, 24
    index = torch.tensor([0, -1, -2] * 8, device=device).expand(num_images, num_anchors)
    generator = torch.Generator(device).manual_seed(0)
    indices, valid = sample_matches(index, 7, 0.45, generator)
    assert valid.all()
    for drawn, label in ((indices[:, :3], 0), (indices[:, 3:], -1)):
        frequency = drawn.flatten().bincount(minlength=num_anchors)[index[0] == label].double()
        assert frequency.sum() == drawn.numel()
        expected = drawn.numel() / 8
        # Without replacement the variance is smaller by the fraction that is not drawn. After this
        # correction the statistic is chi-square(7).
        statistic = ((frequency - expected) ** 2 / expected).sum() / (1 - drawn.size(1) / 8) * 7 / 8
        assert statistic < 24.3  # exceeded once in 1000 seeds
        # The order of the samples is random, too.
        first = drawn[:, 0].bincount(minlength=num_anchors)[index[0] == label].double()
        assert ((first - num_images / 8) ** 2 / (num_images / 8)).sum() < 24.3


@given(st.integers(0, 10**6), st.integers(0, 90), st.integers(0, 40), st.floats(0, 1, width=32))
def test_what_is_drawn_is_distinct_and_balanced(seed, num_anchors, num, positive_fraction):
    index = random_index(2, num_anchors, seed=seed)
    indices, valid = sample_matches(index, num, positive_fraction)
    for row, anchors, ok in zip(index, indices, valid, strict=True):
        drawn = anchors[ok]
        labels = row[drawn]
        assert len(set(drawn.tolist())) == len(drawn)
        assert not anchors[~ok].any()
        assert (labels >= -1).all()
        positives, negatives = int((row >= 0).sum()), int((row == -1).sum())
        num_positives = min(positives, int(num * positive_fraction))
        assert (labels[:num_positives] >= 0).all()
        assert (labels[num_positives:] == -1).all()
        assert len(drawn) == num_positives + min(negatives, num - num_positives)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_result_does_not_depend_on_the_thread_count(num_threads):
    sample = Sample(random_index(7, 500), random_seeds(7), 64, 0.5)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, num_threads):
            torch.set_num_threads(threads)
            results.append(torch.ops.fastdet.sample_matches(*sample))
    finally:
        torch.set_num_threads(before)
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["hand-worked", "no anchors", "random 64"])
def test_opcheck(name, device):
    torch.library.opcheck(torch.ops.fastdet.sample_matches, samples(device)[name])


@pytest.mark.slow
def test_compiles_without_a_graph_break(device):
    def labels(index: Tensor) -> Tensor:
        indices, valid = sample_matches(index, 16, 0.5)
        return torch.where(valid, index.gather(1, indices), -2)

    drawn = torch.compile(labels, fullgraph=True, dynamic=True)(random_index(2, 300).to(device))
    assert ((drawn >= 0).sum(1) == 8).all()
    assert ((drawn == -1).sum(1) == 8).all()


def test_bad_input_is_named(device):
    index, seeds, _, _ = samples(device)["hand-worked"]
    with pytest.raises(
        ValueError, match=r"positive_fraction: expected a number in \[0, 1\], got 2"
    ):
        sample_matches(index, 4, 2)
    with pytest.raises(RuntimeError, match=r"index: expected int64 \(B, A\), got Long \(7\)"):
        sample_matches(index[0], 4, 0.5)
    with pytest.raises(RuntimeError, match=r"index: expected int64 \(B, A\), got Int \(1, 7\)"):
        sample_matches(index.int(), 4, 0.5)
    with pytest.raises(RuntimeError, match=r"num: expected a number >= 0, got -1"):
        sample_matches(index, -1, 0.5)
    with pytest.raises(RuntimeError, match=r"seeds: expected float64 \(B,\).*got Float \(1\)"):
        torch.ops.fastdet.sample_matches(index, seeds.float(), 4, 0.5)
    with pytest.raises(RuntimeError, match=r"seeds: expected float64 \(B,\).*got Double \(2\)"):
        torch.ops.fastdet.sample_matches(index, seeds.repeat(2), 4, 0.5)

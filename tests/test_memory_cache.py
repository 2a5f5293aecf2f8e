# SPDX-License-Identifier: BSD-3-Clause
"""The cache of large blocks that torch's CPU allocator uses while a detector computes."""

import copy
import itertools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdet import memory
from fastdet.memory import Counts, cached_blocks, empty_cache
from fastdet.models import retinanet

CPU = torch.device("cpu")
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    memory.cache_state() != "on", reason=f"the cache is {memory.cache_state()}"
)


def counts() -> Counts:
    now = memory.counts()
    assert now is not None
    return now


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Iterator[None]:
    empty_cache()
    yield
    empty_cache()


def block(mib: float) -> Tensor:
    return torch.empty(int(mib * MIB), dtype=torch.uint8)


def test_a_block_that_is_freed_is_given_out_again() -> None:
    with cached_blocks(CPU):
        first = block(3)
        address, before = first.data_ptr(), counts()
        del first
        assert counts().kept == before.kept + 3 * MIB
        again = block(3)
    assert again.data_ptr() == address
    assert counts().from_system == before.from_system
    assert counts().used == before.used


def test_outside_the_context_and_for_small_blocks_nothing_changes() -> None:
    before = counts()
    outside = block(3)
    with cached_blocks(CPU):
        small = block(0.9)
    with cached_blocks(torch.device("meta")):
        other = block(3)
    assert counts() == before
    del outside, small, other
    assert counts() == before


def test_a_tensor_outlives_the_context_and_grows() -> None:
    with cached_blocks(CPU):
        x = torch.full((2 * MIB,), 7, dtype=torch.uint8)
    x.resize_(4 * MIB)  # outside: torch's own allocator
    assert (x[: 2 * MIB] == 7).all()
    assert counts().kept == 2 * MIB


def test_outside_the_context_it_gives_out_what_it_keeps_and_no_more() -> None:
    with cached_blocks(CPU):
        before = counts()
        pieces = [block(2) for _ in range(4)]
        del pieces[::2]
    outside = block(3)  # no piece is large enough: they go back first
    now = counts()
    assert now.used == before.used + 7 * MIB
    assert now.used + now.kept <= now.most == before.used + 8 * MIB
    more = block(2)
    assert counts() == now  # torch's own allocator
    del outside, more, pieces


def test_contexts_nest() -> None:
    before = counts().used
    with cached_blocks(CPU):
        with cached_blocks(CPU):
            pass
        x = block(2)
    assert counts().used == before + x.nbytes


def test_blocks_are_divided_and_neighbours_become_one() -> None:
    with cached_blocks(CPU):
        whole = block(8)
        before = counts()
        del whole
        parts = [block(2) for _ in range(4)]
        addresses = sorted(part.data_ptr() for part in parts)
        assert [b - a for a, b in itertools.pairwise(addresses)] == [2 * MIB] * 3
        random.Random(1).shuffle(parts)
        while parts:
            parts.pop()
        assert block(8).data_ptr() == addresses[0]
    assert counts().from_system == before.from_system


def test_what_no_block_fits_takes_the_place_of_what_is_kept() -> None:
    with cached_blocks(CPU):
        before = counts().used
        pieces = [block(2) for _ in range(8)]
        del pieces[::2]  # 8 MiB in pieces
        assert counts().kept == 8 * MIB
        large = block(8)
        assert counts().used == before + 16 * MIB
        assert counts().kept == 0
        del pieces, large


def test_the_cache_never_holds_more_than_was_in_use() -> None:
    """Random sizes and lifetimes; no two tensors share a byte."""
    draw = random.Random(5)
    live: list[tuple[Tensor, int]] = []
    with cached_blocks(CPU):
        for step in range(400):
            if len(live) > 20 or (live and draw.random() < 0.45):
                x, value = live.pop(draw.randrange(len(live)))
                assert x[0] == x[-1] == value
                if step % 97 == 0:
                    assert (x == value).all()
            else:
                x, value = block(draw.choice([1, 1.5, 2.3, 5, 9])), draw.randrange(256)
                live.append((x.fill_(value), value))
            now = counts()
            assert now.used + now.kept <= now.most
    assert all((x == value).all() for x, value in live)


def test_empty_cache_gives_everything_back() -> None:
    with cached_blocks(CPU):
        x = block(4)
        del x
    assert counts().kept == 4 * MIB
    empty_cache()
    assert counts().kept == 0
    assert counts().most == counts().used


def test_threads_may_use_it_at_once() -> None:
    wrong: list[int] = []

    def work(value: int) -> None:
        for _ in range(100):
            x = torch.full((2 * MIB,), value, dtype=torch.uint8)
            if not (x[:: MIB // 4] == value).all():
                wrong.append(value)

    with cached_blocks(CPU):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_the_profiler_sees_its_blocks() -> None:
    with cached_blocks(CPU), torch.profiler.profile(profile_memory=True) as profiled:
        x = block(5)
        del x
    (event,) = (e for e in profiled.key_averages() if e.key == "aten::empty")
    assert event.self_cpu_memory_usage == 5 * MIB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_is_forked_leaves_what_is_kept_to_its_parent() -> None:
    script = """
import os, torch
from fastdet.memory import cached_blocks, counts
with cached_blocks(torch.device("cpu")):
    torch.ones(1 << 20)
kept = counts().kept
child = os.fork()
if child == 0:
    os._exit(counts().kept)
assert kept == 1 << 22 == counts().kept
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_is_forked_has_a_cache_of_its_own() -> None:
    script = """
import os, threading, torch
from fastdet.memory import cached_blocks
torch.set_num_threads(1)
with cached_blocks(torch.device("cpu")):
    x = torch.ones(1 << 20)
    stop = threading.Event()
    def take():
        while not stop.is_set():
            torch.empty(1 << 20)
    thread = threading.Thread(target=take)
    thread.start()
    for _ in range(50):
        child = os.fork()
        if child == 0:
            y = torch.ones(1 << 20)
            x.zero_()
            os._exit(0 if y.sum() == 1 << 20 else 1)
        assert os.waitpid(child, 0)[1] == 0
    stop.set()
    thread.join()
    assert x.sum() == 1 << 20
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# ---- in detectors --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> Any:
    torch.manual_seed(0)
    return retinanet("resnet18", 3, fpn_channels=32, min_size=256, max_size=256)


def step(detector: Any) -> dict[str, Tensor]:
    """Losses and gradients of a training step."""
    model = copy.deepcopy(detector).train()
    images = [torch.rand(3, 256, 256, generator=torch.Generator().manual_seed(1))] * 2
    targets = [{"boxes": torch.tensor([[9.0, 9, 99, 99]]), "labels": torch.tensor([1])}] * 2
    losses = model(images, targets)
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**losses, **grads}


def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_loaded", lambda: (None, "off"))


def test_forward_and_backward_use_it(detector: Any) -> None:
    before = counts().from_system
    found = step(detector)
    assert counts().from_system > before
    del found
    empty_cache()
    now = counts()
    outside = block(3)  # backward has ended
    assert counts() == now
    del outside


def test_results_are_the_same_without_it(detector: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [torch.rand(3, 200, 256, generator=torch.Generator().manual_seed(2))]
    model = copy.deepcopy(detector).eval()
    before = counts().from_system
    with torch.no_grad():
        found = model(images)[0]
        assert counts().from_system > before
        without_cache(monkeypatch)
        now = memory.counts()
        assert now is None
        expected = model(images)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_training_step_is_the_same_without_it(
    detector: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = step(detector)
    without_cache(monkeypatch)
    torch.testing.assert_close(found, step(detector), rtol=0, atol=0)


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise RuntimeError("no gradient")


def test_after_a_backward_that_failed_the_next_one_ends_it() -> None:
    weight = nn.Parameter(torch.ones(3))
    loss = Fails.apply(weight).sum()
    memory.cache_blocks_in_backward(loss)
    with pytest.raises(RuntimeError, match="no gradient"):
        loss.backward()
    again = (2 * weight).sum()
    memory.cache_blocks_in_backward(again)
    again.backward()
    empty_cache()
    now = counts()
    outside = block(3)
    assert counts() == now
    del outside


# ---- whether there is one ------------------------------------------------------------------------


def test_the_variable_turns_it_off() -> None:
    script = "from fastdet import memory as m; print(m.counts(), m.cache_state())"
    run = [sys.executable, "-c", script]
    environment = {**os.environ, memory.VARIABLE: "off"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"None off: {memory.VARIABLE}\n"


def test_a_wrong_value_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(memory.VARIABLE, "no")
    with pytest.raises(ValueError, match="expected on or off, got 'no'"):
        memory._loaded.__wrapped__()


def test_another_version_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "9.1.0+cpu")
    library, state = memory._loaded.__wrapped__()
    assert library is None
    assert state.endswith("this is 9.1.0+cpu")


def test_a_build_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LIBRARY", memory.LIBRARY.with_name("absent.so"))
    assert memory._loaded.__wrapped__() == (None, "off: absent.so is not built")

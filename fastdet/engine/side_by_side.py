# SPDX-License-Identifier: BSD-3-Clause
"""The images of a batch side by side, each computed by a part of torch's threads.

Layers that take a whole batch write maps that are larger than the caches, and each layer reads them
from memory again. And all threads wait for the last one, layer by layer. An image by itself keeps
its maps in the cache, and a thread with an image of its own waits for nobody. The memory of maps is
that of as many images as there are threads.
"""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from typing import TypeVar

import torch

Result = TypeVar("Result")


def side_by_side(compute: Callable[[int], Result], count: int) -> list[Result]:
    """`[compute(0), ..., compute(count - 1)]`, several at a time.

    A call sees the grad mode, the autocast and the context variables of the caller. The first error
    ends the others at their next call and is raised.
    """
    results: dict[int, Result] = {}
    threads = torch.get_num_threads()
    while (left := count - len(results)) > 0:
        workers = _workers(threads, left)
        first = len(results)
        some = range(first, first + left - left % workers)
        if workers == 1:
            results |= {i: compute(i) for i in some}
        else:
            _compute(compute, deque(some), workers, results)
    return [results[i] for i in range(count)]


def _workers(threads: int, images: int) -> int:
    """How many images at a time: no thread is left over, and the images have as many each."""
    return max(n for n in range(1, min(threads, images) + 1) if threads % n == 0)


def _compute(
    compute: Callable[[int], Result], todo: deque[int], workers: int, results: dict[int, Result]
) -> None:
    """Takes all of `todo`, a multiple of `workers`."""
    threads, modes = torch.get_num_threads(), _modes()

    def work() -> None:
        if torch.get_num_threads() != threads // workers:
            torch.set_num_threads(threads // workers)
        with modes():
            while todo:
                try:
                    i = todo.popleft()
                except IndexError:  # another thread has taken the last one
                    return
                results[i] = compute(i)

    running = [_pool(threads).submit(copy_context().run, work) for _ in range(workers)]
    try:
        for future in running:
            future.result()
    finally:
        todo.clear()
        wait(running)
        torch.set_num_threads(threads)  # of threads that begin later


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for images, kept with the workspaces that the operators keep in them."""
    return ThreadPoolExecutor(threads, "fastdet-image")


if hasattr(os, "register_at_fork"):  # the threads stay in the parent
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _modes() -> Callable[[], AbstractContextManager[None]]:
    """A context in which another thread has this thread's grad mode and autocast."""
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast = torch.is_autocast_enabled("cpu")
    dtype, cache = torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()

    @contextmanager
    def same() -> Iterator[None]:
        with (
            torch.inference_mode() if inference else torch.set_grad_enabled(grad),
            torch.autocast("cpu", dtype, cache_enabled=cache) if autocast else nullcontext(),
        ):
            yield

    return same

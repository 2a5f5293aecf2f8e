# SPDX-License-Identifier: BSD-3-Clause
"""Jobs done by several threads, their results in order.

A job computes with a part of torch's threads: on a CPU, pictures side by side keep the cores busy
where one picture does not, and decoding and drawing run beside the networks.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

MOST = 8  # each has the memory of a picture's feature maps

Job = TypeVar("Job")
Result = TypeVar("Result")


def default_workers(device: torch.device) -> int:
    """Jobs at a time: on a CPU one for each thread of torch, beside a GPU one for each core."""
    threads = torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1
    return min(MOST, threads)


class InOrder(Generic[Job, Result]):
    """Does jobs side by side and hands over each result in the order of the jobs.

    Args:
        do: one job; called in several threads.
        take: gets each result, in a thread of its own: a signal, which Python raises in the main
            thread, cannot leave a result half taken.
        workers: jobs at a time.
    """

    def __init__(
        self, do: Callable[[Job], Result], take: Callable[[Result], None], workers: int
    ) -> None:
        self._do, self._take, self._workers = do, take, workers
        self._waiting: deque[Future[Result]] = deque()

    def run(self, jobs: Iterable[Job]) -> None:
        """Does all jobs; jobs are asked for as they can be begun.

        An error of a job is raised in its turn. If this thread is stopped, jobs that have begun are
        finished, and the results of all jobs before the first unfinished one are still taken.
        """
        with _shared_threads(self._workers) as pool, ThreadPoolExecutor(1) as taker:
            try:
                for job in jobs:
                    self._waiting.append(pool.submit(self._do, job))
                    while self._waiting and (self._is_full() or self._waiting[0].done()):
                        taker.submit(self._take_first).result()
                while self._waiting:
                    taker.submit(self._take_first).result()
            except BaseException:
                for future in list(self._waiting):
                    future.cancel()
                taker.submit(self._finish).result()
                raise

    def _is_full(self) -> bool:
        return len(self._waiting) > 2 * self._workers

    def _take_first(self) -> None:
        result = self._waiting[0].result()
        self._waiting.popleft()
        self._take(result)

    def _finish(self) -> None:
        while self._waiting:
            if self._waiting[0].cancelled() or self._waiting[0].exception() is not None:
                return
            self._take_first()


@contextmanager
def _shared_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that share torch's threads."""
    threads = torch.get_num_threads()
    of_each = max(1, threads // workers)
    pool = ThreadPoolExecutor(
        workers, "fastdet-predict", initializer=torch.set_num_threads, initargs=(of_each,)
    )
    try:
        with pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # of threads that begin later

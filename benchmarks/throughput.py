# SPDX-License-Identifier: BSD-3-Clause
"""Images a second of one process with all threads, and of a process with one thread for each.

    python -m benchmarks.throughput

Both take one image at a time, and batches. The workers are started once and take turns; those that
wait are asleep. They keep freed memory and have huge pages, as in `fastdet predict`. Each round
gives each way some seconds. The detectors are torchvision's with random weights, converted, as in
`bench_from_torchvision`.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ceilings
from benchmarks.bench_from_torchvision import MODELS, made
from benchmarks.machine import describe
from benchmarks.results import THROUGHPUT
from benchmarks.torchvision_detectors import let_candidates_pass
from fastdet.files import replacing
from fastdet.memory import keep_freed_memory
from fastdet.models import from_torchvision


class Way(NamedTuple):
    """How the images are shared out."""

    processes: int
    threads: int  # of each process
    batch: int

    def __str__(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        batch = "one image at a time" if self.batch == 1 else f"batches of {self.batch}"
        return f"{processes} with {threads}, {batch}"


class Worker:
    """A process that detects on demand."""

    def __init__(self, name: str, size: int, threads: int, batch: int):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_work, args=(other, name, size, threads, batch), daemon=True
        )
        self._process.start()
        other.close()  # so that the end of the process is an end of file

    def wait(self) -> Any:
        """What the process sends next."""
        return self._pipe.recv()

    def start(self, batch: int, seconds: float) -> None:
        """Lets it detect for so long; `wait` then gives its images a second."""
        self._pipe.send((batch, seconds))

    def end(self) -> None:
        """Ends the process."""
        self._pipe.send(None)
        self._process.join()


@torch.no_grad()
def _work(pipe: Connection, name: str, size: int, threads: int, batch: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    network, images = made(name, size, size)
    let_candidates_pass(network.eval(), images[0])
    model = from_torchvision(network)
    images = [images[i % 2] for i in range(batch)]
    model(images[:1])  # builds the fused form
    model(images)
    pipe.send("ready")
    while order := pipe.recv():
        of_call, seconds = order
        done, start = 0, time.perf_counter()
        while (took := time.perf_counter() - start) < seconds:
            model(images[:of_call])
            done += of_call
        pipe.send(done / took)


@torch.no_grad()
def multiply_adds(name: str, size: int) -> float:
    """10^9 multiply-adds of one image in direct convolutions and linear layers."""
    network, images = made(name, size, size)
    let_candidates_pass(network.eval(), images[0])
    with FlopCounterMode(display=False) as counter:
        network(images[:1])
    return 1e-9 * counter.get_total_flops() / 2


def measure(name: str, size: int, ways: list[Way], rounds: int, seconds: float) -> dict[str, Any]:
    """Images a second of each way, a list over the rounds."""
    batch = max(way.batch for way in ways)
    workers = {
        (way.processes, way.threads): [
            Worker(name, size, way.threads, batch) for _ in range(way.processes)
        ]
        for way in ways
        if way.batch == batch
    }
    for group in workers.values():
        for worker in group:
            worker.wait()
    found: dict[str, list[float]] = {str(way): [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            group = workers[way.processes, way.threads]
            for worker in group:
                worker.start(way.batch, seconds)
            found[str(way)].append(sum(worker.wait() for worker in group))
            print(name, way, round(statistics.median(found[str(way)]), 2), flush=True)
    for group in workers.values():
        for worker in group:
            worker.end()
    return {
        "multiply_adds": multiply_adds(name, size),
        "fma": ceilings.measure().fma,
        "images_per_second": found,
    }


def main() -> None:
    """Measures and writes the result file, in which other detectors stay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5, help="of each way in each round")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    ways = [
        Way(processes, threads // processes, batch)
        for processes in dict.fromkeys((1, threads))
        for batch in (1, options.batch)
    ]
    result: dict[str, Any] = {"models": {}}
    if THROUGHPUT.exists():
        result = json.loads(THROUGHPUT.read_text())
    result |= {"machine": describe(), "size": options.size}
    for name in options.models:
        result["models"][name] = measure(name, options.size, ways, options.rounds, options.seconds)
    with replacing(THROUGHPUT) as path:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

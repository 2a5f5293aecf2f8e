# SPDX-License-Identifier: BSD-3-Clause
"""One measurement of `benchmarks.loader`, with the fastdet of any checkout; prints it as JSON.

ROOT open FILE: seconds, and the peak of memory beyond that of the imports.
ROOT load FOLDER WORKERS: images a second of the whole loader, from the second epoch on.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

EPOCHS = 4
ROOT, TASK, DATA = sys.argv[1:4]
sys.path[0] = ROOT  # in place of the folder of this file


def peak_mib() -> float:
    """Also in `benchmarks.machine`, whose other imports would count."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10


def processor_seconds(pids: list[object]) -> float:
    """Of these processes, user and system."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / 100


def opening(path: str) -> dict[str, float]:
    from fastdet.data.coco_file import read_coco_file

    before, start, processor = peak_mib(), time.perf_counter(), time.process_time()
    read_coco_file(path)
    return {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_mib": peak_mib() - before,
    }


def loading(folder: str, workers: int) -> dict[str, float]:
    import torch
    from torch.utils.data import DataLoader

    from fastdet.data import collate, open_dataset, train_transforms

    torch.set_num_threads(1)
    dataset = open_dataset(folder, "train", transforms=train_transforms())
    loader = DataLoader(
        dataset,
        batch_size=4,
        shuffle=True,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    walls, processors = [], []
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        running: Any = loader._iterator
        pids = ["self", *(worker.pid for worker in (running._workers if running else []))]
        start, processor, count = time.perf_counter(), processor_seconds(pids), 0
        for images, _ in loader:
            count += len(images)
            for image in images:
                image[0, 0, 0].item()
        walls.append(count / (time.perf_counter() - start))
        # The kernel counts ticks of 10 ms; of a few pictures there may be none.
        processors.append(1000 * max(0.01, processor_seconds(pids) - processor) / count)
    return {
        "images_per_second": sorted(walls[1:])[(EPOCHS - 1) // 2],
        "processor_ms_per_image": sorted(processors[1:])[(EPOCHS - 1) // 2],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    measured = opening(DATA) if TASK == "open" else loading(DATA, int(sys.argv[4]))
    print(json.dumps(measured))

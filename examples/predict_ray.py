# SPDX-License-Identifier: BSD-3-Clause
"""Detect objects on millions of pictures, on one machine or a cluster, with Ray Data.

python examples/predict_ray.py --checkpoint best.ckpt --images FOLDER --out found --workers 2

Writes Parquet files with a row a picture. Start it again after a failure: pictures that are in a
finished file of --out are left out. --images and --out may be on S3 or another store of pyarrow.fs.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends statistics if nobody says no

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from pyarrow.fs import FileSelector, FileSystem, FileType

from fastdet.data import read_image
from fastdet.data.picture_files import is_picture
from fastdet.predicting import detect
from fastdet.training.detector_module import load_detector

SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "boxes": pa.list_(pa.list_(pa.float32())),  # x1, y1, x2, y2 in pixels
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int32()),  # from 1 on
        "classes": pa.list_(pa.string()),
        "error": pa.string(),  # why a picture could not be read
    }
)

# The tasks that read and write need CPUs too: where workers hold all of them, Ray waits for ever.
WORKER_CPUS = 0.5


class Detector:
    """A worker: it loads the checkpoint once and then gets batch after batch."""

    def __init__(self, checkpoint: str, score_threshold: float) -> None:
        module = load_detector(Path(checkpoint))
        self.module = module.cuda() if torch.cuda.is_available() else module
        self.score_threshold = score_threshold

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row for each picture of the batch."""
        rows = [{"path": path} for path in batch["path"].to_pylist()]
        images, of_image = [], []
        for row, data in zip(rows, batch["bytes"], strict=True):
            with tempfile.NamedTemporaryFile(suffix=Path(row["path"]).suffix) as file:
                file.write(data.as_buffer())
                file.flush()
                try:
                    images.append(read_image(file.name))
                    of_image.append(row)
                except ValueError as error:  # one broken picture does not stop the others
                    row["error"] = str(error).replace(file.name, row["path"])
        found = detect(self.module, images, self.score_threshold) if images else []
        for row, image, detections in zip(of_image, images, found, strict=True):
            row["height"], row["width"] = image.shape[-2:]
            for name in ("boxes", "scores", "labels"):
                row[name] = detections[name].tolist()
            row["classes"] = [self.module.classes[label] for label in row["labels"]]
        return pa.Table.from_pylist(rows, schema=SCHEMA)


def pictures_done(store: FileSystem, folder: str) -> set[str]:
    """The paths in the finished files of a folder. What a killed run left unfinished is removed."""
    done: set[str] = set()
    for info in store.get_file_info(FileSelector(folder, allow_not_found=True)):
        if info.extension == "parquet":
            try:
                with store.open_input_file(info.path) as file:
                    done.update(pq.read_table(file, columns=["path"])["path"].to_pylist())
            except pa.ArrowInvalid:  # the end is missing, which is written last
                print(f"unfinished file removed: {info.path}")
                store.delete_file(info.path)
    return done


def store_of(place: str) -> tuple[FileSystem, str]:
    """The file system of a folder or a URI, and the path there."""
    return FileSystem.from_uri(place if "://" in place else Path(place).absolute().as_uri())


def main() -> None:
    """Detects what is not done yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True, help="a file that every worker can read")
    parser.add_argument("--images", required=True, help="folder of pictures, at any depth")
    parser.add_argument("--out", required=True, help="folder for the Parquet files")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus-per-worker", type=float, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows-per-file", type=int, default=1000, help="a failure loses so many")
    options = parser.parse_args()

    store, folder = store_of(options.images)
    infos = store.get_file_info(FileSelector(folder, recursive=True))
    paths = sorted(i.path for i in infos if i.type == FileType.File and is_picture(i.base_name))
    out_store, out = store_of(options.out)
    done = pictures_done(out_store, out)
    waiting = [path for path in paths if path not in done]
    print(f"{len(paths)} pictures, {len(paths) - len(waiting)} done before")
    if not waiting:
        return
    if not ray.is_initialized():
        ray.init()
    cpus = ray.cluster_resources()["CPU"]
    if options.workers * WORKER_CPUS > cpus - 1:
        parser.error(
            f"--workers: expected at most {(cpus - 1) / WORKER_CPUS:.0f}, got {options.workers}"
        )
    (
        ray.data.read_binary_files(waiting, filesystem=store, include_paths=True)
        .map_batches(
            Detector,
            fn_constructor_args=(options.checkpoint, options.score_threshold),
            batch_format="pyarrow",
            batch_size=options.batch_size,
            compute=ray.data.ActorPoolStrategy(size=options.workers),
            num_cpus=WORKER_CPUS,
            num_gpus=options.gpus_per_worker,
        )
        .write_parquet(out, filesystem=out_store, min_rows_per_file=options.rows_per_file)
    )
    print(f"{len(waiting)} pictures: {options.out}")


if __name__ == "__main__":
    main()

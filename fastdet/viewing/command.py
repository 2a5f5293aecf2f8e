# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet view`: reads the data, says where the page is, and serves it until Ctrl-C."""

from collections.abc import Sequence
from pathlib import Path

from fastdet.training.options import PictureOptions
from fastdet.viewing.server import check_packages, free_port, is_local, serve


def run(
    data: Path,
    detections: Sequence[Path] = (),
    split: str = "val",
    *,
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    address: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = True,
    pictures: PictureOptions = PictureOptions(),
    files_anywhere: bool = False,
) -> None:
    """Serves the page of a split; see `open_collection` and `fastdet.viewing.server.serve`.

    Raises:
        ModuleNotFoundError: no package to serve with.
        FileNotFoundError: no such data, split or file.
        ValueError: an option out of range; detections of other data.
        OSError: the port is in use.
    """
    check_packages()
    port = free_port(address, port)
    from fastdet.viewing.collection import open_collection

    collection = open_collection(
        data, split, detections, iou_threshold, background_iou, pictures, files_anywhere
    )
    annotations = collection.annotations
    texts = [f"{len(annotations.image_ids):,} pictures", f"{len(annotations.labels):,} annotations"]
    texts += [f"{len(side.found):,} detections of {side.name}" for side in collection.sides]
    print(f"{data}, {split}: {', '.join(texts)}", flush=True)
    if not is_local(address):
        print(
            "other machines that reach this address see the pictures, without a password",
            flush=True,
        )
    serve(collection, address, port, open_browser)
    print("ended")

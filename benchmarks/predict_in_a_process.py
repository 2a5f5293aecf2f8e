# SPDX-License-Identifier: BSD-3-Clause
"""One measurement of `benchmarks.predict`, with the fastdet of any checkout; prints it as JSON.

ROOT CHECKPOINT FOLDER OUT: seconds that the pictures of the split "val" take. The time of loading
and of the first pictures, in which forms are built, is not counted.
"""

import importlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

WARM_UP = 2  # pictures
ROOT, CHECKPOINT, DATA, OUT = sys.argv[1:5]
sys.path[0] = ROOT  # in place of the folder of this file


def main() -> None:
    """Runs the detector of a checkpoint, once on few pictures and then on all."""
    import fastdet
    from fastdet.data import open_dataset
    from fastdet.training.detector_module import load_detector

    assert str(Path(str(fastdet.__file__)).parent.parent) == ROOT, fastdet.__file__
    is_new = (Path(ROOT) / "fastdet" / "predicting" / "run.py").is_file()
    place: Any = importlib.import_module(
        "fastdet.predicting.run" if is_new else "fastdet.prediction"
    )
    module = load_detector(Path(CHECKPOINT))
    place.load_detector = lambda _: module  # with the forms that the first run built
    split = open_dataset(DATA, "val")
    files = [Path(split.image_path(i)) for i in range(len(split))]

    def run(pictures: list[Path]) -> float:
        start = time.perf_counter()
        place.predict(Path(CHECKPOINT), pictures, Path(OUT), 0.0, overwrite=True)
        return time.perf_counter() - start

    run(files[:WARM_UP])
    print(json.dumps({"seconds": run(files), "pictures": len(files)}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()

# SPDX-License-Identifier: BSD-3-Clause
"""What may be given to detect on, and the work of several threads."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdet.cli import main
from fastdet.predicting import predict
from fastdet.predicting.jobs import InOrder
from fastdet.predicting.options import SpeedOptions
from fastdet.predicting.sources import sources
from fastdet.predicting.video_reader import Video


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    names = "cam1/a.jpg", "cam1/b.mp4", "cam2/a.jpg", "cam2/in/c.PNG", "notes.txt", ".hidden.jpg"
    folder = files(tmp_path, *names, "cam2/.d.jpg")

    def found(*given: Path | str) -> list[str]:
        return [str(source.name) for source in sources(given)]

    assert found(folder) == ["cam1/a.jpg", "cam1/b.mp4", "cam2/a.jpg", "cam2/in/c.PNG"]
    assert found(f"{folder}/cam*/*.jpg") == ["cam1/a.jpg", "cam2/a.jpg"]
    assert found(f"{folder}/**/*.jpg") == ["cam1/a.jpg", "cam2/a.jpg"]
    assert found(f"{folder}/cam2/**") == ["a.jpg", "in/c.PNG"]
    assert found(f"{folder}/cam*") == found(folder)
    assert found(f"{folder}/**/in") == ["cam2/in/c.PNG"]  # a folder at any depth
    assert found(f"{folder}/cam[1]/*") == ["cam1/a.jpg", "cam1/b.mp4"]
    assert found(folder / "cam1" / "b.mp4", folder / "cam2") == ["b.mp4", "a.jpg", "in/c.PNG"]
    files(folder, "odd[1].jpg")
    assert found(f"{folder}/odd[1].jpg") == ["odd[1].jpg"]  # a file of that name is no pattern
    with pytest.raises(FileNotFoundError, match=r"no picture and no video matches .*\*\.bmp"):
        found(f"{folder}/*.bmp")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg does not exist"):
        found(folder / "none.jpg")


def test_cameras_and_addresses() -> None:
    camera, device, stream = sources(["0", "/dev/null", "rtsp://u:p@cam:554/live/main.sdp?x=1"])
    assert isinstance(camera, Video)
    assert isinstance(device, Video)
    assert (camera.location, camera.camera, str(camera.name)) == ("/dev/video0", True, "video0.mp4")
    assert device.camera
    assert isinstance(stream, Video)
    assert stream.location.startswith("rtsp://u:p@")
    assert (str(stream.name), stream.camera) == ("cam_live_main.sdp.mp4", False)


def test_results_do_not_depend_on_how_much_is_done_at_a_time(detector, tmp_path: Path) -> None:
    """Byte for byte with one thread a picture; batches change the last digits alone."""
    checkpoint, _ = detector
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for i in range(7):
        size = (40, 50 + 10 * (i // 5), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(images / f"{i}.png")
    (images / "3b.png").write_bytes(b"no picture")
    found = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, speed in {
            "one": SpeedOptions(workers=1),
            "four": SpeedOptions(workers=4),
            "batches": SpeedOptions(batch_size=3, workers=2),
        }.items():
            out = tmp_path / name
            predict(checkpoint, [images], out, 0.0, speed=speed)
            found[name] = {file.name: file.read_bytes() for file in out.iterdir()}
    finally:
        torch.set_num_threads(threads)
    assert found["one"] == found["four"]
    assert found["batches"].keys() == found["one"].keys()
    one, batches = (json.loads(found[name]["detections.json"]) for name in ("one", "batches"))
    assert [r["image_id"] for r in one] == [r["image_id"] for r in batches]
    for name in ("score", "bbox"):
        np.testing.assert_allclose(
            [r[name] for r in one], [r[name] for r in batches], rtol=1e-3, atol=1e-3
        )


def test_options_of_speed(detector, tmp_path: Path, refused) -> None:
    checkpoint, _ = detector
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    command = f"predict --checkpoint {checkpoint} --images {tmp_path}/*.png --out {tmp_path}/out"
    main(f"{command} --batch-size 2 --workers 2 --format csv --first-label 1".split())
    assert (tmp_path / "out" / "detections.csv").read_text().startswith("image_id,Predic")
    assert (tmp_path / "out" / "detections.json").exists()
    other = files(tmp_path / "other", "detections.csv")
    again = command.replace(f"{tmp_path}/out", str(other))
    assert "detections.csv exists: give --overwrite" in refused(f"{again} --format csv".split())
    for option in ("batch-size", "workers"):
        name = option.replace("-", "_")
        assert f"{name}: expected a number from 1 on, got 0" in refused(
            f"{command} --{option} 0".split()
        )


def test_results_come_in_order() -> None:
    taken: list[int] = []
    begun = threading.Barrier(3, timeout=20)

    def do(job: int) -> int:
        if job < 3:
            begun.wait()  # three jobs run at a time
        time.sleep(0.02 * (job % 3 == 0))
        return job

    InOrder(do, taken.append, 3).run(range(20))
    assert taken == list(range(20))


def test_an_error_comes_in_its_turn_and_what_is_done_is_kept() -> None:
    taken: list[int] = []

    def do(job: int) -> int:
        if job == 5:
            raise ValueError("the fifth")
        return job

    with pytest.raises(ValueError, match="the fifth"):
        InOrder(do, taken.append, 4).run(range(20))
    assert taken == [0, 1, 2, 3, 4]


def test_what_was_begun_is_kept_when_the_run_is_stopped() -> None:
    taken: list[int] = []

    def jobs():
        yield from range(4)
        raise KeyboardInterrupt

    def do(job: int) -> int:
        time.sleep(0.1)
        return job

    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        InOrder(do, taken.append, 4).run(jobs())
    assert taken == [0, 1, 2, 3]
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("ctrl_c")
def test_a_signal_leaves_no_result_half_taken() -> None:
    begun: list[int] = []
    taken: list[int] = []

    def take(job: int) -> None:
        begun.append(job)
        if job == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        taken.append(job)

    with pytest.raises(KeyboardInterrupt):
        InOrder(lambda job: job, take, 2).run(range(1000))
    assert begun == taken == list(range(len(taken)))
    assert 3 <= len(taken) < 1000


def test_a_network_of_a_job_has_its_share_of_the_threads() -> None:
    seen: list[int] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        InOrder(lambda _: torch.get_num_threads(), seen.append, 2).run(range(4))
        assert seen == [2] * 4
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)

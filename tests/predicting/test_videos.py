# SPDX-License-Identifier: BSD-3-Clause
"""Videos and streams: frames with their times, upright; damage is said, and the rest is kept."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest

av: Any = pytest.importorskip("av")

from fastdet.cli import main  # noqa: E402
from fastdet.predicting import predict, recording  # noqa: E402
from fastdet.predicting.options import VideoOptions  # noqa: E402
from fastdet.predicting.video_reader import Video, VideoReader, stream_at  # noqa: E402

MILLISECONDS = Fraction(1, 1000)
SIZE = 48, 80  # height, width


def picture(number: int) -> np.ndarray:
    """A bar as long as the number of the frame says, below a red stripe."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[:, : 8 + 4 * number] = 200
    pixels[: SIZE[0] // 4] = (255, 0, 0)
    return pixels


def write_video(path: Path, times: list[int], pictures: list[np.ndarray] | None = None) -> Path:
    """A video with a frame at each time, in milliseconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        codec = "mpeg4" if path.suffix == ".avi" else "libx264"
        stream = container.add_stream(codec, rate=10, options={"g": "4"})
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = MILLISECONDS
        for number, time_stamp in enumerate(times):
            pixels = pictures[number] if pictures else picture(number)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_stamp, MILLISECONDS
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read(path: Path | str, **options: Any) -> tuple[list[Any], str | None]:
    video = stream_at(path) if isinstance(path, str) else Video(str(path), PurePath(path.name))
    with VideoReader(video, VideoOptions(**options)) as reader:
        return list(reader.frames()), reader.problem


def noise(frames: int) -> list[np.ndarray]:
    """Pictures that take many bytes, so that damage hits them."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8) for _ in range(frames)]


def test_frames_have_their_numbers_times_and_pixels(tmp_path: Path) -> None:
    times = [0, 40, 80, 500, 540, 1000, 1040, 2000]  # a variable frame rate
    for name in ("a.mp4", "a.mkv"):
        frames, problem = read(write_video(tmp_path / name, times))
        assert problem is None
        assert [frame.number for frame in frames] == list(range(8))
        assert [frame.seconds for frame in frames] == pytest.approx([t / 1000 for t in times])
        for number, frame in enumerate(frames):
            difference = frame.image().permute(1, 2, 0).numpy().astype(int) - picture(number)
            assert abs(difference).mean() < 8
    frames, _ = read(tmp_path / "a.mp4", every=3, frames=2)
    assert [frame.number for frame in frames] == [0, 3]
    assert frames[1].seconds == pytest.approx(0.5)


def test_a_video_that_is_stored_turned_is_seen_upright(tmp_path: Path) -> None:
    content = write_video(tmp_path / "a.mp4", [0, 100]).read_bytes()
    matrix = content.index(b"tkhd") + 44
    numbers = (0, 1 << 16, 0, -1 << 16, 0, 0, SIZE[0] << 16, 0, 1 << 30)  # as of an upright phone
    turn = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    (tmp_path / "a.mp4").write_bytes(content[:matrix] + turn + content[matrix + 36 :])
    frames, _ = read(tmp_path / "a.mp4")
    pixels = frames[0].image().permute(1, 2, 0).numpy().astype(int)
    assert abs(pixels - np.rot90(picture(0), -1)).mean() < 8


def test_what_is_damaged_is_said(tmp_path: Path) -> None:
    content = bytearray(
        write_video(tmp_path / "a.avi", [100 * i for i in range(40)], noise(40)).read_bytes()
    )
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    (tmp_path / "bad.avi").write_bytes(content)
    frames, problem = read(tmp_path / "bad.avi")
    assert problem is not None
    assert "damaged frames were left out" in problem
    assert 30 < len(frames) < 40
    times = [frame.seconds for frame in frames]
    assert times == sorted(times)

    whole = write_video(tmp_path / "a.mkv", [100 * i for i in range(40)], noise(40)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    frames, problem = read(tmp_path / "cut.mkv")
    assert 5 < len(frames) < 25
    assert problem is not None
    assert problem.startswith("ends early: ")
    assert problem.endswith("of the 4.0 s that its header states")
    (tmp_path / "none.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none\.mp4: cannot be opened: Invalid data"):
        read(tmp_path / "none.mp4")


def test_a_password_is_not_repeated() -> None:
    address = "rtsp://someone:secret@127.0.0.1:9/live/1.sdp?token=secret"
    assert stream_at(address).name == PurePath("127.0.0.1_live_1.sdp.mp4")
    with pytest.raises(ValueError, match=r"^rtsp://127\.0\.0\.1:9/live/1\.sdp") as error:
        read(address)
    assert "someone" not in str(error.value)


def test_predict_annotates_a_video(detector, tmp_path: Path, capsys, refused) -> None:
    checkpoint, _ = detector
    times = [0, 40, 80, 500, 540, 1000]
    video = write_video(tmp_path / "in" / "cam" / "a.mkv", times)
    write_video(tmp_path / "in" / "b.mp4", times[:2])
    (tmp_path / "in" / "broken.avi").write_bytes(b"nothing")
    out = tmp_path / "out"
    command = f"predict --checkpoint {checkpoint} --images {tmp_path}/in --score-threshold 0"
    with pytest.raises(SystemExit) as stop:
        main(f"{command} --out {out} --every 2".split())
    assert stop.value.code == 1
    assert "left out: " in (told := capsys.readouterr().err)
    assert "broken.avi: cannot be opened" in told
    images = json.loads((out / "images.json").read_text())["images"]
    assert [(i["file_name"], i["timestamp"]) for i in images] == [
        ("b/000000.jpg", 0.0),
        ("cam/a/000000.jpg", 0.0),
        ("cam/a/000002.jpg", 0.08),
        ("cam/a/000004.jpg", 0.54),
    ]
    assert all((i["height"], i["width"]) == SIZE for i in images)
    results = json.loads((out / "detections.json").read_text())
    assert {result["image_id"] for result in results} <= {1, 2, 3, 4}
    assert {result["image_id"] for result in results} & {2, 3, 4}
    frames, problem = read(out / "cam" / "a.mp4")
    assert problem is None
    assert [frame.seconds for frame in frames] == pytest.approx([0, 0.08, 0.54])
    assert frames[0].image().shape == (3, SIZE[0] * 5, SIZE[1] * 5)  # enlarged as pictures are
    assert not list(out.rglob(".*"))
    assert "a.mp4 exists: give --overwrite" in refused(
        f"{command.replace('/in', '/in/cam')} --out {out}/cam".split()
    )
    message = f"annotations: expected pictures, whose ids it has, got the video {video}"
    command = f"predict --checkpoint {checkpoint} --images {video}"
    said = refused(f"{command} --out {tmp_path}/no --annotations {out}/images.json".split())
    assert message in said
    for option in ("frames", "every"):
        assert f"{option}: expected a number from 1 on, got 0" in refused(
            f"{command} --out {tmp_path}/no --{option} 0".split()
        )


@contextmanager
def served(content: bytes, seconds: float) -> Iterator[str]:
    """The address of a stream without end: the content again and again."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            ends = time.monotonic() + seconds
            try:
                while time.monotonic() < ends:
                    self.wfile.write(content * 64)
                    time.sleep(0.005)
            except OSError:
                return

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/live.mjpeg"
    finally:
        server.shutdown()


def jpeg() -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture(3)).save(file, "JPEG")
    return file.getvalue()


def test_a_stream_is_read_frame_by_frame(detector, tmp_path: Path) -> None:
    checkpoint, _ = detector
    with served(jpeg(), 60) as address:
        found = predict(checkpoint, [address], tmp_path / "out", 0.0, videos=VideoOptions(frames=3))
    assert not found.unreadable
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert len(images) == 3
    numbers = [int(PurePath(image["file_name"]).stem) for image in images]
    assert numbers == sorted(set(numbers))
    assert {PurePath(image["file_name"]).parent.name for image in images} == {"127.0.0.1_live"}
    assert len(read(tmp_path / "out" / "127.0.0.1_live.mp4")[0]) == 3


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stream_ends_with_everything_written(
    detector, tmp_path: Path, number: signal.Signals, monkeypatch, capsys
) -> None:
    checkpoint, _ = detector
    out = tmp_path / "out"
    monkeypatch.setattr(recording, "WRITE_EVERY", 0.0)

    def stop() -> None:
        while not (out / "detections.json").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    with served(jpeg(), 300) as address:
        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(SystemExit) as stopped:
            main(
                f"predict --checkpoint {checkpoint} --images {address} --out {out} "
                "--score-threshold 0".split()
            )
    assert stopped.value.code == 128 + number
    told = capsys.readouterr().err
    assert told.endswith(f"stopped; what was found until then: {out}/detections.json\n")
    images = json.loads((out / "images.json").read_text())["images"]
    frames, problem = read(out / "127.0.0.1_live.mp4")
    assert problem is None
    assert len(frames) == len(images) >= 1
    results = json.loads((out / "detections.json").read_text())
    assert {result["image_id"] for result in results} <= {image["id"] for image in images}

# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet view`: what is refused before a server starts, and how it is started."""

import importlib.util
import json
import re
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fastdet.cli import main
from fastdet.training.options import PictureOptions
from fastdet.viewing import command, server
from fastdet.viewing.collection import Collection
from tests.data_sets import SAMPLE
from tests.viewing.made_up import make_up

Refused = Callable[[list[str]], str]


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would be served."""
    calls: list[tuple] = []
    monkeypatch.setattr(command, "serve", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_up(SAMPLE / "val.json", tmp_path_factory.mktemp("results") / "a.json", 0)


def test_what_is_served(
    served: list[tuple], results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copy(results, tmp_path / "b.json")
    options = f"--iou-threshold 0.75 --background-iou 0.2 --split validation --detections {other}"
    main(f"view {SAMPLE} --detections {results} {options} --no-open --port 8777".split())
    ((collection, address, port, open_browser),) = served
    assert isinstance(collection, Collection)
    assert (address, port, open_browser) == ("127.0.0.1", 8777, False)
    assert [side.name for side in collection.sides] == ["a", "b"]
    assert collection.pictures == PictureOptions()
    loose = [side.errors.kinds for side in collection.sides]
    lines = capsys.readouterr().out.splitlines()
    assert "25 pictures, 223 annotations" in lines[0]
    assert lines[1:] == ["ended"]

    main(f"view {SAMPLE} --detections {results} --detections {other} --exif ignore".split())
    collection, _, port, open_browser = served[-1]
    assert open_browser
    assert server.PORT <= port < server.PORT + server.PORTS
    assert collection.pictures.exif == "ignore"
    assert (collection.sides[0].errors.kinds != loose[0]).any()


def test_other_machines_see_the_page_only_where_that_is_asked_for(
    served: list[tuple], capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"view {SAMPLE} --address 0.0.0.0".split())
    assert served[-1][1] == "0.0.0.0"
    assert "without a password" in capsys.readouterr().out
    for local in ("127.0.0.1", "::1", "localhost"):
        assert server.is_local(local)
    for other in ("0.0.0.0", "192.0.2.1", "example.org"):
        assert not server.is_local(other)


def test_a_port_in_use(refused: Refused, served: list[tuple]) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        line = refused(f"view {SAMPLE} --port {port}".split())
        assert f"port {port} of 127.0.0.1: already in use: give another --port" in line
    assert not served


def test_the_first_free_port_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        monkeypatch.setattr(server, "PORT", busy.getsockname()[1])
        assert server.free_port("127.0.0.1", None) > server.PORT
        monkeypatch.setattr(server, "PORTS", 1)
        with pytest.raises(OSError, match="already in use"):
            server.free_port("127.0.0.1", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{sample} --split test", "no split 'test' in .*: it has val"),
        ("{sample}/none", "none: no such folder or file"),
        ("{sample} --detections {sample}/none.json", "none.json"),
        ("{sample} --detections {sample}/val.json", "expected COCO results"),
        ("{sample} --detections {other}", "expected the image ids of .*val.json, got 77"),
        (
            "{sample} --detections {results} --detections {results}",
            "expected different files, got .* twice",
        ),
        ("{sample} --iou-threshold 0", "iou_threshold: expected .*, got 0"),
        ("{sample} --background-iou 0.9", "background_iou: expected .*, got 0.9"),
        ("{sample} --port 0", "port: expected a number from 1 to 65535, got 0"),
        ("{sample} --address 192.0.2.77", "address: expected one of this machine.*192.0.2.77"),
        ("{sample} --max-pixels 0", "max_pixels: expected"),
    ],
)
def test_bad_input_is_refused_before_a_server_starts(
    options: str, message: str, refused: Refused, served: list[tuple], results: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    row = {"image_id": 77, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 0.5}
    other.write_text(json.dumps([row]))
    words = options.format(sample=SAMPLE, results=results, other=other).split()
    line = refused(["view", *words])
    assert re.search(message, line), line
    assert not served


def test_file_names_that_lead_out(refused: Refused, served: list[tuple], tmp_path: Path) -> None:
    content = json.loads((SAMPLE / "val.json").read_text())
    data = tmp_path / "data"
    shutil.copytree(SAMPLE / "images", data / "images")
    (data / "images" / "119.jpg").rename(tmp_path / "119.jpg")
    content["images"][0]["file_name"] = "../../119.jpg"
    (data / "val.json").write_text(json.dumps(content))
    assert "leads out of the image folder" in refused(["view", str(data)])
    assert not served
    main(f"view {data} --files-anywhere".split())
    assert served[-1][0].annotations.file_names[0] == "../../119.jpg"


def test_a_missing_package(
    refused: Refused, served: list[tuple], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "streamlit" else find(name)
    )
    assert 'pip install "fastdet[train,view]"' in refused(["view", str(SAMPLE / "none")])
    assert not served
    monkeypatch.setattr(server.sys, "version_info", (3, 10, 4))
    with pytest.raises(ValueError, match=r"expected Python 3\.11 or newer, got 3\.10\.4"):
        server.check_packages()

# SPDX-License-Identifier: BSD-3-Clause
"""`fastdet view` in a real browser: filters, counts, one picture large, names that are HTML."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.data_sets import SAMPLE
from tests.viewing.made_up import make_up

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<img src=x onerror=alert(1)> :red[a] [b](http://192.0.2.1) ![c](http://192.0.2.1/c.png)"
WAIT = 60_000  # ms, of a busy machine

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
    pytest.mark.slow,
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The sample with a class and a picture whose names are HTML and Markdown."""
    folder = tmp_path / "<b>data<b>"
    shutil.copytree(SAMPLE / "images", folder / "images")
    content = json.loads((SAMPLE / "val.json").read_text())
    image = content["images"][0]
    name = f"{HOSTILE.replace('/', '')}.jpg"
    (folder / "images" / image["file_name"]).rename(folder / "images" / name)
    image["file_name"] = name
    content["categories"][1]["name"] = HOSTILE
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "images" / "110.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def server(data: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    results = make_up(data / "val.json", tmp_path / "a.json", 0)
    command = [sys.executable, "-m", "fastdet.cli", "view", str(data), "--no-open"]
    process = subprocess.Popen(
        [*command, "--detections", str(results)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    address = process.stdout.readline().split()
    assert address, process.communicate()
    yield process, address[0]
    process.kill()
    process.wait()


@pytest.fixture
def wrong() -> list[str]:
    """Errors in the page, and what it asks of other machines."""
    return []


@pytest.fixture
def page(server: tuple[subprocess.Popen[str], str], wrong: list[str]) -> Iterator["Page"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(WAIT)
        sync_api.expect.set_options(timeout=WAIT)
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda request: wrong.extend(_elsewhere(request.url)))
        page.goto(server[1])
        yield page
        browser.close()


def _elsewhere(url: str) -> list[str]:
    return [] if url.startswith(("http://127.0.0.1:", "data:", "blob:")) else [url]


def numbers(page: "Page") -> dict[str, list[int]]:
    """The numbers of each kind that the page shows."""
    kinds = page.locator(".kinds > div")
    return {
        str(kinds.nth(i).get_attribute("id")): [
            int(t) for t in kinds.nth(i).locator("b").all_inner_texts()
        ]
        for i in range(kinds.count())
    }


def settle(page: "Page") -> None:
    """Waits until the page has been drawn anew."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


def test_filters_counts_and_a_picture(
    page: "Page", server: tuple[subprocess.Popen[str], str], wrong: list[str]
) -> None:
    expect = sync_api.expect
    tiles, line = page.locator(".grid button"), page.get_by_text("of 25 pictures")
    expect(tiles).to_have_count(24)
    expect(line).to_contain_text("25 of 25 pictures, 223 objects")
    expect(tiles.first).to_contain_text("<img src=x onerror=alert(1)>")
    expect(tiles.nth(2)).to_contain_text("110.png")
    expect(tiles.nth(2)).to_contain_text("cannot be read")
    settle(page)
    before = numbers(page)
    assert before["kind-missed"][0] > 0

    page.get_by_role("combobox", name="Class").click()
    page.get_by_role("option", name=HOSTILE).click()
    page.keyboard.press("Escape")
    line.click()  # the list closes for good once it has lost the focus
    expect(line).not_to_contain_text("223 objects")
    settle(page)
    of_class = numbers(page)
    assert 0 < of_class["kind-missed"][0] < before["kind-missed"][0]
    assert 0 < of_class["kind-correct"][0] < before["kind-correct"][0]

    page.get_by_role("button", name="missed").click()
    expect(line).to_contain_text(f"{of_class['kind-missed'][0]} objects, 0 detections")
    expect(line).not_to_contain_text("25 of 25")
    settle(page)
    assert numbers(page) == of_class
    assert "kind=missed" in page.url
    shown = tiles.count()
    assert 0 < shown < 24
    name = tiles.last.locator(".name").inner_text()

    tiles.last.click()
    expect(page.get_by_test_id("stImage").locator("img")).to_be_visible()
    expect(page.get_by_test_id("stDataFrame")).to_be_visible()
    expect(page.get_by_text(name, exact=True)).to_be_visible()
    assert "picture=" in page.url
    page.reload()  # the address has all
    expect(page.get_by_text(name, exact=True)).to_be_visible()
    settle(page)
    page.get_by_test_id("stBaseButton-secondary").first.click()
    expect(tiles).to_have_count(shown)
    settle(page)
    assert not wrong

    process, _ = server
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "ended"
    assert err == ""

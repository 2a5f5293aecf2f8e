# SPDX-License-Identifier: BSD-3-Clause
"""Takes the picture of docs/viewing.md: `python -m tests.viewing.picture`.

It starts `fastdet view` on the sample of the tests with made-up detections, and needs Chromium.
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tests.data_sets import SAMPLE
from tests.viewing.made_up import make_up

OUT = Path(__file__).resolve().parents[2] / "docs" / "images" / "view.webp"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = make_up(SAMPLE / "val.json", Path(folder) / "detections.json", 0)
        command = [sys.executable, "-m", "fastdet.cli", "view", str(SAMPLE), "--no-open"]
        server = subprocess.Popen(
            [*command, "--detections", str(results)], stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        try:
            server.stdout.readline()
            address = server.stdout.readline().split()[0]
            take(f"{address}?masks=false")
        finally:
            server.terminate()
            server.wait()
    print(OUT)


def take(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(address)
        expect(page.locator(".grid button").first).to_be_visible(timeout=120_000)
        page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
        page.wait_for_timeout(2000)  # the animations of the widgets
        shot = Image.open(io.BytesIO(page.screenshot()))
        shot.convert("RGB").save(OUT, "WEBP", quality=85)
        browser.close()


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: BSD-3-Clause
"""The page in Streamlit's own test harness, without a server and a browser."""

from pathlib import Path
from typing import Any

import pytest

from fastdet.evaluation import pictures
from fastdet.viewing import drawing, page, server
from fastdet.viewing.collection import open_collection
from tests.data_sets import SAMPLE
from tests.viewing.made_up import make_up

testing = pytest.importorskip("streamlit.testing.v1", reason="the extra view is not installed")
PAGE = str(Path(page.__file__))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("results")
    return [make_up(SAMPLE / "val.json", folder / f"{name}.json", i) for i, name in enumerate("ab")]


def run(**query: str):
    app = testing.AppTest.from_file(PAGE, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def text(app) -> str:
    return " ".join(element.value for element in app.markdown)


def test_the_page_without_detections() -> None:
    server.show(open_collection(SAMPLE, "val"))
    app = run(picture="no such id")
    assert "**25** of 25 pictures, **223** objects" in text(app)
    assert "detections" not in text(app)
    assert not app.radio
    app.text_input(key="name").set_value("<b>").run()
    assert [element.value for element in app.info] == ["No picture has all that is asked for."]


def test_a_picture_with_two_files_of_detections(files: list[Path]) -> None:
    server.show(open_collection(SAMPLE, "val", files))
    opened = run(picture="104")
    assert "**104\\.png**" in text(opened)
    assert len(opened.dataframe) == 2
    assert [button.label for button in opened.button] == ["Back", "Previous", "Next"]
    opened.button[2].click().run()
    assert "**110\\.png**" in text(opened)


def test_only_the_pictures_of_the_shown_page_are_read(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = pictures.read_pixels

    def counted(path: Path, *arguments: Any, **options: Any):
        opened.append(path.name)
        return read(path, *arguments, **options)

    monkeypatch.setattr(pictures, "read_pixels", counted)
    drawing.small.cache_clear()
    server.show(open_collection(SAMPLE, "val", files[:1]))
    assert opened == []
    names = server.shown().annotations.file_names
    app = run()
    assert sorted(opened) == sorted(names[: page.ON_A_PAGE])
    app.text_input(key="name").set_value(names[0]).run()
    assert len(opened) == page.ON_A_PAGE  # another filter decodes nothing again
    opened.clear()
    run(page="2")
    assert opened == names[page.ON_A_PAGE :]


def test_markdown_in_names_is_text() -> None:
    assert page.plain("[a](b)  :red[c]\n<i>") == r"\[a\]\(b\) \:red\[c\] \<i\>"

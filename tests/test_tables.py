# SPDX-License-Identifier: BSD-3-Clause
"""The pages say what the result files say."""

from pathlib import Path

import pytest

from benchmarks.readme_tables import FRONT_ROWS, PAGES, TABLES, filled
from benchmarks.results import FOLDER


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tables_are_those_of_the_result_files(page: Path) -> None:
    text = page.read_text()
    assert "<!-- table:" in text
    assert filled(text) == text


def test_every_page_with_a_table_is_filled() -> None:
    for page in FOLDER.glob("*.md"):
        assert (page in PAGES) == ("<!-- table:" in page.read_text()), page.name


def test_the_front_table_is_part_of_the_long_one() -> None:
    front, long = (TABLES[name]().splitlines() for name in ("cpu_ops_front", "cpu_ops"))
    assert len(front) == 2 + len(FRONT_ROWS) + 2  # with the header, and where it was measured
    assert set(front) <= set(long)

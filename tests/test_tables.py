# SPDX-License-Identifier: BSD-3-Clause
"""The READMEs say what the result files say."""

from pathlib import Path

import pytest

from benchmarks.readme_tables import READMES, filled


@pytest.mark.parametrize("readme", READMES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tables_are_those_of_the_result_files(readme: Path) -> None:
    text = readme.read_text()
    assert "<!-- table:" in text
    assert filled(text) == text

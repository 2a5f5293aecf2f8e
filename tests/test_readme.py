# SPDX-License-Identifier: BSD-3-Clause
import re

from benchmarks.readme_tables import README, tables


def test_tables_are_those_of_the_result_files():
    text = README.read_text()
    assert tables(text) == text


def test_snippets_run():
    for snippet in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(snippet, "README.md", "exec"), {})

# SPDX-License-Identifier: BSD-3-Clause
"""The lines of a text file that others wrote: of any system, with a byte order mark or without."""

import re
from pathlib import Path


def text_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without blank ones at its end.

    Raises:
        ValueError: it is no text in UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}") from error
    # Not splitlines(), which divides a name at the line ends of Unicode too.
    return [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]

# SPDX-License-Identifier: BSD-3-Clause
"""Names from files in the terminal: a class or a file may have any name."""

from rich import markup


def escape(text: str) -> str:
    """Text that rich prints as it is; what is not printable becomes a replacement character."""
    printable = (c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return markup.escape("".join(printable))

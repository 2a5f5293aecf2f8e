# SPDX-License-Identifier: BSD-3-Clause
"""The format of measured numbers on the screen, in a README and in a report."""


def three_digits(value: float) -> str:
    """Three significant digits; from 100 on an integer with commas between thousands."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.3g}"

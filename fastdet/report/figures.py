# SPDX-License-Identifier: BSD-3-Clause
"""How a measured number reads, on the screen, in a README and in a report."""


def three_digits(value: float) -> str:
    """Three significant digits; from 100 on a whole number with its thousands set apart."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 0.001 else f"{value:.3g}"

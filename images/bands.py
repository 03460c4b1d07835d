"""Slices of rows: what computes in floating point holds only a band of a large image at a time."""

from collections.abc import Iterator

VALUES = 2**18  # of a band: 2 MiB in float64, which stay in a processor's cache


def bands(rows: int, values_per_row: int, least: int = 1) -> Iterator[slice]:
    """Slices that cover `rows` in order, of `VALUES` numbers each, or of `least` rows."""
    count = max(least, VALUES // max(1, values_per_row))
    for first in range(0, rows, count):
        yield slice(first, min(first + count, rows))

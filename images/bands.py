"""Slices of rows: what computes in floating point holds only a band of a large image at a time."""

from collections.abc import Callable, Iterator

import numpy as np

VALUES = 2**18  # of a band: 2 MiB in float64, which stay in a processor's cache


def bands(rows: int, values_per_row: int, least: int = 1) -> Iterator[slice]:
    """Slices that cover `rows` in order, of `VALUES` numbers each, or of `least` rows."""
    count = max(least, VALUES // max(1, values_per_row))
    for first in range(0, rows, count):
        yield slice(first, min(first + count, rows))


def in_bands(convert: Callable[..., np.ndarray], *images: np.ndarray) -> np.ndarray:
    """What `convert` makes of images of the same height; the numbers on the way take no memory."""
    whole = np.empty(0)
    for band in bands(len(images[0]), images[0][0].size):
        part = convert(*(image[band] for image in images))
        if band.start == 0:
            whole = np.empty((len(images[0]), *part.shape[1:]), part.dtype)
        whole[band] = part
    return whole

"""Images at another size: MATLAB's bicubic bit for bit, and blocks of nearest neighbours."""

import math

import numpy as np
from PIL import Image

from images.bands import bands


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """MATLAB's `imresize(image, scale, 'bicubic')`, bit for bit.

    Antialiased when shrinking, borders reflected, float64, rows before columns. MATLAB rounds
    after each of the two; ports that round once at the end differ in a tenth of the pixels.

    Args:
        image: uint8 or uint16, (H, W) or (H, W, C).
        scale: above 0.

    Returns:
        The same dtype, (ceil(H * scale), ceil(W * scale)) and channels as given.
    """
    height, width = (math.ceil(side * scale) for side in image.shape[:2])
    rows = _contributions(image.shape[0], scale, height)
    return _resized(image, rows, _contributions(image.shape[1], scale, width))


def imresize_to(image: np.ndarray, size: tuple[int, int], wrap: bool = False) -> np.ndarray:
    """MATLAB's `imresize(image, size, 'bicubic')`: the same, to a size in pixels.

    What shrinks more, rows or columns, comes first there.

    Args:
        image: uint8 or uint16, (H, W) or (H, W, C).
        size: height and width of the result.
        wrap: the image's opposite borders meet, and so do the result's.
    """
    sides = zip(image.shape, size, strict=False)
    rows, columns = (_contributions(given, made / given, made, wrap) for given, made in sides)
    if image.shape[1] * size[0] <= image.shape[0] * size[1]:  # rows shrink more, or alike
        return _resized(image, rows, columns)
    return _resized(image.swapaxes(0, 1), columns, rows).swapaxes(0, 1)


def _resized(
    image: np.ndarray,
    rows_of: tuple[np.ndarray, np.ndarray],
    columns_of: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """What `_contributions` say, rows first."""
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"imresize works on uint8 and uint16 images, not on {image.dtype}")
    (row_weights, rows), (column_weights, columns) = rows_of, columns_of
    result = np.empty((len(rows), len(columns), *image.shape[2:]), image.dtype)
    for band in bands(len(rows), image[0].size):
        # Each pass combines rows; for the second, the columns become rows.
        lines = _combine(image, row_weights[band], rows[band])
        turned = _combine(np.ascontiguousarray(lines.swapaxes(0, 1)), column_weights, columns)
        result[band] = turned.swapaxes(0, 1)
    return result


def _combine(source: np.ndarray, weights: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Weighted sums of rows, tap after tap, rounded half up: (L, ...) to (output, ...).

    Args:
        source: uint8 or uint16.
        weights, indices: (output, taps).
    """
    top = np.iinfo(source.dtype).max
    result = np.empty((len(weights), *source.shape[1:]), source.dtype)
    for band in bands(len(weights), math.prod(source.shape[1:])):
        total = np.zeros(result[band].shape)
        for weight, index in zip(weights[band].T, indices[band].T, strict=True):
            total += weight.reshape(-1, *[1] * (source.ndim - 1)) * source[index]
        result[band] = np.clip(total, 0, top, out=total) + 0.5  # the cast cuts off what is left
    return result


def _contributions(
    length: int, scale: float, size: int, wrap: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """How much which input pixels count for each of `size` output pixels: (size, taps) twice."""
    stretch = min(scale, 1.0)  # below 1 the kernel widens: that is the antialiasing
    taps = math.ceil(4 / stretch) + 2
    # Centres of the output pixels in input coordinates, both counted from 1 as in MATLAB.
    centre = np.arange(1, size + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - 2 / stretch)
    position = first[:, None] + np.arange(taps)
    weights = stretch * _cubic(stretch * (centre[:, None] - position))
    weights /= weights.sum(axis=1, keepdims=True)
    beyond = np.arange(length)  # the pixels, and those that follow them, over and over
    if not wrap:
        beyond = np.concatenate((beyond, beyond[::-1]))
    indices = beyond[(position.astype(np.int64) - 1) % len(beyond)]
    used = weights.any(axis=0)
    return weights[:, used], indices[:, used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE ASSP 29, 1981, equation 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def whole_multiple(image: np.ndarray, scale: int) -> np.ndarray:
    """The image less the pixels at the right and the bottom that make no whole LR pixel."""
    height, width = (side // scale * scale for side in image.shape[:2])
    return image[:height, :width]


def enlarge_nearest(image: np.ndarray, scale: int) -> np.ndarray:
    """Each pixel as a block of scale x scale: what a network is given, at the size it answers."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def part_by_nearest(
    image: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> np.ndarray:
    """What `window` shows of uint8, (H, W, 3) or (H, W), that is enlarged by nearest neighbours.

    Args:
        size: height and width of the whole result.
        window: rows and columns of it, with their ends.
    """
    rows, columns = window
    down, across = (given / made for given, made in zip(image.shape[:2], size, strict=True))
    box = (columns.start * across, rows.start * down, columns.stop * across, rows.stop * down)
    shown = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(Image.fromarray(image).resize(shown, Image.Resampling.NEAREST, box))

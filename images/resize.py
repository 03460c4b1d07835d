"""Images at another size: MATLAB's bicubic bit for bit, and blocks of nearest neighbours."""

import math

import numpy as np
from PIL import Image


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
    if image.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"imresize works on uint8 and uint16 images, not on {image.dtype}")
    top = np.iinfo(image.dtype).max
    for axis in (0, 1):
        weights, indices = _contributions(image.shape[axis], scale)
        source = image.swapaxes(0, axis)
        result = np.zeros((len(weights), *source.shape[1:]))
        for tap in range(weights.shape[1]):
            weight = weights[:, tap].reshape(-1, *[1] * (source.ndim - 1))
            result += weight * source[indices[:, tap]]
        image = np.floor(np.clip(result, 0, top) + 0.5).astype(image.dtype).swapaxes(0, axis)
    return np.ascontiguousarray(image)


def _contributions(length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Which input pixels make each output pixel, and how much each counts: (output, taps) twice."""
    stretch = min(scale, 1.0)  # below 1 the kernel widens: that is the antialiasing
    taps = math.ceil(4 / stretch) + 2
    # Centres of the output pixels in input coordinates, both counted from 1 as in MATLAB.
    centre = np.arange(1, math.ceil(length * scale) + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - 2 / stretch)
    position = first[:, None] + np.arange(taps)
    weights = stretch * _cubic(stretch * (centre[:, None] - position))
    weights /= weights.sum(axis=1, keepdims=True)
    mirror = np.concatenate((np.arange(length), np.arange(length)[::-1]))
    indices = mirror[(position.astype(np.int64) - 1) % len(mirror)]
    used = weights.any(axis=0)
    return weights[:, used], indices[:, used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5 (IEEE ASSP 29, 1981, equation 15)."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def enlarge_nearest(image: np.ndarray, scale: int) -> np.ndarray:
    """Each pixel as a block of scale x scale: what a network is given, at the size it answers."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def resize_nearest(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The same at any scale: to the height and width of another image; uint8, (H, W, 3)."""
    size = (other.shape[1], other.shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))

"""Pixels by value: any number of bits, alpha that is multiplied in, inks and L*a*b*, to RGB."""

import math
from typing import NamedTuple

import imagecodecs
import numpy as np
from PIL import ImageCms

from images.bands import bands, in_bands
from images.colour import SRGB_PROFILE
from images.kinds import ImageError

LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


class Pixels(NamedTuple):
    """A decoded image.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16.
        alpha: (H, W) of the same dtype, or None for an opaque image.
        gray: there is one channel of colour; `rgb` has it three times.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False


def from_channels(colour: np.ndarray, alpha: np.ndarray | None = None) -> Pixels:
    """Of gray (H, W, 1) or RGB (H, W, 3), and alpha (H, W)."""
    gray = colour.shape[2] == 1
    return Pixels(np.repeat(colour, 3, -1) if gray else colour, alpha, gray)


def from_array(pixels: np.ndarray) -> Pixels:
    """Of (H, W) or (H, W, C): gray, gray and alpha, RGB or RGBA."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (2, 4):
        return from_channels(pixels[..., :-1], pixels[..., -1])
    return from_channels(pixels)


def is_neutral(rgb: np.ndarray, alpha: np.ndarray | None) -> bool:
    """Whether (H, W, 3) has no colour where alpha, (H, W), leaves something to see."""
    for band in bands(len(rgb), rgb[0].size):
        tinted = (rgb[band] != rgb[band][..., :1]).any(-1)
        if alpha is not None:
            tinted &= alpha[band] > 0
        if tinted.any():
            return False
    return True


def colourfulness(rgb: np.ndarray) -> float:
    """The mean difference between the channels of a pixel, in 255ths."""
    spread = sum(float(np.ptp(rgb[band], -1).sum()) for band in bands(len(rgb), rgb[0].size))
    return spread * 255 / np.iinfo(rgb.dtype).max / math.prod(rgb.shape[:2])


def alpha_of(pixels: Pixels) -> np.ndarray:
    """(H, W), full where there is none."""
    opaque = np.iinfo(pixels.rgb.dtype).max
    return np.full_like(pixels.rgb[..., 0], opaque) if pixels.alpha is None else pixels.alpha


def scaled(levels: np.ndarray, highest: int, inverted: bool = False) -> np.ndarray:
    """Each level to the nearest of 8 bits, or of 16 where `highest` takes more than 8.

    Args:
        levels: (H, W, ...), unsigned.
        highest: the level that is full: 4095 for 12 bits.
        inverted: 0 is full, and `highest` nothing.

    Raises:
        ImageError: a level is above the highest.
    """
    dtype = np.dtype(np.uint8 if highest <= 255 else np.uint16)
    top = np.iinfo(dtype).max
    if highest == top:
        levels = levels.astype(dtype, copy=False)
        return ~levels if inverted else levels
    if levels.size and levels.max() > highest:
        raise ImageError(f"a pixel has level {levels.max()} of at most {highest}; is it damaged?")
    table = np.rint(np.linspace(0, top, highest + 1)).astype(dtype)
    return in_bands((table[::-1] if inverted else table).__getitem__, levels)


def straight(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour (H, W, C) that alpha (H, W) was multiplied into, as it was before; 0 under alpha 0."""
    top = np.iinfo(colour.dtype).max

    def divide(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
        opacity = np.maximum(alpha, 1)[..., None].astype(np.uint32)  # which 65535 squared fits
        quotient = (colour.astype(np.uint32) * top + opacity // 2) // opacity
        return np.where(alpha[..., None] > 0, np.minimum(quotient, top), 0).astype(colour.dtype)

    return in_bands(divide, colour, alpha)


def rgb_of_inks(inks: np.ndarray, profile: bytes | None) -> np.ndarray:
    """CMYK (H, W, 4) to sRGB, by the profile where there is one: ink alone names no colour."""
    if profile:
        try:
            return imagecodecs.cms_transform(
                np.ascontiguousarray(inks),
                profile,
                SRGB_PROFILE,
                colorspace="cmyk",
                outcolorspace="rgb",
            )
        except (imagecodecs.CmsError, ValueError):  # one that is broken is as good as none
            pass
    top = np.iinfo(inks.dtype).max

    def multiply(inks: np.ndarray) -> np.ndarray:
        light = top - inks.astype(np.uint32)
        return ((light[..., :3] * light[..., 3:] + top // 2) // top).astype(inks.dtype)

    return in_bands(multiply, inks)


def rgb_of_lab(levels: np.ndarray, full: int, signed: bool) -> np.ndarray:
    """L*a*b* of illuminant D50, (H, W, 3) of uint8 or uint16, to sRGB of the same dtype.

    Args:
        levels: a* and b* from -128 on, in steps of 1 (of 1/256 in uint16).
        full: the level of L* = 100.
        signed: 0 stands for a* and b* of 0, in two's complement; otherwise the middle does.
    """
    step = 1 if levels.dtype == np.uint8 else 256

    def look_up(levels: np.ndarray) -> np.ndarray:
        lab = levels.astype(np.float32)
        lab[..., 0] *= 100 / full
        lab[..., 1:] = (levels[..., 1:] ^ (128 * step if signed else 0)) / step - 128.0
        return imagecodecs.cms_transform(
            lab, LAB, SRGB_PROFILE, colorspace="lab", outcolorspace="rgb", outdtype=levels.dtype
        )

    return in_bands(look_up, levels)

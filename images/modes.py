"""Pillow's images by value: each mode becomes right pixels or a clear refusal.

`Image.convert` alone clips 16 bits to 8 (all that is above 255 becomes white).
"""

import numpy as np
from PIL import Image

from images.bands import bands
from images.kinds import ImageError
from images.levels import Pixels, from_array, from_channels, rgb_of_inks, rgb_of_lab, straight


def pixels_of(image: Image.Image) -> Pixels:
    """8 bits a channel, or 16 where the image has them.

    Raises:
        ImageError: nothing says which of its numbers is white.
    """
    image.load()  # which may change the mode
    mode = image.mode
    if mode.startswith("I;16"):
        return from_array(np.array(image).astype(np.uint16))
    if mode.startswith(("I", "F")):
        raise ImageError("it has 32 bits a channel without a white; save it with 8 or 16")
    if mode in ("La", "RGBa"):
        pixels = np.array(image)
        return from_channels(straight(pixels[..., :-1], pixels[..., -1]), pixels[..., -1])
    if mode == "CMYK":
        return Pixels(rgb_of_inks(np.array(image), image.info.get("icc_profile")))
    if mode == "LAB":
        return Pixels(rgb_of_lab(np.array(image), full=255, signed=True))
    gray = mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        return Pixels(_converted(image, "RGB"), None, gray)
    rgba = _converted(image, "RGBA")
    return Pixels(rgba[..., :3], rgba[..., 3], gray)


def has_inks(image: Image.Image) -> bool:
    """Whether its numbers are ink: a JPEG 2000 file may leave it to the profile to say so."""
    profile = image.info.get("icc_profile") or b""
    by_profile = image.format == "JPEG2000" and image.mode == "RGBA" and profile[16:20] == b"CMYK"
    return image.mode == "CMYK" or by_profile


def _converted(image: Image.Image, mode: str) -> np.ndarray:
    """(H, W, channels), uint8. Of a whole image, Pillow's conversions would hold three copies."""
    pixels = np.empty((image.height, image.width, len(mode)), np.uint8)
    for band in bands(image.height, image.width * len(mode)):
        part = image.crop((0, band.start, image.width, band.stop))
        pixels[band] = np.asarray(part.convert(mode))
    return pixels

"""Pictures side by side, each under its label."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def labelled_strip(pictures: dict[str, np.ndarray], side: int) -> np.ndarray:
    """Pictures of one size side by side, each under its label.

    Of larger pictures, the `side` x `side` pixels around the centre.
    """
    font = ImageFont.load_default(size=14)
    gap, bar = 4, 22
    window = centre_window(next(iter(pictures.values())).shape[:2], side)
    cropped = {label: picture[window] for label, picture in pictures.items()}
    height, width = next(iter(cropped.values())).shape[:2]
    cell = max(width, *(math.ceil(font.getlength(label)) for label in pictures))
    strip = Image.new("RGB", ((cell + gap) * len(pictures) - gap, height + bar), "white")
    draw = ImageDraw.Draw(strip)
    for i, (label, picture) in enumerate(cropped.items()):
        left = i * (cell + gap)
        draw.text((left + cell / 2, bar / 2), label, fill="black", font=font, anchor="mm")
        strip.paste(Image.fromarray(picture), (left + (cell - width) // 2, bar))
    return np.array(strip)


def centre_window(size: tuple[int, ...], side: int) -> tuple[slice, slice]:
    """The `side` x `side` pixels around the centre of that height and width, or what there is."""
    height, width = size
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return slice(top, min(height, top + side)), slice(left, min(width, left + side))

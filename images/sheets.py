"""A sheet of samples: pictures side by side with words beside them, two samples in a row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 256  # smaller pictures are enlarged to about that many pixels
COLUMNS = 2
GAP, LINE, FONT_SIZE = 8, 20, 15  # pixels


@dataclass(frozen=True)
class Entry:
    """One sample: its pictures by their labels, and what is written beside them, line by line."""

    pictures: dict[str, np.ndarray]
    words: list[str]


def draw_sheet(title: str, entries: Sequence[Entry]) -> np.ndarray:
    """All entries below a title, each pixel of a picture as a square of pixels.

    Args:
        title: one line.
        entries: at least one; all have the same labels, and square pictures, uint8 (side, side, 3),
            of sides that divide the largest.

    Returns:
        uint8, (H, W, 3).
    """
    font = ImageFont.load_default(size=FONT_SIZE)
    largest = max(len(picture) for picture in entries[0].pictures.values())
    side = largest * max(1, round(SIDE / largest))
    lines = max(len(entry.words) for entry in entries)
    text = max(math.ceil(font.getlength(line)) for entry in entries for line in entry.words)
    width = len(entries[0].pictures) * (side + GAP) + text + 4 * GAP
    height = LINE + max(side, lines * LINE) + 2 * GAP
    rows = -(-len(entries) // COLUMNS)
    columns = min(COLUMNS, len(entries))
    whole = max(columns * width, math.ceil(font.getlength(title))) + GAP
    sheet = Image.new("RGB", (whole, LINE + GAP + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for i, entry in enumerate(entries):
        left, top = GAP + i % COLUMNS * width, LINE + 2 * GAP + i // COLUMNS * height
        for label, picture in entry.pictures.items():
            draw.text((left, top), label, fill="black", font=font)
            enlarged = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, top + LINE))
            left += side + GAP
        for number, line in enumerate(entry.words):
            draw.text((left, top + LINE * (number + 1)), line, fill="black", font=font)
    return np.array(sheet)

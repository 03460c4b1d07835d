"""Animated PNG: each frame as it is seen, drawn on what those before it have left.

Pillow's frames are right where each is whole and opaque. Of what is half clear it mixes alpha as
well, it clears to black where there is no alpha, and it goes back to the frame that should go.
"""

import io
from collections.abc import Iterator

import imagecodecs
import numpy as np
from PIL import Image

from images.kinds import ImageError, NoLimit
from images.levels import Pixels, from_array, with_alpha
from images.modes import pixels_of
from images.png import BACKGROUND, OVER, PREVIOUS, Control, pictures_in, still_of


def apng_frames(png: bytes) -> Iterator[tuple[Pixels, float | None]]:
    """All pictures of a file, whole, and how many milliseconds each is shown.

    None stands for the time of a first picture that is for programs which show no animation. All
    have alpha, or none has: where the canvas is cleared, something is clear.

    Raises:
        ImageError: a frame does not lie within the picture.
    """
    controls = [control for control, _ in pictures_in(png)]
    cleared = controls[0] is None or controls[0].dispose == PREVIOUS
    cleared |= any(control.dispose == BACKGROUND for control in controls if control)
    canvas: np.ndarray | None = None
    for number, (control, parts) in enumerate(pictures_in(png)):
        drawn = _decoded(still_of(png, control, parts))
        opaque = drawn.alpha is None and not cleared
        if control is None:
            yield (drawn if opaque else _with_alpha(drawn)), None
            continue
        if canvas is None:
            canvas = _clear(png, drawn.rgb.dtype)
        area = _area(canvas, control)
        before = area.copy()
        _draw(area, np.dstack(with_alpha(drawn)[:2]), control)
        alpha = None if opaque else canvas[..., 3].copy()
        yield Pixels(canvas[..., :3].copy(), alpha, drawn.gray), control.milliseconds
        if control.dispose == PREVIOUS and number > 0:
            area[:] = before
        elif control.dispose in (BACKGROUND, PREVIOUS):
            area[:] = 0


def _clear(png: bytes, dtype: np.dtype) -> np.ndarray:
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    return np.zeros((height, width, 4), dtype)


def _area(canvas: np.ndarray, control: Control) -> np.ndarray:
    """What a frame is drawn on."""
    bottom, right = control.top + control.height, control.left + control.width
    if bottom > canvas.shape[0] or right > canvas.shape[1]:
        raise ImageError("it does not lie within the picture; is the file damaged?")
    return canvas[control.top : bottom, control.left : right]


def _with_alpha(pixels: Pixels) -> Pixels:
    return with_alpha(pixels)._replace(gray=pixels.gray)


def _decoded(png: bytes) -> Pixels:
    depth, colour = png[24:26]
    if colour == 0 and depth < 8 and b"tRNS" in png:  # Pillow compares the key with scaled levels
        return from_array(imagecodecs.png_decode(png))
    with NoLimit(), Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return pixels_of(image)


def _draw(area: np.ndarray, drawn: np.ndarray, control: Control) -> None:
    """RGBA on RGBA, whose colours have no alpha multiplied in."""
    if control.blend != OVER:
        area[:] = drawn
        return
    top = np.uint64(np.iinfo(area.dtype).max)
    above, below = drawn[..., 3:].astype(np.uint64), area[..., 3:].astype(np.uint64)
    own, other = above * top, (top - above) * below
    total = own + other
    mixed = (drawn[..., :3] * own + area[..., :3] * other + total // 2) // np.maximum(total, 1)
    area[..., 3:] = (total + top // 2) // top
    area[..., :3] = mixed

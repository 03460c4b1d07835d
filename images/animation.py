"""Frames of PNG and GIF as they are seen, each drawn on what those before it have left.

Pillow is right where every frame is whole and opaque. Otherwise it blends alpha like a colour,
fills with a colour what is clear in every browser, and restores what should have been removed.
"""

import io
from collections.abc import Iterator

import imagecodecs
import numpy as np
from PIL import Image

from images.bands import in_bands
from images.gif import stills_in
from images.kinds import ImageError, NoLimit, refuse_too_large
from images.levels import Pixels, alpha_of, from_array
from images.modes import pixels_of
from images.png import (
    BLEND_OVER,
    DISPOSE_BACKGROUND,
    DISPOSE_PREVIOUS,
    Control,
    colours_in,
    pictures_in,
    still_of,
)

KEEP, CLEAR, RESTORE = range(3)  # what becomes of a frame's area once it was shown
OF_PNG = {DISPOSE_BACKGROUND: CLEAR, DISPOSE_PREVIOUS: RESTORE}
OF_GIF = {2: CLEAR, 3: RESTORE, 4: RESTORE}  # 4 is what some programs write for 3


class Canvas:
    """What an animation's frames are drawn on, one after the other. At first all of it is clear.

    Args:
        width, height: in pixels.
        dtype: of the frames.
    """

    def __init__(self, width: int, height: int, dtype: np.dtype):
        self.rgba = np.zeros((height, width, 4), dtype)

    def show(self, frame: Pixels, left: int, top: int, over: bool, after: int) -> np.ndarray:
        """The whole picture with a frame, RGBA, (height, width, 4).

        Args:
            frame: what of it is beyond the canvas is cut off.
            left, top: where it lies.
            over: it is drawn on what is there, which shows where it is clear; or else in its place.
            after: KEEP, CLEAR or RESTORE.
        """
        height, width = frame.rgb.shape[:2]
        area = self.rgba[top : top + height, left : left + width]
        drawn = np.concatenate((frame.rgb, alpha_of(frame)[..., None]), -1)
        drawn = drawn[: area.shape[0], : area.shape[1]]
        before = area.copy() if after == RESTORE else 0
        if area.size:
            area[:] = in_bands(_over, area, drawn) if over and frame.alpha is not None else drawn
        shown = self.rgba.copy()
        if after != KEEP:
            area[:] = before
        return shown


def _over(below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """RGBA on RGBA, (h, w, 4), in which alpha is not multiplied into the colours."""
    top = np.uint64(np.iinfo(above.dtype).max)
    opacity, behind = above[..., 3:].astype(np.uint64), below[..., 3:].astype(np.uint64)
    own, other = opacity * top, (top - opacity) * behind
    total = own + other
    colour = (above[..., :3] * own + below[..., :3] * other + total // 2) // np.maximum(total, 1)
    alpha = (total + top // 2) // top
    return np.concatenate((colour, alpha), -1).astype(above.dtype)


def png_frames(png: bytes) -> Iterator[tuple[Pixels, float | None]]:
    """All pictures of an APNG, whole, and how many milliseconds each is shown.

    None stands for the time of a first picture that is for programs which show no animation. All
    have alpha, or none has: where the canvas is cleared, something may be clear.

    Raises:
        ImageError: a frame does not lie within the picture.
    """
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    colours, pictures = colours_in(png), list(pictures_in(png))
    controls = [control for control, _ in pictures if control]
    covered = all(control.dispose != DISPOSE_BACKGROUND for control in controls)
    for first in controls[:1]:  # before which the canvas is clear
        covered &= first[:4] == (width, height, 0, 0) and first.dispose != DISPOSE_PREVIOUS
    canvas: Canvas | None = None
    for control, parts in pictures:
        if control:
            _refuse_beyond(control, width, height)
        frame = _decoded_png(still_of(png, colours, control, parts))
        opaque = covered and frame.alpha is None
        if control is None:
            yield Pixels(frame.rgb, None if opaque else alpha_of(frame), frame.gray), None
            continue
        canvas = canvas or Canvas(width, height, frame.rgb.dtype)
        over, after = control.blend == BLEND_OVER, OF_PNG.get(control.dispose, KEEP)
        shown = canvas.show(frame, control.left, control.top, over, after)
        alpha = None if opaque else shown[..., 3]
        yield Pixels(shown[..., :3], alpha, frame.gray), control.milliseconds


def _refuse_beyond(control: Control, width: int, height: int) -> None:
    if control.left + control.width > width or control.top + control.height > height:
        raise ImageError("it does not lie within the picture; is the file damaged?")


def _decoded_png(png: bytes) -> Pixels:
    depth, colour = png[24:26]
    # Pillow compares the clear colour with scaled levels, and keeps 8 bits of 16.
    if depth == 16 or (colour == 0 and depth < 8 and b"tRNS" in png):
        return from_array(imagecodecs.png_decode(png))
    return _decoded(png, "PNG")


def _decoded(content: bytes, kind: str) -> Pixels:
    with NoLimit(), Image.open(io.BytesIO(content), formats=[kind]) as image:
        refuse_too_large(*image.size)  # which may be larger than the canvas
        return pixels_of(image)


def gif_frames(gif: bytes, width: int, height: int) -> Iterator[tuple[Pixels, float]]:
    """All frames of a GIF, whole and with alpha, and how many milliseconds each is shown.

    Args:
        gif: the file.
        width, height: of the canvas, which may be larger than the file says.
    """
    canvas = Canvas(width, height, np.dtype(np.uint8))
    for still in stills_in(gif):
        frame, after = _decoded(still.gif, "GIF"), OF_GIF.get(still.disposal, KEEP)
        shown = canvas.show(frame, still.left, still.top, True, after)
        yield Pixels(shown[..., :3], shown[..., 3]), still.milliseconds

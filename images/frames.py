"""What a file has besides its first picture: the frames of an animation, or pages."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL.ImageFile import ImageFile

from images.apng import apng_frames
from images.gif import has_end
from images.kinds import ImageError, reason_of
from images.levels import Pixels, with_alpha
from images.modes import pixels_of
from images.opening import Opened, opened
from images.png import whole_frames

FRAMES, PAGES = "frames", "pages"
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "FLI")  # Pillow's names


class Frame(NamedTuple):
    """A decoded one, the whole picture; milliseconds that it is shown, None: it is no frame."""

    pixels: Pixels
    duration: float | None


def first_of(count: int) -> str:
    """A remark on a file of several pictures."""
    return f"the first of {count} frames"


def first_frame(opening: Opened) -> Frame:
    """Of an animation; those of one file have the same channels."""
    if opening.file.format == "PNG":
        return Frame(*next(apng_frames(opening.content or b"")))
    return frame_of(opening.file)


def frame_of(file: ImageFile) -> Frame:
    """The one that Pillow is at."""
    pixels = pixels_of(file)
    if file.format == "GIF":  # of which any frame may be transparent, or coloured
        pixels = with_alpha(pixels)
    return Frame(pixels, file.info.get("duration", 0))


def plays_of(file: ImageFile) -> int:
    """How often the animation is shown; 0: for ever."""
    if file.format != "GIF":
        return file.info.get("loop", 0)
    again = file.info.get("loop")  # it counts how often it is shown again
    return 1 if again is None else again + 1 if again else 0


def later_frames(path: str | Path, count: int) -> Iterator[Frame | ImageError]:
    """All of an animation but the first; an error, the last of all, tells which are missing."""
    with opened(path) as opening:
        there, reason = _whole(opening, path, count)
        if opening.file.format == "PNG":
            later = islice(apng_frames(opening.content or b""), 1, there)
            frames: Iterator[Frame] = (Frame(*each) for each in later)
        else:
            frames = _by_pillow(opening.file, there)
        number = 1
        try:
            for frame in frames:
                number += 1
                yield frame
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            yield ImageError(f"frame {number + 1} of {count}: {reason_of(error)}")
            return
    if reason:
        yield ImageError(reason)


def _by_pillow(file: Any, count: int) -> Iterator[Frame]:
    """The same of a file of any other type, of which `count` frames are there."""
    canvas = file.size  # which Pillow enlarges for a GIF's frame that goes beyond it
    if file.format == "GIF" and file.mode == "L":
        _give_colours(file)
    for i in range(1, count):
        if file.format == "GIF":
            file.disposal_method = 0  # Pillow would keep that of the frame before
        file.seek(i)
        frame = frame_of(file)
        yield frame._replace(pixels=frame.pixels.within(*canvas))


def _give_colours(file: Any) -> None:
    """To a GIF whose first frame is gray: Pillow pastes the next one on it, which may have some."""
    file.load()
    if file.dispose:  # what it leaves behind, made of gray as well
        file.im.paste(file.dispose, file.dispose_extent)
        file.dispose = None
    key = file.info.pop("transparency", None)
    image = file.im if key is None else file.im.convert_transparent("LA", key)
    file.im = image.convert("RGB" if key is None else "RGBA")
    file._mode = file.im.mode


def _whole(opening: Opened, path: str | Path, count: int) -> tuple[int, str]:
    """How many frames are there, and the reason if some are not."""
    kind, there, cut = opening.file.format, count, False
    if kind == "PNG":
        there = min(count, whole_frames(opening.content or b""))
        cut = there < count
    if kind == "GIF":
        cut = not has_end(Path(path).read_bytes())
    if kind == "WEBP":
        cut = opening.content is not None  # it was mended
    return there, f"it is cut short after frame {there}; get it again" if cut else ""

"""What a file has besides its first picture: the frames of an animation, or pages."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from PIL.ImageFile import ImageFile

from images.animation import gif_frames, png_frames
from images.gif import gif_blocks
from images.kinds import TRUNCATED, ImageError, unread
from images.levels import Pixels
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


def first_frame(file: ImageFile, content: Callable[[], bytes]) -> Frame:
    """Of an animation; arguments as of `all_frames`.

    Raises:
        ImageError: none is there to the end.
    """
    for frame in all_frames(file, content):
        return frame
    raise ImageError(TRUNCATED)


def all_frames(file: ImageFile, content: Callable[[], bytes]) -> Iterator[Frame]:
    """Of an animation, from the first on. Those of one file have the same channels.

    Args:
        content: reads the whole file.
    """
    if file.format == "PNG":
        yield from (Frame(*each) for each in png_frames(content()))
    elif file.format == "GIF":  # Pillow's canvas is as large as its first frame, at least
        yield from (Frame(*each) for each in gif_frames(content(), *file.size))
    else:
        for i in range(getattr(file, "n_frames", 1)):
            file.seek(i)
            yield Frame(pixels_of(file), file.info.get("duration", 0))


def plays_of(file: ImageFile, content: Callable[[], bytes]) -> int:
    """How often the animation is shown; 0: for ever.

    Args:
        content: reads the whole file.
    """
    if file.format == "AVIF":
        return _plays_of_avif(content())
    if file.format != "GIF":
        return file.info.get("loop", 0)
    again = file.info.get("loop")  # it counts how often it is shown again
    return 1 if again is None else again + 1 if again else 0


def _plays_of_avif(avif: bytes) -> int:
    """By its track's duration in relation to that of its one edit, as libavif writes and reads it;
    Pillow says nothing of it (ISO 14496-12, 8.3.2 and 8.6.6)."""
    track, edits = avif.find(b"tkhd") + 4, avif.find(b"elst") + 4
    if track < 4 or edits < 4:
        return 0
    if not avif[edits + 3] & 1:  # it does not begin again
        return 1
    wide = avif[track] == 1  # numbers of 8 bytes
    whole = avif[track + 28 : track + 36] if wide else avif[track + 20 : track + 24]
    once = avif[edits + 8 : edits + 16] if avif[edits] == 1 else avif[edits + 8 : edits + 12]
    endless = whole == b"\xff" * len(whole) or not any(once)
    plays = 0 if endless else -(-int.from_bytes(whole, "big") // int.from_bytes(once, "big"))
    return min(plays, 0xFFFF)


def later_frames(path: str | Path, count: int) -> Iterator[Frame | ImageError]:
    """All of an animation but the first; an error, the last of all, tells which are missing.

    Raises:
        ImageError: one cannot be read now, for no fault of the file.
    """
    with opened(path) as opening:
        content = cache(lambda: opening.content or Path(path).read_bytes())
        there, reason = _whole(opening, content, count)
        number = 1
        try:
            for frame in islice(all_frames(opening.file, content), 1, there):
                number += 1
                yield frame
        except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
            yield unread(f"frame {number + 1} of {count}", error)
            return
    if reason:
        yield ImageError(reason)


def _whole(opening: Opened, content: Callable[[], bytes], count: int) -> tuple[int, str]:
    """How many frames are there, and the reason if some are not."""
    kind, there, cut = opening.file.format, count, False
    if kind == "PNG":
        there = min(count, whole_frames(content()))
        cut = there < count
    if kind == "GIF":
        kinds = [kind for kind, _ in gif_blocks(content())]
        there, cut = kinds.count(b","), b";" not in kinds
    if kind == "WEBP":
        cut = opening.content is not None  # it was mended
    return there, f"it is cut short after frame {there}; get it again" if cut else ""

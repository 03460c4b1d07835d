"""JPEG files that others read and Pillow does not: a header's wrong length, an end that is missing.

Pillow's own switch for these belongs to the whole process and says nothing; here the file's bytes
are mended in memory, and how much of the picture they hold is found out.
"""

import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from images.kinds import COARSE, ImageError, cut_short

SOI, EOI, SOS = b"\xff\xd8", b"\xff\xd9", 0xDA
METADATA = range(0xE0, 0xF0)
STARTS_OF_FRAME = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
# What may follow a segment of metadata: another one, a comment, tables, a frame, a scan.
MARKER = re.compile(rb"\xff+[\xc0-\xc4\xc9\xca\xcc\xda\xdb\xdd\xe0-\xef\xfe]")
BLOCKS = 18  # rows that are stored together, and two that interpolation or chance may add
MISSING = 0.02  # of the rows, or as many as that, may be made up: with more, a picture is refused


def with_right_lengths(jpeg: bytes) -> bytes:
    """The same file, in which each segment of metadata is as long as it says.

    Editors have written EXIF data with a wrong length, after which the next marker is not where
    Pillow looks for it.
    """
    parts, at = [SOI], 2
    while found := MARKER.match(jpeg, at):
        at, kind = found.end() - 2, jpeg[found.end() - 1]
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if kind == SOS or (end > len(jpeg) and kind not in METADATA):
            break
        if kind in METADATA and not MARKER.match(jpeg, end):
            end = _end_of_metadata(jpeg, at + 4)
        body = jpeg[at + 4 : end]
        if len(body) + 2 > 0xFFFF:  # then no length is right
            break
        parts.append(jpeg[at : at + 2] + (len(body) + 2).to_bytes(2, "big") + body)
        at = end
    return b"".join(parts) + jpeg[at:]


def _end_of_metadata(jpeg: bytes, at: int) -> int:
    """Where the next segment begins; EXIF may hold a thumbnail, which is a JPEG file itself."""
    thumbnail = jpeg.find(SOI + b"\xff", at)
    found = MARKER.search(jpeg, at)
    if found and 0 <= thumbnail < found.start():
        found = MARKER.search(jpeg, jpeg.find(EOI, thumbnail))
    return found.start() if found else len(jpeg)


def completed(jpeg: bytes) -> tuple[ImageFile.ImageFile, int]:
    """Decode a file without its end.

    Returns:
        The picture, and how many of its last rows may be made up; mostly 0.

    Raises:
        ImageError: more than 2% and 18 of the rows are missing, or half, or a part of all of them.
        OSError: it cannot be decoded.
    """
    if not _has_all_scans(jpeg):
        raise ImageError(COARSE)
    jpeg = jpeg.rstrip(b"\xff")  # half of a marker, or of an escape
    image, other = (_decoded(jpeg + tail) for tail in (EOI, _noise(jpeg) + EOI))
    # libjpeg makes up what is missing, from whatever follows. So a row that is the same whatever
    # follows is there, and so are all before it; but the last may be the same by chance.
    differs = (np.asarray(image) != np.asarray(other)).reshape(image.height, -1).any(1)
    rows = max(0, int(differs.argmax()) - 1) if differs.any() else image.height
    if image.height - rows > min(max(BLOCKS, MISSING * image.height), image.height // 2):
        raise ImageError(cut_short(rows, image.height))
    return image, image.height - rows


def _decoded(jpeg: bytes) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(jpeg), formats=["JPEG"])
    image.load()
    return image


def _noise(jpeg: bytes) -> bytes:
    """What decodes to something else than nothing does, after restart markers too."""
    noise = np.random.default_rng(0).integers(0, 255, 4096, np.uint8).tobytes()  # without 255
    last = re.findall(rb"\xff([\xd0-\xd7])", jpeg)[-1:] or [b"\xd7"]
    following = [0xD0 + (last[0][0] + 1 + i) % 8 for i in range(8)]
    return noise + b"".join(bytes((0xFF, restart)) + noise for restart in following)


def _has_all_scans(jpeg: bytes) -> bool:
    """Whether each coefficient of each component is in a scan that has at least begun.

    And, of a progressive file, its last bit: a scan's header has the first and the last
    coefficient, and the bit (ITU T.81, B.2.3).
    """
    wanted: set[tuple[int, int]] = set()
    for marker, segment in _segments(jpeg):
        if marker in STARTS_OF_FRAME:
            components = segment[6 : 6 + 3 * segment[5] : 3]
            wanted = {(component, i) for component in components for i in range(64)}
        if marker == SOS:
            count = segment[0]
            first, last, bit = segment[1 + 2 * count : 4 + 2 * count]
            if bit & 15 == 0:
                components = segment[1 : 1 + 2 * count : 2]
                wanted -= {(c, i) for c in components for i in range(first, last + 1)}
    return not wanted


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment that is there whole."""
    at = 2
    while found := MARKER.search(jpeg, at):
        start = found.end()
        at = start + int.from_bytes(jpeg[start : start + 2], "big")
        if at <= len(jpeg):
            yield jpeg[start - 1], jpeg[start + 2 : at]


def with_segments(jpeg: bytes, segments: bytes) -> bytes:
    """Put segments behind the first one of a file, which is JFIF's."""
    at = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[:at] + segments + jpeg[at:]

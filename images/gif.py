"""GIF (version 89a): its blocks, its few colours, and animations written frame by frame."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from images.clock import Clock

SCREEN = 13  # bytes of the header and of the screen's description
CLEAR_FIRST = 2 << 2  # a frame's disposal: its pixels are clear before the next one is drawn
SOLID = 128  # alpha from which a pixel is opaque, as there is nothing between


def gif_blocks(gif: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each block behind the header, up to the end or to damage.

    A picture's kind is b",", an extension's b"!" and its label, and the end's b";".
    """
    at = SCREEN + _table(gif[10:11])
    while at < len(gif):
        start = at
        if gif[at : at + 1] == b",":
            kind, at = b",", at + 10 + _table(gif[at + 9 : at + 10]) + 1
        elif gif[at : at + 1] == b"!":
            kind, at = gif[at : at + 2], at + 2
        elif gif[at : at + 1] == b";":
            yield b";", b";"
            return
        else:  # nothing that it could be; Pillow passes over it, too
            at += 1
            continue
        while at < len(gif) and gif[at]:
            at += 1 + gif[at]
        at += 1
        if at > len(gif) + 1:
            return
        yield kind, gif[start:at].ljust(at - start, b"\0")  # its end may be all that is missing


def _table(flags: bytes) -> int:
    """Bytes of the table of colours that these flags stand for."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


class Still(NamedTuple):
    """A frame as a GIF of its own, without what lies around it, and how it is shown."""

    gif: bytes
    left: int
    top: int
    disposal: int
    milliseconds: float


def stills_in(gif: bytes) -> Iterator[Still]:
    """The frames of a file, those that are there to the end."""
    table, nothing = gif[SCREEN : SCREEN + _table(gif[10:11])], bytes(8)
    control = nothing
    for kind, block in gif_blocks(gif):
        if kind == b"!\xf9" and len(block) >= len(nothing):
            control = block
        if kind == b",":
            left, top = struct.unpack_from("<HH", block, 1)
            key = b"!\xf9\4" + bytes((control[3] & 1, 0, 0, control[6], 0))
            alone = b"GIF89a" + block[5:9] + gif[10:13] + table + key + b"," + bytes(4) + block[5:]
            hundredths = int.from_bytes(control[4:6], "little")
            yield Still(alone + b";", left, top, control[3] >> 2 & 7, 10.0 * hundredths)
            control = nothing


def count_frames(path: str | Path) -> int:
    """Of a GIF file; 1 of any other, and of one that cannot be read."""
    try:
        gif = Path(path).read_bytes()
    except OSError:  # which reading it will tell
        return 1
    if not gif.startswith(b"GIF8"):
        return 1
    return sum(kind == b"," for kind, _ in gif_blocks(gif))


def joined(blocks: bytes) -> bytes:
    """What a comment's block says, from behind its label."""
    data, at = b"", 0
    while at < len(blocks) and blocks[at]:
        data += blocks[at + 1 : at + 1 + blocks[at]]
        at += 1 + blocks[at]
    return data


def divided(data: bytes) -> bytes:
    """Data in GIF's blocks of up to 255 bytes, each behind its length; an empty one ends them."""
    parts = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


# ---------------------------------------------------------------------------------------- colours


def as_few_colours(
    rgb: np.ndarray, alpha: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """What a GIF can hold of a picture: 256 colours, one of which stands for clear.

    Args:
        rgb: uint8, (H, W, 3).
        alpha: uint8, (H, W), or None.

    Returns:
        Both, and whether they changed: exact colours stay so.
    """
    clear = np.zeros(rgb.shape[:2], bool) if alpha is None else alpha < SOLID
    solid = None if alpha is None else np.where(clear, 0, 255).astype(np.uint8)
    changed = alpha is not None and bool((alpha != solid).any())
    most = 255 if clear.any() else 256
    if len(np.unique(_numbers(rgb)[~clear])) <= most:
        return rgb, solid, changed
    image = Image.fromarray(rgb)
    chosen = image.quantize(most, Image.Quantize.MEDIANCUT).getpalette() or [0, 0, 0]
    palette = Image.new("P", (1, 1))
    palette.putpalette((chosen + chosen[:3] * 256)[: 3 * 256])  # no colour that was not chosen
    dithered = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    return np.asarray(dithered.convert("RGB")), solid, True


def encoded_gif(rgb: np.ndarray, alpha: np.ndarray | None, extensions: bytes) -> bytes:
    """A file of one picture of `as_few_colours`; `extensions` are blocks to put in."""
    clear = np.zeros(rgb.shape[:2], bool) if alpha is None else alpha < SOLID
    numbers = np.where(clear, -1, _numbers(rgb))  # so that the clear ones come first
    colours, indices = np.unique(numbers, return_inverse=True)
    # Pillow clears what was there before a frame only if that had a colour for it itself.
    if alpha is not None and colours[0] >= 0 and len(colours) < 256:
        colours, indices = np.insert(colours, 0, -1), indices + 1
    image = Image.fromarray(indices.reshape(clear.shape).astype(np.uint8))
    channels = [colours >> shift & 255 for shift in (16, 8, 0)]
    image.putpalette(np.stack(channels, -1).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    options = dict(transparency=0) if colours[0] < 0 else {}
    image.save(buffer, "GIF", optimize=False, **options)
    return buffer.getvalue()[:-1] + extensions + b";"


def _numbers(rgb: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
    return red << 16 | green << 8 | blue


# -------------------------------------------------------------------------------------- animations


class GifAnimation:
    """A file that is written frame by frame.

    Args:
        file: an empty one.
        plays: how often it is shown; 0: for ever.
    """

    def __init__(self, file: BinaryIO, plays: int):
        self.file, self.plays = file, plays
        self.clock = Clock(10, 0xFFFF)
        self.begun = False

    def add(self, gif: bytes, duration: float | None) -> None:
        """A frame as a file of its own, the whole picture; milliseconds that it is shown.

        None: it is no frame, but the picture for programs that show no animation.
        """
        blocks = list(gif_blocks(gif))
        if not self.begun:
            self._begin(gif, [block for kind, block in blocks if kind in (b"!\xfe", b"!\xff")])
        if duration is None:
            return
        control = next((block for kind, block in blocks if kind == b"!\xf9"), bytes(8))
        flags = CLEAR_FIRST | control[3] & 1  # whether one colour stands for clear
        # Browsers show 10 ms for 100; a frame that was to be shown for longer gets more.
        ticks = self.clock.ticks(duration, least=2 if duration > 10 else 0)
        self.file.write(struct.pack("<2sBBHBB", b"!\xf9", 4, flags, ticks, control[6], 0))
        picture = next(block for kind, block in blocks if kind == b",")
        table = gif[SCREEN : SCREEN + _table(gif[10:11])]  # which becomes the frame's own
        self.file.write(picture[:9] + bytes([picture[9] | gif[10] & 0x87]) + table + picture[10:])

    def _begin(self, gif: bytes, extensions: list[bytes]) -> None:
        self.file.write(b"GIF89a" + gif[6:10] + bytes(3))
        if self.plays != 1:  # it counts how often it is shown again
            again = min(max(0, self.plays - 1), 0xFFFF)
            self.file.write(b"!\xff\x0bNETSCAPE2.0" + struct.pack("<BBHB", 3, 1, again, 0))
        self.file.write(b"".join(extensions))
        self.begun = True

    def close(self) -> None:
        self.file.write(b";")

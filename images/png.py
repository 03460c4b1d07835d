"""PNG (third edition): its chunks, what of its pixels is there, animations frame by frame."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import BinaryIO, NamedTuple

from images.kinds import COARSE, PNG_START, ImageError, cut_short

IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
NO_END = "its end is missing, but no pixel"
NEEDED = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # of the ancillary ones
COLOURS = {b"cICP": 4, b"iCCP": 3, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}  # and their least lengths
METADATA = {b"tEXt": 2, b"zTXt": 3, b"iTXt": 6, b"pHYs": 9}  # and their least lengths
HELD = b"XML:com.adobe.xmp\0"  # a text that may say how the camera was held
PIECE = 2**14  # bytes that are inflated at a time, to 1000 times as many at most
LARGEST_TEXT = 2**20  # bytes, of those that Pillow unpacks
LARGEST_PROFILE = 2**26  # bytes; what unpacks to more is no profile
PALETTE = 3  # a colour type
DISPOSE_BACKGROUND, DISPOSE_PREVIOUS, BLEND_OVER = 1, 2, 1  # of a frame's control
CHANNELS = {0: 1, 2: 3, PALETTE: 1, 4: 2, 6: 4}  # by colour type
PASSES = (  # of interlaced rows: first column and row, and the steps to the next ones
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)),
    (0, 1, 1, 2),
)


@dataclass
class Chunks:
    """A PNG file taken apart.

    Attributes:
        slim: a file of only the chunks that its pixels, frames and orientation need.
        colours: content of those of `COLOURS`, whatever their order.
        metadata: type and content of those of `METADATA`.
        remarks: what was damaged and left out.
    """

    slim: bytes
    colours: dict[bytes, bytes] = field(default_factory=dict)
    metadata: list[tuple[bytes, bytes]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


class Text(NamedTuple):
    """What one of PNG's chunks of text holds (section 11.3.3)."""

    keyword: bytes
    text: bytes
    packed: bool  # by zlib


def text_of(kind: bytes, data: bytes) -> Text:
    keyword, _, rest = data.partition(b"\0")
    if kind == b"zTXt":  # a byte names the method
        return Text(keyword, rest[1:], True)
    if kind == b"iTXt":  # whether it is packed, the method, the language and the keyword in it
        text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        return Text(keyword, text, rest[:1] == b"\1")
    return Text(keyword, rest, False)


def _is_swollen(kind: bytes, data: bytes) -> bool:
    """Whether a packed text is larger than Pillow unpacks; it would refuse the file."""
    _, text, packed = text_of(kind, data)
    if not packed:
        return False
    try:
        unpacking = zlib.decompressobj()
        unpacking.decompress(text, LARGEST_TEXT)
    except zlib.error:
        return False
    return not unpacking.eof


def take_apart(png: bytes) -> Chunks:
    """Leave out what Pillow might refuse a file for, although no pixel depends on it.

    Args:
        png: a file, perhaps a damaged one.

    Raises:
        ImageError: the checksum of a chunk that pixels need is wrong, or there is no palette.
    """
    parts, chunks = [PNG_START], Chunks(b"")
    of_palette = png[25:26] == bytes([PALETTE])  # else a PLTE chunk is only a suggestion
    kind = whole = b""
    for kind, data, whole, intact in png_chunks(png):
        name = kind.decode("latin-1")
        if kind == b"IEND":  # which has no content, and so no damage
            whole, intact = IEND, True
        critical = not kind[0] & 0x20 and (kind != b"PLTE" or of_palette)
        held = kind in METADATA and data.startswith(HELD) and not _is_swollen(kind, data)
        needed = kind in NEEDED or held
        least = COLOURS.get(kind, METADATA.get(kind, 0))
        if critical and not intact:
            raise ImageError(f"its {name} chunk is damaged (wrong checksum); get the file again")
        if not intact or len(data) < least:
            if kind in (*NEEDED, *METADATA, *COLOURS):
                chunks.remarks.append(f"its {name} chunk is damaged and was left out")
        elif kind in COLOURS:
            chunks.colours.setdefault(kind, data)
        elif critical or needed:
            parts.append(whole)
        if kind in METADATA and intact and len(data) >= least and len(whole) == 12 + len(data):
            chunks.metadata.append((kind, data))
    if kind != b"IEND":
        chunks.remarks.append(NO_END)  # unless decoding it fails
        if len(whole) == 12 + int.from_bytes(whole[:4], "big"):  # the last one is complete
            parts.append(IEND)
    chunks.slim = b"".join(parts)
    if of_palette and not any(part[4:8] == b"PLTE" for part in parts):
        raise ImageError("its palette is missing; is it damaged?")
    return chunks


def png_chunks(png: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
    """Type and content of each chunk, the whole of it, and whether its checksum is right.

    The last chunk of a file that is cut short has less than it says, and passes for intact.
    """
    at, kind = len(PNG_START), b""
    while at + 8 <= len(png) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", png, at)
        whole = png[at : at + 12 + length]
        checksum = int.from_bytes(whole[8 + length :], "big")
        complete = len(whole) == 12 + length
        yield (
            kind,
            whole[8 : 8 + length],
            whole,
            not complete or checksum == zlib.crc32(whole[4:-4]),
        )
        at += 12 + length


def refuse_missing_rows(png: bytes) -> None:
    """Find out whether compressed pixels are there to the last, which decoders may not ask.

    Raises:
        ImageError: they end before, or are damaged.
    """
    width, height = struct.unpack_from(">II", png, 16)
    row, needed = _bytes_of(png, width, height)
    try:
        count = _inflated(data for kind, data, _, _ in png_chunks(png) if kind == b"IDAT")
    except zlib.error as error:
        raise ImageError(f"it is damaged ({error}); get it again") from error
    if count >= needed:
        return
    if needed != row * height:
        raise ImageError(COARSE)
    raise ImageError(cut_short(count // row, height))


def whole_frames(png: bytes) -> int:
    """How many pictures of an animation, from the first on, are there to the last pixel."""
    whole = 0
    for control, parts in pictures_in(png):
        size = control[:2] if control else struct.unpack_from(">II", png, 16)
        try:
            if _inflated(parts) < _bytes_of(png, *size)[1]:
                break
        except zlib.error:
            break
        whole += 1
    return whole


class Control(NamedTuple):
    """Where, how and how long a frame is shown (section 11.3.6.2)."""

    width: int
    height: int
    left: int
    top: int
    delay_num: int
    delay_den: int  # of seconds; 0 stands for 100
    dispose: int  # what becomes of its area once it was shown
    blend: int

    @property
    def milliseconds(self) -> float:
        return 1000 * self.delay_num / (self.delay_den or 100)


def pictures_in(png: bytes) -> Iterator[tuple[Control | None, list[bytes]]]:
    """Control and compressed pixels of each picture; None: it is no frame of the animation.

    Those before a damage: a control that is cut short, a chunk that is missing.
    """
    control, parts, number = None, list[bytes](), 0
    for kind, data, _, _ in png_chunks(png):
        if kind in (b"fcTL", b"fdAT"):
            if int.from_bytes(data[:4], "big") != number or (kind == b"fcTL" and len(data) < 26):
                break
            number += 1
        if kind == b"fcTL":
            if parts:
                yield control, parts
            control, parts = Control(*struct.unpack_from(">IIIIHHBB", data, 4)), []
        elif kind in (b"IDAT", b"fdAT"):
            parts.append(data[4:] if kind == b"fdAT" else data)
    if parts:
        yield control, parts


def colours_in(png: bytes) -> bytes:
    """The chunks of a file's palette and clear colour."""
    return b"".join(whole for kind, _, whole, _ in png_chunks(png) if kind in (b"PLTE", b"tRNS"))


def still_of(png: bytes, colours: bytes, control: Control | None, parts: list[bytes]) -> bytes:
    """One of a file's `pictures_in` as a file of its own; `colours` are its `colours_in`."""
    size = png[16:24] if control is None else struct.pack(">II", *control[:2])
    header = PNG_START + chunk(b"IHDR", size + png[24:29]) + colours
    return header + chunk(b"IDAT", b"".join(parts)) + IEND


def _inflated(parts: Iterable[bytes]) -> int:
    """Bytes that compressed pixels unpack to.

    Raises:
        zlib.error: they are damaged.
    """
    inflate, count = zlib.decompressobj(), 0
    for data in parts:
        for start in range(0, len(data), PIECE):
            count += len(inflate.decompress(data[start : start + PIECE]))
    return count


def _bytes_of(png: bytes, width: int, height: int) -> tuple[int, int]:
    """Of a row that is not interlaced, and of all pixels of a picture in this file."""
    depth, colour, _, _, interlaced = struct.unpack_from(">BBBBB", png, 24)
    bits = depth * CHANNELS[colour]
    row = 1 + -(-width * bits // 8)
    return row, _interlaced_bytes(width, height, bits) if interlaced else row * height


def _interlaced_bytes(width: int, height: int, bits: int) -> int:
    """Of all passes (PNG, section 8); a pass without columns has no rows either."""
    total = 0
    for left, top, right, down in PASSES:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return total


def profile_in(chunk: bytes) -> bytes | None:
    """The ICC profile of an iCCP chunk; None if it cannot be unpacked (section 11.3.2.3)."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], LARGEST_PROFILE) or None
    except zlib.error:
        return None


def profile_chunk(profile: bytes) -> tuple[bytes, bytes]:
    return b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)


def with_chunks(png: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Put chunks, given by type and content, behind the header."""
    header = len(PNG_START) + 25  # and IHDR
    pixels = memoryview(png)[header:]  # which may be many, so there is no copy but the result
    return b"".join((png[:header], *(chunk(*parts) for parts in chunks), pixels))


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(data, zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


class PngAnimation:
    """A file that is written frame by frame (section 11.3.6).

    Args:
        file: an empty one, which can be sought in.
        plays: how often it is shown; 0: for ever.
    """

    def __init__(self, file: BinaryIO, plays: int):
        self.file, self.plays = file, plays
        self.frames = self.number = self.place = 0

    def add(self, png: bytes, duration: float | None) -> None:
        """A frame as a file of its own, the whole picture; milliseconds that it is shown.

        None: it is no frame, but the picture for programs that show no animation.
        """
        chunks = [(kind, data) for kind, data, _, _ in png_chunks(png)]
        first = self.place == 0
        if first:
            self._begin([parts for parts in chunks if parts[0] not in (b"IDAT", b"IEND")])
        if duration is not None:
            seconds = min(duration / 1000, 0xFFFF)
            delay = Fraction(seconds).limit_denominator(int(0xFFFF / max(1, seconds)))
            control = self._next() + png[16:24] + bytes(8)
            control += struct.pack(">HH", delay.numerator, delay.denominator) + bytes(2)
            self.file.write(chunk(b"fcTL", control))
            self.frames += 1
        for _, data in (parts for parts in chunks if parts[0] == b"IDAT"):
            written = chunk(b"IDAT", data) if first else chunk(b"fdAT", self._next() + data)
            self.file.write(written)

    def _begin(self, chunks: list[tuple[bytes, bytes]]) -> None:
        self.file.write(PNG_START + chunk(*chunks[0]))
        self.place = self.file.tell()
        self.file.write(self._control() + b"".join(chunk(*parts) for parts in chunks[1:]))

    def _next(self) -> bytes:
        self.number += 1
        return struct.pack(">I", self.number - 1)

    def _control(self) -> bytes:
        return chunk(b"acTL", struct.pack(">II", self.frames, self.plays))

    def close(self) -> None:
        self.file.write(chunk(b"IEND", b""))
        self.file.seek(self.place)
        self.file.write(self._control())  # by now they are counted
        self.file.seek(0, 2)

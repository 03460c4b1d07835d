"""PNG's chunks (PNG, third edition): those that pixels need, and those that say what colour is."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from images.kinds import ImageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
NO_END = "its end is missing, but no pixel"
NEEDED = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")  # of the ancillary ones
COLOURS = {b"cICP": 4, b"iCCP": 3, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}  # and their least lengths
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
HELD = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that say how the camera was
LARGEST_PROFILE = 2**26  # bytes; what unpacks to more is no profile


@dataclass
class Chunks:
    """A PNG file taken apart.

    Attributes:
        slim: a file of only the chunks that its pixels, frames and orientation need.
        colours: content of those of `COLOURS`, whatever their order.
        remarks: what was damaged and left out.
    """

    slim: bytes
    colours: dict[bytes, bytes] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def take_apart(png: bytes) -> Chunks:
    """Leave out what Pillow might refuse a file for, although no pixel depends on it.

    Args:
        png: a file, perhaps a damaged one.

    Raises:
        ImageError: the checksum of a critical chunk is wrong.
    """
    parts, chunks = [SIGNATURE], Chunks(b"")
    kind = whole = b""
    for kind, data, whole, intact in _chunks(png):
        name = kind.decode("latin-1")
        critical = not kind[0] & 0x20
        needed = kind in NEEDED or (kind in TEXTS and data.startswith(HELD))
        if critical and not intact:
            raise ImageError(f"its {name} chunk is damaged (wrong checksum); get the file again")
        if not intact or len(data) < COLOURS.get(kind, 0):
            if needed or kind in COLOURS:
                chunks.remarks.append(f"its {name} chunk is damaged and was left out")
        elif kind in COLOURS:
            chunks.colours.setdefault(kind, data)
        elif critical or needed:
            parts.append(whole)
    if kind != b"IEND":
        chunks.remarks.append(NO_END)  # unless decoding it fails
        if len(whole) == 12 + int.from_bytes(whole[:4], "big"):  # the last one is complete
            parts.append(IEND)
    chunks.slim = b"".join(parts)
    return chunks


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes, bytes, bool]]:
    """Type and content of each chunk, the whole of it, and whether its checksum is right.

    The last chunk of a file that is cut short has less than it says, and passes for intact.
    """
    at, kind = len(SIGNATURE), b""
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


def profile_in(chunk: bytes) -> bytes | None:
    """The ICC profile of an iCCP chunk; None if it cannot be unpacked (section 11.3.2.3)."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(packed[1:], LARGEST_PROFILE) or None
    except zlib.error:
        return None


def with_profile(png: bytes, profile: bytes | None) -> bytes:
    """Put an iCCP chunk, which OpenCV does not write, behind the header."""
    if not profile:
        return png
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    header = len(SIGNATURE) + 25  # and IHDR
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:header] + whole + png[header:]

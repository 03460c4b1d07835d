"""WebP (RFC 9649): its chunks, and animations written frame by frame."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from images.clock import Clock


def webp_chunks(data: bytes, at: int = 12) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of each chunk that is there whole, from `at` on; 12: of a file."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        if at + 8 + size > len(data):
            return
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def is_lossless_webp(webp: bytes) -> bool:
    """Whether each of its pictures is."""
    kinds = set()
    for kind, data in webp_chunks(webp):
        kinds |= {inner for inner, _ in webp_chunks(data, 16)} if kind == b"ANMF" else {kind}
    return b"VP8L" in kinds and b"VP8 " not in kinds


def without_cut_chunk(webp: bytes) -> bytes:
    """The file up to its last whole frame, if it is an animation that is cut short."""
    chunks = list(webp_chunks(webp))
    end = 12 + sum(8 + len(data) + len(data) % 2 for _, data in chunks)
    whole = 8 + int.from_bytes(webp[4:8], "little") <= len(webp)
    if whole or not any(kind == b"ANMF" for kind, _ in chunks):
        return webp
    return webp[:4] + struct.pack("<I", end - 8) + webp[8:end]


class WebpAnimation:
    """A file that is written frame by frame.

    Args:
        file: an empty one, which can be sought in.
        plays: how often it is shown; 0: for ever.
    """

    def __init__(self, file: BinaryIO, plays: int):
        self.file, self.plays = file, plays
        self.clock = Clock(1, 2**24 - 1)
        self.first: dict[bytes, bytes] = {}
        self.flags = 0x02  # it is an animation

    def add(self, webp: bytes, duration: float | None) -> None:
        """A frame as a file of its own, the whole picture; milliseconds that it is shown.

        None: it is no frame, but the picture for programs that show no animation.
        """
        chunks = dict(webp_chunks(webp))
        if not self.first:
            self._begin(chunks)
        if duration is None:
            return
        lossless = chunks.get(b"VP8L", b"")
        if b"ALPH" in chunks or (lossless and lossless[4] & 0x10):
            self.flags |= 0x10
        frame = bytes(6) + self.size + self.clock.ticks(duration).to_bytes(3, "little") + b"\2"
        pixels = ((kind, chunks[kind]) for kind in (b"ALPH", b"VP8 ", b"VP8L") if kind in chunks)
        self._write(b"ANMF", frame + b"".join(_chunk(*parts) for parts in pixels))

    def _begin(self, chunks: dict[bytes, bytes]) -> None:
        self.first, self.size = chunks, _size(chunks)
        self.file.write(bytes(30))  # for what `close` knows
        if b"ICCP" in chunks:
            self.flags |= 0x20
            self._write(b"ICCP", chunks[b"ICCP"])
        self._write(b"ANIM", struct.pack("<IH", 0, min(self.plays, 0xFFFF)))

    def _write(self, kind: bytes, data: bytes) -> None:
        self.file.write(_chunk(kind, data))

    def close(self) -> None:
        for kind, flag in ((b"EXIF", 0x08), (b"XMP ", 0x04)):
            if kind in self.first:
                self.flags |= flag
                self._write(kind, self.first[kind])
        length = self.file.tell()
        self.file.seek(0)
        self.file.write(b"RIFF" + struct.pack("<I", length - 8) + b"WEBP")
        self._write(b"VP8X", struct.pack("<I", self.flags) + self.size)
        self.file.seek(length)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def _size(chunks: dict[bytes, bytes]) -> bytes:
    """Width and height, each less one, in three bytes each, as animations have them."""
    if b"VP8X" in chunks:
        return chunks[b"VP8X"][4:10]
    if b"VP8L" in chunks:
        bits = int.from_bytes(chunks[b"VP8L"][1:5], "little")
        width, height = bits & 0x3FFF, bits >> 14 & 0x3FFF
    else:
        width, height = (n % 2**14 - 1 for n in struct.unpack_from("<HH", chunks[b"VP8 "], 6))
    return width.to_bytes(3, "little") + height.to_bytes(3, "little")

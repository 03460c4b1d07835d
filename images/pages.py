"""TIFF files, written page by page."""

import struct
from typing import BinaryIO

import numpy as np
import tifffile

from images.exif import UNIT, X_RESOLUTION, Y_RESOLUTION, Entry
from images.metadata import TIFF_IPTC, TIFF_PHOTOSHOP, TIFF_XMP, Metadata

ROOM = 2**32 - 2**25  # bytes of pixels up to which a file is no BigTIFF
FRACTIONS = {5: "I", 10: "i"}  # types of two numbers each, as struct calls these
POINTERS = {0x8769: "ExifTag", 0x8825: "GPSTag"}  # tifffile takes these tags by name only


class TiffPages:
    """A TIFF file that is written page by page.

    Args:
        file: an empty one.
        size: bytes of all its pixels, or an estimate.
    """

    def __init__(self, file: BinaryIO, size: float):
        self.file, self.big = file, size > ROOM
        self.writer = tifffile.TiffWriter(file, bigtiff=self.big, byteorder="<")

    def add(self, pixels: np.ndarray, profile: bytes | None, metadata: Metadata) -> None:
        """(H, W, 1 to 4): gray, gray and alpha, RGB or RGBA."""
        channels = pixels.shape[2]
        self.writer.write(
            pixels.squeeze(2) if channels == 1 else pixels,
            photometric="rgb" if channels > 2 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            compression="zlib",
            iccprofile=profile,
            resolution=metadata.dpi,
            resolutionunit="inch" if metadata.dpi else None,
            software=False,
            metadata=None,
            extratags=self._tags(metadata),
        )

    def _tags(self, metadata: Metadata) -> list[tuple]:
        """Of a page; what they point at is written first."""
        tags: list[tuple] = []
        if metadata.exif:
            at = self.file.seek(0, 2)
            at += at % 2
            entries, content = metadata.exif.of_tiff(at, self.big)
            self.file.write(bytes(at - self.file.tell()) + content)
            for tag, entry in entries:
                if tag not in (X_RESOLUTION, Y_RESOLUTION, UNIT):
                    tags.append((POINTERS.get(tag, tag), *_values(entry), False))
        for tag, content in (
            (TIFF_XMP, metadata.xmp),
            (TIFF_IPTC, metadata.iim()),
            (TIFF_PHOTOSHOP, metadata.iptc),
        ):
            if content:
                tags.append((tag, 1 if tag == TIFF_XMP else 7, None, content, False))
        return tags

    def close(self) -> None:
        self.writer.close()


def _values(entry: Entry) -> tuple[int, int | None, bytes | tuple[int, ...]]:
    """Type, count and values of a tag; of fractions, tifffile would count bytes wrongly."""
    if entry.kind not in FRACTIONS:
        return entry.kind, None, entry.value
    numbers = struct.unpack(f"<{len(entry.value) // 4}{FRACTIONS[entry.kind]}", entry.value)
    return entry.kind, len(numbers) // 2, numbers

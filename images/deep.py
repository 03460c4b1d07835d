"""The formats of which Pillow keeps 8 bits a channel, or scales other numbers of bits wrongly."""

import logging
import math
import struct
from collections.abc import Callable
from typing import Any

import cv2
import imagecodecs
import numpy as np
from PIL.ImageFile import ImageFile

from images.animation import gif_frames
from images.frames import first_of
from images.kinds import CODESTREAM, HDR, TRUNCATED, ImageError
from images.levels import Pixels, from_array, rgb_of_inks, scaled
from images.modes import has_inks, pixels_of
from images.png import refuse_missing_rows

BITMAP_HEADER = 40  # bytes
BC6H = (94, 95, 96)  # DXGI's formats of half floats
CUBE_MAP, VOLUME = 0x200, 0x200000  # of a DDS file's caps2
TEXTURE_3D, TEXTURE_CUBE = 4, 4  # of its extension's dimension, and of its flags

logging.getLogger("imagecodecs").setLevel(logging.CRITICAL)  # it logs libpng's warnings


def read_deep(file: ImageFile, content: Callable[[], bytes]) -> Pixels | None:
    """The pixels of a file that Pillow has opened but not loaded; None: Pillow gets them right.

    Args:
        content: reads the whole file.

    Raises:
        ImageError: it is damaged, or of a kind that cannot be read.
    """
    if file.format == "PNG":
        return _png(file, content)
    if file.format == "PPM":
        return _netpbm(file, content)
    if file.format == "JPEG2000" and file.mode not in ("P", "PA"):
        return _jpeg_2000(file, content())
    if file.format == "TGA" and file.has_transparency_data:
        return _opaque_tga(file, content())
    if file.format == "DDS" and _dds_kind(content()) in BC6H:
        raise ImageError(HDR)
    if file.format in ("ICO", "ICNS"):
        return _in_icon(file)
    if file.format == "GIF" and file.tile[0][1] != (0, 0, *file.size):
        for pixels, _ in gif_frames(content(), *file.size):  # Pillow fills what lies around it
            return pixels
        raise ImageError(TRUNCATED)
    if file.format in ("BMP", "DIB") and file.mode == "1":
        return _two_colours(file, content())
    alone = getattr(file, "n_frames", 1) == 1  # of several, imagecodecs would decode all
    return _avif(content()) if file.format == "AVIF" and alone else None


def left_out(file: ImageFile, content: Callable[[], bytes]) -> list[str]:
    """Remarks on what nothing here reads, of a file that Pillow has opened but not loaded.

    Bits beyond 8, the other faces of cube maps, and the fourth bytes of BMP, which mean nothing but
    to programs that keep alpha there.
    """
    if file.format in ("BMP", "DIB") and "BGRX" in str(file.tile[0]):
        start = file.tile[0][2]
        fourth = np.frombuffer(content(), np.uint8)[start : start + 4 * math.prod(file.size)][3::4]
        return ["3 of 4 channels"] if fourth.any() and (fourth != 255).any() else []
    if file.format == "CUR" and not file.has_transparency_data:
        return ["without its transparency"]
    if file.format == "DDS" and (count := _dds_pictures(content())) > 1:
        return [first_of(count)]
    bits = file.info.get("bit_depth", 8)  # pillow-heif says so
    if file.format == "AVIF":
        bits = _avif_bits(content())
    if file.format == "SGI" and "16" in f"{file.tile[0].codec_name} {file.tile[0].args}":
        bits = 16
    if file.format == "PPM" and file.mode == "RGB" and _white(file) > 255:
        bits = 16
    return [f"8 of {bits} bits"] if bits > 8 else []


def _png(file: ImageFile, content: Callable[[], bytes]) -> Pixels | None:
    mode = str(file.tile[0][3])
    # Pillow would compare the key with scaled levels.
    scaled_key = mode in ("1", "L;2", "L;4") and "transparency" in file.info
    try:
        if "16" in mode or scaled_key:
            return from_array(imagecodecs.png_decode(content()))
        file.load()
    except (OSError, imagecodecs.PngError):
        refuse_missing_rows(content())
        raise
    # Pillow may leave rows that are not there at 0, and say nothing.
    last_row = np.asarray(file.crop((0, file.height - 1, *file.size)))
    if "interlace" in file.info or not last_row.any():
        refuse_missing_rows(content())
    return None


def _white(file: ImageFile) -> int:
    """The level of white in a PGM or PPM file."""
    codec, _, _, parameters = file.tile[0]
    if isinstance(parameters, tuple) and codec != "raw":
        return parameters[-1]
    return 65535 if "16" in str(parameters) else 255


def _netpbm(file: ImageFile, content: Callable[[], bytes]) -> Pixels | None:
    """PGM and PPM with two bytes a level, the high one first, or with gray levels in words."""
    codec, _, start, _ = file.tile[0]
    white = _white(file)
    if white <= 255 or (codec == "ppm_plain" and file.mode == "RGB"):
        return None
    if codec == "ppm_plain":
        return from_array(np.array(file).astype(np.uint16))
    (width, height), channels = file.size, len(file.getbands())
    levels = np.frombuffer(content()[start : start + 2 * width * height * channels], ">u2")
    if levels.size < width * height * channels:
        raise ImageError(TRUNCATED)
    return from_array(scaled(levels.reshape(height, width, channels), white))


def _jpeg_2000(file: ImageFile, encoded: bytes) -> Pixels | None:
    """Other numbers of bits than 8, which Pillow shifts, so that white gets gray; and CMYK that
    only the profile names, which Pillow takes for RGBA."""
    size = encoded.index(CODESTREAM)
    count = int.from_bytes(encoded[size + 40 : size + 42], "big")  # ISO 15444-1, A.5.1
    precisions = set(encoded[size + 42 : size + 42 + 3 * count : 3])
    # Each is one less than the bits; the byte's highest bit says signed.
    if precisions == {7} and (file.mode == "CMYK" or not has_inks(file)):
        return None
    if len(precisions) > 1 or max(precisions) > 15 or count > 4:
        raise ImageError("its channels are signed, unlike or more than 4; save it as PNG")
    levels = scaled(imagecodecs.jpeg2k_decode(encoded), 2 ** (precisions.pop() + 1) - 1)
    if has_inks(file):
        return Pixels(rgb_of_inks(levels, file.info.get("icc_profile")))
    return from_array(levels)


def _opaque_tga(file: ImageFile, encoded: bytes) -> Pixels | None:
    """Without a fourth byte that is 0 everywhere, if the header says that none of it is alpha."""
    if encoded[17] & 0x0F:  # Truevision's TGA specification 2.0, field 5.6
        return None
    pixels = pixels_of(file)
    hides_all = pixels.alpha is not None and not pixels.alpha.any()
    return pixels._replace(alpha=None) if hides_all else pixels


def _in_icon(file: Any) -> Pixels:
    """The picture in it; of a PNG, Pillow loses the palette and the clear colour on the way out.

    Of those of the largest size in an ICO, Pillow takes the one with the fewest colours.
    """
    if file.format == "ICNS":
        return pixels_of(file.icns.getimage(file.best_size))
    entries = file.ico.entry
    of_size = [number for number, entry in enumerate(entries) if entry.dim == file.size]
    best = max(of_size, key=lambda number: entries[number].color_depth)
    inner = file.ico.frame(best)
    pixels = pixels_of(inner)
    if inner.format == "PNG" or pixels.alpha is None or pixels.alpha.any():
        return pixels
    return pixels._replace(alpha=_icon_mask(file, entries[best]))


def _icon_mask(file: Any, entry: Any) -> np.ndarray | None:
    """Alpha of a 32-bit picture whose fourth bytes are 0: from the bits at its end, 1 for clear."""
    width, height = entry.dim
    row = (width + 31) // 32 * 4  # bytes
    if entry.size < BITMAP_HEADER + 4 * width * height + row * height:
        return None
    file.ico.buf.seek(entry.offset + entry.size - row * height)
    rows = np.frombuffer(file.ico.buf.read(row * height), np.uint8).reshape(height, row)
    is_clear = np.unpackbits(rows, axis=1)[::-1, :width]
    return np.where(is_clear, 0, 255).astype(np.uint8)


def _two_colours(file: ImageFile, encoded: bytes) -> Pixels | None:
    """A BMP with black and white alone; of 4 or 8 bits a pixel, Pillow takes each bit for one."""
    if file.format == "DIB":  # which has all but the first header
        start = struct.pack("<IHHI", 14 + len(encoded), 0, 0, 14 + file.tile[0][2])
        encoded = b"BM" + start + encoded
    is_old = encoded[14] == 12  # OS/2's header
    if encoded[24 if is_old else 28] == 1:
        return None
    decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_GRAYSCALE)
    if decoded is None:
        raise ImageError(TRUNCATED)
    return from_array(decoded)


def _dds_kind(encoded: bytes) -> int:
    """The DXGI format of a file whose header has Direct3D 10's extension; 0: it has none."""
    return int.from_bytes(encoded[128:132], "little") if encoded[84:88] == b"DX10" else 0


def _dds_pictures(encoded: bytes) -> int:
    """Faces, slices and layers, without the smaller copies of each (Microsoft's DDS_HEADER)."""

    def number(at: int) -> int:
        return int.from_bytes(encoded[at : at + 4], "little")

    if _dds_kind(encoded):
        faces = 6 if number(136) & TEXTURE_CUBE else 1
        solid, layers = number(132) == TEXTURE_3D, max(1, number(140))
    else:
        caps = number(112)
        faces = (caps & 0xFE00).bit_count() - 1 if caps & CUBE_MAP else 1
        solid, layers = bool(caps & VOLUME), 1
    return faces * layers * (max(1, number(24)) if solid else 1)


def _avif(encoded: bytes) -> Pixels | None:
    bits = _avif_bits(encoded)
    if bits == 8:
        return None
    return from_array(scaled(imagecodecs.avif_decode(encoded), 2**bits - 1))


def _avif_bits(encoded: bytes) -> int:
    flags = encoded[encoded.index(b"av1C") + 6]  # AV1 in ISOBMFF, 2.3: above 8 bits, 12 bits
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8

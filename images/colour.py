"""What colours a file's numbers stand for: ICC profiles, read, built, checked, and turned to sRGB.

Chunks and boxes that name primaries and a curve become a profile too, so that every type of file
can hold them.
"""

import io
import re
import struct
from functools import cache, lru_cache
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import ImageCms

from images.png import LARGEST_PROFILE, profile_in

Point = tuple[float, float]  # x and y of CIE 1931
D65: Point = (0.3127, 0.3290)
SRGB: tuple[Point, ...] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)  # red, green, blue, white
PRIMARIES = {  # ITU-T H.273, table 2
    1: SRGB,
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
Curve = tuple[float, ...]  # of ICC's parametricCurveType: g, or g, a, b, c, d
SRGB_CURVE: Curve = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BT709_CURVE: Curve = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CURVES: dict[int, Curve] = {  # ITU-T H.273, table 3
    **dict.fromkeys((1, 6, 14, 15), BT709_CURVE),
    **{4: (2.2,), 5: (2.8,), 8: (1.0,), 13: SRGB_CURVE},
}
HDR = {16: "PQ", 18: "HLG"}
UNSPECIFIED = 2
D50 = np.array([0.9642, 1.0, 0.8249])  # the white of profiles
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
GRAY, RGB = b"GRAY", b"RGB "  # as profiles spell it
DAMAGED = "its colour profile is damaged and was left out"
PROFILE_BOX = re.compile(b"colr[\2\3]")  # of JPEG 2000: its type, and a method that is a profile
MODES = {GRAY: "L", RGB: "RGB"}
SRGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# ------------------------------------------------------------------------------ what a file says


def of_png(chunks: dict[bytes, bytes], gray: bool) -> tuple[bytes | None, str]:
    """The profile that stands for a PNG's colour chunks; None: sRGB, or nothing is said.

    cICP comes before iCCP, that before sRGB, that before gAMA and cHRM (PNG, section 4.3).

    Returns:
        The profile, and a phrase about what was left out.
    """
    remark = ""
    if b"cICP" in chunks:
        primaries, transfer, matrix, full_range = chunks[b"cICP"][:4]
        profile, remark = of_code_points(primaries, transfer, gray)
        if (matrix, full_range) != (0, 1):
            remark = "its cICP chunk says what no PNG can be, and was left out"
        if not remark:
            return profile, ""
    if b"iCCP" in chunks:
        profile = profile_in(chunks[b"iCCP"])
        if profile and colour_space(profile):
            return profile, ""
        remark = remark or DAMAGED
    if b"sRGB" in chunks:
        return None, remark
    corners = _corners(chunks[b"cHRM"]) if b"cHRM" in chunks and not gray else SRGB
    curve: Curve = SRGB_CURVE
    if b"gAMA" in chunks:
        gamma = int.from_bytes(chunks[b"gAMA"][:4], "big") / 100_000
        # Programs write 1/2.2 for sRGB; libpng, too, takes what is less than 5% off for equal.
        if corners != SRGB or abs(gamma * 2.2 - 1) > 0.05:
            curve = (1 / gamma if gamma else 0.0,)
    profile, impossible = _built(corners, curve, gray)
    return profile, remark or impossible


def of_boxes(start: bytes, gray: bool) -> tuple[bytes | None, str]:
    """The same of an AVIF or HEIF file, from its first bytes: its colour box (ISO 23000-22)."""
    at = start.find(b"colrnclx")
    if at < 0 or len(start) < at + 12:
        return None, ""
    primaries, transfer = struct.unpack_from(">HH", start, at + 8)
    return of_code_points(primaries, transfer, gray)


def of_jpeg_2000(start: bytes) -> bytes | None:
    """The profile that a JPEG 2000 file holds, from its first bytes (ISO 15444-1, I.5.3.3)."""
    for found in PROFILE_BOX.finditer(start, max(0, start.find(b"jp2h"))):
        at = found.start()
        end = at - 4 + int.from_bytes(start[at - 4 : at], "big")
        if at + 7 < end <= len(start):
            return start[at + 7 : end]
    return None


def of_bmp(file: BinaryIO) -> bytes | None:
    """The profile that a BMP file holds (Microsoft's BITMAPV5HEADER)."""
    header = file.read(138)
    if len(header) < 138 or header[14:18] != b"\x7c\0\0\0" or header[70:74] != b"DEBM":
        return None
    start, length = struct.unpack_from("<II", header, 126)
    file.seek(14 + start)  # behind the first header
    return file.read(min(length, LARGEST_PROFILE)) or None


def of_code_points(primaries: int, transfer: int, gray: bool) -> tuple[bytes | None, str]:
    """The same of the numbers that video standards give to primaries and curves (H.273)."""
    if transfer in HDR:
        return None, f"its numbers are {HDR[transfer]} (HDR), which the result does not say"
    corners = PRIMARIES.get(1 if primaries == UNSPECIFIED else primaries)
    curve = CURVES.get(13 if transfer == UNSPECIFIED else transfer)
    if corners is None or curve is None:
        unknown = f"code points {primaries} and {transfer} for its colours are unknown here"
        return None, f"{unknown}; it was taken for sRGB"
    # A still picture's curve of BT.709 is shown as sRGB's, with which nearly all were made.
    return _built(corners, SRGB_CURVE if (corners, curve) == (SRGB, BT709_CURVE) else curve, gray)


def _corners(chunk: bytes) -> tuple[Point, ...]:
    """Red, green, blue and white of a cHRM chunk, which begins with white."""
    numbers = [number / 100_000 for number in struct.unpack(">8I", chunk[:32])]
    white, *corners = zip(numbers[::2], numbers[1::2], strict=True)
    given = (*corners, white)
    is_srgb = np.allclose(given, SRGB, rtol=0, atol=0.002)
    return SRGB if is_srgb else given


# -------------------------------------------------------------------------------------- profiles


def _built(corners: tuple[Point, ...], curve: Curve, gray: bool) -> tuple[bytes | None, str]:
    if (corners, curve) == (SRGB, SRGB_CURVE) or (gray and curve == SRGB_CURVE):
        return None, ""
    try:
        return build_profile(None if gray else corners, curve), ""
    except ValueError:
        return None, "it names impossible colours, which were left out"


def build_profile(corners: tuple[Point, ...] | None, curve: Curve) -> bytes:
    """An ICC profile, version 4, of three primaries (without them, of gray) and one curve.

    Args:
        corners: red, green, blue and white, as x and y of CIE 1931.
        curve: exponent g, or g, a, b, c, d: (a x + b) ** g from x = d on, and c x below.

    Raises:
        ValueError: no such colours can be.
    """
    if not 0.1 <= curve[0] <= 10:
        raise ValueError(f"a curve with the exponent {curve[0]:g}")
    kind = 0 if len(curve) == 1 else 3  # of parametricCurveType (ICC.1:2022, 10.18)
    parametric = struct.pack(">4s4xH2x", b"para", kind) + _fixed(curve)
    tags = {
        b"desc": _text("Colours as the original file described them"),
        b"cprt": _text("No copyright"),
        b"wtpt": struct.pack(">4s4x", b"XYZ ") + _fixed(D50),
    }
    if corners is None:
        tags[b"kTRC"] = parametric
    else:
        columns, adaptation = _matrix(corners)
        for name, column in zip("rgb", columns.T, strict=True):
            tags[f"{name}XYZ".encode()] = struct.pack(">4s4x", b"XYZ ") + _fixed(column)
            tags[f"{name}TRC".encode()] = parametric
        tags[b"chad"] = struct.pack(">4s4x", b"sf32") + _fixed(adaptation.ravel())
    table, data = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, 128 + 4 + 12 * len(tags) + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    header = struct.pack(
        ">I4xI4s4s4s6H4s24xI12s48x",
        *(128 + len(table) + len(data), 0x04300000, b"mntr", RGB if corners else GRAY, b"XYZ "),
        *(2000, 1, 1, 0, 0, 0, b"acsp", 1, _fixed(D50)),
    )
    return header + table + data


@cache
def adobe_rgb() -> bytes:
    """Adobe RGB (1998) Color Image Encoding, 4.3: its primaries, D65, and its curve."""
    corners = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.329))
    return build_profile(corners, (563 / 256,))


def _matrix(corners: tuple[Point, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Columns: XYZ of red, green and blue under D50; and the adaptation to it by Bradford."""
    (xr, yr), (xg, yg), (xb, yb), _ = corners
    area = (xr - xb) * (yg - yb) - (xg - xb) * (yr - yb)  # twice that of their triangle
    if abs(area) < 0.001 or min(y for _, y in corners) <= 0:
        raise ValueError("primaries that are no triangle")
    red, green, blue, white = ([x / y, 1, (1 - x - y) / y] for x, y in corners)
    columns = np.array([red, green, blue]).T
    shares = np.linalg.solve(columns, white)
    if shares.min() <= 0:
        raise ValueError("a white that is no mixture of the primaries")
    columns = columns * shares
    cones = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    adaptation = np.linalg.solve(BRADFORD, cones @ BRADFORD)
    return adaptation @ columns, adaptation


def _fixed(numbers) -> bytes:
    """s15Fixed16Number each."""
    return b"".join(struct.pack(">i", round(float(number) * 65536)) for number in numbers)


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-be")
    return struct.pack(">4s4xII4sII", b"mluc", 1, 12, b"enUS", len(encoded), 28) + encoded


@lru_cache(maxsize=4)
def colour_space(profile: bytes) -> bytes:
    """GRAY, RGB or another four letters; empty if littleCMS cannot use the profile."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = profile[16:20]
        if space in MODES:
            ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), MODES[space], "RGB")
    except (OSError, ImageCms.PyCMSError):
        return b""
    return space


def checked_profile(profile: bytes | None, gray: bool) -> tuple[bytes | None, str]:
    """The profile if its colour space is that of the pixels, and otherwise a phrase about it.

    One of RGB fits gray pixels, too: three times the same number.
    """
    if not profile:
        return None, ""
    space = colour_space(profile)
    if space == RGB or (space == GRAY and gray):
        return profile, ""
    if not space:
        return None, DAMAGED
    name = space.decode("latin-1").strip()
    return None, f"its colour profile is one of {name}, which its pixels are not, and was left out"


def to_srgb(image: np.ndarray, profile: bytes | None) -> np.ndarray:
    """The colours as sRGB, by littleCMS; without a profile they are taken for that already.

    Args:
        image: uint8 or uint16, (H, W, 3); so is the result.
        profile: of RGB, or of gray for an image whose three channels are equal.
    """
    if not profile:
        return image
    gray = colour_space(profile) == GRAY
    levels = np.ascontiguousarray(image[..., 0] if gray else image)
    space = "gray" if gray else "rgb"
    return imagecodecs.cms_transform(
        levels, profile, SRGB_PROFILE, colorspace=space, outcolorspace="rgb"
    )

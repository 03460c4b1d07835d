"""Image files of every common kind: colour, alpha, 8 or 16 bits, profile and orientation.

Pillow reads and writes 8 bits; OpenCV what Pillow cannot: 16 bits a channel in colour.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin

from images.bands import bands
from utils import replacing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
UPRIGHT = {  # its values -> (mirror left and right first, quarter turns to the left after that)
    **{1: (False, 0), 2: (True, 0), 3: (False, 2), 4: (True, 2)},
    **{5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)},
}
JPEG = dict(quality=95, subsampling=0)  # no colour resolution is thrown away
ANIMATED = ("GIF", "WEBP", "TIFF", "PNG")  # what has frames or pages; a phone's JPEG has previews


class ImageError(ValueError):
    """An image file that cannot be read or written; the message names the file and the cause."""


@dataclass
class Picture:
    """A decoded image, upright.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16.
        alpha: (H, W) of the same dtype, or None for an opaque image.
        gray: the file has one channel of colour (`rgb` has it three times), and so will a copy.
        profile: its ICC profile, or None.
        remark: a phrase about what was left out of the file; mostly empty.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    profile: bytes | None = None
    remark: str = ""


def find_images(folder: str | Path) -> list[Path]:
    """Every image below `folder`, in depth, in an order that is the same on every system."""
    found, visited = [], set()
    for root, dirs, files in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in visited:  # a link that leads back up
            dirs.clear()
            continue
        visited.add(os.path.realpath(root))
        dirs[:] = sorted(name for name in dirs if not name.startswith("."))
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(Path(root, name))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


# ---------------------------------------------------------------------------------------- reading


def read_picture(path: str | Path) -> Picture:
    """Decode a file with all that a result should keep of it.

    Raises:
        ImageError: it cannot be read; the message says why.
    """
    try:
        with Image.open(path) as file:
            deep = _has_16_bits(file)  # asked before anything makes Pillow load the file
            turn = UPRIGHT.get(file.getexif().get(ORIENTATION), (False, 0))
            frames = getattr(file, "n_frames", 1) if file.format in ANIMATED else 1
            picture = _decode_16_bits(path, file) if deep else _decode_8_bits(file)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        reason = str(error).replace(repr(str(path)), "it").replace(repr(path), "it")
        raise ImageError(f"{path}: {reason or type(error).__name__}") from error
    picture.rgb = _turned(picture.rgb, *turn)
    if picture.alpha is not None:
        picture.alpha = _turned(picture.alpha, *turn)
    if frames > 1:
        picture.remark = f"the first of {frames} frames"
    return picture


def read_image(path: str | Path) -> np.ndarray:
    """A file's colour alone, as training and metrics take it: uint8, (H, W, 3).

    Raises:
        ImageError: it cannot be read; the message says why.
    """
    return to_8_bits(read_picture(path).rgb)


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """Rounded to the nearest of 256 levels; uint8 stays as it is."""
    if image.dtype == np.uint8:
        return image
    rounded = np.empty(image.shape, np.uint8)
    for band in bands(len(image), image[0].size):
        rounded[band] = (image[band] + 128.0) / 257
    return rounded


def _has_16_bits(file: Image.Image) -> bool:
    if isinstance(file, TiffImagePlugin.TiffImageFile):
        return file.tag_v2.get(258, (8,))[0] == 16  # bits per sample
    return isinstance(file, PngImagePlugin.PngImageFile) and "16" in str(file.tile[0].args)


def _decode_8_bits(file: Image.Image) -> Picture:
    if file.mode in ("I", "F"):
        raise ImageError("it has 32 bits a channel; save it with 8 or 16")
    gray, profile = file.mode in ("1", "L", "LA", "La"), file.info.get("icc_profile")
    if file.mode == "CMYK":
        return Picture(np.array(_from_cmyk(file, profile)))  # which a CMYK profile does not fit
    if not file.has_transparency_data:
        return Picture(_pixels(file, "RGB"), None, gray, profile)
    rgba = _pixels(file, "RGBA")
    return Picture(rgba[..., :3], rgba[..., 3], gray, profile)


def _pixels(file: Image.Image, mode: str) -> np.ndarray:
    """(H, W, channels) of uint8. Of a whole image, Pillow's conversions would hold three copies."""
    pixels = np.empty((file.height, file.width, len(mode)), np.uint8)
    for band in bands(file.height, file.width * len(mode)):
        part = file.crop((0, band.start, file.width, band.stop))
        pixels[band] = np.asarray(part.convert(mode))
    return pixels


def _from_cmyk(file: Image.Image, profile: bytes | None) -> Image.Image:
    """To sRGB, by the profile where there is one: ink alone does not say what colour it is."""
    if profile:
        try:
            srgb = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(file, io.BytesIO(profile), srgb, outputMode="RGB")
        except (OSError, ImageCms.PyCMSError):  # a broken profile is as good as none
            converted = None
        if converted:
            return converted
    return file.convert("RGB")


def _decode_16_bits(path: str | Path, file: Image.Image) -> Picture:
    # OpenCV's imread knows no paths outside the system's code page on Windows; imdecode needs none.
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError("its 16-bit pixels cannot be decoded")
    profile = file.info.get("icc_profile")
    if pixels.ndim == 2:
        return Picture(np.stack([pixels] * 3, -1), None, True, profile)
    rgb = np.ascontiguousarray(pixels[..., 2::-1])  # OpenCV has blue before red
    if pixels.shape[2] == 3:
        return Picture(rgb, None, False, profile)
    gray = bool((rgb == rgb[..., :1]).all())  # it gives gray with alpha as colour with alpha
    return Picture(rgb, pixels[..., 3], gray, profile)


def _turned(pixels: np.ndarray, mirrored: bool, quarters: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if mirrored else pixels, quarters))


def bleed(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give every invisible pixel the colour of the nearest visible one.

    The colour under alpha 0 is arbitrary, mostly black, and a network would smear it into the
    edges: a dark halo.

    Args:
        rgb: (H, W, 3).
        alpha: (H, W).
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return rgb
    _, nearest = cv2.distanceTransformWithLabels(
        (~visible).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((nearest.max() + 1, 3), rgb.dtype)
    colours[nearest[visible]] = rgb[visible]  # each visible pixel has a label of its own
    return colours[nearest]


# ---------------------------------------------------------------------------------------- writing


def write_picture(picture: Picture, path: str | Path) -> str:
    """Encode to the type of the path's suffix; the file is there whole or not at all.

    PNG and TIFF keep 16 bits and alpha, WebP keeps alpha; JPEG and BMP get a white background.

    Returns:
        A phrase about what the type cannot hold; mostly empty.

    Raises:
        ImageError: the type cannot hold an image of that size.
    """
    path, suffix = Path(path), Path(path).suffix.lower()
    remarks = []
    rgb, alpha = picture.rgb, picture.alpha
    if rgb.dtype == np.uint16 and suffix not in (".png", ".tif", ".tiff"):
        remarks.append("8 of 16 bits")
        rgb, alpha = to_8_bits(rgb), None if alpha is None else to_8_bits(alpha)
    if alpha is not None and suffix in (".jpg", ".jpeg", ".bmp"):
        remarks.append("on white instead of transparent")
        opacity = alpha[..., None] / np.float32(255)
        rgb, alpha = np.uint8(rgb * opacity + 255 * (1 - opacity) + 0.5), None
    if picture.gray:
        rgb = rgb[..., :1]
    pixels = rgb if alpha is None else np.concatenate((rgb, alpha[..., None]), -1)
    try:
        encoded = _encode(pixels, suffix, picture.profile)
    except (ValueError, OSError, cv2.error) as error:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise ImageError(f"{path}: {size} pixels cannot be written ({error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(encoded)
    return ", ".join(remarks)


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write colour alone: uint8, (H, W, 3)."""
    write_picture(Picture(image), path)


def _encode(pixels: np.ndarray, suffix: str, profile: bytes | None) -> bytes:
    """(H, W, 1 to 4): gray, gray and alpha, RGB or RGBA."""
    channels = pixels.shape[2]
    if pixels.dtype == np.uint8:
        buffer = io.BytesIO()
        image = Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)
        best = {".jpg": JPEG, ".jpeg": JPEG, ".webp": dict(quality=95)}.get(suffix, {})
        image.save(buffer, Image.registered_extensions()[suffix], icc_profile=profile, **best)
        return buffer.getvalue()
    if suffix == ".png":
        # OpenCV has no gray with alpha, and blue before red.
        order = {1: [0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[channels]
        _, encoded = cv2.imencode(".png", pixels[..., order])
        return _with_profile(encoded.tobytes(), profile)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        pixels.squeeze(2) if channels == 1 else pixels,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        iccprofile=profile,
        metadata=None,
    )
    return buffer.getvalue()


def _with_profile(png: bytes, profile: bytes | None) -> bytes:
    """Put an iCCP chunk, which OpenCV does not write, behind the header (PNG, section 11.3.2.3)."""
    if not profile:
        return png
    chunk = b"iCCP" + b"ICC profile\0\0" + zlib.compress(profile)
    header = 8 + 25  # signature and IHDR
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return png[:header] + whole + png[header:]

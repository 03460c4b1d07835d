"""Images of every common kind, in and out: colour, alpha, 8 or 16 bits, profile, orientation.

Pillow reads and writes 8 bits; tifffile and imagecodecs what Pillow cannot.
"""

import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from images.bands import bands
from images.colour import GRAY, checked_profile, colour_space, to_srgb
from images.deep import left_out, read_deep
from images.jpeg import with_segments
from images.kinds import TRUNCATED, ImageError, refuse_raw, special_kind
from images.metadata import SEGMENT, Metadata, read_metadata
from images.modes import pixels_of
from images.opening import opened
from images.png import profile_chunk, with_chunks
from images.sequences import TiffPages
from images.tiff import is_tiff, read_tiff
from images.webp import is_lossless_webp
from utils import replacing

ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held
UPRIGHT = {  # its values -> (mirror left and right first, quarter turns to the left after that)
    **{1: (False, 0), 2: (True, 0), 3: (False, 2), 4: (True, 2)},
    **{5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)},
}
CUT_SHORT = (  # how decoders say so
    *("image file is truncated", "Truncated File Read"),
    "png_read_data_fn input stream too small",
)
# What has frames or pages; a phone's JPEG has previews.
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "HEIF", "FLI", "DCX")


@dataclass
class Picture:
    """A decoded image, upright.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16.
        alpha: (H, W) of the same dtype, or None for an opaque image.
        gray: the file has one channel of colour (`rgb` has it three times), and so will a copy.
        profile: its ICC profile, or None.
        remark: a phrase about what was left out of the file; mostly empty.
        complete: no pixel is made up, as the last rows of a file that is cut short are.
        metadata: what else the file says of it.
        lossless: its pixels are kept exactly in a file whose type often does not.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    profile: bytes | None = None
    remark: str = ""
    complete: bool = True
    metadata: Metadata = field(default_factory=Metadata)
    lossless: bool = False


@dataclass(frozen=True)
class FileType:
    """A type of file to write.

    Attributes:
        name: Pillow's.
        options: of its encoder.
        deep, alpha, gray: it holds 16 bits, transparency, one channel.
        profile: bytes of the largest profile that it holds so that Pillow opens it.
        holds: attributes of `Metadata`.
        largest: bytes of one of those.
    """

    name: str
    options: dict = field(default_factory=dict)
    deep: bool = False
    alpha: bool = False
    gray: bool = True
    profile: float = math.inf
    holds: tuple[str, ...] = ()
    largest: float = math.inf

    @property
    def lossy(self) -> bool:
        return "quality" in self.options


# Pillow unpacks at most 1 MiB of a PNG's profile. JPEG holds one in up to 255 segments; without
# subsampling it keeps the resolution of colours.
ANY = ("exif", "xmp", "iptc", "dpi", "comments", "texts")
PNG = FileType("PNG", deep=True, alpha=True, profile=2**20 - 1, holds=ANY)
JPEG = FileType(
    "JPEG", dict(quality=95, subsampling=0), profile=255 * 65519, holds=ANY[:5], largest=SEGMENT
)
WEBP = FileType("WEBP", dict(quality=95), alpha=True, gray=False, holds=ANY[:2])
TIFF = FileType("TIFF", deep=True, alpha=True, holds=ANY[:4])
WRITTEN = {
    ".png": PNG,
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), JPEG),
    **dict.fromkeys((".tif", ".tiff"), TIFF),
    ".webp": WEBP,
    ".bmp": FileType("BMP", profile=0, holds=("dpi",)),
    ".tga": FileType("TGA", alpha=True, profile=0),
}


# ---------------------------------------------------------------------------------------- reading


def read_picture(path: str | Path) -> Picture:
    """Decode a file with all that a result should keep of it.

    Raises:
        ImageError: it cannot be read; the message says why.
    """
    try:
        if special := special_kind(path):
            raise ImageError(f"it is {special}, not a file")
        refuse_raw(path)
        picture, orientation = _read_tiff(path) if is_tiff(path) else _read_other(path)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ImageError(f"{path}: {_reason(error)}") from error
    turn = UPRIGHT.get(orientation, UPRIGHT[1])
    picture.rgb = _turned(picture.rgb, *turn)
    if turn[1] % 2:
        picture.metadata = picture.metadata.turned()
    if picture.alpha is not None:
        picture.alpha = _turned(picture.alpha, *turn)
    picture.profile, misfit = checked_profile(picture.profile, picture.gray)
    picture.remark = "; ".join(filter(None, (picture.remark, misfit)))
    return picture


def _reason(error: Exception) -> str:
    """In plain words, and with what to do."""
    if isinstance(error, ImageError | MemoryError):
        return str(error) or "not enough memory"
    if strerror := getattr(error, "strerror", None):  # the system's
        return strerror
    if str(error).startswith(CUT_SHORT):
        return TRUNCATED
    return f"it is damaged ({str(error) or type(error).__name__}); get it again"


def read_image(path: str | Path) -> np.ndarray:
    """A file's colour alone, as training and metrics take it: uint8, (H, W, 3).

    Raises:
        ImageError: it cannot be read, or not all of it; the message says why.
    """
    return whole_8_bits(read_picture(path), path)


def whole_8_bits(picture: Picture, path: str | Path) -> np.ndarray:
    """The colours of a picture to learn from or to compare with: uint8, (H, W, 3).

    Raises:
        ImageError: a part of it is made up.
    """
    if not picture.complete:
        raise ImageError(f"{path}: {picture.remark}")
    return to_8_bits(picture.rgb)


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """Rounded to the nearest of 256 levels; uint8 stays as it is."""
    if image.dtype == np.uint8:
        return image
    rounded = np.empty(image.shape, np.uint8)
    for band in bands(len(image), image[0].size):
        rounded[band] = (image[band] + 128.0) / 257
    return rounded


def _read_tiff(path: str | Path) -> tuple[Picture, int]:
    pixels, orientation, profile, remark, metadata = read_tiff(path)
    return Picture(*pixels, profile, remark, metadata=metadata), orientation


def _read_other(path: str | Path) -> tuple[Picture, int]:
    """By Pillow, but for more than 8 bits; and the orientation that is yet to be applied."""
    with opened(path) as opening:
        file = opening.file
        frames = getattr(file, "n_frames", 1) if file.format in ANIMATED else 1
        remarks = [f"the first of {frames} frames"] if frames > 1 else []
        converted = file.mode in ("CMYK", "LAB")  # to sRGB, which the profile does not fit

        def content() -> bytes:
            return opening.content or Path(path).read_bytes()

        pixels = read_deep(file, content)
        if pixels is None:
            remarks += left_out(file, content)
            pixels = pixels_of(file)
        profile = None if converted else file.info.get("icc_profile")
        orientation = file.getexif().get(ORIENTATION, 1)
        gif = content() if file.format == "GIF" else None
        metadata, damage = read_metadata(file, opening.chunks, gif)
        lossless = file.format == "WEBP" and is_lossless_webp(content())
    remark = "; ".join(filter(None, [*remarks, *opening.remarks, damage]))
    picture = Picture(*pixels, profile, remark, opening.complete, metadata, lossless)
    return picture, orientation


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


def write_picture(picture: Picture, path: str | Path, quality: int | None = None) -> str:
    """Encode to the type of the path's suffix; the file is there whole or not at all.

    What the type cannot hold is turned into what it can: 16 bits into 8, alpha into a white
    background, colours into sRGB where their profile is too large or of the wrong kind. What it
    cannot hold of the metadata is left out, of which `not_held` tells.

    Args:
        picture: its metadata is mended to fit its pixels.
        path: of the file.
        quality: of a lossy type, 1 to 100; a lossless picture stays lossless.

    Returns:
        A phrase about what was turned; mostly empty.

    Raises:
        ImageError: the type cannot hold an image of that size.
    """
    path, kind = Path(path), WRITTEN[Path(path).suffix.lower()]
    held, remarks = _as_held(picture, kind)
    try:
        encoded = _encode(held, kind, quality)
    except (ValueError, OSError, RuntimeError) as error:
        size = f"{held.rgb.shape[1]}x{held.rgb.shape[0]}"
        raise ImageError(f"{path}: {size} pixels cannot be written ({error})") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(encoded)
    return ", ".join(remarks)


def not_held(picture: Picture, path: str | Path) -> list[str]:
    """What the type of a path's suffix cannot hold of a picture's metadata, in words."""
    kind = WRITTEN[Path(path).suffix.lower()]
    return [f"{kind.name} cannot hold {words}" for words in _metadata_held(picture, kind)[1]]


def _metadata_held(picture: Picture, kind: FileType) -> tuple[Metadata, list[str]]:
    height, width = picture.rgb.shape[:2]
    return picture.metadata.of_size(width, height).as_held(kind.holds, kind.largest)


def _as_held(picture: Picture, kind: FileType) -> tuple[Picture, list[str]]:
    """What a type of file holds of a picture, and phrases about the rest."""
    remarks = []
    rgb, alpha, gray, profile = picture.rgb, picture.alpha, picture.gray, picture.profile
    space = colour_space(profile) if profile else b""
    too_large = profile and len(profile) > kind.profile
    misfit = profile and (too_large or (space == GRAY and not kind.gray))
    if rgb.dtype == np.uint16 and not kind.deep:
        remarks.append("8 of 16 bits")
        rgb, alpha = to_8_bits(rgb), None if alpha is None else to_8_bits(alpha)
    if misfit:
        remarks.append(f"colours turned into sRGB, as {kind.name} cannot hold their profile")
        rgb, profile = to_srgb(rgb, profile), None
        gray = gray and bool((rgb == rgb[..., :1]).all())
    if alpha is not None and not kind.alpha:
        remarks.append("on white instead of transparent")
        opacity = alpha[..., None] / np.float32(255)
        rgb, alpha = np.uint8(rgb * opacity + 255 * (1 - opacity) + 0.5), None
    gray = gray and (profile is None or space == GRAY)  # one of RGB would not fit one channel
    metadata, _ = _metadata_held(picture, kind)
    held = replace(picture, rgb=rgb, alpha=alpha, gray=gray, profile=profile, metadata=metadata)
    return held, remarks


def write_image(image: np.ndarray, path: str | Path) -> None:
    """Write colour alone: uint8, (H, W, 3)."""
    write_picture(Picture(image), path)


def _encode(picture: Picture, kind: FileType, quality: int | None) -> bytes:
    """What `kind` holds, as its file."""
    metadata, profile = picture.metadata, picture.profile
    pixels = picture.rgb[..., :1] if picture.gray else picture.rgb
    if picture.alpha is not None:
        pixels = np.concatenate((pixels, picture.alpha[..., None]), -1)
    buffer = io.BytesIO()
    if kind is TIFF:
        pages = TiffPages(buffer, pixels.nbytes)
        pages.add(pixels, profile, metadata)
        pages.close()
        return buffer.getvalue()
    chunks = metadata.png_chunks()
    if pixels.dtype == np.uint16:
        chunks += [profile_chunk(profile)] if profile else []
        return with_chunks(bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels))), chunks)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.save(buffer, kind.name, icc_profile=profile, **_options(picture, kind, quality))
    encoded = buffer.getvalue()
    if kind is PNG:
        return with_chunks(encoded, chunks)
    return with_segments(encoded, metadata.jpeg_segments()) if kind is JPEG else encoded


def _options(picture: Picture, kind: FileType, quality: int | None) -> dict:
    """Of Pillow's encoder."""
    options, metadata = dict(kind.options), picture.metadata
    if kind.lossy and quality:
        options["quality"] = quality
    if kind is WEBP:
        options |= dict(lossless=True, exact=True) if picture.lossless else {}
        options["exif"] = metadata.exif.block() if metadata.exif else b""
        options["xmp"] = metadata.xmp
    if kind.name in ("JPEG", "BMP") and metadata.dpi and max(metadata.dpi) < 2**16:
        options["dpi"] = metadata.dpi
    return options

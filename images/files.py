"""Images of every common kind, in and out: colour, alpha, 8 or 16 bits, profile, orientation.

Pillow reads and writes 8 bits; tifffile and imagecodecs what Pillow cannot.
"""

import io
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TypeAlias

import cv2
import imagecodecs
import numpy as np
from PIL import Image

from images.bands import in_bands
from images.colour import GRAY, adobe_rgb, checked_profile, colour_space, to_srgb
from images.deep import left_out, read_deep
from images.filetypes import GIF, JPEG, PNG, TIFF, WEBP, WRITTEN, FileType
from images.frames import ANIMATED, FRAMES, PAGES, first_frame, first_of, later_frames, plays_of
from images.gif import GifAnimation, as_few_colours, encoded_gif
from images.jpeg import with_segments
from images.kinds import ImageError, PartlyWritten, reason_of, refuse_raw, special_kind
from images.metadata import Metadata, read_metadata
from images.modes import has_inks, pixels_of
from images.opening import opened
from images.pages import TiffPages
from images.pictures import Picture, Sequence
from images.png import PngAnimation, profile_chunk, with_chunks
from images.tiff import Tiff, is_tiff, later_pages, read_tiff
from images.webp import WebpAnimation, is_lossless_webp
from utils import WriteError, replacing

# EXIF's orientations -> (mirror left and right first, quarter turns to the left after that).
UPRIGHT = {
    **{1: (False, 0), 2: (True, 0), 3: (False, 2), 4: (True, 2)},
    **{5: (True, 1), 6: (False, 3), 7: (True, 3), 8: (False, 1)},
}
SEVERAL = (*ANIMATED, "HEIF", "DCX")  # what has frames or pages; a phone's JPEG has previews


Animation: TypeAlias = PngAnimation | WebpAnimation | GifAnimation
Writer: TypeAlias = Animation | TiffPages
ANIMATIONS: dict[str, type[Animation]] = {
    "PNG": PngAnimation,
    "WEBP": WebpAnimation,
    "GIF": GifAnimation,
}


# ---------------------------------------------------------------------------------------- reading


def read_picture(path: str | Path, several: tuple[str, ...] = ()) -> Picture:
    """Decode a file with all that a result should keep of it.

    Args:
        path: of the file.
        several: kinds of sequences that are wanted; of others the first picture is.

    Raises:
        ImageError: it cannot be read; the message says why.
    """
    try:
        if special := special_kind(path):
            raise ImageError(f"it is {special}, not a file")
        refuse_raw(path)
        read = _read_tiff if is_tiff(path) else _read_other
        return read(path, several)
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged files
        raise ImageError(f"{path}: {reason_of(error)}") from error


def _upright(picture: Picture, orientation: int) -> Picture:
    """As it is to be seen, and with a profile that fits."""
    turn = UPRIGHT.get(orientation, UPRIGHT[1])
    profile, misfit = checked_profile(picture.profile, picture.gray)
    metadata = picture.metadata
    if turn != UPRIGHT[1]:
        metadata = metadata.without_regions()
    return replace(
        picture.mapped(lambda pixels: _turned(pixels, *turn)),
        profile=profile,
        remark="; ".join(filter(None, (picture.remark, misfit))),
        metadata=metadata.turned() if turn[1] % 2 else metadata,
    )


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
    return in_bands(lambda part: ((part + 128.0) / 257).astype(np.uint8), image)


def _read_tiff(path: str | Path, several: tuple[str, ...]) -> Picture:
    first, sizes = read_tiff(path)
    picture, count = _of_tiff(first), len(sizes)
    if count > 1 and PAGES in several:

        def rest() -> Iterator[Picture | ImageError]:
            for page in later_pages(path):
                yield page if isinstance(page, ImageError) else _of_tiff(page)

        picture.sequence = Sequence(PAGES, count, 0, rest, tuple(sizes))
    elif count > 1:
        picture.remark = ", ".join(filter(None, (first_of(count), picture.remark)))
    return picture


def _of_tiff(page: Tiff) -> Picture:
    picture = Picture(*page.pixels, page.profile, page.remark, metadata=page.metadata)
    return _upright(picture, page.orientation)


def _read_other(path: str | Path, several: tuple[str, ...]) -> Picture:
    """By Pillow, but for more than 8 bits of what does not move."""
    with opened(path) as opening:
        file = opening.file
        count = getattr(file, "n_frames", 1) if file.format in SEVERAL else 1
        moves = count > 1 and file.format in ANIMATED and FRAMES in several
        remarks = [] if count == 1 or moves else [first_of(count)]
        kind = "CMYK" if has_inks(file) else file.mode
        converted = kind in ("CMYK", "LAB")  # to sRGB, which the profile does not fit
        remarks += [f"{kind} turned into sRGB"] if converted else []

        @cache  # several look into it
        def content() -> bytes:
            return opening.content or Path(path).read_bytes()

        deep, duration = read_deep(file, content), None
        if deep is None:
            remarks += left_out(file, content)
        if moves:  # decoded frame by frame, mostly with 8 bits
            pixels, duration = first_frame(file, content)
            remarks += ["8 bits of more"] if deep and deep.rgb.dtype != pixels.rgb.dtype else []
        else:
            pixels = deep or pixels_of(file)
        profile = None if converted else file.info.get("icc_profile")
        if not profile and opening.says_adobe_rgb():
            profile = adobe_rgb()
        orientation, plays = opening.orientation(), plays_of(file, content)
        gif = content() if file.format == "GIF" else None
        metadata, damage = read_metadata(file, opening.chunks, gif)
        lossless = file.format == "WEBP" and is_lossless_webp(content())
    remark = "; ".join(filter(None, [*remarks, *opening.remarks, damage]))
    picture = Picture(*pixels, profile, remark, opening.complete, metadata, lossless)
    picture = replace(_upright(picture, orientation), duration=duration)
    if moves:
        like = replace(picture, metadata=Metadata(), remark="")
        rest = partial(_later_frames, path, count, like, orientation)
        picture.sequence = Sequence(FRAMES, count, plays, rest)
    return picture


def _later_frames(
    path: str | Path, count: int, like: Picture, orientation: int
) -> Iterator[Picture | ImageError]:
    for frame in later_frames(path, count):
        if isinstance(frame, ImageError):
            yield frame
        else:
            rgb, alpha, gray = frame.pixels
            picture = replace(like, rgb=rgb, alpha=alpha, gray=gray, duration=frame.duration)
            yield _upright(picture, orientation)


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


def on_white(rgb: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """How a picture looks on white: uint8, (H, W, 3), through alpha, (H, W); None: it is opaque."""
    if alpha is None:
        return rgb

    def mix(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
        share = opacity[..., None] / np.float32(255)
        return (colours * share + 255 * (1 - share) + 0.5).astype(np.uint8)

    return in_bands(mix, rgb, alpha)


def as_seen(
    picture: Picture, window: tuple[slice, slice] = (slice(None), slice(None))
) -> np.ndarray:
    """Rows and columns of a picture as a screen shows them: uint8, (H, W, 3), sRGB, on white."""
    shown = picture.mapped(lambda pixels: to_8_bits(pixels[window]))
    return on_white(to_srgb(shown.rgb, shown.profile), shown.alpha)


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
        ImageError: no type that is written has that suffix, or the type cannot hold an image of
            that size; or frames of an animation cannot be read: the file has the others.
        WriteError: the file or its folder cannot be written.
    """
    path = Path(path)
    kind = WRITTEN.get(path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path}: images are written to {', '.join(WRITTEN)}")
    if picture.sequence and picture.sequence.kind in kind.several:
        return _write_sequence(picture, picture.sequence, path, quality)
    encoded, remarks = _as_file(picture, path, quality)
    make_folder(path.parent)
    with replacing(path) as file:
        file.write(encoded)
    return ", ".join(remarks)


def make_folder(folder: Path) -> None:
    """Make it, unless it is there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the folder {folder} cannot be made ({error.strerror or error})"
        sentence = f"{reason}. Fix that, then give the same command again."
        raise WriteError(sentence, error.errno) from error


def _as_file(picture: Picture, path: Path, quality: int | None) -> tuple[bytes, list[str]]:
    """The content of the file that `path` names, and phrases about what was turned for it."""
    kind = WRITTEN[path.suffix.lower()]
    held, remarks = _as_held(picture, kind)
    try:
        return _encode(held, kind, quality), remarks
    except (ValueError, OSError, RuntimeError, OverflowError, struct.error) as error:
        size = f"{held.rgb.shape[1]}x{held.rgb.shape[0]}"
        raise ImageError(f"{path}: {size} pixels cannot be written ({error})") from error


def _write_sequence(picture: Picture, sequence: Sequence, path: Path, quality: int | None) -> str:
    """One picture at a time is in memory.

    Raises:
        PartlyWritten: some of them cannot be read; what is at `path` stays, and a file beside it
            has the others.
    """
    kind = WRITTEN[path.suffix.lower()]
    told: dict[str, None] = {}  # each once, in order
    errors = []
    make_folder(path.parent)
    with replacing(path) as file:
        writer = _writer(file, kind, picture, sequence)
        for each in chain([picture], sequence.rest()):
            if isinstance(each, ImageError):
                errors.append(str(each))
            else:
                told |= dict.fromkeys([each.remark] if each is not picture else [])
                told |= dict.fromkeys(_add(writer, each, path, quality))
        writer.close()
        if errors:
            others = path.with_stem(f"{path.stem}.partly")
            _copy(file, others)
            raise PartlyWritten(f"{'; '.join(errors)}. The others are in {others}", others)
    if sequence.kind == FRAMES and kind is TIFF:
        told["without the times of its frames"] = None
    return ", ".join(filter(None, told))


def _copy(file: BinaryIO, path: Path) -> None:
    file.seek(0)
    with replacing(path) as other:
        shutil.copyfileobj(file, other)


def _writer(file: BinaryIO, kind: FileType, picture: Picture, sequence: Sequence) -> Writer:
    if kind is TIFF:
        return TiffPages(file, 2 * 3 * picture.rgb.itemsize * picture.area)
    return ANIMATIONS[kind.name](file, sequence.plays)


def _add(writer: Writer, picture: Picture, path: Path, quality: int | None) -> list[str]:
    """Phrases about what was turned."""
    if isinstance(writer, TiffPages):
        held, remarks = _as_held(picture, TIFF)
        writer.add(_stacked(held), held.profile, held.metadata)
    else:
        encoded, remarks = _as_file(picture, path, quality)
        writer.add(encoded, picture.duration)
    return remarks


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
        if alpha.min() < np.iinfo(alpha.dtype).max:
            remarks.append("on white instead of transparent")
            rgb = on_white(rgb, alpha)
        alpha = None
    if kind is GIF:
        rgb, alpha, changed = as_few_colours(rgb, alpha)
        remarks += ["256 colours, each opaque or clear"] if changed else []
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
    pixels = _stacked(picture)
    buffer = io.BytesIO()
    if kind is TIFF:
        pages = TiffPages(buffer, pixels.nbytes)
        pages.add(pixels, profile, metadata)
        pages.close()
        return buffer.getvalue()
    if kind is GIF:
        return encoded_gif(picture.rgb, picture.alpha, metadata.gif_extensions())
    chunks = metadata.png_chunks()
    if pixels.dtype == np.uint16:
        chunks += [profile_chunk(profile)] if profile else []
        level = PNG.options["compress_level"]
        encoded = imagecodecs.png_encode(np.ascontiguousarray(pixels), level=level)
        return with_chunks(bytes(encoded), chunks)
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    image.save(buffer, kind.name, icc_profile=profile, **_options(picture, kind, quality))
    encoded = buffer.getvalue()
    if kind is PNG:
        return with_chunks(encoded, chunks)
    return with_segments(encoded, metadata.jpeg_segments()) if kind is JPEG else encoded


def _stacked(picture: Picture) -> np.ndarray:
    """(H, W, 1 to 4): gray, gray and alpha, RGB or RGBA."""
    colour = picture.rgb[..., :1] if picture.gray else picture.rgb
    return colour if picture.alpha is None else np.dstack((colour, picture.alpha))


def _options(picture: Picture, kind: FileType, quality: int | None) -> dict:
    """Of Pillow's encoder."""
    options, metadata = dict(kind.options), picture.metadata
    if kind.lossy and quality:
        options["quality"] = quality
    if kind is WEBP:
        options |= dict(lossless=True, exact=True) if picture.lossless else {}
        options["exif"] = metadata.exif.block() if metadata.exif else b""
        options["xmp"] = metadata.xmp
    if kind.name in ("JPEG", "BMP"):  # where Pillow may write one that nobody has named
        fits = metadata.dpi and max(metadata.dpi) < 2**16
        options["dpi"] = metadata.dpi if fits else (0, 0)
    return options

"""TIFF by tifffile, from the file's own tags: every kind becomes right pixels or a clear refusal.

What the tags mean: "TIFF, Revision 6.0" (Adobe, 1992) and its technical notes.
"""

import logging
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG, TiffFile, TiffPage

from images.bands import in_bands
from images.frames import first_of
from images.kinds import (
    TIFF_STARTS,
    TRUNCATED,
    ImageError,
    NoLimit,
    refuse_too_large,
    unread,
)
from images.levels import Pixels, from_channels, rgb_of_inks, rgb_of_lab, scaled, straight
from images.metadata import Metadata, tiff_metadata
from images.modes import pixels_of

PHOTOMETRIC_TAG, ORIENTATION, INK_SET, SUBSAMPLING, PROFILE = 262, 274, 332, 530, 34675
LUMA = {529: (0.299, 0.587, 0.114), 532: (0, 255, 128, 255, 128, 255)}  # YCbCr of JPEG, by tag
COLOURS: dict[int, int] = {  # channels of colour that each photometric interpretation has
    **{PHOTOMETRIC.MINISWHITE: 1, PHOTOMETRIC.MINISBLACK: 1, PHOTOMETRIC.PALETTE: 1},
    **{PHOTOMETRIC.RGB: 3, PHOTOMETRIC.YCBCR: 3, PHOTOMETRIC.CIELAB: 3, PHOTOMETRIC.ICCLAB: 3},
    PHOTOMETRIC.SEPARATED: 4,
}
LAB = (PHOTOMETRIC.CIELAB, PHOTOMETRIC.ICCLAB)
BITS: dict[int, tuple[int, ...]] = {  # of the others, any number up to 16
    **{PHOTOMETRIC.CIELAB: (8, 16), PHOTOMETRIC.ICCLAB: (8, 16), PHOTOMETRIC.YCBCR: (8, 12)}
}
OLD = (  # compressions
    *(COMPRESSION.CCITTRLE, COMPRESSION.CCITT_T4, COMPRESSION.CCITT_T6),
    *(COMPRESSION.OJPEG, COMPRESSION.THUNDERSCAN),
)
KINDS = {"i": " (signed)", "f": " (floating point)", "c": " (complex)"}  # numpy's letters
REDUCED, MASK = 1, 4  # bits of NewSubfileType
QUARTERS = (5, 6, 7, 8)  # orientations that are upright after a quarter turn

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # it logs, besides, what it raises


class Tiff(NamedTuple):
    """A picture as it lies in the file.

    Attributes:
        orientation: the value of its tag, 1 to 8, to be applied yet.
        profile: the ICC profile that belongs to `pixels`, or None.
        remark: a phrase about what was left out; mostly empty.
        metadata: of the page.
    """

    pixels: Pixels
    orientation: int
    profile: bytes | None
    remark: str
    metadata: Metadata


def is_tiff(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in TIFF_STARTS


def read_tiff(path: str | Path) -> tuple[Tiff, list[tuple[int, int]]]:
    """The first picture of a TIFF file; height and width, once upright, of all that it has.

    Raises:
        ImageError: it is damaged, or of a kind that has no one right conversion to RGB.
    """
    with open(path, "rb") as stream, TiffFile(stream) as file:
        pages, _ = _pictures(file)
        images = (file.imagej_metadata or {}).get("images", 1)
        tiff = _read_page(path, pages[0])
    if images > len(pages):  # as ImageJ does it, which only the first picture is read of
        tiff = tiff._replace(remark=", ".join(filter(None, (first_of(images), tiff.remark))))
    return tiff, [_upright_size(page) for page in pages]


def _upright_size(page: TiffPage) -> tuple[int, int]:
    size = (page.imagelength, page.imagewidth)
    return size[::-1] if page.tags.valueof(ORIENTATION, 1) in QUARTERS else size


def area_by_tags(path: str | Path) -> int:
    """Pixels of the first picture of a TIFF file."""
    with open(path, "rb") as stream, TiffFile(stream) as file:
        pages, _ = _pictures(file)
        return pages[0].imagewidth * pages[0].imagelength


def later_pages(path: str | Path) -> Iterator[Tiff | ImageError]:
    """All pictures but the first; an error stands for each that cannot be read.

    Raises:
        ImageError: one cannot be read now, for no fault of the file.
    """
    with open(path, "rb") as stream, TiffFile(stream) as file:
        pages, broken = _pictures(file)
        for i, page in enumerate(pages[1:], 2):
            try:
                tiff = _read_page(path, page)
            except Exception as error:  # each codec has a type of its own
                yield unread(f"page {i} of {len(pages)}", error)
            else:
                yield tiff
    if broken:
        yield ImageError(f"it is damaged after page {len(pages)}; get it again")


def count_pages(path: str | Path) -> int:
    """Pictures of a TIFF file; 1 of any other, and of one that cannot be read."""
    try:
        if not is_tiff(path):
            return 1
        with open(path, "rb") as stream, TiffFile(stream) as file:
            return len(_pictures(file)[0])
    except Exception:  # of many types; reading it will tell
        return 1


def _read_page(path: str | Path, page: TiffPage) -> Tiff:
    _refuse_unknown(page)
    remarks = []
    profile = page.tags.valueof(PROFILE)
    if _needs_libtiff(page):
        pixels, orientation = _by_pillow(path, page.index)
    else:
        pixels, orientation = _by_tifffile(page), page.tags.valueof(ORIENTATION, 1)
        used = COLOURS[_photometric(page)] + (pixels.alpha is not None)
        if page.samplesperpixel > used:
            remarks.append(f"{used} of {page.samplesperpixel} channels")
    if _photometric(page) in (PHOTOMETRIC.SEPARATED, *LAB):
        profile = None  # they are sRGB by now
        name = "L*a*b*" if _photometric(page) in LAB else "CMYK"
        remarks.append(f"{name} turned into sRGB")
    metadata, damage = _metadata(path, page.offset)
    remarks += [damage] if damage else []
    if orientation != (lay := page.tags.valueof(ORIENTATION, 1)):  # Pillow has turned it already
        metadata = metadata.without_regions()
        metadata = metadata.turned() if lay in QUARTERS else metadata
    return Tiff(pixels, orientation, profile, ", ".join(remarks), metadata)


def _metadata(path: str | Path, offset: int) -> tuple[Metadata, str]:
    with open(path, "rb") as file:
        try:
            data = mmap(file.fileno(), 0, access=ACCESS_READ)
        except OSError:  # some network drives and FUSE's direct_io map no file
            return tiff_metadata(file.read(), offset)
        with data:
            return tiff_metadata(data, offset)


def _pictures(file: TiffFile) -> tuple[list[TiffPage], bool]:
    """The pages that are no thumbnails and no masks, and whether more of them are damaged."""
    pages, broken = _pages(file)
    whole = [page for page in pages if not page.subfiletype & (REDUCED | MASK)]
    if not whole and pages[0].subifds:
        raise ImageError("it is a raw photograph with a preview; save it as plain TIFF")
    if not whole and broken:
        raise ImageError("all but a thumbnail or a mask in it is damaged; get it again")
    return whole or pages[:1], broken


def _pages(file: TiffFile) -> tuple[list[TiffPage], bool]:
    """The chain of pages, and whether it ends at a damaged one, or at one that it had before."""
    pages: list[TiffPage] = []
    seen = set()
    try:
        for page in file.pages:  # never their number: tifffile would count a loop for ever
            if page.offset in seen or not isinstance(page, TiffPage):
                return pages, True
            if pages and page.imagewidth * page.imagelength == 0:
                return pages, True
            seen.add(page.offset)
            pages.append(page)
    except Exception:  # of many types
        if not pages:
            raise
        return pages, True
    file.filehandle.seek(file.pages.next_page_offset or 0)
    return pages, any(file.filehandle.read(file.tiff.offsetsize))  # which leads out of the file


def _photometric(page: TiffPage) -> int:
    """As libtiff has it where the tag, which is obligatory, is not there."""
    usual = PHOTOMETRIC.MINISBLACK if page.samplesperpixel < 3 else PHOTOMETRIC.RGB
    return page.photometric if PHOTOMETRIC_TAG in page.tags else usual


def _refuse_unknown(page: TiffPage) -> None:
    bits: Any = page.bitspersample  # a tuple where they differ
    photometric = _photometric(page)
    unwanted = max(0, page.samplesperpixel - 4)
    of_pixel = unwanted * (page.dtype.itemsize if page.dtype is not None else 1)
    refuse_too_large(page.imagewidth, page.imagelength, of_pixel)
    if isinstance(bits, tuple):
        raise ImageError(f"its channels have {bits} bits; save it with 8 or 16")
    if page.dtype is None or page.dtype.kind not in "bu" or bits > 16:
        kind = KINDS.get(page.dtype.kind, "") if page.dtype is not None else ""
        raise ImageError(f"it has {bits} bits a channel{kind}; save it with 8 or 16")
    if page.imagedepth > 1:
        raise ImageError("it is a volume; save one of its slices")
    name = getattr(photometric, "name", photometric)
    known = photometric in COLOURS and page.samplesperpixel >= COLOURS[photometric]
    if not known or bits not in BITS.get(photometric, range(17)):
        raise ImageError(
            f"its colours are {name} of {page.samplesperpixel} channels, {bits} bits each; "
            "save it as RGB or gray"
        )
    uncompressed = page.compression == COMPRESSION.NONE  # for which Pillow needs no libtiff
    if photometric == PHOTOMETRIC.YCBCR and uncompressed and not _is_luma_of_jpeg(page):
        raise ImageError("its YCbCr is subsampled or scaled otherwise than JPEG's; save it as RGB")
    if photometric == PHOTOMETRIC.SEPARATED and page.tags.valueof(INK_SET, 1) != 1:
        raise ImageError("its inks are not cyan, magenta, yellow and black; save it as RGB")


def _is_luma_of_jpeg(page: TiffPage) -> bool:
    """Whether YCbCr is what Pillow takes it for: JPEG's, at full resolution."""
    usual = page.tags.valueof(SUBSAMPLING, (2, 2)) == (1, 1)
    for tag, values in LUMA.items():
        fractions = np.reshape(page.tags.valueof(tag, [(n, 1) for n in values]), (-1, 2))
        usual &= np.allclose(fractions[:, 0] / fractions[:, 1], values, atol=1e-3)
    return usual


def _needs_libtiff(page: TiffPage) -> bool:
    """Kinds of 8 bits or 1 that Pillow reads by libtiff, and tifffile not at all or only lately."""
    if page.compression in OLD:
        return True
    decoded = page.compression == COMPRESSION.JPEG or _is_luma_of_jpeg(page)
    return _photometric(page) == PHOTOMETRIC.YCBCR and not decoded


def _by_pillow(path: str | Path, index: int) -> tuple[Pixels, int]:
    with NoLimit(), Image.open(path, formats=["TIFF"]) as image:
        image.seek(index)
        pixels = pixels_of(image)
        return pixels, image.getexif().get(ORIENTATION, 1)  # newer ones apply and delete the tag


def _by_tifffile(page: TiffPage) -> Pixels:
    levels, photometric, highest = _levels(page), _photometric(page), 2**page.bitspersample - 1
    count = COLOURS[photometric]
    alpha, multiplied = None, False
    if (place := _alpha_channel(page, count)) is not None:
        alpha = scaled(levels[..., place], highest)
        multiplied = page.extrasamples[place - count :][:1] == (EXTRASAMPLE.ASSOCALPHA,)
    levels = levels[..., :count]
    if photometric == PHOTOMETRIC.PALETTE:
        return _looked_up(levels[..., 0], alpha, page.colormap)
    if photometric in LAB:
        signed = photometric == PHOTOMETRIC.CIELAB
        room_above = highest > 255 and not signed  # of ICC's encoding
        full = 0xFF00 if room_above else highest
        return Pixels(rgb_of_lab(levels, full, signed), alpha)
    if photometric == PHOTOMETRIC.YCBCR and page.compression != COMPRESSION.JPEG:
        size = (page.imagewidth, page.imagelength)
        return pixels_of(Image.frombytes("YCbCr", size, levels.tobytes()))._replace(alpha=alpha)
    colour = scaled(levels, highest, inverted=photometric == PHOTOMETRIC.MINISWHITE)
    if alpha is not None and multiplied:
        colour = straight(colour, alpha)
    if photometric == PHOTOMETRIC.SEPARATED:
        return Pixels(rgb_of_inks(colour, page.tags.valueof(PROFILE)), alpha)
    return from_channels(colour, alpha)


def _levels(page: TiffPage) -> np.ndarray:
    """(H, W, C): what the file says of each pixel."""
    told = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    size = page.parent.filehandle.size
    if page.compression == COMPRESSION.NONE:
        page.databytecounts = _needed_bytes(page)  # whatever the file says that they are
    else:
        size += len(b"\xff\xd9")  # JPEG's end, which nobody misses
    places = zip(page.dataoffsets, page.databytecounts, strict=False)
    present = sum(start > 0 < count and start + count <= size for start, count in places)
    sparse = told.count((0, 0))  # GDAL's word for zeros
    if present == 0 or present + sparse < np.prod(page.chunked):
        # JPEG's decoder would make up what is not there, and tifffile leave whole strips black.
        raise ImageError(TRUNCATED)
    try:
        levels = page.asarray(squeeze=False)[:, 0]
    except Exception as error:  # each codec has a type of its own
        name = getattr(page.compression, "name", page.compression)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"its pixels ({name}) cannot be decoded: {reason}") from error
    levels = levels.view(np.uint8) if levels.dtype == bool else levels
    separate = page.planarconfig == PLANARCONFIG.SEPARATE
    return np.moveaxis(levels[..., 0], 0, -1) if separate else levels[0]


def _needed_bytes(page: TiffPage) -> tuple[int, ...]:
    """The bytes of each strip or tile without compression; 0 of one that has no place."""
    separate = page.planarconfig == PLANARCONFIG.SEPARATE
    channels = 1 if separate else page.samplesperpixel
    width = page.tilewidth or page.imagewidth
    height = page.tilelength or page.rowsperstrip or page.imagelength
    row = -(-width * channels * page.bitspersample // 8)
    strips = -(-page.imagelength // height)  # of one plane
    counts = []
    for i, offset in enumerate(page.dataoffsets):
        rows = height if page.is_tiled else min(height, page.imagelength - i % strips * height)
        counts.append(row * rows if offset else 0)
    return tuple(counts)


def _alpha_channel(page: TiffPage, colours: int) -> int | None:
    """Which channel is alpha: the first that the file calls so.

    Programs that write a fourth channel without a word about extra samples, such as OpenCV, mean
    alpha. "Unspecified" is what it says: Photoshop keeps masks and selections there.
    """
    if page.samplesperpixel == colours + 1 and not page.extrasamples:
        return colours
    alphas = (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA)
    found = [i for i, kind in enumerate(page.extrasamples) if kind in alphas]
    return colours + found[0] if found else None


def _looked_up(indices: np.ndarray, alpha: np.ndarray | None, palette: np.ndarray | None) -> Pixels:
    """The colours of a palette, (3, N) of uint16, which of most are 8 bits at heart."""
    if palette is None or indices.max() >= palette.shape[1]:
        raise ImageError("its palette is missing or too short; is it damaged?")
    small = palette.max() < 256  # libtiff, too, takes these for 8 bits
    eight = small or (palette % 257 == 0).all() or (palette % 256 == 0).all()
    if eight and (alpha is None or alpha.dtype == np.uint8):
        palette = (palette if small else palette >> 8).astype(np.uint8)
    elif alpha is not None and alpha.dtype == np.uint8:
        alpha = alpha * np.uint16(257)
    return Pixels(in_bands(palette.T.__getitem__, indices), alpha)

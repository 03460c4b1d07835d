"""Which files are images: what a folder holds, what is read, and what to do about the rest.

A file's first bytes decide what it is. Its suffix decides only whether a folder's search looks at
it, and tells cameras' raw files, which begin like TIFF, from TIFF.
"""

import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from errno import EINVAL
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, TypeGuard

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, features

from images.names import PACKED
from utils import free_memory, listed

# Pillow's names of what it decodes by itself -> suffixes. Not of these: IM and SPIDER, for which
# it takes files of many other kinds, and PSD, of which it shows a preview that may be missing.
READ = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "FLI": (".fli", ".flc"),
    "GBR": (".gbr",),
    "MSP": (".msp",),
    "PIXAR": (".pxr",),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "XVTHUMB": (),
    "TGA": (".tga", ".icb", ".vda", ".vst"),  # has no magic bytes, so it comes last
}
HEIF = "HEIC and HEIF are read once this is installed: pip install pillow-heif"
JXL = "JPEG XL is read once this is installed: pip install pillow-jxl-plugin"
AVIF = "AVIF is read by Pillow 11.3 and newer"
RAW = "a camera's raw file; develop it first and save 16-bit TIFF or PNG"
LAYERS = "an editor's file with layers; export it as PNG or TIFF"
DRAWING = "a drawing or a document, not pixels; export it as PNG at the size that you need"
HDR = "it holds light as floating-point numbers; tone-map it and save 16-bit TIFF or PNG"
SCIENCE = "scientific or medical data; save it as TIFF or PNG with 8 or 16 bits"
PREVIEW = "a Photo CD, of which only a preview would be read; convert it to TIFF or PNG"
JPEG = "its kind of JPEG (12 bits, JPEG-LS) is not read, or it is damaged; save it anew as PNG"
OTHERS = {  # names -> suffixes, and first bytes
    "JPEG XR": ((".jxr", ".wdp", ".hdp"), (b"II\xbc\x01",)),
    "JPEG-LS": ((".jls",), ()),
    "High-throughput JPEG 2000": ((".jph", ".jhc"), ()),
    "PAM": ((".pam",), (b"P7\n",)),
    "DPX or Cineon": ((".dpx", ".cin"), (b"SDPX", b"XPDS", b"\x80\x2a\x5f\xd7")),
    "BPG": ((".bpg",), (b"BPG\xfb",)),
    "FLIF": ((".flif",), (b"FLIF",)),
}
UNREAD = {f"{name} is not read; save it as PNG or TIFF": of for name, of in OTHERS.items()}
WEB_PAGE = "it is a web page, no image"
POINTER = "it only points at the file in Git LFS; run `git lfs pull`"
DOCUMENTS = (DRAWING, WEB_PAGE, POINTER)  # of which a folder may have many that are no images
REMEDIES = {  # what looks like an image and is not read -> why, and what to do
    HEIF: (".heic", ".heif", ".hif", ".heics", ".heifs"),
    JXL: (".jxl",),
    RAW: (
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
        *(".raf", ".pef", ".srw", ".raw", ".3fr", ".fff", ".iiq", ".rwl", ".x3f", ".erf", ".kdc"),
        *(".dcr", ".mrw", ".mef", ".mos", ".gpr"),
    ),
    LAYERS: (".psd", ".psb", ".xcf", ".kra", ".ora", ".clip", ".afphoto", ".pdn"),
    DRAWING: (".svg", ".svgz", ".eps", ".ps", ".pdf", ".ai", ".wmf", ".emf", ".djvu"),
    HDR: (".exr", ".hdr", ".rgbe"),
    SCIENCE: (".fits", ".dcm"),
    PREVIEW: (".pcd",),
    **{reason: of[0] for reason, of in UNREAD.items()},
}
PLUGINS = {  # of those, what a package teaches Pillow -> its module, and Pillow's name
    HEIF: ("pillow_heif", "HEIF"),
    JXL: ("pillow_jxl.JpegXLImagePlugin", "JXL"),
}
NOT_READ = {suffix: reason for reason, suffixes in REMEDIES.items() for suffix in suffixes}
MAGIC = {  # first bytes of such files, whatever they are called; "ftyp" stands behind a length
    HEIF: tuple(b"ftyp" + brand for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    JXL: (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    RAW: (b"ftypcrx", b"II*\0\x10\0\0\0CR", b"FUJIFILMCCD-RAW", b"IIRO", b"IIU\0", b"\0MRM"),
    LAYERS: (b"8BPS", b"gimp xcf"),
    DRAWING: (b"%!PS", b"\xc5\xd0\xd3\xc6", b"%PDF", b"<svg", b"<?xml", b"\xd7\xcd\xc6\x9a"),
    HDR: (b"v/1\x01", b"#?RADIANCE", b"#?RGBE", b"PF\n"),
    SCIENCE: (b"SIMPLE  =",),
    AVIF: (b"ftypavi",),
    **{reason: of[1] for reason, of in UNREAD.items()},
    WEB_PAGE: (b"<!doctype", b"<!DOCTYPE", b"<html"),
    POINTER: (b"version https://g",),
}
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # both byte orders, plain and BigTIFF
CODESTREAM = b"\xff\x4f\xff\x51"  # the markers that one of JPEG 2000 begins with
CERTAIN = (  # first bytes of what is read that hardly any other file has, whatever it is called
    *(PNG_START, JPEG_START, *TIFF_STARTS, CODESTREAM, b"\0\0\0\x0cjP  \r\n\x87\n"),
    *(b"GIF87a", b"GIF89a", b"qoif", b"DDS \x7c\0\0\0"),
)
UNFINISHED = (".part", ".crdownload", ".download", ".tmp")  # of programs that still write them
SPECIAL = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
TRUNCATED = "it is cut short; get it again"
CUT_SHORT = (  # how decoders say so
    *("image file is truncated", "Truncated File Read"),
    "png_read_data_fn input stream too small",
)
# And so, of a kind of file.
UNKNOWN = ("Unsupported", "Unimplemented", "Unknown pixel format", "unrecognized raw mode")
COARSE = "it is cut short: only a coarse version of it is there; get it again"
DNG_VERSION = 0xC612  # a tag of TIFF that only raw files have
NO_IMAGES = "holds no PNG, JPEG, WebP, TIFF, AVIF, BMP, GIF or other image, at any depth"
SHOWN = 3  # files named of those that share a reason
PIXEL_BYTES = 12  # of memory for each pixel while it is decoded: Pillow's copies and ours


class ImageError(ValueError):
    """An image file that cannot be read or written; the message names the file and the cause."""


class PartlyWritten(ImageError):
    """A sequence is written, without the pictures of its original that the message tells of.

    Args:
        path: of the file, which is not the one that was asked for: that would count as done.
    """

    def __init__(self, message: str, path: Path):
        super().__init__(message)
        self.path = path


# ------------------------------------------------------------------------------------ in a folder


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        images: files to read, in an order that is the same on every system.
        others: what looks like images, or may hold some, and cannot be read: a line for each
            reason, which names files and says what to do.
    """

    images: list[Path]
    others: list[str]


def find_images(folder: str | Path) -> Found:
    """Every image below `folder`, in depth; hidden files and folders are passed over.

    A file without any suffix, or with one that no image has, is an image if it begins like one.
    """
    files: list[Path] = []
    others: dict[str, list[Path]] = {}  # reason -> files

    def note(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # gone since it was listed
            return
        reason = f"the folder may not be read ({error.strerror})"
        others.setdefault(reason, []).append(Path(error.filename))

    visited = set()
    around = Path(os.path.realpath(folder)).parents
    for root, dirs, names in os.walk(folder, followlinks=True, onerror=note):
        real = Path(os.path.realpath(root))
        if real in around:  # as in Wine's folders, one of whose links is to all of the disk
            reason = "a link to a folder that this one is in is not followed"
            others.setdefault(reason, []).append(Path(root))
        if real in visited or real in around:
            dirs.clear()
            continue
        visited.add(real)
        dirs[:] = sorted(name for name in dirs if not name.startswith("."))
        files += (Path(root, name) for name in names if not name.startswith("."))
    found = images_among(files, others)
    found.images.sort(key=lambda path: path.relative_to(folder).as_posix())
    return found


def images_among(files: Iterable[Path], others: dict[str, list[Path]] | None = None) -> Found:
    """Those of some files that are images, in their order; as `find_images` of a folder's.

    Args:
        files: in any folders.
        others: reasons, and what is not read for these, that are told with those of the files.
    """
    images: list[Path] = []
    others = {reason: [*paths] for reason, paths in (others or {}).items()}
    for path in files:
        reason = _reason_against(path)
        if reason is None:
            images.append(path)
        elif reason:
            others.setdefault(reason, []).append(path)
    return Found(images, [_line(sorted(paths), reason) for reason, paths in others.items()])


def _reason_against(path: Path) -> str | None:
    """Why a file of a folder is not read; None if it is, "" if it does not look like an image."""
    suffix = path.suffix.lower()
    if suffix and not has_suffix(path):
        return _reason_by_content(path)
    try:
        special = special_kind(path)
    except OSError as error:
        return "a link that leads nowhere" if path.is_symlink() else str(error.strerror)
    if special:
        return f"{special}, not a file" if suffix else ""
    if not os.access(path, os.R_OK):
        return "it may not be read (no permission)"
    if suffix in _suffixes():
        return None
    try:
        refuse_raw(path)
        with open_image(path) as file:
            return None if file.format != "TGA" else NOT_READ.get(suffix, "")  # a mere guess
    except Exception as error:  # Pillow's plugins raise a dozen types on what they do not expect
        return str(error) if suffix else _reason_by_content(path)


def _reason_by_content(path: Path) -> str | None:
    """The same by a file's first bytes alone, where hardly any other file has such."""
    try:
        # A pack begins with raw pixels, which may be any kind's first bytes.
        others = path.suffix.lower() in UNFINISHED or path.name.startswith(PACKED)
        if others or special_kind(path):
            return ""
        start = _start(path)
    except OSError:  # a link that leads nowhere, or a file that may not be read
        return ""
    if start.startswith(CERTAIN) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP"):
        return None
    reason = _named_by(start)
    if reason == AVIF:
        return None if "AVIF" in _formats() else AVIF
    if reason in DOCUMENTS:
        return ""
    return None if _is_there(reason) else reason


def _is_there(kind: str) -> bool:
    """Whether the package that teaches Pillow a kind of file is installed."""
    return kind in PLUGINS and find_spec(PLUGINS[kind][0].partition(".")[0]) is not None


def _line(paths: list[Path], reason: str) -> str:
    return f"{listed([str(path) for path in paths], SHOWN)}: {reason}"


# ---------------------------------------------------------------------------------------- one file


def has_suffix(path: Path) -> bool:
    """Whether a name ends in an image's suffix; any other ending is a part of the name."""
    suffix = path.suffix.lower()
    return suffix in NOT_READ or any(suffix in suffixes for suffixes in READ.values())


def special_kind(path: str | Path) -> str:
    """What a path is that is no plain file: reading a pipe would wait for ever. Empty for a file.

    Raises:
        OSError: there is nothing.
    """
    mode = os.stat(path).st_mode
    return "" if stat.S_ISREG(mode) else SPECIAL.get(stat.S_IFMT(mode), "something special")


def refuse_raw(path: str | Path) -> None:
    """Most raw files are TIFF, and what any reader of TIFF would give is the preview in them.

    Raises:
        ImageError: it is one; without the file's name.
    """
    if _named_by(_start(path)) == RAW:
        raise ImageError(RAW)
    try:
        with NoLimit(), closing(TiffImagePlugin.TiffImageFile(path)) as file:
            tags = file.tag_v2
    except Exception:  # another kind, or a damaged file, which decoding will tell
        return
    by_suffix = NOT_READ.get(Path(path).suffix.lower()) == RAW
    if by_suffix or DNG_VERSION in tags:
        raise ImageError(RAW)


@contextmanager
def open_image(path: str | Path, content: BinaryIO | None = None) -> Iterator[ImageFile.ImageFile]:
    """Have Pillow open a file, not decode it, as one of the formats that it decodes by itself.

    Other formats start programs (EPS), or take nearly any file for theirs.

    Args:
        path: of the file.
        content: what to read instead of what is in it.

    Raises:
        ImageError: what it is instead, and what to do; without the file's name.
    """
    start = _start(path)
    reason = _named_by(start)
    formats = _formats()
    if reason in PLUGINS and _installed(PLUGINS[reason][0]):
        formats = [PLUGINS[reason][1]]
    with NoLimit():
        try:
            file = Image.open(content or path, formats=formats)
        except UnidentifiedImageError:
            raise ImageError(_unidentified(path, start)) from None
        with file:
            refuse_too_large(file.width, file.height)
            yield file


def _unidentified(path: str | Path, start: bytes) -> str:
    """Why a file that begins like this is of no kind that is read."""
    unknown = "it is no image, or a damaged one" if start else "it is empty"
    reason = JPEG if start.startswith(JPEG_START) else _named_by(start)
    reason = reason or NOT_READ.get(Path(path).suffix.lower(), unknown)
    return unknown if is_read_by_now(reason) else reason


def is_read_by_now(reason: str) -> bool:
    """Whether what is refused for this reason can be read here, in principle."""
    modules = (module for words, (module, _) in PLUGINS.items() if words in reason)
    return any(map(_installed, modules)) or (AVIF in reason and "AVIF" in _formats())


def _start(path: str | Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(32)


def _named_by(start: bytes) -> str:
    """The reason of `MAGIC` that a file's first bytes stand for, or nothing."""
    marks = start[4:] if start[4:8] == b"ftyp" else start
    # It may be only among the brands that the file is compatible with.
    if marks.startswith(b"ftyp") and b"avif" in marks:
        return AVIF
    return next((reason for reason, magic in MAGIC.items() if marks.startswith(magic)), "")


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in plain words, and what to do."""
    if isinstance(error, ImageError | MemoryError):
        return str(error) or "not enough memory"
    if is_of_the_system(error):
        return error.strerror or str(error)
    if str(error).startswith(CUT_SHORT):
        return TRUNCATED
    if isinstance(error, NotImplementedError) or str(error).startswith(UNKNOWN):
        return f"nothing here reads its kind ({error}); save it as PNG"
    return f"it is damaged ({str(error) or type(error).__name__}); get it again"


def is_of_the_system(error: BaseException | None) -> TypeGuard[OSError]:
    """Whether a file cannot be read for no fault of its own: EINVAL is what damaged numbers in it
    lead to, and what Pillow raises by itself has no number."""
    return isinstance(error, OSError) and error.errno not in (None, EINVAL)


def is_passing(error: BaseException | None) -> bool:
    """Whether reading failed for no fault of the file: a reason that may be gone tomorrow."""
    return isinstance(error, MemoryError) or is_of_the_system(error)


def unread(what: str, error: Exception) -> ImageError:
    """What stands for a picture of a sequence that is damaged, by its name there.

    Raises:
        ImageError: it cannot be read now, for no fault of the file.
    """
    told = ImageError(f"{what}: {reason_of(error)}")
    if is_passing(error):
        raise told from error
    return told


def cut_short(rows: int, height: int) -> str:
    """The reason against a picture of which the first rows are there."""
    if rows == 0:
        return TRUNCATED
    there = f"{rows} of its {height} rows are there"
    return f"it is cut short: {there}; get it again, or crop it to those"


class TooLargeError(ImageError, MemoryError):
    """An image that does not fit in the memory that is free."""


def refuse_too_large(width: int, height: int, more: int = 0) -> None:
    """Raise a TooLargeError rather than be killed by the system while decoding.

    `more` are bytes of each pixel that nobody wants but the decoder.
    """
    wanted = width * height * (PIXEL_BYTES + more)
    free = free_memory(wanted)
    if wanted > free:
        raise TooLargeError(
            f"{width}x{height} pixels take {wanted / 2**30:.1f} GiB of "
            f"memory to read and {free / 2**30:.1f} are free; cut it into smaller images"
        )


class NoLimit(AbstractContextManager):
    """Read files of any size: Pillow warns at 89 megapixels and refuses 179, whatever is free.

    Its limit belongs to the whole process. It is lifted while a file is being read, and set again
    after the last one, for whoever else uses Pillow.
    """

    lock = threading.Lock()
    readers = 0
    limit: int | None = None

    def __enter__(self) -> None:
        with self.lock:
            if NoLimit.readers == 0:
                NoLimit.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            NoLimit.readers += 1

    def __exit__(self, *error) -> None:
        with self.lock:
            NoLimit.readers -= 1
            if NoLimit.readers == 0:
                Image.MAX_IMAGE_PIXELS = NoLimit.limit


@cache
def _suffixes() -> frozenset[str]:
    """Of all files that are read here."""
    added = [REMEDIES[kind] for kind in PLUGINS if _is_there(kind)]
    return frozenset(suffix for suffixes in (*READ.values(), *added) for suffix in suffixes)


@cache
def _formats() -> list[str]:
    """Pillow's names of what it decodes by itself, in the order in which they are tried."""
    # Its plugin is there without its codec, too, as in the wheels of Pillow 11.2.
    return [name for name in READ if name != "AVIF" or features.check("avif")]


@cache
def _installed(module: str) -> bool:
    """Whether an optional module can be imported; Pillow knows its format from then on."""
    try:
        plugin = import_module(module)
    except ImportError:
        return False
    if module == "pillow_heif":  # the other one registers itself
        plugin.register_heif_opener()
    return True

"""A file as Pillow opens it, once what is broken without need has been mended in memory."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, ImageFile

from images.colour import DAMAGED, of_bmp, of_boxes, of_jpeg_2000, of_png
from images.exif import ORIENTATION, PREFIX, read_exif
from images.jpeg import completed, with_right_lengths
from images.kinds import JPEG_START, PNG_START, open_image
from images.metadata import exif_in
from images.png import NO_END, take_apart
from images.webp import without_cut_chunk

GRAY_PNG = (0, 4)  # colour types: gray, and gray with alpha
BOXES = 2**20  # bytes from the start in which AVIF, HEIF and JPEG 2000 say what their colours are
COLOUR_SPACE, SAYS_SRGB, SAYS_ADOBE_RGB = 0xA001, 1, 2  # EXIF's tag, and numbers in it


@dataclass
class Opened:
    """An open file.

    Attributes:
        file: as Pillow sees it; its info has the profile that its own words for colours stand for.
        content: the bytes that Pillow reads, where they are not the file's.
        remarks: phrases about what was mended or left out.
        complete: no pixel is made up.
        chunks: type and content of those of a PNG that are metadata.
    """

    file: ImageFile.ImageFile
    content: bytes | None = None
    remarks: list[str] = field(default_factory=list)
    complete: bool = True
    chunks: list[tuple[bytes, bytes]] = field(default_factory=list)

    def orientation(self) -> int:
        """How the camera was held, 1 to 8, which may stand behind the pixels."""
        # A decoder of JPEG XL turns the pixels, but for those of a JPEG that it holds unchanged.
        if self.file.format == "JXL" and not getattr(self.file, "jpeg", False):
            return 1
        try:
            return self.file.getexif().get(ORIENTATION, 1)
        except Exception:  # Pillow raises a dozen types when it is damaged
            self.leave_out_exif()
            return 1

    def says_adobe_rgb(self) -> bool:
        """Whether a camera's EXIF data does (DCF 2.0, 3.2.3); most then write no profile."""
        if self.file.format not in ("JPEG", "MPO") or self.file.mode != "RGB":
            return False
        try:
            exif = self.file.getexif()
            space = exif.get_ifd(ExifTags.IFD.Exif).get(COLOUR_SPACE)
            if space in (SAYS_SRGB, SAYS_ADOBE_RGB):  # which the DCF has no number for
                return space == SAYS_ADOBE_RGB
            return str(exif.get_ifd(ExifTags.IFD.Interop).get(1)).startswith("R03")
        except Exception:  # as below
            return False

    def leave_out_exif(self) -> None:
        self.file.info.pop("exif", None)
        self.remarks.append("its EXIF data is damaged, so it may lie on its side")


@contextmanager
def opened(path: str | Path) -> Iterator[Opened]:
    """Open an image file of any kind that is read.

    Raises:
        ImageError: no such kind, or damaged where it matters; without the file's name.
        Exception: whatever else Pillow raises.
    """
    with open(path, "rb") as stream:
        start = stream.read(len(PNG_START))
    if start == PNG_START:
        opening = _opened_png(path)
    elif start.startswith(JPEG_START):
        opening = _opened_jpeg(path)
    elif start.startswith(b"RIFF"):
        opening = _opened_webp(path)
    else:
        opening = _opened_other(path)
    with opening as result:
        _leave_out_damaged_exif(result)
        yield result


@contextmanager
def _opened_png(path: str | Path) -> Iterator[Opened]:
    chunks = take_apart(Path(path).read_bytes())
    gray = len(chunks.slim) > 25 and chunks.slim[25] in GRAY_PNG  # of the header
    profile, remark = of_png(chunks.colours, gray)
    with open_image(path, io.BytesIO(chunks.slim)) as file:
        file.info["icc_profile"] = profile
        # A chunk of its own comes first, also behind the pixels, where Pillow finds it later.
        if b"eXIf" not in chunks.slim and (exif := exif_in(chunks.metadata)):
            file.info["exif"] = exif
        remarks = [*chunks.remarks, *filter(None, [remark])]
        yield Opened(file, chunks.slim, remarks, chunks=chunks.metadata)


@contextmanager
def _opened_jpeg(path: str | Path) -> Iterator[Opened]:
    content = with_right_lengths(Path(path).read_bytes())
    with open_image(path, io.BytesIO(content)) as file:
        try:
            file.load()
        except OSError as error:
            if "truncated" not in str(error):
                raise
            whole, made_up = completed(content)
            told = f"it is cut short: its last {made_up} rows may be made up"
            yield Opened(whole, content, [told if made_up else NO_END], not made_up)
        else:
            damaged = file.info.get("icc_profile", b"") is None  # a part of it is missing
            yield Opened(file, content, [DAMAGED] if damaged else [])


@contextmanager
def _opened_webp(path: str | Path) -> Iterator[Opened]:
    content = Path(path).read_bytes()
    mended = without_cut_chunk(content)
    with open_image(path, io.BytesIO(mended)) as file:
        yield Opened(file, None if mended is content else mended)


@contextmanager
def _opened_other(path: str | Path) -> Iterator[Opened]:
    with open_image(path) as file:
        profile, remark = file.info.get("icc_profile"), ""
        if file.format in ("AVIF", "HEIF", "JPEG2000") and not profile:
            with open(path, "rb") as stream:
                start = stream.read(BOXES)
            if file.format == "JPEG2000":
                profile = of_jpeg_2000(start)
            else:
                profile, remark = of_boxes(start, file.mode in ("L", "LA"))
            file.info["icc_profile"] = profile
        if file.format == "BMP":
            with open(path, "rb") as stream:
                file.info["icc_profile"] = of_bmp(stream)
        yield Opened(file, None, [remark] if remark else [])


def _leave_out_damaged_exif(opened: Opened) -> None:
    """It may say how the camera was held; Pillow raises a dozen types when it is damaged."""
    if not opened.file.info.get("exif"):
        return
    try:
        there, damaged = opened.file.getexif(), 0
        if not there:  # it says nothing, or nothing of it can be read
            _, damaged = read_exif(opened.file.info["exif"].removeprefix(PREFIX))
    except Exception:
        damaged = 1
    if damaged:
        opened.leave_out_exif()


def silence_pillow() -> None:
    """For programs: keep Pillow's warnings, which name no file, off the screen.

    Where one matters to a result, `opened` has a remark of its own.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")

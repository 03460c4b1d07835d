"""The types of files that are written, and what each of them holds."""

import math
from dataclasses import dataclass, field

from images.frames import FRAMES, PAGES
from images.metadata import SEGMENT


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
        several: kinds of `Sequence` that it holds.
        side: pixels that it is wide or high at most.
    """

    name: str
    options: dict = field(default_factory=dict)
    deep: bool = False
    alpha: bool = False
    gray: bool = True
    profile: float = math.inf
    holds: tuple[str, ...] = ()
    largest: float = math.inf
    several: tuple[str, ...] = ()
    side: int = 2**31 - 1

    @property
    def lossy(self) -> bool:
        return "quality" in self.options


MOST = ("exif", "xmp", "iptc", "dpi")  # attributes of `Metadata`
# zlib's level 4 takes half the time of its usual 6, for files of photographs that are 3% larger.
# Pillow unpacks at most 1 MiB of a PNG's profile. JPEG holds one in up to 255 segments; without
# subsampling it keeps the resolution of colours. Unless it is exact, WebP drops the colours under
# alpha 0.
PNG = FileType(
    "PNG",
    dict(compress_level=4),
    deep=True,
    alpha=True,
    profile=2**20 - 1,
    holds=(*MOST, "comments", "texts"),
    several=(FRAMES,),
)
JPEG = FileType(
    "JPEG",
    dict(quality=95, subsampling=0),
    profile=255 * 65519,
    holds=(*MOST, "comments"),
    largest=SEGMENT,
    side=65500,  # libjpeg's limit, which is below the format's
)
TIFF = FileType("TIFF", deep=True, alpha=True, holds=MOST, several=(FRAMES, PAGES))
WEBP = FileType(
    "WEBP",
    dict(quality=95, exact=True),
    alpha=True,
    gray=False,
    holds=("exif", "xmp"),
    several=(FRAMES,),
    side=2**14 - 1,
)
GIF = FileType(
    "GIF",
    alpha=True,
    gray=False,
    profile=0,
    holds=("xmp", "comments"),
    several=(FRAMES,),
    side=2**16 - 1,
)
WRITTEN = {
    **dict.fromkeys((".png", ".apng"), PNG),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), JPEG),
    **dict.fromkeys((".tif", ".tiff"), TIFF),
    ".webp": WEBP,
    ".gif": GIF,
    ".bmp": FileType("BMP", profile=0, holds=("dpi",)),
    ".tga": FileType("TGA", alpha=True, profile=0, side=2**16 - 1),
}

"""What a file says of its picture besides the pixels: EXIF, XMP, IPTC, resolution, words.

Read from every type of file into one `Metadata`, which knows how each type of file writes it. What
speaks of pixels is mended: a result is upright, of another size, and has no thumbnail.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL.ImageFile import ImageFile

from images.exif import DESCRIPTIVE, PREFIX, USER_COMMENT, Data, Entry, Exif, nothing_yet, read_exif
from images.gif import divided, gif_blocks, joined
from images.png import text_of
from images.xmp import as_utf8, mended_xmp, without_regions

Text = tuple[bytes, bytes]  # type and content of a chunk of PNG
WORDS = {  # what a type of file may be unable to hold, by its attribute
    "exif": "EXIF data",
    "xmp": "XMP data",
    "iptc": "IPTC data",
    "dpi": "a resolution",
    "comments": "a comment",
    "texts": "PNG's text",
}
XMP_START, XMP_MORE = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
PHOTOSHOP, RESOURCE = b"Photoshop 3.0\0", b"8BIM"
IPTC = 0x0404  # numbers of Photoshop's resources
KEPT = (IPTC, 0x040A, 0x040B, 0x0425)  # and copyright flag, address, the digest of IPTC's data
TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP, DESCRIPTION = 0x02BC, 0x83BB, 0x8649, 0x010E
LAYOUTS = (b"ImageJ=", b'{"shape"', b"shape=")  # descriptions of how a program lays out pixels
PNG_XMP, PNG_COMMENT, PARAMETERS = b"XML:com.adobe.xmp", b"Comment", b"parameters"
PNG_PROFILE = b"Raw profile type "  # how ImageMagick and ExifTool keep what PNG has no chunk for
PROFILES = (b"exif", b"xmp", b"iptc", b"8bim", b"app1")  # the last is one of the first two
IN_EXIF = {  # keywords of PNG's text -> tags of EXIF that say the same
    PARAMETERS: USER_COMMENT,
    b"Description": DESCRIPTION,
    b"Software": 0x0131,
    b"Author": 0x013B,
    b"Copyright": 0x8298,
}
LONGEST = 2**24  # bytes of a compressed text that is unpacked
SEGMENT = 0xFFFF - 2  # bytes of one of JPEG's segments
GIF_XMP = b"XMP DataXMP"  # and what has to stand behind it, so that readers of blocks find its end
GIF_XMP_END = b"\x01" + bytes(range(255, -1, -1)) + b"\0"


@dataclass(frozen=True)
class Metadata:
    """What a file says of its picture.

    Attributes:
        exif: EXIF data, or None.
        xmp: a packet of XMP, UTF-8.
        iptc: Photoshop's resources with IPTC's in them.
        dpi: pixels an inch across and along, or None.
        comments: of a JPEG or GIF.
        texts: PNG's chunks, as they are.
    """

    exif: Exif | None = None
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None
    comments: tuple[bytes, ...] = ()
    texts: tuple[Text, ...] = ()

    def turned(self) -> "Metadata":
        """Of a picture that is turned by a quarter."""
        exif = self.exif.turned() if self.exif else None
        return replace(self, exif=exif, dpi=self.dpi[::-1] if self.dpi else None)

    def without_regions(self) -> "Metadata":
        """Of a picture that is not as it lay, on which the places of faces were marked."""
        return replace(self, xmp=without_regions(self.xmp))

    def of_size(self, width: int, height: int) -> "Metadata":
        """Of an upright picture with that many pixels."""
        exif = self.exif.of_size(width, height) if self.exif else None
        return replace(self, exif=exif, xmp=mended_xmp(self.xmp, width, height))

    def as_held(self, held: tuple[str, ...], largest: float) -> tuple["Metadata", list[str]]:
        """What a type of file can hold of it, and the words for the rest.

        Args:
            held: attributes that it has a place for.
            largest: bytes that the longest of those may have.
        """
        lost = []
        kept = self._moved(held, largest)
        for name, words in WORDS.items():
            if not getattr(kept, name):
                continue
            sizes = kept._sizes(name)
            if name not in held or max(sizes, default=0) > largest:
                lost.append(words)
                kept = replace(kept, **{name: getattr(Metadata(), name)})
        return kept, lost

    def _sizes(self, name: str) -> list[int]:
        if name == "exif" and self.exif:
            return [len(self.exif.block()) + len(PREFIX)]
        value = getattr(self, name)
        if name == "comments":
            return [len(comment) for comment in value]
        return [len(value) + len(XMP_START)] if name in ("xmp", "iptc") else []

    def _moved(self, held: tuple[str, ...], largest: float) -> "Metadata":
        """With what has no place of its own where EXIF data has one for it."""
        moved, rest = self, []
        for text in self.texts if "texts" not in held else ():
            after = moved._with_text(text, held)
            if after and max(after._sizes("exif"), default=0) > largest:
                after = None  # it would take all of the EXIF data with it
            rest += [] if after else [text]
            moved = after or moved
        if "texts" not in held:
            moved = replace(moved, texts=tuple(rest))
        if "exif" not in held:
            return moved
        if "comments" not in held and len(moved.comments) == 1:
            (comment,) = moved.comments
            exif = (moved.exif or nothing_yet()).with_text(USER_COMMENT, _decoded(comment))
            moved = replace(moved, exif=exif, comments=()) if exif else moved
        if "dpi" not in held and self.dpi:
            exif = (moved.exif or nothing_yet()).with_dpi(self.dpi)
            moved = replace(moved, exif=exif, dpi=None)
        return moved

    def _with_text(self, chunk: Text, held: tuple[str, ...]) -> "Metadata | None":
        """With one of PNG's texts elsewhere; None where there is no place for it."""
        keyword, text = read_text(*chunk)
        if text is None:
            return None
        if keyword == PNG_COMMENT and {"comments", "exif"} & {*held}:
            return replace(self, comments=(*self.comments, text.encode()))
        if keyword not in IN_EXIF or "exif" not in held:
            return None
        exif = (self.exif or nothing_yet()).with_text(IN_EXIF[keyword], text)
        return replace(self, exif=exif) if exif else None

    # ------------------------------------------------------------------------------- as they write

    def png_chunks(self) -> list[Text]:
        chunks: list[Text] = []
        if self.exif:
            chunks.append((b"eXIf", self.exif.block()))
        if self.dpi:
            per_metre = (min(round(number / 0.0254), 2**31 - 1) for number in self.dpi)
            chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
        if self.xmp:
            chunks.append((b"iTXt", PNG_XMP + bytes(5) + self.xmp))
        if self.iptc:
            chunks.append((b"zTXt", PNG_PROFILE + b"iptc\0\0" + zlib.compress(_hex(self.iptc))))
        for comment in self.comments:
            text = _decoded(comment).replace("\0", "")
            chunks.append((b"iTXt", PNG_COMMENT + bytes(5) + text.encode()))
        return [*chunks, *self.texts]

    def jpeg_segments(self) -> bytes:
        segments = []
        if self.exif:
            segments.append((0xE1, PREFIX + self.exif.block()))
        if self.xmp:
            segments.append((0xE1, XMP_START + self.xmp))
        if self.iptc:
            segments.append((0xED, PHOTOSHOP + self.iptc))
        segments += [(0xFE, comment) for comment in self.comments]
        return b"".join(struct.pack(">BBH", 0xFF, m, len(c) + 2) + c for m, c in segments)

    def gif_extensions(self) -> bytes:
        blocks = [b"!\xfe" + divided(comment) for comment in self.comments]
        if self.xmp:
            blocks.append(b"!\xff\x0b" + GIF_XMP + self.xmp + GIF_XMP_END)
        return b"".join(blocks)

    def iim(self) -> bytes:
        """IPTC's own data, without what Photoshop puts around it."""
        return next((data for number, _, data in _resources(self.iptc) if number == IPTC), b"")


# ---------------------------------------------------------------------------------- out of files


def read_metadata(
    file: ImageFile, chunks: list[Text], content: bytes | None
) -> tuple[Metadata, str]:
    """Of a file that Pillow has opened, and a phrase about what is damaged.

    Args:
        file: of any type but TIFF.
        chunks: those of a PNG file that are metadata.
        content: of a GIF file.
    """
    profiles, texts = _split([(kind, data) for kind, data in chunks if kind != b"pHYs"])
    exif, remark = exif_of(file.info.get("exif") or profiles.get(b"exif", b""))
    xmp = file.info.get("xmp") or profiles.get(b"xmp", b"")
    iptc, comments = profiles.get(b"iptc", b"") or profiles.get(b"8bim", b""), []
    extended = False
    for name, segment in getattr(file, "applist", []):  # of a JPEG
        if name == "APP13" and segment.startswith(PHOTOSHOP):
            iptc += segment[len(PHOTOSHOP) :]
        if name == "COM":
            comments.append(segment)
        extended |= segment.startswith(XMP_MORE)
    if content is not None:
        comments, xmp = _words_of_gif(content)
    if extended:
        remark = "; ".join(filter(None, (remark, "without the extension of its XMP data")))
    # Of a JPEG that does not say, Pillow makes one up.
    said = bool(file.info.get("jfif_unit")) or not hasattr(file, "applist")
    dpi = file.info.get("dpi") if said else None
    for data in (data for kind, data in chunks if kind == b"pHYs" and data[8] == 1):
        dpi = tuple(number * 0.0254 for number in struct.unpack(">II", data[:8]))
    dpi = rounded(dpi) or (exif.dpi() if exif else None)
    kept = resources_of(iptc)
    return Metadata(exif, as_utf8(xmp), kept, dpi, tuple(comments), tuple(texts)), remark


def tiff_metadata(data: Data, at: int) -> tuple[Metadata, str]:
    """Of a page of a TIFF file, and a phrase about what is damaged.

    Args:
        data: the file.
        at: where the page's directory begins.
    """
    # Others may be as large as the file.
    found, damaged = read_exif(data, at, {*DESCRIPTIVE, TIFF_XMP, TIFF_IPTC, TIFF_PHOTOSHOP})
    if found is None:
        return Metadata(), damaged_tags(damaged)
    entries = {tag: item.value for tag, item in found.tags.items() if isinstance(item, Entry)}
    iptc = entries.get(TIFF_IPTC, b"")
    if iptc[3:4] == b"\x1c":  # some programs write its bytes as numbers of four
        iptc = np.frombuffer(iptc[: len(iptc) // 4 * 4], "u4").byteswap().tobytes()
    description = entries.get(DESCRIPTION, b"")
    of_pixels = description.startswith(LAYOUTS) or b"<OME" in description[:2000]
    kept = {*DESCRIPTIVE} - ({DESCRIPTION} if of_pixels else set())
    exif = replace(found, tags={tag: item for tag, item in found.tags.items() if tag in kept})
    return Metadata(
        exif if exif.tags else None,
        as_utf8(entries.get(TIFF_XMP)),
        resources_of(entries.get(TIFF_PHOTOSHOP, b"")) or resources_of(iptc),
        rounded(exif.dpi()),
    ), damaged_tags(damaged)


def exif_of(block: bytes) -> tuple[Exif | None, str]:
    """EXIF data in a file, and a phrase about what of it is damaged."""
    while block.startswith(PREFIX):
        block = block[len(PREFIX) :]
    if not block:
        return None, ""
    exif, damaged = read_exif(block)
    if exif is None:
        return None, "its EXIF data is damaged and was left out"
    return exif if exif.tags else None, damaged_tags(damaged)


def damaged_tags(count: int) -> str:
    if count == 0:
        return ""
    tags = "a damaged tag" if count == 1 else f"{count} damaged tags"
    return f"without {tags} of its metadata"


def rounded(dpi: tuple | None) -> tuple[float, float] | None:
    """As it was meant: PNG has whole pixels a metre, and 300 dpi is 299.9994 there."""
    try:
        x, y = map(float, dpi or ())
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if not (0 < x < 2**24 and 0 < y < 2**24):
        return None
    near = 0.51 * 0.0254  # half a pixel a metre
    x, y = (round(n) if abs(n - round(n)) < near else round(n, 2) for n in (x, y))
    return (x, y) if x and y else None


def resources_of(data: bytes) -> bytes:
    """Those of Photoshop's resources that are `KEPT`; of IPTC's data alone, a resource of it."""
    data = data.removeprefix(PHOTOSHOP)
    if data.startswith(b"\x1c"):
        size = len(data)
        data = RESOURCE + struct.pack(">HHI", IPTC, 0, size) + data + bytes(size % 2)
    return b"".join(whole for number, whole, _ in _resources(data) if number in KEPT)


def _resources(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Number, the whole, and content of each of Photoshop's resources, up to the first damage."""
    at = 0
    while data[at : at + 4] == RESOURCE and at + 12 <= len(data):
        number, name = struct.unpack_from(">HB", data, at + 4)
        start = at + 7 + name + (name + 1) % 2
        size = int.from_bytes(data[start : start + 4], "big")
        end = start + 4 + size
        if end > len(data):
            return
        yield number, data[at:end] + bytes(size % 2), data[start + 4 : end]
        at = end + size % 2


def exif_in(chunks: list[Text]) -> bytes:
    """EXIF data that a PNG file has as text, as of before there was a chunk for it."""
    return _split(chunks)[0].get(b"exif", b"")


def _split(texts: list[Text]) -> tuple[dict[bytes, bytes], list[Text]]:
    """PNG's texts that are profiles, by their names; and the others, without XMP."""
    profiles, others = {}, []
    for kind, data in texts:
        keyword = data.partition(b"\0")[0]
        name = keyword.removeprefix(PNG_PROFILE).lower()
        if keyword.startswith(PNG_PROFILE) and name in PROFILES:
            profiles[name] = _of_hex(read_text(kind, data)[1])
        elif keyword != PNG_XMP:
            others.append((kind, data))
        elif text := read_text(kind, data)[1]:
            profiles[b"xmp"] = text.encode()
    app1 = profiles.get(b"app1", b"")
    profiles.setdefault(b"xmp" if app1.startswith(XMP_START) else b"exif", app1)
    return {name: data.removeprefix(XMP_START) for name, data in profiles.items()}, others


def read_text(kind: bytes, data: bytes) -> tuple[bytes, str | None]:
    """Keyword and text of one of PNG's chunks of text; None if it is damaged."""
    keyword, text, packed = text_of(kind, data)
    try:
        text = zlib.decompressobj().decompress(text, LONGEST) if packed else text
        return keyword, text.decode("utf-8" if kind == b"iTXt" else "latin-1")
    except (zlib.error, UnicodeDecodeError):
        return keyword, None


def _of_hex(text: str | None) -> bytes:
    """What is in a raw profile: its name, its length, and hexadecimal digits."""
    digits = "".join((text or "").split()[2:])
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _hex(data: bytes) -> bytes:
    digits = data.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return "\n".join(["", "iptc", f"{len(data):8}", *lines, ""]).encode()


def _decoded(comment: bytes) -> str:
    """Nothing says how a comment is encoded."""
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")


def _words_of_gif(gif: bytes) -> tuple[list[bytes], bytes]:
    """The comments of a GIF file, and its XMP data."""
    comments, xmp = [], b""
    for kind, block in gif_blocks(gif):
        if kind == b"!\xfe":
            comments.append(joined(block[2:]))
        if kind == b"!\xff" and block[3:14] == GIF_XMP:
            # Its bytes are no blocks; what stands behind it leads every reader to its end.
            xmp = block[14:].rpartition(GIF_XMP_END[:16])[0]
    return comments, xmp

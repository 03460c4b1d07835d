"""EXIF data, which has TIFF's structure (CIPA DC-008): read with care, mended and written anew."""

import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from mmap import mmap
from typing import NamedTuple, TypeAlias

import numpy as np

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005  # the tags that point at directories
CHILDREN = {0: (EXIF, GPS, INTEROPERABILITY), EXIF: (INTEROPERABILITY,)}  # 0: the first directory
WIDTHS = {  # of TIFF's types, in bytes
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12), 8),
}
ASCII, SHORT, LONG, RATIONAL, UNDEFINED = 2, 3, 4, 5, 7
LONG_8 = {16: 8, 18: 8}  # BigTIFF's, of its pointers
STARTS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
PREFIX = b"Exif\0\0"
WIDTH, HEIGHT, ORIENTATION = 0x0100, 0x0101, 0x0112
X_RESOLUTION, Y_RESOLUTION, UNIT = 0x011A, 0x011B, 0x0128
INCH, CENTIMETRE = 2, 3
PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003
RELATED_WIDTH, RELATED_HEIGHT = 0x1001, 0x1002
MAKER_NOTE, USER_COMMENT, VERSION = 0x927C, 0x9286, 0x9000
# What says how a file's own pixels are stored, or is kept elsewhere: profile, XMP, IPTC.
STRUCTURE = (
    *(0x00FE, 0x00FF, 0x0102, 0x0103, 0x0106, 0x0107, 0x0108, 0x0109, 0x010A, 0x0111, 0x0115),
    *(0x0116, 0x0117, 0x0118, 0x0119, 0x011C, 0x0120, 0x0121, 0x0122, 0x0123, 0x012D, 0x013D),
    *range(0x0140, 0x0160),
    *(0x0200, 0x0201, 0x0202, 0x0203, 0x0205, 0x0206, 0x0207, 0x0208, 0x0209),
    *(0x0211, 0x0212, 0x0213, 0x0214, 0x02BC, 0x83BB, 0x8649, 0x8773, 0x935C),
)
# Of the picture as it was: where the subject is, and pixels of the sensor in an inch.
OF_ITS_PIXELS = (0x9214, 0xA214, 0xA20E, 0xA20F, 0xA210)
DESCRIPTIVE = (  # what a TIFF file's own directory may tell of the picture, not of its pixels
    *(EXIF, GPS, 0x010D, 0x010E, 0x010F, 0x0110, X_RESOLUTION, Y_RESOLUTION, UNIT, 0x011D),
    *(0x0131, 0x0132, 0x013B, 0x013C, 0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0)),
)


class Entry(NamedTuple):
    """What one tag says: `value` is as it lies in the file, which it does from `at` on."""

    kind: int
    value: bytes
    at: int = 0


Data: TypeAlias = bytes | mmap  # of a block, or a file that is mapped into memory
Directory: TypeAlias = "dict[int, Entry | Directory]"


class Form(NamedTuple):
    """How directories are written: the order of bytes, and BigTIFF's wide fields or TIFF's."""

    order: str
    big: bool = False

    @property
    def counter(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    @property
    def pointer(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))


@dataclass(frozen=True)
class Exif:
    """The directories of a block of EXIF data; its thumbnail is not among them.

    Attributes:
        order: of bytes: "<" or ">".
        tags: what is in the first directory; EXIF, GPS and INTEROPERABILITY are directories.
        placed: entries know where they were in a block of EXIF data, not in a larger file.
    """

    order: str
    tags: Directory
    placed: bool = False

    def block(self) -> bytes:
        """For a file that is no TIFF.

        A maker's note stays where it was, for the offsets in it may count from the block's start.
        """
        notes = [entry for tag, entry in _entries(self.tags) if tag == MAKER_NOTE]
        layout = _Layout(8, notes[0] if notes and self.placed else None)
        at = layout.add(self.tags, Form(self.order))
        start = struct.pack(self.order + "2sHI", b"II" if self.order == "<" else b"MM", 42, at)
        return start + layout.content()

    def of_tiff(self, start: int, big: bool = False) -> tuple[list[tuple[int, Entry]], bytes]:
        """For a little-endian TIFF file.

        Args:
            start: where in it the bytes will lie.
            big: it is a BigTIFF.

        Returns:
            What its own directory says, and the bytes of the others, which that points at.
        """
        form, layout = Form("<", big), _Layout(start)
        entries: list[tuple[int, Entry]] = []
        for tag, item in sorted(self.little_endian().tags.items()):
            if isinstance(item, dict):
                item = Entry(16 if big else LONG, form.pointer.pack(layout.add(item, form)))
            entries.append((tag, item))
        return entries, layout.content()

    def little_endian(self) -> "Exif":
        return self if self.order == "<" else Exif("<", _swapped(self.tags))

    def of_size(self, width: int, height: int) -> "Exif":
        """Of an upright picture with that many pixels."""
        sizes = {WIDTH: width, HEIGHT: height, ORIENTATION: 1}
        tags = {tag: item for tag, item in self.tags.items() if tag not in STRUCTURE}
        tags = self._with_numbers(tags, sizes)
        for place in (EXIF, INTEROPERABILITY):
            if isinstance(inner := tags.get(place), dict):
                tags[place] = self._of_size(inner, width, height)
        return replace(self, tags=tags)

    def _of_size(self, tags: Directory, width: int, height: int) -> Directory:
        tags = {tag: item for tag, item in tags.items() if tag not in OF_ITS_PIXELS}
        if isinstance(inner := tags.get(INTEROPERABILITY), dict):
            tags[INTEROPERABILITY] = self._of_size(inner, width, height)
        sizes = {PIXEL_WIDTH: width, PIXEL_HEIGHT: height}
        return self._with_numbers(tags, sizes | {RELATED_WIDTH: width, RELATED_HEIGHT: height})

    def _with_numbers(self, tags: Directory, numbers: dict[int, int]) -> Directory:
        """With other numbers in the tags that are there."""
        new: Directory = {}
        for tag, number in numbers.items():
            kind, letter = (SHORT, "H") if tag == ORIENTATION else (LONG, "I")
            new[tag] = Entry(kind, struct.pack(self.order + letter, number))
        return {tag: new.get(tag, item) for tag, item in tags.items()}

    def turned(self) -> "Exif":
        """After a quarter turn: across and along change places."""
        tags = dict(self.tags)
        for tag, other in ((X_RESOLUTION, Y_RESOLUTION), (Y_RESOLUTION, X_RESOLUTION)):
            if other in self.tags:
                tags[tag] = self.tags[other]
        return replace(self, tags=tags)

    def dpi(self) -> tuple[float, float] | None:
        """Pixels an inch, across and along; None where that is not said."""
        x, y, unit = (self._number(tag) for tag in (X_RESOLUTION, Y_RESOLUTION, UNIT))
        if not x or not y or unit not in (None, INCH, CENTIMETRE):
            return None
        inches = 2.54 if unit == CENTIMETRE else 1
        return x * inches, y * inches

    def _number(self, tag: int) -> float | None:
        entry = self.tags.get(tag)
        if not isinstance(entry, Entry) or len(entry.value) != WIDTHS[entry.kind]:
            return None
        if entry.kind == RATIONAL:
            over, under = struct.unpack(self.order + "II", entry.value)
            return over / under if under else None
        letter = {SHORT: "H", LONG: "I"}.get(entry.kind)
        return struct.unpack(self.order + letter, entry.value)[0] if letter else None

    def with_dpi(self, dpi: tuple[float, float]) -> "Exif":
        """With this resolution, unless it has one."""
        if self.dpi():
            return self
        tags = dict(self.tags)
        for tag, number in zip((X_RESOLUTION, Y_RESOLUTION), dpi, strict=True):
            tags[tag] = Entry(RATIONAL, struct.pack(self.order + "II", round(number * 100), 100))
        tags[UNIT] = Entry(SHORT, struct.pack(self.order + "H", INCH))
        return replace(self, tags=tags)

    def with_text(self, tag: int, text: str) -> "Exif | None":
        """With a text in a tag that is free; None if it is not."""
        if tag != USER_COMMENT:
            entry = Entry(ASCII, text.encode() + b"\0")
            return None if tag in self.tags else replace(self, tags={**self.tags, tag: entry})
        inner = self.tags.get(EXIF, {VERSION: Entry(UNDEFINED, b"0232")})
        assert isinstance(inner, dict)
        present = inner.get(USER_COMMENT)
        if isinstance(present, Entry) and present.value[8:].strip(b"\0 "):
            return None
        # So write the programs that keep a generator's parameters there, whatever the order.
        comment = Entry(UNDEFINED, b"UNICODE\0" + text.encode("utf-16-be"))
        return replace(self, tags={**self.tags, EXIF: {**inner, USER_COMMENT: comment}})


def nothing_yet() -> Exif:
    return Exif("<", {})


# ---------------------------------------------------------------------------------------- reading


def read_exif(
    data: Data, at: int | None = None, wanted: Container[int] | None = None
) -> tuple[Exif | None, int]:
    """The directories of a block of EXIF data, or of a TIFF file.

    Args:
        data: the block, or the file.
        at: where the directory of a page begins; None: the first.
        wanted: tags of that to read; None: all.

    Returns:
        None if nothing of them can be read, and how many entries were damaged and left out.
    """
    start = bytes(data[:4])
    if start not in STARTS:
        return None, 1
    form = Form(STARTS[start], b"+" in start)
    try:
        first = form.pointer.unpack(data[4 : 4 + form.pointer.size])[0] if at is None else at
        tags, damaged = _read_directory(data, first, form, 0, wanted)
    except struct.error:
        return None, 1
    return Exif(form.order, tags, placed=at is None), damaged


def _read_directory(
    data: Data, at: int, form: Form, place: int, wanted: Container[int] | None = None
) -> tuple[Directory, int]:
    """What is at `at`; `place` is the tag that points there.

    Raises:
        struct.error: it is not there, or most of it is damaged.
    """
    (count,) = form.counter.unpack(data[at : at + form.counter.size])
    tags: Directory = {}
    damaged = 0
    for i in range(count):
        start = at + form.counter.size + i * form.entry.size
        if start + form.entry.size > len(data):
            damaged += 1
            break
        (tag,) = struct.unpack(form.order + "H", data[start : start + 2])
        if wanted is not None and tag not in wanted:
            continue
        try:
            item, lost = _read_entry(data, start, form, place)
        except struct.error:
            item, lost = None, 1
        if item is not None:
            tags[tag] = item
        damaged += lost
    if damaged > len(tags):  # what fits is chance
        raise struct.error
    return tags, damaged


def _read_entry(
    data: Data, start: int, form: Form, place: int
) -> tuple["Entry | Directory | None", int]:
    """What is at `start`, and how much of it is damaged.

    Raises:
        struct.error: it points out of the file.
    """
    entry, pointer = form.entry, form.pointer
    tag, kind, count, value = entry.unpack(data[start : start + entry.size])
    size = (WIDTHS | LONG_8).get(kind, 0) * count
    at = start + entry.size - len(value)
    if size > len(value):
        (at,) = pointer.unpack(value)
    if kind not in WIDTHS | LONG_8 or at + size > len(data):
        return None, 1
    value = data[at : at + size]
    if tag not in (EXIF, GPS, INTEROPERABILITY):
        return (Entry(kind, value, at), 0) if kind in WIDTHS else (None, 0)
    if tag not in CHILDREN.get(place, ()):
        return None, 1
    (at,) = struct.unpack(form.order + {4: "I", 8: "Q"}.get(size, "0s"), value)
    return _read_directory(data, at, form, tag)


# ---------------------------------------------------------------------------------------- writing


class _Layout:
    """Directories and their values, one after the other, around a value that keeps its place."""

    def __init__(self, start: int, pinned: Entry | None = None):
        self.start, self.end, self.pinned = start, start, pinned
        self.parts: dict[int, bytes] = {}
        if pinned and pinned.at < start:
            self.pinned = None

    def add(self, tags: Directory, form: Form) -> int:
        """A directory and all below it; returns where it is."""
        counter, entry, pointer = form.counter, form.entry, form.pointer
        at = self._room(counter.size + len(tags) * entry.size + pointer.size)
        written = counter.pack(len(tags))
        for tag, item in sorted(tags.items()):
            if isinstance(item, dict):
                item = Entry(16 if form.big else LONG, pointer.pack(self.add(item, form)))
            value, number = item.value, len(item.value) // (WIDTHS | LONG_8)[item.kind]
            if len(value) > pointer.size:
                value = pointer.pack(self._place(item))
            written += entry.pack(tag, item.kind, number, value)
        self.parts[at] = written + bytes(pointer.size)
        return at

    def _place(self, item: Entry) -> int:
        at = item.at if item is self.pinned else self._room(len(item.value))
        self.parts[at] = item.value
        return at

    def _room(self, size: int) -> int:
        at = self.end + self.end % 2
        if self.pinned:
            behind = self.pinned.at + len(self.pinned.value)
            if at < behind and at + size > self.pinned.at:
                at = behind + behind % 2
        self.end = at + size
        return at

    def content(self) -> bytes:
        """All of it, from `start` on."""
        end = max((at + len(part) for at, part in self.parts.items()), default=self.start)
        content = bytearray(end - self.start)
        for at, part in self.parts.items():
            content[at - self.start : at - self.start + len(part)] = part
        return bytes(content)


def _entries(tags: Directory) -> Iterator[tuple[int, Entry]]:
    """Of a directory and of those below it."""
    for tag, item in tags.items():
        if isinstance(item, Entry):
            yield tag, item
        else:
            yield from _entries(item)


def _swapped(tags: Directory) -> Directory:
    """In the other order of bytes."""
    swapped: Directory = {}
    for tag, item in tags.items():
        if isinstance(item, dict):
            swapped[tag] = _swapped(item)
        else:
            width = min(WIDTHS[item.kind], 8 if item.kind == 12 else 4)  # rationals are two numbers
            value = np.array(bytearray(item.value), np.uint8).view(f"u{width}").byteswap().tobytes()
            swapped[tag] = item._replace(value=value)
    return swapped

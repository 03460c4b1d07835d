"""A folder of images, decoded once into one memory-mapped file: a crop then costs microseconds.

Low-resolution images are made from the whole image, so a crop's LR is the crop of the LR.
"""

import glob
import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from images.decoding import Decoded, Findings, areas_by_header, decode_all, threads_for
from images.kinds import NO_IMAGES, Found, ImageError, find_images, is_read_by_now
from images.locks import locked
from images.names import flat_stem
from images.pairs import DataError, find_partners
from images.places import lock_of, packed_size, place_for_pack, starts
from utils import listed, remove_leftovers, replacing

if sys.platform != "win32":
    import fcntl

PACK_FORMAT = 2  # counts up when the layout of a pack changes, so that old ones are rebuilt


class Pack:
    """The images of one folder, each as HR and LR, in one memory-mapped file.

    The file holds the raw uint8 pixels, then an index in JSON, then the index's length in 8 bytes.
    While it is mapped, `pack_folder` leaves it where it is, in whatever process.

    Args:
        path: a file written by `pack_folder`.
        folder: where its images are, for messages.

    Attributes:
        others: what looks like images of its folders and is not read, as `find_images` tells it.
        index: what the file says of itself; of images that training should know about, "unreadable"
            has names and causes, and "doubtful" the pairs that do not look alike.

    Raises:
        OSError, ValueError: it is not there, or damaged.
    """

    def __init__(self, path: Path, folder: Path):
        self.path, self.folder = path, folder
        self.others: list[str] = []
        with open(path, "rb") as file:
            if sys.platform != "win32":  # there, a mapped file cannot be deleted anyway
                with suppress(OSError):  # storage without locks: no pack on it is ever deleted
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self.index = read_index(file)
            # A pack without a single image has no bytes to map. The mapping keeps the lock.
            self.pixels = np.memmap(file, np.uint8, "r") if self.index["images"] else None

    def __reduce__(self):
        # A worker maps the file itself: pickling would copy it whole.
        if not self.path.exists():
            raise DataError(f"{self.path} was deleted while a run reads it; start the run again")
        return reopen, (self.path, self.folder, self.id)

    def __len__(self) -> int:
        return len(self.index["images"])

    @property
    def id(self) -> str:
        """Equal for packs made from the same files."""
        return self.index["id"]

    @property
    def scale(self) -> int:
        return self.index["scale"]

    def name(self, i: int) -> str:
        """Path of the i-th image inside its folder."""
        return self.index["images"][i]["name"]

    def stem(self, i: int) -> str:
        """The same as one file name, without suffix: sub_d of sub/d.png."""
        return flat_stem(self.name(i))

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of the i-th HR image, multiples of the scale."""
        image = self.index["images"][i]
        return image["height"], image["width"]

    def digest(self, i: int) -> str:
        """Equal for HR images of equal pixels, whatever their names and formats."""
        return self.index["images"][i]["digest"]

    @cached_property
    def contents(self) -> str:
        """Equal for packs of equal images, whatever their files."""
        images = [
            [self.name(i), *self.size(i), self.digest(i), image.get("low_res_digest", "")]
            for i, image in enumerate(self.index["images"])
        ]
        return hashlib.blake2b(json.dumps(images).encode(), digest_size=8).hexdigest()

    def high_res(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3), a view of the file."""
        height, width = self.size(i)
        return self._view(self.index["images"][i]["offset"], height, width)

    def low_res(self, i: int) -> np.ndarray:
        """uint8 (H / scale, W / scale, 3), a view of the file."""
        height, width = self.size(i)
        offset = self.index["images"][i]["offset"] + height * width * 3
        return self._view(offset, height // self.scale, width // self.scale)

    def _view(self, offset: int, height: int, width: int) -> np.ndarray:
        assert self.pixels is not None  # an image has pixels
        return self.pixels[offset : offset + height * width * 3].reshape(height, width, 3)


def reopen(path: Path, folder: Path, id: str) -> Pack:
    """The pack that another process has open, which must be the one with this id."""
    pack = Pack(path, folder)
    if pack.id != id:
        raise DataError(f"{path} was replaced while a run reads it; start the run again")
    return pack


def read_index(file) -> dict:
    end = file.seek(-8, os.SEEK_END)
    length = int.from_bytes(file.read(8), "little")
    file.seek(end - length)
    return json.loads(file.read(length))


# ------------------------------------------------------------------------------- finding a pack


@dataclass(frozen=True)
class Source:
    """What a pack is made from: files by name, size and times, and how.

    Of the times, that of the inode's last change (on Windows, when the file was made) cannot be set
    like a date: it tells a file from another that was put in its place with the same size and date.
    """

    scale: int
    high_res: list
    low_res: list
    low_res_folder: str
    format: int = PACK_FORMAT

    @property
    def id(self) -> str:
        return hashlib.blake2b(json.dumps(vars(self)).encode(), digest_size=8).hexdigest()

    def is_like(self, index: dict) -> bool:
        """Whether the index's pack may differ in which files it was made from, but not in how."""
        return all(index.get(k) == getattr(self, k) for k in ("format", "scale", "low_res_folder"))

    def has_lost(self, index: dict) -> bool:
        """Whether files are gone whose images a pack has, perhaps the only copies."""
        high_res, low_res = (
            {name for name, *_ in files} for files in (self.high_res, self.low_res)
        )
        packed = {image["name"] for image in index["images"]}
        return not (packed <= high_res and {name for name, *_ in index["low_res"]} <= low_res)

    def vanished(self, index: dict) -> list[str] | None:
        """The names that a pack has and the folders have not; None if they have what it has not."""
        names: list[str] = []
        for field in ("high_res", "low_res"):
            packed = {tuple(entry) for entry in index[field]}
            there = {tuple(entry) for entry in getattr(self, field)}
            if not there <= packed:
                return None
            names += sorted(name for name, *_ in packed - there)
        return list(dict.fromkeys(names))  # a pair has the same name in both


def pack_folder(
    folder: str | Path,
    scale: int,
    lr_folder: str | Path | None = None,
    packed: Mapping[str, str] | None = None,
) -> Pack:
    """Open the pack of a folder's images as they are now; build it first where there is none.

    It is kept in the folder itself, or under data/packs where that is read-only or full. Runs with
    different wishes have packs of different names. Processes that start at once wait for the one
    that builds. `index["unreadable"]` names what is left out, `index["doubtful"]` the HR images
    that their LR images hardly look like.

    Args:
        folder: HR images, at any depth. Each is cropped at the right and the bottom to a multiple
            of the scale.
        scale: HR size over LR size.
        lr_folder: LR images with the same names (or 0001x4.png for 0001.png); without it, LR is
            MATLAB's bicubic.
        packed: for a run that goes on, the packs that it knows: their ids and contents, "" where
            those are not known. It must see the same samples even if files were tidied away since,
            so its pack may hold what is gone.

    Raises:
        DataError: no folder, no images, no room, or LR partners that are missing, of a wrong size,
            or turned.
    """
    folder, lr_folder = Path(folder), Path(lr_folder) if lr_folder else None
    found = look_through(folder)
    lr_found = look_through(lr_folder) if lr_folder else Found([], [])
    pack = _pack_found(folder, found, scale, lr_folder, lr_found, packed)
    pack.others = [*found.others, *lr_found.others]
    return pack


def _pack_found(
    folder: Path,
    found: Found,
    scale: int,
    lr_folder: Path | None,
    lr_found: Found,
    packed: Mapping[str, str] | None,
) -> Pack:
    """The same, of what the folders hold."""
    paths, lr_paths = found.images, lr_found.images
    source = Source(
        scale=scale,
        high_res=fingerprint(folder, paths),
        low_res=fingerprint(lr_folder, lr_paths) if lr_folder else [],
        low_res_folder=lr_folder.resolve().as_posix() if lr_folder else "",
    )

    def tell(holder: str) -> None:
        print(f"Another process{holder} is packing {folder}; waiting for it")

    lock = lock_of(folder)
    with locked(lock, tell) if lock else nullcontext():
        if (pack := find_pack(folder, source, packed)) is not None:
            return pack
        refuse_empty(folder, found)
        if not lock:
            raise DataError(
                f"{folder} cannot be packed: neither it nor data/packs can be written to"
            )
        partners = {}
        if lr_folder:
            refuse_empty(lr_folder, lr_found)
            partners = find_partners(folder, paths, lr_folder, lr_paths, scale)
        before = {} if packed is None else pack_of_run(folder, source, packed)
        remove_old(folder, source)
        areas = areas_by_header(paths)
        end = f"x{scale}-{source.id}"
        target = place_for_pack(folder, end, packed_size(areas, scale))
        build_pack(target, folder, paths, partners, source, max(areas))
        pack = Pack(target, folder)
        known = packed and all(packed.values())  # and compared by `load_data`
        if before and not known and (lr_folder or not have_same_images(before, pack.index)):
            print(f"{folder}: the run goes on with other images than it had until now")
        return pack


def look_through(folder: Path) -> Found:
    refuse_missing(folder)
    return find_images(folder)


def refuse_missing(folder: Path) -> None:
    if not folder.is_dir():
        kind = "a file, not a folder" if folder.exists() else "no such folder"
        raise DataError(f"{folder}: {kind}")


def refuse_empty(folder: Path, found: Found) -> None:
    if not found.images:
        raise DataError("\n  ".join([f"{folder} {NO_IMAGES}", *found.others]))


def fingerprint(folder: Path, paths: list[Path]) -> list:
    """What changes when a file comes, goes or changes; JSON gives it back equal."""
    entries = []
    for path in paths:
        stat = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
        name = path.relative_to(folder).as_posix()
        entries.append([name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns])
    return entries


def find_pack(folder: Path, source: Source, packed: Collection[str] | None) -> Pack | None:
    """The pack of these files; for a run that goes on, one that may have more than these."""
    fitting: dict[str, tuple[Path, list[str]]] = {}
    for path, index in packs_of(folder, source.scale):
        if source.is_like(index) and (gone := source.vanished(index)) is not None:
            by_now = any(is_read_by_now(why) for _, why in index["unreadable"])
            # A package was installed since; but a run may go on with images that are gone.
            outdated = packed is None and not gone and by_now
            if not (outdated and delete_unused(path)):
                fitting[index["id"]] = path, gone
    if packed is None:
        return Pack(fitting[source.id][0], folder) if source.id in fitting else None
    known = [id for id in (*packed, source.id) if id in fitting]
    if not known:
        return None
    path, gone = fitting[known[0]]
    if gone:
        print(
            f"{folder}: {len(gone):,} images are gone since they were packed ({listed(gone)}); "
            f"their packed copies go on being used. To drop them, delete {path}"
        )
    return Pack(path, folder)


def pack_of_run(folder: Path, source: Source, packed: Collection[str]) -> dict:
    """The index of the pack that a run had until now; {} if it is not there any more.

    Raises:
        DataError: version 1.0 made it, and it has the only copies of images that are gone.
    """
    for path, index in packs_of(folder, source.scale):
        if index.get("id") in packed:
            return index
        paired = path.stem.endswith("-with-lr")
        if index.get("format") == 1 and not packed and paired == bool(source.low_res):
            there = {name for name, *_ in source.high_res}
            if gone := [name for name, *_ in index["high_res"] if name not in there]:
                raise DataError(
                    f"{folder}: {len(gone):,} images are gone since version 1.0 packed them "
                    f"({listed(gone)}). Put them back to go on, or choose another --name"
                )
            return index
    return {}


def have_same_images(before: dict, after: dict) -> bool:
    """Whether two indices are of the same HR images; version 1.0 kept no digests."""
    keys = ["name", "height", "width", *(["digest"] if before["format"] == PACK_FORMAT else [])]
    first, second = (
        [[image[key] for key in keys] for image in index["images"]] for index in (before, after)
    )
    return first == second


def packs_of(folder: Path, scale: int) -> Iterator[tuple[Path, dict]]:
    """Every pack of the folder at that scale, with its index, {} for one that is damaged."""
    here, elsewhere = starts(folder)
    of_version_1 = elsewhere.parent.with_name(f"{elsewhere.parent.name}-{elsewhere.name}")
    for start in (here, elsewhere, of_version_1):
        for path in sorted(start.parent.glob(f"{glob.escape(start.name)}-x{scale}[-.]*bin")):
            yield path, index_of(path)


def index_of(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            return read_index(file)
    except (OSError, ValueError):
        return {}


# ---------------------------------------------------------------------------- which packs go


def remove_old(folder: Path, source: Source) -> None:
    """Delete halves, and packs of files that have changed since; what may be missed stays."""
    for start in starts(folder):
        remove_leftovers(start.parent, start.name)
    kept = []
    for path, index in packs_of(folder, source.scale):
        readable = index.get("format", 0) >= PACK_FORMAT
        if readable and not source.is_like(index):
            continue  # with LR images of another folder
        if (readable and source.has_lost(index)) or not delete_unused(path):
            kept.append(str(path))
    if kept:
        print(
            "Older packs stay, as runs read them or as only they have some images: "
            f"{listed(kept)}. Delete them when nothing needs them"
        )


def delete_unused(path: Path) -> bool:
    """Delete a pack unless a process has it mapped, or might have."""
    try:
        if sys.platform != "win32":
            with open(path, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    except OSError:
        return False
    return True


# ------------------------------------------------------------------------------- building a pack


def build_pack(
    target: Path,
    folder: Path,
    paths: list[Path],
    partners: dict[Path, Path],
    source: Source,
    largest: int,
) -> None:
    """Decode every image, of at most `largest` pixels, and write the pack whole or not at all."""
    findings = Findings(folder)
    results = decode_all(paths, partners, source.scale, threads_for(largest))
    try:
        with replacing(target) as file:
            images = write_images(file, zip(paths, results, strict=True), partners, findings)
            findings.refuse()
            about = dict(unreadable=findings.unreadable, doubtful=findings.doubtful)
            index = vars(source) | dict(id=source.id, images=images) | about
            encoded = json.dumps(index).encode()
            file.write(encoded + len(encoded).to_bytes(8, "little"))
    except OSError as error:
        raise DataError(f"{folder} cannot be packed: {error}") from error


def write_images(
    file: BinaryIO,
    results: Iterable[tuple[Path, Decoded | ImageError]],
    partners: dict[Path, Path],
    findings: Findings,
) -> list[dict]:
    """The pixels of every image that can be read, to the file; returns where each of them is."""
    images, offset = [], 0
    for path, result in results:
        if isinstance(result, ImageError):
            findings.add_error(path, partners.get(path), result)
            continue
        findings.add_fit(path, partners.get(path), result.fit)
        height, width = result.high_res.shape[:2]
        about = dict(height=height, width=width, digest=result.digest)
        about |= {"low_res_digest": result.low_res_digest} if partners else {}
        images.append(dict(name=findings.name(path), offset=offset) | about)
        offset += file.write(result.high_res.data)
        offset += file.write(result.low_res.data)
    return images

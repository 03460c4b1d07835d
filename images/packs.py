"""A folder of images, decoded once into one memory-mapped file: a crop then costs microseconds.

Low-resolution images are made from the whole image, so a crop's LR is the crop of the LR.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from images.files import ImageError, find_images, read_image
from images.resize import imresize
from utils import remove_leftovers, replacing

PACK_FORMAT = 1  # counts up when the layout of a pack changes, so that old ones are rebuilt


class DataError(ValueError):
    """Images that cannot be trained on; the message names each file and what is wrong with it."""


class Pack:
    """The images of one folder, each as HR and LR, in one memory-mapped file.

    The file holds the raw uint8 pixels, then an index in JSON, then the index's length in 8 bytes.

    Args:
        path: a file written by `pack_folder`.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as file:
            end = file.seek(-8, os.SEEK_END)
            length = int.from_bytes(file.read(8), "little")
            file.seek(end - length)
            self.index = json.loads(file.read(length))
        # A pack without a single image has no bytes to map.
        self.pixels = np.memmap(path, np.uint8, "r") if self.index["images"] else None

    def __reduce__(self):
        return Pack, (self.path,)  # a worker maps the file itself: pickling would copy it whole

    def __len__(self) -> int:
        return len(self.index["images"])

    def name(self, i: int) -> str:
        """Path of the i-th image inside its folder."""
        return self.index["images"][i]["name"]

    def stem(self, i: int) -> str:
        """The same as one file name, without suffix: sub_d of sub/d.png."""
        return Path(self.name(i)).with_suffix("").as_posix().replace("/", "_")

    def size(self, i: int) -> tuple[int, int]:
        """Height and width of the i-th HR image, multiples of the scale."""
        image = self.index["images"][i]
        return image["height"], image["width"]

    def below(self, side: int) -> list[str]:
        """The images with less than `side` pixels one way, and how large they are."""
        small = [i for i in range(len(self)) if min(self.size(i)) < side]
        return [
            f"{self.index['folder']}/{self.name(i)}: {self.size(i)[1]}x{self.size(i)[0]} pixels"
            for i in small
        ]

    def high_res(self, i: int) -> np.ndarray:
        """uint8 (H, W, 3), a view of the file."""
        height, width = self.size(i)
        return self._view(self.index["images"][i]["offset"], height, width)

    def low_res(self, i: int) -> np.ndarray:
        """uint8 (H / scale, W / scale, 3), a view of the file."""
        height, width = self.size(i)
        offset = self.index["images"][i]["offset"] + height * width * 3
        return self._view(offset, height // self.index["scale"], width // self.index["scale"])

    def _view(self, offset: int, height: int, width: int) -> np.ndarray:
        assert self.pixels is not None  # an image has pixels
        return self.pixels[offset : offset + height * width * 3].reshape(height, width, 3)


def pack_folder(folder: str | Path, scale: int, lr_folder: str | Path | None = None) -> Pack:
    """Open a folder's pack; build it first where there is none or images have come or changed.

    It is kept in the folder itself, or under data/packs where that is read-only. Processes that
    start at once wait for the one that builds. A file that cannot be read is left out and named
    in `index["unreadable"]`.

    Args:
        folder: HR images, at any depth. Each is cropped at the right and the bottom to a multiple
            of the scale.
        scale: HR size over LR size.
        lr_folder: LR images with the same names (or 0001x4.png for 0001.png); without it, LR is
            MATLAB's bicubic.

    Raises:
        DataError: no folder, no images, or LR partners that are missing or of a wrong size.
    """
    folder, lr_folder = Path(folder), Path(lr_folder) if lr_folder else None
    paths = list_images(folder)
    made_from = {"format": PACK_FORMAT, "scale": scale, "high_res": fingerprint(folder, paths)}
    lr_paths = []
    if lr_folder:
        lr_paths = list_images(lr_folder)
        made_from["low_res"] = fingerprint(lr_folder, lr_paths)
    target = pack_path(folder, scale, lr_folder)
    with waiting_for(FileLock(target.with_name(f".{target.name}.lock")), folder):
        pack = open_pack(target, made_from)
        if pack is None:
            partners = {}
            refuse_empty(folder, paths)
            if lr_folder:
                refuse_empty(lr_folder, lr_paths)
                partners = find_partners(folder, paths, lr_folder, lr_paths, scale)
            build_pack(target, folder, paths, partners, made_from)
            pack = Pack(target)
    return pack


def waiting_for(lock: FileLock, folder: Path) -> AbstractContextManager:
    """Acquire the lock, and say so if that means to wait."""
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"Another process is packing {folder}; waiting for it")
        return lock.acquire()


def fingerprint(folder: Path, paths: list[Path]) -> list:
    """What changes when a file comes, goes or changes; JSON gives it back equal."""
    entries = []
    for path in paths:
        stat = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
        entries.append([path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns])
    return entries


def open_pack(target: Path, made_from: dict) -> Pack | None:
    """The pack, if it is there, whole, and made from these files, of which some may be gone.

    A resumed run must see the same samples, even if files were tidied away since.
    """
    try:
        pack = Pack(target)
    except (OSError, ValueError):
        return None
    if any(pack.index.get(key) != made_from[key] for key in ("format", "scale")):
        return None
    vanished = []
    for key in ("high_res", "low_res"):
        packed = {tuple(entry) for entry in pack.index.get(key, [])}
        there = {tuple(entry) for entry in made_from.get(key, [])}
        if not there <= packed:
            return None
        vanished += sorted({name for name, *_ in packed - there})
    if vanished:
        print(
            f"{pack.index['folder']}: {len(vanished)} images are gone since they were packed "
            f"({', '.join(vanished[:3])}{', ...' if len(vanished) > 3 else ''}); their packed "
            f"copies go on being used. To drop them, delete {target}"
        )
    return pack


def list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    return find_images(folder)


def refuse_empty(folder: Path, images: list[Path]) -> None:
    if not images:
        raise DataError(f"{folder} holds no PNG, JPEG, WebP, BMP or TIFF image, at any depth")


def pack_path(folder: Path, scale: int, lr_folder: Path | None) -> Path:
    name = f"esrgan-packed-x{scale}{'-with-lr' if lr_folder else ''}.bin"
    if os.access(folder, os.W_OK):
        return folder / name
    elsewhere = Path("data/packs")
    elsewhere.mkdir(parents=True, exist_ok=True)
    identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    return elsewhere / f"{folder.name}-{identity}-{name}"


def find_partners(
    folder: Path, paths: list[Path], lr_folder: Path, lr_paths: list[Path], scale: int
) -> dict[Path, Path]:
    """HR file -> LR file; the names match but for the suffix and an optional "x<scale>"."""
    by_name = {path.relative_to(lr_folder).with_suffix("").as_posix(): path for path in lr_paths}
    partners, missing = {}, []
    for path in paths:
        name = path.relative_to(folder).with_suffix("").as_posix()
        partner = by_name.get(name) or by_name.get(f"{name}x{scale}")
        if partner is None:
            missing.append(f"  {path}: no {name}.* in {lr_folder}")
        else:
            partners[path] = partner
    if missing:
        raise DataError("\n".join([f"{len(missing)} images have no LR partner:", *missing]))
    return partners


def build_pack(
    target: Path, folder: Path, paths: list[Path], partners: dict[Path, Path], made_from: dict
) -> None:
    """Decode every image and write the pack, whole or not at all."""
    remove_leftovers(target.parent, target.name)
    images, unreadable, fatal, offset = [], [], [], 0
    with replacing(target) as file:
        decoded = decode_all(paths, partners, made_from["scale"])
        for path, result in zip(paths, decoded, strict=True):
            if isinstance(result, MismatchError) or is_passing(result):
                fatal.append(f"  {result}")
            elif isinstance(result, ImageError):
                unreadable.append(str(result))
            else:
                high_res, low_res = result
                height, width = high_res.shape[:2]
                name = path.relative_to(folder).as_posix()
                images.append(dict(name=name, height=height, width=width, offset=offset))
                offset += file.write(np.ascontiguousarray(high_res).data)
                offset += file.write(np.ascontiguousarray(low_res).data)
        if fatal:
            raise DataError("\n".join([f"{folder} cannot be packed:", *fatal]))
        index = made_from | dict(folder=folder.as_posix(), images=images, unreadable=unreadable)
        encoded = json.dumps(index).encode()
        file.write(encoded + len(encoded).to_bytes(8, "little"))
        file.flush()
        os.fsync(file.fileno())


def is_passing(result) -> bool:
    """Whether reading failed for no fault of the file: a reason that may be gone tomorrow."""
    cause = getattr(result, "__cause__", None)
    return isinstance(cause, MemoryError) or getattr(cause, "errno", None) is not None


class MismatchError(ImageError):
    """An LR image that is not its HR image's size over the scale."""


def decode_all(paths: list[Path], partners: dict[Path, Path], scale: int) -> Iterator:
    """Per path, in order: (high_res, low_res), or the ImageError that it ended in."""

    def decode(path: Path):
        try:
            return decode_pair(path, partners.get(path), scale)
        except ImageError as error:
            return error

    # Threads are enough: Pillow and NumPy let go of the interpreter lock while they work.
    # Chunks bound how many decoded images wait in memory.
    workers = os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), desc="packing images", unit="image") as bar,
    ):
        for start in range(0, len(paths), 2 * workers):
            for result in pool.map(decode, paths[start : start + 2 * workers]):
                yield result
                bar.update()


def decode_pair(path: Path, lr_path: Path | None, scale: int) -> tuple[np.ndarray, np.ndarray]:
    image = read_image(path)
    height, width = (side // scale * scale for side in image.shape[:2])
    if min(height, width) == 0:
        raise ImageError(f"{path}: smaller than one LR pixel")
    high_res = image[:height, :width]
    if lr_path is None:
        return high_res, imresize(high_res, 1 / scale)
    low_res = read_image(lr_path)
    if low_res.shape[:2] != (height // scale, width // scale):
        raise MismatchError(
            f"{lr_path} is {low_res.shape[1]}x{low_res.shape[0]}; a 1/{scale} of {path} "
            f"({image.shape[1]}x{image.shape[0]}) is {width // scale}x{height // scale}"
        )
    return high_res, low_res

"""Training data: folders of images, packed once; an endless, repeatable stream of crops.

    python dataset.py div2k     fetch DIV2K (4 GB) into data/train and data/valid

A folder is decoded once into one memory-mapped file, from which a crop costs microseconds.
Low-resolution images are made from the whole image, so a crop's LR is the crop of the LR.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network

import albumentations as A
import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.utils import download_url, extract_archive
from tqdm import tqdm

from images.files import ImageError, find_images, read_image
from images.resize import imresize
from utils import prepare_output, remove_leftovers, replacing

PACK_FORMAT = 1  # counts up when the layout of a pack changes, so that old ones are rebuilt

TURNS = ("e", "r90", "r180", "r270", "v", "h", "t", "hvt")  # albumentations' names for them

DIV2K_URL = "http://data.vision.ee.ethz.ch/cvl/DIV2K"
DIV2K_ARCHIVES = {  # split -> file name, MD5
    "train": ("DIV2K_train_HR.zip", "bdc2d9338d4e574fe81bf7d158758658"),
    "valid": ("DIV2K_valid_HR.zip", "9fcdda83005c5e5997799b69f955ff88"),
}

DEMO_DIR = Path("data/demo")
DEMO_PHOTOGRAPHS = {  # the colour photographs in scikit-image's wheel
    "valid": ("astronaut.png", "chelsea.png"),
    "train": (
        "coffee.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
        "rocket.jpg",
    ),
}


class DataError(ValueError):
    """Images that cannot be trained on; the message names each file and what is wrong with it."""


# ------------------------------------------------------------------------------------- packing


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
    identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    return elsewhere / f"{folder.name[:40]}-{identity}-{name}"


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


# ------------------------------------------------------------------------------ the sample stream


class CropStream(Dataset):
    """Random crops; the k-th one is a pure function of (seed, k).

    So an exact resume, any number of workers and any number of ranks need no saved random state.

    Args:
        packs: where the images are.
        patch: side of the HR crop in pixels, a multiple of the scale.
        seed: of the stream.

    Raises:
        DataError: no image is large enough.
    """

    def __init__(self, packs: list[Pack], patch: int, seed: int):
        self.packs, self.patch, self.seed = packs, patch, seed
        self.scale = packs[0].index["scale"]
        self.images = [
            (pack, i) for pack in packs for i in range(len(pack)) if min(pack.size(i)) >= patch
        ]
        self.turn = A.D4(p=1)  # the 8 flips and rotations of a square
        if not self.images:
            raise DataError(f"no training image is at least {patch}x{patch} pixels, the crop")

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        """LR and HR crop, uint8, (3, patch / scale, patch / scale) and (3, patch, patch)."""
        # The generator itself counts in the low 64 bits of the counter; in the high ones, k keeps
        # the numbers of one sample apart from those of the next.
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=k << 64))
        pack, i = self.images[random.integers(len(self.images))]
        side = self.patch // self.scale
        low_res, high_res = pack.low_res(i), pack.high_res(i)
        top = random.integers(low_res.shape[0] - side + 1)
        left = random.integers(low_res.shape[1] - side + 1)
        turn = TURNS[random.integers(len(TURNS))]
        return self._crop(low_res, top, left, side, turn), self._crop(
            high_res, top * self.scale, left * self.scale, self.patch, turn
        )

    def _crop(self, image: np.ndarray, top: int, left: int, side: int, turn: str) -> Tensor:
        crop = self.turn.apply(image[top : top + side, left : left + side], group_element=turn)
        return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def batches(
    stream: CropStream,
    start: int,
    stop: int,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    parts: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader:
    """Batches number start to stop - 1 of a stream: pairs of uint8 (N, 3, h, w).

    Each batch is cut into `parts` for gradient accumulation, and each part among the ranks: this
    gives the pieces of one of them, N = batch_size / parts / ranks, in order. All ranks and parts
    together see the same samples as one process would.
    """
    size = batch_size // parts // ranks
    firsts = range(start * batch_size + rank * size, stop * batch_size, ranks * size)
    return DataLoader(
        stream,
        batch_sampler=(list(range(first, first + size)) for first in firsts),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=ignore_signals,
    )


def ignore_signals(worker: int) -> None:
    """Ctrl-C reaches a whole process group, as SIGTERM may; the training process answers alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


# ------------------------------------------------------------------------------ getting images


def write_demo_photographs(root: Path = DEMO_DIR) -> None:
    """Copy scikit-image's photographs to root/train and root/valid, where they can be looked at."""
    for split, names in DEMO_PHOTOGRAPHS.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            target = root / split / name
            if target.exists():
                continue
            source = resources.files("skimage") / "data" / name
            with replacing(target) as file:
                file.write(source.read_bytes())


def fetch_div2k(root: Path, base_url: str = DIV2K_URL, archives: dict = DIV2K_ARCHIVES) -> None:
    """Download, verify and unpack DIV2K's HR images to root/train and root/valid.

    What an earlier call finished is kept; anything else is done again.

    Raises:
        DataError: no network, or a download whose checksum is wrong.
    """
    for split, (file_name, md5) in archives.items():
        folder = Path(file_name).stem
        target = root / split / folder
        if target.is_dir():
            print(f"{target} is there already")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url(f"{base_url}/{file_name}", str(root), file_name, md5)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{base_url}/{file_name} could not be fetched whole ({error}). Run the same "
                f"command again, or unpack the archive yourself so that {target} is a folder."
            ) from error
        unpacking = root / f".{folder}.unpacking"
        shutil.rmtree(unpacking, ignore_errors=True)
        print(f"unpacking {file_name}")
        extract_archive(str(root / file_name), str(unpacking))
        os.replace(unpacking / folder, target)
        unpacking.rmdir()
        (root / file_name).unlink()
        print(f"{len(find_images(target))} images in {target}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch a dataset to train on.")
    parser.add_argument("dataset", choices=["div2k"])
    parser.add_argument("--root", type=Path, default=Path("data"), help="default: data")
    arguments = parser.parse_args()
    try:
        fetch_div2k(arguments.root)
    except (DataError, OSError) as error:
        sys.exit(f"dataset.py: {error}")
    except KeyboardInterrupt:
        sys.exit("dataset.py: interrupted; the same command starts over with what was not finished")


if __name__ == "__main__":
    prepare_output()
    main()

"""The images of a folder decoded, each with its LR image, and what is wrong with which of them."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from images.colour import to_srgb
from images.files import bleed, read_picture, whole_8_bits
from images.kinds import PIXEL_BYTES, ImageError, is_passing, open_image
from images.pairs import LOWEST_FIT, DataError, Fit, fit
from images.resize import imresize, whole_multiple
from images.tiff import area_by_tags, is_tiff
from utils import Bar, available_memory, listed, usable_cores

WAITING = 2  # decoded images in memory for each thread that decodes


class MismatchError(ImageError):
    """An LR image that is not its HR image's size over the scale."""


class Findings:
    """What is wrong with the images of a folder, by kind.

    Attributes:
        unreadable: [name, reason] of each that is left out.
        doubtful: [name, correlation in words] of each that hardly looks like its LR image.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.unreadable: list[list[str]] = []
        self.doubtful: list[list[str]] = []
        self.passing: list[str] = []
        self.mismatched: list[str] = []
        self.turned: list[str] = []

    def name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def add_error(self, path: Path, lr_path: Path | None, error: ImageError) -> None:
        if isinstance(error, MismatchError):
            self.mismatched.append(str(error))
        elif is_passing(error.__cause__):
            self.passing.append(str(error))
        else:
            reason = str(error).removeprefix(f"{path}: ").replace(f"{lr_path}: ", "its LR image: ")
            self.unreadable.append([self.name(path), reason])

    def add_fit(self, path: Path, lr_path: Path | None, found: Fit | None) -> None:
        if found and found.surely_turned:
            self.turned.append(f"{lr_path}: {found}")
        elif found and found.doubtful:
            self.doubtful.append([self.name(path), str(found)])

    def refuse(self) -> None:
        """Raise for what must not be trained on, and for what may be gone on the next try.

        Raises:
            DataError: all of it, each kind on a line.
        """
        complaints = []
        if self.passing:
            complaints.append(f"{len(self.passing):,} cannot be read now: {listed(self.passing)}")
        if self.mismatched:
            complaints.append(
                f"{len(self.mismatched):,} LR images are of a wrong size: {listed(self.mismatched)}"
            )
        if self.turned:
            complaints.append(
                f"{len(self.turned):,} LR images are turned against their HR images, by their "
                f"correlation: {listed(self.turned)}. Turn them, or mend the orientation that is "
                "in the EXIF data of one of the two"
            )
        if complaints:
            raise DataError("\n  ".join([f"{self.folder} cannot be packed:", *complaints]))


@dataclass
class Decoded:
    """A pair of images, uint8 and contiguous: (H, W, 3) and (H / scale, W / scale, 3)."""

    high_res: np.ndarray
    low_res: np.ndarray
    digest: str
    low_res_digest: str = ""  # of LR that is not made from HR
    fit: Fit | None = None


def areas_by_header(paths: list[Path]) -> list[int]:
    """Pixels of each image; 0 of one that cannot be opened, which is named later."""
    areas = [0] * len(paths)
    for i, path in enumerate(paths):
        with suppress(Exception):  # Pillow opens fewer kinds of TIFF than are read
            areas[i] = area_by_tags(path) if is_tiff(path) else _area_by_pillow(path)
    return areas


def _area_by_pillow(path: Path) -> int:
    with open_image(path) as file:
        return file.width * file.height


def threads_for(largest: int) -> int:
    """How many may decode images of so many pixels at once in the memory that is free now."""
    waiting = WAITING * 2 * 3  # bytes of HR and, at the most, as much of LR
    of_thread = largest * (PIXEL_BYTES + waiting)
    return max(1, min(usable_cores(), available_memory() // max(1, of_thread)))


def decode_all(
    paths: list[Path], partners: dict[Path, Path], scale: int, threads: int
) -> Iterator[Decoded | ImageError]:
    """Per path, in order: what it holds, or the error that it ended in."""

    def decode(path: Path) -> Decoded | ImageError:
        try:
            return decode_pair(path, partners.get(path), scale)
        except ImageError as error:
            return error
        except MemoryError as error:  # of the work on what was read
            failure = ImageError(f"{path}: too little memory is free")
            failure.__cause__ = error
            return failure

    # Threads are enough: Pillow and NumPy let go of the interpreter lock while they work.
    # Chunks bound how many decoded images wait in memory.
    with (
        ThreadPoolExecutor(threads) as pool,
        Bar(total=len(paths), desc="packing images", unit="image") as bar,
    ):
        for start in range(0, len(paths), WAITING * threads):
            for result in pool.map(decode, paths[start : start + WAITING * threads]):
                yield result
                bar.update()


def read_visible(path: Path) -> tuple[np.ndarray, bytes | None]:
    """Its colours, uint8 of (H, W, 3), and their profile. What is under alpha 0 is the colour of
    the nearest pixel that can be seen, as it is in what test.py gives a network."""
    picture = read_picture(path)
    colours = whole_8_bits(picture, path)
    return colours if picture.alpha is None else bleed(colours, picture.alpha), picture.profile


def unlike(image: np.ndarray, other: np.ndarray) -> float:
    """How far their mean colours are apart, whatever their sizes."""
    return float(np.abs(image.mean((0, 1)) - other.mean((0, 1))).sum())


def decode_pair(path: Path, lr_path: Path | None, scale: int) -> Decoded:
    image, profile = read_visible(path)
    low_res, low_res_profile = read_visible(lr_path) if lr_path else (None, None)
    if low_res is not None and profile != low_res_profile:  # else both have the same numbers
        srgb = to_srgb(image, profile), to_srgb(low_res, low_res_profile)
        # Programs that know nothing of profiles keep the numbers, and drop or invent the profile.
        if unlike(*srgb) < unlike(image, low_res):
            image, low_res = srgb
    high_res = np.ascontiguousarray(whole_multiple(image, scale))
    height, width = high_res.shape[:2]
    if min(height, width) == 0:
        raise ImageError(f"{path}: smaller than one LR pixel")
    digest = hashlib.blake2b(repr(high_res.shape).encode(), digest_size=16)
    digest.update(high_res.data)
    if low_res is None:
        return Decoded(high_res, imresize(high_res, 1 / scale), digest.hexdigest())
    size = (width // scale, height // scale)
    if low_res.shape[:2] == tuple(-(-side // scale) for side in image.shape[:2]):
        low_res = low_res[: size[1], : size[0]]  # MATLAB's, of a part of a pixel at the end, too
    low_res = np.ascontiguousarray(low_res)
    given = low_res.shape[1::-1]
    if given == size:
        own = hashlib.blake2b(low_res.data, digest_size=16).hexdigest()
        found = fit(low_res, high_res, scale)
        return Decoded(high_res, low_res, digest.hexdigest(), own, found)
    found = fit(low_res, high_res, scale) if given == size[::-1] else None
    raise MismatchError(
        f"{lr_path} is {given[0]}x{given[1]} instead of {size[0]}x{size[1]}, 1/{scale} of {path} "
        f"({image.shape[1]}x{image.shape[0]})"
        + (f"; it fits {found.turn}" if found and found.turned >= LOWEST_FIT else "")
    )

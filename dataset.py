"""Training data: an endless, repeatable stream of crops, and where to get images.

    python dataset.py div2k             fetch DIV2K (4 GB) into data/train and data/valid
    python dataset.py preview FOLDER    draw degraded crops of a folder's images, to look at

Crops are cut from folders that images/packs.py has decoded once.
"""

import argparse
import functools
import http.client
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from config import Degradation
from images.flags import Preview, parse_args
from utils import hear_kill, listed, prepare_output, replacing, worker_init

if __name__ == "__main__":  # --help and wrong flags are answered before torch takes its seconds
    prepare_output()
    parse_args()

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from images.degradation import Step, degrade, draw_level, draw_steps, sharpen
from images.files import write_image
from images.kinds import find_images
from images.opening import silence_pillow
from images.packs import Pack, pack_folder
from images.pairs import DataError
from images.sheets import Entry, draw_sheet

MARGIN = 32  # HR pixels around a crop that are degraded with it, which keep their border away
LR_MARGIN = 10  # LR pixels that this has to be at least: mild's and strong's last filter reach it
JPEG_BLOCK = 8  # pixels
NO_DEGRADATION = Degradation()
TURNS = ("e", "r90", "r180", "r270", "v", "h", "t", "hvt")  # albumentations' names for them
# What each of them is: rows in reverse, columns in reverse, then rows become columns.
REVERSING_ROWS = ("r180", "r270", "v", "hvt")
REVERSING_COLUMNS = ("r90", "r180", "h", "hvt")
TRANSPOSING = ("r90", "r270", "t", "hvt")

DIV2K_URL = "http://data.vision.ee.ethz.ch/cvl/DIV2K"
DIV2K_ARCHIVES = {  # split -> file name, MD5
    "train": ("DIV2K_train_HR.zip", "bdc2d9338d4e574fe81bf7d158758658"),
    "valid": ("DIV2K_valid_HR.zip", "9fcdda83005c5e5997799b69f955ff88"),
}

SILENCE = 60  # seconds without a byte after which a download is given up

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


# ------------------------------------------------------------------------------ the sample stream


class Crops(NamedTuple):
    """The same place of an image: what the generator is given, what the discriminator takes for
    real, and what the generator is compared with, which is `high_res` or a sharpened version of it.
    """

    low_res: Any  # an array, a tensor, or a batch of tensors
    high_res: Any
    target: Any

    def map(self, function: Callable[[Any], Any]) -> "Crops":
        """The function of each, computed once where the target is `high_res` itself."""
        high_res = function(self.high_res)
        target = high_res if self.target is self.high_res else function(self.target)
        return Crops(function(self.low_res), high_res, target)

    def pin_memory(self) -> "Crops":
        """As the loader of newer torch asks for it."""
        return self.map(torch.Tensor.pin_memory)


@dataclass(frozen=True)
class Sample:
    """What the stream has at one place.

    Args:
        crops: uint8 arrays, (patch / scale, patch / scale, 3) and twice (patch, patch, 3).
        name: path of the image in its folder.
        size: height and width of the HR pixels that were degraded, the crop among them.
        level: of the degradation that was drawn.
        steps: what they went through; none where LR is the pack's.
    """

    crops: Crops
    name: str
    size: tuple[int, int]
    level: str
    steps: list[Step]


class CropStream(Dataset):
    """Random crops; the k-th one is a pure function of (seed, k).

    So an exact resume, any number of workers and any number of ranks need no saved random state.

    Args:
        packs: where the images are.
        patch: side of the HR crop in pixels, a multiple of the scale.
        seed: of the stream.
        degradation: what becomes of HR on its way to LR. Of level "none", LR is the pack's.
        busiest_of: places that are drawn for each crop; the one with the most detail is cut out.

    Raises:
        DataError: no image is large enough.
    """

    def __init__(
        self,
        packs: list[Pack],
        patch: int,
        seed: int,
        degradation: Degradation = NO_DEGRADATION,
        busiest_of: int = 1,
    ):
        self.packs, self.patch, self.seed = packs, patch, seed
        self.degradation, self.busiest_of = degradation, busiest_of
        self.scale = packs[0].scale
        self.side = patch // self.scale  # of the LR crop
        self.images = [
            (pack, i) for pack in packs for i in range(len(pack)) if min(pack.size(i)) >= patch
        ]
        if not self.images:
            raise DataError(f"no training image is at least {patch}x{patch} pixels, the crop")
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks the network
        import albumentations  # takes seconds, which only cutting crops is worth

        self.turn = albumentations.D4(p=1)  # the 8 flips and rotations of a square

    def __getitem__(self, k: int) -> Crops:
        """uint8: LR of (3, patch / scale, patch / scale), HR and target of (3, patch, patch)."""
        return self.sample(k).crops.map(
            lambda crop: torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))
        )

    def sample(self, k: int) -> Sample:
        """The k-th one as arrays, and what was drawn for it."""
        # The generator itself counts in the low 64 bits of the counter; in the high ones, k keeps
        # the numbers of one sample apart from those of the next.
        random = np.random.Generator(np.random.Philox(key=self.seed, counter=k << 64))
        places = [self._draw_place(random) for _ in range(self.busiest_of)]
        # One alone need not be measured.
        pack, i, top, left = max(places, key=self._detail) if places[1:] else places[0]
        turn = TURNS[random.integers(len(TURNS))]
        if self.degradation.level == "none":
            high_res = cut(pack.high_res(i), top, left, self.side, self.scale)
            crops = Crops(cut(pack.low_res(i), top, left, self.side), high_res, high_res)
            crops = crops.map(functools.partial(self.turn.apply, group_element=turn))
            return Sample(crops, pack.name(i), high_res.shape[:2], "none", [])
        # Turned first: what JPEG leaves lies along and across as in any photograph, unequally.
        image = turned(pack.high_res(i), turn)
        height, width = pack.size(i)
        if turn in REVERSING_ROWS:
            top = height // self.scale - self.side - top
        if turn in REVERSING_COLUMNS:
            left = width // self.scale - self.side - left
        if turn in TRANSPOSING:
            top, left = left, top
        return self._degraded(image, top, left, pack.name(i), random)

    def _draw_place(self, random: np.random.Generator) -> tuple[Pack, int, int, int]:
        """A pack, an image of it, and the first row and column of a crop, in LR pixels."""
        pack, i = self.images[random.integers(len(self.images))]
        height, width = pack.size(i)
        top = int(random.integers(height // self.scale - self.side + 1))
        left = int(random.integers(width // self.scale - self.side + 1))
        return pack, i, top, left

    def _detail(self, place: tuple[Pack, int, int, int]) -> float:
        """How much the HR pixels of a place differ from those below and beside them."""
        pack, i, top, left = place
        pixels = cut(pack.high_res(i), top, left, self.side, self.scale)
        down = cv2.norm(pixels[1:], pixels[:-1], cv2.NORM_L1)
        across = cv2.norm(pixels[:, 1:], pixels[:, :-1], cv2.NORM_L1)
        return down + across  # both of as many values

    def _degraded(
        self, image: np.ndarray, top: int, left: int, name: str, random: np.random.Generator
    ) -> Sample:
        """Crops of an HR image; the crop's surroundings are degraded along with it."""
        reach = max(LR_MARGIN, self.degradation.kernel_side[1] // 2)
        margin = max(reach, -(-MARGIN // self.scale))
        # More above and to the left, so that JPEG's blocks begin anywhere in the crop.
        above, before = (margin + int(n) for n in random.integers(JPEG_BLOCK, size=2))
        window_top, window_left = max(0, top - above), max(0, left - before)
        rows = slice(window_top * self.scale, (top + self.side + margin) * self.scale)
        columns = slice(window_left * self.scale, (left + self.side + margin) * self.scale)
        window = image[rows, columns]
        size = window.shape[:2]
        drawn = draw_level(self.degradation, random)
        steps = draw_steps(drawn, size, self.scale, random)
        prepared = sharpen(window) if self.degradation.sharpen else window
        low_res = degrade(prepared, steps, random)
        inner = top - window_top, left - window_left, self.side
        high_res = target = cut(window, *inner, self.scale)
        if self.degradation.sharpen:
            target = cut(prepared, *inner, self.scale)
        crops = Crops(cut(low_res, *inner), high_res, target)
        return Sample(crops, name, size, drawn.level, steps)


def turned(image: np.ndarray, turn: str) -> np.ndarray:
    """What albumentations makes of it by one of TURNS, as a view of however large an image."""
    rows, columns = (-1 if turn in names else 1 for names in (REVERSING_ROWS, REVERSING_COLUMNS))
    image = image[::rows, ::columns]
    return image.swapaxes(0, 1) if turn in TRANSPOSING else image


def cut(image: np.ndarray, top: int, left: int, side: int, scale: int = 1) -> np.ndarray:
    """A square of an image, which is given in pixels that are `scale` times as large."""
    return image[top * scale : (top + side) * scale, left * scale : (left + side) * scale]


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
    """Batches number start to stop - 1 of a stream: `Crops` of uint8 (N, 3, h, w).

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
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=functools.partial(start_worker, worker_init()) if workers else None,
    )


def collate(samples: list[Crops]) -> Crops:
    """A batch; where the target is `high_res` itself, it stays so and travels once."""
    high_res = default_collate([sample.high_res for sample in samples])
    target = high_res
    if any(sample.target is not sample.high_res for sample in samples):
        target = default_collate([sample.target for sample in samples])
    return Crops(default_collate([sample.low_res for sample in samples]), high_res, target)


def start_worker(follow_parent: Callable[[int], None], worker: int) -> None:
    # The workers share the cores among them; and a forked one has none of OpenCV's threads, which
    # only 0 leaves alone: at 1 it would wait for them to end.
    cv2.setNumThreads(0)
    follow_parent(worker)


# ------------------------------------------------------------------------------ a look at samples


def preview(stream: CropStream, count: int) -> np.ndarray:
    """A sheet of the first samples, each with what was drawn for it: uint8, (H, W, 3)."""
    d = stream.degradation
    title = f"x{stream.scale}, seed {stream.seed}, degradation.level {d.level}"
    title += f", {d.mild:.0%} of it mild" if d.mild and d.level != "none" else ""
    sharpened = d.sharpen and d.level != "none"
    return draw_sheet(title, [entry_of(k, stream.sample(k), sharpened) for k in range(count)])


def entry_of(k: int, sample: Sample, sharpened: bool) -> Entry:
    low_res, high_res, target = sample.crops
    pictures = {"LR": low_res, "HR": high_res} | ({"sharpened HR": target} if sharpened else {})
    height, width = sample.size
    steps = [f"HR with margin: {width}x{height}", *map(str, sample.steps)]
    words = [f"sample {k}: {sample.name}"]
    words += [f"level {sample.level}", *steps] if sample.steps else ["MATLAB's bicubic"]
    return Entry(pictures, words)


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
    from torchvision.datasets.utils import extract_archive  # takes seconds

    for split, (file_name, md5) in archives.items():
        folder = Path(file_name).stem
        target = root / split / folder
        if target.is_dir():
            print(f"{target} is there already")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            download(f"{base_url}/{file_name}", root / file_name, md5)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise DataError(
                f"{base_url}/{file_name} could not be fetched whole ({error}). Run the same "
                f"command again, or unpack the archive yourself so that {target} is a folder."
            ) from error
        unpacking = target.parent / f".{folder}.unpacking"  # perhaps on another disk than root
        shutil.rmtree(unpacking, ignore_errors=True)
        print(f"unpacking {file_name}")
        extract_archive(str(root / file_name), str(unpacking))
        os.replace(unpacking / folder, target)
        unpacking.rmdir()
        (root / file_name).unlink()
        print(f"{len(find_images(target).images)} images in {target}")


def download(url: str, file: Path, md5: str) -> None:
    """By torchvision, which would wait forever for a server that has gone silent."""
    from torchvision.datasets.utils import download_url  # takes seconds

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        download_url(url, str(file.parent), file.name, md5)
    finally:
        socket.setdefaulttimeout(before)


# ---------------------------------------------------------------------------------- the commands


def run_preview(
    parser: argparse.ArgumentParser,
    folder: Path,
    output: Path,
    settings: Preview,
    degradation: Degradation,
) -> None:
    if folder.resolve() in output.resolve().parents:
        parser.error(
            f"{output} would be one of {folder}'s images from then on: put it elsewhere (-o)"
        )
    try:
        pack = pack_folder(folder, settings.scale)
        for line in [*pack.others, *(f"{name}: {why}" for name, why in pack.index["unreadable"])]:
            print(f"Left out: {line}")
        refuse_small(pack, settings.patch)
        small = [pack.name(i) for i in range(len(pack)) if min(pack.size(i)) < settings.patch]
        if small:
            print(f"Left out, as they are smaller than the crop: {listed(small)}")
        stream = CropStream([pack], settings.patch, settings.seed, degradation, settings.busiest_of)
    except ValueError as error:  # DataError is one, too
        parser.error(str(error))
    write_image(preview(stream, settings.samples), output)
    print(f"Saved: {output}")


def refuse_small(pack: Pack, patch: int) -> None:
    """
    Raises:
        DataError: no image has room for such a crop; the message says which one would fit.
    """
    if len(pack) == 0:
        raise DataError("no training image can be read")
    largest = max(min(pack.size(i)) for i in range(len(pack)))
    if largest < patch:
        raise DataError(
            f"no training image is at least {patch}x{patch} pixels, the crop; --patch {largest} "
            "would fit the largest"
        )


def main(args: list[str] | None = None) -> None:
    parser, flags = parse_args(args)
    command = flags.pop("command")
    try:
        if command == "preview":
            run_preview(parser, **flags)
        else:
            fetch_div2k(flags["root"])
    except (DataError, OSError) as error:
        sys.exit(f"dataset.py: {error}")
    except KeyboardInterrupt:
        sys.exit("dataset.py: interrupted; the same command starts over with what was not finished")


if __name__ == "__main__":
    silence_pillow()
    hear_kill()
    main()

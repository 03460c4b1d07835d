"""Scores of the averaged generator on whole images, beside bicubic's, and pictures to look at."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from images.names import digest, longest_name, shortened
from images.packs import Pack
from images.resize import enlarge_nearest, imresize
from images.scores import psnr, ssim
from images.strips import labelled_strip
from training.runs import At, RunFolder, TrainingError
from upscaling.tiles import upscale
from utils import autocast, printable

SAMPLE_COUNT = 4  # validation images of which strips are drawn
SAMPLE_SIDE = 512  # of those, the pixels around the centre
ROOM = 40  # in the name of a strip's file, for the step and the phase
TILE = 256  # LR pixels; bounds the memory that a large validation image takes

Score = tuple[float, float]  # PSNR in dB, SSIM


class Validation:
    """Validates on the same images each time; the ranks share them.

    Args:
        pack: HR and LR images.
        device, dtype: of the run.
        run: has the settings and the ranks, which share the images, and takes the strips.
    """

    def __init__(self, pack: Pack, device: torch.device, dtype: torch.dtype, run: RunFolder):
        self.pack, self.device, self.dtype, self.run = pack, device, dtype, run
        self.scale: int = pack.index["scale"]
        self.names = strip_names(pack, longest_name(run.folder) - ROOM)
        self.own = share_of(chosen(pack, run.config.val_images), run.ranks.rank, run.ranks.count)
        scores = self._mean_scores("scoring bicubic", self._score_bicubic)
        self.bicubic = {f"bicubic_{key}": value for key, value in scores.items()}

    def __call__(self, net: nn.Module, at: At) -> dict[str, float]:
        """PSNR and SSIM on Y beside bicubic's; the first images' strips go to samples/.

        Raises:
            TrainingError: the network's output is not finite.
        """

        def score_network(i: int) -> Score:
            try:
                with autocast(self.device, self.dtype):
                    fake = upscale(net, self.pack.low_res(i), TILE)
            except FloatingPointError as error:
                raise TrainingError(
                    f"{error} at {at}; {self.run.last} is older. Lower --{at.phase}.lr."
                ) from error
            scored = score(fake, self.pack.high_res(i), self.scale)
            if self.run.ranks.first and i in self.own[:SAMPLE_COUNT]:
                self.run.sample(self.names[i], self._strip(i, fake, scored[0], at), at)
            return scored

        return self._mean_scores("validation", score_network) | self.bicubic

    def _mean_scores(self, title: str, score_image: Callable[[int], Score]) -> dict[str, float]:
        """Of all ranks' images."""
        ranks = self.run.ranks
        bar = tqdm(self.own, desc=title, leave=False, unit="image", disable=not ranks.first)
        return mean_scores(ranks.gather([score_image(i) for i in bar]))

    def _score_bicubic(self, i: int) -> Score:
        enlarged = imresize(self.pack.low_res(i), self.scale)
        return score(enlarged, self.pack.high_res(i), self.scale)

    def _strip(self, i: int, fake: np.ndarray, fake_psnr: float, at: At) -> np.ndarray:
        low_res, high_res = self.pack.low_res(i), self.pack.high_res(i)
        bicubic = imresize(low_res, self.scale)
        pictures = {
            "LR, nearest": enlarge_nearest(low_res, self.scale),
            f"bicubic, {psnr(bicubic, high_res, self.scale):.2f} dB": bicubic,
            f"ours after {at}, {fake_psnr:.2f} dB": fake,
            "HR": high_res,
        }
        return labelled_strip(pictures, SAMPLE_SIDE)


def strip_names(pack: Pack, limit: int) -> list[str]:
    """What the strip of each image is called: its stem, or where others share that, one more mark.

    No two are alike on a system that tells no upper case from lower; none is longer than `limit`.
    """
    stems = [printable(pack.stem(i)).replace("\\", "%") for i in range(len(pack))]
    sharing = Counter(stem.casefold() for stem in stems)
    names = [
        stem if sharing[stem.casefold()] == 1 else f"{stem}~{digest(pack.name(i))}"
        for i, stem in enumerate(stems)
    ]
    return [shortened(name, limit) for name in names]


def chosen(pack: Pack, count: int) -> list[int]:
    """The first `count` images that are large enough to be scored."""
    smallest = smallest_scored(pack.index["scale"])
    return [i for i in range(len(pack)) if min(pack.size(i)) >= smallest][:count]


def smallest_scored(scale: int) -> int:
    """SSIM's 11-pixel window has to fit once the border is cropped."""
    return 11 + 2 * scale


def share_of(images: list[int], rank: int, ranks: int) -> list[int]:
    """A rank's consecutive share of the images that all ranks validate on."""
    size = -(-len(images) // ranks)
    return images[rank * size : (rank + 1) * size]


def score(image: np.ndarray, high_res: np.ndarray, scale: int) -> Score:
    """PSNR and SSIM as papers report them: on Y, `scale` pixels cropped from each side."""
    return psnr(image, high_res, scale), ssim(image, high_res, scale)


def mean_scores(scores: list[Score]) -> dict[str, float]:
    mean_psnr, mean_ssim = np.mean(scores, axis=0).tolist()
    return {"psnr": mean_psnr, "ssim": mean_ssim}


def describe(scores: dict[str, float]) -> str:
    """In words; nothing where nothing was scored."""
    if not scores:
        return ""
    gain = scores["psnr"] - scores["bicubic_psnr"]
    return (
        f"PSNR {scores['psnr']:.2f} dB ({gain:+.2f} over bicubic's {scores['bicubic_psnr']:.2f}), "
        f"SSIM {scores['ssim']:.4f} (bicubic {scores['bicubic_ssim']:.4f})"
    )

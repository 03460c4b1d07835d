"""Scores of the averaged generator on whole images, beside bicubic's, and pictures to look at."""

import functools
import math
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from images.degradation import degrade_whole
from images.names import digest, longest_name, shortened
from images.packs import Pack
from images.resize import enlarge_nearest, imresize
from images.scores import (
    NIQE_BLOCK,
    SSIM_WINDOW,
    Metric,
    MetricError,
    is_for_niqe,
    load_metrics,
    measure,
    psnr,
    ssim,
)
from images.strips import labelled_strip
from training.ranks import Ranks
from training.runs import RunFolder, TrainingError
from training.settings import At, against_divergence
from upscaling.devices import autocast
from upscaling.tiles import upscale
from utils import Bar, listed, printable

HIGHEST_PSNR = 100.0  # dB
SAMPLE_COUNT = 4  # validation images of which strips are drawn
SAMPLE_SIDE = 512  # of those, the pixels around the centre
ROOM = 40  # in the name of a strip's file, for the step and the phase
TILE = 256  # LR pixels; bounds the memory that a large validation image takes

Scores = dict[str, float]  # "psnr" in dB, "ssim", perhaps "niqe"


class Validation:
    """Validates on the same images each time; the ranks share them.

    Where crops are degraded, so are the validation images, but never sharpened, unless they have LR
    images of their own; and there is NIQE, if pyiqa computes it.

    Args:
        pack: HR and LR images.
        device, dtype: of the run.
        run: has the settings and the ranks, which share the images, and takes the strips.
    """

    def __init__(self, pack: Pack, device: torch.device, dtype: torch.dtype, run: RunFolder):
        self.pack, self.device, self.dtype, self.run = pack, device, dtype, run
        self.scale = pack.scale
        self.names = strip_names(pack, longest_name(run.folder) - ROOM)
        images = chosen(pack, run.config.val_images)
        self.shown = images[:SAMPLE_COUNT]
        self.own = share_of(images, run.ranks.rank, run.ranks.count)
        degradation = run.config.degradation
        level = degradation.level
        self.low_res: Callable[[int], np.ndarray] = pack.low_res
        self.kind = "LR"
        if level != "none" and not run.config.valid_lr_dir:
            how = f"{level}, {degradation.mild:.0%} mild" if degradation.mild > 0 else level
            self.low_res, self.kind = functools.cache(self._degraded), f"LR, degraded ({how})"
            print(f"Validating on {len(images):,} degraded images ({how}), the same each time.")
        self.niqe = load_niqe(device, run.ranks) if level != "none" else None
        self.beyond_niqe: dict[int, str] = {}  # own images that it cannot judge, and why
        scores = self._mean_scores("scoring bicubic", self._score_bicubic)
        self.bicubic = {f"bicubic_{key}": value for key, value in scores.items()}
        self._tell_what_niqe_leaves_out(len(images))

    def __call__(self, net: nn.Module, at: At) -> Scores:
        """PSNR and SSIM on Y, and NIQE, beside bicubic's; the first images' strips go to samples/.

        Raises:
            TrainingError: the network's output is not finite.
        """

        strips: list[tuple[str, np.ndarray]] = []

        def score_network(i: int) -> Scores:
            try:
                with autocast(self.device, self.dtype):
                    fake = upscale(net, self.low_res(i), TILE)
            except FloatingPointError as error:
                raise TrainingError(
                    f"{error} at {at}; {self.run.fallback}. "
                    f"{against_divergence(self.run.config, at.phase)}"
                ) from error
            scored = score(fake, self.pack.high_res(i), self.scale)
            if self.niqe is not None and i not in self.beyond_niqe:
                scored["niqe"] = math.nan  # and so the mean: never one over other images
                with suppress(MetricError):
                    scored["niqe"] = measure_niqe(self.niqe, fake, self.scale)
            if i in self.shown:
                strips.append((self.names[i], self._strip(i, fake, scored["psnr"], at)))
            return scored

        scores = self._mean_scores("validation", score_network) | self.bicubic
        for name, strip in self.run.ranks.gather(strips):
            self.run.sample(name, strip, at)
        return scores

    def _degraded(self, i: int) -> np.ndarray:
        degradation = self.run.config.degradation
        return degrade_whole(self.pack.high_res(i), degradation, self.scale, self.pack.stem(i))

    def _mean_scores(self, title: str, score_image: Callable[[int], Scores]) -> Scores:
        """Of all ranks' images."""
        bar = Bar(self.own, desc=title, leave=False, unit="image")
        return mean_scores(self.run.ranks.gather([score_image(i) for i in bar]))

    def _score_bicubic(self, i: int) -> Scores:
        enlarged = imresize(self.low_res(i), self.scale)
        scored = score(enlarged, self.pack.high_res(i), self.scale)
        if self.niqe is not None:
            try:
                scored["niqe"] = measure_niqe(self.niqe, enlarged, self.scale)
            except MetricError as error:
                self.beyond_niqe[i] = str(error)
        return scored

    def _tell_what_niqe_leaves_out(self, count: int) -> None:
        """Of `count` images that all ranks validate on."""
        own = [(self.pack.name(i), why) for i, why in self.beyond_niqe.items()]
        if left_out := self.run.ranks.gather(own):
            _, why = left_out[0]
            names = listed([printable(name) for name, _ in left_out])
            print(f"NIQE leaves out {len(left_out):,} of {count:,} images ({why}): {names}")

    def _strip(self, i: int, fake: np.ndarray, fake_psnr: float, at: At) -> np.ndarray:
        low_res, high_res = self.low_res(i), self.pack.high_res(i)
        bicubic = imresize(low_res, self.scale)
        pictures = {
            f"{self.kind}, nearest": enlarge_nearest(low_res, self.scale),
            f"bicubic, {finite_psnr(bicubic, high_res, self.scale):.2f} dB": bicubic,
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
    smallest = smallest_scored(pack.scale)
    return [i for i in range(len(pack)) if min(pack.size(i)) >= smallest][:count]


def smallest_scored(scale: int) -> int:
    """SSIM's window has to fit once the border is cropped."""
    return SSIM_WINDOW + 2 * scale


def share_of(images: list[int], rank: int, ranks: int) -> list[int]:
    """A rank's consecutive share of the images that all ranks validate on."""
    size = -(-len(images) // ranks)
    return images[rank * size : (rank + 1) * size]


def score(image: np.ndarray, high_res: np.ndarray, scale: int) -> Scores:
    """PSNR and SSIM as papers report them: on Y, `scale` pixels cropped from each side."""
    return {"psnr": finite_psnr(image, high_res, scale), "ssim": ssim(image, high_res, scale)}


def finite_psnr(image: np.ndarray, high_res: np.ndarray, scale: int) -> float:
    """HIGHEST_PSNR stands for the infinite one of equal images: a blank page decides no mean."""
    return min(psnr(image, high_res, scale), HIGHEST_PSNR)


def mean_scores(scores: list[Scores]) -> Scores:
    """Each one over the images that have it."""
    names = dict.fromkeys(name for scored in scores for name in scored)
    return {
        name: float(np.mean([scored[name] for scored in scores if name in scored]))
        for name in names
    }


def load_niqe(device: torch.device, ranks: Ranks) -> Metric | None:
    """NIQE of pyiqa; None where a rank cannot have it, of which the first one tells."""
    metrics, faults = {}, []
    try:
        metrics = load_metrics(["niqe"], device, has_reference=False)
    except MetricError as error:
        faults.append(str(error))
    if faults := ranks.gather(faults):
        print(f"No NIQE in this run: {faults[0]}")
        return None
    return metrics["niqe"]


def measure_niqe(niqe: Metric, image: np.ndarray, scale: int) -> float:
    """Without the border that the other scores leave out, too.

    Raises:
        MetricError: it cannot judge this image; the message says why.
    """
    if not is_for_niqe(image, scale):
        raise MetricError(f"smaller than two blocks of {NIQE_BLOCK}x{NIQE_BLOCK} pixels")
    value = measure("niqe", niqe, image, scale)
    if not math.isfinite(value):
        raise MetricError("it is not a number")
    return value


def describe(scores: Scores) -> str:
    """In words; nothing where nothing was scored."""
    if not scores:
        return ""
    gain = scores["psnr"] - scores["bicubic_psnr"]
    words = (
        f"PSNR {scores['psnr']:.2f} dB ({gain:+.2f} over bicubic's {scores['bicubic_psnr']:.2f}), "
        f"SSIM {scores['ssim']:.4f} (bicubic {scores['bicubic_ssim']:.4f})"
    )
    if "niqe" in scores:
        words += f", NIQE {scores['niqe']:.2f} (bicubic {scores['bicubic_niqe']:.2f})"
    return words

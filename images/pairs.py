"""Which LR image belongs to which HR image: found by their names, checked by what they show."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from images.names import composed
from images.resize import imresize
from utils import listed

# Measured at x4 on 60 photographs. Right pairs, whatever made the LR (other kernels, blur, noise
# of sigma 50, JPEG of quality 10, gamma, a shift by a pixel, and several of these at once): 0.83
# and up. Pairs of two photographs: up to 0.79, half of them below 0.1.
LOWEST_FIT = 0.8
# No right pair fitted better turned than as it is; one that is turned does so by 0.05 and more, but
# symmetric photographs by little. An error needs a doubt that symmetry and shifts cannot explain.
BETTER_TURNED, SURELY_TURNED = 0.02, 0.2
SMOOTHING = 2.0  # sigma in LR pixels; noise and shifts fade, what is in the picture stays
FLAT = 8.0  # standard deviation of luma, of 255, below which noise decides about correlation

TURNS = {  # as np.rot90 counts: (mirror left and right first, quarter turns to the left after that)
    (True, 0): "mirrored left to right",
    (True, 2): "mirrored top to bottom",
    (False, 2): "turned by 180 degrees",
    (False, 1): "turned by 90 degrees to the left",
    (False, 3): "turned by 90 degrees to the right",
    (True, 1): "mirrored along a diagonal",
    (True, 3): "mirrored along the other diagonal",
}


class DataError(ValueError):
    """Images that cannot be trained on; the message names each file and what is wrong with it."""


# ------------------------------------------------------------------------------------- by name


class Rule(NamedTuple):
    """When the name of an LR image fits that of an HR image.

    Attributes:
        marks: what may stand behind the HR image's stem.
        with_suffix: the types of the files have to be the same, too.
        any_case: capital letters are as good as small ones.
    """

    marks: tuple[str, ...]
    with_suffix: bool
    any_case: bool

    def key(self, name: Path, mark: str = "") -> str:
        """What an LR image's name and a fitting one's with its mark have in common."""
        suffix = name.suffix if self.with_suffix else ""
        text = composed(name.with_name(f"{name.stem}{mark}{suffix}").as_posix())
        return text.casefold() if self.any_case else text

    def fitting(
        self, folder: Path, paths: list[Path], lr_folder: Path, lr_paths: list[Path]
    ) -> dict[Path, list[Path]]:
        """HR file -> the LR files that fit it, where there are any."""
        by_key: dict[str, list[Path]] = {}
        for path in lr_paths:
            by_key.setdefault(self.key(path.relative_to(lr_folder)), []).append(path)
        found = {}
        for path in paths:
            keys = [self.key(path.relative_to(folder), mark) for mark in self.marks]
            if partners := [partner for key in keys for partner in by_key.get(key, [])]:
                found[path] = partners
        return found


def rules_of(scale: int) -> list[Rule]:
    """The rules that names are paired by, the strictest first."""
    mark = f"x{scale}"
    return [
        Rule(marks, with_suffix, any_case)
        for any_case in (False, True)
        for marks, with_suffix in ((("",), True), ((mark,), True), (("", mark), False))
    ]


def find_partners(
    folder: Path, paths: list[Path], lr_folder: Path, lr_paths: list[Path], scale: int
) -> dict[Path, Path]:
    """HR file -> LR file, at the same place in its folder.

    The first that fits: a file of the same name, of the same name with "x4" (the scale) after the
    stem, of the same stem with or without that; the same again whatever the case of letters.

    Raises:
        DataError: LR files that are missing, or more than one way to pair; it names them.
    """
    high, low = list(paths), list(lr_paths)
    partners: dict[Path, Path] = {}
    unclear: list[str] = []
    for rule in rules_of(scale):
        found = rule.fitting(folder, high, lr_folder, low)
        claims = Counter(partner for fitting in found.values() for partner in fitting)
        for path, fitting in found.items():
            if len(fitting) == 1 and claims[fitting[0]] == 1:
                partners[path] = fitting[0]
            else:
                unclear.append(f"{path} ({' or '.join(map(str, fitting))})")
        high = [path for path in high if path not in found]
        low = [path for path in low if path not in claims]
    loosest = Rule(("",), with_suffix=False, any_case=True)
    by_stem = {loosest.key(path.relative_to(folder)): path for path in partners}
    missing = []
    for path in high:
        other = by_stem.get(loosest.key(path.relative_to(folder)))
        missing.append(f"{path} ({partners[other]} is for {other})" if other else f"{path}")
    refuse_unpaired(lr_folder, missing, unclear, len(paths), scale)
    return partners


def refuse_unpaired(
    lr_folder: Path, missing: list[str], unclear: list[str], count: int, scale: int
) -> None:
    complaints = []
    if unclear:
        complaints.append(
            f"{len(unclear):,} of {count:,} HR images share LR images in {lr_folder}, or have "
            f"several: {listed(unclear)}. Give each LR image the whole name of its HR image"
        )
    if missing:
        complaints.append(
            f"{len(missing):,} of {count:,} HR images have no LR image of their own in "
            f"{lr_folder}, of the same name or with x{scale} after it: {listed(missing)}"
        )
    if complaints:
        raise DataError("\n".join(complaints))


# ---------------------------------------------------------------------------------- by content


@dataclass(frozen=True)
class Fit:
    """How much an LR image looks like its HR image made small.

    Attributes:
        correlation: of their smoothed luma, as they are.
        turn: the flip or rotation of the LR image that fits best, in words.
        turned: the correlation after that.
    """

    correlation: float
    turn: str
    turned: float

    @property
    def doubtful(self) -> bool:
        better = self.turned - self.correlation >= BETTER_TURNED
        return self.correlation < LOWEST_FIT or (better and self.turned >= LOWEST_FIT)

    @property
    def surely_turned(self) -> bool:
        certain = self.turned - self.correlation >= SURELY_TURNED
        return certain and self.turned >= LOWEST_FIT

    def __str__(self) -> str:
        """0.31 (0.99 mirrored left to right)"""
        better = self.turned - self.correlation >= BETTER_TURNED and self.turned >= LOWEST_FIT
        return f"{self.correlation:.2f}" + (f" ({self.turned:.2f} {self.turn})" if better else "")


def fit(low_res: np.ndarray, high_res: np.ndarray, scale: int) -> Fit | None:
    """Compare an LR image with its HR image; None where both are too flat to tell.

    An LR image that has the size of the HR image turned by 90 degrees is compared that way.

    Args:
        low_res: uint8, (h, w, 3).
        high_res: uint8, (h * scale, w * scale, 3), or its sides exchanged.
        scale: HR size over LR size.
    """
    given = smooth(luma(low_res))
    expected = smooth(imresize(luma(high_res), 1 / scale))
    if max(given.std(), expected.std()) < FLAT:
        return None
    turned = {}
    for (mirrored, quarters), words in TURNS.items():
        candidate = np.rot90(given[:, ::-1] if mirrored else given, quarters)
        if candidate.shape == expected.shape:
            turned[words] = correlation(candidate, expected)
    best = max(turned, key=turned.__getitem__)
    as_it_is = correlation(given, expected) if given.shape == expected.shape else 0.0
    return Fit(as_it_is, best, turned[best])


def luma(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def smooth(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image.astype(np.float64), (0, 0), SMOOTHING)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's; 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / norm) if norm > 0 else 0.0

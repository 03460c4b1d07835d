"""What photographs go through before they reach a generator: blur, resizing, noise, JPEG, twice.

The second-order model of Real-ESRGAN (Wang et al., 2021, arXiv 2107.10833, section 3), a sample at
a time: `draw_level` and `draw_steps` choose what happens, `degrade` does it. All their randomness
is of one generator, so a sample that has a generator of its own depends on nothing else. For whole
images that are scored, `degrade_whole` makes one of the image's name.

Inside, images are fp32 in [0, 1], (H, W, 3), in RGB. How often and how strong each step is stands
in config.py, as `Degradation`.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from scipy import special

from config import Degradation
from images.bands import in_bands
from images.names import composed

FAMILIES = ("Gaussian", "generalized", "plateau")  # each of them round or elliptic
SMALL_KERNEL = 13  # below this side, a sinc's cutoff is not lower than pi / 3
MODES = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
Span = tuple[float, float]  # what is drawn lies between the two
GRAY = np.array([0.299, 0.587, 0.114], np.float32)  # luma of BT.601


class Step(Protocol):
    """One thing that happens to an image; `str` of it says what was drawn."""

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray: ...


# -------------------------------------------------------------------------------------------- blur


@dataclass(frozen=True)
class Blur:
    """Convolution with a bell of one of three shapes; borders are reflected.

    Args:
        family: one of FAMILIES.
        side: of the kernel, odd.
        sigma: the Gaussian's standard deviations in pixels along the two axes.
        angle: in radians, by which the first axis is turned from x towards y.
        beta: the exponent of a generalized Gaussian or a plateau.
    """

    family: str
    side: int
    sigma: tuple[float, float]
    angle: float = 0.0
    beta: float = 1.0

    @property
    def is_round(self) -> bool:
        return self.sigma[0] == self.sigma[1]

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        kernel = self.kernel()
        if self.family == "Gaussian" and self.is_round:  # a product of two lines, and far cheaper
            line = kernel.sum(axis=0)
            return cv2.sepFilter2D(image, -1, line, line, borderType=cv2.BORDER_REFLECT_101)
        return convolve(image, kernel)

    def kernel(self) -> np.ndarray:
        """(side, side), fp64, sums to 1."""
        x, y = offsets(self.side)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        along, across = x * cos + y * sin, y * cos - x * sin
        with np.errstate(over="ignore"):  # so many sigmas away that nothing is left there
            distance = (along / self.sigma[0]) ** 2 + (across / self.sigma[1]) ** 2
            distance = distance**self.beta  # Mahalanobis' distance to the power of 2 beta
        bell = 1 / (1 + distance) if self.family == "plateau" else np.exp(-0.5 * distance)
        return bell / bell.sum()

    def __str__(self) -> str:
        first, second = self.sigma
        sigma = f"{first:.1f}"
        if not self.is_round:
            sigma += f" x {second:.1f} at {math.degrees(self.angle) % 180:.0f} degrees"
        beta = "" if self.family == "Gaussian" else f", beta {self.beta:.1f}"
        return f"{self.family} blur, {self.side}x{self.side}, sigma {sigma}{beta}"


@dataclass(frozen=True)
class Sinc:
    """The ideal circular low pass, cut off to a square: it rings, as sharpened pictures do.

    Args:
        side: of the kernel, odd.
        cutoff: in radians a pixel; pi lets everything pass.
    """

    side: int
    cutoff: float

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return convolve(image, self.kernel())

    def kernel(self) -> np.ndarray:
        """(side, side), fp64, sums to 1."""
        radius = np.hypot(*offsets(self.side))
        radius[self.side // 2, self.side // 2] = 1  # there the limit is taken, below
        kernel = self.cutoff * special.j1(self.cutoff * radius) / (2 * np.pi * radius)
        kernel[self.side // 2, self.side // 2] = self.cutoff**2 / (4 * np.pi)
        return kernel / kernel.sum()

    def __str__(self) -> str:
        return f"sinc filter, {self.side}x{self.side}, cutoff {self.cutoff / math.pi:.2f} pi"


def offsets(side: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a kernel's pixels from its centre, (side, side) each."""
    line = np.arange(side, dtype=np.float64) - side // 2
    x, y = np.meshgrid(line, line)
    return x, y


def convolve(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Of kernels that are the same when turned by 180 degrees; borders are reflected."""
    return cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)


# ------------------------------------------------------------------------------------------ resize


@dataclass(frozen=True)
class Resize:
    """To another size; of the modes, only area averages what it leaves out.

    Args:
        size: height and width of the result.
        mode: one of MODES.
    """

    size: tuple[int, int]
    mode: str

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return cv2.resize(image, self.size[::-1], interpolation=MODES[self.mode])

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.mode} resize to {width}x{height}"


# ------------------------------------------------------------------------------------------- noise


@dataclass(frozen=True)
class GaussianNoise:
    """Noise of one strength everywhere.

    Args:
        sigma: standard deviation in levels of 255.
        gray: the same in R, G and B.
    """

    sigma: float
    gray: bool

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        def add(values: np.ndarray) -> np.ndarray:
            shape = (*values.shape[:2], 1 if self.gray else 3)
            noise = random.standard_normal(shape, np.float32)
            return np.clip(values + noise * np.float32(self.sigma / 255), 0, 1)

        return in_bands(add, image)

    def __str__(self) -> str:
        return f"{'gray ' if self.gray else ''}Gaussian noise, sigma {self.sigma:.0f}"


@dataclass(frozen=True)
class PoissonNoise:
    """Noise of counted light: its variance grows with brightness.

    A value v is counted as v * levels, levels being the number of different values in the image,
    rounded up to a power of two; so the variance is scale^2 * v / levels.

    Args:
        scale: factor on the noise.
        gray: the same in R, G and B, that of the image's luma.
    """

    scale: float
    gray: bool

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        levels = to_levels((image @ GRAY)[..., None] if self.gray else image)
        count = 2.0 ** math.ceil(math.log2(np.count_nonzero(np.bincount(levels.ravel()))))

        def add(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
            expected = levels * np.float32(count / 255)
            noise = ((random.poisson(expected) - expected) / count).astype(np.float32)
            return np.clip(values + noise * np.float32(self.scale), 0, 1)

        return in_bands(add, image, levels)

    def __str__(self) -> str:
        return f"{'gray ' if self.gray else ''}Poisson noise, scale {self.scale:.1f}"


# -------------------------------------------------------------------------------------------- JPEG


@dataclass(frozen=True)
class Jpeg:
    """JPEG with halved colour resolution, as cameras and web sites write it.

    Args:
        quality: from 1 to 100, as libjpeg counts it.
    """

    quality: int

    def __call__(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        bgr = cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR)
        _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded is not None  # it was encoded just now
        return to_unit_range(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))

    def __str__(self) -> str:
        return f"JPEG, quality {self.quality}"


def to_levels(image: np.ndarray) -> np.ndarray:
    """fp32 near [0, 1], clamped and rounded, to uint8."""
    return in_bands(lambda band: np.clip(band * 255 + 0.5, 0, 255).astype(np.uint8), image)


def to_unit_range(image: np.ndarray) -> np.ndarray:
    """uint8 to fp32 in [0, 1]."""
    return image.astype(np.float32) / 255


# ------------------------------------------------------------------------------------- all of them


def draw_level(settings: Degradation, random: np.random.Generator) -> Degradation:
    """The settings for one image: the level mild's for the share `mild` of them."""
    is_mild = settings.mild > 0 and random.random() < settings.mild
    return Degradation.of_level("mild") if is_mild else settings


def draw_steps(
    drawn: Degradation, size: tuple[int, int], scale: int, random: np.random.Generator
) -> list[Step]:
    """Choose what happens to an image on its way from HR to LR.

    Args:
        drawn: of `draw_level`. Its probabilities and ranges count, and neither its level nor its
            share of mild.
        size: height and width of the HR image, multiples of the scale.
        scale: HR size over LR size.
        random: the choices are drawn from it.

    Returns:
        The steps in order; the last resizing makes the size of the LR image.
    """
    low_size = (size[0] // scale, size[1] // scale)
    steps = [
        *draw_blur(drawn, drawn.blur, drawn.sigma, random),
        *draw_resize(size, drawn.resize, drawn.factor, random),
        *draw_noise(drawn, drawn.noise, drawn.gaussian_sigma, drawn.poisson_scale, random),
        *draw_jpeg(drawn, drawn.jpeg, random),
        *draw_blur(drawn, drawn.blur2, drawn.sigma2, random),
        *draw_resize(low_size, drawn.resize2, drawn.factor2, random),
        *draw_noise(drawn, drawn.noise2, drawn.gaussian_sigma2, drawn.poisson_scale2, random),
    ]
    jpeg = draw_jpeg(drawn, drawn.jpeg2, random)
    end = [Resize(low_size, draw_mode(random)), *draw_final_sinc(drawn, random)]
    jpeg_last = random.random() < 0.5
    return [*steps, *end, *jpeg] if jpeg_last else [*steps, *jpeg, *end]


def draw_blur(
    settings: Degradation, probability: float, sigma: Span, random: np.random.Generator
) -> list[Step]:
    if random.random() >= probability:
        return []
    side = draw_side(settings, random)
    if random.random() < settings.sinc:
        lowest = math.pi / 3 if side < SMALL_KERNEL else math.pi / 5
        return [Sinc(side, random.uniform(lowest, math.pi))]
    shape = choose(settings.kernels, random)
    family, elliptic = FAMILIES[shape // 2], shape % 2 == 1
    across = along = random.uniform(*sigma)
    angle, beta = 0.0, 1.0
    if elliptic:
        across, angle = random.uniform(*sigma), random.uniform(-math.pi, math.pi)
    if family != "Gaussian":
        is_plateau = family == "plateau"
        beta = draw_beta(settings.plateau_beta if is_plateau else settings.generalized_beta, random)
    return [Blur(family, side, (along, across), angle, beta)]


def draw_side(settings: Degradation, random: np.random.Generator) -> int:
    """Odd, each alike likely."""
    smallest, largest = (side // 2 for side in settings.kernel_side)
    return 2 * int(random.integers(smallest, largest + 1)) + 1


def draw_beta(span: Span, random: np.random.Generator) -> float:
    """Half of the draws are between the lower end and 1, half between 1 and the upper end.

    A span that begins at 1, as Real-ESRGAN's of the plateaus does, gives exactly 1 half of the
    time, as in its code. One without 1 is drawn from evenly.
    """
    low, high = span
    if not low <= 1 <= high:
        return random.uniform(low, high)
    ends = (low, 1.0) if random.random() < 0.5 else (1.0, high)
    return random.uniform(*ends)


def draw_resize(
    size: tuple[int, int],
    shares: tuple[float, float, float],
    span: Span,
    random: np.random.Generator,
) -> list[Step]:
    """To `size` times a factor: of the span's part above or below 1, or its end next to that.

    Both sides stay at least one pixel.
    """
    low, high = span
    middle = min(max(1.0, low), high)
    enlarge, shrink, _ = range(3)
    direction, factor = choose(shares, random), 1.0
    if direction == enlarge:
        factor = random.uniform(middle, high)
    elif direction == shrink:
        factor = random.uniform(low, middle)
    height, width = (max(1, round(side * factor)) for side in size)
    return [Resize((height, width), draw_mode(random))]


def draw_mode(random: np.random.Generator) -> str:
    return list(MODES)[random.integers(len(MODES))]


def draw_noise(
    settings: Degradation, probability: float, sigma: Span, scale: Span, random: np.random.Generator
) -> list[Step]:
    if random.random() >= probability:
        return []
    is_poisson, gray = random.random() < settings.poisson, random.random() < settings.gray
    if is_poisson:
        return [PoissonNoise(random.uniform(*scale), gray)]
    return [GaussianNoise(random.uniform(*sigma), gray)]


def draw_jpeg(settings: Degradation, probability: float, random: np.random.Generator) -> list[Step]:
    if random.random() >= probability:
        return []
    low, high = settings.jpeg_quality
    return [Jpeg(int(random.integers(low, high + 1)))]


def draw_final_sinc(settings: Degradation, random: np.random.Generator) -> list[Step]:
    if random.random() >= settings.final_sinc:
        return []
    return [Sinc(draw_side(settings, random), random.uniform(math.pi / 3, math.pi))]


def choose(shares: Sequence[float], random: np.random.Generator) -> int:
    """The number of a choice, each as likely as its share."""
    ends = np.cumsum(shares)
    return int(np.searchsorted(ends, random.random() * ends[-1], side="right"))


def degrade(image: np.ndarray, steps: list[Step], random: np.random.Generator) -> np.ndarray:
    """What is left of an image after all steps, rounded to 8 bits.

    Args:
        image: uint8, (H, W, 3).
        steps: of `draw_steps`, for that size.
        random: the noise is drawn from it.

    Returns:
        uint8, of the size that the last resizing makes.
    """
    degraded = to_unit_range(image)
    for step in steps:
        degraded = step(degraded, random)
    return to_levels(degraded)


def degrade_whole(
    image: np.ndarray, settings: Degradation, scale: int, name: str, seed: int = 0
) -> np.ndarray:
    """LR of an image that scores are compared on: the name decides, on any machine, what happens.

    Args:
        image: HR, uint8, (H, W, 3), its sides multiples of the scale.
        settings: probabilities and ranges; its level has no effect here.
        scale: HR size over LR size.
        name: of the image, without its suffix.
        seed: another one degrades each image differently.

    Returns:
        uint8, (H / scale, W / scale, 3).
    """
    # macOS may take the accents of a file's name apart, and a name may hold bytes of no UTF-8.
    letters = composed(name).encode("utf-8", "surrogatepass")
    key = hashlib.sha256(b"%d " % seed + letters).digest()[:16]
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    steps = draw_steps(draw_level(settings, random), image.shape[:2], scale, random)
    return degrade(image, steps, random)


def sharpen(image: np.ndarray) -> np.ndarray:
    """Unsharp mask, as Real-ESRGAN prepares its targets: half of what a blur takes away is added.

    Only where that is more than 10 levels, with a blurred transition, so that noise and smooth
    areas stay as they are. The blur is a Gaussian of 51x51, of OpenCV's sigma for that side.

    Args:
        image: uint8, (H, W, 3).

    Returns:
        The same.
    """
    original = to_unit_range(image)
    detail = original - cv2.GaussianBlur(original, (51, 51), 0)
    strong = (np.abs(detail) * 255 > 10).astype(np.float32)
    mask = cv2.GaussianBlur(strong, (51, 51), 0)
    sharpened = np.clip(original + 0.5 * detail, 0, 1)
    return to_levels(mask * sharpened + (1 - mask) * original)

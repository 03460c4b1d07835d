"""Degradation against closed forms, SciPy, Pillow, and the frequencies its settings promise."""

import collections
import dataclasses
import io
import math
import multiprocessing
import tracemalloc

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy import integrate, ndimage, stats

from config import LEVELS, Degradation
from dataset import LR_MARGIN, MARGIN, CropStream, batches
from images.degradation import (
    MODES,
    Blur,
    GaussianNoise,
    Jpeg,
    PoissonNoise,
    Resize,
    Sinc,
    degrade,
    draw_beta,
    draw_level,
    draw_steps,
    sharpen,
)
from images.files import write_image
from images.packs import pack_folder

STRONG = Degradation.of_level("strong")
LOSSLESS = Degradation.of_level(  # nothing happens but resizing, which keeps the size at first
    "strong", blur=0, blur2=0, noise=0, noise2=0, jpeg=0, jpeg2=0, final_sinc=0, resize=(0, 0, 1)
)


def random(seed=0):
    return np.random.default_rng(seed)


# ----------------------------------------------------------------------------------------- kernels


def covariance(kernel):
    """Of x and y, by the kernel's weights: (2, 2)."""
    y, x = np.indices(kernel.shape) - len(kernel) // 2
    return np.array([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])


def turned(first, second, angle):
    """The covariance whose axes have these variances, the first one at `angle` from x to y."""
    axis, across = [math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]
    return first * np.outer(axis, axis) + second * np.outer(across, across)


def spread(profile):
    """The variance along an axis of a round density, as a function of the squared radius."""
    mass = integrate.quad(lambda r: r * profile(r * r), 0, np.inf)[0]
    return integrate.quad(lambda r: r**3 * profile(r * r), 0, np.inf)[0] / mass / 2


PROFILES = {  # of Mahalanobis' distance, squared
    "Gaussian": lambda d, beta: math.exp(-d / 2),
    "generalized": lambda d, beta: math.exp(-(d**beta) / 2),
    "plateau": lambda d, beta: 1 / (1 + d**beta),
}


@pytest.mark.parametrize("sigma", [(3.0, 3.0), (5.0, 3.0), (3.0, 5.0)])
@pytest.mark.parametrize("angle", [0.0, 0.6, -0.6, 2.5])
@pytest.mark.parametrize(
    ("family", "beta"), [("Gaussian", 1.0), ("generalized", 0.9), ("generalized", 2.5)]
)
def test_a_kernels_covariance_is_what_sigma_angle_and_beta_say(family, beta, sigma, angle):
    kernel = Blur(family, 81, sigma, angle, beta).kernel()
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    unit = spread(lambda d: PROFILES[family](d, beta))
    expected = turned(unit * sigma[0] ** 2, unit * sigma[1] ** 2, angle)
    # Sums over pixels and integrals agree better the smoother the bell is.
    tolerance = 1e-6 if family == "Gaussian" else 4e-2
    np.testing.assert_allclose(covariance(kernel), expected, atol=tolerance)


@pytest.mark.parametrize("beta", [1.0, 1.5, 2.0])
def test_a_plateaus_covariance_in_its_square_is_that_of_the_density_there(beta):
    """A plateau falls off so slowly that the square cuts it: the density is summed over it."""
    sigma, angle, side = (2.0, 1.0), 0.6, 21
    kernel = Blur("plateau", side, sigma, angle, beta).kernel()
    inverse = np.linalg.inv(turned(sigma[0] ** 2, sigma[1] ** 2, angle))
    moments = np.zeros((2, 2))
    mass = 0.0
    for y in range(-10, 11):
        for x in range(-10, 11):
            at = np.array([x, y])
            weight = PROFILES["plateau"](at @ inverse @ at, beta)
            mass, moments = mass + weight, moments + weight * np.outer(at, at)
    np.testing.assert_allclose(covariance(kernel), moments / mass, rtol=1e-9)
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    # And so it is integrated over a square, where the plateau is wide enough to be smooth.
    wide, side = Blur("plateau", 41, (6.0, 4.0), angle, beta).kernel(), 20.5
    inverse = np.linalg.inv(turned(36, 16, angle))

    def integral(power_x, power_y):
        def density(y, x):
            distance = inverse[0, 0] * x * x + 2 * inverse[0, 1] * x * y + inverse[1, 1] * y * y
            return x**power_x * y**power_y / (1 + distance**beta)

        return integrate.dblquad(density, -side, side, -side, side, epsrel=1e-4)[0]

    mass = integral(0, 0)
    moments = [[integral(2, 0), integral(1, 1)], [integral(1, 1), integral(0, 2)]]
    np.testing.assert_allclose(covariance(wide), np.array(moments) / mass, rtol=5e-3)
    wide = Blur("plateau", 801, (3.0, 3.0), 0.0, 3.0).kernel()  # of beta 3 the integral is finite
    unit = spread(lambda d: PROFILES["plateau"](d, 3.0))
    np.testing.assert_allclose(covariance(wide), turned(9 * unit, 9 * unit, 0), atol=2e-2)


@pytest.mark.parametrize("blur", [Blur("Gaussian", 13, (1.3, 1.3)), Blur("plateau", 9, (3, 1), 1)])
def test_blurring_is_scipys_convolution_with_the_kernel(blur, random_image):
    image = (random_image(20, 30) / 255).astype(np.float32)
    expected = ndimage.convolve(image.astype(float), blur.kernel()[..., None], mode="mirror")
    np.testing.assert_allclose(blur(image, random()), expected, atol=1e-6)


@pytest.mark.parametrize("cutoff", [math.pi / 5, math.pi / 3, 2.0, 2.9])
def test_a_sinc_passes_what_is_below_its_cutoff(cutoff):
    """Its Fourier transform, along the axes and aslant: 1 up to the cutoff, 0 beyond."""
    kernel = Sinc(401, cutoff).kernel()
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    y, x = np.indices(kernel.shape) - 200
    for angle in (0, math.pi / 2, math.pi / 4, 0.3):
        along = x * math.cos(angle) + y * math.sin(angle)
        end = math.pi / max(abs(math.cos(angle)), abs(math.sin(angle)))  # the square's border
        expected = [(0.6 * cutoff, 1), (0.9 * cutoff, 1), (cutoff, 0.5)]
        if 1.1 * cutoff < end:
            expected += [(w, 0) for w in np.linspace(1.1 * cutoff, 0.98 * end, 4)]
        for frequency, passed in expected:
            transform = (kernel * np.cos(frequency * along)).sum()
            assert transform == pytest.approx(passed, abs=0.05), (angle, frequency)


# ----------------------------------------------------------------------------------- what is drawn

DRAWS = 20_000
HR, SCALE = (256, 384), 4


@pytest.fixture(scope="module")
def drawn():
    generator = random(1)
    return [draw_steps(STRONG, HR, SCALE, generator) for _ in range(DRAWS)]


def is_share(count, of, share):
    """Within five standard deviations of a binomial."""
    return abs(count - of * share) <= 5 * math.sqrt(of * share * (1 - share)) + 1e-9


def is_uniform(values, low, high):
    assert low <= min(values) and max(values) <= high
    return stats.kstest(values, "uniform", (low, high - low)).pvalue > 1e-4


def alike_likely(values, choices):
    counts = collections.Counter(values)
    assert set(counts) == set(choices)
    return stats.chisquare([counts[choice] for choice in choices]).pvalue > 1e-4


def rounds(drawn):
    """Blurs of the first round, blurs, noise and sizes of both, JPEGs, what is at the end."""
    blurs, resizes, noises, ends = ([], []), ([], []), ([], []), []
    for steps in drawn:
        first = [i for i, step in enumerate(steps) if isinstance(step, Resize)]
        noise = [
            i for i, step in enumerate(steps) if isinstance(step, GaussianNoise | PoissonNoise)
        ]
        assert len(first) == 3 and len(noise) == 2 and noise[0] == first[0] + 1
        assert isinstance(steps[noise[0] + 1], Jpeg) and noise[1] == first[1] + 1
        blurs[0].append(steps[: first[0]])
        blurs[1].append(steps[noise[0] + 2 : first[1]])
        for i in (0, 1):
            resizes[i].append(steps[first[i]])
            noises[i].append(steps[noise[i]])
        ends.append(steps[noise[1] + 1 :])
    return blurs, resizes, noises, ends


def test_blurs_are_drawn_as_often_as_their_settings_say(drawn):
    blurs, *_ = rounds(drawn)
    for applied, probability, sigma in ((blurs[0], 1.0, (0.2, 3)), (blurs[1], 0.8, (0.2, 1.5))):
        filters = [step for steps in applied for step in steps]
        assert all(len(steps) <= 1 for steps in applied)
        assert is_share(len(filters), DRAWS, probability)
        assert alike_likely([f.side for f in filters], range(7, 22, 2))
        sincs = [f for f in filters if isinstance(f, Sinc)]
        assert is_share(len(sincs), len(filters), 0.1)
        small = [f.cutoff for f in sincs if f.side < 13]
        assert is_uniform(small, math.pi / 3, math.pi)
        assert is_uniform([f.cutoff for f in sincs if f.side >= 13], math.pi / 5, math.pi)
        assert min(f.cutoff for f in sincs if f.side == 13) < math.pi / 3

        bells = [f for f in filters if isinstance(f, Blur)]
        shapes = collections.Counter((f.family, f.is_round) for f in bells)
        shares = zip(
            [(name, is_round) for name in PROFILES for is_round in (True, False)],
            (0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
            strict=True,
        )
        assert all(is_share(shapes[shape], len(bells), share) for shape, share in shares)
        assert is_uniform([f.sigma[0] for f in bells], *sigma)
        elliptic = [f for f in bells if not f.is_round]
        assert is_uniform([f.sigma[1] for f in elliptic], *sigma)
        assert is_uniform([f.angle for f in elliptic], -math.pi, math.pi)
        betas = [f.beta for f in bells if f.family == "generalized"]
        assert is_share(sum(beta < 1 for beta in betas), len(betas), 0.5)
        assert is_uniform([beta for beta in betas if beta < 1], 0.5, 1)
        assert is_uniform([beta for beta in betas if beta >= 1], 1, 4)
        betas = [f.beta for f in bells if f.family == "plateau"]
        assert is_share(sum(beta == 1 for beta in betas), len(betas), 0.5)
        assert is_uniform([beta for beta in betas if beta != 1], 1, 2)


@pytest.mark.parametrize("low, high", [(2.0, 4.0), (0.5, 0.8)])
def test_exponents_of_a_span_without_1_are_drawn_evenly(low, high):
    random = np.random.default_rng(0)
    assert is_uniform([draw_beta((low, high), random) for _ in range(2000)], low, high)


def test_sizes_and_modes_are_drawn_as_their_settings_say(drawn):
    _, resizes, *_ = rounds(drawn)
    low_res = (HR[0] // SCALE, HR[1] // SCALE)
    cases = (
        (resizes[0], HR, (0.2, 0.7, 0.1), (0.15, 1.5)),
        (resizes[1], low_res, (0.3, 0.4, 0.3), (0.3, 1.2)),
    )
    for steps, size, shares, (low, high) in cases:
        assert alike_likely([step.mode for step in steps], ["area", "bilinear", "bicubic"])
        widths = np.array([step.size[1] for step in steps])
        heights = np.array([step.size[0] for step in steps])
        assert np.abs(heights / size[0] - widths / size[1]).max() <= 0.5 / size[0] + 0.5 / size[1]
        larger, smaller = widths[widths > size[1]], widths[widths < size[1]]
        # A factor within half a pixel of 1 gives the size itself.
        rounded = 0.5 / size[1] * (shares[0] / (high - 1) + shares[1] / (1 - low))
        assert is_share(DRAWS - len(larger) - len(smaller), DRAWS, shares[2] + rounded)
        jitter = random().uniform(-0.5, 0.5, DRAWS)
        for some, ends in ((larger, (1, high)), (smaller, (low, 1))):
            factors = (some + jitter[: len(some)]) / size[1]
            expected = stats.uniform(ends[0], ends[1] - ends[0])
            assert stats.kstest(factors, expected.cdf).statistic < 0.03
    for steps in drawn:
        last = [step for step in steps if isinstance(step, Resize)][-1]
        assert last.size == low_res
    last_modes = [[s.mode for s in steps if isinstance(s, Resize)][-1] for steps in drawn]
    assert alike_likely(last_modes, ["area", "bilinear", "bicubic"])


@pytest.mark.parametrize(
    ("span", "enlarged", "shrunk"),
    [
        ((0.3, 0.5), (0.5, 0.5), (0.3, 0.5)),
        ((1.1, 1.2), (1.1, 1.2), (1.1, 1.1)),
        ((0.5, 2.0), (1.0, 2.0), (0.5, 1.0)),
    ],
)
def test_sizes_are_within_their_span(span, enlarged, shrunk):
    for shares, ends in (((1, 0, 0), enlarged), ((0, 1, 0), shrunk)):
        settings = Degradation.of_level("strong", factor=span, resize=shares)
        steps = [draw_steps(settings, (10_000, 10_000), 4, random(seed)) for seed in range(200)]
        first = [next(s for s in some if isinstance(s, Resize)).size[1] / 10_000 for some in steps]
        assert min(first) == pytest.approx(ends[0], abs=0.02)
        assert max(first) == pytest.approx(ends[1], abs=0.02)
        assert ends[0] <= min(first) and max(first) <= ends[1]


def test_noise_is_drawn_as_its_settings_say(drawn):
    _, _, noises, _ = rounds(drawn)
    for steps, sigma, scale in (
        (noises[0], (1, 30), (0.05, 3)),
        (noises[1], (1, 25), (0.05, 2.5)),
    ):
        gaussian = [step for step in steps if isinstance(step, GaussianNoise)]
        poisson = [step for step in steps if isinstance(step, PoissonNoise)]
        assert is_share(len(poisson), DRAWS, 0.5)
        for kind in (gaussian, poisson):
            assert is_share(sum(step.gray for step in kind), len(kind), 0.4)
        assert is_uniform([step.sigma for step in gaussian], *sigma)
        assert is_uniform([step.scale for step in poisson], *scale)


def test_jpeg_and_the_end_are_drawn_as_their_settings_say(drawn):
    *_, ends = rounds(drawn)
    for number in (0, 1):
        qualities = [[s.quality for s in steps if isinstance(s, Jpeg)][number] for steps in drawn]
        assert alike_likely(qualities, range(30, 96))
    orders = collections.Counter(tuple(type(step) for step in end) for end in ends)
    expected = {
        (Resize, Sinc, Jpeg): 0.4,
        (Jpeg, Resize, Sinc): 0.4,
        (Resize, Jpeg): 0.1,
        (Jpeg, Resize): 0.1,
    }
    assert set(orders) == set(expected)
    assert all(is_share(orders[order], DRAWS, share) for order, share in expected.items())
    sincs = [step for end in ends for step in end if isinstance(step, Sinc)]
    assert alike_likely([step.side for step in sincs], range(7, 22, 2))
    assert is_uniform([step.cutoff for step in sincs], math.pi / 3, math.pi)


@pytest.mark.parametrize("name", ["blur", "blur2", "noise", "noise2", "jpeg", "jpeg2"])
def test_every_probability_is_of_its_own_step(name):
    """At 0.3 and all others 0, so often there is one step more than the three resizings."""
    settings = dataclasses.replace(LOSSLESS, **{name: 0.3})
    generator = random(2)
    counts = [len(draw_steps(settings, HR, SCALE, generator)) for _ in range(4000)]
    assert set(counts) == {3, 4} and is_share(counts.count(4), 4000, 0.3)


def test_the_share_that_is_mild_is_drawn_as_the_level_mild():
    """Of a level that does nothing, all that happens is mild; and mild seldom does nothing."""
    settings = dataclasses.replace(LOSSLESS, mild=0.3)
    generator = random(4)
    drawn = [
        draw_steps(draw_level(settings, generator), HR, SCALE, generator) for _ in range(DRAWS)
    ]
    mild = [steps for steps in drawn if len(steps) > 3]
    nothing = 0.3 * 0.7 * 0.3 * 0.5 * 0.3 * 0.1 * 0.6  # of blur, blur2, noise, ... final_sinc
    assert is_share(len(mild), DRAWS, 0.3 * (1 - nothing))
    everything = [step for steps in mild for step in steps]
    qualities = [step.quality for step in everything if isinstance(step, Jpeg)]
    assert alike_likely(qualities, range(50, 96))
    sigmas = [step.sigma for step in everything if isinstance(step, GaussianNoise)]
    assert 9.9 < max(sigmas) <= 10
    assert 1.59 < max(step.sigma[0] for step in everything if isinstance(step, Blur)) <= 1.6


def test_shares_of_nothing_are_never_drawn():
    settings = Degradation.of_level("strong", kernels=(0, 1, 0, 0, 0, 0), resize=(0, 0, 3), sinc=0)
    generator = random(3)
    for _ in range(500):
        blur, resize, *_ = draw_steps(settings, HR, SCALE, generator)
        assert (blur.family, blur.is_round, resize.size) == ("Gaussian", False, HR)


# ---------------------------------------------------------------------------------- noise and JPEG


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_sigma_everywhere(gray):
    image = np.full((400, 500, 3), 0.5, np.float32)
    image[:, 250:] = 0.3
    noise = GaussianNoise(12.0, gray)(image, random()) - image
    for half in (noise[:, :250], noise[:, 250:]):
        assert abs(half.mean()) < 4 * 12 / 255 / math.sqrt(1e5)
        assert half.std() * 255 == pytest.approx(12, rel=0.01)
    alike = np.ptp(noise, axis=-1).max() < 1e-6
    assert alike == gray
    if not gray:
        assert np.abs(np.corrcoef(noise.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


@pytest.mark.parametrize("gray", [False, True])
def test_poisson_noise_grows_with_the_signal(gray):
    """Of 5 values there are 8 levels; the variance of a value v is scale^2 * v / 8."""
    values, scale = np.array([20, 60, 90, 120, 150]), 0.4
    image = np.repeat(values, 40_000).reshape(5, 40_000, 1).repeat(3, axis=2)
    image = (image / 255).astype(np.float32)
    noise = PoissonNoise(scale, gray)(image, random()) - image
    for value, row in zip(values / 255, noise, strict=True):
        lowest = -value  # clipped there, and at 1: both are rare
        variance = np.var(row[:, 0][row[:, 0] > lowest + 1e-6]) if lowest > -0.1 else np.var(row)
        assert variance == pytest.approx(scale**2 * value / 8, rel=0.04)
        assert abs(row.mean()) < 5 * scale * math.sqrt(value / 8 / 4e4)
    assert (np.ptp(noise, axis=-1).max() < 1e-6) == gray


class Told:
    """A generator that draws the same everywhere: normal numbers, and how far a count is off."""

    def __init__(self, deviation):
        self.deviation = deviation

    def standard_normal(self, shape, dtype):
        return np.full(shape, self.deviation, dtype)

    def poisson(self, expected):
        self.expected = np.array(expected, float)
        return expected + self.deviation


# 5 different values, 2 of them of red; and 4 of BT.601's luma: 255, 159.9, 18.2 and 0.
COLOURED = np.array([[[255, 255, 255], [0, 255, 90], [0, 20, 57], [0, 0, 0]]], np.uint8)
LUMA = COLOURED @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("deviation", [3, -3])
@pytest.mark.parametrize("gray", [False, True])
def test_noise_of_a_coloured_image_is_that_of_the_formulas(gray, deviation):
    """Clipped at black and at white."""
    image = (COLOURED / 255).astype(np.float32)
    result = GaussianNoise(12.0, gray)(image, Told(deviation))
    np.testing.assert_allclose(result, (image + deviation * 12 / 255).clip(0, 1), atol=1e-6)
    told, count = Told(deviation), 4 if gray else 8  # 4 and 5 values, to a power of two
    result = PoissonNoise(0.5, gray)(image, told)
    np.testing.assert_allclose(result, (image + 0.5 * deviation / count).clip(0, 1), atol=1e-6)
    levels = np.rint(LUMA)[..., None] if gray else COLOURED
    np.testing.assert_allclose(told.expected, levels / 255 * count, atol=1e-5)


@pytest.mark.parametrize(
    (
        "step",
        "most",
    ),  # bytes a pixel: 12 are the result, and 63 all counts at once, or 36 all noise
    [(PoissonNoise(1.0, gray=False), 40), (GaussianNoise(10, gray=False), 20)],
)
def test_noise_of_a_large_photograph_takes_little_memory(step, most):
    image = random().random((1500, 1000, 3), np.float32)
    tracemalloc.start()
    step(image, random())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5e6 * most


@pytest.mark.parametrize("gray", [False, True])
def test_noise_in_bands_is_the_noise_of_the_whole(gray):
    image = np.full((700, 500, 3), 0.5, np.float32)
    noise = random(3).standard_normal((700, 500, 1 if gray else 3), np.float32)
    given = GaussianNoise(5, gray)(image, random(3))
    np.testing.assert_allclose(given, 0.5 + noise * np.float32(5 / 255) + 0 * image, atol=1e-6)


@pytest.mark.parametrize("quality", [1, 30, 63, 95, 100])
@pytest.mark.parametrize("size", [(1, 1), (7, 40), (64, 48)])
def test_jpeg_is_pillows_bit_for_bit(quality, size):
    image = random(quality).integers(0, 256, (*size, 3), np.uint8)
    smooth = cv2.GaussianBlur(image, (0, 0), 2)
    for pixels in (image, smooth):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        expected = np.array(Image.open(file))
        ours = Jpeg(quality)(pixels.astype(np.float32) / 255, random())
        np.testing.assert_array_equal(np.round(ours * 255), expected)


# ------------------------------------------------------------------------------- whole degradations


def test_the_output_is_8_bits_of_the_lr_size(random_image):
    for scale in (1, 2, 3, 4, 8):
        high_res = random_image(48, 72)
        for seed in range(20):
            steps = draw_steps(STRONG, (48, 72), scale, random(seed))
            low_res = degrade(high_res, steps, random(seed))
            assert low_res.dtype == np.uint8 and low_res.shape == (48 // scale, 72 // scale, 3)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("mode", list(MODES))
def test_an_edge_stays_where_it_was(scale, mode, monkeypatch):
    """To a tenth of an HR pixel on average, in x and y.

    Noise is left out because it is clipped differently on the two sides, and the edge is soft
    because modes that do not average see a sharp one or miss it.
    """
    monkeypatch.setattr("images.degradation.MODES", {mode: MODES[mode]})
    settings = dataclasses.replace(STRONG, noise=0, noise2=0, jpeg_quality=(80, 95))
    length, width, dark, bright = 240, 48, 64, 192
    found = []
    for seed in range(40):
        edge = random(seed).uniform(100, 140)
        profile = stats.norm.cdf(np.arange(length) + 0.5, edge, 12)
        line = dark + (bright - dark) * profile
        image = np.round(line).astype(np.uint8)[:, None, None].repeat(width, 1).repeat(3, 2)
        if seed % 2:
            image = np.ascontiguousarray(image.transpose(1, 0, 2))
        steps = draw_steps(settings, image.shape[:2], scale, random(seed))
        low_res = degrade(image, steps, random(seed)).astype(float)
        means = low_res.mean(axis=(0 if seed % 2 else 1, 2))
        found.append(((bright - means) / (bright - dark)).sum() * scale - edge)
    assert abs(np.mean(found)) <= 0.1


def test_the_result_is_rounded_to_the_nearest_level(random_image):
    image = random_image(32, 48)
    mean = image.reshape(8, 4, 12, 4, 3).mean(axis=(1, 3))
    shrunk = degrade(image, [Resize((8, 12), "area")], random())
    assert np.abs(shrunk - mean).max() <= 0.5 + 1e-3


EXTREMES = {
    "small kernels": dict(kernel_side=(3, 3)),
    "large kernels": dict(kernel_side=(41, 41)),
    "tiny sizes": dict(factor=(0.01, 0.01), factor2=(8, 8), resize=(0, 1, 0)),
    "tiny sigma": dict(sigma=(1e-200, 1e-200), sigma2=(1e-9, 1e-9), sinc=0),
    "huge sigma": dict(sigma=(1e200, 1e200), sigma2=(1e9, 1e9), sinc=0),
    "extreme betas": dict(generalized_beta=(1e-9, 1e3), plateau_beta=(1e-9, 1e3), sinc=0),
    "worst JPEG": dict(jpeg_quality=(1, 1)),
    "best JPEG": dict(jpeg_quality=(100, 100)),
    "no noise": dict(gaussian_sigma=(0, 0), gaussian_sigma2=(0, 0), poisson=0),
    "no Poisson noise": dict(poisson_scale=(0, 0), poisson_scale2=(0, 0), poisson=1),
    "much Gaussian noise": dict(gaussian_sigma=(1e4, 1e4), gaussian_sigma2=(1e4, 1e4), poisson=0),
    "much Poisson noise": dict(poisson_scale=(1e4, 1e4), poisson_scale2=(1e4, 1e4), poisson=1),
    "mild": LEVELS["mild"],
}


@pytest.mark.filterwarnings("error::RuntimeWarning")  # NumPy's
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_are_finite_and_of_the_right_size(extreme):
    settings = Degradation.of_level("strong", **EXTREMES[extreme])
    for seed in range(24):
        scale = (1, 2, 3, 4, 8)[seed % 5]
        height, width = (int(side) * scale for side in random(seed).integers(1, 17, 2))
        image = random(seed).integers(0, 256, (height, width, 3), np.uint8)
        image = image if seed % 3 else image[..., :1].repeat(3, axis=2)  # gray
        image = image if seed % 4 else np.zeros_like(image)
        degraded = image.astype(np.float32) / 255
        for step in draw_steps(settings, (height, width), scale, random(seed)):
            degraded = step(degraded, random(seed))
            assert np.isfinite(degraded).all() and degraded.dtype == np.float32, step
            assert str(step)
        assert degraded.shape == (height // scale, width // scale, 3)


def test_sharpening_is_what_its_description_says(random_image):
    small = random_image(6, 8)
    image = np.array(Image.fromarray(small).resize((96, 72), Image.Resampling.BICUBIC))
    line = np.exp(-0.5 * (np.arange(-25, 26) / 8.0) ** 2)  # OpenCV's: 0.3 (25 - 1) + 0.8
    line /= line.sum()

    def blurred(values):
        for axis in (0, 1):
            values = ndimage.correlate1d(values, line, axis, mode="mirror")
        return values

    original = image / 255.0
    detail = original - blurred(original)
    mask = blurred((np.abs(detail) > 10 / 255).astype(float))
    sharp = np.clip(original + 0.5 * detail, 0, 1)
    expected = np.round((mask * sharp + (1 - mask) * original) * 255)
    assert 0.2 < mask.mean() < 0.99 and np.abs(expected - image).max() > 20
    difference = np.abs(sharpen(image) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # of halves, by rounding
    flat = np.full((20, 30, 3), 77, np.uint8)
    np.testing.assert_array_equal(sharpen(flat), flat)


# ---------------------------------------------------------------------------------- in the stream


@pytest.fixture
def pack(tmp_path):
    """Two pictures of smooth colours, of 200x240 pixels and of 64x64, as small as the crop."""
    for name, (height, width) in {"a": (200, 240), "b": (64, 64)}.items():
        small = random(height).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        write_image(np.array(image), tmp_path / "images" / f"{name}.png")
    return pack_folder(tmp_path / "images", 4)


def same(a, b):
    return all((x.numpy() == y.numpy()).all() for x, y in zip(a, b, strict=True))


def test_level_none_gives_the_packs_own_crops(pack):
    stream = CropStream([pack], 32, seed=5)
    for k in range(12):
        low_res, high_res, target = stream.sample(k).crops
        draw = np.random.Generator(np.random.Philox(key=5, counter=k << 64))
        i = draw.integers(2)
        whole = pack.high_res(i), pack.low_res(i)
        top = draw.integers(whole[1].shape[0] - 8 + 1)
        left = draw.integers(whole[1].shape[1] - 8 + 1)
        draw.integers(8)
        corner = whole[1][top : top + 8, left : left + 8]
        large = whole[0][4 * top : 4 * top + 32, 4 * left : 4 * left + 32]
        for crop, expected in ((low_res, corner), (high_res, large), (target, large)):
            turns = [np.rot90(m, n) for m in (expected, expected[:, ::-1]) for n in range(4)]
            assert any(np.array_equal(crop, turned) for turned in turns)


@pytest.mark.parametrize("sharpened", [False, True])
def test_the_kth_sample_is_a_function_of_seed_and_k(pack, sharpened):
    settings = dataclasses.replace(STRONG, sharpen=sharpened)
    stream = CropStream([pack], 64, 7, settings)
    samples = [stream[k] for k in range(8)]
    again = CropStream([pack], 64, 7, settings)
    assert all(same(again[k], samples[k]) for k in reversed(range(8)))
    assert not any(same(samples[k], samples[k + 1]) for k in range(7))
    other = CropStream([pack], 64, 8, settings)
    assert not any(same(other[k], samples[k]) for k in range(8))
    for low_res, high_res, target in samples:
        assert low_res.shape == (3, 16, 16) and high_res.shape == target.shape == (3, 64, 64)
        assert same([high_res], [target]) != sharpened


def test_opencvs_threads_change_nothing(pack):
    threads = cv2.getNumThreads()
    try:
        samples = []
        for count in (0, 1, 4):
            cv2.setNumThreads(count)
            samples.append([CropStream([pack], 64, 0, STRONG)[k] for k in range(10)])
    finally:
        cv2.setNumThreads(threads)
    for others in samples[1:]:
        assert all(same(a, b) for a, b in zip(samples[0], others, strict=True))


@pytest.mark.parametrize(
    ("start", "workers"), [("fork", 4), pytest.param("spawn", 2, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_give_the_same_samples(pack, start, workers):
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {start} on this system")
    large = np.zeros((1500, 1500, 3), np.float32)
    cv2.GaussianBlur(large, (51, 51), 0)  # OpenCV's threads are there when the process forks
    stream = CropStream([pack], 32, 3, STRONG)
    loader = batches(stream, 0, 4, 2, workers, pin_memory=False)
    loader.multiprocessing_context = start
    for number, batch in enumerate(loader):
        for j in (0, 1):
            assert same([part[j] for part in batch], stream[2 * number + j])
    assert number == 3


@pytest.mark.parametrize("scale", [1, 4, 8])
def test_the_margin_keeps_the_border_out_of_the_crop(scale):
    """A crop amid a picture is degraded about as if its surroundings went on for ever."""
    small = random().integers(0, 256, (40, 40, 3), np.uint8)
    image = np.array(Image.fromarray(small).resize((320, 320), Image.Resampling.BICUBIC))
    settings = Degradation.of_level(  # no noise, which is another in another window
        "strong", noise=0, noise2=0, jpeg=0, jpeg2=0, resize=(0, 0, 1), resize2=(0, 0, 1)
    )

    def crop(margin, seed):
        rows = slice(96 - margin, 96 + 128 + margin)
        window = image[rows, rows]
        steps = draw_steps(settings, window.shape[:2], scale, random(seed))
        inner = slice(margin // scale, (margin + 128) // scale)
        return degrade(window, steps, random())[inner, inner].astype(float)

    far = [crop(96, seed) for seed in range(20)]
    with_margin, without = (
        np.sqrt(np.mean([(crop(m, s) - far[s]) ** 2 for s in range(20)]))
        for m in (max(MARGIN, LR_MARGIN * scale), 0)
    )
    assert with_margin < (0.5 if scale < 8 else 0.75) and without > 15 * with_margin


def test_at_scale_8_the_margin_is_wider(tmp_path, monkeypatch):
    windows = []
    monkeypatch.setattr(
        "dataset.degrade", lambda window, *_: windows.append(window) or window[::8, ::8]
    )
    write_image(np.zeros((400, 400, 3), np.uint8), tmp_path / "in" / "a.png")
    stream = CropStream([pack_folder(tmp_path / "in", 8)], 64, 0, STRONG)
    for k in range(100):
        stream.sample(k)
    # Ten LR pixels on each side, which the last filter's 21 reach.
    assert max(min(window.shape[:2]) for window in windows) >= 64 + 2 * 8 * 10


@pytest.mark.parametrize("side, row", [(21, 45), (41, 36)])
def test_the_last_filter_sees_no_border_in_the_crop(side, row, tmp_path, monkeypatch):
    """Dark and, from 9 or 19 rows behind a row of the crop on, bright."""
    image = np.full((320, 320, 3), 50, np.uint8)
    image[4 * (row + side // 2 - 1) :] = 250
    write_image(image, tmp_path / "in" / "a.png")
    pack = pack_folder(tmp_path / "in", 4)
    settings = dataclasses.replace(STRONG, kernel_side=(7, side))
    monkeypatch.setattr("dataset.TURNS", ("e",) * 8)
    monkeypatch.setattr(CropStream, "_draw_place", lambda self, random: (pack, 0, 30, 30))

    def steps(settings, size, scale, random):
        return [Resize((size[0] // 4, size[1] // 4), "area"), Sinc(side, np.pi / 2)]

    monkeypatch.setattr("dataset.draw_steps", steps)
    crop = CropStream([pack], 64, 0, settings).sample(0).crops.low_res
    whole = degrade(image, steps(settings, (320, 320), 4, None), random())
    assert abs(int(whole[row, 40, 0]) - 50) > 3  # it reaches as far
    assert np.abs(whole[30:46, 30:46].astype(int) - crop).max() <= 1


@pytest.mark.parametrize("sharpened", [False, True])
def test_a_degraded_crop_is_where_its_hr_is_with_the_margin_around_it(
    sharpened, tmp_path, monkeypatch
):
    """Pixels say where they are; what is sharpened is known by being inverted."""
    windows = []

    def shrunk(window, steps, random):
        windows.append(window)
        return window[::4, ::4]

    monkeypatch.setattr("dataset.degrade", shrunk)
    monkeypatch.setattr("dataset.sharpen", lambda window: 255 - window)
    y, x = np.mgrid[:40, :60].astype(np.uint8)
    image = np.stack((y, x, y), axis=-1).repeat(4, 0).repeat(4, 1)
    write_image(image, tmp_path / "in" / "a.png")
    pack = pack_folder(tmp_path / "in", 4)
    stream = CropStream([pack], 32, 0, dataclasses.replace(STRONG, sharpen=sharpened))
    for k in range(200):
        low_res, high_res, target = stream.sample(k).crops
        seen, window = low_res, windows[-1]
        if sharpened:
            seen, window, target = 255 - low_res, 255 - window, 255 - target
        assert np.array_equal(high_res, target)
        assert np.array_equal(seen.repeat(4, 0).repeat(4, 1), high_res)
        for axis, side in ((0, 40), (1, 60)):
            first, last = high_res[..., axis].min(), high_res[..., axis].max()
            margin = MARGIN // 4  # or as much as the picture has
            assert window[..., axis].min() <= max(0, int(first) - margin)
            assert window[..., axis].max() >= min(side - 1, int(last) + margin)


def test_jpegs_blocks_begin_anywhere_in_a_crop(pack, monkeypatch):
    """Pixels that tell their distance from the block's corner come out of the crop alike often."""
    monkeypatch.setattr("dataset.draw_steps", lambda settings, size, scale, random: [])

    def phases(image, steps, random):
        y, x = np.indices((image.shape[0] // 4, image.shape[1] // 4)) % 8
        return np.stack((y, x, x), axis=-1).astype(np.uint8)

    monkeypatch.setattr("dataset.degrade", phases)
    stream = CropStream([pack], 32, 0, STRONG)
    stream.images = [(pack, 0)]
    corners = [tuple(stream.sample(k).crops.low_res[0, 0, :2]) for k in range(4000)]
    for axis in (0, 1):
        counts = np.bincount([corner[axis] for corner in corners], minlength=8)
        assert counts.min() > 0.6 * 4000 / 8


def test_a_picture_is_turned_before_it_is_degraded(tmp_path, monkeypatch):
    """As one that was photographed so: JPEG keeps less of what changes downwards."""
    y, x = np.mgrid[:96, :128]
    write_image(np.stack((y, x, np.zeros_like(y)), -1).astype(np.uint8), tmp_path / "a.png")
    seen = []

    def watched(image, steps, random):
        seen.append(image)
        return degrade(image, steps, random)

    def orientation(image):
        y, x = image[..., 0].astype(int), image[..., 1].astype(int)
        return y[1, 0] - y[0, 0], y[0, 1] - y[0, 0], x[1, 0] - x[0, 0], x[0, 1] - x[0, 0]

    monkeypatch.setattr("dataset.degrade", watched)
    stream = CropStream([pack_folder(tmp_path, 4)], 32, 0, Degradation.of_level("mild"))
    crops = [stream.sample(k).crops.high_res for k in range(60)]
    assert len({orientation(image) for image in seen}) == 8
    for image, crop in zip(seen, crops, strict=True):
        assert orientation(image) == orientation(crop)
    # The window of a turned picture still reaches each of its corners.
    corners = {(crop[..., 0].min() // 16, crop[..., 1].min() // 16) for crop in crops}
    assert len(corners) > 20

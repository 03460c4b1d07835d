"""Pixels against independent references: MATLAB, plain loops, scikit-image, torchmetrics."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.metrics
import torch
import torchmetrics
from PIL import Image

from images.bands import bands
from images.files import read_image, to_8_bits
from images.kinds import find_images
from images.resize import imresize, imresize_to, part_by_nearest
from images.scores import psnr, ssim
from images.strips import labelled_strip
from images.tensors import to_image

BENCHMARKS = Path(__file__).parents[2] / "shared" / "data"
needs_benchmarks = pytest.mark.skipif(
    not (BENCHMARKS / "Set5").is_dir(), reason="Set5 and Set14 are not on this machine"
)

# ---------------------------------------------------------------------------------------- resize


def resize_by_the_definition(image: np.ndarray, scale: float, white: int = 255) -> np.ndarray:
    """MATLAB's documented algorithm, pixel by pixel in plain Python, one channel."""

    def keys(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    def line(values: list[int]) -> list[int]:
        shrink, length, output = min(scale, 1), len(values), []
        for i in range(math.ceil(length * scale)):
            position = (i + 0.5) / scale - 0.5
            reach = math.ceil(2 / shrink) + 1
            total = weight_sum = 0.0
            for j in range(math.floor(position) - reach, math.floor(position) + reach + 1):
                weight = keys(shrink * (position - j))
                mirrored = j % (2 * length)
                mirrored = mirrored if mirrored < length else 2 * length - 1 - mirrored
                total += weight * values[mirrored]
                weight_sum += weight
            output.append(min(white, max(0, math.floor(total / weight_sum + 0.5))))
        return output

    down = np.array([line(column) for column in image.T.tolist()]).T
    return np.array([line(row) for row in down.tolist()])


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 1 / 8, 2, 3, 4, 0.7])
def test_resize_follows_matlabs_definition(scale, random_image):
    image = random_image(24, 25)
    expected = [resize_by_the_definition(image[..., c], scale) for c in range(3)]
    assert np.array_equal(imresize(image, scale), np.stack(expected, axis=-1))


@pytest.mark.parametrize("scale", [0.7, 2])
def test_16_bits_are_resized_by_the_same_definition(scale):
    image = np.random.default_rng(0).integers(0, 2**16, (14, 15, 3), np.uint16)
    image[:, :5] = [0, 2**16 - 1, 30_000]  # an edge that overshoots on both sides
    expected = [resize_by_the_definition(image[..., c], scale, 2**16 - 1) for c in range(3)]
    result = imresize(image, scale)
    assert result.dtype == np.uint16 and np.array_equal(result, np.stack(expected, axis=-1))


@pytest.mark.parametrize("scale", [0.31, 0.7, 1, 2, 3])
@pytest.mark.parametrize("values", [1, 100, 999])
def test_resize_in_bands_follows_matlabs_definition(scale, values, random_image, monkeypatch):
    """Bands of one row, of a few, and a last one that is shorter; a wide and a high image."""
    monkeypatch.setattr("images.bands.VALUES", values)
    for height, width in ((13, 31), (37, 9)):
        image = random_image(height, width)
        expected = [resize_by_the_definition(image[..., c], scale) for c in range(3)]
        assert np.array_equal(imresize(image, scale), np.stack(expected, axis=-1))


def test_bands_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr("images.bands.VALUES", 100)
    for rows, row, least in ((1, 1, 1), (10, 30, 1), (10, 1000, 1), (7, 0, 1), (10, 1000, 4)):
        covered = [i for band in bands(rows, row, least) for i in range(rows)[band]]
        assert covered == list(range(rows))
    assert next(bands(10, 30)) == slice(0, 3)
    assert next(bands(10, 1000, least=4)) == slice(0, 4)


def test_a_part_by_nearest_is_what_pillow_makes_of_the_whole(random_image):
    image = random_image(31, 47)
    for height, width in ((93, 141), (62, 94), (20, 40), (131, 77)):
        whole = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        for window in (np.s_[0:height, 0:width], np.s_[5:height, 7:30], np.s_[2:19, 11:12]):
            part = part_by_nearest(image, (height, width), window)
            assert np.array_equal(part, np.asarray(whole)[window])


@pytest.mark.parametrize(
    ("work", "bytes_made"),
    [
        (lambda image: imresize(image, 2), 4),
        (lambda image: psnr(image, image, 4), 0),
        (lambda image: ssim(image, image, 4), 0),
        (lambda image: ssim(image, image, 4, y_channel=False), 0),
        (lambda image: to_8_bits(image.view(np.uint16)), 0.5),
        (lambda image: to_image(torch.from_numpy(image).permute(2, 0, 1)), 1),
    ],
)
def test_no_copy_in_floating_point_is_made_of_a_whole_image(work, bytes_made, monkeypatch):
    """Beside what comes out, at most a byte for each number that goes in; float64 would take 8."""
    monkeypatch.setattr("images.bands.VALUES", 2**14)
    image = np.zeros((12000, 100, 2 if bytes_made == 0.5 else 3), np.uint8)
    tracemalloc.start()
    work(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (bytes_made + 1) * image.nbytes


def test_resize_of_an_edge_equals_the_values_worked_out_by_hand():
    # At x2 the kernel's weights are -6, 58, 222, -18 over 256: w(1.75), w(0.75), w(0.25), w(1.25).
    row = np.array([[0, 0, 255, 255]], np.uint8)
    assert imresize(row, 2)[0].tolist() == [0, 0, 0, 52, 203, 255, 255, 255]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7), (5, 3, 1), (2, 2, 4)])
def test_resize_takes_any_shape(shape):
    image = np.full(shape, 77, np.uint8)
    assert np.array_equal(imresize(image, 3), np.full((3 * shape[0], 3 * shape[1], *shape[2:]), 77))
    assert imresize(image, 1 / 2).shape[:2] == (math.ceil(shape[0] / 2), math.ceil(shape[1] / 2))


def test_resize_refuses_floats():
    with pytest.raises(TypeError, match="float64"):
        imresize(np.zeros((4, 4)), 2)


@needs_benchmarks
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_resize_equals_matlabs_own_files_in_every_pixel(scale):
    for path in find_images(BENCHMARKS / "Set5" / "HR").images:
        matlab = BENCHMARKS / "Set5" / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png"
        assert np.array_equal(
            imresize(modcrop(read_image(path), scale), 1 / scale), read_image(matlab)
        )


@needs_benchmarks
@pytest.mark.parametrize(
    "name, expected_psnr, expected_ssim", [("Set5", 28.429, 0.8111), ("Set14", 26.088, 0.7048)]
)
def test_bicubic_scores_on_the_benchmarks(name, expected_psnr, expected_ssim):
    scores = []
    for path in find_images(BENCHMARKS / name / "HR").images:
        high_res = modcrop(read_image(path), 4)
        bicubic = imresize(imresize(high_res, 1 / 4), 4)
        scores.append((psnr(bicubic, high_res, 4), ssim(bicubic, high_res, 4)))
    mean_psnr, mean_ssim = np.mean(scores, axis=0)
    assert mean_psnr == pytest.approx(expected_psnr, abs=0.002)
    assert mean_ssim == pytest.approx(expected_ssim, abs=0.0002)


def modcrop(image, scale):
    return image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]


# --------------------------------------------------------------------------------------- metrics


@pytest.fixture
def pair(random_image):
    """A picture and a slightly noisy copy of it."""
    base = imresize(random_image(12, 10), 4)
    noise = np.random.default_rng(1).normal(0, 8, base.shape)
    return base, np.clip(base + noise, 0, 255).astype(np.uint8)


def luma(image):
    return skimage.color.rgb2ycbcr(image)[..., 0]


@pytest.mark.parametrize("values", [2**18, 1])
def test_psnr_equals_scikit_images_and_torchmetrics(values, pair, monkeypatch):
    monkeypatch.setattr("images.bands.VALUES", values)  # 1: row by row
    a, b = (image[4:-4, 4:-4] for image in pair)
    on_y = skimage.metrics.peak_signal_noise_ratio(luma(a), luma(b), data_range=255)
    assert psnr(*pair, crop_border=4) == pytest.approx(on_y, abs=1e-9)
    reference = torchmetrics.image.PeakSignalNoiseRatio(data_range=255.0)
    on_rgb = reference(*(torch.from_numpy(image.astype(np.float64)) for image in (a, b)))
    assert psnr(*pair, crop_border=4, y_channel=False) == pytest.approx(on_rgb.item(), abs=1e-4)


@pytest.mark.parametrize(("border", "values"), [(0, 2**18), (3, 2**18), (3, 1)])
def test_ssim_equals_scikit_images(border, values, random_image, monkeypatch):
    monkeypatch.setattr("images.bands.VALUES", values)  # 1: in bands of 33 rows
    base = imresize(random_image(21, 10), 4)
    pair = base, np.clip(base.astype(int) + random_image(84, 40) // 16 - 8, 0, 255).astype(np.uint8)
    a, b = (
        image[border : image.shape[0] - border, border : image.shape[1] - border] for image in pair
    )
    matlab = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    on_y = skimage.metrics.structural_similarity(luma(a), luma(b), **matlab)
    assert ssim(*pair, crop_border=border) == pytest.approx(on_y, abs=1e-9)
    on_rgb = skimage.metrics.structural_similarity(
        a.astype(np.float64), b.astype(np.float64), channel_axis=-1, **matlab
    )
    assert ssim(*pair, crop_border=border, y_channel=False) == pytest.approx(on_rgb, abs=1e-9)


def test_identical_images_are_perfect(pair):
    assert psnr(pair[0], pair[0], 2) == math.inf
    assert ssim(pair[0], pair[0], 2) == pytest.approx(1)


def test_images_that_cannot_be_compared_are_refused(random_image):
    with pytest.raises(ValueError, match="different shapes"):
        psnr(random_image(8, 8), random_image(8, 9), 0)
    with pytest.raises(ValueError, match="nothing is left"):
        psnr(random_image(8, 8), random_image(8, 8), 4)
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(random_image(18, 18), random_image(18, 18), 4)


def test_16_bits_are_rounded_to_the_nearest_of_8(monkeypatch):
    monkeypatch.setattr("images.bands.VALUES", 1000)
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(to_8_bits(levels), (levels.astype(np.int64) * 2 + 257) // 514)


# ------------------------------------------------------------------------------- labelled strips


def test_strips_show_every_picture_under_a_label(random_image):
    pictures = {
        "input": random_image(40, 60, 1),
        "a label longer than its picture": random_image(40, 60, 2),
    }
    strip = labelled_strip(pictures, side=512)
    assert strip.shape[0] > 40 and strip.shape[1] > 120
    bar, below = strip[:-40], strip[-40:]
    assert bar.min() < 128  # something is written
    for picture in pictures.values():
        columns = range(strip.shape[1] - 59)
        assert any(np.array_equal(below[:, x : x + 60], picture) for x in columns)
    assert labelled_strip(pictures, side=16).shape[0] == strip.shape[0] - 24


def resized_by_matlab(image, size):
    """`imresize(image, size)` by its definition: dimensions in the order of their scales."""
    scales = np.array(size) / image.shape[:2]
    for axis in np.argsort(scales, kind="stable"):
        scale, length = scales[axis], image.shape[axis]
        stretch = min(1, scale)
        weights = np.zeros((size[axis], length))
        for i in range(size[axis]):
            centre = (i + 1) / scale + 0.5 * (1 - 1 / scale)
            for j in range(int(centre - 2 / stretch) - 1, int(centre + 2 / stretch) + 3):
                d = abs(stretch * (centre - j))
                near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
                mirrored = (j - 1) % (2 * length)
                weights[i, min(mirrored, 2 * length - 1 - mirrored)] += (
                    near if d <= 1 else far if d <= 2 else 0
                )
        weights /= weights.sum(1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, image.astype(float), (1, axis)), 0, axis)
        image = np.floor(np.clip(result, 0, 255) + 0.5).astype(np.uint8)
    return image


@pytest.mark.parametrize("size", [(20, 10), (10, 20), (31, 50), (50, 31), (12, 18)])
def test_what_shrinks_more_is_resized_first(size, random_image):
    image = random_image(24, 36)
    assert np.array_equal(imresize_to(image, size), resized_by_matlab(image, size))

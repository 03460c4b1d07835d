"""--wrap: what is seamless stays so, whatever else is asked for."""

import numpy as np
import pytest
import torch
from torch import nn

from images.files import Picture
from model import RRDBNet
from upscaling.upscaler import Upscaler, enlarge, wrapped
from weights import load_generator


@pytest.fixture(scope="module")
def net():
    """It sees no farther than 22 pixels, and gives mid grays."""
    torch.manual_seed(0)
    net = RRDBNet(scale=2, features=4, blocks=1, growth=4).eval()
    nn.init.constant_(net.conv_last.bias, 0.5)
    return net


def texture(height: int, width: int, dtype=np.uint8) -> np.ndarray:
    """RGBA that wraps, of the lowest frequencies, partly clear and partly opaque."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:height, :width] * 2 * np.pi
    pixels = np.zeros((height, width, 4))
    for _ in range(12):
        rate = rng.integers(0, 4, 2)
        wave = down / height * rate[0] + across / width * rate[1]
        pixels += np.sin(wave[..., None] + rng.uniform(0, 2 * np.pi, 4)) * rng.uniform(0, 60, 4)
    scaled = np.clip(pixels + 128, 0, 255) * (np.iinfo(dtype).max / 255)
    return scaled.round().astype(dtype)


@pytest.mark.parametrize(
    ("size", "shift", "flags"),
    [
        ((40, 56), (7, 50), {}),
        ((33, 40), (7, 30), dict(tile=64, batch=2)),
        ((3, 2), (1, 1), dict(ensemble=True)),
        ((20, 10), (6, 8), dict(scale=1.5)),
        ((20, 10), (10, 7), dict(width=20, height=22)),
        ((20, 20), (7, 12), dict(keep_hidden=True)),
        ((1, 1), (0, 0), {}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_rolled_texture_gives_the_rolled_result(size, shift, flags, dtype, net):
    upscaler = Upscaler(net, "cpu", "fp32", wrap=True, **flags)
    pixels = texture(*size, dtype)
    assert (pixels[..., 3] == 0).any() or max(size) < 20  # there is hidden colour
    results = []
    for rgba in (pixels, np.roll(pixels, shift, (0, 1))):
        enlarged = enlarge(Picture(rgba[..., :3], rgba[..., 3]), upscaler)
        enlarged.rgb[enlarged.alpha == 0] = 0
        results.append(np.dstack([enlarged.rgb, enlarged.alpha]).astype(float))
    height, width = results[0].shape[:2]
    down, across = shift[0] * height / size[0], shift[1] * width / size[1]
    assert down.is_integer() and across.is_integer()
    expected = np.roll(results[0], (int(down), int(across)), (0, 1))
    assert np.abs(expected - results[1]).max() * 255 / np.iinfo(dtype).max <= 1


def test_the_result_is_the_middle_of_a_wall_of_them(net):
    pixels = texture(40, 56)[..., :3]
    wall = Upscaler(net, "cpu", "fp32", tile=0)(np.tile(pixels, (3, 3, 1))).astype(int)
    result = Upscaler(net, "cpu", "fp32", wrap=True)(pixels)
    assert np.abs(wall[80:160, 112:224] - result).max() <= 1
    assert np.ptp(result) > 50  # and not all one colour


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["compact_x4_psnr", "compact_x4_gan", "compact_x4_real_psnr", "compact_x4_real"]
)
def test_networks_that_see_beyond_the_margin_hardly_notice(name):
    grain = np.random.default_rng(1).integers(-20, 20, (64, 64, 3))
    pixels = np.clip(texture(64, 64)[..., :3] + grain, 0, 255).astype(np.uint8)
    upscaler = Upscaler(load_generator(name), "cpu", "fp32", wrap=True)
    result, rolled = (upscaler(image) for image in (pixels, np.roll(pixels, (20, 33), (0, 1))))
    difference = np.roll(result, (80, 132), (0, 1)).astype(int) - rolled
    assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_without_it_there_is_a_seam_which_it_closes():
    """Levels between pixels that meet when the result is laid side by side."""
    grain = np.random.default_rng(1).integers(-20, 20, (48, 48, 3))
    pixels = np.clip(texture(48, 48)[..., :3] + grain, 0, 255).astype(np.uint8)
    net = load_generator("compact_x4_real")

    def steps(wrap: bool) -> tuple[float, float]:
        result = Upscaler(net, "cpu", "fp32", wrap=wrap)(pixels).astype(int)
        across = np.abs(np.diff(np.concatenate([result[:, -2:], result[:, :2]], 1), axis=1))
        return across[:, 1].mean(), across[:, [0, 2]].mean()

    seam, neighbours = steps(wrap=False)
    assert seam > 2 * neighbours
    seam, neighbours = steps(wrap=True)
    assert seam < 1.5 * neighbours


def test_wrapping_goes_round_more_than_once(random_image):
    image = random_image(3, 4)
    expected = np.tile(image, (5, 5, 1))[6 - 5 : 6 + 3 + 5, 8 - 7 : 8 + 4 + 7]
    assert np.array_equal(wrapped(image, 5, 7), expected)
    assert np.array_equal(wrapped(image[..., 0], 5, 7), expected[..., 0])

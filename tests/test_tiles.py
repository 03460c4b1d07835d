"""Tiles: they cover everything, and change nothing that one would see."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from images.resize import enlarge_nearest
from images.tensors import to_image, to_tensor
from model import RRDBNet
from upscaling.tiles import _blend_weights, _spans, upscale
from upscaling.wrappers import Ensemble, PerChannel, Recoloured


class Nearest(nn.Module):
    """Each output pixel depends on one input pixel, so tiles must change nothing at all."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.unused = nn.Parameter(torch.zeros(1))
        self.largest = 0

    def forward(self, x):
        self.largest = max(self.largest, *x.shape[2:])
        return F.interpolate(x, scale_factor=self.scale)


@pytest.mark.parametrize("height, width", [(1, 1), (9, 200), (64, 64), (65, 129), (100, 150)])
def test_tiles_do_not_change_what_does_not_depend_on_neighbours(height, width, random_image):
    net, image = Nearest(2), random_image(height, width)
    assert np.array_equal(upscale(net, image, tile=64), enlarge_nearest(image, 2))
    assert net.largest <= 64


class FirstOfSquare(nn.Module):
    """Each output pixel is the first one of its square, as a network that folds may use it."""

    in_channels, scale = 3, 1

    def __init__(self, side):
        super().__init__()
        self.unshuffle = side
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        height, width = x.shape[2:]
        firsts = x[..., :: self.unshuffle, :: self.unshuffle]
        return F.interpolate(firsts, scale_factor=self.unshuffle)[..., :height, :width]


@pytest.mark.parametrize("side", [2, 4])
@pytest.mark.parametrize("height, width", [(193, 255), (150, 201), (64, 131), (100, 98)])
@pytest.mark.parametrize("wrapper", [nn.Identity, PerChannel, Recoloured, Ensemble])
def test_tiles_fold_the_squares_of_the_whole_image(wrapper, side, height, width, random_image):
    net, image = FirstOfSquare(side), random_image(height, width)
    if wrapper is not nn.Identity:
        net = wrapper(net)
    whole = upscale(net, image).astype(int)
    assert np.abs(upscale(net, image, tile=64) - whole).max() <= 1  # rounding


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 66, 97, 98, 99, 150, 1001])
@pytest.mark.parametrize("tile", [64, 65, 66, 67])
def test_tiles_leave_whole_squares_on_both_sides(length, tile):
    for unit in (1, 2, 4):
        spans = _spans(length, tile, 30, unit)
        assert spans[0][0] == 0 and spans[-1][1] == length
        assert len({end - start for start, end in spans}) == 1
        assert max(end - start for start, end in spans) <= tile
        assert all(start % unit == (length - end) % unit == 0 for start, end in spans)
        assert all(a[1] - b[0] >= 30 for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("length", [64, 65, 96, 97, 150, 1000])
def test_tiles_cover_everything_with_weights_that_sum_to_one(length):
    spans = _spans(length, 64, 32)
    assert spans[0][0] == 0 and spans[-1][1] == length
    sides = {end - start for start, end in spans}
    assert len(sides) == 1 and sides <= set(range(65))
    # One pixel less each, and so many of them would not reach.
    assert len(spans) * (max(sides) - 1) - 32 * (len(spans) - 1) < length
    assert all(a[1] - b[0] >= 32 for a, b in itertools.pairwise(spans))
    total = torch.zeros(length * 3)
    for (start, end), weights in zip(spans, _blend_weights(spans, length, 32, 3), strict=True):
        assert (weights > 0).all()
        total[start * 3 : end * 3] += weights
    torch.testing.assert_close(total, torch.ones(length * 3))


@pytest.mark.parametrize("height, width", [(90, 110), (70, 66)])  # tiles that overlap a lot, too
def test_tiled_output_of_a_network_is_close_to_the_whole(height, width):
    torch.manual_seed(0)
    net = RRDBNet(features=8, blocks=2, growth=8).eval()
    nn.init.constant_(net.conv_last.bias, 0.5)  # away from black, where differences are clamped
    ramp = np.linspace(0, 255, height)[:, None, None] * np.ones((1, width, 3))
    image = (ramp * [1, 0.7, 0.4]).astype(np.uint8)
    whole, tiled = upscale(net, image), upscale(net, image, tile=64)
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_untiled_is_the_network_and_nothing_else(random_image):
    net, image = RRDBNet(features=4, blocks=1, growth=4).eval(), random_image(9, 7)
    with torch.no_grad():
        expected = net(to_tensor(image))[0]
    assert np.array_equal(upscale(net, image), to_image(expected))
    assert np.array_equal(to_image(to_tensor(image)[0]), image)
    assert to_image(torch.tensor([-0.2, 0.5019, 7.0]).view(3, 1, 1)).ravel().tolist() == [
        0,
        128,
        255,
    ]


def test_progress_is_told_before_each_batch_of_tiles_and_can_stop_them(random_image):
    net = torch.nn.Conv2d(3, 3, 1).eval()
    net.scale = 1
    told, image = [], random_image(64, 200)
    upscale(net, image, 64, batch=2, progress=lambda *tiles: told.append(tiles))
    # 200 pixels in tiles of 64 that share 32: 1 + ceil((200 - 64) / 32) = 6
    assert told == [(0, 6), (2, 6), (4, 6)]
    upscale(net, image, 0, progress=lambda *tiles: told.append(tiles))
    assert told[3:] == [(0, 1)]

    def stop(done, total):
        if done:
            raise InterruptedError

    net.register_forward_hook(lambda *_: told.append("computed"))
    with pytest.raises(InterruptedError):
        upscale(net, image, 64, progress=stop)
    assert told[4:] == ["computed"]

"""Networks: exact sizes, the paper's initialisation, the discriminator's shape."""

import math

import pytest
import torch

from model import RRDBNet, VGGDiscriminator


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_are_the_published_ones():
    assert count(RRDBNet()) == 16_697_987
    assert count(VGGDiscriminator(128)) == 14_499_401


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_output_is_scale_times_as_large(scale):
    net = RRDBNet(scale=scale, features=4, blocks=1, growth=4)
    assert net(torch.rand(2, 3, 7, 5)).shape == (2, 3, 7 * scale, 5 * scale)
    assert net.scale == scale


def test_other_scales_are_refused():
    with pytest.raises(ValueError, match="scale is 5"):
        RRDBNet(scale=5)


def test_residual_branches_start_at_a_tenth_of_kaimings_width():
    net = RRDBNet(blocks=2)
    for block in net.body:
        for dense in (block.rdb1, block.rdb2, block.rdb3):
            for conv in (dense.conv1, dense.conv2, dense.conv3, dense.conv4, dense.conv5):
                expected = 0.1 * math.sqrt(2 / (9 * conv.in_channels))
                assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
                assert not conv.bias.any()


def test_pixels_leave_in_fp32_under_autocast():
    net = RRDBNet(features=4, blocks=1, growth=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.rand(1, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize("patch", [32, 96, 160])
def test_discriminator_takes_any_multiple_of_32(patch):
    assert VGGDiscriminator(patch)(torch.rand(2, 3, patch, patch)).shape == (2, 1)


@pytest.mark.parametrize("patch", [0, -32, 100])
def test_discriminator_refuses_other_sizes(patch):
    with pytest.raises(ValueError, match=f"patch_size is {patch}"):
        VGGDiscriminator(patch)


def test_discriminators_first_convolution_has_the_only_bias_and_no_batch_norm():
    kinds = [type(layer).__name__ for layer in VGGDiscriminator(32).features]
    assert kinds[:2] == ["Conv2d", "LeakyReLU"]
    assert kinds[2:] == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 9

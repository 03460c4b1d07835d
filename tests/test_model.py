"""Networks: exact sizes, the paper's initialisation, the discriminator's shape."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from model import (
    RowsConv2d,
    RRDBNet,
    SpectralConv2d,
    SRResNet,
    UNetDiscriminator,
    VGGDiscriminator,
    concatenation,
    convolve_enlarged,
    in_bands,
)


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_parameter_counts_are_the_published_ones():
    assert count(RRDBNet()) == 16_697_987
    assert count(VGGDiscriminator(128)) == 14_499_401
    assert count(UNetDiscriminator()) == 4_376_897
    # Lornatang/SRGAN-PyTorch's Generator, whose output is the same, too (compared by hand).
    assert count(SRResNet()) == 1_547_350


@pytest.mark.parametrize("kind", [RRDBNet, SRResNet])
@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_output_is_scale_times_as_large(kind, scale):
    net = kind(scale=scale, features=4, blocks=1)
    assert net(torch.rand(2, 3, 7, 5)).shape == (2, 3, 7 * scale, 5 * scale)
    assert net.scale == scale


@pytest.mark.parametrize("kind", [RRDBNet, SRResNet])
def test_other_scales_are_refused(kind):
    with pytest.raises(ValueError, match="scale is 5"):
        kind(scale=5)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_srresnet_is_figure_4_of_srgan(batch_norm):
    """Written out from the paper's figure, in float64."""
    torch.manual_seed(0)
    net = SRResNet(features=8, blocks=2, batch_norm=batch_norm).double()
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) * 0.3 + 0.05)  # running statistics, too
    w = net.eval().state_dict()

    def conv(name, x):
        weight = w[f"{name}.weight"]
        return F.conv2d(x, weight, w.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def prelu(name, x):
        return torch.where(x > 0, x, w[f"{name}.weight"] * x)

    def norm(name, x):
        if not batch_norm:
            return x
        weight, bias, mean, variance = (
            w[f"{name}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    low_res = torch.rand(1, 3, 6, 5, dtype=torch.double)
    x = first = prelu("prelu_first", conv("conv_first", low_res))
    for i in range(2):
        inner = prelu(f"body.{i}.prelu", norm(f"body.{i}.bn1", conv(f"body.{i}.conv1", x)))
        x = x + norm(f"body.{i}.bn2", conv(f"body.{i}.conv2", inner))
    x = first + norm("bn_body", conv("conv_body", x))
    for m in (1, 2):  # (N, C * 4, H, W) to (N, C, 2 * H, 2 * W): channel c * 4 + 2 * i + j
        n, c, h, width = (x := conv(f"conv_up{m}", x)).shape
        x = x.reshape(n, c // 4, 2, 2, h, width).permute(0, 1, 4, 2, 5, 3)
        x = prelu(f"prelu_up{m}", x.reshape(n, c // 4, 2 * h, 2 * width))
    torch.testing.assert_close(net(low_res), conv("conv_last", x))


def test_residual_branches_start_at_a_tenth_of_kaimings_width():
    net = RRDBNet(blocks=2)
    for block in net.body:
        for dense in (block.rdb1, block.rdb2, block.rdb3):
            for conv in (dense.conv1, dense.conv2, dense.conv3, dense.conv4, dense.conv5):
                expected = 0.1 * math.sqrt(2 / (9 * conv.in_channels))
                assert conv.weight.std().item() == pytest.approx(expected, rel=0.05)
                assert not conv.bias.any()


@pytest.mark.parametrize("kind", [RRDBNet, SRResNet])
def test_under_autocast_the_trunk_is_bf16_and_pixels_leave_in_fp32(kind):
    net, dtypes = kind(features=4, blocks=1), []
    net.body.register_forward_hook(lambda module, given, result: dtypes.append(result.dtype))
    net.body[0].register_forward_hook(lambda module, given, result: dtypes.append(given[0].dtype))
    read = []
    net.conv_first.register_forward_hook(lambda module, given, result: read.append(result.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.rand(1, 3, 8, 8)).dtype == torch.float32
    assert dtypes and set(dtypes) == {torch.bfloat16}
    assert read == [torch.float32]  # bf16 has fewer levels than a picture


@pytest.mark.parametrize("factor", [2, 3])
def test_enlarged_features_are_convolved_as_if_they_had_been_made(factor):
    """Against torch's own enlargement and convolution, with gradients, in float64."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, kernel_size=3, padding=1).double()
    x = torch.rand(2, 4, 7, 5, dtype=torch.float64, requires_grad=True)
    enlarged = F.interpolate(x, scale_factor=factor, mode="nearest")
    outputs = conv(enlarged), convolve_enlarged(conv, x, factor)
    expected, actual = (
        (output, *torch.autograd.grad(output.square().sum(), (x, *conv.parameters())))
        for output in outputs
    )
    torch.testing.assert_close(actual, expected)


def test_enlarged_features_are_convolved_in_autocasts_precision_and_layout():
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 16, kernel_size=3, padding=1)
    x = torch.rand(1, 16, 9, 7).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        with torch.autocast("cpu", torch.bfloat16):
            actual = convolve_enlarged(conv, x.bfloat16(), 2)
    assert actual.dtype == torch.bfloat16
    assert actual.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(actual.float(), expected, rtol=0, atol=0.01)  # bf16: 8 bits


@pytest.mark.parametrize("size", [3, 9])
@pytest.mark.parametrize("height, width", [(7, 5), (1, 1)])
def test_kernels_in_rows_are_torchs_convolution(size, height, width):
    """With the gradients, in float64."""
    torch.manual_seed(0)
    conv = RowsConv2d(4, 3, kernel_size=size, padding=size // 2).double()
    x = torch.rand(2, 4, height, width, dtype=torch.float64, requires_grad=True)
    outputs = conv(x), F.conv2d(x, conv.weight, conv.bias, padding=size // 2)
    actual, expected = (
        (output, *torch.autograd.grad(output.square().sum(), (x, *conv.parameters())))
        for output in outputs
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("height, width", [(1, 1), (3, 8), (4, 4), (5, 2), (9, 13)])
def test_winograds_convolutions_are_torchs(height, width, bias):
    """Of maps that become more, against torch in float64; fp32 itself is 1e-6 away from that."""
    torch.manual_seed(0)
    maps = [torch.rand(2, channels, height, width) for channels in (48, 32, 16)]
    convs = [nn.Conv2d(channels, 24, 3, padding=1, bias=bias) for channels in (48, 80, 96)]
    with torch.inference_mode():
        seen = concatenation(maps[0], convs)
        assert type(seen).__name__ == "WinogradConcatenation"
        for count, conv in enumerate(convs, start=1):
            together = torch.cat(maps[:count], 1).double()
            expected = copy.deepcopy(conv).double()(together).float()
            actual = seen.convolve(conv)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
            assert (
                actual.is_contiguous(memory_format=torch.channels_last) or height % 4 or width % 4
            )
            if count < len(maps):
                seen.append(maps[count])


def test_winograds_form_is_for_fp32_without_gradients_and_enough_channels():
    conv = nn.Conv2d(16, 16, 3, padding=1)

    def form(x):
        return type(concatenation(x, [conv])).__name__

    x = torch.rand(1, 16, 8, 8)
    assert form(x) == "Concatenation"  # it would be trained
    trained = concatenation(x, [conv]).convolve(conv).sum()
    assert torch.autograd.grad(trained, conv.weight)[0].abs().sum() > 0
    with torch.no_grad():
        assert form(x) == "WinogradConcatenation"
        assert form(x[:, :15]) == form(x.bfloat16()) == form(x.double()) == "Concatenation"
        assert form(x.to("meta")) == "Concatenation"


@pytest.mark.parametrize("plus", [False, True])
def test_a_generator_gives_the_same_with_winograds_convolutions(plus):
    """Beside its own run in float64, where the convolutions are torch's."""
    torch.manual_seed(0)
    net = RRDBNet(features=32, blocks=2, plus=plus)
    x = torch.rand(1, 3, 19, 22)
    with torch.no_grad():
        expected = copy.deepcopy(net.eval()).double()(x.double()).float()
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-5)


def test_what_is_attached_to_a_convolution_counts_with_and_without_gradients():
    """A hook, and an adapter that stands in a convolution's place, as fine-tuning has them."""

    class Adapted(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + 1

    torch.manual_seed(0)
    net = RRDBNet(features=16, blocks=1).eval()
    x, seen = torch.rand(1, 3, 12, 10), []
    plain = net(x)
    net.conv_up1.register_forward_hook(lambda *_: seen.append("conv_up1"))
    net.body[0].rdb1.conv2.register_forward_pre_hook(lambda *_: seen.append("conv2"))
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain, rtol=0, atol=1e-5)
    assert seen == ["conv2", "conv_up1"]
    convs = [net.conv_up2, net.body[0].rdb3.conv1]
    for conv in convs:  # as some programs add LoRA
        conv.forward = lambda x, forward=conv.forward: seen.append("forward") or forward(x)
    seen.clear()
    with torch.no_grad():
        net(x)
    assert seen.count("forward") == 2
    for name in ("conv_up2", "body.0.rdb2.conv5"):
        parent, _, last = name.rpartition(".")
        old = net.get_submodule(name)
        adapted = Adapted(*old.weight.shape[1::-1], 3, padding=1)
        adapted.load_state_dict(old.state_dict())
        setattr(net.get_submodule(parent), last, adapted)
    with_gradients = net(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(net(x), with_gradients, rtol=0, atol=1e-4)
    assert (with_gradients - plain).abs().mean() > 0.1


def test_convolutions_may_pad_otherwise():
    """With the image's other side, as for seamless textures."""
    torch.manual_seed(0)
    net, x = RRDBNet(features=16, blocks=1).eval(), torch.rand(1, 3, 12, 10)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [1, 1, 1, 1]
    with torch.no_grad():
        result = net(x)
        moved = net(x.roll((5, 3), (2, 3)))
    torch.testing.assert_close(moved, result.roll((20, 12), (2, 3)), rtol=0, atol=1e-4)


def test_a_pruned_network_can_be_fine_tuned():
    net = RRDBNet(features=8, blocks=1)
    prune.l1_unstructured(net.conv_up1, "weight", 0.3)
    for _ in range(2):  # whose kernel a hook makes anew each time
        net(torch.rand(1, 3, 8, 8)).mean().backward()
    assert net.conv_up1.weight_orig.grad.any()


@pytest.mark.parametrize("height", [1, 95, 96, 97, 98, 192, 193, 289])
def test_bands_are_the_whole(height):
    """Heights around multiples of the bands', against torch on the whole image, in float64."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Conv2d(4, 4, kernel_size=3, padding=1) for _ in range(2))).double()
    x = torch.rand(2, 4, height, 6, dtype=torch.float64)
    expected = layers(x)
    heights = []

    def function(band):
        heights.append(band.shape[2])
        return layers(band)

    with torch.inference_mode():
        torch.testing.assert_close(in_bands(function, x, reach=2), expected)
    assert len(heights) == math.ceil(height / 96) and max(heights) <= 100
    in_bands(function, x, reach=2)  # with gradients
    assert heights[-1] == height


def test_recorded_networks_fit_other_heights():
    net = RRDBNet(scale=2, features=16, blocks=1).eval()
    small, large = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 60, 8)
    height = torch.export.Dim("height", min=2, max=100)
    with torch.no_grad():
        traced = torch.jit.trace(net, small)
        exported = torch.export.export(net, (small,), dynamic_shapes=({2: height},)).module()
        for recorded in (traced, exported):
            torch.testing.assert_close(recorded(large), net(large))


@pytest.mark.parametrize("patch", [32, 96, 160])
def test_discriminator_takes_any_multiple_of_32(patch):
    assert VGGDiscriminator(patch)(torch.rand(2, 3, patch, patch)).shape == (2, 1)


@pytest.mark.parametrize("patch", [0, -32, 100])
def test_discriminator_refuses_other_sizes(patch):
    with pytest.raises(ValueError, match=f"patch_size is {patch}"):
        VGGDiscriminator(patch)


def test_only_some_scales_go_with_unshuffle():
    for scale, unshuffle in ((1, 2), (1, 4), (2, 2), (2, 4), (4, 2), (4, 4), (8, 2)):
        net = RRDBNet(scale=scale, features=4, blocks=1, unshuffle=unshuffle)
        assert net(torch.rand(1, 3, 8, 12)).shape == (1, 3, 8 * scale, 12 * scale)
    with pytest.raises(ValueError, match="unshuffle is 2; at scale 3"):
        RRDBNet(scale=3, unshuffle=2)


def test_discriminators_first_convolution_has_the_only_bias_and_no_batch_norm():
    kinds = [type(layer).__name__ for layer in VGGDiscriminator(32).features]
    assert kinds[:2] == ["Conv2d", "LeakyReLU"]
    assert kinds[2:] == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 9


def test_the_vgg_discriminator_written_out_gives_the_same_logits():
    """In float64: convolutions, batch norm and LeakyReLU 0.2 ten times, then two linear layers."""
    torch.manual_seed(0)
    net = VGGDiscriminator(32).eval()
    for name, tensor in net.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 1.5)
        elif tensor.ndim > 1:
            nn.init.kaiming_normal_(tensor, a=0.2)
        elif tensor.is_floating_point():
            tensor.uniform_(-0.5, 1)
    w = {name: tensor.double() for name, tensor in net.state_dict().items()}

    def lrelu(x):
        return torch.where(x > 0, x, 0.2 * x)

    def linear(name, x):
        return x @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    image = torch.rand(3, 3, 32, 32)
    x = lrelu(F.conv2d(image.double(), w["features.0.weight"], w["features.0.bias"], padding=1))
    for i in range(9):  # a kernel of 4 that halves, one of 3 that widens, in turn
        conv, norm = f"features.{2 + 3 * i}", f"features.{3 + 3 * i}"
        x = F.conv2d(x, w[f"{conv}.weight"], stride=2 - i % 2, padding=1)
        gain, shift, mean, variance = (
            w[f"{norm}.{part}"][:, None, None]
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        x = lrelu((x - mean) / (variance + 1e-5).sqrt() * gain + shift)
    assert x.shape == (3, 512, 1, 1)
    hidden = linear("classifier.1", x.flatten(1))
    assert (hidden < 0).any()
    expected = linear("classifier.3", lrelu(hidden))
    torch.testing.assert_close(net(image), expected.float(), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------- the U-Net discriminator


def reference_unet(features):
    """Real-ESRGAN's, written out from reference and paper, with torch's own spectral norm."""
    norm, c = nn.utils.spectral_norm, features
    widths = [(c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)]
    convs = {"conv0": nn.Conv2d(3, c, 3, 1, 1)}
    for i, width in enumerate(widths, start=1):
        convs[f"conv{i}"] = norm(nn.Conv2d(*width, 4, 2, 1, bias=False))
    for i, (narrow, wide) in enumerate(reversed(widths), start=4):
        convs[f"conv{i}"] = norm(nn.Conv2d(wide, narrow, 3, 1, 1, bias=False))
    for i in (7, 8):
        convs[f"conv{i}"] = norm(nn.Conv2d(c, c, 3, 1, 1, bias=False))
    return nn.ModuleDict(convs | {"conv9": nn.Conv2d(c, 1, 3, 1, 1)})


def reference_logits(net, x):
    skips = []
    for i in range(4):
        x = F.leaky_relu(net[f"conv{i}"](x), 0.2)
        skips.append(x)
    for i in range(4, 7):
        x = nn.Upsample(scale_factor=2, mode="bilinear")(x)
        x = F.leaky_relu(net[f"conv{i}"](x), 0.2) + skips[6 - i]
    return net["conv9"](F.leaky_relu(net["conv8"](F.leaky_relu(net["conv7"](x), 0.2)), 0.2))


@pytest.mark.parametrize("training", [True, False])
def test_the_unet_is_real_esrgans(training):
    """Three passes, as in a step: with their gradients, and the singular vectors they leave."""
    torch.manual_seed(0)
    theirs, ours = reference_unet(4), UNetDiscriminator(4)
    assert list(ours.state_dict()) == list(theirs.state_dict())  # and so published files fit
    ours.load_state_dict(theirs.state_dict())
    images = [torch.rand(2, 3, 24, 16, requires_grad=True) for _ in range(3)]
    for net in (theirs, ours):
        net.train(training)
    expected, actual = (
        [judge(x) for x in images] for judge in (lambda x: reference_logits(theirs, x), ours)
    )
    assert actual[0].shape == (2, 1, 24, 16)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(sum(x.square().sum() for x in logits), (*images, *net.parameters()))
        for logits, net in ((actual, ours), (expected, theirs))
    ]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(ours.state_dict(), dict(theirs.state_dict()))


def test_the_spectral_norm_becomes_the_largest_singular_value():
    torch.manual_seed(0)
    conv = SpectralConv2d(6, 8, kernel_size=3)
    x = torch.rand(1, 6, 5, 5)
    for _ in range(200):
        conv(x)
    largest = torch.linalg.svdvals(conv.weight_orig.detach().double().flatten(1))[0]
    expected = F.conv2d(x, (conv.weight_orig / largest).float(), padding=1)
    torch.testing.assert_close(conv(x), expected)


def test_the_norm_is_estimated_in_training_only_and_never_in_bf16():
    torch.manual_seed(0)
    conv = SpectralConv2d(6, 8, kernel_size=4, stride=2)
    x, twin = torch.rand(1, 6, 8, 8), copy.deepcopy(conv)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
    twin(x)
    before = copy.deepcopy(conv.state_dict())
    torch.testing.assert_close(dict(twin.state_dict()), dict(before), rtol=0, atol=0)
    conv.eval()(x)
    torch.testing.assert_close(dict(conv.state_dict()), dict(before), rtol=0, atol=0)


def test_logits_of_images_are_made_in_fp32_under_autocast():
    net, seen = VGGDiscriminator(32), []
    for layer in net.classifier:
        layer.register_forward_hook(lambda layer, given, made: seen.extend((*given, made)))
    with torch.autocast("cpu", torch.bfloat16):
        assert net.activations(torch.rand(2, 3, 32, 32))[-1].dtype == torch.bfloat16
        net(torch.rand(2, 3, 32, 32))
    assert seen and {tensor.dtype for tensor in seen} == {torch.float32}


def test_logits_of_pixels_leave_autocast_in_fp32_and_copies_can_be_made():
    net = UNetDiscriminator(4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(torch.rand(1, 3, 16, 16))
    assert logits.dtype == torch.float32
    logits.sum().backward()
    twin = copy.deepcopy(net)  # in which torch's own spectral norm fails after a pass
    assert all(map(torch.equal, net.state_dict().values(), twin.state_dict().values()))


@pytest.mark.slow
def test_the_unet_compiles():
    torch.manual_seed(0)
    net = UNetDiscriminator(4)
    twin = copy.deepcopy(net)
    net.compile(backend="aot_eager")  # graphs as for the default, without minutes of C++
    x = torch.rand(2, 3, 16, 16)
    for each in (net, twin):
        (each(x).mean() - each(1 - x).mean()).backward()
    torch.testing.assert_close(dict(net.state_dict()), dict(twin.state_dict()))
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)

"""Networks between gray and colour, through test.py: each result is what torch gives directly."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import spandrel
import torch
from PIL import Image, ImageCms
from programs import load_program

import weights
from images.files import Picture, read_picture, write_picture
from images.resize import imresize
from model import RRDBNet, SRResNet
from upscaling.upscaler import Upscaler, enlarge
from weights import load_generator, save_generator

command = load_program("test")

KINDS = [(1, 3), (3, 1), (1, 1), (3, 3)]


def network(taken, given, kind=RRDBNet, **arguments):
    torch.manual_seed(0)
    net = kind(taken, given, scale=2, features=4, blocks=1, **arguments).eval()
    with torch.no_grad():
        net.conv_last.weight.mul_(3)  # away from gray
        net.conv_last.bias.copy_(torch.tensor([0.5, 0.2, 0.7])[:given])
    return net


@pytest.fixture
def pictures(tmp_path, random_image, monkeypatch):
    """Smooth pictures of every kind of file: name -> what is in it."""
    monkeypatch.chdir(tmp_path)
    smooth = imresize(random_image(6, 8), 4)
    deep = smooth.astype(np.uint16) * 257 + 5
    opacity = np.linspace(0, 255, smooth.shape[1]).astype(np.uint8)[None].repeat(len(smooth), 0)
    in_gray = lambda rgb: np.repeat(rgb[..., :1], 3, -1)  # noqa: E731
    kinds = {
        "colour.png": Picture(smooth),
        "gray.png": Picture(in_gray(smooth), gray=True),
        "deep.png": Picture(deep),
        "deep_gray.tif": Picture(in_gray(deep), gray=True),
        "alpha.png": Picture(smooth, opacity),
        "gray_alpha.png": Picture(in_gray(smooth), opacity, gray=True),
    }
    for name, picture in kinds.items():
        write_picture(picture, f"in/{name}")
    return kinds


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["test.py", *map(str, args), "--precision", "fp32"])
    return command.main(command.Ranks())


@torch.no_grad()
def direct(net, rgb):
    """The network over (H, W, 3), in levels: luma for one that takes gray, by BT.601 in float64."""
    top = np.iinfo(rgb.dtype).max
    planes = torch.from_numpy(rgb / top).permute(2, 0, 1)[None]
    if net.in_channels == net.out_channels == 1:
        result = torch.cat([net(plane[None, None].float()) for plane in planes[0]], 1)
    elif net.in_channels == 1:
        luma = (torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None] * planes).sum(1, True)
        result = net(luma.float())
    else:
        result = net(planes.float())
    return (result[0].permute(1, 2, 0).double().numpy() * top).clip(0, top)


@pytest.mark.parametrize("flags", [[], ["--tile", "64"], ["--ensemble"]], ids=str)
@pytest.mark.parametrize("taken, given", KINDS)
def test_every_picture_through_every_network(taken, given, flags, pictures, monkeypatch, capsys):
    net = network(taken, given, growth=4)
    save_generator(net, "net.safetensors")
    if "--tile" in flags:
        write_picture(Picture(imresize(pictures["colour.png"].rgb, 3)), "in/colour.png")
    if "--ensemble" in flags:
        averaged = Ensembled(net)
    assert run(monkeypatch, "in", "--weights", "net.safetensors", "--format", "same", *flags) == 0
    for name, picture in pictures.items():
        rgb = read_picture(f"in/{name}").rgb if name == "colour.png" else picture.rgb
        result = read_picture(f"results/{name}")
        expected = direct(averaged if "--ensemble" in flags else net, rgb)
        gray = {(1, 3): False, (3, 1): True}.get((taken, given), picture.gray)
        if gray:
            expected = expected.mean(-1, keepdims=True)
        assert result.gray == gray and result.rgb.dtype == rgb.dtype
        if picture.alpha is None:  # under alpha 0, colours are filled in first
            tolerance = 1.01 if rgb.dtype == np.uint8 else 40
            assert np.abs(result.rgb - expected).max() <= tolerance
        assert (result.alpha is None) == (picture.alpha is None)
    told = capsys.readouterr().out
    assert ("takes gray" in told) == ((taken, given) == (1, 3))
    assert ("gives gray" in told) == ((taken, given) == (3, 1))


class Ensembled(torch.nn.Module):
    """In numpy's turns and flips."""

    def __init__(self, net):
        super().__init__()
        self.net, self.in_channels, self.out_channels = net, net.in_channels, net.out_channels

    def forward(self, x):
        total = 0
        for flip in (False, True):
            for quarters in range(4):
                given = np.rot90(x.numpy()[..., ::-1] if flip else x.numpy(), quarters, (2, 3))
                turned = self.net(torch.from_numpy(given.copy())).numpy()
                back = np.rot90(turned, -quarters, (2, 3))
                total = total + (back[..., ::-1] if flip else back)
        return torch.from_numpy(total / 8)


def test_gray_reaches_the_network_to_the_last_bit():
    """0.299 g + 0.587 g + 0.114 g is not always g in floating point."""
    seen = []

    class Noting(torch.nn.Module):
        scale, in_channels, out_channels = 1, 1, 3

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, 1))

        def forward(self, low_res):
            seen.append(low_res)
            return low_res.expand(-1, 3, -1, -1)

    levels = np.arange(0, 65536, 13, np.uint16)
    image = np.repeat(levels[None, :, None], 3, -1)
    result = Upscaler(Noting(), "cpu", tile=0)(image)
    assert np.array_equal(result, image)
    assert torch.equal(seen[0][0, 0, 0], torch.from_numpy(levels.astype(np.float32)) / 65535)


@pytest.mark.parametrize("taken, given", KINDS)
def test_alpha_is_enlarged_as_gray_or_where_colour_would_come_out_by_bicubic(
    taken, given, pictures
):
    net, picture = network(taken, given, growth=4), pictures["alpha.png"]
    result = enlarge(picture, Upscaler(net, "cpu", "fp32", tile=0)).alpha
    smooth = imresize(picture.alpha, 2)
    sharp = direct(net, np.stack([picture.alpha] * 3, -1)).mean(-1)
    within = (smooth > 0) & (smooth < 255)
    if (taken, given) == (1, 3):
        assert np.array_equal(result, smooth)
    else:
        assert np.abs(result - sharp)[within].max() <= 1.01
        assert np.array_equal(result[~within], smooth[~within])


@pytest.mark.parametrize("taken, given, mode", [(1, 3, "L"), (3, 1, "RGB")])
def test_a_profile_that_fits_no_more_is_left_out_and_named(
    taken, given, mode, pictures, capsys, monkeypatch
):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Path("one").mkdir()
    Image.fromarray(pictures["colour.png"].rgb).convert(mode).save("one/a.png", icc_profile=profile)
    save_generator(network(taken, given), "net.safetensors")
    assert run(monkeypatch, "one", "--weights", "net.safetensors") == 0
    assert "one/a.png: without its profile" in capsys.readouterr().out
    with Image.open("results/a.png") as result:
        assert result.mode == ("RGB" if given == 3 else "L")
        assert "icc_profile" not in result.info


@pytest.mark.parametrize("taken, given", [(1, 3), (3, 1)])
@pytest.mark.parametrize("kind", [RRDBNet, SRResNet])
def test_outscale_report_strips_convert_and_interpolate(
    taken, given, kind, pictures, monkeypatch, tmp_path
):
    nets = [network(taken, given, kind), network(taken, given, kind)]
    with torch.no_grad():
        nets[1].conv_last.bias.add_(0.25)
    for name, net in zip("ab", nets, strict=True):
        save_generator(net, f"{name}.safetensors")
    flags = ["--outscale", "3", "--report", "--compare", "--check-tiles"]
    assert run(monkeypatch, "in/gray.png", "--weights", "a.safetensors", *flags) == 0
    assert read_picture("results/gray.png").rgb.shape == (72, 96, 3)

    mix = ["weights.py", "interpolate", "a.safetensors", "b.safetensors"]
    monkeypatch.setattr(sys, "argv", [*mix, "--alpha", "0.5", "-o", "mixed.pth"])
    assert weights.main() == 0
    mixed = load_generator("mixed.pth")
    assert (mixed.in_channels, mixed.out_channels) == (taken, given)
    torch.testing.assert_close(mixed.conv_last.bias, nets[0].conv_last.bias + 0.125)
    monkeypatch.setattr(sys, "argv", [*mix, "--pictures", "in/colour.png", "-o", "strips"])
    assert weights.main() == 0 and Path("strips/colour.png").is_file()
    if kind is RRDBNet:
        theirs = spandrel.ModelLoader().load_from_file("mixed.pth")
        assert (theirs.input_channels, theirs.output_channels) == (taken, given)
        image = torch.rand(1, taken, 9, 8)
        with torch.no_grad():
            torch.testing.assert_close(mixed(image), theirs.model(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "taken, given, says",
    [
        (4, 3, "takes 4"),
        (4, 4, "takes 4"),
        (2, 1, "takes 2"),
        (3, 4, "gives 4"),
        (1, 2, "gives 2"),
        (3, 12, "gives 12"),
    ],
)
def test_other_numbers_of_channels_are_named(taken, given, says, pictures, monkeypatch):
    net = RRDBNet(in_channels=taken, out_channels=given, features=8, blocks=1)
    save_generator(net, "net.safetensors")
    with pytest.raises(command.UsageError, match=f"^net.safetensors {says} channels; images have"):
        run(monkeypatch, "in", "--weights", "net.safetensors")
    assert not Path("results/colour.png").exists()


def test_the_first_line_names_the_part_of_a_file_that_was_taken(pictures, monkeypatch, capsys):
    raw, average = network(3, 3), network(3, 3)
    with torch.no_grad():
        average.conv_last.bias.add_(0.1)
    parts = {"params": raw.state_dict(), "params_ema": average.state_dict()}
    torch.save(parts, "net.pth")
    assert run(monkeypatch, "in/colour.png", "--weights", "net.pth") == 0
    assert capsys.readouterr().out.startswith("net.pth: its params_ema (x2) on cpu in float32\n")
    expected = direct(average, pictures["colour.png"].rgb)
    assert np.abs(read_picture("results/colour.png").rgb - expected).max() <= 0.51


def test_gray_to_colour_in_onnxruntime(tmp_path):
    net = network(1, 3)
    save_generator(net, tmp_path / "net.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    image = torch.rand(1, 1, 7, 9)
    (result,) = session.run(None, {"low_res": image.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(result), net(image), rtol=0, atol=1e-5)

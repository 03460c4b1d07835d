"""weights.py interpolate --pictures: strips from the PSNR network to the GAN, to choose alpha."""

import errno
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import weights
from images.files import Picture, as_seen, read_image, write_image, write_picture
from images.resize import imresize
from images.scores import psnr
from images.strips import centre_window
from images.tensors import to_image, to_tensor
from model import RRDBNet
from upscaling import alphas
from upscaling.alphas import SHOWN_SIDE
from upscaling.upscaler import Upscaler, enlarge
from utils import WriteError
from weights import WeightsError, save_generator


@pytest.fixture
def nets(tmp_path, photos, monkeypatch):
    """The PSNR network and the GAN; their files are in the current folder, beside photos/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("upscaling.devices.has_native_bf16", lambda device: False)
    torch.manual_seed(0)
    nets = [RRDBNet(scale=2, features=4, blocks=1, growth=4).eval() for _ in range(2)]
    save_generator(nets[0], "psnr.pth", "official")
    save_generator(nets[1], "gan.safetensors")
    return nets


def run(monkeypatch, *args, networks=("psnr.pth", "gan.safetensors")):
    monkeypatch.setattr(sys, "argv", ["weights.py", "interpolate", *networks, *map(str, args)])
    return weights.main()


def upscaled(net, path):
    with torch.no_grad():
        return to_image(net(to_tensor(read_image(path)))[0])


def test_a_strip_shows_each_alpha_and_the_original(nets, monkeypatch, capsys):
    write_image(imresize(read_image("photos/a.png"), 2), Path("hr/a.png"))
    assert run(monkeypatch, "--pictures", "photos", "--alpha", "0", "0.5", "1", "--hr", "hr") == 0
    written = sorted(path.as_posix() for path in Path("results").rglob("*.*"))
    assert written == [f"results/interpolated/{name}.png" for name in ("a", "b", "c", "sub/d")]

    half = RRDBNet(scale=2, features=4, blocks=1, growth=4).eval()
    for weight, a, b in zip(*(n.parameters() for n in (half, *nets)), strict=True):
        weight.data = (a.data + b.data) / 2
    shown = [upscaled(each, "photos/a.png") for each in (nets[0], half, nets[1])]
    shown.append(read_image("hr/a.png"))
    strip, width = read_image("results/interpolated/a.png"), shown[0].shape[1]
    # A label may be wider than its picture, which then stands in the middle of its cell.
    cell = (strip.shape[1] + 4) // 4
    below = np.pad(strip[-shown[0].shape[0] :], ((0, 0), (0, 4), (0, 0)))
    for i, picture in enumerate(shown):
        left = i * cell + (cell - 4 - width) // 2
        assert np.abs(below[:, left : left + width].astype(int) - picture).max() <= 1
    output = capsys.readouterr().out
    for alpha, picture in zip(("0", "0.5", "1"), shown, strict=False):
        expected = psnr(picture, shown[-1], 2)
        line = next(line for line in output.splitlines() if line.startswith(f"alpha {alpha} "))
        assert float(line.split()[2]) == pytest.approx(expected, abs=0.02)
    assert "mean of 1 images" in output and "4 of 4 strips are in results" in output


def test_an_ambiguous_original_is_told_before_the_work(nets, monkeypatch):
    for name in ("a_HR.png", "a_GT.png"):
        write_image(np.zeros((8, 8, 3), np.uint8), f"twice/{name}")
    write_image(np.zeros((8, 8, 3), np.uint8), "some/0.png")
    write_image(np.zeros((8, 8, 3), np.uint8), "some/ax4.png")
    with pytest.raises(weights.UsageError, match=r"a_"):
        run(monkeypatch, "--pictures", "some", "--hr", "twice", "-o", "strips")
    assert not Path("strips").exists()


def test_labels_say_alpha_and_psnr(nets, monkeypatch):
    image = read_image("photos/a.png")
    write_image(imresize(image, 2), Path("a.png"))
    drawn = []
    monkeypatch.setattr(alphas, "labelled_strip", lambda pictures, side: drawn.append(pictures))
    upscalers = {alpha: Upscaler(net, "cpu") for alpha, net in zip((0, 0.25), nets, strict=True)}
    _, scores = alphas.draw_strip(Picture(image), Path("a.png"), upscalers)
    assert list(drawn[0]) == [f"alpha {a:g}, {scores[a]:.2f} dB" for a in (0, 0.25)] + ["HR"]
    alphas.draw_strip(Picture(image), None, upscalers)
    assert list(drawn[1]) == ["alpha 0", "alpha 0.25"]


def test_strips_show_what_the_command_would_write(nets, random_image):
    """On white where it is clear, and gray where it is gray."""
    image, alpha = random_image(20, 24), np.full((20, 24), 255, np.uint8)
    alpha[:, :12] = 0
    image[:, :12] = (255, 0, 0)  # which nothing of is to be seen
    upscalers = {1.0: Upscaler(nets[1], "cpu", "fp32")}
    drawn, _ = alphas.draw_strip(Picture(image, alpha), None, upscalers)
    expected = as_seen(enlarge(Picture(image, alpha), upscalers[1.0]))
    left = (drawn.shape[1] - 48) // 2
    assert np.array_equal(drawn[-40:, left : left + 48], expected)
    assert (expected[:, :20] == 255).all()
    gray = np.repeat(image[..., :1], 3, -1)
    drawn, _ = alphas.draw_strip(Picture(gray, gray=True), None, upscalers)
    cell = drawn[-40:, left : left + 48]
    assert (cell == cell[..., :1]).all()


def test_strips_score_no_colours_that_nobody_sees(identity_weights, tmp_path):
    """A network that gives back its input, and a true image that hides something else."""
    rgb, alpha = np.full((24, 30, 3), (200, 30, 40), np.uint8), np.full((24, 30), 255, np.uint8)
    rgb[12:] += 20
    rgb[:, :12], alpha[:, :12] = 0, 0
    high = rgb.copy()
    high[:, :12] = 90
    write_picture(Picture(high, alpha), tmp_path / "high.png")
    upscalers = {1.0: Upscaler(weights.load_generator(identity_weights), "cpu", "fp32")}
    _, scores = alphas.draw_strip(Picture(rgb, alpha), tmp_path / "high.png", upscalers)
    assert scores == {1.0: math.inf}


def test_the_gray_centre_of_a_picture_in_colour_is_tinted_as_the_whole_is():
    gray = np.random.default_rng(0).integers(50, 200, (600, 600, 1), np.uint8).repeat(3, -1)
    gray[0, 0] = (255, 0, 0)
    upscaler = Upscaler(Tinting(), "cpu", "fp32")
    drawn, _ = alphas.draw_strip(Picture(gray), None, {1.0: upscaler})
    whole = enlarge(Picture(gray), upscaler)
    expected = as_seen(whole, centre_window((600, 600), SHOWN_SIDE))
    assert np.array_equal(drawn[-SHOWN_SIDE:], expected)
    assert np.ptp(expected.astype(int), -1).min() > 8


class Tinting(torch.nn.Module):
    """12 levels more red than the rest."""

    in_channels, scale = 3, 1

    def __init__(self):
        super().__init__()
        self.red = torch.nn.Parameter(torch.tensor([12 / 255, 0, 0])[:, None, None])

    def forward(self, x):
        return x + self.red


@pytest.mark.parametrize("with_original", [True, False])
def test_strips_show_the_centre_of_large_images(nets, with_original, monkeypatch, random_image):
    large = imresize(random_image(53, 70), 8)
    write_image(large, Path("large/x.png"))
    write_image(imresize(large, 2), Path("hr/x.png"))
    hr = ("--hr", "hr") if with_original else ()
    assert run(monkeypatch, "--pictures", "large", "--alpha", "1", *hr, "-o", "out") == 0
    strip = read_image("out/x.png")
    assert strip.shape[1] == (2 * SHOWN_SIDE + 4 if with_original else SHOWN_SIDE)
    top, left = (2 * 424 - SHOWN_SIDE) // 2, (2 * 560 - SHOWN_SIDE) // 2
    centre = (slice(top, top + SHOWN_SIDE), slice(left, left + SHOWN_SIDE))
    cells = [strip[-SHOWN_SIDE:, :SHOWN_SIDE], strip[-SHOWN_SIDE:, -SHOWN_SIDE:]]
    expected = [upscaled(nets[1], "large/x.png")[centre], read_image("hr/x.png")[centre]]
    for cell, picture in list(zip(cells, expected, strict=True))[: 1 + with_original]:
        assert np.abs(cell.astype(int) - picture).max() <= 1


def test_photographs_without_an_original_are_named(nets, monkeypatch, capsys):
    write_image(imresize(read_image("photos/a.png"), 2), Path("hr/a.png"))
    assert run(monkeypatch, "--pictures", "photos", "--alpha", "1", "--hr", "hr") == 0
    output = capsys.readouterr().out
    for name in ("b.png", "c.bmp", "sub/d.png"):
        assert f"No partner in hr: photos/{name}" in output
    assert "photos/a.png" not in output


def test_networks_that_take_no_colours_are_refused(nets, monkeypatch):
    rgba = RRDBNet(in_channels=4, scale=2, features=4, blocks=1, growth=4)
    save_generator(rgba, "rgba.pth")
    with pytest.raises(weights.UsageError, match=r"^rgba\.pth takes 4 channels; images have 3$"):
        run(monkeypatch, "--pictures", "photos", networks=("rgba.pth", "rgba.pth"))


def test_an_output_that_cannot_be_made_is_refused_at_once(nets, monkeypatch):
    Path("file").write_text("in the way")
    with pytest.raises(weights.UsageError, match="file/out cannot be made"):
        run(monkeypatch, "--pictures", "photos", "-o", "file/out")


def test_one_photograph_and_the_default_alphas(nets, monkeypatch, capsys):
    assert run(monkeypatch, "--pictures", "photos/a.png") == 0
    strip, width = read_image("results/interpolated/a.png"), read_image("photos/a.png").shape[1]
    assert strip.shape[1] >= len(weights.ALPHAS) * 2 * width
    assert "PSNR" not in capsys.readouterr().out


def test_a_bad_file_stops_no_other_and_no_photograph_is_overwritten(nets, monkeypatch, capsys):
    Path("photos/text.png").write_text("no picture")
    write_image(read_image("photos/a.png"), Path("photos/a.bmp"))
    assert run(monkeypatch, "--pictures", "photos", "-o", "photos/out") == 1
    captured = capsys.readouterr()
    assert "Failed: photos/text.png: " in captured.err
    assert "5 of 6 strips" in captured.out
    names = {path.name for path in Path("photos/out").rglob("*.*")}
    assert names == {"a.bmp.png", "a.png.png", "b.png", "c.png", "d.png"}  # as test.py's results
    assert run(monkeypatch, "--pictures", "photos", "-o", "photos/out") == 1
    assert "5 of 6 strips" in capsys.readouterr().out  # strips are no input
    before = Path("photos/a.png").read_bytes()
    with pytest.raises(weights.UsageError, match="is an input"):
        run(monkeypatch, "--pictures", "photos", "-o", "photos")
    write_image(read_image("photos/a.png"), Path("mine/a.bmp"))
    assert run(monkeypatch, "--pictures", "mine", "-o", "mine") == 0
    with pytest.raises(weights.UsageError, match=r"a\.png is an input"):
        run(monkeypatch, "--pictures", "mine", "-o", "mine")  # its strip is no photograph
    assert Path("photos/a.png").read_bytes() == before


@pytest.mark.parametrize(
    "args, message",
    [
        (["--pictures", "nowhere", "--alpha", "1"], "nowhere: no such file or folder"),
        (["--pictures", "photos", "--hr", "nowhere"], "--hr nowhere: no such folder"),
        (["--pictures", "photos", "--alpha", "2"], "alpha is 2"),
    ],
)
def test_pictures_that_cannot_be_made(args, message, nets, monkeypatch):
    with pytest.raises((WeightsError, weights.UsageError), match=message):
        run(monkeypatch, *args)
    assert not list(Path("results").rglob("*.png"))


def test_pictures_of_unlike_networks_are_refused(nets, monkeypatch):
    save_generator(RRDBNet(scale=2, features=8, blocks=1, growth=4), "other.pth")
    with pytest.raises(WeightsError, match="the PSNR network has features 4, not 8"):
        run(monkeypatch, "--pictures", "photos", networks=("psnr.pth", "other.pth"))


@pytest.mark.parametrize(
    "args, words",
    [
        (["--alpha", "0.5"], "-o OUT is missing"),
        (["-o", "x.pth"], "give one --alpha"),
        (["--alpha", "0", "1", "-o", "x.pth"], "give one --alpha"),
        (["--alpha", "1", "-o", "x.pth", "--hr", "hr"], "--hr DIR goes with --pictures"),
        (["--pictures", "photos", "--half"], "which --pictures does not write"),
    ],
)
def test_flags_that_do_not_go_together(args, words, nets, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, *args)
    assert exit.value.code == 2 and words in capsys.readouterr().err


def test_a_full_disk_ends_the_strips(nets, monkeypatch, capsys):
    def full(*_):
        raise WriteError("the disk is full", errno.ENOSPC)

    monkeypatch.setattr(alphas, "write_image", full)
    drawn, draw = [], alphas.draw_strip
    monkeypatch.setattr(alphas, "draw_strip", lambda *args: drawn.append(1) or draw(*args))
    assert run(monkeypatch, "--pictures", "photos", "--alpha", "0") == 1
    said = capsys.readouterr()
    assert len(drawn) == 2 and said.err.count("the disk is full") == 2
    assert "the other photographs were not tried" in said.err and "0 of 4 strips" in said.out
    for path in ("a.png", "b.png"):
        write_image(read_image(f"photos/{path}"), Path("two") / path)
    assert run(monkeypatch, "--pictures", "two", "--alpha", "0") == 1
    assert "not tried" not in capsys.readouterr().err  # there was no other


def test_no_photograph_beside_an_input_is_replaced_by_its_strip(nets, monkeypatch):
    write_image(read_image("photos/a.png"), Path("album/x.bmp"))
    write_image(read_image("photos/b.png"), Path("album/x.png"))
    before = Path("album/x.png").read_bytes()
    with pytest.raises(weights.UsageError, match=r"x\.png lies beside .*x\.bmp already"):
        run(monkeypatch, "--pictures", "album/x.bmp", "-o", "album")
    assert Path("album/x.png").read_bytes() == before

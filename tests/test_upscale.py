"""test.py, the command: files and folders in, PNG files and scores out."""

import argparse
import csv
import json
import math
import os
import re
import runpy
import subprocess
import sys
import threading
import time
import types
import weakref
from datetime import timedelta
from pathlib import Path
from unicodedata import normalize
from unittest.mock import Mock

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from programs import load_program

import upscaling.upscaler
from images.files import Picture, read_image, read_picture, write_image, write_picture
from images.filetypes import WRITTEN
from images.kinds import ImageError
from images.resize import enlarge_nearest, imresize
from images.scores import as_text, psnr, ssim
from images.tensors import to_image, to_tensor
from model import RRDBNet
from training.ranks import Ranks
from upscaling.comparing import upscale_file
from upscaling.inputs import UsageError, find_partner, partners_in
from upscaling.jobs import Job
from upscaling.report import PageImage, write_page
from upscaling.results import Results
from upscaling.upscaler import Upscaler, enlarge
from weights import load_generator, save_generator

ROOT = Path(__file__).parents[1]
command = load_program("test")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return RRDBNet(scale=2, features=4, blocks=1, growth=4).eval()


@pytest.fixture
def workplace(tmp_path, photos, net, monkeypatch):
    """A folder with photos/ and a trained generator."""
    monkeypatch.chdir(tmp_path)
    Path("checkpoints/mine").mkdir(parents=True)
    save_generator(net, "checkpoints/mine/gan.safetensors")
    return tmp_path


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["test.py", *map(str, args), "--precision", "fp32"])
    return command.main(command.Ranks())


def upscaled(net, path):
    with torch.no_grad():
        return to_image(net(to_tensor(read_image(path)))[0])


@pytest.mark.parametrize("kind", ["png", "same"])
def test_the_identity_gives_back_every_pixel(kind, identity_weights, tmp_path, monkeypatch):
    """A network that gives back its input: the results are the pixels that others wrote."""
    deep = np.random.default_rng(0).integers(0, 2**16, (40, 48, 4), np.uint16)
    photo, alpha = (deep >> 8).astype(np.uint8), deep[..., 3:] | 1  # nowhere invisible
    turn = dict(photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    multiplied = np.rint(deep[..., :3] * (alpha / 65535)).astype(np.uint16)
    straight = np.minimum(np.floor(multiplied * 65535.0 / alpha + 0.5), 65535)
    files = {  # what is written, how, and what it shows
        "turned": (photo[..., :3], turn, np.rot90(photo[..., :3], -1)),
        "turned_16": (deep[..., :3], turn, np.rot90(deep[..., :3], -1)),
        "white_is_0": (deep[..., 0], dict(photometric="miniswhite"), 65535 - deep[..., 0]),
        "premultiplied": (
            np.dstack([multiplied, alpha]),
            dict(photometric="rgb", extrasamples=["assocalpha"]),
            np.dstack([straight, alpha]),
        ),
        "planes": (
            np.moveaxis(deep, -1, 0),
            dict(photometric="rgb", planarconfig="separate", extrasamples=["unspecified"]),
            deep[..., :3],
        ),
    }
    (tmp_path / "in").mkdir()
    for name, (pixels, options, _) in files.items():
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", pixels, metadata=None, **options)
    gray_alpha = imagecodecs.png_encode(np.ascontiguousarray(deep[..., 2:] | 1))
    (tmp_path / "in" / "gray_alpha.png").write_bytes(gray_alpha)
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "in", "--weights", identity_weights, "--format", kind) == 0
    for name, (*_, shown) in files.items():
        result = tmp_path / "results" / f"{name}.{'tif' if kind == 'same' else 'png'}"
        whole = tifffile.imread if kind == "same" else lambda path: imagecodecs.imread(str(path))
        assert np.array_equal(whole(result), shown), name
    assert np.array_equal(
        imagecodecs.imread("results/gray_alpha.png"), imagecodecs.png_decode(gray_alpha)
    )


def test_without_a_trained_run_the_weights_in_the_box_serve(tmp_path, photos, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "photos/a.png") == 0
    expected = upscaled(load_generator("compact_x4_real"), "photos/a.png").astype(int)
    assert np.abs(read_image("results/a.png") - expected).max() <= 1  # another memory format
    output = capsys.readouterr().out
    assert "compact_x4_real (x4)" in output and "weights in the box" in output


def test_other_weights_in_the_box_are_named(workplace, monkeypatch, capsys):
    """From any folder, and before what was trained there."""
    assert run(monkeypatch, "photos/a.png", "--weights", "compact_x4_psnr") == 0
    box = Path(__file__).parents[1] / "checkpoints"
    named = load_generator(box / "compact_x4_psnr.safetensors")
    expected = upscaled(named, "photos/a.png").astype(int)
    assert np.abs(read_image("results/a.png") - expected).max() <= 1  # another memory format
    assert "compact_x4_psnr (x4) on" in capsys.readouterr().out


def test_a_folder_becomes_png_files_in_the_same_tree(workplace, net, monkeypatch, capsys):
    assert run(monkeypatch, "photos") == 0
    written = sorted(path.as_posix() for path in Path("results").rglob("*.*"))
    assert written == [f"results/{name}.png" for name in ("a", "b", "c", "sub/d")]
    assert np.array_equal(read_image("results/c.png"), upscaled(net, "photos/c.bmp"))
    output = capsys.readouterr().out
    assert "mine/gan.safetensors (x2)" in output and "4 of 4 images upscaled" in output


def test_reading_the_network_and_writing_overlap(workplace, monkeypatch):
    """On b.png the network waits until c.bmp is being read and a.png is being written."""
    begun = {name: threading.Event() for name in ("read c", "write a")}
    enlarge = command.enlarge

    def noting_read(path, *rest):
        if path.name == "c.bmp":
            begun["read c"].set()
        return read_picture(path, *rest)

    def noting_write(picture, path, *rest):
        if path.name == "a.png":
            begun["write a"].set()
        return write_picture(picture, path, *rest)

    def waiting(picture, *rest):
        if picture.rgb.shape[1] == 64:  # b.png
            assert all(event.wait(60) for event in begun.values())
        return enlarge(picture, *rest)

    monkeypatch.setattr("upscaling.jobs.read_picture", noting_read)
    monkeypatch.setattr("upscaling.saving.write_picture", noting_write)
    monkeypatch.setattr(command, "enlarge", waiting)
    assert run(monkeypatch, "photos") == 0


@pytest.fixture
def textures(workplace, random_image):
    """Small files of one size, one of which has alpha and one is broken, and others between."""
    rng = np.random.default_rng(1)
    for i in range(11):
        write_image(rng.integers(0, 256, (24, 20, 3), np.uint8), workplace / f"in/{i:02}.png")
    rgba = rng.integers(0, 256, (24, 20, 4), np.uint8)
    Image.fromarray(rgba).save(workplace / "in/02.png")
    (workplace / "in/05.png").write_bytes(b"no picture")
    write_image(random_image(20, 24), workplace / "in/07.png")
    tifffile.imwrite(workplace / "in/x.tif", np.full((24, 20, 3), 999, np.uint16))
    return workplace / "in"


def test_small_pictures_of_one_size_go_through_the_network_at_once(
    textures, net, monkeypatch, capsys
):
    together, forward = [], RRDBNet.forward

    def noting(net, low_res):
        together.append(len(low_res))
        return forward(net, low_res)

    monkeypatch.setattr(RRDBNet, "forward", noting)
    assert run(monkeypatch, "in", "--tile", "96") == 1
    # (96 / 2)^2 pixels are four of them; that with alpha is two. No. 5 is none, no. 7 and the
    # TIFF file of 16 bits are no others' like.
    assert together == [4, 1, 2, 1, 3, 1]
    assert "11 of 12 images upscaled" in capsys.readouterr().out
    monkeypatch.setattr(RRDBNet, "forward", forward)
    for path in sorted(textures.iterdir()):
        if path.name != "05.png":
            picture = read_picture(path)
            alone = upscaling.upscaler.enlarge(picture, Upscaler(net, "cpu", "fp32"))
            result = read_picture(Path("results") / f"{path.stem}.png")
            for ours, expected in ((result.rgb, alone.rgb), (result.alpha, alone.alpha)):
                assert (ours is None) == (expected is None)
                if ours is not None:
                    assert np.abs(ours.astype(int) - expected).max() <= ours.itemsize**2


def test_one_of_several_small_pictures_may_fail(textures, monkeypatch, capsys):
    forward = RRDBNet.forward

    def failing(net, low_res):
        if len(low_res) > 1 or low_res[0, 0, 0, 0] == bad:
            raise RuntimeError("a fault of the device")
        return forward(net, low_res)

    bad = to_tensor(read_image(textures / "03.png"))[0, 0, 0, 0]
    monkeypatch.setattr(RRDBNet, "forward", failing)
    for name in ("02.png", "05.png"):  # with alpha, and broken
        (textures / name).unlink()
    assert run(monkeypatch, "in") == 1
    captured = capsys.readouterr()
    assert re.findall("Failed: (.*)", captured.err) == ["in/03.png: a fault of the device"]
    assert "9 of 10 images upscaled" in captured.out
    assert len(list(Path("results").iterdir())) == 9


def test_one_file_goes_where_it_is_told(workplace, net, monkeypatch):
    assert run(monkeypatch, "photos/a.png", "-o", "new/out") == 0
    assert np.array_equal(read_image("new/out/a.png"), upscaled(net, "photos/a.png"))


def test_a_dot_is_upscaled_too(workplace, monkeypatch, random_image):
    write_image(random_image(1, 1), workplace / "dot" / "x.png")
    assert run(monkeypatch, "dot") == 0
    assert read_image("results/x.png").shape == (2, 2, 3)


def test_bad_files_stop_no_other(workplace, monkeypatch, capsys):
    Path("photos/a text.png").write_text("no picture")
    Path("photos/cut.png").write_bytes(Path("photos/a.png").read_bytes()[:300])
    assert run(monkeypatch, "photos") == 1
    captured = capsys.readouterr()
    assert captured.err.count("Failed: ") == 2
    assert "a text.png" in captured.err and "cut.png" in captured.err
    assert "4 of 6 images upscaled" in captured.out
    assert len(list(Path("results").rglob("*.png"))) == 4


def test_tiles_shrink_until_they_fit_in_memory(workplace, monkeypatch, capsys, random_image):
    upscale, tried = upscaling.upscaler.upscale, []

    def greedy(net, image, tile, **options):
        tried.append((tile, options["batch"]))
        if tile == 0 or tile > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upscale(net, image, tile, **options)

    write_image(imresize(random_image(20, 30), 8), workplace / "large" / "x.png")
    assert run(monkeypatch, "large", "--tile", "0", "-o", "whole") == 0
    monkeypatch.setattr(upscaling.upscaler, "upscale", greedy)
    assert run(monkeypatch, "large", "--tile", "0", "--batch", "4") == 0
    # At first one at a time, of the same size.
    assert tried == [(0, 4), (0, 1), (120, 1), (64, 1)]
    out = capsys.readouterr().out
    assert "goes on with one tile at a time" in out and "of 0 pixels" not in out
    assert "this goes on with tiles of 64 pixels" in out
    difference = read_image("whole/x.png").astype(int) - read_image("results/x.png")
    assert np.abs(difference).max() <= 1


def test_a_shortage_of_memory_changes_no_other_picture_and_is_told_once(random_image, monkeypatch):
    upscale, tried, told = upscaling.upscaler.upscale, [], []

    def greedy(net, image, tile, batch, progress):
        tried.append((tile, batch))
        if len(tried) in (1, 2, 4, 5):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upscale(net, image, tile, batch=batch)

    monkeypatch.setattr(upscaling.upscaler, "upscale", greedy)
    monkeypatch.setattr(upscaling.upscaler.tqdm, "write", told.append)
    upscaler = Upscaler(FarSighted(), "cpu", "fp32", tile=128, batch=2)
    for seed in range(3):
        upscaler(random_image(20, 140, seed))
    attempts = [(128, 2), (128, 1), (64, 1)]
    assert tried == [*attempts, *attempts, (128, 2)]
    smaller = ("one tile at a time", "tiles of 64 pixels")
    assert told == [f"not enough memory; this goes on with {each}" for each in smaller]


class Hungry(torch.nn.Module):
    """There is too little memory for its first tile, after which it asks what is still held."""

    scale, in_channels = 1, 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.maps = []

    def forward(self, x):
        features = x + 1
        self.maps.append(weakref.ref(features))
        if len(self.maps) == 1:
            raise MemoryError
        assert self.maps[0]() is None
        return x


def test_a_second_try_with_less_memory_begins_when_what_the_first_held_is_gone(random_image):
    net, image = Hungry(), random_image(100, 70)
    result = Upscaler(net, "cpu", tile=0)(image)
    assert len(net.maps) > 2 and np.array_equal(result, image)


def test_too_little_memory_and_a_full_disk_stop_no_other(workplace, monkeypatch, capsys):
    upscale = upscaling.upscaler.upscale

    def greedy(net, image, tile, **options):
        if image.shape[1] == 48:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if image.shape[1] == 64:
            raise OSError(28, "No space left on device")
        return upscale(net, image, tile, **options)

    monkeypatch.setattr(upscaling.upscaler, "upscale", greedy)
    assert run(monkeypatch, "photos") == 1
    errors = capsys.readouterr().err
    assert "photos/a.png: not enough memory (" in errors
    assert "photos/b.png: [Errno 28] No space left" in errors
    assert len(list(Path("results").rglob("*.png"))) == 2


def test_what_is_not_finite_in_half_precision_is_done_again_in_fp32(
    workplace, net, monkeypatch, capsys
):
    upscale = upscaling.upscaler.upscale

    def overflowing(*arguments, **options):
        if torch.is_autocast_enabled("cpu"):
            raise FloatingPointError("the network's output is not finite")
        return upscale(*arguments, **options)

    monkeypatch.setattr(upscaling.upscaler, "upscale", overflowing)
    bf16 = torch.bfloat16
    monkeypatch.setattr(upscaling.upscaler, "choose_precision", lambda name, device: bf16)
    assert run(monkeypatch, "photos/a.png") == 0
    assert "once more in fp32" in capsys.readouterr().out
    assert np.array_equal(read_image("results/a.png"), upscaled(net, "photos/a.png"))
    large = imresize(read_image("photos/a.png"), 4)
    assert "at most" in Upscaler(net, "cpu", tile=64).what_tiles_change(large)


def test_a_network_that_gives_no_finite_numbers_is_a_failure(workplace, net, monkeypatch, capsys):
    with torch.no_grad():
        net.conv_last.weight.fill_(3e38)
    save_generator(net, "wild.pth")
    assert run(monkeypatch, "photos/a.png", "--weights", "wild.pth") == 1
    assert "photos/a.png: the network's output is not finite" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- kinds of files


def test_16_bits_gray_and_profile_come_out_as_they_went_in(workplace, net, monkeypatch):
    pixels = read_image("photos/a.png")
    deep = pixels.astype(np.uint16) * 257 + 3
    gray = np.repeat(deep[..., :1], 3, -1)
    Path("kinds").mkdir()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_picture(Picture(deep, profile=profile), "kinds/deep.png")
    write_picture(Picture(gray, gray=True), "kinds/gray.tif")
    assert run(monkeypatch, "kinds", "--format", "same") == 0
    for name, given in (("deep.png", deep), ("gray.tif", gray)):
        with torch.no_grad():
            expected = net(torch.from_numpy(given / 65535).permute(2, 0, 1)[None].float())[0]
        expected = expected.clamp(0, 1).permute(1, 2, 0).double().numpy() * 65535
        if name == "gray.tif":
            expected = expected.mean(-1, keepdims=True)
        result = read_picture(f"results/{name}")
        assert result.rgb.dtype == np.uint16 and result.gray == (name == "gray.tif")
        assert np.abs(result.rgb - expected).max() <= 1
    assert read_picture("results/deep.png").profile == profile


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX's")
def test_what_is_not_read_is_a_failure_with_its_reason(workplace, monkeypatch, capsys):
    os.mkfifo("photos/pipe.png")
    Path("photos/gone.jpg").symlink_to("nowhere.jpg")
    Path("photos/cat.CR2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    Path("photos/text.jpg").write_text("no picture")
    Path("photos/notes.txt").write_text("no picture")
    assert run(monkeypatch, "photos") == 1
    output, errors = capsys.readouterr()
    assert "4 of 5 images upscaled" in output
    failures = [line for line in errors.splitlines() if line.startswith("Failed: ")]
    for name, reason in {
        "pipe.png": "a pipe",
        "gone.jpg": "leads nowhere",
        "cat.CR2": "develop it",
        "text.jpg": "no image, or a damaged one",
    }.items():
        (line,) = (line for line in failures if name in line)
        assert reason in line
    assert len(failures) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX's")
def test_a_pipe_or_a_dead_link_is_no_input(workplace, monkeypatch):
    os.mkfifo("pipe.png")
    Path("dead.png").symlink_to("nowhere.png")
    for name, words in {"pipe.png": "a pipe; give a file", "dead.png": "leads nowhere"}.items():
        with pytest.raises(command.UsageError, match=f"{name}: .*{words}"):
            run(monkeypatch, name)


def test_a_folder_of_what_is_not_read_says_why(workplace, monkeypatch):
    Path("raws").mkdir()
    for name in ("a.nef", "b.nef"):
        Path("raws", name).write_bytes(b"MM\0*")
    with pytest.raises(
        command.UsageError, match=r"holds no PNG.*\n.*a\.nef, .*b\.nef: .*develop it"
    ):
        run(monkeypatch, "raws")


def test_types_that_are_not_written_become_png(workplace, monkeypatch, capsys, identity_weights):
    Path("in").mkdir()
    pixels = read_image("photos/a.png")
    for name in ("a.tga", "b.ppm", "c.JFIF", "d.jp2"):
        format = {".JFIF": "JPEG"}.get(Path(name).suffix)
        Image.fromarray(pixels).save(Path("in", name), format)
    Image.fromarray(pixels).save("in/e", "PNG")
    Image.fromarray(pixels).save("in/f.gif")
    flags = ("--weights", identity_weights, "--format", "same")
    assert run(monkeypatch, "in", *flags) == 0
    written = sorted(path.name for path in Path("results").iterdir())
    assert written == ["a.tga", "b.png", "c.jfif", "d.png", "e.png", "f.png"]
    said = capsys.readouterr().out
    assert "so their results are PNG: .jp2, .ppm, no suffix\n" in said
    assert "GIFs that do not move are PNG now" in said
    for name in ("a.tga", "b.png", "d.png", "e.png"):
        assert np.array_equal(np.array(Image.open(f"results/{name}").convert("RGB")), pixels)
    assert Image.open("results/c.jfif").format == "JPEG"
    assert run(monkeypatch, "in/e", *flags, "-o", "one") == 0
    assert [path.name for path in Path("one").iterdir()] == ["e.png"]


def test_transparent_images_have_no_halo(workplace, monkeypatch):
    colour = RRDBNet(scale=2, features=4, blocks=1, growth=4).eval()
    save_generator(colour, "net.pth")
    opaque = Picture(read_image("photos/a.png"))
    write_picture(opaque, "in/opaque.png")
    flat = np.full_like(opaque.rgb, 200)
    hole = np.full(flat.shape[:2], 255, np.uint8)
    hole[10:20, 10:20] = 0
    write_picture(Picture(flat), "in/flat.png")
    black_under = np.where(hole[..., None] > 0, flat, 0)
    write_picture(Picture(black_under, hole), "in/hole.png")
    write_picture(Picture(opaque.rgb, np.full_like(hole, 77)), "in/even.png")
    assert run(monkeypatch, "in", "--weights", "net.pth") == 0
    read = {
        name: read_picture(f"results/{name}.png") for name in ("opaque", "flat", "hole", "even")
    }
    assert np.array_equal(read["hole"].rgb, read["flat"].rgb)  # nothing of the black is seen
    alpha = read["hole"].alpha
    assert (alpha[24:36, 24:36] == 0).all() and (alpha[:12] == 255).all()
    assert np.array_equal(read["even"].rgb, read["opaque"].rgb)
    assert (read["even"].alpha == 77).all() and read["opaque"].alpha is None


def test_the_format_and_the_name_of_results(workplace, monkeypatch, capsys):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save("photos/e.gif", save_all=True, append_images=frames[1:])
    assert run(monkeypatch, "photos", "--format", "same", "--suffix", "_x2") == 0
    written = sorted(
        path.relative_to("results").as_posix() for path in Path("results").rglob("*.*")
    )
    assert written == ["a_x2.png", "b_x2.png", "c_x2.bmp", "e_x2.gif", "sub/d_x2.png"]
    assert "photos/e.gif: all 2 frames" in capsys.readouterr().out
    assert run(monkeypatch, "photos/a.png", "--format", "jpg", "-o", "out") == 0
    assert Image.open("out/a.jpg").format == "JPEG"
    assert run(monkeypatch, "photos/a.png", "--format", "webp", "-o", "out") == 0
    assert Image.open("out/a.webp").format == "WEBP"


def test_skip_existing_goes_on_where_it_stopped(workplace, monkeypatch, capsys):
    assert run(monkeypatch, "photos") == 0
    Path("results/c.png").unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("results").rglob("*.png")}
    assert run(monkeypatch, "photos", "--skip-existing") == 0
    output = capsys.readouterr().out
    assert "3 images had a result already" in output and "1 of 1 images upscaled" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Path("results/c.png").exists()
    assert run(monkeypatch, "photos", "--skip-existing") == 0  # nothing is left to do
    output = capsys.readouterr().out
    assert "4 images had a result already" in output and "0 of 0 images upscaled" in output


def test_a_result_without_the_strip_that_is_wanted_is_done_again(workplace, monkeypatch, capsys):
    assert run(monkeypatch, "photos") == 0
    assert run(monkeypatch, "photos", "--compare", "--skip-existing") == 0
    assert "4 of 4 images upscaled" in capsys.readouterr().out
    Path("results/compare/a.png").unlink()
    assert run(monkeypatch, "photos", "--compare", "--skip-existing") == 0
    assert "1 of 1 images upscaled" in capsys.readouterr().out
    assert Path("results/compare/a.png").exists()


def test_results_never_lie_among_the_pictures_of_the_page(workplace, monkeypatch, random_image):
    write_image(random_image(12, 12), workplace / "pages/a.png")
    write_image(random_image(12, 12), workplace / "pages/Index_files/a.png.ours.jpg")
    with pytest.raises(UsageError, match="page's own pictures: leave out --report"):
        run(monkeypatch, "pages", "--format", "same", "--report")
    assert not Path("results").exists()
    assert run(monkeypatch, "pages", "--format", "same") == 0


def test_a_pattern_may_begin_above_the_folder_of_a_named_result(workplace, monkeypatch):
    for _ in range(2):
        assert run(monkeypatch, "p*/a.png", "-o", "photos/large.png") == 0
    large = read_image("photos/large.png")
    assert len(large) == 2 * len(read_image("photos/a.png"))


def test_colours_that_nobody_sees_are_not_scored(identity_weights, tmp_path, monkeypatch):
    """A network that gives back its input, and true images that hide something else."""
    monkeypatch.chdir(tmp_path)
    rgb = np.full((24, 30, 3), (200, 30, 40), np.uint8)
    rgb[12:] += 20
    alpha = np.full((24, 30), 255, np.uint8)
    alpha[:, :12] = 0
    for folder, hidden in (("low", 0), ("high", 90)):
        shown = rgb.copy()
        shown[:, :12] = hidden
        write_picture(Picture(shown, alpha), tmp_path / folder / "a.png")
    weights = ["--weights", identity_weights]
    assert run(monkeypatch, "low", "--hr", "high", *weights) == 0
    with open("results/metrics.csv", newline="") as file:
        row = next(csv.DictReader(file))
    assert row["psnr_rgb"] == row["bicubic_psnr_rgb"] == row["lr_psnr"] == "inf"


@pytest.mark.parametrize("flag, name", [("--report", "index.html"), ("--hr=hr", "metrics.csv")])
def test_somebody_elses_page_or_table_is_not_replaced(flag, name, workplace, monkeypatch, capsys):
    Path("site").mkdir()
    write_image(imresize(read_image("photos/a.png"), 2), workplace / "hr" / "a.png")
    foreign = Path("site", name)
    foreign.write_text("image,label\n<title>My photographs</title>\n")
    with pytest.raises(UsageError, match=rf"{name} is no .*choose another"):
        run(monkeypatch, "photos", "-o", "site", flag)
    assert [path.name for path in Path("site").iterdir()] == [name]
    foreign.unlink()
    for _ in range(2):  # its own it replaces
        assert run(monkeypatch, "photos", "-o", "site", flag) == 0
        assert foreign.exists()


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".gif", ".tga"])
def test_no_type_of_file_is_wider_than_is_said(suffix, tmp_path):
    side = WRITTEN[suffix].side
    write_picture(Picture(np.zeros((1, side, 3), np.uint8)), tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as file:
        assert file.width == side
    with pytest.raises(ImageError, match="cannot be written"):
        write_picture(Picture(np.zeros((1, side + 1, 3), np.uint8)), tmp_path / f"b{suffix}")


def test_a_result_that_is_too_large_for_its_type_is_refused_before_the_work(
    workplace, monkeypatch, capsys
):
    write_image(np.zeros((4, 8192, 3), np.uint8), workplace / "long" / "a.png")
    with monkeypatch.context() as patched:
        patched.setattr(upscaling.upscaler, "upscale", None)
        assert run(monkeypatch, "long", "--format", "webp") == 1
    told = "a.png: its result would be 16384x8 pixels, and WEBP holds at most 16383 a side"
    assert told in capsys.readouterr().err
    assert run(monkeypatch, "long", "--format", "webp", "--outscale", "1.9") == 0


def test_a_process_without_an_image_waits_for_the_others(workplace, monkeypatch):
    """As the fourth of four processes does that share three images."""
    monkeypatch.setattr(command.Ranks, "gather", lambda self, own: own)
    monkeypatch.setattr(sys, "argv", ["test.py", "photos/a.png", "--device", "cpu"])
    assert command.main(command.Ranks(rank=3, count=4)) == 0
    assert not list(Path("results").rglob("*.png"))


ODD = {  # what Pillow can write of each mode
    "1": ("png", "bmp", "tif", "gif"),
    "L": ("png", "jpg", "bmp", "tif", "webp", "gif"),
    "LA": ("png", "tif", "webp"),
    "P": ("png", "bmp", "tif", "gif"),
    "RGB": ("png", "jpg", "bmp", "tif", "webp", "gif"),
    "RGBA": ("png", "tif", "webp"),
    "CMYK": ("jpg", "tif"),
    "YCbCr": ("jpg", "tif"),
    "I;16": ("png", "tif"),
}


def test_a_hundred_odd_files_and_a_hundred_broken_ones(workplace, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    good, broken = set(), set()
    kinds = [(mode, kind) for mode, kinds in ODD.items() for kind in kinds]
    for i in range(100):
        mode, kind = kinds[i % len(kinds)]
        height, width = rng.integers(1, 40, 2)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65536, (height, width), np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8))
            image = image.convert("RGB").convert(mode) if mode not in ("LA", "RGBA") else image
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 10))  # 0 and 9 mean nothing
        path = Path(f"fuzz/odd {i} ü/{mode.replace(';', '')}.{kind}")
        path.parent.mkdir(parents=True)
        image.save(path, **({"exif": exif} if kind in ("png", "jpg", "webp") else {}))
        good.add(path)
    sources = sorted(good)
    for i in range(100):
        content = bytearray(sources[i].read_bytes())
        if i % 4 == 0:
            content = content[: rng.integers(0, len(content) // 2)]
        elif i % 4 == 1:
            content[: len(content) // 2] = rng.bytes(len(content) // 2)
        elif i % 4 == 2:
            content[:8] = bytes(8)
        else:
            content = bytearray(rng.bytes(int(rng.integers(0, 400))))
        path = Path(f"fuzz/broken/{i}{sources[i].suffix}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        broken.add(path)
    assert run(monkeypatch, "fuzz", "-o", "out") == 1
    output = capsys.readouterr()
    for path in good:
        assert f"Failed: {path}" not in output.err
        assert Path("out", path.relative_to("fuzz")).with_suffix(".png").exists(), path
    failed = {path for path in broken if f"{path}: " in output.err}
    for path in broken - failed:  # a lucky cut leaves a picture, as of an uncompressed one
        assert Path("out", path.relative_to("fuzz")).with_suffix(".png").exists(), path
    assert len(failed) >= 90
    assert "Traceback" not in output.err


@pytest.mark.slow
def test_two_processes_share_a_folder(workplace, monkeypatch):
    write_image(imresize(read_image("photos/a.png"), 2), workplace / "hr/a.png")
    write_image(imresize(read_image("photos/sub/d.png"), 2), workplace / "hr/d.png")
    Path("photos/broken.png").write_text("no picture")
    assert run(monkeypatch, "photos", "--hr", "hr", "-o", "one") == 1
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = ["photos", "--hr", "hr", "-o", "two", "--report", "--precision", "fp32"]
    # torchrun prints every process's end with status 1 as a fault; the status is what counts.
    command_line = [*torchrun, command.__file__, *arguments]
    shared = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
    assert shared.returncode == 1
    assert shared.stdout.count("4 of 5 images upscaled") == 1
    assert shared.stderr.count("Failed: photos/broken.png") == 1
    for path in Path("one").rglob("*.*"):
        assert Path("two", path.relative_to("one")).read_bytes() == path.read_bytes(), path
    page = Path("two/index.html").read_text("utf-8")
    assert '"name": "a.png"' in page and '"name": "sub/d.png"' in page


# ----------------------------------------------------------------------------------------- quality


def test_by_default_bf16_is_for_8_bits_only(workplace, net, monkeypatch):
    """Where the hardware has it; emulated, it computes the same."""
    monkeypatch.setattr("upscaling.devices.has_native_bf16", lambda device: True)
    deep = read_image("photos/a.png").astype(np.uint16) * 257
    write_picture(Picture(deep), "deep/a.png")
    monkeypatch.setattr(sys, "argv", ["test.py", "deep"])
    assert command.main(command.Ranks()) == 0
    with torch.no_grad():
        exact = to_image(net(to_tensor(deep))[0], np.uint16)
    difference = np.abs(read_picture("results/a.png").rgb.astype(int) - exact)
    assert difference.max() <= 2  # bf16's 8 bits would be off by hundreds
    monkeypatch.setattr(sys, "argv", ["test.py", "photos/a.png"])
    assert command.main(command.Ranks()) == 0
    difference = np.abs(read_image("results/a.png").astype(int) - upscaled(net, "photos/a.png"))
    assert 0 < difference.max() <= 2  # so 8 bits did go through bf16


def test_outscale_resizes_from_the_networks_scale(workplace, net, monkeypatch):
    expected = upscaled(net, "photos/a.png")
    for scale in ("3", "1.5"):
        assert run(monkeypatch, "photos/a.png", "--outscale", scale) == 0
        resized = imresize(expected, float(scale) / 2)
        assert np.array_equal(read_image("results/a.png"), resized)
    write_picture(
        Picture(
            read_image("photos/a.png")[:50], np.arange(50 * 48, dtype=np.uint8).reshape(50, 48)
        ),
        "alpha/a.png",
    )
    for scale in (3, 4.55, 1.1):  # 50 * 1.1 is 55.00000000000001
        size = [math.ceil(round(side * scale, 6)) for side in (50, 48)]
        write_image(np.zeros((*size, 3), np.uint8), workplace / "hr/a.png")
        against = ("--hr", "hr", "--compare")
        assert run(monkeypatch, "alpha", "--outscale", scale, *against) == 0
        assert list(read_picture("results/a.png").alpha.shape) == size


def test_the_ensemble_is_the_mean_of_eight(workplace, net, monkeypatch):
    image, total = read_image("photos/a.png"), 0
    for quarters in range(4):
        for flip in (lambda a: a, np.fliplr):
            given = np.ascontiguousarray(flip(np.rot90(image, quarters)))
            with torch.no_grad():
                result = net(to_tensor(given))[0].permute(1, 2, 0).numpy()
            total = total + np.rot90(flip(result), -quarters) / 8
    assert run(monkeypatch, "photos/a.png", "--ensemble") == 0
    expected = (total * 255).clip(0, 255)
    assert np.abs(read_image("results/a.png") - expected).max() <= 0.51


def test_batches_of_tiles_and_what_tiles_change(workplace, monkeypatch, capsys, random_image):
    write_image(imresize(random_image(20, 30), 8), workplace / "large" / "x.png")
    assert run(monkeypatch, "large", "--tile", "64", "-o", "one") == 0
    assert run(monkeypatch, "large", "--tile", "64", "--batch", "3", "--check-tiles") == 0
    difference = read_image("one/x.png").astype(int) - read_image("results/x.png")
    assert np.abs(difference).max() <= 1
    assert re.search(r"x.png: tiles differ .* at most [01]/255", capsys.readouterr().out)


class FarSighted(torch.nn.Module):
    """Each pixel, less the mean of all that it is given, or of 17 x 17 around it."""

    in_channels, scale = 3, 1

    def __init__(self, radius=None):
        super().__init__()
        self.unused, self.radius = torch.nn.Parameter(torch.zeros(1)), radius

    def forward(self, x):
        if self.radius is None:
            return x - x.mean((2, 3), keepdim=True) + 0.5
        side = 2 * self.radius + 1
        return torch.nn.functional.avg_pool2d(x, side, 1, self.radius)  # with zeros around


@pytest.mark.parametrize(
    "side, tile, said",
    [
        (1000, 64, r"tiles differ .* at most \d+/255, [\d.]+/255 on average$"),
        (1000, 240, "it is one tile"),
        (100, 64, r"tiles differ .* on average \(of its central 100x100 pixels\)"),
        (60, 64, "too large to compare with"),
        (100, 120, r"of its central 100x100 pixels\)"),  # and 32 from each other side
    ],
)
def test_tiles_are_compared_with_as_much_as_memory_holds(
    side, tile, said, random_image, monkeypatch
):
    monkeypatch.setattr(upscaling.upscaler, "largest_whole", lambda net, device: side)
    upscaler, given = Upscaler(FarSighted(), "cpu", "fp32", tile=tile, wrap=tile == 120), []
    measure = upscaler.tile_difference
    monkeypatch.setattr(
        upscaler, "tile_difference", lambda part: given.append(part) or measure(part)
    )
    image = imresize(random_image(20, 30), 8)
    assert re.search(said, upscaler.what_tiles_change(image))
    if side == 100 and tile == 64:
        assert np.array_equal(given[0], image[30:130, 70:170])


def test_too_little_memory_for_a_comparison_is_no_failure(random_image, monkeypatch):
    upscaler = Upscaler(FarSighted(), "cpu", "fp32", tile=64)
    monkeypatch.setattr(upscaler, "tile_difference", Mock(side_effect=MemoryError))
    said = upscaler.what_tiles_change(imresize(random_image(20, 30), 8))
    assert said == "not enough memory to compare with the whole"
    monkeypatch.setattr(upscaler, "tile_difference", Mock(side_effect=RuntimeError("a fault")))
    with pytest.raises(RuntimeError, match="a fault"):
        upscaler.what_tiles_change(imresize(random_image(20, 30), 8))


@pytest.mark.parametrize(
    "channels, scale, options, bytes_a_pixel",
    [
        (3, 4, {}, 3 * 16 * 16),  # three maps of 4 features in fp32, 16 times as large
        (3, 1, {}, 16 * 16),  # 16 of the input's size, for Winograd's convolutions
        (3, 4, {"ensemble": True}, 3 * 16 * 16),  # one turn after the other
        (1, 4, {"ensemble": True}, 3 * 3 * 16 * 16),  # each colour is an image
    ],
)
def test_a_whole_takes_no_more_than_half_of_the_memory(
    channels, scale, options, bytes_a_pixel, monkeypatch
):
    free = 2 * bytes_a_pixel * 200**2
    monkeypatch.setattr(upscaling.devices, "available_memory", lambda: free)
    sizes = dict(scale=scale, features=4, blocks=1, growth=4)
    net = RRDBNet(in_channels=channels, out_channels=channels, **sizes).eval()
    upscaler = Upscaler(net, "cpu", "fp32", **options)
    assert upscaling.upscaler.largest_whole(upscaler.net, upscaler.device) == 200
    assert upscaler.tile == 192  # a multiple of 32
    assert Upscaler(net, "cpu", "fp32", **options, batch=4).tile == 96  # four are 192 x 192


@pytest.mark.parametrize("tile", [-1, 16, 32, 33, 63])
def test_a_tile_that_is_all_overlap_is_refused(tile):
    with pytest.raises(UsageError, match=f"tile is {tile}; it can be 0, or from 64 on"):
        Upscaler(FarSighted(), "cpu", "fp32", tile=tile)


def test_a_tile_that_was_asked_for_puts_no_large_pictures_together():
    upscaler = Upscaler(FarSighted(), "cpu", "fp32", tile=4096)
    assert upscaler.at_once(np.zeros((750, 1000, 3), np.uint8)) == 1
    assert upscaler.at_once(np.zeros((64, 64, 3), np.uint8)) == 9


def test_tiles_are_checked_on_what_the_network_is_given(random_image, capsys):
    """Whatever is hidden under alpha 0; of one level, it is the same in tiles and whole."""
    rgb = np.full((100, 140, 3), 128, np.uint8)
    rgb[:, 70:] = random_image(100, 70)
    alpha = np.full((100, 140), 255, np.uint8)
    alpha[:, 70:] = 0
    job = Job(Path("a.png"), Path("b.png"), None, None)
    upscaler = Upscaler(FarSighted(), "cpu", "fp32", tile=64)
    wanted = argparse.Namespace(check_tiles=True)
    command.check_tiles(job, Picture(rgb, alpha), upscaler, wanted, Results())
    assert re.search("at most [01]/255", capsys.readouterr().out)  # of some 60


def test_a_shortage_of_several_images_together_is_none_of_each_alone(random_image, monkeypatch):
    """Even where tiles are the smallest already."""
    together, told = upscaling.upscaler.upscale_together, []

    def greedy(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(upscaling.upscaler, "upscale_together", greedy)
    monkeypatch.setattr(upscaling.upscaler.tqdm, "write", told.append)
    images = [random_image(20, 20, seed) for seed in range(2)]
    upscaler = Upscaler(FarSighted(), "cpu", "fp32", tile=64)
    results = upscaler.together(images)
    assert told == ["not enough memory; this goes on with one image at a time"]
    monkeypatch.setattr(upscaling.upscaler, "upscale_together", together)
    expected = upscaler.together(images)
    assert all(map(np.array_equal, results, expected))


def test_what_tiles_change_is_measured(random_image):
    image = imresize(random_image(20, 30), 8)
    upscaler = Upscaler(FarSighted(), "cpu", "fp32", tile=64)
    largest, mean = upscaler.tile_difference(image)
    whole = Upscaler(FarSighted(), "cpu", "fp32", tile=0)(image).astype(int)
    difference = np.abs(whole - upscaler(image))
    assert largest == difference.max() > 10 and mean == pytest.approx(difference.mean())


def test_what_a_tile_sees_beyond_its_edge_does_not_count(random_image):
    """A quarter of the overlap, 8 pixels."""
    image = random_image(160, 200) // 2 + 128
    whole = Upscaler(FarSighted(8), "cpu", "fp32", tile=0)(image).astype(int)
    tiled = Upscaler(FarSighted(8), "cpu", "fp32", tile=64)(image)
    assert np.abs(whole - tiled).max() <= 1


@pytest.mark.parametrize("suffix, mode", [("png", "RGB"), ("jpg", "RGB"), ("png", "P")])
def test_what_has_no_colour_gets_none(suffix, mode, workplace, net, monkeypatch, random_image):
    """Scans and pages are mostly kept with three channels, or a palette."""
    gray = imresize(random_image(6, 8), 4).mean(-1).astype(np.uint8)
    picture = Image.fromarray(gray).convert("RGB")
    Path("in").mkdir()
    (picture.quantize() if mode == "P" else picture).save(f"in/a.{suffix}")
    with Image.open(f"in/a.{suffix}") as file:
        assert file.mode == mode
    assert run(monkeypatch, "in") == 0
    result = read_image("results/a.png")
    assert (result == result[..., :1]).all() and np.ptp(result) > 5
    whole = Upscaler(net, "cpu", "fp32")(read_image(f"in/a.{suffix}"))
    assert (whole != whole[..., :1]).any()  # the network alone would tint it
    assert np.abs(result[..., 0] - whole.mean(-1)).max() <= 0.5


class Colouring(torch.nn.Module):
    """So much more red than the rest, from RGB to RGB."""

    in_channels, scale = 3, 1

    def __init__(self, red):
        super().__init__()
        self.red = torch.nn.Parameter(torch.tensor([red / 255]))

    def forward(self, x):
        return x + self.red * torch.tensor([1.0, 0, 0])[:, None, None]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("red, kept", [(12, False), (30, True)])
def test_a_network_that_means_to_colour_does(red, kept, dtype):
    """RRDBNets that were trained for it have three channels on both sides."""
    full = np.iinfo(dtype).max
    upscaler = Upscaler(Colouring(red), "cpu", "fp32")
    result = enlarge(Picture(np.full((8, 9, 3), full // 2, dtype)), upscaler).rgb
    assert (result != result[..., :1]).any() == kept


def test_a_network_that_gives_colour_for_gray_does(random_image):
    torch.manual_seed(0)
    net = RRDBNet(in_channels=1, out_channels=3, scale=2, features=4, blocks=1, growth=4).eval()
    gray = np.repeat(random_image(12, 14)[..., :1], 3, -1)
    result = enlarge(Picture(gray), Upscaler(net, "cpu", "fp32")).rgb
    assert (result != result[..., :1]).any()


def test_a_result_that_is_smaller_than_its_original_is_told(workplace, monkeypatch, capsys):
    """The photographs are 48 to 96 pixels wide."""
    assert run(monkeypatch, "photos", "--width", "70") == 0
    told = re.findall(r"(\S+): smaller than its original", capsys.readouterr().out)
    assert sorted(map(os.path.normpath, told)) == sorted(
        os.path.join("photos", name) for name in ("c.bmp", os.path.join("sub", "d.png"))
    )
    frames = [Image.new("RGB", (80, 60), colour) for colour in ("red", "green", "blue")]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    assert run(monkeypatch, "moving.gif", "--width", "70") == 0
    assert capsys.readouterr().out.count("smaller than its original") == 1  # of all its frames
    assert run(monkeypatch, "photos", "--outscale", "0.5") == 0  # which says so itself
    assert "smaller" not in capsys.readouterr().out


def test_one_coloured_pixel_is_a_picture_in_colour(net, random_image):
    gray = np.repeat(random_image(12, 14)[..., :1], 3, -1)
    upscaler, alpha = Upscaler(net, "cpu", "fp32"), np.full((12, 14), 9, np.uint8)

    def coloured(rgb, alpha, upscaler=upscaler):
        result = enlarge(Picture(rgb, alpha), upscaler).rgb
        return bool((result != result[..., :1]).any())

    assert not coloured(gray, None) and not coloured(gray, alpha)
    gray[11, 13, 2] ^= 1
    assert coloured(gray, None) and coloured(gray, alpha)
    alpha[11, 13] = 0  # now nothing of it is to be seen
    assert not coloured(gray, alpha)
    assert coloured(gray, alpha, Upscaler(net, "cpu", "fp32", keep_hidden=True))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_opaque_or_clear_stays_so(dtype, net):
    top = np.iinfo(dtype).max
    rgb = np.full((24, 30, 3), top // 2, dtype)
    alpha = np.zeros((24, 30), dtype)
    alpha[:, 10:] = top
    enlarged = enlarge(Picture(rgb, alpha), Upscaler(net, "cpu", "fp32", scale=3)).alpha
    assert enlarged.dtype == dtype
    assert (enlarged[:, :24] == 0).all() and (enlarged[:, 36:] == top).all()


def test_every_flag_reaches_what_computes(workplace, monkeypatch):
    made, devices = [], []
    plain = Upscaler(load_generator("checkpoints/mine/gan.safetensors"), "cpu", "fp32")
    monkeypatch.setattr(
        command, "Upscaler", lambda net, device, **given: made.append(given) or plain
    )
    monkeypatch.setattr(
        command, "choose_device", lambda *given: devices.append(given) or torch.device("cpu")
    )
    flags = "--tile 64 --batch 3 --precision bf16 --device mps --wrap --keep-hidden --ensemble"
    for size in ("--width 20 --height 30", "--outscale 1.5"):
        monkeypatch.setattr(sys, "argv", ["test.py", "photos", *flags.split(), *size.split()])
        assert command.main(command.Ranks()) == 0
    given = dict(precision="bf16", tile=64, batch=3, ensemble=True, wrap=True, keep_hidden=True)
    assert made == [
        given | dict(scale=None, width=20, height=30),
        given | dict(scale=1.5, width=None, height=None),
    ]
    assert devices == [("mps", 0)] * 2


@pytest.mark.parametrize(
    "given, size",
    [({"width": 37}, (39, 37)), ({"height": 35}, (35, 34)), ({"width": 36}, (38, 36))],
)
def test_a_side_that_is_not_named_is_rounded(given, size, net):
    """Of 50 x 48 pixels: 38.54, 33.6 and 37.5."""
    upscaler = Upscaler(net, "cpu", "fp32", **given)
    assert upscaler(np.zeros((50, 48, 3), np.uint8)).shape == (*size, 3)


def test_what_is_not_read_among_the_originals_is_told(workplace, monkeypatch, capsys):
    write_image(imresize(read_image("photos/a.png"), 2), "hr/a.png")
    Path("hr/b.nef").write_bytes(b"MM\0*")
    assert run(monkeypatch, "photos/a.png", "--hr", "hr") == 1
    assert "hr/b.nef" in capsys.readouterr().err


@pytest.mark.parametrize("program", ["test", "weights"])
def test_ctrl_c_ends_a_command_in_words(program, monkeypatch):
    prepared = []
    monkeypatch.setattr("utils.hear_kill", lambda: prepared.append(program))
    calls, patience = [], []
    waiting = lambda patience_given: patience.append(patience_given) or interrupted()  # noqa: E731
    monkeypatch.setattr(Ranks, "of_torchrun", lambda patience=None: waiting(patience))

    def interrupted(*args):
        calls.append(1)
        if program == "weights" and len(calls) == 1:  # before torch is imported
            return None
        raise KeyboardInterrupt

    monkeypatch.setattr("upscaling.weights_flags.parse_args", interrupted)
    monkeypatch.setattr(sys, "argv", [f"{program}.py", "photos"])
    with pytest.raises(SystemExit, match=rf"{program}.py: interrupted; what was done is kept"):
        runpy.run_path(str(ROOT / f"{program}.py"), run_name="__main__")
    assert prepared == [program]
    assert patience == [timedelta(days=7)] * (program == "test")  # for the last of a night's work


@pytest.mark.parametrize(
    "words, status",
    [("photos", 0), ("photos broken.png", 1), ("nowhere", 2), ("photos --weights no.pth", 2)],
)
def test_the_status_says_what_became_of_a_command(words, status, workplace, monkeypatch):
    Path("broken.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", ["test.py", *words.split(), "--precision", "fp32"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "test.py"), run_name="__main__")
    assert ended.value.code == status


def test_the_page_compares_bicubic_with_what_it_saves(workplace, net, random_image):
    """Bicubic is on the left."""
    given = imresize(random_image(6, 8), 4)
    write_image(given, "in/a.png")
    compared = upscale_file(Path("in/a.png"), Path("out"), Upscaler(net, "cpu", "fp32"))
    result = read_image(compared.file)
    assert np.array_equal(result, Upscaler(net, "cpu", "fp32")(given))
    left, right = (read_image(path).astype(int) for path in compared.pictures)
    bicubic = imresize(given, 2)
    assert np.abs(left - bicubic).mean() < 2 and np.abs(right - result).mean() < 2
    assert np.abs(bicubic.astype(int) - result).mean() > 10
    assert compared.words.startswith("a.png: 64x48 pixels")


def test_a_process_takes_every_nth_image(workplace, monkeypatch):
    monkeypatch.setattr(command.Ranks, "gather", lambda self, own: own)
    monkeypatch.setattr(sys, "argv", ["test.py", "photos", "--precision", "fp32"])
    names = {}
    for rank in (0, 1):
        assert command.main(command.Ranks(rank=rank, count=2)) == 0
        names[rank] = {path.name for path in Path("results").rglob("*.png")}
        for path in Path("results").rglob("*.png"):
            path.unlink()
    assert len(names[0]) == len(names[1]) == 2 and not names[0] & names[1]


def test_the_newest_generator_is_the_default(workplace, monkeypatch, capsys):
    Path("checkpoints/other").mkdir()
    other = RRDBNet(scale=4, features=4, blocks=1, growth=4)
    save_generator(other, "checkpoints/other/psnr.safetensors")
    later = time.time() + 10
    os.utime("checkpoints/other/psnr.safetensors", (later, later))
    assert run(monkeypatch, "photos/a.png") == 0
    assert "other/psnr.safetensors (x4)" in capsys.readouterr().out
    assert run(monkeypatch, "photos/a.png", "--weights", "checkpoints/mine/gan.safetensors") == 0
    assert "mine/gan.safetensors (x2)" in capsys.readouterr().out


def test_hr_gives_a_table_beside_bicubic(workplace, net, monkeypatch, capsys, random_image):
    for name, partner in (("a.png", "a.png"), ("b.png", "bx2.png"), ("sub/d.png", "sub/d.png")):
        high_res = read_image(workplace / "photos" / name)
        write_image(imresize(high_res, 1 / 2), workplace / "low" / partner)
    write_image(random_image(20, 20), workplace / "low" / "alone.png")
    # HR images are not always a multiple of the scale; the surplus is cropped.
    wider = np.pad(read_image("photos/a.png"), ((0, 1), (0, 1), (0, 0)))
    write_image(wider, workplace / "photos" / "a.png")
    assert run(monkeypatch, "low", "--hr", "photos") == 0
    output = capsys.readouterr().out
    assert "BT.601" in output and "No partner in photos: low/alone.png" in output
    with open("results/metrics.csv", newline="") as file:
        table = {row["image"]: row for row in csv.DictReader(file)}
    assert list(table) == ["a.png", "bx2.png", "sub/d.png", "mean"]
    high_res = read_image("photos/b.png")
    ours, bicubic = read_image("results/bx2.png"), imresize(read_image("low/bx2.png"), 2)
    for prefix, image in (("", ours), ("bicubic_", bicubic)):
        for suffix, luma in (("y", True), ("rgb", False)):
            row = table["bx2.png"]
            assert float(row[f"{prefix}psnr_{suffix}"]) == psnr(image, high_res, 2, luma)
            assert float(row[f"{prefix}ssim_{suffix}"]) == ssim(image, high_res, 2, luma)
    shrunk = psnr(imresize(ours, 1 / 2), read_image("low/bx2.png"), 0, y_channel=False)
    assert float(table["bx2.png"]["lr_psnr"]) == shrunk
    mean = np.mean([float(table[name]["psnr_y"]) for name in list(table)[:3]])
    assert float(table["mean"]["psnr_y"]) == pytest.approx(mean)


def test_the_table_calls_each_by_its_name():
    names = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb", "lpips")
    row = {"image": "a.png"} | {name: i + 0.5 for i, name in enumerate(names)}
    row |= {f"bicubic_{name}": i + 10.25 for i, name in enumerate(names)}
    head, values = (re.split(r"  +", line) for line in as_text([row]).splitlines())
    assert dict(zip(head, values, strict=True)) == {
        "image": "a.png",
        "ours, Y": "0.50 / 1.5000",
        "bicubic, Y": "10.25 / 11.2500",
        "ours, RGB": "2.50 / 3.5000",
        "bicubic, RGB": "12.25 / 13.2500",
        "ours, lpips": "4.5000",
        "bicubic, lpips": "14.2500",
    }


class FakeMetric:
    """As pyiqa.create_metric makes them: the mean difference, or the mean without a reference."""

    def __init__(self, name, device):
        if name == "far":
            raise OSError("no network")
        self.metric_mode = "NR" if name == "mean" else "FR"

    def __call__(self, target, reference=None):
        assert target.shape[0] == 1 and target.min() >= 0 and target.max() <= 1
        return (target - (0 if self.metric_mode == "NR" else reference)).abs().mean().reshape(1, 1)


@pytest.fixture
def pyiqa(monkeypatch):
    fake = types.ModuleType("pyiqa")
    fake.list_models = lambda: ["far", "mae", "mean"]
    fake.create_metric = FakeMetric
    monkeypatch.setitem(sys.modules, "pyiqa", fake)


def test_metrics_of_pyiqa_have_their_columns(workplace, pyiqa, monkeypatch, capsys):
    write_image(imresize(read_image("photos/a.png"), 1 / 2), workplace / "low/a.png")
    assert run(monkeypatch, "low", "--hr", "photos", "--metrics", "mae", "mean") == 0
    with open("results/metrics.csv", newline="") as file:
        row = next(csv.DictReader(file))
    border = slice(2, -2)
    high_res, ours, bicubic = (
        image[border, border] / 255.0
        for image in (
            read_image("photos/a.png"),
            read_image("results/a.png"),
            imresize(read_image("low/a.png"), 2),
        )
    )
    assert float(row["mae"]) == pytest.approx(np.abs(ours - high_res).mean(), abs=1e-6)
    assert float(row["bicubic_mae"]) == pytest.approx(np.abs(bicubic - high_res).mean(), abs=1e-6)
    assert float(row["mean"]) == pytest.approx(ours.mean(), abs=1e-6)
    assert f"{float(row['mae']):.4f}" in capsys.readouterr().out


def test_without_hr_metrics_judge_the_results_alone(workplace, pyiqa, monkeypatch, capsys):
    assert run(monkeypatch, "photos", "--metrics", "mean") == 0
    with open("results/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["image", "mean", "bicubic_mean"]] * 5
    output = capsys.readouterr().out
    assert "ours, mean" in output and "bicubic, mean" in output and "SSIM" not in output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lpisp", "pyiqa has no metric 'lpisp'; it has: far, mae, mean"),
        ("far", r"pyiqa cannot load far \(OSError: no network\); it downloads"),
        ("mae", "mae compares with the true image: add --hr"),
    ],
)
def test_metrics_that_cannot_be_had_are_named(name, message, workplace, pyiqa, monkeypatch):
    with pytest.raises(command.MetricError, match=message):
        run(monkeypatch, "photos", "--metrics", name)
    assert not list(Path("results").rglob("*.png"))


def test_metrics_without_pyiqa_name_the_remedy(workplace, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(command.MetricError, match="pip install pyiqa"):
        run(monkeypatch, "photos", "--metrics", "niqe")


def test_hr_of_another_size_is_a_failure_that_is_named(workplace, monkeypatch, capsys):
    assert run(monkeypatch, "photos/a.png", "--hr", "photos") == 1
    assert "photos/a.png is 48x64; the result is 96x128" in capsys.readouterr().err


def test_hr_images_are_never_overwritten(workplace, monkeypatch):
    write_image(imresize(read_image("photos/a.png"), 1 / 2), workplace / "low" / "a.png")
    before = Path("photos/a.png").read_bytes()
    with pytest.raises(command.UsageError, match=r"photos/a\.png is an input"):
        run(monkeypatch, "low", "--hr", "photos", "-o", "photos")
    assert Path("photos/a.png").read_bytes() == before


def test_a_table_that_cannot_be_saved_is_reported(workplace, monkeypatch, capsys):
    write_image(imresize(read_image("photos/a.png"), 1 / 2), workplace / "low" / "a.png")
    (workplace / "results" / "metrics.csv").mkdir(parents=True)
    assert run(monkeypatch, "low", "--hr", "photos") == 1
    said = capsys.readouterr()
    assert "Failed: the table was not saved: results/metrics.csv" in said.err
    assert "mean" in said.out  # it is shown all the same


def test_results_inside_the_input_folder_are_no_input(workplace, monkeypatch, capsys):
    for _ in range(2):
        assert run(monkeypatch, "photos", "-o", "photos/results") == 0
        assert "4 of 4 images" in capsys.readouterr().out


def test_partners_are_looked_for_at_the_same_place_first(workplace, monkeypatch):
    write_image(imresize(read_image("photos/sub/d.png"), 1 / 2), workplace / "low/sub/d.png")
    write_image(255 - read_image("photos/sub/d.png"), workplace / "photos/d.png")
    found = partners_in(Path("photos"))
    assert find_partner(Path("sub/d.png"), found) == Path("photos/sub/d.png")
    assert find_partner(Path("sub/b_x2.png"), found) == Path("photos/b.png")
    assert find_partner(Path("sub/none.png"), found) is None


@pytest.mark.parametrize(
    ("low_res", "high_res"),
    [
        ("babyx4.png", "baby.png"),  # Set5 of BasicSR and KAIR; DIV2K's 0801x4.png
        ("0801x4m.png", "0801.png"),  # DIV2K, mild
        ("baby_x4.png", "baby_GT.bmp"),
        ("baby_LRBI_x4.png", "baby_HR_x4.png"),  # RCAN's
        ("img_001_SRF_4_LR.png", "img_001_SRF_4_HR.png"),  # SelfExSR's
        ("baby-LR.png", "baby.jpg"),
        ("zebra_LR.png", "zebra_HR.png"),
        ("x4.png", "x4.png"),
    ],
)
def test_partners_by_the_names_of_benchmarks(low_res, high_res, tmp_path):
    for name in ("bab.png", "080.png", "img_002_SRF_4_HR.png", "zebr.png", high_res):
        (tmp_path / name).touch()
    assert find_partner(Path(low_res), partners_in(tmp_path)) == tmp_path / high_res


def test_a_digit_of_the_name_itself_is_no_mark_of_a_scale(tmp_path):
    for name in ("tex1.png", "tex2.png", "box1_HR.png"):
        (tmp_path / name).touch()
    found = partners_in(tmp_path)
    for low_res, high_res in (
        *(("tex1x4.png", "tex1.png"), ("tex1_LR.png", "tex1.png"), ("tex2_x4.png", "tex2.png")),
        *(("box1x4.png", "box1_HR.png"), ("box1.png", "box1_HR.png")),
    ):
        assert find_partner(Path(low_res), found) == tmp_path / high_res
    (tmp_path / "tex2.png").unlink()
    for low_res in ("tex2x4.png", "tex2.png", "box2x4.png"):
        assert find_partner(Path(low_res), partners_in(tmp_path)) is None


@pytest.mark.parametrize(
    ("low_res", "high_res", "not_these"),
    [
        ("baby.png", "baby_HR_x4.png", ["bab.png"]),  # BasicSR's LR, RCAN's HR
        ("baby_LR.png", "baby_HR_x4.png", []),
        ("baby.png", "babyx4.png", []),
        ("0801x4m.png", "0801x4.png", []),
        ("img_001_SRF_4_LR.png", "img_001.png", ["img_001_SRF_4_HR.png"]),
        ("baby_LR_x4.png", "baby.png", ["baby_LR.png"]),
        ("baby_x4_LR.png", "baby.png", ["baby_x4.png"]),
        ("tex1x4.png", None, ["tex2.png", "tex3.png", "tex4.png"]),
        ("tex1_LR_x4.png", None, ["tex4_HR_x4.png"]),
        ("tex1_LR_x4.png", "tex1_HR_x4.png", ["tex4_HR_x4.png"]),
        ("tex1x4.png", "tex1.png", ["te.png"]),
    ],
)
def test_partners_of_mixed_names(low_res, high_res, not_these, tmp_path):
    for name in filter(None, (high_res, *not_these)):
        (tmp_path / name).touch()
    expected = high_res and tmp_path / high_res
    assert find_partner(Path(low_res), partners_in(tmp_path)) == expected


def test_the_very_same_name_is_the_first_choice(tmp_path):
    for name in ("max.png", "maxx4.png"):
        (tmp_path / name).touch()
    found = partners_in(tmp_path)
    assert find_partner(Path("maxx4.png"), found).name == "maxx4.png"
    assert find_partner(Path("max.png"), found).name == "max.png"
    (tmp_path / "x2.png").touch()
    assert find_partner(Path("x4.png"), partners_in(tmp_path)) is None


def test_partners_are_found_however_their_accents_are_written(tmp_path):
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = tmp_path / form / normalize(form, "über")
        folder.mkdir(parents=True)
        (folder / normalize(form, "café.png")).touch()
        low_res = Path(normalize(other, "über/caféx4.png"))
        (found,) = partners_in(tmp_path / form).values()
        assert find_partner(low_res, partners_in(tmp_path / form)) == found[0]


def test_partners_that_fit_equally_well_are_named(tmp_path):
    for name in ("cat.png", "cat.bmp", "dog_HR.png", "dog.png", "owl_GT.png", "owl_HR.png"):
        (tmp_path / name).touch()
    found = partners_in(tmp_path)
    assert find_partner(Path("cat.png"), found).name == "cat.png"
    assert find_partner(Path("cat.bmp"), found).name == "cat.bmp"
    assert find_partner(Path("dogx4.png"), found).name == "dog.png"
    for name, alike in (("cat.jpg", r"cat\.bmp, .*cat\.png"), ("owl.png", "owl_GT.*owl_HR")):
        with pytest.raises(UsageError, match=alike):
            find_partner(Path(name), found)


def test_compare_writes_pictures_side_by_side(workplace, monkeypatch):
    assert run(monkeypatch, "photos", "--compare") == 0
    strip = read_image("results/compare/sub/d.png")
    result = read_image("results/sub/d.png")
    assert np.array_equal(strip[-result.shape[0] :, -result.shape[1] :], result)
    given = read_image("photos/sub/d.png")
    assert_in_this_order(strip, [enlarge_nearest(given, 2), imresize(given, 2), result])
    write_image(result[::-1], "hr/sub/d.png")
    assert run(monkeypatch, "photos", "--compare", "--hr", "hr") == 0
    pictures = [enlarge_nearest(given, 2), imresize(given, 2), result, result[::-1]]
    assert_in_this_order(read_image("results/compare/sub/d.png"), pictures)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_is_clear_is_white_in_strips_and_on_the_page(dtype, workplace, net, monkeypatch):
    """What is hidden in the input and in bicubic is arbitrary; in ours it has the edges' colour."""
    rgba = np.zeros((24, 30, 4), np.uint8)
    rgba[:, 12:] = (200, 30, 40, 255)
    scale = 257 if dtype == np.uint16 else 1
    picture = Picture(rgba[..., :3].astype(dtype) * scale, rgba[..., 3].astype(dtype) * scale)
    write_picture(picture, "in/a.png")
    large = rgba.repeat(2, 0).repeat(2, 1)
    write_picture(Picture(large[..., :3], large[..., 3]), "hr/a.png")
    assert run(monkeypatch, "in", "--compare", "--report", "--hr", "hr") == 0
    strip = read_image("results/compare/a.png")
    left = [strip[-20:, x : x + 10] for x in range(0, strip.shape[1] - 10)]
    assert sum((part == 255).all() for part in left) >= 4  # one of each picture
    assert not any((part == 0).all() for part in left)
    for label in ("bicubic", "ours", "HR"):
        shown = read_image(f"results/index_files/a.png.{label}.jpg").astype(int)
        assert shown[:, :16].min() > 245 and shown[:, 32:, 1].max() < 245
    compared = upscale_file(Path("in/a.png"), Path("out"), Upscaler(net, "cpu", "fp32"))
    for path in compared.pictures:
        assert read_image(path)[:, :16].min() > 245
    bicubic = read_image(compared.pictures[0]).astype(int)
    assert bicubic[..., 0].min() > 190  # no dark fringe: as on the page of --report
    assert np.abs(bicubic - read_image("results/index_files/a.png.bicubic.jpg")).max() < 8


def test_what_is_too_large_for_the_page_is_done_without(workplace, monkeypatch, capsys):
    monkeypatch.setattr("upscaling.report.LARGEST", 130)
    assert run(monkeypatch, "photos", "--report", "--compare") == 0
    said = capsys.readouterr()
    large = [path for path in Path("photos").rglob("*.*") if max(read_image(path).shape) > 65]
    assert 0 < len(large) < 4 and "4 of 4 images upscaled" in said.out
    assert (said.out + said.err).count("is not on the page, which holds 130 pixels") == len(large)
    assert Path("results/index.html").read_text("utf-8").count('"thumb"') == 4 - len(large)
    assert len([*Path("results/compare").rglob("*.png")]) == 4


@pytest.mark.parametrize("score, mean", [(math.inf, "equal"), (math.nan, "nan"), (40.0, 35.0)])
def test_the_pages_means_are_the_tables(score, mean, tmp_path):
    images = []
    for name, value in (("a.png", 30.0), ("b.png", score)):
        image = PageImage(tmp_path, Path(name))
        image.add("ours", np.zeros((8, 8, 3), np.uint8))
        images.append(image.entry({"psnr_y": value}))
    text = write_page(tmp_path, images, "").read_text("utf-8")
    data = json.loads(re.search(r"\{\"summary\".*\}", text)[0])
    assert data["mean"] == {"psnr_y": mean}
    assert data["images"][0]["score"] == {"psnr_y": 30.0}
    assert data["images"][1]["score"] == {"psnr_y": 40.0 if score == 40 else mean}


def assert_in_this_order(strip, pictures):
    """From left to right, below their labels."""
    height, width = pictures[0].shape[:2]
    starts = range(strip.shape[1] - width + 1)
    places = [
        [x for x in starts if np.array_equal(strip[-height:, x : x + width], picture)]
        for picture in pictures
    ]
    assert all(len(place) == 1 for place in places) and places == sorted(places)


def test_of_a_large_picture_the_strip_shows_the_middle(workplace, monkeypatch, random_image):
    monkeypatch.setattr(command, "COMPARED_SIDE", 64)
    write_image(random_image(60, 70), "large/a.png")
    assert run(monkeypatch, "large", "--compare") == 0
    strip, result = read_image("results/compare/a.png"), read_image("results/a.png")
    given = enlarge_nearest(read_image("large/a.png"), 2)
    side = command.COMPARED_SIDE
    down, across = ((length - side) // 2 for length in result.shape[:2])
    window = slice(down, down + side), slice(across, across + side)
    assert down > 0 and across > 0 and strip.shape[1] < 4 * side
    assert_in_this_order(strip, [given[window], result[window]])


def test_a_grayscale_network_gets_each_colour_as_an_image(workplace, monkeypatch):
    gray = RRDBNet(in_channels=1, out_channels=1, scale=2, features=4, blocks=1, growth=4).eval()
    save_generator(gray, "gray.pth")
    assert run(monkeypatch, "photos/a.png", "--weights", "gray.pth") == 0
    planes = to_tensor(read_image("photos/a.png"))[0][:, None]
    with torch.no_grad():
        expected = to_image(torch.cat([gray(plane[None]) for plane in planes], 1)[0])
    assert np.array_equal(read_image("results/a.png"), expected)


def test_a_network_that_folds_pixels_and_one_of_x3(workplace, monkeypatch):
    save_generator(RRDBNet(scale=2, features=4, blocks=1, growth=4, unshuffle=2), "folds.pth")
    assert run(monkeypatch, "photos/a.png", "--weights", "folds.pth", "--tile", "0") == 0
    height, width = read_image("photos/a.png").shape[:2]
    assert read_image("results/a.png").shape == (2 * height, 2 * width, 3)
    save_generator(RRDBNet(scale=3, features=4, blocks=1, growth=4), "x3.pth", "old")
    assert run(monkeypatch, "photos/a.png", "--weights", "x3.pth", "--scale", "3") == 0
    assert read_image("results/a.png").shape == (3 * height, 3 * width, 3)


def test_tiles_give_the_same_picture(workplace, monkeypatch, random_image):
    smooth = imresize(random_image(20, 30), 8)
    write_image(smooth, workplace / "large" / "x.png")
    assert run(monkeypatch, "large", "--tile", "0", "-o", "whole") == 0
    assert run(monkeypatch, "large", "--tile", "64", "-o", "tiled") == 0
    difference = read_image("whole/x.png").astype(int) - read_image("tiled/x.png")
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    "args, message",
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["empty"], "empty holds no PNG"),
        (["photos", "--hr", "nowhere"], "--hr nowhere"),
        (["photos", "-o", "photos"], "photos/a.png is an input"),
        (["photos", "-o", "file/out"], "file/out cannot be made"),
        (["photos", "--weights", "none.pth"], "none.pth: no such file"),
        (
            ["photos", "--weights", "photos/a.png"],
            "photos/a.png cannot be read as weights: torch.save did not",
        ),
        (["photos", "--weights", "rgba.pth"], "rgba.pth takes 4 channels"),
        (["photos", "--scale", "4", "--weights", "other.pth"], "other.pth is x2, not x4"),
    ],
)
def test_wrong_usage_is_refused_before_any_work(args, message, workplace, monkeypatch):
    Path("empty").mkdir()
    Path("file").write_text("in the way")
    save_generator(RRDBNet(scale=2, features=8, blocks=1, growth=4), "other.pth")
    save_generator(RRDBNet(in_channels=4, features=8, blocks=1, growth=4), "rgba.pth")
    with pytest.raises((command.UsageError, command.WeightsError), match=message):
        run(monkeypatch, *args)
    assert not list(Path("results").rglob("*.png"))


@pytest.mark.parametrize("value", ["abc", "-1", "16", "1.5"])
def test_bad_tiles_are_refused(value, workplace, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, "photos", f"--tile={value}")
    assert exit.value.code == 2 and value in capsys.readouterr().err

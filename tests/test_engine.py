"""--engine ncnn gives what torch gives. On a GPU, only where there is one, or Mesa's lavapipe."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import lively, load_program
from torch import nn

from formats.ncnn import ncnn_program
from images.files import read_picture, write_image
from model import RRDBNet, SRResNet
from training.ranks import Ranks
from upscaling.devices import DeviceError
from upscaling.flags import parse_args
from upscaling.inputs import UsageError
from upscaling.ncnn_engine import NcnnNetwork, choose_gpu
from upscaling.upscaler import Upscaler
from weights import save_generator

SMALL = {"features": 8, "growth": 4, "blocks": 1}
NETWORKS = {
    **{f"x{scale}": lambda scale=scale: RRDBNet(scale=scale, **SMALL) for scale in (1, 2, 3, 8)},
    "x2 of squares of 2": lambda: RRDBNet(scale=2, unshuffle=2, **SMALL),
    "x1 of squares of 4": lambda: RRDBNet(scale=1, unshuffle=4, **SMALL),
    "ESRGAN+": lambda: RRDBNet(plus=True, **SMALL),
    "SRResNet x3": lambda: SRResNet(scale=3, features=8, blocks=1),
}


@pytest.fixture
def gpu(ncnn):
    if not ncnn.get_gpu_count():
        pytest.skip("no GPU with Vulkan is here, nor Mesa's lavapipe")
    return choose_gpu()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """test.py in this process: its exit status."""
    command = load_program("test")
    monkeypatch.chdir(tmp_path)

    def run(*arguments, ranks: Ranks | None = None) -> int:
        monkeypatch.setattr(sys, "argv", ["test.py", *map(str, arguments)])
        return command.main(ranks or Ranks())

    return run


def bright(net):
    """Its results have about the range of colours."""
    nn.init.constant_(lively(net).conv_last.bias, 0.5)
    return net


def in_ncnn(net, gpu=None):
    return NcnnNetwork(net, ncnn_program(net, half=False), gpu)


# -------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_it_computes_what_torch_does(name, ncnn):
    net = bright(NETWORKS[name]())
    other = in_ncnn(net)
    for size in ((37, 53), (16, 8), (3, 5), (1, 7), (2, 1), (1, 1)):
        low_res = torch.rand(2, 3, *size)
        here, there = net(low_res), other(low_res)
        assert here.shape == there.shape
        # Four levels of 16 bits. Weights in fp16 would be farther away.
        assert (here - there).abs().max() < 4 / 65535, size
    assert here.isfinite().all() and net(torch.rand(1, 3, 32, 32)).std() > 0.05


@pytest.mark.parametrize(
    "flags",
    [{"tile": 64}, {"tile": 0}, {"ensemble": True}, {"wrap": True, "scale": 1.5}, {"width": 200}],
)
@pytest.mark.parametrize(("dtype", "levels"), [(np.uint8, 1), (np.uint16, 4)])
def test_pictures_in_all_ways(flags, dtype, levels, ncnn, random_image):
    net, image = bright(NETWORKS["x2"]()), random_image(70, 90).astype(dtype)
    image = image * (np.iinfo(dtype).max // 255)
    here, there = (Upscaler(n, "cpu", "fp32", **flags)(image) for n in (net, in_ncnn(net)))
    assert here.shape == there.shape and there.dtype == dtype
    assert np.abs(here.astype(int) - there).max() <= levels


# ----------------------------------------------------------------------------- the whole of test.py


def test_every_pixel_of_a_network_that_changes_nothing(ncnn, run, identity_weights, capsys):
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (70, 83, 4), np.uint8)
    rgba[..., 3] |= 1
    Image.fromarray(rgba).save("a.png")
    deep = rng.integers(0, 65536, (33, 70, 3), np.uint16)
    write_image(deep, "deep.png")
    flags = ("-n", identity_weights, "--engine", "ncnn", "-o", "out", "--tile", 64)
    assert run("a.png", "deep.png", *flags) == 0
    assert "on cpu by ncnn in float32" in capsys.readouterr().out
    assert np.array_equal(np.asarray(Image.open("out/a.png")), rgba)
    picture = read_picture(Path("out/deep.png"))
    assert picture.rgb.dtype == np.uint16 and np.array_equal(picture.rgb, deep)


def test_a_pair_of_files_and_its_scale(ncnn, run, random_image):
    net = bright(NETWORKS["x3"]())
    save_generator(net, "net-x3.param", "ncnn")
    write_image(random_image(20, 30), "a.png")
    results = []
    for engine in ("torch", "ncnn"):
        flags = ("-n", "net-x3.param", "--engine", engine, "-o", f"{engine}.png")
        assert run("a.png", *flags, "--precision", "fp32") == 0
        results.append(np.asarray(Image.open(f"{engine}.png")).astype(int))
    assert results[0].shape == (60, 90, 3) and np.abs(results[0] - results[1]).max() <= 1


# ----------------------------------------------------------------------------- what does not work


def test_without_ncnn(run, identity_weights, random_image, monkeypatch):
    write_image(random_image(8, 8), "a.png")
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(UsageError, match=r"--engine ncnn needs .*: pip install ncnn$"):
        run("a.png", "-n", identity_weights, "--engine", "ncnn")
    assert run("a.png", "-n", identity_weights) == 0


def test_without_a_gpu_ncnn_is_not_heard(ncnn, run, identity_weights, random_image, monkeypatch):
    write_image(random_image(8, 8), "a.png")
    monkeypatch.setattr(ncnn, "get_gpu_count", lambda: 0)
    with pytest.raises(DeviceError, match=r"'vulkan': .* finds no GPU with Vulkan here; install"):
        run("a.png", "-n", identity_weights, "--engine", "ncnn", "--device", "vulkan")


def test_several_processes_do_not_share_a_gpu(ncnn, run, identity_weights, random_image):
    write_image(random_image(8, 8), "a.png")
    flags = ("-n", identity_weights, "--engine", "ncnn", "--device", "vulkan")
    with pytest.raises(DeviceError, match="leave out torchrun"):
        run("a.png", *flags, ranks=Ranks(0, 2, 0))


def test_the_search_for_gpus_says_nothing(ncnn, capfd):
    try:
        choose_gpu()
    except DeviceError as error:
        assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")
    sys.stderr.write("heard")
    assert "heard" in capfd.readouterr().err


@pytest.mark.parametrize("channels", [(1, 1), (1, 3), (3, 1)])
def test_gray_networks_are_refused(channels, ncnn, run, random_image):
    net = RRDBNet(*channels, scale=1, **SMALL)
    save_generator(net, "net.safetensors")
    write_image(random_image(8, 8), "a.png")
    with pytest.raises(UsageError, match=r"net\.safetensors and --engine ncnn: .* RGB to RGB"):
        run("a.png", "-n", "net.safetensors", "--engine", "ncnn")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--device vulkan", "--device vulkan needs --engine ncnn"),
        ("--engine ncnn --device cuda", "not on cuda"),
        ("--engine ncnn --device mps", "not on mps"),
        ("--engine ncnn --precision bf16", "leave out --precision bf16"),
        ("--engine ncnn --batch 2", "leave out --batch"),
        ("--engine onnx", "invalid choice"),
    ],
)
def test_what_does_not_go_together(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["test.py", "a.png", *words.split()])
    with pytest.raises(SystemExit) as ended:
        parse_args()
    assert ended.value.code == 2 and message in capsys.readouterr().err


class Failing:
    """An ncnn that has not enough memory for more than 64 pixels each way."""

    def __init__(self, runtime, status):
        self.runtime, self.status = runtime, status

    def create_extractor(self):
        self.run = self.runtime.create_extractor()
        return self

    def input(self, name, pixels):
        self.fits = max(pixels.w, pixels.h) <= 64
        return self.run.input(name, pixels)

    def extract(self, name):
        return self.run.extract(name) if self.fits else (self.status, None)


def test_tiles_shrink_where_memory_is_short(ncnn, random_image):
    net, image = in_ncnn(bright(NETWORKS["x1"]())), random_image(100, 120)
    upscaler = Upscaler(net, "cpu", "fp32", tile=64)
    whole = upscaler(image)
    net.runtime = Failing(net.runtime, -100)
    upscaler.tile = 128
    assert np.array_equal(upscaler(image), whole)
    net.runtime = Failing(net.runtime, -1)
    upscaler.tile = 128
    with pytest.raises(RuntimeError, match="ncnn failed on cpu, with status -1"):
        upscaler(image)


def test_tiles_take_less_than_half_of_the_memory(ncnn, monkeypatch):
    net = in_ncnn(NETWORKS["x8"]())
    monkeypatch.setattr(NcnnNetwork, "free_memory", lambda net: 2**29)
    # 12 maps of 8 features of 4 bytes, 8 times as wide and high: 104 pixels.
    for ensemble in (False, True):
        assert Upscaler(net, "cpu", "fp32", ensemble=ensemble).tile == 96
    assert Upscaler(NETWORKS["x1"](), "cpu", "fp32").tile == 384


def test_what_is_not_finite_is_not_written(ncnn, random_image):
    net = bright(NETWORKS["x1"]())
    net.conv_last.bias.data[1] = torch.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        Upscaler(in_ncnn(net), "cpu", "fp32")(random_image(8, 8))


def test_it_takes_as_many_threads_as_torch(ncnn, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert in_ncnn(NETWORKS["x1"]()).runtime.opt.num_threads == 3


# ---------------------------------------------------------------------------------------- on a GPU


def test_a_gpu_tells_its_memory(gpu):
    net = in_ncnn(NETWORKS["x2"](), gpu)
    assert 2**26 < net.free_memory() < 2**40


@pytest.mark.parametrize("name", ["x2", "x1 of squares of 4", "SRResNet x3"])
@torch.inference_mode()
def test_a_gpu_computes_what_torch_does(name, gpu):
    net = bright(NETWORKS[name]())
    other = in_ncnn(net, gpu)
    for size in ((37, 53), (1, 1)):
        low_res = torch.rand(1, 3, *size)
        assert (net(low_res) - other(low_res)).abs().max() < 4 / 65535


def test_every_pixel_by_a_gpu(gpu, ncnn, run, identity_weights, random_image, capsys):
    image = random_image(40, 70)
    write_image(image, "a.png")
    flags = ("-n", identity_weights, "--engine", "ncnn", "--device", "vulkan")
    assert run("a.png", *flags, "--tile", 64) == 0
    assert f"on {ncnn.get_gpu_info(gpu).device_name()} by ncnn" in capsys.readouterr().out
    assert np.array_equal(np.asarray(Image.open("results/a.png")), image)

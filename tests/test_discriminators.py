"""The discriminator in a file: what train.py starts from, and what is said where it cannot."""

import re

import pytest
import safetensors.torch
import torch
from torch import nn

from config import parse_args
from formats.discriminators import load_discriminator
from formats.layouts import WeightsError
from model import RRDBNet, UNetDiscriminator, VGGDiscriminator


def unet(features=4, seed=0):
    torch.manual_seed(seed)
    return UNetDiscriminator(features).state_dict()


STATE, OTHER, OWN = unet(), unet(seed=1), unet(seed=2)
GENERATOR = RRDBNet(scale=1, features=4, blocks=1, growth=4).state_dict()
VGG = VGGDiscriminator(32).state_dict()


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_found(content, tmp_path, expected=STATE, own=OWN):
    torch.save(content, tmp_path / "net.pth")
    found = load_discriminator(str(tmp_path / "net.pth"), own)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"params": STATE},  # Real-ESRGAN's netD
        {
            "phase": "gan",
            "net_g": GENERATOR,
            "ema": GENERATOR,
            "net_d": STATE,
            "opt_d": {"state": {}},
        },
        {"state_dict": under("module.", STATE)},
        under("net_g.", GENERATOR) | under("net_d.module.", STATE),
        {"model": STATE, "again": STATE},
    ],
)
def test_a_discriminator_is_found_wherever_it_is(content, tmp_path):
    assert_found(content, tmp_path)


def test_safetensors_and_half_precision(tmp_path):
    half = {name: tensor.half() for name, tensor in STATE.items()}
    safetensors.torch.save_file(half, tmp_path / "net.safetensors")
    net = UNetDiscriminator(4)
    net.load_state_dict(load_discriminator(str(tmp_path / "net.safetensors"), OWN))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, half[name].float())


@pytest.mark.parametrize(
    "norm", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=["old", "new"]
)
def test_both_of_torchs_spectral_norms_are_read(norm, tmp_path):
    torch.manual_seed(0)
    theirs = nn.Module()
    for name, module in UNetDiscriminator(4).named_children():
        kernel = getattr(module, "weight_orig", None)
        if kernel is None:
            setattr(theirs, name, module)
            continue
        wide, narrow, side, _ = kernel.shape
        conv = nn.Conv2d(narrow, wide, side, module.stride, 1, bias=False)
        setattr(theirs, name, norm(conv))
    torch.save({"params": theirs.state_dict()}, tmp_path / "net.pth")
    ours = UNetDiscriminator(4)
    ours.load_state_dict(load_discriminator(str(tmp_path / "net.pth"), ours.state_dict()))
    x = torch.rand(1, 4, 8, 8)
    torch.testing.assert_close(ours.eval().conv1(x), theirs.eval().conv1(x))
    torch.testing.assert_close(ours.conv8(x), theirs.conv8(x))


def test_batch_norm_comes_with_its_statistics(tmp_path):
    state = {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in VGG.items()}
    assert_found({"net_d": state}, tmp_path, state, VGG)
    counters = {name for name in state if name.endswith("tracked")}
    without = {name: t for name, t in state.items() if name not in counters}
    assert_found(without, tmp_path, without, VGG)


NAN = STATE | {"conv9.bias": torch.tensor([torch.nan])}
WRONG = {  # content -> what is said; the settings that it advises
    "a generator": ({"params": GENERATOR}, "has a generator, which --init-from takes"),
    "a PSNR phase": ({"phase": "psnr", "ema": GENERATOR}, "has a generator"),
    "VGG's": ({"net_d": VGG}, "another kind; give --discriminator vgg"),
    "another size": (unet(8), "of another size; give --discriminator-features 8"),
    "a part": (
        {name: tensor for name, tensor in STATE.items() if "conv5" not in name},
        r"no complete discriminator \(3 problems\): conv5.weight_orig is missing",
    ),
    "too much": (STATE | {"conv10.weight": torch.zeros(1)}, "conv10.weight is left over"),
    "one shape": (STATE | {"conv8.weight_u": torch.zeros(3)}, r"conv8.weight_u has shape \(3,\)"),
    "nan": (NAN, "conv9.bias holds numbers that are not finite"),
    "two": ({"a": STATE, "b": OTHER}, "discriminators that differ: a, b; save one"),
    "others": ({"x": torch.zeros(1)}, "it has x, ...; give Real-ESRGAN's netD"),
    "nothing": ({}, "it has no tensors; give"),
    "a list": ([1, 2], "it has no tensors; give"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_named_with_a_remedy(kind, tmp_path):
    content, said = WRONG[kind]
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=f"net.pth.*{said}") as error:
        load_discriminator(str(tmp_path / "net.pth"), OWN)
    if flag := re.search(r"--d\S+ \w+", str(error.value)):
        parse_args(flag[0].split())


def test_vggs_of_another_crop_and_of_another_kind(tmp_path):
    torch.save(VGGDiscriminator(64).state_dict(), tmp_path / "64.pth")
    with pytest.raises(WeightsError, match=r"of another size; give --gan\.patch 64"):
        load_discriminator(str(tmp_path / "64.pth"), VGG)
    with pytest.raises(WeightsError, match=r"give --psnr\.patch 64"):
        load_discriminator(str(tmp_path / "64.pth"), VGG, "psnr")
    torch.save({"params": STATE}, tmp_path / "unet.pth")
    with pytest.raises(WeightsError, match="give --discriminator unet"):
        load_discriminator(str(tmp_path / "unet.pth"), VGG)
    classifier = {
        "features.0.weight": torch.zeros(64, 3, 3, 3),
        "classifier.3.bias": torch.zeros(9),
    }
    torch.save(classifier, tmp_path / "vgg19.pth")
    with pytest.raises(
        WeightsError, match=r"vgg19.pth holds no discriminator .* features.0.weight"
    ):
        load_discriminator(str(tmp_path / "vgg19.pth"), VGG)


def test_what_is_no_file_or_runs_code_is_refused(tmp_path, malicious_pickle):
    bomb, marker = malicious_pickle
    (tmp_path / "text.pth").write_text("<html>")
    for path, said in (
        (tmp_path / "none.pth", "init_discriminator is .*none.pth': no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "text.pth", "text.pth cannot be read as weights: it is a web page"),
        (bomb, "bomb.pth cannot be read as weights: it asks to run code"),
    ):
        with pytest.raises(WeightsError, match=said):
            load_discriminator(str(path), OWN)
    assert not marker.exists()

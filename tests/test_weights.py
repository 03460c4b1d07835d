"""Weight files: every published layout reads, other tools read ours, bad files are named.

The reference is spandrel's ESRGAN network, whose parameters have the old release's names. The
other layouts' files are built key by key from the tables below, which are not weights.py's.
"""

import argparse
import builtins
import collections
import functools
import hashlib
import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import types
import typing
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import spandrel
import torch
from spandrel.architectures.ESRGAN import ESRGAN

import formats.published
import formats.tensors
import weights
from formats.tensors import safetensors_file
from model import RRDBNet, SRResNet, VGGDiscriminator
from utils import replacing
from weights import WeightsError, interpolate, load_generator, read_generator, save_generator

BOX = Path(__file__).parents[1] / "checkpoints"
DENSE = {
    "old": lambda i, j, k: f"model.1.sub.{i}.RDB{j + 1}.conv{k + 1}.0",
    "official": lambda i, j, k: f"RRDB_trunk.{i}.RDB{j + 1}.conv{k + 1}",
    "basicsr": lambda i, j, k: f"body.{i}.rdb{j + 1}.conv{k + 1}",
    "aladdinpersson": lambda i, j, k: f"residuals.{i}.rrdb.{j}.blocks.{k}.cnn",
    "lornatang": lambda i, j, k: f"trunk.{i}.rdb{j + 1}.conv{k + 1}",
    "lornatang 0.2": lambda i, j, k: (
        f"trunk.{i}.RDB{j + 1}." + ("conv1.0", "conv2.0", "conv3.0", "conv4.0", "conv5")[k]
    ),
}
AROUND = {  # first, trunk, the upsamplings', then the last two; of 2 blocks and 0 to 4 stages
    "old": {
        0: "0 1.sub.2 2 4",
        1: "0 1.sub.2 3 5 7",
        2: "0 1.sub.2 3 6 8 10",
        3: "0 1.sub.2 3 6 9 11 13",
        4: "0 1.sub.2 3 6 9 12 14 16",
    },
    "official": "conv_first trunk_conv upconv1 upconv2 upconv3 upconv4 HRconv conv_last",
    "basicsr": "conv_first conv_body conv_up1 conv_up2 conv_up3 conv_up4 conv_hr conv_last",
    "aladdinpersson": "initial conv upsamples.0.conv upsamples.1.conv upsamples.2.conv "
    "upsamples.3.conv final.0 final.2",
    "lornatang": "conv1 conv2 upsampling1.0 upsampling2.0 upsampling3.0 upsampling4.0 "
    "conv3.0 conv4",
    "lornatang 0.2": "conv1 conv2 up1 up2 up3 up4 conv3.0 conv4",
}
STAGES = {1: 0, 2: 1, 3: 1, 4: 2, 8: 3, 16: 4}


def reference(scale=4, **arguments):
    """spandrel's network, with small features and weights that use the whole range of colours."""
    torch.manual_seed(1)
    return ESRGAN(**{"num_filters": 16, "num_blocks": 2, "scale": scale} | arguments).eval()


def around(layout, stages):
    if layout == "old":
        return [f"model.{number}" for number in AROUND["old"][stages].split()]
    names = AROUND[layout].split()
    return names[: 2 + stages] + names[-2:]


def in_layout(net, layout, stages):
    """The reference's weights under another layout's names."""
    names = dict(zip(around("old", stages), around(layout, stages), strict=True))
    for i, j, k in ((i, j, k) for i in range(2) for j in range(3) for k in range(5)):
        names[DENSE["old"](i, j, k)] = DENSE[layout](i, j, k)
    state = {}
    for name, tensor in net.state_dict().items():
        conv, _, kind = name.rpartition(".")
        state[f"{names[conv]}.{kind}"] = tensor
    return state


@torch.no_grad()
def assert_equal_output(ours, theirs, size=(13, 18), channels=3, atol=1e-5):
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0))
    expected = theirs(image)
    assert expected.std() > 1e-3  # an image, not a constant that any network would give
    torch.testing.assert_close(ours(image), expected, rtol=0, atol=atol)


def assert_equal_weights(ours, theirs, tolerance=0.0):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def small(**arguments):
    torch.manual_seed(0)
    return RRDBNet(**{"features": 16, "blocks": 2} | arguments).eval()


# ------------------------------------------------------------------------------------- files in


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("scale", STAGES)
def test_every_layout_loads_and_computes_what_spandrel_does(layout, scale, tmp_path):
    theirs = reference(scale)
    torch.save(in_layout(theirs, layout, STAGES[scale]), tmp_path / "net.pth")
    ours = load_generator(tmp_path / "net.pth", scale=3 if scale == 3 else None)
    assert ours.scale == scale and not ours.training
    assert_equal_output(ours, theirs)


def test_every_layout_that_spandrel_recognises_it_loads_from_our_files(tmp_path):
    for layout in ("old", "official", "basicsr"):  # it knows no other
        theirs = reference()
        torch.save(in_layout(theirs, layout, 2), tmp_path / "net.pth")
        loaded = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model
        assert_equal_output(load_generator(tmp_path / "net.pth"), loaded)


WRAPPED = {
    **{
        key: lambda state, key=key: {key: state, "iter": 3}
        for key in (
            *("model_state_dict", "state_dict", "ema_state_dict"),
            *("params_ema", "params-ema", "params", "model", "net"),
        )
    },
    "any single key": lambda state: {"generator_weights": state},
    "two dicts": lambda state: {"state_dict": {"params": state}},
    **{
        prefix: lambda state, prefix=prefix: {prefix + name: t for name, t in state.items()}
        for prefix in ("_orig_mod.", "module.", "netG.", "generator_ema.", "generator.")
    },
    "compiled and parallel": lambda state: {f"module._orig_mod.{n}": t for n, t in state.items()},
    "average over raw": lambda state: {
        "params": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "params_ema": state,
    },
    "AveragedModel": lambda state: (
        {"n_averaged": torch.tensor(5)} | {f"module.{name}": t for name, t in state.items()}
    ),
    "mmagic": lambda state: {
        "meta": {"iter": 5},
        "state_dict": {
            "step_counter": torch.tensor(5),
            "discriminator.conv.weight": torch.zeros(1),
            "perceptual_loss.vgg.mean": torch.zeros(1),
            **{f"generator.{name}": torch.zeros_like(t) for name, t in state.items()},
            **{f"generator_ema.{name}": t for name, t in state.items()},
        },
    },
    "aladdinpersson": lambda state: {"state_dict": state, "optimizer": {"state": {}}},
    "parameters": lambda state: {n: torch.nn.Parameter(t) for n, t in state.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_and_prefixes_are_taken_off(wrapper, tmp_path):
    theirs = reference()
    torch.save(WRAPPED[wrapper](in_layout(theirs, "basicsr", 2)), tmp_path / "net.pth")
    assert_equal_output(load_generator(tmp_path / "net.pth"), theirs)


@pytest.mark.parametrize(
    "file", ["a.pth", "a.pt", "a.ckpt", "a.pth.tar", "a.safetensors", "wrong.pth"]
)
def test_the_content_tells_the_kind_of_file(file, tmp_path):
    theirs, path = reference(), tmp_path / file
    if file in ("a.safetensors", "wrong.pth"):
        safetensors.torch.save_file(theirs.state_dict(), path)
    else:
        torch.save(theirs.state_dict(), path)
    assert_equal_output(load_generator(path), theirs)


def test_torch_s_format_before_1_6(tmp_path):
    theirs = reference()
    torch.save(theirs.state_dict(), tmp_path / "net.pth", _use_new_zipfile_serialization=False)
    assert_equal_output(load_generator(tmp_path / "net.pth"), theirs)


@pytest.mark.parametrize("factor, true_scale", [(2, 2), (4, 1), (2, 1)])
@pytest.mark.parametrize("size", [(12, 16), (13, 18), (7, 5)])
def test_pixel_unshuffle(factor, true_scale, size, tmp_path):
    scale = true_scale * factor  # of the layers, as spandrel counts
    theirs = reference(scale, in_nc=3 * factor**2, shuffle_factor=factor)
    torch.save(in_layout(theirs, "basicsr", STAGES[scale]), tmp_path / "net.pth")
    ours = load_generator(tmp_path / "net.pth")
    assert (ours.scale, ours.unshuffle, ours.in_channels) == (true_scale, factor, 3)
    assert_equal_output(ours, theirs, size)


def test_esrgan_plus_gray_and_half(tmp_path):
    theirs = reference(plus=True)
    torch.save(theirs.state_dict(), tmp_path / "plus.pth")
    assert_equal_output(load_generator(tmp_path / "plus.pth"), theirs)

    theirs = reference(in_nc=1, out_nc=1)
    torch.save(theirs.state_dict(), tmp_path / "gray.pth")
    assert load_generator(tmp_path / "gray.pth").in_channels == 1
    assert_equal_output(load_generator(tmp_path / "gray.pth"), theirs, channels=1)

    theirs = reference().half()
    torch.save(theirs.state_dict(), tmp_path / "half.pth")
    assert_equal_output(load_generator(tmp_path / "half.pth"), theirs.float())


def test_the_scale_is_checked(tmp_path):
    torch.save(reference(2).state_dict(), tmp_path / "net.pth")
    assert load_generator(tmp_path / "net.pth").scale == 2
    assert load_generator(tmp_path / "net.pth", scale=2).scale == 2
    assert load_generator(tmp_path / "net.pth", scale=3).scale == 3
    with pytest.raises(WeightsError, match=r"net.pth is x2, not x4"):
        load_generator(tmp_path / "net.pth", scale=4)


def test_another_scale_is_started_from_an_x16_network(tmp_path):
    net, other = small(scale=4), small(scale=16)
    save_generator(other, tmp_path / "net.safetensors")
    _, fresh, unused = weights.init_generator(net, tmp_path / "net.safetensors")
    assert not fresh
    assert {name.split(".")[0] for name in unused} == {"conv_up3", "conv_up4"}
    assert torch.equal(net.conv_up2.weight, other.conv_up2.weight)


def test_a_run_s_last_pt_gives_its_average(tmp_path):
    net, other = small(scale=3), small(scale=3)
    with torch.no_grad():
        other.conv_last.weight.mul_(2)
    state = dict(net_g=other.state_dict(), ema=net.state_dict(), config={"scale": 3}, step=5)
    torch.save(state, tmp_path / "last.pt")
    loaded = load_generator(tmp_path / "last.pt")
    assert loaded.scale == 3
    assert torch.equal(loaded.conv_last.weight, net.conv_last.weight)


# ------------------------------------------------------------------------------------ files out


@pytest.mark.parametrize("layout", ["basicsr", "official", "old"])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("scale", [1, 2, 4, 8, 16])
def test_spandrel_reads_what_we_write(layout, suffix, scale, tmp_path):
    net, path = small(scale=scale), tmp_path / f"net.{suffix}"
    save_generator(net, path, layout)
    theirs = spandrel.ModelLoader().load_from_file(path)
    assert theirs.architecture.id == "ESRGAN" and theirs.scale == scale
    assert_equal_output(net, theirs.model)
    state = safetensors.torch.load_file(path) if suffix == "safetensors" else torch.load(path)
    state = state.get("params", state)
    assert set(state) == set(in_layout(reference(scale), layout, STAGES[scale]))


@pytest.mark.parametrize(
    "arguments",
    [
        dict(scale=2, unshuffle=2),
        dict(scale=1, unshuffle=4),
        dict(in_channels=1, out_channels=1),
        dict(features=24, blocks=3),
    ],
)
def test_spandrel_reads_our_other_networks(arguments, tmp_path):
    net = small(**arguments)
    for layout in ("basicsr", "official", "old"):
        save_generator(net, tmp_path / "net.safetensors", layout)
        theirs = spandrel.ModelLoader().load_from_file(tmp_path / "net.safetensors")
        assert theirs.scale == net.scale
        assert_equal_output(net, theirs.model, channels=net.in_channels)


def test_esrgan_plus_is_written_in_its_own_layout_only(tmp_path):
    net = small(plus=True)
    save_generator(net, tmp_path / "net.pth", "old")
    assert_equal_output(net, spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model)
    with pytest.raises(ValueError, match="choose old, onnx or ncnn"):
        save_generator(net, tmp_path / "net.safetensors")


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("growth", [32, 8])
def test_round_trip_with_metadata(scale, growth, tmp_path):
    net = small(scale=scale, growth=growth)
    for name, layout in (
        ("a.safetensors", "basicsr"),
        ("b.safetensors", "old"),
        ("c.pth", "basicsr"),
    ):
        save_generator(net, tmp_path / name, layout, {"phase": "psnr", "step": 3})
        loaded = load_generator(tmp_path / name)
        assert loaded.scale == scale and not loaded.training
        assert_equal_weights(loaded, net)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {
            "network": "RRDBNet",
            "scale": str(scale),
            "phase": "psnr",
            "step": "3",
        }


def test_a_full_size_network_goes_to_spandrel_and_back(tmp_path):
    torch.manual_seed(0)
    net = RRDBNet().eval()
    save_generator(net, tmp_path / "net.pth", "old")
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model
    assert_equal_output(net, theirs)
    torch.save(theirs.state_dict(), tmp_path / "back.pth")
    back = load_generator(tmp_path / "back.pth").state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in net.state_dict().items())
    save_generator(net.half(), tmp_path / "half.safetensors")
    size = (tmp_path / "half.safetensors").stat().st_size
    assert size == pytest.approx(2 * 16_697_987, rel=0.01)


def small_srresnet(**arguments):
    """With running statistics as after training."""
    torch.manual_seed(0)
    net = SRResNet(**{"features": 8, "blocks": 2} | arguments).train()
    net(torch.rand(4, net.in_channels, 12, 12))
    return net.eval()


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_srresnet_comes_back_as_it_was(scale, batch_norm, suffix, tmp_path):
    net = small_srresnet(scale=scale, batch_norm=batch_norm)
    save_generator(net, tmp_path / f"net.{suffix}", metadata={"step": 3})
    loaded = load_generator(tmp_path / f"net.{suffix}")
    assert loaded.scale == scale and not loaded.training
    assert_equal_output(loaded, net, atol=0)
    if suffix == "safetensors":
        with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
            assert file.metadata()["network"] == "SRResNet"
    with pytest.raises(ValueError, match="SRResNet has no official layout"):
        save_generator(net, tmp_path / "net.pth", "official")


def test_srresnet_in_onnxruntime(tmp_path):
    net = small_srresnet()
    save_generator(net, tmp_path / "net.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert_equal_output(
        lambda image: torch.tensor(session.run(None, {"low_res": image.numpy()})[0]), net
    )


@pytest.mark.parametrize("name, shape", [("conv_up1", ()), ("conv_first", (0, 3, 9, 9))])
def test_a_damaged_srresnet_is_named(name, shape, tmp_path):
    state = small_srresnet().state_dict() | {f"{name}.weight": torch.zeros(shape)}
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=f"no complete SRResNet.*{name}"):
        load_generator(tmp_path / "net.pth")


def test_an_incomplete_srresnet_is_named(tmp_path):
    state = small_srresnet().state_dict()
    torch.save({k: v for k, v in state.items() if k != "bn_body.running_var"}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"no complete SRResNet.*bn_body.running_var is missing"):
        load_generator(tmp_path / "net.pth")


def test_equal_weights_make_equal_files(tmp_path):
    metadata = {key: key for key in ("order", "that", "nobody", "knows", "beforehand")}
    for name in "ab":
        save_generator(small(), tmp_path / f"{name}.safetensors", metadata=metadata)
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in "ab"}) == 1


def test_other_layouts_and_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors or \.pth"):
        save_generator(small(), tmp_path / "net.ckpt")
    with pytest.raises(ValueError, match=r"\.onnx"):
        save_generator(small(), tmp_path / "net.pth", layout="onnx")
    with pytest.raises(ValueError, match=r"basicsr is written .*; \.onnx is of the layout onnx$"):
        save_generator(small(), tmp_path / "net.onnx")
    with pytest.raises(ValueError, match="basicsr, official, old, onnx"):
        save_generator(small(), tmp_path / "net.safetensors", layout="new")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save_generator(small(), path)
    before = path.read_bytes()

    @contextmanager
    def full(path):
        with replacing(path) as file:
            yield file
            raise OSError("No space left on device")

    monkeypatch.setattr(weights, "replacing", full)
    with pytest.raises(OSError, match="No space"):
        save_generator(small(features=8), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "arguments",
    [
        *(dict(scale=scale) for scale in (1, 2, 3, 4, 8)),
        dict(scale=2, unshuffle=2),
        dict(plus=True),
        dict(in_channels=1, out_channels=1),
        dict(half=True),
    ],
    ids=str,
)
def test_onnxruntime_computes_the_same_at_any_size(arguments, tmp_path):
    half = arguments.pop("half", False)
    net, path = small(**arguments), tmp_path / "net.onnx"
    net.half() if half else net.float()
    save_generator(net, path, "onnx", {"phase": "gan", "step": 7})
    session = onnxruntime.InferenceSession(path)
    told = session.get_modelmeta().custom_metadata_map
    assert told == {"network": "RRDBNet", "scale": str(net.scale), "phase": "gan", "step": "7"}
    for size in ((24, 20), (17, 33), (64, 8)):
        image = torch.rand(1, net.in_channels, *size)
        with torch.no_grad():
            expected = net(image.half()).float() if half else net(image)
        given = image.half() if half else image
        (result,) = session.run(None, {"low_res": given.numpy()})
        atol = 2e-3 if half else 1e-5
        torch.testing.assert_close(torch.from_numpy(result).float(), expected, rtol=0, atol=atol)
        assert result.shape[2:] == (size[0] * net.scale, size[1] * net.scale)


def test_onnx_asks_for_its_package(tmp_path, monkeypatch):
    real_import = builtins.__import__

    def without_onnx(name, *rest):
        if name == "onnx":
            raise ImportError(name)
        return real_import(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(WeightsError, match="pip install onnx"):
        save_generator(small(), tmp_path / "net.onnx", "onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------ bad files


@functools.cache
def bad_contents():
    """What a file might hold, and what has to be said of it."""
    state = small().state_dict()
    nothing = torch.zeros(1)
    huge = torch.zeros(1).expand(16, 10**13)
    changed = lambda **tensors: state | {n.replace("__", "."): t for n, t in tensors.items()}  # noqa: E731
    old = reference().state_dict()
    return {
        "missing": (
            {n: t for n, t in state.items() if n != "conv_hr.bias"},
            "conv_hr.bias is missing",
        ),
        "left over": (state | {"extra.weight": nothing}, "extra.weight is left over"),
        "no last": (
            {n: t for n, t in state.items() if "last" not in n},
            "conv_last.weight is missing",
        ),
        "a block short": (
            {n: t for n, t in state.items() if not n.startswith("body.0")},
            "no complete RRDBNet: body.0.rdb1.conv1.weight is missing",
        ),
        "a gap": (
            {n.replace("body.1", "body.7"): t for n, t in state.items()},
            r"body.7.\S+ is left",
        ),
        "two layouts": (state | {"model.0.weight": nothing}, "model.0.weight is left over"),
        "mixed": (old | {"conv_hr.weight": nothing}, "mixes the names of two layouts"),
        "shape": (
            changed(conv_hr__bias=torch.zeros(3)),
            r"conv_hr.bias has shape \(3,\), not \(16,\)",
        ),
        "flat": (changed(conv_first__weight=torch.zeros(16)), "conv_first.weight is missing or no"),
        "number": (changed(body__0__rdb1__conv1__weight=torch.tensor(1.0)), "missing or no kernel"),
        "integers": (changed(conv_hr__bias=torch.zeros(16).long()), "holds torch.int64"),
        "complex": (changed(conv_hr__bias=torch.zeros(16) * 1j), "holds torch.complex64"),
        "sparse": (changed(conv_hr__bias=torch.zeros(16).to_sparse()), "torch.sparse_coo"),
        "meta": (changed(conv_hr__bias=torch.zeros(16, device="meta")), "no plain real numbers"),
        "nan": (
            changed(conv_hr__bias=torch.full((16,), torch.nan)),
            "conv_hr.bias holds .* not finite",
        ),
        "inflated": (changed(conv_last__weight=huge), "conv_last.weight"),
        "pixel shuffle": (
            {
                "model.0.weight": torch.zeros(64, 3, 3, 3),
                "model.1.sub.0.RDB1.conv1.0.weight": torch.zeros(32, 64, 3, 3),
                "model.2.weight": torch.zeros(256, 64, 3, 3),
            },
            "upsamples by pixel shuffle",
        ),
        "x32": (
            state
            | {
                f"conv_up{m}.{k}": state[f"conv_up1.{k}"]
                for m in (3, 4, 5)
                for k in ("weight", "bias")
            },
            "is x32",
        ),
        "discriminator": (VGGDiscriminator(32).state_dict(), "holds a discriminator"),
        "BasicSR's discriminator": (
            {"conv0_0.weight": nothing, "linear1.bias": nothing},
            "a discriminator",
        ),
        "Real-ESRGAN's discriminator": (
            {"params": {"conv1.weight_orig": nothing}},
            "a discriminator",
        ),
        "VGG19": (
            {"features.0.weight": nothing, "classifier.6.weight": nothing},
            "image classifier",
        ),
        "SRFlow": (
            {f"RRDB.{name}": tensor for name, tensor in small().state_dict().items()}
            | {"flowUpsamplerNet.layers.0.bias": nothing},
            "SRFlow's network",
        ),
        "SRDiff": (
            {
                "state_dict": {
                    "model": {f"rrdb.{name}": t for name, t in small().state_dict().items()}
                    | {"denoise_fn.downs.0.0.block.0.weight": nothing, "betas": nothing}
                }
            },
            "a diffusion model",
        ),
        "SPSR": (
            {"model.0.weight": nothing, "model.1.sub.0.RDB1.conv1.0.weight": nothing}
            | {"f_HR_conv1.0.weight": nothing, "b_concat_1.0.weight": nothing},
            "SPSR's network",
        ),
        "SRVGG": (
            {"params": {"body.0.weight": nothing, "body.1.weight": nothing}},
            "SRVGGNetCompact",
        ),
        "training state": ({"iter": 5, "optimizers": [{}], "schedulers": [{}]}, "a training state"),
        "aladdinpersson's discriminator": (
            {"state_dict": {"blocks.0.cnn.weight": nothing}, "optimizer": {}},
            "not an ESRGAN generator",
        ),
        "broken last.pt": ({"ema": None, "config": {"scale": 4}}, "not an ESRGAN generator"),
        "empty": ({}, "holds nothing"),
        "empty inside": ({"params": {}}, "holds nothing"),
        "numbers": ({"conv_first.weight": 3}, "which is no tensor"),
        "other names": ({1: nothing, None: nothing}, "not an ESRGAN generator: it holds 1, None"),
        "list": ([1, 2], "holds a list"),
        "tensor": (nothing, "holds a Tensor"),
    }


@pytest.mark.parametrize("kind", bad_contents())
def test_wrong_contents_are_named(kind, tmp_path):
    content, message = bad_contents()[kind]
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=message) as error:
        load_generator(tmp_path / "net.pth")
    assert str(error.value).startswith(str(tmp_path / "net.pth"))


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    torch.save(small().state_dict(), folder / "whole")
    safetensors.torch.save_file(small().state_dict(), folder / "safe")
    torch.jit.save(torch.jit.trace(small(), torch.zeros(1, 3, 8, 8)), folder / "script")
    whole, safe = (folder / "whole").read_bytes(), (folder / "safe").read_bytes()
    return {
        "nothing": (b"", "is empty"),
        "web page": (b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
        "LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "cut": (whole[:5000], "cut short"),
        "cut at the end": (whole[:-100], "cut short"),
        "cut safetensors": (safe[: len(safe) // 2], "cut short"),
        "cut header": (safe[:100], "cut short"),
        "a hole": (whole[:200] + bytes(9000) + whole[9200:], "cannot be read as weights"),
        "an old .tar": (bytes(1024), "since 2017"),
        "picture": (b"\x89PNG\r\n\x1a\n" + bytes(500), "torch.save did not write it"),
        "text": (b"weights", "torch.save did not write it"),
        "TorchScript": ((folder / "script").read_bytes(), "is a TorchScript program"),
        "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(100), "it is an archive; unpack it"),
        "zip": (zipped({"net.pth": whole}), "it is an archive of net.pth; unpack it"),
        "another pickle": (
            saved_as(small().state_dict(), pickle_protocol=4),
            "pickled in a way that is not read; save the network's state_dict",
        ),
    }


def zipped(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def saved_as(state, **options):
    content = io.BytesIO()
    torch.save(state, content, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    "kind",
    [
        *("nothing", "web page", "LFS", "cut", "cut at the end", "cut safetensors", "cut header"),
        *("a hole", "an old .tar", "picture", "text", "TorchScript"),
        *("7z", "zip", "another pickle"),
    ],
)
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_unreadable_files_are_named(kind, name, bad_files, tmp_path):
    content, message = bad_files[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        load_generator(path)
    assert str(error.value).startswith(str(path))


def test_a_header_whose_length_looks_like_a_web_page_is_read(tmp_path):
    """0x3C20 bytes: a space and a <."""
    state = small().state_dict()
    length = int.from_bytes(safetensors_file(state, {"x": ""})[:8], "little")
    content = safetensors_file(state, {"x": "a" * (0x3C20 - length)})
    assert content[:9] == b" <\0\0\0\0\0\0{"
    (tmp_path / "net.safetensors").write_bytes(content)
    assert_equal_weights(load_generator(tmp_path / "net.safetensors"), small(), 0)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"net.pth: no such file.*RealESRGAN_x4plus"):
        load_generator(tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        load_generator(tmp_path)
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    with pytest.raises(WeightsError, match="written but not read"):
        load_generator(tmp_path / "net.onnx")


class HistoryBuffer:
    """As mmengine's of 0.7.3: its state holds arrays of NumPy, and its methods."""

    def __init__(self):
        self.log = np.arange(3.0)

    def mean(self):
        return self.log.mean()

    def __getstate__(self):
        return self.__dict__ | {"statistics_methods": {"mean": HistoryBuffer.mean}}


class DictConfig:
    """As OmegaConf's: its state holds types, and what resolvers gave."""

    def __init__(self):
        self.metadata = {"ref_type": typing.Any, "object_type": dict, "key_type": str}
        self.metadata |= {"element_type": dict[str, int], "flags": {"readonly": bool}}
        self.content = {"blocks": [23, int, range(3)], "ref_type": typing.Dict[str, list]}  # noqa: UP006
        self.content |= {"kinds": [float, bytes, tuple, object, type, frozenset([1]), slice(2)]}
        self.resolver_cache = collections.defaultdict(dict, {"now": {"": "12:00"}})


@pytest.fixture
def save_with(monkeypatch):
    """Saves weights and what stands beside them, as programs do that are not installed here."""
    modules = {"mmengine.logging": HistoryBuffer, "omegaconf.dictconfig": DictConfig}

    def save(path, beside, **options):
        with monkeypatch.context() as patch:
            for name, kind in modules.items():
                patch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
                patch.setitem(sys.modules, name, types.ModuleType(name))
                setattr(sys.modules[name], kind.__name__, kind)
                patch.setattr(kind, "__module__", name)
            patch.setattr(HistoryBuffer.mean, "__module__", "mmengine.logging")
            torch.save({"params": small().state_dict()} | beside, path, **options)

    return save


FORMATS = [{}, {"_use_new_zipfile_serialization": False}]  # and the one before torch 1.6


@pytest.mark.parametrize("options", FORMATS, ids=["zip", "older"])
def test_what_stands_beside_weights_is_passed_over(options, save_with, tmp_path):
    beside = {"log": HistoryBuffer(), "best": np.float64(30.1), "args": argparse.Namespace(lr=1)}
    beside |= {"folder": Path("a/b"), "config": DictConfig(), "torch": torch.__version__}
    beside |= {"losses": collections.deque([1.0, 2.0], maxlen=2)}
    save_with(tmp_path / "net.pth", beside, **options)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "net.pth", weights_only=True)
    assert_equal_weights(load_generator(tmp_path / "net.pth"), small(), 0)


@pytest.mark.parametrize("options", FORMATS, ids=["zip", "older"])
@pytest.mark.parametrize("kind", [typing.OrderedDict, typing.OrderedDict[str, torch.Tensor]])
def test_a_state_dict_made_by_typing_s_ordered_dict_is_read(kind, options, tmp_path):
    """chaiNNer's interpolated networks are such dicts: they keep the type that made them."""
    state = kind()
    state.update(small().state_dict())
    torch.save(state, tmp_path / "net.pth", **options)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "net.pth", weights_only=True)
    assert_equal_weights(load_generator(tmp_path / "net.pth"), small(), 0)


def writing(path):
    """Calls that make a file, and what is said of weights with one beside them."""
    text = f"open({str(path)!r}, 'w')"
    return {
        "open": (open, (str(path), "w"), r"asks to run code \(\w*\.open\)"),
        "system": (os.system, (f"touch {path}",), r"asks to run code \(\w+\.system\)"),
        "eval": (eval, (text,), r"asks to run code \(builtins\.eval\)"),
        "exec": (exec, (text,), r"asks to run code \(builtins\.exec\)"),
        "a method": (Path.touch, (path,), "pickled in a way that is not read"),
    }


@pytest.mark.parametrize("options", FORMATS, ids=["zip", "older"])
@pytest.mark.parametrize("call", ["open", "system", "eval", "exec", "a method"])
def test_code_beside_weights_is_refused_and_not_run(call, options, save_with, tmp_path):
    marker = tmp_path / "marker"
    function, arguments, message = writing(marker)[call]

    class Bomb:
        def __reduce__(self):
            return function, arguments

    beside = {"args": argparse.Namespace(lr=1), "log": HistoryBuffer(), "bomb": Bomb()}
    save_with(tmp_path / "net.pth", beside, **options)
    with pytest.raises(WeightsError, match=message):
        load_generator(tmp_path / "net.pth")
    assert not marker.exists()
    torch.save(Bomb(), tmp_path / "alone.pth")
    torch.load(tmp_path / "alone.pth", weights_only=False)  # it would have done it
    assert marker.exists()


@pytest.mark.parametrize("options", FORMATS, ids=["zip", "older"])
def test_a_file_that_asks_for_dozens_of_kinds_is_refused(options, tmp_path, monkeypatch):
    kinds = [type(f"Kind{i}", (), {"__module__": "mmcv"}) for i in range(60)]
    monkeypatch.setitem(sys.modules, "mmcv", types.ModuleType("mmcv"))
    for kind in kinds:
        setattr(sys.modules["mmcv"], kind.__name__, kind)
    torch.save({"params": small().state_dict(), "kinds": kinds}, tmp_path / "net.pth", **options)
    with pytest.raises(WeightsError, match=r"asks to run code \(mmcv\.Kind\d+\)"):
        load_generator(tmp_path / "net.pth")


def test_weights_that_fp16_cannot_hold_are_not_written_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = small()
    net.conv_first.weight.data[0, 0, 0, 0] = 1e5
    save_generator(net, "net.pth")
    with pytest.raises(WeightsError, match="too large for --half"):
        run(monkeypatch, "convert", "net.pth", "-o", "half.safetensors", "--half")
    assert not Path("half.safetensors").exists()


def test_code_in_a_pickle_is_refused_and_not_run(malicious_pickle):
    path, marker = malicious_pickle
    with pytest.raises(WeightsError, match=r"asks to run code \(\w*\.open\)"):
        load_generator(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file would have done it
    assert marker.exists()


# -------------------------------------------------------------------------------- interpolation


def two_networks():
    psnr_net, gan_net = small(), small()
    with torch.no_grad():
        for parameter in gan_net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return psnr_net, gan_net


def test_interpolation_is_the_paper_s_formula_for_every_weight():
    psnr_net, gan_net = two_networks()
    for alpha in (0.0, 0.2, 0.8, 1.0):
        mixed = interpolate(psnr_net, gan_net, alpha).state_dict()
        for name, gan in gan_net.state_dict().items():
            exact = (1 - alpha) * psnr_net.state_dict()[name].double() + alpha * gan.double()
            torch.testing.assert_close(mixed[name].double(), exact, rtol=1e-6, atol=1e-7)
    ends = interpolate(psnr_net, gan_net, 0), interpolate(psnr_net, gan_net, 1)
    for end, net in zip(ends, two_networks(), strict=True):  # both are as they were
        assert_equal_weights(end, net)


def test_interpolation_takes_batch_norm_s_statistics_along():
    a, b = small_srresnet(), small_srresnet(blocks=2)
    b.bn_body.running_mean += 1
    b.bn_body.running_var *= 3
    mixed = interpolate(a, b, 0.25).bn_body
    torch.testing.assert_close(mixed.running_mean, a.bn_body.running_mean + 0.25)
    torch.testing.assert_close(mixed.running_var, a.bn_body.running_var * 1.5)


def test_only_like_networks_are_interpolated():
    with pytest.raises(WeightsError, match="network SRResNet, not RRDBNet"):
        interpolate(small_srresnet(), small(), 0.5)
    with pytest.raises(
        WeightsError, match="the PSNR network has features 8, not 16 and blocks 1, not 2"
    ):
        interpolate(small(features=8, blocks=1), small(), 0.5)
    with pytest.raises(WeightsError, match="scale 2, not 3"):
        interpolate(small(scale=2), small(scale=3), 0.5)
    with pytest.raises(WeightsError, match=r"alpha is 1\.5"):
        interpolate(small(), small(), 1.5)


# --------------------------------------------------------------------------------- command line


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["weights.py", *map(str, arguments)])
    weights.main()


def test_convert_to_every_layout(tmp_path, monkeypatch, capsys):
    net = small()
    source = tmp_path / "net.safetensors"
    save_generator(net, source, metadata={"phase": "gan", "step": 9})
    for layout in ("basicsr", "official", "old"):
        for suffix in ("pth", "safetensors"):
            out = tmp_path / f"{layout}.{suffix}"
            run(monkeypatch, "convert", source, "-o", out, "--to", layout)
            assert f"x4, {layout}" in capsys.readouterr().out
            assert_equal_output(net, load_generator(out))
    with safetensors.safe_open(tmp_path / "old.safetensors", "pt") as file:
        assert file.metadata() == {
            **{"network": "RRDBNet", "scale": "4", "phase": "gan", "step": "9"},
            "source": "net.safetensors",
        }
    run(monkeypatch, "convert", source, "-o", tmp_path / "half.safetensors", "--half")
    state = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert_equal_output(load_generator(tmp_path / "half.safetensors"), net, atol=5e-3)


def test_convert_keeps_what_is_x3(tmp_path, monkeypatch, capsys):
    torch.save(reference(3).state_dict(), tmp_path / "net.pth")
    arguments = "convert", tmp_path / "net.pth", "-o", tmp_path / "net.safetensors"
    run(monkeypatch, *arguments, "--scale", "3")
    assert "cannot tell x3 from x2" in capsys.readouterr().out
    assert_equal_output(load_generator(tmp_path / "net.safetensors"), reference(3))


def test_a_mixture_has_no_scores_of_what_it_was_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scores = {"psnr": 28.5, "bicubic_ssim": 0.7, "niqe": 5.0, "step": 7}
    save_generator(small(), "net.safetensors", metadata=scores)
    run(monkeypatch, "convert", "net.safetensors", "-o", "same.safetensors")
    run(monkeypatch, "interpolate", *["net.safetensors"] * 2, "--alpha", "0.5", "-o", "mix.pth")
    same = read_generator("same.safetensors").metadata
    assert same["psnr"] == "28.5" and same["step"] == "7"
    mixed = read_generator("mix.pth").metadata
    assert mixed["step"] == "7" and mixed["alpha"] == "0.5"
    assert not mixed.keys() & {"psnr", "bicubic_ssim", "niqe"}


def test_interpolate_files_of_two_layouts(tmp_path, monkeypatch):
    psnr_net, gan_net = two_networks()
    psnr, gan, out = (
        tmp_path / name for name in ("psnr.pth", "gan.safetensors", "mix.safetensors")
    )
    save_generator(psnr_net, psnr, "old")
    save_generator(gan_net, gan, "official", {"phase": "gan"})
    run(monkeypatch, "interpolate", psnr, gan, "--alpha", "0.8", "-o", out)
    assert_equal_weights(load_generator(out), interpolate(psnr_net, gan_net, 0.8), 1e-6)
    with safetensors.safe_open(out, "pt") as file:
        assert file.metadata()["source"] == "psnr.pth + gan.safetensors"
        assert file.metadata()["alpha"] == "0.8"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("convert net.pth -o net.pth", "net.pth is an input"),
        ("convert net.pth -o none/net.pth", "none: no such folder"),
        ("convert net.pth -o net.ckpt", r"\.safetensors or \.pth"),
        ("convert net.pth -o out.pth --scale 5", "net.pth is x4, not x5"),
        ("convert missing.pth -o out.pth", "missing.pth: no such file"),
        ("convert missing.pth -o missing.pth", "missing.pth: no such file"),
        ("interpolate net.pth net.pth --alpha 2 -o out.pth", "alpha is 2"),
        ("convert net.pth -o folder.pth", "folder.pth"),
    ],
)
def test_usage_that_cannot_be_carried_out(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_generator(small(), "net.pth")
    (tmp_path / "folder.pth").mkdir()
    before = (tmp_path / "net.pth").read_bytes()
    with pytest.raises(WeightsError, match=message):
        run(monkeypatch, *arguments.split())
    assert (tmp_path / "net.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.pth", "net.pth"]


@pytest.mark.parametrize("command", ["convert net.pth", "interpolate other.pth net.pth --alpha 1"])
def test_an_input_is_not_replaced_under_another_spelling(command, tmp_path, monkeypatch):
    """As where names ignore case (macOS): both are names of one file."""
    monkeypatch.chdir(tmp_path)
    for name in ("net.pth", "other.pth"):
        save_generator(small(), name)
    if not os.path.exists("NET.pth"):
        os.link("net.pth", "NET.pth")
    with pytest.raises(WeightsError, match=r"NET\.pth is an input; choose another name"):
        run(monkeypatch, *command.split(), "-o", "NET.pth")
    run(monkeypatch, *command.split(), "-o", "new.pth")


def test_the_command_ends_with_a_message_and_status_2(tmp_path):
    command = [sys.executable, "weights.py", "convert", str(tmp_path / "no.pth"), "-o", "out.pth"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert result.stderr.startswith("weights.py: ") and "no such file" in result.stderr
    assert "Traceback" not in result.stderr


# --------------------------------------------------------------------------------------- in the box


@pytest.fixture
def in_the_box():
    """The networks in the box, as spandrel reads them; by their names."""
    files = {name: BOX / f"{name}.safetensors" for name in ("compact_x4_psnr", "compact_x4_gan")}
    return {n: spandrel.ModelLoader().load_from_file(f).model.float() for n, f in files.items()}


def test_names_in_the_box_are_found_from_any_folder(in_the_box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, theirs in in_the_box.items():
        Path(name).mkdir()  # results of an earlier command, say: no file
        for given in (name, Path(name), f"{name}.safetensors"):
            assert_equal_weights(load_generator(given), theirs)


@pytest.mark.parametrize("name", ["compact_x4_gan", "compact_x4_gan.safetensors"])
def test_a_file_of_that_name_comes_before_the_box(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_generator(small(), "own.safetensors")
    Path("own.safetensors").rename(name)
    assert_equal_weights(load_generator(name), small())


def test_the_commands_take_names_in_the_box(in_the_box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "interpolate", *in_the_box, "--alpha", "0.5", "-o", "half.safetensors")
    for half, *ends in zip(
        load_generator("half.safetensors").parameters(),
        *(net.parameters() for net in in_the_box.values()),
        strict=True,
    ):
        torch.testing.assert_close(half, sum(ends) / 2)
    with safetensors.safe_open("half.safetensors", "pt") as file:
        source = file.metadata()["source"]
    assert source == "compact_x4_psnr.safetensors + compact_x4_gan.safetensors"


@pytest.mark.parametrize("name", ["compact_x4", "compact_x4_gan.pth", "RealESRGAN", "gan/compact"])
def test_an_unknown_name_lists_those_there_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as error:
        load_generator(name)
    said = str(error.value)
    assert said.startswith(f"{Path(name)}: no such file")
    for known in ("compact_x4_gan", "compact_x4_psnr", *formats.published.PUBLISHED):
        assert known in said


def test_the_newest_run_comes_first_and_of_each_run_the_gan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    times = {"old/gan": 5, "old/psnr": 5, "new/psnr": 9, "copied/gan": 1, "copied/psnr": 7}
    for name, seconds in times.items():
        path = Path("checkpoints", f"{name}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (seconds, seconds))
    if os.name != "nt":  # a link to what is gone
        Path("checkpoints/new/gan.safetensors").symlink_to("moved.safetensors")
    given = [
        path.with_suffix("").relative_to("checkpoints") for path in formats.published.trained()
    ]
    wanted = ["new/psnr", "copied/gan", "copied/psnr", "old/gan", "old/psnr"]
    assert given == [*map(Path, wanted)]


@pytest.mark.parametrize(
    "name",
    [
        *("realesr-general-x4v3", "realesr-general-wdn-x4v3.pth", "realesr-animevideov3"),
        *(f"realesr-animevideov3-x{scale}" for scale in (2, 3, 4)),
    ],
)
def test_real_esrgan_s_names_for_another_kind_of_network_are_known(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match="SRVGGNetCompact, which is not computed here") as error:
        load_generator(name)
    assert str(error.value).startswith(name.removesuffix(".pth"))
    assert "chaiNNer" in str(error.value) and "no such file" not in str(error.value)
    save_generator(small(), "own.pth")
    Path("own.pth").rename(name)
    assert_equal_weights(load_generator(name), small())  # a file of that name is itself


# ---------------------------------------------------------------------------------- downloading


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on this machine in place of GitHub; the test sets what it answers."""
    save_generator(small(), tmp_path / "net.pth")
    content = (tmp_path / "net.pth").read_bytes()

    given_up = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        answer = "whole"
        requests = 0

        def do_GET(self):
            Handler.requests += 1
            if Handler.answer == "hangs up":
                return
            self.send_response(404 if Handler.answer == "404" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            body = {"other": content[::-1], "cut": content[:1000], "stalls": content[:1000]}
            self.wfile.write(body.get(Handler.answer, content))
            self.wfile.flush()
            if Handler.answer == "stalls":
                given_up.wait(60)

        def log_message(self, *_):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{running.server_port}/net.pth"
    published = {"Net_x4": (url, hashlib.sha256(content).hexdigest())}
    monkeypatch.setattr(formats.published, "PUBLISHED", published)
    monkeypatch.chdir(tmp_path)
    yield Handler
    given_up.set()
    running.shutdown()
    running.server_close()


def test_a_published_name_is_downloaded_once(server, capsys):
    Path("Net_x4").mkdir()  # no file
    for name in ("Net_x4", "Net_x4.pth", "Net_x4"):
        assert_equal_output(load_generator(name), small(), atol=0)
    assert server.requests == 1
    assert capsys.readouterr().out.count("Downloading http://127.0.0.1") == 1
    assert [path.name for path in formats.published.DOWNLOADS.iterdir()] == ["Net_x4.pth"]


@pytest.mark.parametrize(
    "arguments",
    [
        dict(in_channels=12, out_channels=3, scale=4),  # a burst: like 3 channels, folded by 2
        dict(in_channels=1, out_channels=3, scale=2, unshuffle=2),
        dict(in_channels=3, out_channels=1, scale=4, unshuffle=2),
    ],
)
def test_what_would_be_read_as_another_network_is_not_written(arguments, tmp_path):
    net = RRDBNet(**arguments, features=8, blocks=1, growth=4)
    with pytest.raises(ValueError, match=f"takes {net.in_channels} channels and is x{net.scale}"):
        save_generator(net, tmp_path / "net.safetensors")
    assert not [*tmp_path.iterdir()]
    save_generator(net, tmp_path / "net.onnx", "onnx")  # a program, which nothing is guessed of


@pytest.mark.parametrize("layout", ["basicsr", "official", "old"])
def test_a_compiled_network_is_written_as_itself(layout, tmp_path):
    net = small()
    save_generator(net, tmp_path / "plain.pth", layout)
    save_generator(torch.compile(net), tmp_path / "compiled.pth", layout)
    plain, compiled = (torch.load(tmp_path / f"{name}.pth") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    mixed = interpolate(torch.compile(net), torch.compile(small()), 0.5)
    assert mixed.state_dict().keys() == net.state_dict().keys()


def test_threads_may_load_at_the_same_time(tmp_path, monkeypatch):
    """Torch's list of what a pickle may hold is the process's, and each of them shortens it."""
    beside = {"args": argparse.Namespace(lr=1)}
    torch.save({"params": small().state_dict()} | beside, tmp_path / "net.pth")
    load, refused, both = torch.load, formats.tensors._refused, threading.Barrier(2)
    second = threading.Thread(target=load_generator, args=(tmp_path / "net.pth",))

    def slowly(file, **options):
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and torch.serialization.get_safe_globals():  # both have put it on the list
            second.join(1)
        return load(file, **options)

    def together(*given):
        found = refused(*given)
        both.wait(10)
        return found

    monkeypatch.setattr(torch, "load", slowly)
    monkeypatch.setattr(formats.tensors, "_refused", together)
    second.start()
    assert_equal_output(load_generator(tmp_path / "net.pth"), small(), atol=0)
    second.join()


def test_json_is_all_that_there_is_even_where_it_is_downloaded(server, monkeypatch, capsys):
    run(monkeypatch, "describe", "Net_x4", "--openmodeldb")
    said = capsys.readouterr()
    assert json.loads(said.out)["scale"] == 4 and "Downloading" in said.err


@pytest.mark.parametrize(
    "answer, reason",
    [
        ("other", "invalid hash"),
        ("cut", "invalid hash|Incomplete"),
        ("404", "404"),
        ("stalls", "timed out"),
        ("hangs up", "closed connection"),
    ],
)
def test_a_broken_transfer_leaves_nothing_and_tells_the_way_out(
    server, answer, reason, monkeypatch
):
    server.answer = answer
    if answer == "stalls":
        monkeypatch.setattr(formats.published, "PATIENCE", 1)
    with pytest.raises(WeightsError, match=reason) as error:
        load_generator("Net_x4")
    url = formats.published.PUBLISHED["Net_x4"][0]
    assert f"fetch {url} yourself and put it at checkpoints" in str(error.value)
    assert not list(formats.published.DOWNLOADS.iterdir())
    server.answer = "whole"
    assert load_generator("Net_x4").scale == 4


def test_no_network(server, monkeypatch):
    address = "http://127.0.0.1:9/net.pth"  # nobody listens there
    monkeypatch.setattr(formats.published, "PUBLISHED", {"Net_x4": (address, "00000000")})
    with pytest.raises(WeightsError, match=f"could not be downloaded.*{address} yourself"):
        load_generator("Net_x4")


def test_the_published_files_are_these():
    assert sorted(formats.published.PUBLISHED) == [
        "ESRGAN_SRx4_DF2KOST_official-ff704c30",
        "RealESRGAN_x2plus",
        "RealESRGAN_x4plus",
        "RealESRGAN_x4plus_anime_6B",
        "RealESRNet_x4plus",
    ]
    for name, (url, sha256) in formats.published.PUBLISHED.items():
        assert url.startswith("https://github.com/xinntao/Real-ESRGAN/releases/download/v0.")
        assert url.endswith(f"/{name}.pth") and len(sha256) in (8, 64)

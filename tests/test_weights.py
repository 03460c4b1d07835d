"""Weight files: other tools read ours, ours come back whole, bad ones are named."""

import pytest
import safetensors.torch
import spandrel
import torch

from model import RRDBNet, VGGDiscriminator
from weights import WeightsError, load_generator, save_generator


def small(**arguments):
    torch.manual_seed(0)
    return RRDBNet(**{"features": 16, "blocks": 2} | arguments).eval()


@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_spandrel_reads_ours_and_computes_the_same(scale, tmp_path):
    net, image = small(scale=scale), torch.rand(1, 3, 24, 20)
    save_generator(net, tmp_path / "net.safetensors")
    theirs = spandrel.ModelLoader().load_from_file(tmp_path / "net.safetensors")
    assert theirs.architecture.id == "ESRGAN" and theirs.scale == scale
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(image), net(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("growth", [32, 8])
def test_round_trip(scale, growth, tmp_path):
    net, image = small(scale=scale, growth=growth), torch.rand(1, 3, 8, 9)
    save_generator(net, tmp_path / "net.safetensors", metadata={"phase": "psnr", "step": 3})
    loaded = load_generator(tmp_path / "net.safetensors")
    assert loaded.scale == scale and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(image), net(image))
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        assert file.metadata() == {
            "network": "RRDBNet",
            "scale": str(scale),
            "phase": "psnr",
            "step": "3",
        }


def test_equal_weights_make_equal_files(tmp_path):
    metadata = {key: key for key in ("order", "that", "nobody", "knows", "beforehand")}
    for name in "ab":
        save_generator(small(), tmp_path / f"{name}.safetensors", metadata=metadata)
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in "ab"}) == 1


def test_pth_and_training_checkpoints_load(tmp_path):
    net, other = small(scale=3), small(scale=3, in_channels=3)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    assert load_generator(tmp_path / "net.pth").scale == 2  # no metadata: x3 cannot be told
    state = dict(net_g=other.state_dict(), ema=net.state_dict(), config={"scale": 3})
    torch.save(state, tmp_path / "last.pt")
    loaded = load_generator(tmp_path / "last.pt")
    assert loaded.scale == 3
    assert torch.equal(loaded.conv_last.weight, net.conv_last.weight)


def test_other_layouts_and_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors or \.pth"):
        save_generator(small(), tmp_path / "net.ckpt")
    with pytest.raises(ValueError, match=r"\.onnx"):
        save_generator(small(), tmp_path / "net.pth", layout="onnx")
    with pytest.raises(ValueError, match="basicsr, official, old, onnx"):
        save_generator(small(), tmp_path / "net.safetensors", layout="new")


def bad_states():
    state = small().state_dict()
    without = {name: tensor for name, tensor in state.items() if name != "conv_hr.bias"}
    wrong = state | {"conv_hr.bias": torch.zeros(3)}
    return {
        "missing": (without, "conv_hr.bias is missing"),
        "left over": (state | {"extra.weight": torch.zeros(1)}, "extra.weight is left over"),
        "shape": (wrong, r"conv_hr.bias has shape \(3,\), not \(16,\)"),
        "discriminator": (VGGDiscriminator(32).state_dict(), "not an ESRGAN generator"),
        "empty": ({}, "not an ESRGAN generator"),
        "numbers": ({"conv_first.weight": 3}, "not an ESRGAN generator"),
        "list": ([1, 2], "holds a list"),
    }


@pytest.mark.parametrize("kind", bad_states())
def test_wrong_contents_are_named(kind, tmp_path):
    state, message = bad_states()[kind]
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=message) as error:
        load_generator(tmp_path / "net.pth")
    assert "net.pth" in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "pt", "ckpt", "safetensors"])
def test_unreadable_files_are_named(suffix, tmp_path):
    path = tmp_path / f"net.{suffix}"
    with pytest.raises(WeightsError, match="no such file"):
        load_generator(path)
    torch.save(small().state_dict(), tmp_path / "whole.pth")
    for content in (b"", b"<html>not found</html>", (tmp_path / "whole.pth").read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=path.name):
            load_generator(path)


def test_code_in_a_pickle_is_refused_and_not_run(malicious_pickle):
    path, marker = malicious_pickle
    with pytest.raises(WeightsError, match="asks to run code"):
        load_generator(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file would have done it
    assert marker.exists()

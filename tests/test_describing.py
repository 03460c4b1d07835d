"""weights.py describe: what a file is, in lines and as OpenModelDB's JSON."""

import datetime
import hashlib
import json
import sys

import pytest
import torch

import weights
from model import RRDBNet, SRResNet
from weights import WeightsError, save_generator

# Model of src/lib/schema.ts in OpenModelDB/open-model-database, and the kinds of its values.
MODEL = {
    "name": str,
    "author": str,
    "license": type(None),
    "tags": list,
    "description": str,
    "date": str,
    "architecture": str,
    "size": list,
    "scale": int,
    "inputChannels": int,
    "outputChannels": int,
    "resources": list,
    "images": list,
}
RESOURCE = {"platform": str, "type": str, "size": int, "sha256": str, "urls": list}


def described(path, monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["weights.py", "describe", str(path), *flags])
    assert weights.main() == 0
    return capsys.readouterr()


def facts(path, monkeypatch, capsys):
    """The lines as a dict; what stands there several times as a list."""
    found = {}
    for line in described(path, monkeypatch, capsys).out.splitlines():
        name, value = line[:14].strip(), line[14:]
        found.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def small(**arguments):
    return RRDBNet(**{"features": 8, "blocks": 2, "growth": 4} | arguments)


def test_every_fact_of_a_file(tmp_path, monkeypatch, capsys):
    net = small(scale=2, unshuffle=2)
    path = tmp_path / "net.pth"
    save_generator(net.half(), path, metadata={"alpha": 0.5, "note": "a\nb"})
    content = path.read_bytes()
    assert facts(path, monkeypatch, capsys) == {
        "file": f"{path} ({len(content):,} bytes)",
        "SHA-256": hashlib.sha256(content).hexdigest(),
        "layout": "basicsr",
        "found at": "params",
        "averaged": "not said",
        "network": "RRDBNet",
        "channels in": "3",
        "channels out": "3",
        "scale": "2",
        "features": "8",
        "blocks": "2",
        "growth": "4",
        "unshuffle": "2",
        "ESRGAN+": "False",
        "parameters": f"{sum(p.numel() for p in net.parameters()):,}",
        "dtype": "float16",
        "metadata": ["alpha: 0.5", r"note: a\nb", "network: RRDBNet", "scale: 2"],
    }


@pytest.mark.parametrize("layout", ["basicsr", "official", "old", "ncnn"])
def test_the_layout_is_named(layout, tmp_path, monkeypatch, capsys):
    path = tmp_path / ("net-x4.param" if layout == "ncnn" else "net.pth")
    save_generator(small(), path, layout)
    found = facts(path, monkeypatch, capsys)
    assert (found["layout"], found["scale"]) == (layout, "4")
    if layout == "ncnn":
        hashes = [
            hashlib.sha256((tmp_path / f"net-x4.{end}").read_bytes()) for end in ("param", "bin")
        ]
        assert found["SHA-256"] == [each.hexdigest() for each in hashes]
        assert found["dtype"] == "float16 and float32"
        assert facts(tmp_path / "net-x4.bin", monkeypatch, capsys) == found


def test_srresnet_has_arguments_and_parameters_of_its_own(tmp_path, monkeypatch, capsys):
    net = SRResNet(features=8, blocks=2, scale=3)
    save_generator(net, tmp_path / "net.safetensors")
    found = facts(tmp_path / "net.safetensors", monkeypatch, capsys)
    assert (found["network"], found["layout"], found["scale"]) == ("SRResNet", "train.py's", "3")
    assert found["batch norm"] == "True" and "growth" not in found
    assert found["parameters"] == f"{sum(p.numel() for p in net.parameters()):,}"  # no statistics


def test_whether_it_is_an_average(tmp_path, monkeypatch, capsys):
    raw, average = small().state_dict(), small().state_dict()
    contents = {
        "yes": {"params": raw, "params_ema": average},
        "no": {"net_g_raw": raw},
        "not said": {"params": raw},
    }
    for wanted, content in contents.items():
        torch.save(content, tmp_path / "net.pth")
        found = facts(tmp_path / "net.pth", monkeypatch, capsys)
        assert (found["averaged"], found["found at"]) == (wanted, list(content)[-1])
    for metadata, wanted in (
        ({"config": {"ema_decay": 0.99}}, "yes, by train.py with decay 0.99"),
        ({"config": {"ema_decay": 0}}, "not said"),
        ({"config": "no JSON"}, "not said"),
        ({"config": [1]}, "not said"),
    ):
        save_generator(small(), tmp_path / "net.safetensors", metadata=metadata)
        assert facts(tmp_path / "net.safetensors", monkeypatch, capsys)["averaged"] == wanted


@pytest.mark.parametrize(
    "net, suffix, layout, architecture, kind",
    [
        (small(scale=8), "safetensors", "basicsr", "esrgan", "safetensors"),
        (small(in_channels=1), "pth", "official", "esrgan", "pth"),
        (small(plus=True), "pth", "old", "esrgan+", "pth"),
        (SRResNet(features=8, blocks=2), "pth", "basicsr", "sr-res-net", "pth"),
    ],
)
def test_openmodeldb(net, suffix, layout, architecture, kind, tmp_path, monkeypatch, capsys):
    path = tmp_path / f"A näme.{suffix}"
    save_generator(net, path, layout)
    out, err = described(path, monkeypatch, capsys, "--openmodeldb")
    entry = json.loads(out)
    assert {key: type(value) for key, value in entry.items()} == MODEL
    assert err == (
        "Fill in author, license, tags, description and urls, and see to name and date.\n"
    )
    assert (entry["name"], entry["architecture"]) == ("A näme", architecture)
    assert (entry["scale"], entry["size"]) == (net.scale, ["8nf", "2nb"])
    assert (entry["inputChannels"], entry["outputChannels"]) == (net.in_channels, 3)
    assert datetime.date.fromisoformat(entry["date"])
    (resource,) = entry["resources"]
    assert {key: type(value) for key, value in resource.items()} == RESOURCE
    assert (resource["platform"], resource["type"]) == ("pytorch", kind)
    content = path.read_bytes()
    assert resource["sha256"] == hashlib.sha256(content).hexdigest()
    assert resource["size"] == len(content)


def test_openmodeldb_gets_what_train_py_told(tmp_path, monkeypatch, capsys):
    config = {"batch_size": 16, "psnr": {"patch": 192}, "gan": {"patch": 128}}
    metadata = {"config": config, "phase": "gan", "step": 400_000}
    save_generator(small(), tmp_path / "net.safetensors", metadata=metadata)
    out, _ = described(tmp_path / "net.safetensors", monkeypatch, capsys, "--openmodeldb")
    entry = json.loads(out)
    training = {key: value for key, value in entry.items() if key not in MODEL}
    assert training == {
        "trainingIterations": 400_000,
        "trainingBatchSize": 16,
        "trainingHRSize": 128,
    }


def test_openmodeldb_has_no_ncnn(tmp_path, monkeypatch, capsys):
    save_generator(small(), tmp_path / "net-x4", "ncnn")
    with pytest.raises(WeightsError, match=r"net-x4.param: OpenModelDB lists no ncnn files"):
        described(tmp_path / "net-x4.param", monkeypatch, capsys, "--openmodeldb")


def test_a_scale_that_is_told(tmp_path, monkeypatch, capsys):
    save_generator(small(scale=3), tmp_path / "net.pth", "official")
    out, _ = described(tmp_path / "net.pth", monkeypatch, capsys, "--scale", "3")
    assert "scale         3\n" in out
    with pytest.raises(WeightsError, match="no such file"):
        described(tmp_path / "nothing.pth", monkeypatch, capsys)

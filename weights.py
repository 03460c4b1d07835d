"""Generator weights: every published ESRGAN layout in, the tools' layouts out, interpolation.

    python weights.py convert WEIGHTS -o OUT.safetensors          for this, spandrel, chaiNNer, ...
    python weights.py convert WEIGHTS -o OUT.pth --to official    for the ESRGAN repository
    python weights.py convert WEIGHTS -o OUT.onnx --to onnx --half
    python weights.py interpolate PSNR GAN --alpha 0.8 -o OUT.safetensors

WEIGHTS is a file, or the name of a published one (RealESRGAN_x4plus, ...), which is downloaded.
Inside this project weights have BasicSR's layout, which is model.py's.
"""

import argparse
import copy
import http.client
import io
import itertools
import json
import math
import os
import pickle
import re
import socket
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from model import SCALES, RRDBNet, SRResNet

DOWNLOADS = Path("checkpoints")
RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
PUBLISHED = {  # name -> address, SHA-256 (or what is known of its beginning)
    "RealESRGAN_x4plus": (
        f"{RELEASES}/v0.1.0/RealESRGAN_x4plus.pth",
        "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
    ),
    "RealESRNet_x4plus": (
        f"{RELEASES}/v0.1.1/RealESRNet_x4plus.pth",
        "a820b9bde89a874d7599d545567308ce6c128fc8754a53208eda016d40aa81df",
    ),
    "ESRGAN_SRx4_DF2KOST_official-ff704c30": (
        f"{RELEASES}/v0.1.1/ESRGAN_SRx4_DF2KOST_official-ff704c30.pth",
        "ff704c30",
    ),
    "RealESRGAN_x2plus": (
        f"{RELEASES}/v0.2.1/RealESRGAN_x2plus.pth",
        "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
    ),
    "RealESRGAN_x4plus_anime_6B": (
        f"{RELEASES}/v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
        "f872d837d3c90ed2e05227bed711af5671a6fd1c9f7d7e91c911a61f155e99da",
    ),
}
PATIENCE = 60  # seconds without a byte after which a download is given up

# Training programs put the weights into a dict, under the first of these, and prefixes on names.
WRAPPERS = (
    *("model_state_dict", "state_dict", "ema_state_dict"),
    *("params_ema", "params-ema", "params", "model", "net"),
)
PREFIXES = ("_orig_mod.", "module.", "netG.", "generator_ema.", "generator.")
# Lie beside the weights; they are none.
COUNTERS = ("step_counter", "n_averaged", "num_batches_tracked")
# What else lies in a training checkpoint of mmagic, beside the generator and its average.
COMPANIONS = ("discriminator.", "perceptual_loss.", "gan_loss.", "data_preprocessor.")

# What a network's body begins with.
FIRST_IN_BODY = {RRDBNet: "body.0.rdb1.conv1.weight", SRResNet: "body.0.conv1.weight"}


class Layout(NamedTuple):
    """What a program calls its convolutions.

    i: block; j, k: dense block and convolution, from 1; m: upsampling stage, from 1; j0, k0, m0:
    the same from 0; blocks: their number; the old layout counts activations and upsamplings too.
    """

    conv_first: str
    dense: str
    conv_body: str
    conv_up: str
    conv_hr: str
    conv_last: str


LAYOUTS = {
    "basicsr": Layout(
        *("conv_first", "body.{i}.rdb{j}.conv{k}", "conv_body"),
        *("conv_up{m}", "conv_hr", "conv_last"),
    ),
    "official": Layout(
        *("conv_first", "RRDB_trunk.{i}.RDB{j}.conv{k}", "trunk_conv"),
        *("upconv{m}", "HRconv", "conv_last"),
    ),
    "old": Layout(
        *("model.0", "model.1.sub.{i}.RDB{j}.conv{k}.0", "model.1.sub.{blocks}"),
        *("model.{m_old}", "model.{hr_old}", "model.{last_old}"),
    ),
    "aladdinpersson": Layout(
        *("initial", "residuals.{i}.rrdb.{j0}.blocks.{k0}.cnn", "conv"),
        *("upsamples.{m0}.conv", "final.0", "final.2"),
    ),
    "lornatang": Layout(
        *("conv1", "trunk.{i}.rdb{j}.conv{k}", "conv2"),
        *("upsampling{m}.0", "conv3.0", "conv4"),
    ),
}
SUFFIXES = {  # what can be written -> the kinds of file it is written to
    "basicsr": (".safetensors", ".pth"),
    "official": (".safetensors", ".pth"),
    "old": (".safetensors", ".pth"),
    "onnx": (".onnx",),
}

OTHER_KINDS = {  # a name that gives it away -> what the file holds
    r"classifier\.6\.": "an image classifier such as VGG19",
    r"conv0_0\.|linear1\.|conv\d\.weight_orig|classifier\.": "a discriminator",
    r"body\.1\.weight": "an SRVGGNetCompact network, which has no RRDBs",
    r"optimizer|schedulers|opt_g": "a training state without the network",
}


class WeightsError(ValueError):
    """Weights that cannot be had, read or written; the message names the file and the cause."""


# ------------------------------------------------------------------------------------- file in


def load_generator(
    path_or_name: str | Path, map_location: str = "cpu", scale: int | None = None
) -> nn.Module:
    """Build the generator that a file describes, in eval mode and fp32, with `.scale`.

    Layouts: BasicSR and Real-ESRGAN, the official ESRGAN, its older releases, ESRGAN+,
    aladdinpersson, Lornatang. Features, blocks, growth, channels and scale are found in the file.
    A `last.pt` of train.py gives its EMA generator, and SRResNet is read as train.py writes it.
    Pickles are read with weights_only: one that would run code is refused.

    Args:
        path_or_name: a .pth, .pt, .ckpt or .safetensors file, or a name of `PUBLISHED`, which is
            downloaded into checkpoints/ once.
        map_location: the device of the result.
        scale: needed for x3 where no metadata tells it: its tensors are those of x2.

    Raises:
        WeightsError: no such file, no network, not an ESRGAN generator, or an incomplete one.
    """
    return _load(_locate(path_or_name), scale)[0].to(map_location)


def init_generator(net: nn.Module, path: str | Path) -> tuple[list[str], list[str]]:
    """Start `net` from another generator, of the same network but perhaps at another scale.

    Returns:
        The tensors of `net` that stay as they were, and those of the file that were not taken.

    Raises:
        WeightsError: the file is no generator, or another network (its scale may differ).
    """
    other = load_generator(path)
    if differing := _differences(net, other, ignored=("scale",)):
        raise WeightsError(f"{path} is another network: it has {differing}; set the same here")
    own, given = net.state_dict(), other.state_dict()
    fits = {name for name in own.keys() & given.keys() if own[name].shape == given[name].shape}
    fresh, unused = sorted(own.keys() - fits), sorted(given.keys() - fits)
    net.load_state_dict({name: given[name] if name in fits else own[name] for name in own})
    return fresh, unused


def interpolate(psnr_net: nn.Module, gan_net: nn.Module, alpha: float) -> nn.Module:
    """Network interpolation: (1 - alpha) * PSNR + alpha * GAN for every weight (section 3.4).

    The running statistics of batch norm are interpolated like weights.

    Returns:
        A new network; the two stay as they are.

    Raises:
        WeightsError: the two are not the same network, or alpha is outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise WeightsError(f"alpha is {alpha}; it goes from 0, the PSNR network, to 1, the GAN")
    if differing := _differences(gan_net, psnr_net):
        raise WeightsError(
            f"only like networks can be interpolated: the PSNR network has {differing}"
        )
    mixed = copy.deepcopy(psnr_net)
    gan_state = gan_net.state_dict()
    for name, tensor in mixed.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(gan_state[name], alpha)
    return mixed


def _differences(net: nn.Module, other: nn.Module, ignored: tuple[str, ...] = ()) -> str:
    """What `other` has that `net` has not: "features 32, not 64, ..."; empty if nothing."""
    own, others = (_description(each) for each in (net, other))
    if own["network"] != others["network"]:
        return f"network {others['network']}, not {own['network']}"
    return " and ".join(
        f"{key} {others[key]}, not {value}"
        for key, value in own.items()
        if key not in ignored and value != others[key]
    )


def _description(net: nn.Module) -> dict:
    """The kind of network, and the arguments it was built with."""
    arguments = _arguments(type(net), net.state_dict(), net.scale)
    return {"network": type(net).__name__} | arguments


def _load(path: Path, scale: int | None = None) -> tuple[nn.Module, dict[str, str]]:
    """The generator in a file, and the file's metadata."""
    content, metadata = _read(path)
    state = _unwrap(path, content)
    kind = SRResNet if "body.0.prelu.weight" in state else RRDBNet
    if kind is RRDBNet:
        state = _rename(path, state)
    for name in ("conv_first.weight", FIRST_IN_BODY[kind], "conv_last.weight"):
        if name not in state or state[name].ndim != 4 or state[name].numel() == 0:
            raise WeightsError(
                f"{path} is no complete {kind.__name__}: {name} is missing or no kernel"
            )
    told = scale or (3 if metadata.get("scale") == "3" else None)
    arguments = _arguments(kind, state, told)
    if scale and arguments["scale"] != scale:
        raise WeightsError(f"{path} is x{arguments['scale']}, not x{scale}")
    if arguments["scale"] not in SCALES:
        raise WeightsError(f"{path} is x{arguments['scale']}, which no network here computes")
    with torch.device("meta"):  # shapes are compared before a byte is allocated
        net = kind(**arguments)
    expected = {name: t for name, t in net.state_dict().items() if not _is_counter(name)}
    problems = _problems(state, expected)
    if problems:
        shown = [*sorted(problems)[:8], *(["..."] if len(problems) > 8 else [])]
        raise WeightsError(
            f"{path} is no complete {kind.__name__} ({len(problems)} problems): {'; '.join(shown)}"
        )
    try:
        weights = {name: state[name].to(torch.float32, copy=True).contiguous() for name in expected}
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit in memory ({_reason(error)})") from error
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise WeightsError(f"{path}: {broken[0]} holds numbers that are not finite")
    counters = {name: torch.tensor(0) for name in net.state_dict() if _is_counter(name)}
    net.load_state_dict(weights | counters, assign=True)
    return net.eval(), metadata


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _problems(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Whatever makes loading incomplete or in vain, each in words."""
    problems = [f"{name} is missing" for name in expected.keys() - state.keys()]
    problems += [f"{name} is left over" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems += [
        f"{name} holds {tensor.dtype} ({tensor.layout}), no plain real numbers"
        for name, tensor in state.items()
        if not (
            tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta
        )
    ]
    return problems


def _read(path: Path) -> tuple[dict, dict[str, str]]:
    """What torch.save or safetensors wrote, whatever the file is called, and its metadata."""
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        names = ", ".join(PUBLISHED)
        raise WeightsError(f"{path}: no such file. Names that are downloaded: {names}")
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError(f"{path} is empty; get it again")
    if start.lstrip().startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} only points at the file in Git LFS; run `git lfs pull`")
    if path.suffix == ".onnx":
        raise WeightsError(f"{path} is ONNX, which is written but not read; give what it came from")
    try:
        if start[8:9] == b"{":
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
        if start.startswith(b"PK") and not zipfile.is_zipfile(path):
            raise EOFError  # torch would take what is left of its zip file for another format
        with open(path, "rb") as file:  # given the path, newer torch goes by the suffix
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in a dozen ways, all of them the file's
        raise WeightsError(f"{path} cannot be read as weights: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a generator's weights")
    ema, config = content.get("ema"), content.get("config")
    if isinstance(ema, dict) and isinstance(config, dict):  # train.py's last.pt
        told = {key: content[key] for key in ("phase", "step") if key in content}
        content, metadata = ema, told | {"scale": config.get("scale")}
    else:
        metadata = content.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return content, {str(key): str(value) for key, value in metadata.items()}


def _reason(error: Exception) -> str:
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript program, which can carry code; save its state_dict instead"
    if isinstance(error, pickle.UnpicklingError):
        wanted = re.search(r"GLOBAL (\S+)", text)  # a function or class that the file wants called
        code = f"it asks to run code ({wanted[1]}), which is refused" if wanted else None
        return code or "torch.save did not write it"
    if "legacy .tar" in text:
        return "torch.save has not written such files since 2017"
    cut_short = (
        "central directory",
        "incomplete",
        "invalid header",
        "truncated",
        "Ran out of input",
    )
    if isinstance(error, EOFError) or any(sign in text for sign in cut_short):
        return "it is cut short; get it again"
    return text.splitlines()[0] if text else type(error).__name__


def _unwrap(path: Path, content: dict) -> dict[str, Tensor]:
    """The generator's tensors, without the dicts and prefixes that training programs add."""
    wrapped = next((w for w in WRAPPERS if isinstance(content.get(w), dict)), None)
    inner = content[wrapped] if wrapped else content
    if len(inner) == 1 and isinstance(next(iter(inner.values())), dict):
        inner = next(iter(inner.values()))
    state = {str(name): value for name, value in inner.items() if not _is_counter(str(name))}
    if any(name.startswith(("generator.", "generator_ema.")) for name in state):
        averaged = any(name.startswith("generator_ema.") for name in state)
        others = COMPANIONS + (("generator.",) if averaged else ())
        state = {name: value for name, value in state.items() if not name.startswith(others)}
    while prefix := _common_prefix(state):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        what = _other_kind(state) or f"{others[0]}, which is no tensor"
        raise WeightsError(f"{path} is not an ESRGAN generator: it holds {what}")
    return state


def _common_prefix(state: dict[str, Tensor]) -> str | None:
    shared = (prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in state))
    return next(shared, None) if state else None


def _other_kind(state: dict[str, Tensor]) -> str | None:
    kinds = (k for sign, k in OTHER_KINDS.items() if any(re.match(sign, name) for name in state))
    return next(kinds, None)


def _rename(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of model.py; names that no layout has stay as they are."""
    for layout in LAYOUTS.values():
        blocks, stages = _count(state, layout)
        theirs = _names(layout, blocks, stages)
        if blocks and f"{theirs['conv_first']}.weight" in state:
            ours = {their_name: name for name, their_name in theirs.items()}
            split = ((name.rpartition("."), tensor) for name, tensor in state.items())
            renamed = {f"{ours.get(conv, conv)}.{kind}": t for (conv, _, kind), t in split}
            if len(renamed) < len(state):
                raise WeightsError(f"{path} mixes the names of two layouts; save one of the two")
            return renamed
    what = _other_kind(state) or ", ".join([*list(state)[:3], "..."] if state else ["nothing"])
    raise WeightsError(f"{path} is not an ESRGAN generator: it holds {what}")


def _count(state: dict[str, Tensor], layout: Layout) -> tuple[int, int]:
    """Number of blocks and of upsampling stages."""
    blocks = stages = 0
    while layout.dense.format(i=blocks, j=1, k=1, j0=0, k0=0) + ".weight" in state:
        blocks += 1
    while layout.conv_up.format(m=stages + 1, m0=stages, m_old=3 * stages + 3) + ".weight" in state:
        stages += 1
    return blocks, stages


def _names(layout: Layout, blocks: int, stages: int) -> dict[str, str]:
    """Each convolution's name here -> its name in `layout`."""
    ours = LAYOUTS["basicsr"]
    names = {
        "conv_first": layout.conv_first,
        "conv_body": layout.conv_body.format(blocks=blocks),
        "conv_hr": layout.conv_hr.format(hr_old=3 * stages + 2),
        "conv_last": layout.conv_last.format(last_old=3 * stages + 4),
    }
    for m in range(1, stages + 1):
        names[f"conv_up{m}"] = layout.conv_up.format(m=m, m0=m - 1, m_old=3 * m)
    for i, j, k in itertools.product(range(blocks), range(1, 4), range(1, 6)):
        numbers = dict(i=i, j=j, k=k, j0=j - 1, k0=k - 1)
        names[ours.dense.format(**numbers)] = layout.dense.format(**numbers)
    if layout is LAYOUTS["old"]:  # the only one that ESRGAN+ is published in
        for i, j in itertools.product(range(blocks), range(1, 4)):
            names[f"body.{i}.rdb{j}.conv1x1"] = f"model.1.sub.{i}.RDB{j}.conv1x1"
    return names


def _arguments(kind: type, state: dict[str, Tensor], scale: int | None) -> dict[str, int]:
    """A network's arguments, read off names and shapes; `scale` tells an RRDBNet's x3 from x2."""
    return (_srresnet_arguments if kind is SRResNet else _rrdbnet_arguments)(state, scale)


def _srresnet_arguments(state: dict[str, Tensor], scale: int | None) -> dict[str, int]:
    features, channels = state["conv_first.weight"].shape[:2]
    factor = 1
    for name, tensor in state.items():
        if re.fullmatch(r"conv_up\d+\.weight", name) and tensor.ndim == 4:
            factor *= math.isqrt(tensor.shape[0] // features)
    return {
        "in_channels": channels,
        "out_channels": state["conv_last.weight"].shape[0],
        "scale": factor,
        "features": features,
        "blocks": sum(bool(re.fullmatch(r"body\.\d+\.conv1\.weight", name)) for name in state),
        "batch_norm": "bn_body.weight" in state,
    }


def _rrdbnet_arguments(state: dict[str, Tensor], scale: int | None) -> dict[str, int]:
    features, channels = state["conv_first.weight"].shape[:2]
    out_channels = state["conv_last.weight"].shape[0]
    blocks, stages = _count(state, LAYOUTS["basicsr"])
    unshuffle = 1
    for factor in (2, 4):  # Real-ESRGAN folds pixels into channels where there are so many more
        if channels == out_channels * factor**2:
            channels, unshuffle = out_channels, factor
    plain_x3 = scale == 3 and stages == 1 and unshuffle == 1
    return {
        "in_channels": channels,
        "out_channels": out_channels,
        "scale": 3 if plain_x3 else 2**stages // unshuffle,
        "features": features,
        "blocks": blocks,
        "growth": state["body.0.rdb1.conv1.weight"].shape[0],
        "unshuffle": unshuffle,
        "plus": "body.0.rdb1.conv1x1.weight" in state,
    }


# --------------------------------------------------------------------------- published weights


def _locate(path_or_name: str | Path) -> Path:
    """The file; a published name is downloaded unless it lies in checkpoints/ already."""
    path = Path(path_or_name)
    name = str(path_or_name).removesuffix(".pth")
    if path.exists() or name not in PUBLISHED:
        return path
    target = DOWNLOADS / f"{name}.pth"
    if not target.exists():
        _download(name, target)
    return target


def _download(name: str, target: Path) -> None:
    url, sha256 = PUBLISHED[name]
    remedy = f"Or fetch {url} yourself and put it at {target}"
    print(f"Downloading {url}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _patience():
            torch.hub.download_url_to_file(url, str(target), sha256)
    # torch.hub tells a wrong hash by a RuntimeError; a server that hangs up is a HTTPException.
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise WeightsError(f"{name} could not be downloaded ({reason}). {remedy}") from error


@contextmanager
def _patience() -> Iterator[None]:
    """torch.hub's helper would wait for ever for a server that says nothing."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# ------------------------------------------------------------------------------------ file out


def save_generator(
    net: nn.Module, path: str | Path, layout: str = "basicsr", metadata: dict | None = None
) -> None:
    """Write a generator's weights in their own precision, whole or not at all.

    Args:
        net: the network, on any device.
        path: ends in .safetensors or .pth; for "onnx", in .onnx.
        layout: "basicsr", model.py's names, and in a .pth its key "params"; "official" and "old",
            what the ESRGAN repository and its first release load; "onnx", a program with dynamic
            height and width that takes and gives (1, channels, H, W). SRResNet has its own names
            only, which "basicsr" stands for.
        metadata: anything JSON can hold; the scale and the network are always added. A .pth in
            the official or old layout has no place for it.

    Raises:
        ValueError: another suffix or layout, ESRGAN+ in another than its own, the old one, or
            SRResNet in one of the ESRGAN repository's.
        WeightsError: ONNX without the onnx package.
    """
    path = Path(path)
    if layout not in SUFFIXES:
        raise ValueError(f"layout is {layout!r}; it can be {', '.join(SUFFIXES)}")
    if path.suffix not in SUFFIXES[layout]:
        raise ValueError(f"{path}: {layout} is written to {' or '.join(SUFFIXES[layout])}")
    network = type(net).__name__
    if network == "SRResNet" and layout not in ("basicsr", "onnx"):
        raise ValueError(f"{path}: SRResNet has no {layout} layout; choose basicsr or onnx")
    if network == "RRDBNet" and _description(net)["plus"] and layout not in ("old", "onnx"):
        raise ValueError(f"{path}: ESRGAN+ exists in the old layout only; choose old or onnx")
    described = (metadata or {}) | {"network": network, "scale": net.scale}
    strings = {key: v if isinstance(v, str) else json.dumps(v) for key, v in described.items()}
    if layout == "onnx":
        content = _onnx(net, strings)
    else:
        names = _names(LAYOUTS[layout], len(net.body), len(net.stages))
        split = ((name.rpartition("."), tensor) for name, tensor in net.state_dict().items())
        state = {
            f"{names.get(layer, layer)}.{kind}": tensor.contiguous().cpu()
            for (layer, _, kind), tensor in split
            if kind not in COUNTERS
        }
        if path.suffix == ".safetensors":
            content = _in_order(safetensors.torch.save(state, strings))
        else:
            # BasicSR's own programs look for "params"; the official one for the bare tensors.
            wrapped = {"params": state, "metadata": strings} if layout == "basicsr" else state
            buffer = io.BytesIO()
            torch.save(wrapped, buffer)
            content = buffer.getvalue()
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _in_order(content: bytes) -> bytes:
    """Sort the metadata, which safetensors writes in random order: equal weights, equal files."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors have to start at a multiple of 8
    return len(encoded).to_bytes(8, "little") + encoded + content[start:]


def _onnx(net: nn.Module, metadata: dict[str, str]) -> bytes:
    try:
        import onnx  # optional: only whoever converts to ONNX needs it
    except ImportError:
        raise WeightsError("writing ONNX needs the onnx package: pip install onnx") from None
    example = torch.zeros(1, net.in_channels, 32, 48)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # torch 2.6's newer exporter fixes height and width; this one is right from 2.6 to 2.15.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (example.to(net.conv_last.weight),),
            buffer,
            input_names=["low_res"],
            output_names=["high_res"],
            dynamic_axes={
                "low_res": {2: "height", 3: "width"},
                "high_res": {2: "high_height", 3: "high_width"},
            },
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))
    return model.SerializeToString()


# -------------------------------------------------------------------------------- command line


def main() -> None:
    arguments = parse_args()
    inputs = [Path(_locate(name)) for name in arguments.inputs]
    if any(path.exists() and path.resolve() == arguments.output.resolve() for path in inputs):
        raise WeightsError(f"{arguments.output} is an input; choose another name with -o")
    if not arguments.output.parent.is_dir():
        raise WeightsError(f"{arguments.output.parent}: no such folder")
    loaded = [_load(path, arguments.scale) for path in inputs]
    net, metadata = loaded[-1]
    metadata |= {"source": " + ".join(path.name for path in inputs)}
    if arguments.command == "interpolate":
        net = interpolate(loaded[0][0], net, arguments.alpha)
        metadata |= {"alpha": str(arguments.alpha)}
    if arguments.half:
        net.half()
    try:
        save_generator(net, arguments.output, arguments.to, metadata)
    except (ValueError, OSError) as error:
        raise WeightsError(str(error)) from error
    size = arguments.output.stat().st_size / 2**20
    print(f"x{net.scale}, {arguments.to}, {size:.1f} MiB: {arguments.output}")
    if arguments.to != "onnx" and isinstance(net, RRDBNet) and net.scale == 3:
        print("Other programs cannot tell x3 from x2 by its tensors: name the scale to them.")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="weights.py", description="Convert and interpolate ESRGAN generators."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write a generator in another layout")
    convert.add_argument("inputs", nargs=1, metavar="WEIGHTS", help="a file or a published name")
    mix = commands.add_parser("interpolate", help="between a PSNR network and a GAN (section 3.4)")
    mix.add_argument("inputs", nargs=2, metavar=("PSNR", "GAN"), help="files or published names")
    mix.add_argument("--alpha", type=float, required=True, help="0: PSNR, 1: GAN")
    for command in (convert, mix):
        command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
        command.add_argument("--to", choices=SUFFIXES, default="basicsr")
        command.add_argument("--half", action="store_true", help="fp16: half the size")
        command.add_argument("--scale", type=int, help="3, where the file cannot tell x3 from x2")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except WeightsError as error:
        print(f"weights.py: {error}", file=sys.stderr)
        sys.exit(2)

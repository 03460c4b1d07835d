"""The generator in the files of training programs: which of several it is, and what is said where
there is none.

The expected tensors are those that the test put there; spandrel is a second opinion.
"""

import itertools
import json
import re

import pytest
import spandrel
import torch
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from torch import nn
from torch.nn.utils import prune

import weights
from config import parse_args
from model import RRDBNet, SRResNet, VGGDiscriminator
from weights import WeightsError, load_generator, read_generator, save_generator


def generator(seed=0, **arguments):
    torch.manual_seed(seed)
    return RRDBNet(**dict(features=8, blocks=1, scale=2) | arguments).eval()


RAW, AVERAGE = (generator(seed).state_dict() for seed in (1, 2))
DISCRIMINATOR = {
    "features.0.weight": torch.zeros(8, 3, 3, 3),
    "features.1.running_mean": torch.zeros(8),
    "classifier.0.weight": torch.zeros(1, 8),
}
VGG = {"features.0.weight": torch.zeros(64, 3, 3, 3), "classifier.6.weight": torch.zeros(9, 4)}
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": []}


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(state, before, segment):
    """As where a submodule alone is compiled or wrapped."""
    return {name.replace(before, f"{before}{segment}.", 1): t for name, t in state.items()}


def clone(state):
    return {name: tensor.clone() for name, tensor in state.items()}


def kernels(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


AVERAGES = {  # a file -> where its average is, if the raw generator is in it as well
    "BasicSR": ({"params": RAW, "params_ema": AVERAGE}, "params_ema"),
    "ema_model": ({"ema_model": AVERAGE, "model": RAW, "optimizer": ADAM}, "ema_model"),
    "g_ema": ({"g": RAW, "d": DISCRIMINATOR, "g_ema": AVERAGE, "g_optim": ADAM}, "g_ema"),
    "ema and model": ({"model": RAW, "ema": AVERAGE}, "ema"),
    "net_g_ema": ({"net_g": RAW, "net_g_ema": AVERAGE, "net_d": DISCRIMINATOR}, "net_g_ema"),
    "GEMA": ({"netG": RAW, "netG_EMA": AVERAGE, "netD": DISCRIMINATOR}, "netG_EMA"),
    "camel": ({"generatorEMA": AVERAGE, "generator": RAW}, "generatorEMA"),
    "timm": ({"state_dict": RAW, "state_dict_ema": AVERAGE, "epoch": 3}, "state_dict_ema"),
    "shadow": ({"model": RAW, "ema": {"decay": 0.9, "shadow": AVERAGE}}, "ema.shadow"),
    "swa": ({"model": RAW, "swa_model": under("module.", AVERAGE)}, "swa_model"),
    "only the counter tells": (
        {"a": RAW, "b": {"n_averaged": torch.tensor(7)} | under("module.", AVERAGE)},
        "b",
    ),
    "mmagic": (
        {
            "meta": {"iter": 5},
            "state_dict": {
                "generator_ema.steps": torch.tensor(5),
                "step_counter": torch.tensor(5),
                **under("generator.", RAW),
                **under("generator_ema.module.", AVERAGE),
                **under("discriminator.", DISCRIMINATOR),
                **under("perceptual_loss.vgg.", VGG),
            },
        },
        "state_dict.generator_ema",
    ),
    # Its EMAHook swaps the two before it saves, so that whoever knows of no average gets it.
    "mmengine": (
        {
            "state_dict": under("generator.", AVERAGE),
            "ema_state_dict": {"steps": torch.tensor(5)} | under("module.generator.", RAW),
            "optimizer": ADAM,
        },
        "state_dict.generator",
    ),
    "Lightning's WeightAveraging": (
        {
            "state_dict": under("net_g.", AVERAGE),
            "current_model_state": under("net_g.", RAW),
            "averaging_state": {"n_averaged": torch.tensor(7)},
        },
        "state_dict.net_g",
    ),
    "a callback of Lightning": (
        {
            "state_dict": under("net_g.", RAW),
            "callbacks": {"EMA": {"ema_weights": under("net_g.", AVERAGE)}},
        },
        "callbacks.EMA.ema_weights.net_g",
    ),
    "Lightning": (
        {
            "state_dict": {
                **under("net_g.", RAW),
                **under("net_g_ema.", AVERAGE),
                **under("net_d.", DISCRIMINATOR),
                **under("vgg.", VGG),
                "metric.total": torch.tensor(0.0),
            },
            "optimizer_states": [ADAM, ADAM],
            "hyper_parameters": {"lr": 1e-4},
        },
        "state_dict.net_g_ema",
    ),
    "ema-pytorch": (
        {
            "initted": torch.tensor(True),
            "step": torch.tensor(3),
            **under("online_model.", RAW),
            **under("ema_model.", AVERAGE),
        },
        "ema_model",
    ),
    "torch_ema, a list": (
        {
            "net_g": RAW,
            "ema": {
                "decay": 0.999,
                "shadow_params": [*AVERAGE.values()],
                "collected_params": [*RAW.values()],
            },
        },
        "ema.shadow_params",
    ),
    "LitEma, without dots": (
        {
            "state_dict": {
                "net_g_ema.num_updates": torch.tensor(3),
                **under("net_g.", RAW),
                **under("net_g_ema.", {n.replace(".", ""): t for n, t in AVERAGE.items()}),
            }
        },
        "state_dict.net_g_ema",
    ),
    "LitEma in a dict of its own": (
        {
            "net_g": RAW,
            "ema": {"decay": torch.tensor(0.999), "num_updates": torch.tensor(3)}
            | {n.replace(".", ""): t for n, t in AVERAGE.items()},
        },
        "ema",
    ),
    "ema-pytorch inside": (
        {"state_dict": under("ema.online_model.", RAW) | under("ema.ema_model.", AVERAGE)},
        "state_dict.ema.ema_model",
    ),
    "the average is deeper": (
        {"net_g": RAW, "x": {"y": {"averaged": under("module.model.", AVERAGE)}}},
        "x.y.averaged.model",
    ),
}


@pytest.mark.parametrize("kind", AVERAGES)
def test_the_average_comes_first_and_is_named(kind, tmp_path):
    content, part = AVERAGES[kind]
    torch.save(content, tmp_path / "net.pth")
    loaded = read_generator(tmp_path / "net.pth")
    assert loaded.part == f": its {part}"
    assert_holds(loaded.net, AVERAGE)


def assert_holds(net, state):
    own = net.state_dict()
    assert own.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(own[name], tensor.float()), name


OTHER = generator(3).state_dict()
ONLY = {  # files with one generator, or with one that is more likely: RAW
    "generator": {"generator": RAW, "discriminator": DISCRIMINATOR, "optimizer": ADAM},
    "gen": {"gen": RAW, "disc": DISCRIMINATOR, "opt_gen": ADAM, "opt_disc": ADAM},
    "netG": {"netD": DISCRIMINATOR, "netG": RAW},
    "three deep": {"checkpoint": {"models": {"D": DISCRIMINATOR, "G": RAW}}},
    "a list": {"models": [DISCRIMINATOR, RAW]},
    "a list alone": [RAW, DISCRIMINATOR],
    "DeepSpeed": {"module": RAW, "optimizer": ADAM, "ds_version": "0.1", "buffer_names": []},
    "Lightning": {
        "state_dict": {
            **under("metric.", {"total": torch.tensor(0.0)}),
            **under("_forward_module.net_g.", RAW),
            **under("_forward_module.net_d.", DISCRIMINATOR),
            **under("_forward_module.vgg.", VGG),
        }
    },
    "student alone": {"state_dict": under("student.", RAW)},
    "compiled inside": inside(RAW, "body.", "_orig_mod"),
    "FSDP inside": under("_fsdp_wrapped_module.", inside(RAW, "body.0.", "_fsdp_wrapped_module")),
    "recomputed inside": inside(RAW, "body.0.", "_checkpoint_wrapped_module"),
    "Adam by name": {"params": RAW, "optimizer": {"state": {"exp_avg": OTHER}}},
    "Adam around": {"net_g": RAW, "optim_g": OTHER},
    "generator before others": {"pretrained": OTHER, "net_g": RAW},
    "the shallower": {"params": RAW, "history": {"first": OTHER}},
    "the same twice": {"params": RAW, "model": clone(RAW), "deeper": {"x": clone(RAW)}},
    "beside numbers": RAW | {"epoch": 3, "best_psnr": 30.5, "name": "x"},
    "lists of other things": {
        "model": RAW,
        "velocity": [*OTHER.values()],
        "optimizer": {"exp_avg": [*OTHER.values()]},
    },
    "a ring": {"params": RAW},
}
ONLY["a ring"]["self"] = ONLY["a ring"]
BESIDES = {"generator before others": ": its net_g", "the shallower": ": its params"}


@pytest.mark.parametrize("kind", ONLY)
def test_the_generator_is_found_wherever_it_is(kind, tmp_path):
    torch.save(ONLY[kind], tmp_path / "net.pth")
    loaded = read_generator(tmp_path / "net.pth")
    assert loaded.part == BESIDES.get(kind, "")
    assert_holds(loaded.net, RAW)


PREFIXES = (
    *("model.", "net_g.", "netG.", "net_g_ema.", "_forward_module.", "module.", "_orig_mod."),
    *("generator.", "generator_ema.", "ema_model.", "student.", "a_name_of_their.own."),
)


@pytest.mark.parametrize("layout", ["basicsr", "official", "old"])
def test_prefixes_in_any_order_around_all_names_and_around_some(layout, tmp_path):
    """In memory: 264 files would take minutes."""
    save_generator(generator(1), tmp_path / "net.pth", layout)
    state = torch.load(tmp_path / "net.pth")
    state = state.get("params", state)
    for outer, inner in itertools.permutations(PREFIXES, 2):
        wrapped = under(outer + inner, state)
        for content in (wrapped, {"x": wrapped | under("loss.", VGG)}):
            found, part = weights.find_generator(tmp_path, content)
            assert found.state.keys() == state.keys() and part == ""
            assert all(found.state[name] is tensor for name, tensor in state.items())


def test_a_key_may_be_bytes_and_srresnet_is_found_as_well(tmp_path):
    torch.save({name.encode(): tensor for name, tensor in RAW.items()}, tmp_path / "net.pth")
    assert_holds(load_generator(tmp_path / "net.pth"), RAW)
    state = SRResNet(features=4, blocks=1, scale=2).state_dict()
    torch.save({"x": {"netD.a": torch.zeros(1)} | under("netG.", state)}, tmp_path / "net.pth")
    assert_holds(load_generator(tmp_path / "net.pth"), state)


def test_what_spandrel_finds_is_what_is_found_here(tmp_path):
    """Unless it takes the raw generator where there is an average."""
    seen = 0
    for content in [*(content for content, _ in AVERAGES.values()), *ONLY.values()]:
        torch.save(content, tmp_path / "net.pth")
        try:
            theirs = spandrel.ModelLoader().load_from_file(tmp_path / "net.pth").model
        except Exception:  # it knows fewer
            continue
        assert isinstance(theirs, ESRGAN)
        ours, low_res = load_generator(tmp_path / "net.pth"), torch.rand(1, 3, 7, 9)
        with torch.no_grad():
            equal = torch.allclose(ours(low_res), theirs(low_res), atol=1e-5)
        average = torch.equal(ours.conv_last.weight, AVERAGE["conv_last.weight"])
        assert equal or average
        seen += equal
    assert seen >= 5


# ----------------------------------------------------------------------------------- no decision


@pytest.mark.parametrize(
    "content, places",
    [
        ({"model": RAW, "net": AVERAGE}, "model, net"),
        ({"model": under("module._orig_mod.", RAW), "net": AVERAGE}, "model, net"),
        ({"G_A": RAW, "G_B": AVERAGE, "D_A": DISCRIMINATOR}, "G_A, G_B"),
        ({"best": {"ema": RAW}, "last": {"ema": AVERAGE}}, "best.ema, last.ema"),
        ({"state_dict": under("student.", RAW) | under("teacher.", AVERAGE)}, "state_dict.student"),
        ([RAW, AVERAGE], "0, 1"),
        ({"half": clone(RAW), "full": {n: t.half() for n, t in RAW.items()}}, "half, full"),
    ],
)
def test_two_that_are_as_likely_are_named_and_can_be_saved_alone(content, places, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=f"net.pth holds generators that differ: {places}") as e:
        load_generator(tmp_path / "net.pth")
    advice = re.search(r"if d is what torch.load gives, the first is (.*)$", str(e.value))[1]
    chosen = eval(advice, {"d": torch.load(tmp_path / "net.pth")})
    torch.save(chosen, tmp_path / "alone.pth")
    assert_holds(load_generator(tmp_path / "alone.pth"), RAW)


def test_an_average_that_is_incomplete_is_not_silently_replaced(tmp_path):
    partial = {name: tensor for name, tensor in AVERAGE.items() if name != "conv_hr.bias"}
    torch.save({"params": RAW, "params_ema": partial}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net.pth: its params_ema is no complete.*conv_hr.bias"):
        load_generator(tmp_path / "net.pth")


# ------------------------------------------------------------------------------- how it is stored


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point(dtype, tmp_path):
    stored = {name: tensor.to(dtype) for name, tensor in RAW.items()}
    torch.save(stored, tmp_path / "net.pth")
    assert_holds(load_generator(tmp_path / "net.pth"), stored)


def test_parameters_strides_and_shared_memory(tmp_path):
    stored = {name: nn.Parameter(tensor) for name, tensor in RAW.items()}
    turned = RAW["conv_hr.weight"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    stored["conv_hr.weight"] = turned
    stored["conv_up1.bias"] = stored["conv_hr.bias"]
    torch.save(stored, tmp_path / "net.pth")
    net = load_generator(tmp_path / "net.pth")
    assert_holds(net, stored)
    weights.interpolate(net, net, 0.5)  # which copies it: no gradient hangs on
    save_generator(net, tmp_path / "again.safetensors")
    assert_holds(load_generator(tmp_path / "again.safetensors"), stored)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
@pytest.mark.parametrize("where", ["all", "last"])
def test_weights_in_parts_are_named(change, where, tmp_path):
    net = generator(1)
    for conv in [m for m in net.modules() if isinstance(m, nn.Conv2d)][
        0 if where == "all" else -1 :
    ]:
        change(conv)
    torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net.pth keeps weights in parts.*before saving"):
        load_generator(tmp_path / "net.pth")


def test_quantised_weights_are_named(tmp_path):
    for stored in (
        {n: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8) for n, t in RAW.items()},
        {n: t.to(torch.int8) for n, t in RAW.items()},
        RAW | {"conv_hr.zero_point": torch.tensor(0)},
    ):
        torch.save(stored, tmp_path / "net.pth")
        with pytest.raises(WeightsError, match=r"net.pth is quantised; save it in floating point"):
            load_generator(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.body.0.rdb1.conv1.lora_A.weight",
        "body.0.rdb2.conv3.lora_down.weight",
        "lora_unet_body_0_rdb1_conv1.lora_up.weight",
    ],
)
def test_changes_to_a_network_are_named(name, tmp_path):
    torch.save({name: torch.zeros(4, 8)}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net.pth.* holds a LoRA, changes to a network"):
        load_generator(tmp_path / "net.pth")


@pytest.mark.parametrize("kept", ["body", "conv", "body.0.rdb3"])
def test_a_part_of_a_network_is_incomplete(kept, tmp_path):
    torch.save({n: t for n, t in RAW.items() if n.startswith(kept)}, tmp_path / "net.pth")
    message = "holds conv_first" if kept == "conv" else "no complete RRDBNet: conv_first.weight"
    with pytest.raises(WeightsError, match=message):
        load_generator(tmp_path / "net.pth")


def test_a_whole_module_is_refused_with_the_way_out(tmp_path):
    torch.save(generator(), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"run code \(model.RRDBNet\).*save the .*state_dict"):
        load_generator(tmp_path / "net.pth")


@pytest.mark.parametrize(
    "name, content, scale",
    [
        ("net.pth", {"params": RAW}, 2),
        ("net_x3.pth", {"params": RAW}, 3),
        ("3x-Photo_100k.pth", RAW, 3),
        ("3xPhotos.pth", RAW, 3),  # as OpenModelDB has it
        ("photo3xs.pth", RAW, 2),
        ("3x4_tiles.pth", RAW, 2),
        ("ESRGAN_SRx3_DF2K.pth", RAW, 3),
        ("RealESRGAN_x3plus.pth", RAW, 3),
        ("x2_and_x3.pth", RAW, 2),
        ("box3.pth", RAW, 2),
        ("net_x13.pth", RAW, 2),
        ("net.pth", {"state_dict": RAW, "hyper_parameters": {"upscale": 3}}, 3),
        ("net.pth", {"params": RAW, "opt": {"network_g": {"scale": 3}}}, 3),
        ("net.pth", {"params": RAW, "scaler": {"scale": 65536.0}}, 2),
        ("net_x3.pth", {"params": RAW, "config": {"scale": 2}}, 2),
        # Other scales than these two are of something else.
        ("net.pth", {"state_dict": RAW, "hyper_parameters": {"scale": 3, "loss": {"scale": 1}}}, 3),
        ("net_x3.pth", {"params": RAW, "augmentation": {"scale": 1}}, 3),
        ("net_x3.pth", {"params": RAW, "scale": 2, "opt": {"scale": 3}}, 3),
        ("net.pth", {"params": RAW, "scale": 2, "opt": {"scale": 3}}, 2),
        ("net.pth", {"params": RAW, "scale": 3.0, "opt": {"scale": [1, "x"]}}, 3),
        ("net.pth", {"params": RAW, "scale": torch.tensor(3), "sf": torch.ones(2)}, 3),
        ("net.pth", {"params": RAW, "scale": "3.0", "sf": "none"}, 3),
        ("net.pth", {"params": RAW, "metadata": "scale 3"}, 2),
    ],
)
def test_the_scale_that_a_file_or_its_name_tells(name, content, scale, tmp_path):
    torch.save(content, tmp_path / name)
    assert load_generator(tmp_path / name).scale == scale
    assert load_generator(tmp_path / name, scale=2).scale == 2


@pytest.mark.parametrize("scale", [2, 3])
def test_settings_in_the_header_of_safetensors_tell_the_scale(scale, tmp_path):
    """As traiNNer-redux writes them: as JSON in one of the header's texts."""
    about = {"metadata": json.dumps({"scale": scale, "in_nc": 3, "shuffle_factor": None})}
    save_file(RAW, tmp_path / "net_g_ema_500.safetensors", metadata=about)
    assert load_generator(tmp_path / "net_g_ema_500.safetensors").scale == scale


# ------------------------------------------------------------------------------ what it is instead


DISCRIMINATORS = {
    "ours": VGGDiscriminator(32).state_dict(),
    "BasicSR's VGG": kernels(conv0_0__weight=(8, 3, 3, 3), linear2__weight=(1, 9)),
    "Real-ESRGAN's": kernels(conv0__weight=(8, 3, 3, 3), conv1__weight_orig=(8, 8, 4, 4)),
    "old": kernels(features__0__weight=(8, 3, 3, 3), classifier__2__weight=(1, 100)),
    "aladdinpersson's": kernels(blocks__0__cnn__weight=(8, 3, 3, 3), classifier__3__weight=(1, 9)),
    "PatchGAN": kernels(
        model__0__weight=(8, 3, 4, 4), model__3__running_mean=(8,), model__11__weight=(1, 8, 4, 4)
    ),
    "called so": kernels(net_d__a__weight=(8, 3, 3, 3), net_d__b__weight=(8, 8, 3, 3)),
    "a U-Net": kernels(conv0__weight=(8, 3, 3, 3), conv9__weight=(1, 8, 3, 3)),
    "any that judges": kernels(a__weight=(8, 3, 3, 3), head__weight=(1, 8)),
}


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_a_discriminator_is_said_to_be_one(kind, tmp_path):
    state = DISCRIMINATORS[kind]
    for content in (state, {"params": state, "iter": 5}, under("module.", state), {"net_d": state}):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(WeightsError, match=r"net.pth is not .*: it holds a discriminator;"):
            load_generator(tmp_path / "net.pth")


def required(condition):
    """The names that spandrel knows an architecture by."""
    kind, keys = condition._kind, condition._keys
    keys = keys[:1] if kind == "any" else keys
    return [n for key in keys for n in ([key] if isinstance(key, str) else required(key))]


ARCHITECTURES = {
    entry.architecture.id: required(entry.architecture._detect)
    for entry in spandrel.MAIN_REGISTRY.architectures("insertion")
    if entry.architecture.id != "ESRGAN"
}
SAID = {  # what is said of it, if not its own name
    "Compact": "SRVGGNetCompact",
    "SwinIR": "SwinIR or Swin2SR",
    "Swin2SR": "SwinIR or Swin2SR",
    "DAT": "DAT or RGT",
    "RGT": "DAT or RGT",
    "SAFMNBCIE": "SAFMN",
    "SwiftSRGAN": "Swift-SRGAN",
    "HVICIDNet": "HVI-CIDNet",
    "MMRealSR": "MM-RealSR's network",
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_that_only_others_compute_is_named_with_them(architecture, tmp_path):
    state = {name: torch.zeros(2) for name in ARCHITECTURES[architecture]}
    for content in (state, {"params_ema": state}, {"state_dict": under("net_g.", state)}):
        torch.save(content, tmp_path / "net.pth")
        with pytest.raises(WeightsError, match="spandrel and chaiNNer compute it") as error:
            load_generator(tmp_path / "net.pth")
        assert SAID.get(architecture, architecture) in str(error.value)


TWO_BY_TWO = kernels(  # of x4; two blocks would have a third
    model__0__weight=(8, 3, 2, 2),
    model__1__weight=(8, 8, 2, 2),
    model__2__sub__0__RDB1__conv1__0__weight=(4, 8, 2, 2),
    model__2__sub__0__RDB1__conv1__1__weight=(4, 4, 2, 2),
    model__2__sub__1__weight=(8, 8, 2, 2),
    model__14__weight=(3, 8, 2, 2),
    model__15__weight=(3, 3, 2, 2),
)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"optimizer": {"state": {0: {"exp_avg": RAW}}}}, "a training state without the network"),
        ({"optimizer": ADAM, "epoch": 3}, "a training state without the network"),
        (under("vgg.", VGG), "an image classifier"),
        (TWO_BY_TWO, "holds ESRGAN-2c2's network"),
        ({"x.body.0.body.0.weight": torch.zeros(8, 8, 3, 3)}, "an EDSR network"),
        ({"body.0.conv1.weight": torch.zeros(8, 8, 3, 3)}, "an MSRResNet"),
        ({"model.diffusion_model.out.2.weight": torch.zeros(8)}, "a diffusion model"),
        ({"G": kernels(a__weight=(8, 3, 3, 3)), "D": VGG}, "holds G.a.weight, ..."),
        ((1, 2), "holds a tuple"),
    ],
)
def test_what_else_it_may_be(content, message, tmp_path):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=rf"net.pth is not an ESRGAN generator: it .*{message}"):
        load_generator(tmp_path / "net.pth")


# ------------------------------------------------------------------------------------ starting from


SRGAN = dict(features=8, blocks=1, scale=2)


@pytest.mark.parametrize(
    "own, given, says, advises",
    [
        (generator(), generator(features=4), "features 4, not 8", "--features 4"),
        (
            generator(),
            generator(blocks=2, growth=8),
            "blocks 2, not 1 and growth 8, not 32",
            "--blocks 2 --growth 8",
        ),
        (
            generator(),
            SRResNet(features=4, blocks=1, batch_norm=True),
            "network SRResNet, not RRDBNet",
            "--generator srresnet --features 4 --batch-norm true",
        ),
        (
            SRResNet(**SRGAN),
            SRResNet(**SRGAN, batch_norm=False),
            "batch_norm False, not True",
            "--batch-norm false",
        ),
        (
            SRResNet(**SRGAN),
            generator(),
            "network RRDBNet, not SRResNet",
            "--generator rrdb --growth 32",
        ),
        (generator(), generator(unshuffle=2), "unshuffle 2, not 1", "--unshuffle 2"),
        (generator(unshuffle=4), generator(), "unshuffle 1, not 4", "--unshuffle 1"),
        (generator(), generator(plus=True), "plus True, not False", None),
        (generator(), generator(in_channels=1), "in_channels 1, not 3", None),
        (generator(), generator(out_channels=1, features=4), "out_channels 1, not 3", None),
        (SRResNet(**SRGAN), SRResNet(**SRGAN, in_channels=1), "in_channels 1, not 3", None),
    ],
)
def test_only_settings_that_exist_are_advised_to_start_from_another_network(
    own, given, says, advises, tmp_path
):
    layout = "old" if says.startswith("plus") else "basicsr"
    save_generator(given, tmp_path / "net.pth", layout)
    before = clone(own.state_dict())
    with pytest.raises(WeightsError, match=f"net.pth is another network: it has .*{says}") as error:
        weights.init_generator(own, tmp_path / "net.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in own.state_dict().items())
    if advises is None:
        assert re.search(f"train.py has no setting for .*{says.split()[0]}", str(error.value))
        assert "--" not in str(error.value)
        return
    assert str(error.value).endswith(f"; add {advises}")
    parse_args(advises.split())  # a flag that is unknown ends the process


def test_starting_from_a_file_with_an_average_says_so(tmp_path):
    torch.save({"params": RAW, "params_ema": AVERAGE}, tmp_path / "net.pth")
    net = generator(5)
    source, fresh, unused = weights.init_generator(net, tmp_path / "net.pth")
    assert source == f"{tmp_path / 'net.pth'}: its params_ema" and not fresh and not unused
    assert_holds(net, AVERAGE)


def test_convert_says_and_records_which_part_it_took(tmp_path, monkeypatch, capsys):
    torch.save({"params": RAW, "params_ema": AVERAGE}, tmp_path / "net.pth")
    command = ["weights.py", "convert", str(tmp_path / "net.pth"), "-o", str(tmp_path / "o.pth")]
    monkeypatch.setattr("sys.argv", command)
    assert weights.main() == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'net.pth'}: its params_ema\n")
    assert torch.load(tmp_path / "o.pth")["metadata"]["source"] == "net.pth: its params_ema"
    assert_holds(load_generator(tmp_path / "o.pth"), AVERAGE)

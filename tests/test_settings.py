"""Settings that have no effect, that may change when a run goes on, that belong to its weights."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from config import Config, Degradation, flat, parse_args
from images.degradation import draw_steps
from model import SRResNet, VGGDiscriminator
from training.ranks import Ranks
from training.settings import (
    At,
    against_divergence,
    check_batch_size,
    check_device,
    identity,
    idle_settings,
    list_changes,
    never_drawn,
    phases_left,
    refuse_unlike_ranks,
    settings_of_weights,
    with_what_is_over,
)
from upscaling.devices import DeviceError

SRGAN = ("--preset", "srgan")


def settings(*args):
    return flat(dataclasses.asdict(parse_args([*args])))


def test_what_is_another_run_and_what_weights_do_not_depend_on():
    """Both follow from the fields; new ones belong to neither unless they say so."""
    network = {"scale", "generator", "features", "blocks", "growth", "batch_norm", "unshuffle"}
    discriminator = {"discriminator", "discriminator_features", "gan.patch"}
    assert identity(Config(), "psnr") == network | {"betas", "seed"}
    assert identity(Config(), "gan") == network | {"betas", "seed"} | discriminator
    unet = parse_args(["--discriminator", "unet", "--gan.patch", "64"])
    assert "gan.patch" not in identity(unet, "gan")  # it judges crops of any size
    without_d = parse_args(["--gan.adversarial", "0"])
    assert identity(without_d, "gan") == network | {"betas", "seed"}
    told = settings_of_weights(Config()).keys()
    assert {"psnr", "gan", "seed", "precision", "degradation"} <= told
    assert dataclasses.asdict(Config()).keys() - told == {
        *("name", "train_dir", "valid_dir", "lr_dir", "valid_lr_dir", "workers"),
        *("log_every", "val_every", "val_images", "save_every", "keep_generators"),
    }
    left_out = flat(dataclasses.asdict(Config())).keys() - flat(settings_of_weights(Config()))
    for name in ("psnr", "gan"):
        assert f"{name}.val_every" in left_out and f"{name}.lr" not in left_out


VGG = {"vgg_weights", "vgg_layer", "vgg_before_activation"}
JUDGED = {"relativistic", "discriminator", "init_discriminator"}
UNET = ("--discriminator", "unet")
OTHERS = {"patch", "busiest_of", "lr", "milestones", "warmup", "clip_grad_norm", "val_every"}
OTHERS |= {"pixel", "log_mse", "perceptual", "adversarial", "feature_matching"}
DEGRADATION = {f"degradation.{field.name}" for field in dataclasses.fields(Degradation)}
DEGRADATION -= {"degradation.level"}
ENDED = ("psnr", 9, ["--psnr.steps", "9", "--gan.steps", "0", "--psnr.milestones", "5"])


@pytest.mark.parametrize(
    "args, idle",
    [
        ([], set()),
        ([*SRGAN, "--psnr.milestones"], {"growth", "unshuffle"}),
        (["--generator", "srresnet"], {"growth", "unshuffle"}),
        (["--gan.perceptual", "0"], VGG),
        (["--gan.perceptual", "0", "--psnr.perceptual", "1"], set()),
        (["--gan.adversarial", "0"], JUDGED),
        (["--gan.adversarial", "0", "--psnr.adversarial", "1"], set()),
        (["--valid-dir", "", "--valid-lr-dir", "x"], {"valid_lr_dir", "val_images"}),
        (["--psnr.steps", "0"], {f"psnr.{name}" for name in OTHERS}),
        (
            ["--gan.steps", "0"],
            {f"gan.{name}" for name in OTHERS} | VGG | JUDGED | {"keep_generators"},
        ),
        (
            ["--gan.steps", "0", "--psnr.pixel", "0", "--psnr.log-mse", "1"],
            {f"gan.{name}" for name in OTHERS}
            | VGG
            | JUDGED
            | {"keep_generators", "squared_error"},
        ),
        (["--psnr.steps", "800000"], {"psnr.milestones", "psnr.steps"}),
        (["--psnr.steps", "800001"], set()),
        (["--psnr.warmup", "1000000"], {"psnr.warmup", "psnr.steps"}),
        (["--gan.warmup", "399999"], set()),
        (["--gan.val-every", "7"], {"val_every"}),
        (["--psnr.steps", "0", "--psnr.val-every", "7"], {f"psnr.{name}" for name in OTHERS}),
    ],
)
def test_settings_without_effect_are_known(args, idle):
    always = {"discriminator_features"} | DEGRADATION
    assert idle_settings(parse_args(args)).keys() == idle | always
    unet = idle_settings(parse_args([*args, *UNET])).keys()
    assert unet == idle | (always if idle >= JUDGED else DEGRADATION)


def test_settings_of_the_degradation_have_no_effect_at_level_none():
    idle = idle_settings(Config())
    assert {"degradation.sharpen", "degradation.jpeg_quality"} < DEGRADATION <= idle.keys()
    assert idle["degradation.sharpen"] == "no effect, as degradation.level is 'none'"
    for level in ("mild", "strong"):
        idle = idle_settings(parse_args(["--degradation.level", level]))
        assert not idle.keys() & DEGRADATION


def test_settings_of_the_degradation_have_no_effect_on_what_is_made_mild():
    idle = idle_settings(parse_args(["--preset", "compact-real"]))
    why = "no effect on the 70% of images that degradation.mild gives the level mild"
    assert idle["degradation.jpeg_quality"] == idle["degradation.blur"] == why
    assert idle.keys() & DEGRADATION == DEGRADATION - {"degradation.mild", "degradation.sharpen"}


PROBABILITIES = ["blur", "blur2", "sinc", "noise", "noise2", "poisson", "jpeg", "jpeg2"]
PROBABILITIES += ["final_sinc"]
OTHER_VALUES = dict(  # than the paper's, in the place of each range and share
    sinc=0.4,
    kernels=(1, 2, 1, 1, 1, 1),
    sigma=(4.0, 5.0),
    sigma2=(4.0, 5.0),
    gray=0.9,
    kernel_side=(9, 11),
    generalized_beta=(5.0, 6.0),
    plateau_beta=(5.0, 6.0),
    factor=(0.3, 1.9),
    factor2=(0.4, 1.9),
    poisson=0.3,
    gaussian_sigma=(40.0, 50.0),
    gaussian_sigma2=(40.0, 50.0),
    poisson_scale=(4.0, 5.0),
    poisson_scale2=(4.0, 5.0),
    jpeg_quality=(3, 5),
)


@pytest.mark.parametrize(
    "probabilities",
    [
        *(
            {},
            *({name: 0} for name in PROBABILITIES),
            dict(sinc=1),
            dict(poisson=1),
            dict(kernels=(1, 1, 0, 0, 0, 0)),
        ),
        *(dict(kernels=(0, 0, 1, 0, 0, 0)), dict(resize=(0, 0, 1)), dict(resize2=(0, 0, 1))),
        *(dict(blur=0, blur2=0), dict(noise=0, noise2=0), dict(jpeg=0, jpeg2=0)),
        dict(blur=0, blur2=0, final_sinc=0),
    ],
    ids=str,
)
def test_what_no_image_is_given_is_known(probabilities):
    """Another value of such a setting draws the same steps, and one of any other, other steps."""
    settings = Degradation(level="strong", **probabilities)

    def draw(settings):
        draws = [np.random.default_rng(k) for k in range(60)]
        return [draw_steps(settings, (64, 64), 4, random) for random in draws]

    def has_no_effect(name):
        changed = dataclasses.replace(settings, **{name: OTHER_VALUES[name]})
        return draw(changed) == draw(settings)

    names = OTHER_VALUES.keys() - probabilities.keys()
    assert {name for name in names if has_no_effect(name)} == never_drawn(settings) & names
    assert never_drawn(settings) <= OTHER_VALUES.keys()


def test_ranges_of_what_no_image_is_given_have_no_effect():
    args = ["--degradation.level", "strong", "--degradation.jpeg", "0", "--degradation.jpeg2", "0"]
    idle = idle_settings(parse_args(args))
    assert idle.keys() & DEGRADATION == {"degradation.jpeg_quality"}
    assert idle["degradation.jpeg_quality"].startswith("no effect, as what it is for has")
    mild = idle_settings(parse_args([*args, "--degradation.mild", "0.5"]))
    assert mild["degradation.jpeg_quality"] == idle["degradation.jpeg_quality"]


def test_a_decay_that_the_average_never_reaches_is_told():
    """It warms up: of n steps the last has n / (10 + n)."""
    steps = ["--psnr.steps", "700", "--gan.steps", "290"]
    assert idle_settings(parse_args([*steps, "--ema-decay", "0.9901"]))["ema_decay"] == (
        "never reached, as the average warms up: 0.9900 at the end"
    )
    assert "ema_decay" not in idle_settings(parse_args([*steps, "--ema-decay", "0.99"]))


def test_remedies_of_numbers_that_blow_up_are_others_than_what_is_set():
    def told(*args):
        return against_divergence(parse_args(["--device", "cpu", *args]), "psnr")

    assert told("--precision", "fp32") == "Lower --psnr.lr or set --psnr.clip-grad-norm 1."
    clipped = told("--psnr.clip-grad-norm", "0.2", "--precision", "bf16")
    assert clipped == "Lower --psnr.lr or set --psnr.clip-grad-norm 0.1, or use --precision fp32."


@pytest.mark.parametrize("phase, step, args", [("gan", 9, ["--gan.steps", "9"]), ENDED])
def test_what_made_weights_has_no_effect_once_no_step_is_left(phase, step, args):
    config = parse_args([*args, "--batch-size", "32", "--degradation.level", "strong", *UNET])
    idle, before = idle_settings(config, At(phase, step)), settings(*args)
    why = "no effect, as no step is left to do"
    for name in (
        "batch_size",
        "degradation.level",
        "degradation.gray",
        "ema_decay",
        "discriminator",
    ):
        assert idle[name] == why, name
    assert not idle.keys() & {
        "scale",
        "features",
        "seed",
        "betas",
        "name",
        "val_images",
        "log_every",
    }
    config = dataclasses.replace(config, device="cpu", precision="fp32")  # of this machine
    expected = before | {"device": "cpu", "precision": "fp32"}
    config = with_what_is_over(config, before, At(phase, step))
    assert flat(dataclasses.asdict(config)) == expected


def test_a_reason_is_given_for_each():
    idle = idle_settings(
        parse_args([*SRGAN, "--psnr.steps", "0", "--gan.milestones", "9", "300000"])
    )
    assert idle["growth"] == "no effect, as only --generator rrdb has it"
    assert idle["discriminator_features"] == "no effect, as only --discriminator unet has it"
    assert idle["psnr.lr"] == "no effect, as psnr.steps is 0"
    own = idle_settings(parse_args(["--gan.val-every", "7"]))["val_every"]
    assert own == "no effect in the phase gan, as gan.val_every is 7"
    told = "the phase ends before 300000, so gan.lr does not halve there; --gan.milestones takes"
    assert idle["gan.milestones"].startswith(told) and idle["gan.steps"].startswith(told)


@pytest.mark.parametrize(
    "phase, step, args, left",
    [
        ("psnr", 0, [], ["psnr", "gan"]),
        ("psnr", 0, ["--psnr.steps", "0"], ["gan"]),
        ("psnr", 7, ["--psnr.steps", "8"], ["psnr", "gan"]),
        ("psnr", 8, ["--psnr.steps", "8"], ["gan"]),
        ("psnr", 9, ["--psnr.steps", "8", "--gan.steps", "0"], []),
        ("psnr", 9, ["--psnr.steps", "0"], ["gan"]),
        ("gan", 1, ["--psnr.steps", "8"], ["gan"]),
        ("gan", 9, ["--gan.steps", "9"], []),
    ],
)
def test_the_phases_with_steps_to_do(phase, step, args, left):
    assert phases_left(parse_args(args), At(phase, step)) == left


@pytest.mark.parametrize(
    "phase, step, args, said",
    [
        ("psnr", 5, ["--gan.patch", "64"], ["gan.patch was 128, is 64"]),
        ("psnr", 5, ["--psnr.patch", "64"], ["psnr.patch was 192, is 64"]),
        ("psnr", 10**6, ["--gan.patch", "64"], ["gan.patch was 128, is 64"]),
        ("psnr", 10**6, ["--psnr.lr", "1"], ["psnr.lr was 0.0002, is 1.0: no effect"]),
        ("gan", 5, ["--psnr.steps", "9"], ["psnr.steps was 1000000, is 9: no effect"]),
        ("gan", 5, ["--gan.steps", "3"], ["gan.steps was 400000, is 3: 5 are done"]),
        ("gan", 5, ["--gan.lr", "1"], ["gan.lr was 0.0001, is 1.0"]),
        ("gan", 5, ["--init-from", "x"], ["init_from was '', is 'x': no effect"]),
        ("psnr", 5, [*UNET, "--unshuffle", "1"], ["discriminator was 'vgg', is 'unet'"]),
        ("psnr", 5, ["--init-discriminator", "x"], ["init_discriminator was '', is 'x'"]),
        ("gan", 5, ["--init-discriminator", "x"], ["init_discriminator was '', is 'x': no effect"]),
        (
            *("gan", 5, ["--discriminator-features", "8"]),
            ["discriminator_features was 64, is 8: no effect"],
        ),
        ("gan", 5, ["--gan.warmup", "4"], ["gan.warmup was 0, is 4"]),
        (
            *("psnr", 5, ["--degradation.gray", "0.5"]),
            ["degradation.gray was 0.4, is 0.5: no effect"],
        ),
        (
            *("gan", 5, ["--degradation.level", "strong", "--degradation.gray", "0"]),
            ["degradation.level was 'none', is 'strong'", "degradation.gray was 0.4, is 0.0"],
        ),
        (
            *("psnr", 1000, ["--batch-size", "8"]),
            ["batch_size was 16, is 8: the stream of crops goes back by 8,000"],
        ),
        (
            *("psnr", 1000, ["--batch-size", "17"]),
            ["batch_size was 16, is 17: the stream of crops goes on by 1,000"],
        ),
    ],
)
def test_changes_are_told_with_what_comes_of_them(phase, step, args, said):
    changes = list_changes(parse_args(args), settings(), At(phase, step))
    assert len(changes) == len(said)
    assert all(c.startswith(s) for c, s in zip(changes, said, strict=True)), changes
    assert all(("no effect" in c) == ("no effect" in s) for c, s in zip(changes, said, strict=True))


@pytest.mark.parametrize(
    "before, args, phase, field",
    [
        ([], ["--gan.patch", "64"], "gan", "gan.patch"),
        ([], ["--seed", "1"], "psnr", "seed"),
        ([], ["--growth", "16"], "gan", "growth"),
        ([], ["--unshuffle", "2"], "psnr", "unshuffle"),
        ([], UNET, "gan", "discriminator"),
        (UNET, [*UNET, "--discriminator-features", "8"], "gan", "discriminator_features"),
        ([], ["--betas", "0.5", "0.9"], "psnr", "betas"),
        (
            ["--psnr.adversarial", "1"],
            ["--psnr.adversarial", "1", "--psnr.patch", "64"],
            "psnr",
            "",
        ),
    ],
)
def test_another_run_is_refused(before, args, phase, field):
    with pytest.raises(ValueError, match=field or r"psnr\.patch"):
        list_changes(parse_args(args), settings(*before), At(phase, 5))


def test_what_has_no_effect_is_never_refused():
    with_d = ("--psnr.adversarial", "1")
    changed = parse_args([*with_d, "--psnr.patch", "64"])
    told = list_changes(changed, settings(*with_d), At("gan", 5))
    assert told[0].startswith("psnr.patch was 192")
    assert list_changes(changed, settings(*with_d), At("psnr", 10**6))
    assert list_changes(parse_args([*SRGAN, "--growth", "16"]), settings(*SRGAN), At("gan", 5))


INIT_D = ["--init-discriminator", "d"]


def test_a_run_keeps_the_settings_of_what_is_over():
    changed = ("--psnr.lr", "1", "--psnr.steps", "3", "--gan.lr", "2", "--init-from", "x")
    before = settings("--init-from", "a", "--psnr.steps", "9")
    for phase, step, steps, rates in (
        ("psnr", 2, (3, 400_000), (1, 2)),
        ("psnr", 5, (5, 400_000), (2e-4, 2)),
        ("gan", 5, (9, 400_000), (2e-4, 2)),
        ("gan", 500_000, (9, 500_000), (2e-4, 1e-4)),
    ):
        kept = with_what_is_over(parse_args([*changed]), before, At(phase, step))
        assert (kept.psnr.steps, kept.gan.steps) == steps
        assert (kept.psnr.lr, kept.gan.lr) == rates
        assert kept.init_from == "a"
    assert with_what_is_over(parse_args(INIT_D), before, At("psnr", 5)).init_discriminator == "d"
    assert with_what_is_over(parse_args(INIT_D), before, At("gan", 5)).init_discriminator == ""
    degraded = settings("--degradation.level", "strong")  # which excludes LR images of one's own
    kept = with_what_is_over(parse_args(["--lr-dir", "L"]), degraded, At("gan", 400_000))
    assert kept.degradation.level == "strong" and not kept.lr_dir


def works(net, crops, side):
    """Whether torch's batch norm takes so many crops of this size."""
    try:
        net.train()(torch.zeros(crops, 3, side, side))
    except ValueError:
        return False
    return True


def test_what_mps_cannot_train_is_refused():
    mps, alone, two = torch.device("mps"), Ranks(), Ranks(count=2)
    for device, dtype, ranks in (
        *((mps, torch.float32, alone), (mps, torch.bfloat16, alone)),
        (torch.device("cuda"), torch.float16, two),
    ):
        check_device(device, dtype, ranks)
    with pytest.raises(DeviceError, match=r"precision is 'fp16'.*use bf16 or fp32"):
        check_device(mps, torch.float16, alone)
    with pytest.raises(DeviceError, match="--device cpu"):
        check_device(mps, torch.float32, two)


@pytest.mark.parametrize("patch", [32, 64])
@pytest.mark.parametrize("ranks, accumulate, crops", [(1, 1, 1), (1, 2, 1), (4, 1, 1), (2, 3, 2)])
def test_one_crop_at_a_time_is_refused_where_the_discriminator_would(
    patch, ranks, accumulate, crops
):
    size = str(ranks * accumulate * crops)
    config = parse_args(["--gan.patch", str(patch), "--batch-size", size])
    config = dataclasses.replace(config, accumulate=accumulate)
    check_batch_size(config, Ranks(count=ranks), ["psnr"])
    if works(VGGDiscriminator(patch), crops, patch):
        check_batch_size(config, Ranks(count=ranks), ["psnr", "gan"])
    else:
        with pytest.raises(DeviceError, match=f"batch_size is {size}.*gan.patch {patch}"):
            check_batch_size(config, Ranks(count=ranks), ["psnr", "gan"])
    config = dataclasses.replace(config, discriminator="unet")  # which has no batch norm
    check_batch_size(config, Ranks(count=ranks), ["psnr", "gan"])


@pytest.mark.parametrize("patch", [4, 8])
@pytest.mark.parametrize("crops", [1, 2])
def test_one_crop_at_a_time_is_refused_where_srresnet_would(patch, crops):
    args = ("--generator", "srresnet", "--batch-norm", "true", "--psnr.patch", str(patch))
    config = parse_args([*args, "--batch-size", str(2 * crops)])
    if works(SRResNet(features=4, blocks=1, batch_norm=True), crops, patch // 4):
        check_batch_size(config, Ranks(count=2), ["psnr"])
    else:
        with pytest.raises(DeviceError, match=f"psnr.patch {patch} "):
            check_batch_size(config, Ranks(count=2), ["psnr"])


@pytest.mark.parametrize(
    "field, value",
    [
        *(("psnr.lr", 1e-3), ("last.pt", "psnr step 7"), ("images", ["b"]), ("seed", 1)),
        ("log_every", 7),  # at whose steps the processes wait for one another
        ("kind of device", "cuda"),
        ("precision computed in", "torch.bfloat16"),
    ],
)
def test_processes_that_would_learn_apart_are_refused(field, value, monkeypatch):
    def others(changes):
        monkeypatch.setattr(Ranks, "gather", lambda ranks, own: [*own, own[0] | changes])

    def check():
        at, device = At("psnr", 3, 0), torch.device("cpu")
        refuse_unlike_ranks(Config(), at, device, torch.float32, ["a"], Ranks(count=2))

    others({"vgg_weights": "/another/place", "device": "cpu", "train_dir": ["elsewhere"]})
    check()
    others({field: value})
    words = f"{field} is .* but {re.escape(repr(value))} for process 1: give all"
    if field == "images":
        words = "^images differ between process 0 and process 1: give all"
    with pytest.raises(DeviceError, match=words):
        check()


def test_processes_that_draw_from_the_same_images_in_another_order_are_refused(monkeypatch):
    """The k-th crop would be another one."""
    told, at, device, dtype = [], At("psnr", 3, 0), torch.device("cpu"), torch.float32
    monkeypatch.setattr(Ranks, "gather", lambda ranks, own: told.extend(own) or told)
    refuse_unlike_ranks(Config(), at, device, dtype, ["a", "b"], Ranks(count=2))
    with pytest.raises(DeviceError, match=r"^images differ"):
        refuse_unlike_ranks(Config(), at, device, dtype, ["b", "a"], Ranks(count=2))


def test_a_batch_is_shared_evenly_or_refused():
    with pytest.raises(DeviceError, match="batch_size is 16: it has to be a multiple of 3 proc"):
        check_batch_size(Config(), Ranks(count=3), [])

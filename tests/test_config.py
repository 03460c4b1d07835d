"""Settings: the paper's numbers, the order defaults < preset < flags, and errors that help."""

import contextlib
import dataclasses

import pytest

import config
from config import (
    GROUPS,
    LEVELS,
    PRESETS,
    Config,
    Degradation,
    Phase,
    given_settings,
    layer_weights,
    parse_args,
)


def test_defaults_are_the_papers():
    config = parse_args([])
    assert config == Config()
    assert (config.scale, config.features, config.blocks, config.growth) == (4, 64, 23, 32)
    assert (config.batch_size, config.betas, config.ema_decay) == (16, (0.9, 0.999), 0.999)
    assert config.vgg_layer == "conv5_4" and config.vgg_before_activation
    assert config.relativistic and not config.squared_error and not config.batch_norm
    assert dataclasses.astuple(config.psnr)[:3] == (1_000_000, 192, 2e-4)
    assert config.psnr.milestones == (200_000, 400_000, 600_000, 800_000)
    assert (config.psnr.pixel, config.psnr.perceptual, config.psnr.adversarial) == (1, 0, 0)
    assert dataclasses.astuple(config.gan)[:3] == (400_000, 128, 1e-4)
    assert config.gan.milestones == (50_000, 100_000, 200_000, 300_000)
    assert (config.gan.pixel, config.gan.perceptual, config.gan.adversarial) == (1e-2, 1, 5e-3)


def test_flags_beat_the_preset_and_the_preset_beats_the_defaults():
    config = parse_args(["--preset", "demo", "--psnr.lr", "3e-4", "--batch-size", "2"])
    assert config.psnr.lr == 3e-4
    assert config.psnr.steps == PRESETS["demo"]["psnr"]["steps"]
    assert config.batch_size == 2
    assert config.features == PRESETS["demo"]["features"]
    assert config.ema_decay == Config.ema_decay


def test_every_flag_reaches_its_field():
    args = ["--train-dir", "x", "y z", "--vgg-before-activation", "false", "--betas", "0.5", "0.6"]
    config = parse_args([*args, "--gan.milestones", "1", "2", "--psnr.milestones"])
    assert config.train_dir == ("x", "y z")
    assert config.vgg_before_activation is False
    assert config.betas == (0.5, 0.6)
    assert config.gan.milestones == (1, 2)
    assert config.psnr.milestones == ()


def test_what_a_command_line_names_is_known():
    args = ["--preset", "demo", "--psnr.lr", "2e-4", "--train-dir", "a", "b", "--gan.milestones"]
    assert given_settings(args) == {"psnr.lr", "train_dir", "gan.milestones"}


def test_the_degradation_is_the_papers_and_a_level_changes_it():
    """The first numbers are Real-ESRGAN's, of train_realesrnet_x4plus.yml."""
    strong = parse_args(["--degradation.level", "strong"]).degradation
    assert strong == Degradation(level="strong") == Degradation.of_level("strong")
    assert (strong.blur, strong.blur2, strong.kernel_side, strong.sinc) == (1, 0.8, (7, 21), 0.1)
    assert strong.kernels == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert (strong.sigma, strong.sigma2) == ((0.2, 3), (0.2, 1.5))
    assert (strong.generalized_beta, strong.plateau_beta) == ((0.5, 4), (1, 2))
    assert (strong.resize, strong.factor) == ((0.2, 0.7, 0.1), (0.15, 1.5))
    assert (strong.resize2, strong.factor2) == ((0.3, 0.4, 0.3), (0.3, 1.2))
    assert (strong.noise, strong.noise2, strong.poisson, strong.gray) == (1, 1, 0.5, 0.4)
    assert (strong.gaussian_sigma, strong.gaussian_sigma2) == ((1, 30), (1, 25))
    assert (strong.poisson_scale, strong.poisson_scale2) == ((0.05, 3), (0.05, 2.5))
    assert (strong.jpeg, strong.jpeg2, strong.jpeg_quality) == (1, 1, (30, 95))
    assert (strong.final_sinc, strong.sharpen) == (0.8, False)


def test_flags_beat_the_level_and_the_level_beats_the_defaults():
    args = ["--degradation.jpeg-quality", "60", "80", "--degradation.sharpen", "true"]
    mild = parse_args(["--degradation.level", "mild", *args]).degradation
    assert mild == Degradation.of_level("mild", jpeg_quality=(60, 80), sharpen=True)
    assert (mild.sigma, mild.jpeg_quality) == (LEVELS["mild"]["sigma"], (60, 80))
    assert parse_args([]).degradation == Degradation() == Degradation.of_level()
    assert Config(degradation=mild).degradation == mild
    with pytest.raises(ValueError, match=r"degradation\.level is 'weak'"):
        Config(degradation=Degradation.of_level("weak"))


@pytest.mark.parametrize("phase", ["psnr", "gan"])
def test_a_phase_that_is_off_refuses_nothing_but_values_that_are_none(phase):
    off = [f"--{phase}.steps", "0"]
    for fields in (["patch", "97"], ["milestones", "5", "4"], ["pixel", "0"]):
        parse_args([*off, f"--{phase}.{fields[0]}", *fields[1:], f"--{phase}.perceptual", "0"])
    assert parse_args(["--scale", "3", "--gan.steps", "0"]).gan.patch == 128
    with pytest.raises(SystemExit):
        parse_args([*off, f"--{phase}.lr", "nan"])


def test_every_preset_is_valid_and_every_field_explained():
    for name in PRESETS:
        parse_args(["--preset", name])
    for group in (Config, Phase, Degradation):
        for field in dataclasses.fields(group):
            assert field.name in GROUPS or field.metadata["help"]


UNET = ["--discriminator", "unet"]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--preset", "nope"], ["--preset", "nope", "demo"]),
        (["--bogus", "1"], ["--bogus"]),
        (["--batch", "1"], ["--batch"]),  # no guessing at abbreviations
        (["--psnr.lr", "abc"], ["psnr.lr", "abc"]),
        (["--psnr.lr", "nan"], ["psnr.lr", "nan"]),
        (["--psnr.lr", "inf"], ["psnr.lr", "inf", "finite"]),
        (["--seed", str(10**400)], ["seed", "2**64"]),
        (["--seed", "-1"], ["seed", "at least 0"]),
        (["--betas", "0.9", "nan"], ["betas", "nan"]),
        (["--psnr.clip-grad-norm", "-1"], ["psnr.clip_grad_norm", "-1"]),
        (["--keep-generators", "-1"], ["keep_generators"]),
        (["--val-every", "0"], ["val_every", "at least 1"]),
        (["--accumulate", "3"], ["accumulate", "16"]),
        (["--seed", str(2**64)], ["seed", "2**64"]),
        (["--psnr.lr", "0"], ["psnr.lr"]),
        (["--scale", "5"], ["scale", "5", "1, 2, 3, 4 or 8"]),
        (["--psnr.patch", "97"], ["psnr.patch", "97", "96"]),
        (["--psnr.patch", "0"], ["psnr.patch"]),
        (["--gan.patch", "100"], ["gan.patch", "100", "96"]),
        (["--scale", "3"], ["gan.patch", "128", "96"]),
        (["--gan.adversarial", "0", "--gan.patch", "100"], ["gan.patch", "VGG19", "96"]),
        (["--psnr.pixel", "0"], ["psnr.pixel"]),
        (["--psnr.feature-matching", "1"], ["psnr.feature_matching", "psnr.adversarial"]),
        (["--gan.adversarial", "-1"], ["gan.adversarial", "-1"]),
        (["--gan.milestones", "5", "4"], ["gan.milestones"]),
        (["--psnr.steps", "-1"], ["psnr.steps"]),
        (["--psnr.steps", "0", "--gan.steps", "0"], ["psnr.steps"]),
        (["--batch-size", "0"], ["batch_size"]),
        (["--ema-decay", "1"], ["ema_decay"]),
        (["--betas", "0.9"], ["betas"]),
        (["--device", "tpu"], ["device", "tpu", "cuda"]),
        (["--precision", "fp8"], ["precision", "fp8", "bf16"]),
        (["--name", "a/b"], ["name", "a/b"]),
        (["--name", ".."], ["name"]),
        (["--train-dir"], ["train_dir"]),
        (["--train-dir", "a", "b", "--lr-dir", "c"], ["lr_dir", "2"]),
        (["--generator", "unet"], ["generator", "unet", "srresnet"]),
        (["--batch-norm", "true"], ["batch_norm", "--generator srresnet"]),
        (["--preset", "srgan", "--recompute", "true"], ["recompute", "--generator rrdb"]),
        (["--vgg-before-activation", "maybe"], ["vgg-before-activation", "maybe"]),
        (["--discriminator", "patchgan"], ["discriminator", "patchgan", "vgg or unet"]),
        (["--discriminator-features", "0"], ["discriminator_features", "at least 1"]),
        ([*UNET, "--gan.perceptual", "0", "--gan.patch", "100"], ["gan.patch", "100", "8", "96"]),
        (["--scale", "3", "--gan.patch", "96", "--psnr.patch", "97"], ["for the scale it", "96"]),
        (["--unshuffle", "3"], ["unshuffle", "1, 2 or 4"]),
        (["--unshuffle", "2", "--scale", "3"], ["unshuffle", "scale 3"]),
        (["--unshuffle", "2", "--generator", "srresnet"], ["unshuffle", "--generator rrdb"]),
        (["--unshuffle", "4", "--psnr.patch", "200"], ["psnr.patch", "unshuffle", "16", "192"]),
        (["--degradation.level", "weak"], ["degradation.level", "weak", "none, mild or strong"]),
        (["--degradation.kernel-side", "8", "20"], ["degradation.kernel_side", "odd", "(9, 21)"]),
        (["--degradation.kernel-side", "1", "3"], ["degradation.kernel_side", "at least 3"]),
        (["--degradation.kernel-side", "7"], ["degradation.kernel_side", "give 2 numbers"]),
        (["--degradation.kernel-side", "9", "7"], ["degradation.kernel_side", "smaller number"]),
        (["--degradation.jpeg-quality", "0", "95"], ["degradation.jpeg_quality", "at most 100"]),
        (["--degradation.jpeg-quality", "30.5", "95"], ["jpeg-quality", "30.5"]),
        (["--degradation.sigma", "0", "3"], ["degradation.sigma", "above 0"]),
        (["--degradation.sigma2", "1", "inf"], ["degradation.sigma2", "finite"]),
        (["--degradation.factor", "0.5", "80"], ["degradation.factor", "at most 8"]),
        (["--degradation.gray", "1.1"], ["degradation.gray", "at most 1"]),
        (["--degradation.resize", "0", "0", "0"], ["degradation.resize", "above 0"]),
        (["--degradation.resize2", "1", "1", "nan"], ["degradation.resize2", "nan"]),
        (["--degradation.kernels", "1", "-1", "0", "0", "0", "0"], ["degradation.kernels", "-1"]),
        (["--degradation.level", "mild", "--lr-dir", "x"], ["degradation.level", "lr_dir"]),
        (["--degradation.blurr", "1"], ["--degradation.blurr"]),
    ],
)
def test_bad_values_are_refused_by_name(args, words, capsys):
    with pytest.raises(SystemExit) as exit:
        parse_args(args)
    assert exit.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "text, weights",
    [
        ("conv5_4", {"conv5_4": 1}),
        ("conv1_2:0.1,conv2_2:.25, conv5_4", {"conv1_2": 0.1, "conv2_2": 0.25, "conv5_4": 1}),
        ("conv4_4:1e-3,conv3_1:20", {"conv4_4": 0.001, "conv3_1": 20}),
    ],
)
def test_layers_have_weights(text, weights):
    assert layer_weights(parse_args(["--vgg-layer", text]).vgg_layer) == weights


@pytest.mark.parametrize(
    "text",
    [
        *("", ",", "conv6_1", "conv1_3", "conv5_4,", "conv5_4 conv1_2", "relu5_4", "Conv5_4"),
        *("conv5_4:", "conv5_4:x", "conv5_4:0", "conv5_4:-1", "conv5_4:nan", "conv5_4:inf"),
        *("conv5_4:1e999", "conv5_4:1:2", "conv5_4:1,conv5_4:2", "conv5_4=1", "conv5_4:0,1"),
    ],
)
def test_other_layers_are_refused_by_the_fields_name(text, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--vgg-layer", text, "--gan.perceptual", "0"])
    assert f"vgg_layer is {text!r}: give conv1_1 to conv5_4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, smallest",  # crops of the GAN phase, of which multiples fit as well
    [
        ([], 32),
        (UNET, 16),
        ([*UNET, "--vgg-layer", "conv3_4:1,conv2_2:1"], 8),
        ([*UNET, "--gan.perceptual", "0", "--scale", "8", "--unshuffle", "2"], 16),
        ([*UNET, "--gan.perceptual", "0", "--scale", "1", "--unshuffle", "4"], 8),
        ([*UNET, "--vgg-layer", "conv2_2", "--gan.adversarial", "0"], 4),
        (["--vgg-layer", "conv4_1", "--gan.adversarial", "0", "--scale", "1"], 8),
        (["--gan.perceptual", "0", "--gan.adversarial", "0", "--unshuffle", "4"], 16),
    ],
)
def test_the_crops_that_fit(args, smallest):
    config, fits = parse_args(args), []
    for patch in range(1, 3 * smallest + 1):
        with contextlib.suppress(ValueError):
            phase = dataclasses.replace(config.gan, patch=patch)
            fits.append(dataclasses.replace(config, gan=phase).gan.patch)
    assert fits == [smallest, 2 * smallest, 3 * smallest]


def test_srgans_numbers():
    """Of Ledig et al., 2017, sections 2.2 and 3.2."""
    config = parse_args(["--preset", "srgan"])
    assert config.generator == "srresnet" and config.batch_norm
    assert (config.features, config.blocks, config.scale) == (64, 16, 4)
    assert (config.batch_size, config.betas) == (16, (0.9, 0.999))
    assert config.squared_error and not config.relativistic
    assert layer_weights(config.vgg_layer) == {"conv5_4": 1} and config.vgg_weights == "imagenet"
    assert not config.vgg_before_activation and config.discriminator == "vgg"
    assert config.degradation.level == "none"
    assert dataclasses.astuple(config.psnr)[:3] == (1_000_000, 96, 1e-4)
    assert dataclasses.astuple(config.gan)[:3] == (200_000, 96, 1e-4)
    assert (config.psnr.pixel, config.psnr.perceptual, config.psnr.adversarial) == (1, 0, 0)
    assert (config.gan.pixel, config.gan.perceptual, config.gan.adversarial) == (0, 0.006, 1e-3)
    assert config.gan.perceptual == pytest.approx((1 / 12.75) ** 2, rel=0.03)  # of the features
    assert min(config.psnr.milestones) >= config.psnr.steps  # a constant rate
    # From 10^5 updates on the paper's rate is a tenth; three halvings are an eighth.
    assert [round(step, -2) for step in config.gan.milestones] == [100_000] * 3


def test_real_esrgans_numbers():
    """Of its option files, train_realesrnet_x4plus.yml and train_realesrgan_x4plus.yml."""
    config = parse_args(["--preset", "real"])
    assert (config.batch_size, config.betas, config.ema_decay) == (48, (0.9, 0.99), 0.999)
    assert (config.features, config.blocks, config.growth, config.scale) == (64, 23, 32, 4)
    assert (config.discriminator, config.discriminator_features) == ("unet", 64)
    assert not config.relativistic and not config.squared_error and config.vgg_before_activation
    weights = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1, "conv4_4": 1, "conv5_4": 1}
    assert layer_weights(config.vgg_layer) == weights and config.vgg_weights == "imagenet"
    paper = dataclasses.replace(Config().degradation, level="strong", sharpen=True)
    assert config.degradation == paper
    assert dataclasses.astuple(config.psnr)[:3] == (1_000_000, 256, 2e-4)
    assert dataclasses.astuple(config.gan)[:3] == (400_000, 256, 1e-4)
    assert (config.psnr.pixel, config.psnr.perceptual, config.psnr.adversarial) == (1, 0, 0)
    assert (config.gan.pixel, config.gan.perceptual, config.gan.adversarial) == (1, 1, 0.1)
    for phase in (config.psnr, config.gan):  # constant rates
        assert min(phase.milestones) >= phase.steps and phase.warmup == 0


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(train_dir=("data/mine")), "train_dir is 'data/mine': its type has to be tuple"),
        (dict(train_dir=(1,)), "train_dir is"),
        (dict(batch_size=8.0), "batch_size is 8.0: its type has to be int"),
        (dict(batch_size=True), "batch_size is True: its type has to be int"),
        (dict(relativistic=1), "relativistic is 1: its type has to be bool"),
        (dict(valid_dir=None), "valid_dir is None: its type has to be str"),
        (dict(psnr=Phase(steps=1e6)), r"psnr\.steps is 1000000\.0: its type has to be int"),
        (dict(gan=Phase(milestones=(1e4,))), r"gan\.milestones is \(10000\.0,\)"),
        (dict(degradation=Degradation(jpeg_quality=(30.0, 95.0))), r"degradation\.jpeg_quality"),
    ],
)
def test_a_value_of_another_type_is_named(settings, words):
    """As whoever edits config.py writes it; flags have their types already."""
    with pytest.raises(ValueError, match=words):
        Config(**settings)
    Config(psnr=Phase(lr=1))  # a whole number is one


def test_a_config_that_was_edited_wrongly_is_named_without_a_traceback(monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "compact", PRESETS["compact"] | {"batchsize": 4})
    with pytest.raises(SystemExit):
        parse_args(["--preset", "compact"])
    assert "batchsize" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(Config, "__init__", lambda self: config.require(False, "scale", 5, "no"))
    with pytest.raises(SystemExit, match=r"^train\.py: config\.py: scale is 5: no$"):
        parse_args(["--help"])

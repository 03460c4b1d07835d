"""Settings: the paper's numbers, the order defaults < preset < flags, and errors that help."""

import dataclasses

import pytest

from config import GROUPS, LEVELS, PRESETS, Config, Degradation, Phase, given_settings, parse_args


def test_defaults_are_the_papers():
    config = parse_args([])
    assert config == Config()
    assert (config.scale, config.features, config.blocks, config.growth) == (4, 64, 23, 32)
    assert (config.batch_size, config.betas, config.ema_decay) == (16, (0.9, 0.999), 0.999)
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

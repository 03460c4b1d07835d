"""Every setting of a training run: its default, its unit and the reason for it.

The defaults are the paper's (Wang et al., 2018, arXiv 1809.00219, and its supplement). A preset
names what it changes; a flag changes one field: `--batch-size 8`, `--psnr.lr 1e-4`.
Order: defaults < preset < flags. Edit this file freely.
"""

import argparse
import dataclasses
import math
import typing
from dataclasses import dataclass
from pathlib import PurePath


def setting(default, help: str):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Phase:
    """One stretch of training. The loss is the sum of the terms whose weight is not 0."""

    steps: int = setting(1_000_000, "optimizer steps; 0 skips the phase")
    patch: int = setting(192, "side of the HR crop in pixels")
    lr: float = setting(2e-4, "Adam's learning rate, for both networks")
    milestones: tuple[int, ...] = setting(
        (200_000, 400_000, 600_000, 800_000),
        "steps at which lr halves; none given: cosine to zero",
    )
    warmup: int = setting(0, "steps over which lr rises from 0; large rates in short runs need it")
    clip_grad_norm: float = setting(0.0, "largest norm of a network's gradient; 0: no clipping")
    pixel: float = setting(1.0, "weight of the L1 loss on RGB in [0, 1]")
    perceptual: float = setting(0.0, "weight of the L1 loss on VGG19 features")
    adversarial: float = setting(
        0.0,
        "weight of the relativistic average loss as the paper writes it, the sum over real and "
        "fake (BasicSR takes half of that sum); 0: no discriminator is built",
    )


@dataclass(frozen=True)
class Config:
    """A whole run: the PSNR phase, then the GAN phase that starts from its EMA generator.

    Raises:
        ValueError: a value that cannot work; the message names the field, the value, the remedy.
    """

    name: str = setting("esrgan", "the run's folder under checkpoints/; same name: resume")
    train_dir: tuple[str, ...] = setting(
        ("data/train",), "folders of HR images, any size, searched in depth"
    )
    valid_dir: str = setting(
        "data/valid", "folder of HR images that are never trained on; '' for none"
    )
    lr_dir: tuple[str, ...] = setting(
        (), "LR images, one folder per train_dir with the same names; none: MATLAB bicubic"
    )
    valid_lr_dir: str = setting("", "LR images of valid_dir; none: MATLAB bicubic")

    scale: int = setting(4, "times as wide and high: 1, 2, 3, 4 or 8")
    generator: str = setting("rrdb", "rrdb, or srresnet: SRGAN's")
    features: int = setting(64, "channels of the generator's trunk")
    blocks: int = setting(23, "RRDBs in the generator, or SRResNet's residual blocks")
    growth: int = setting(
        32, "channels per dense convolution of an RRDB; other tools can load 32 only"
    )
    batch_norm: bool = setting(False, "in SRResNet, as SRGAN has it; RRDBs have none")

    init_from: str = setting(
        "", "a generator's file to start from; at another scale, what fits is taken"
    )

    batch_size: int = setting(16, "crops per step, over all processes and accumulated parts")
    accumulate: int = setting(
        1,
        "parts a batch is computed in, one after the other: less memory, the same gradient "
        "(in the GAN phase, batch norm and the relativistic means then see one part at a time)",
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.999), "Adam's decay rates; the paper's (the reference implementation: 0.9 0.99)"
    )
    max_skipped: int = setting(
        50, "stop after so many steps in a row with a loss or gradient that is not finite"
    )
    ema_decay: float = setting(0.999, "per step; the averaged generator is the one that is saved")
    vgg_weights: str = setting("imagenet", "imagenet (548 MB, once), random, or a VGG19 file")
    vgg_layer: str = setting("conv5_4", "VGG19 convolution whose output is compared")
    vgg_before_activation: bool = setting(True, "compare before the ReLU, as ESRGAN does")

    relativistic: bool = setting(True, "ESRGAN's adversarial loss; false: SRGAN's")
    squared_error: bool = setting(
        False, "compare pixels and features by mean squared error, as SRGAN does, instead of L1"
    )

    seed: int = setting(0, "of initial weights and of the sample stream")
    workers: int = setting(4, "processes that cut crops; 0: the training process itself")
    device: str = setting("auto", "auto (cuda, then mps, then cpu), or one of these")
    precision: str = setting("auto", "auto (bf16 where the hardware has it), bf16, fp16, fp32")
    compile: bool = setting(False, "torch.compile: minutes once, then faster steps on a GPU")
    recompute: bool = setting(
        False, "generator blocks compute their activations again going backward: far less memory"
    )

    log_every: int = setting(100, "steps between two readings of the losses (each waits for a GPU)")
    val_every: int = setting(5000, "steps between two validations")
    val_images: int = setting(100, "validate on the first so many images (DIV2K has 100)")
    save_every: int = setting(1000, "steps between two checkpoints: what a power cut can cost")
    keep_generators: int = setting(
        10, "the GAN phase keeps the generators of so many last validations, to choose by eye"
    )

    psnr: Phase = Phase()
    gan: Phase = Phase(
        steps=400_000,
        patch=128,
        lr=1e-4,
        milestones=(50_000, 100_000, 200_000, 300_000),
        pixel=1e-2,
        perceptual=1.0,
        adversarial=5e-3,
    )

    def __post_init__(self):
        require(self.scale in (1, 2, 3, 4, 8), "scale", self.scale, "choose 1, 2, 3, 4 or 8")
        require(
            self.name not in ("", ".", "..") and PurePath(self.name).name == self.name,
            "name",
            self.name,
            "give a plain folder name; it is made under checkpoints/",
        )
        require(len(self.train_dir) > 0, "train_dir", self.train_dir, "give at least one folder")
        require(
            len(self.lr_dir) in (0, len(self.train_dir)),
            "lr_dir",
            self.lr_dir,
            f"give one LR folder for each of the {len(self.train_dir)} in train_dir, or none",
        )
        for field in ("features", "blocks", "growth", "batch_size", "accumulate", "max_skipped"):
            at_least(1, field, getattr(self, field))
        for field in ("log_every", "val_every", "val_images", "save_every"):
            at_least(1, field, getattr(self, field))
        for field in ("workers", "keep_generators"):
            at_least(0, field, getattr(self, field))
        require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"it has to divide batch_size, {self.batch_size}",
        )
        require(0 <= self.seed < 2**64, "seed", self.seed, "it lies in [0, 2**64)")
        require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "betas",
            self.betas,
            "give two numbers in [0, 1)",
        )
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "it lies in [0, 1)")
        require(
            self.generator == "srresnet" or not self.batch_norm,
            "batch_norm",
            self.batch_norm,
            "only --generator srresnet has it",
        )
        require(
            self.generator == "rrdb" or not self.recompute,
            "recompute",
            self.recompute,
            "only --generator rrdb can",
        )
        for field, choices in (
            ("generator", ("rrdb", "srresnet")),
            ("device", ("auto", "cuda", "mps", "cpu")),
            ("precision", ("auto", "bf16", "fp16", "fp32")),
        ):
            value = getattr(self, field)
            require(value in choices, field, value, f"choose {', '.join(choices)}")
        require(
            self.psnr.steps + self.gan.steps > 0,
            "psnr.steps",
            self.psnr.steps,
            "at least one of the phases needs steps",
        )
        check_phase("psnr", self.psnr, self.scale)
        check_phase("gan", self.gan, self.scale)
        for phase in (self.psnr, self.gan):
            # Batch norm at the discriminator's end needs two values a channel.
            part = self.batch_size // self.accumulate
            judged = phase.steps > 0 and phase.adversarial > 0
            alone = judged and phase.patch == 32 and part == 1
            require(
                not alone,
                "batch_size",
                self.batch_size,
                "give at least 2 times accumulate, or a patch above 32",
            )


def check_phase(name: str, phase: Phase, scale: int) -> None:
    at_least(0, f"{name}.steps", phase.steps)
    at_least(0, f"{name}.warmup", phase.warmup)
    at_least(0, f"{name}.clip_grad_norm", phase.clip_grad_norm)
    at_least(1, f"{name}.patch", phase.patch)
    unit, needed_by = scale, "the scale needs"
    if phase.perceptual > 0:  # VGG19 halves an image four times before conv5_4
        unit, needed_by = math.lcm(16, unit), "the scale and VGG19 need"
    if phase.adversarial > 0:  # the discriminator halves it five times
        unit, needed_by = math.lcm(32, unit), "the scale and the discriminator need"
    require(
        phase.patch % unit == 0,
        f"{name}.patch",
        phase.patch,
        f"{needed_by} a multiple of {unit}: {max(unit, round(phase.patch / unit) * unit)} is one",
    )
    require(0 < phase.lr < math.inf, f"{name}.lr", phase.lr, "it has to be above 0 and finite")
    for term in ("pixel", "perceptual", "adversarial"):
        at_least(0, f"{name}.{term}", getattr(phase, term))
    require(
        phase.pixel + phase.perceptual + phase.adversarial > 0,
        f"{name}.pixel",
        phase.pixel,
        "at least one of pixel, perceptual and adversarial has to be above 0",
    )
    require(
        all(a < b for a, b in zip((0, *phase.milestones), phase.milestones, strict=False)),
        f"{name}.milestones",
        phase.milestones,
        "give rising steps above 0",
    )


def require(condition: bool, field: str, value, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{field} is {value!r}: {remedy}")


def at_least(minimum: int, field: str, value: float) -> None:
    # Written this way round, nan is refused too.
    require(
        value >= minimum and math.isfinite(value), field, value, f"it has to be at least {minimum}"
    )


# What each preset changes. esrgan is the paper; demo is a small run on the photographs that
# scikit-image ships, which ends in pictures after some minutes on two CPU cores; srgan is the 2017
# paper (Ledig et al., arXiv 1609.04802, section 3.2) with ESRGAN's discriminator; compact made the
# weights in the box, with --train-dir and --valid-dir, on 2 CPU cores.
PRESETS: dict[str, dict] = {
    "esrgan": {},
    "srgan": dict(
        name="srgan",
        generator="srresnet",
        blocks=16,
        batch_norm=True,
        vgg_before_activation=False,
        relativistic=False,
        squared_error=True,
        psnr=dict(steps=1_000_000, patch=96, lr=1e-4, milestones=(1_000_000,)),  # constant
        gan=dict(
            steps=200_000,
            patch=96,
            lr=1e-4,
            milestones=(100_000, 100_001, 100_002),  # an eighth; the paper goes down to a tenth
            pixel=0.0,
            perceptual=0.006,  # the paper's 1 / 12.75 on the features, squared
            adversarial=1e-3,
        ),
    ),
    "compact": dict(
        name="compact",
        features=32,
        blocks=4,
        batch_size=8,  # 16 took twice the time and ended 0.17 dB higher on Set5
        vgg_weights="random",
        vgg_layer="conv2_2",  # of random features the shallow ones: sharp pictures after 600 steps
        workers=0,
        log_every=25,
        val_every=250,
        save_every=250,
        psnr=dict(
            steps=16_000, patch=128, lr=1.2e-3, milestones=(), warmup=200, clip_grad_norm=0.2
        ),
        gan=dict(steps=1200, patch=96, lr=2e-4, milestones=(), warmup=50, adversarial=1e-2),
    ),
    "demo": dict(
        name="demo",
        train_dir=("data/demo/train",),
        valid_dir="data/demo/valid",
        features=32,
        blocks=2,
        batch_size=8,
        vgg_weights="random",
        workers=0,
        log_every=10,
        val_every=250,
        save_every=250,
        # Without clipping, of seeds 0 and 1 the second never came back from this rate.
        psnr=dict(steps=1500, patch=96, lr=2e-3, milestones=(), warmup=50, clip_grad_norm=0.2),
        gan=dict(steps=80, patch=96, lr=1e-4, milestones=()),
    ),
}


def parse_args(args: list[str] | None = None) -> Config:
    """The configuration of a command line (default: of this process); exits with 2 if wrong."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [--preset NAME] [--FIELD VALUE ...]   (--help lists the fields)",
        description="Train ESRGAN: PSNR phase, then GAN phase. The same command again resumes.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", choices=PRESETS, default="esrgan", help="settings to start from"
    )
    defaults = Config()
    add_flags(parser, defaults, prefix="")
    add_flags(parser.add_argument_group("PSNR phase"), defaults.psnr, prefix="psnr.")
    add_flags(parser.add_argument_group("GAN phase"), defaults.gan, prefix="gan.")
    flags = vars(parser.parse_args(args))

    changes = merge(PRESETS[flags.pop("preset")], unflatten(flags))
    phases = {
        name: dataclasses.replace(getattr(defaults, name), **changes.pop(name, {}))
        for name in ("psnr", "gan")
    }
    try:
        return Config(**changes, **phases)
    except ValueError as error:
        parser.error(str(error))


def add_flags(parser, defaults, prefix: str) -> None:
    """One flag per field; its type is the annotation of the field."""
    types = typing.get_type_hints(type(defaults))
    for field in dataclasses.fields(defaults):
        if types[field.name] is Phase:
            continue
        kind, nargs = types[field.name], None
        if typing.get_origin(kind) is tuple:
            kind, nargs = typing.get_args(kind)[0], "*"
        shown = getattr(defaults, field.name)
        parser.add_argument(
            f"--{prefix}{field.name}".replace("_", "-"),
            dest=prefix + field.name,
            type=boolean if kind is bool else kind,
            nargs=nargs,
            metavar=kind.__name__.upper(),
            default=argparse.SUPPRESS,  # absent flags leave the preset's value alone
            help=f"{field.metadata['help']} (default: {shown})".replace("%", "%%"),
        )


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"invalid value: {text!r} (true or false)")
    return text.lower() == "true"


def unflatten(flags: dict) -> dict:
    """{"psnr.lr": 1} -> {"psnr": {"lr": 1}}"""
    nested: dict = {}
    for key, value in flags.items():
        value = tuple(value) if isinstance(value, list) else value
        phase, _, field = key.rpartition(".")
        (nested.setdefault(phase, {}) if phase else nested)[field] = value
    return nested


def merge(preset: dict, flags: dict) -> dict:
    merged = preset | flags
    for name in ("psnr", "gan"):
        merged[name] = preset.get(name, {}) | flags.get(name, {})
    return merged

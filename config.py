"""Every setting of a training run: its default, its unit and the reason for it.

The defaults are the paper's (Wang et al., 2018, arXiv 1809.00219, and its supplement). A preset
names what it changes; a flag changes one field: `--batch-size 8`, `--psnr.lr 1e-4`.
Order: defaults < preset < flags. Edit this file freely.
"""

import argparse
import dataclasses
import itertools
import math
import typing
from dataclasses import dataclass
from pathlib import PurePath

PHASES = ("psnr", "gan")


def setting(default, help: str, **about):
    """A field with what is true of it:

    low, above, below: bounds of a number, or of each in a tuple; `low` itself is allowed.
    choices: the values it can have.
    identity: another value is another run, so a resume with one is refused. Of a phase: because the
        discriminator is built to it, so only in a phase that has one.
    term: the weight of a term of the loss, which has the field's name.
    generator: the kind of generator that has it.
    needs: the setting, of the run or of a phase, without which it has no effect.
    shapes_weights: False where the weights do not depend on it, so their files leave it out.
    """
    return dataclasses.field(default=default, metadata={"help": help} | about)


@dataclass(frozen=True)
class Phase:
    """One stretch of training. The loss is the sum of the terms whose weight is not 0."""

    steps: int = setting(1_000_000, "optimizer steps; 0 skips the phase", low=0)
    patch: int = setting(192, "side of the HR crop in pixels", low=1, identity=True)
    lr: float = setting(2e-4, "Adam's learning rate, for both networks", above=0)
    milestones: tuple[int, ...] = setting(
        (200_000, 400_000, 600_000, 800_000),
        "steps at which lr halves; none given: cosine to zero",
        low=1,
    )
    warmup: int = setting(
        0, "steps over which lr rises from 0; large rates in short runs need it", low=0
    )
    clip_grad_norm: float = setting(
        0.0, "largest norm of a network's gradient; 0: no clipping", low=0
    )
    pixel: float = setting(1.0, "weight of the L1 loss on RGB in [0, 1]", low=0, term=True)
    perceptual: float = setting(0.0, "weight of the L1 loss on VGG19 features", low=0, term=True)
    adversarial: float = setting(
        0.0,
        "weight of the relativistic average loss as the paper writes it, the sum over real and "
        "fake (BasicSR takes half of that sum); 0: no discriminator is built",
        low=0,
        term=True,
    )


TERMS = tuple(field.name for field in dataclasses.fields(Phase) if "term" in field.metadata)


@dataclass(frozen=True)
class Config:
    """A whole run: the PSNR phase, then the GAN phase that starts from its EMA generator.

    Raises:
        ValueError: a value that cannot work; the message names the field, the value, the remedy.
    """

    name: str = setting(
        "esrgan", "the run's folder under checkpoints/; same name: resume", shapes_weights=False
    )
    train_dir: tuple[str, ...] = setting(
        ("data/train",), "folders of HR images, any size, searched in depth", shapes_weights=False
    )
    valid_dir: str = setting(
        "data/valid",
        "folder of HR images that are never trained on; '' for none",
        shapes_weights=False,
    )
    lr_dir: tuple[str, ...] = setting(
        (),
        "LR images, one folder per train_dir with the same names; none: MATLAB bicubic",
        shapes_weights=False,
    )
    valid_lr_dir: str = setting(
        "", "LR images of valid_dir; none: MATLAB bicubic", needs="valid_dir", shapes_weights=False
    )

    scale: int = setting(
        4, "times as wide and high: 1, 2, 3, 4 or 8", choices=(1, 2, 3, 4, 8), identity=True
    )
    generator: str = setting(
        "rrdb", "rrdb, or srresnet: SRGAN's", choices=("rrdb", "srresnet"), identity=True
    )
    features: int = setting(64, "channels of the generator's trunk", low=1, identity=True)
    blocks: int = setting(
        23, "RRDBs in the generator, or SRResNet's residual blocks", low=1, identity=True
    )
    growth: int = setting(
        32,
        "channels per dense convolution of an RRDB; other tools can load 32 only",
        low=1,
        identity=True,
        generator="rrdb",
    )
    batch_norm: bool = setting(
        False, "in SRResNet, as SRGAN has it; RRDBs have none", identity=True, generator="srresnet"
    )

    init_from: str = setting(
        "", "a generator's file to start from; at another scale, what fits is taken"
    )

    batch_size: int = setting(16, "crops per step, over all processes and accumulated parts", low=1)
    accumulate: int = setting(
        1,
        "parts a batch is computed in, one after the other: less memory, the same gradient "
        "(in the GAN phase, batch norm and the relativistic means then see one part at a time)",
        low=1,
    )
    betas: tuple[float, float] = setting(
        (0.9, 0.999),
        "Adam's decay rates; the paper's (the reference implementation: 0.9 0.99)",
        low=0,
        below=1,
        identity=True,
    )
    max_skipped: int = setting(
        50, "stop after this many steps in a row with a loss or gradient that is not finite", low=1
    )
    ema_decay: float = setting(
        0.999, "per step; the averaged generator is the one that is saved", low=0, below=1
    )
    vgg_weights: str = setting(
        "imagenet", "imagenet (548 MB, once), random, or a VGG19 file", needs="perceptual"
    )
    vgg_layer: str = setting(
        "conv5_4", "VGG19 convolution whose output is compared", needs="perceptual"
    )
    vgg_before_activation: bool = setting(
        True, "compare before the ReLU, as ESRGAN does", needs="perceptual"
    )

    relativistic: bool = setting(
        True, "ESRGAN's adversarial loss; false: SRGAN's", needs="adversarial"
    )
    squared_error: bool = setting(
        False, "compare pixels and features by mean squared error, as SRGAN does, instead of L1"
    )

    seed: int = setting(
        0, "of initial weights and of the sample stream", low=0, below=2**64, identity=True
    )
    workers: int = setting(
        4, "processes that cut crops; 0: the training process itself", low=0, shapes_weights=False
    )
    device: str = setting(
        "auto",
        "auto (cuda, then mps, then cpu), or one of these",
        choices=("auto", "cuda", "mps", "cpu"),
    )
    precision: str = setting(
        "auto",
        "auto (bf16 where the hardware has it), bf16, fp16, fp32",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    compile: bool = setting(False, "torch.compile: minutes once, then faster steps on a GPU")
    recompute: bool = setting(
        False,
        "generator blocks compute their activations again going backward: far less memory",
        generator="rrdb",
    )

    log_every: int = setting(
        100,
        "steps between two readings of the losses (each waits for a GPU)",
        low=1,
        shapes_weights=False,
    )
    val_every: int = setting(5000, "steps between two validations", low=1, shapes_weights=False)
    val_images: int = setting(
        100,
        "images to validate on, the first of them (DIV2K has 100)",
        low=1,
        needs="valid_dir",
        shapes_weights=False,
    )
    save_every: int = setting(
        1000,
        "steps between two checkpoints: what a power cut can cost",
        low=1,
        shapes_weights=False,
    )
    keep_generators: int = setting(
        10,
        "the GAN phase keeps the generators of this many last validations, to choose by eye",
        low=0,
        needs="gan.steps",
        shapes_weights=False,
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
        check_fields(self, "")
        require(
            self.name not in ("", ".", "..")
            and PurePath(self.name).name == self.name
            and self.name.isprintable()
            and len(self.name.encode()) <= 240,  # of 255 bytes: its lock's name is longer
            "name",
            self.name,
            "give a plain folder name of at most 240 bytes; it is made under checkpoints/",
        )
        require(len(self.train_dir) > 0, "train_dir", self.train_dir, "give at least one folder")
        require(
            len(self.lr_dir) in (0, len(self.train_dir)),
            "lr_dir",
            self.lr_dir,
            f"give one LR folder for each of the {len(self.train_dir)} in train_dir, or none",
        )
        require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            self.accumulate,
            f"it has to divide batch_size, {self.batch_size}",
        )
        for field in dataclasses.fields(self):
            kind, value = field.metadata.get("generator"), getattr(self, field.name)
            fits = kind in (None, self.generator) or value is not True
            require(fits, field.name, value, f"only --generator {kind} has it")
        require(
            self.psnr.steps + self.gan.steps > 0,
            "psnr.steps",
            self.psnr.steps,
            "at least one of the phases needs steps",
        )
        for name in PHASES:
            check_phase(name, self)


def check_fields(settings: Config | Phase, prefix: str) -> None:
    """Each field alone: the bounds and choices it was declared with."""
    types = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, about = getattr(settings, field.name), field.metadata
        name = prefix + field.name
        if "choices" in about:
            *others, last = map(str, about["choices"])
            remedy = f"choose {', '.join(others)} or {last}"
            require(value in about["choices"], name, value, remedy)
        kinds = typing.get_args(types[field.name])
        if kinds and Ellipsis not in kinds:
            require(len(value) == len(kinds), name, value, f"give {len(kinds)} numbers")
        for number in value if isinstance(value, tuple) else (value,):
            require(within(number, about), name, value, describe_bounds(about))


def within(number, about: typing.Mapping) -> bool:
    """Whether a number is in its bounds, outside of which nan and infinity always are."""
    bounded = about.keys() & {"low", "above", "below"}
    return not bounded or (
        about.get("low", -math.inf) <= number < about.get("below", math.inf)
        and number > about.get("above", -math.inf)
    )


def describe_bounds(about: typing.Mapping) -> str:
    words = {"low": "at least", "above": "above", "below": "below"}
    bounds = [f"{word} {shown(about[key])}" for key, word in words.items() if key in about]
    return f"it has to be {' and '.join(bounds)}{'' if 'below' in about else ', and finite'}"


def shown(bound: float) -> str:
    """2**64 rather than its twenty digits."""
    return "2**64" if bound == 2**64 else str(bound)


def check_phase(name: str, config: Config) -> None:
    """Fields of a phase, each alone and, if it has steps, as they fit each other and the run."""
    phase, scale = getattr(config, name), config.scale
    check_fields(phase, f"{name}.")
    if phase.steps == 0:
        return
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
    require(
        any(getattr(phase, term) > 0 for term in TERMS),
        f"{name}.{TERMS[0]}",
        getattr(phase, TERMS[0]),
        f"at least one of {', '.join(TERMS)} has to be above 0",
    )
    require(
        all(a < b for a, b in itertools.pairwise(phase.milestones)),
        f"{name}.milestones",
        phase.milestones,
        "give rising steps",
    )


def require(condition: bool, field: str, value, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{field} is {value!r}: {remedy}")


def flat(settings: dict) -> dict:
    """{"psnr": {"lr": 1}} -> {"psnr.lr": 1}"""
    phases = {f"{name}.{key}": v for name in PHASES for key, v in settings.get(name, {}).items()}
    return {key: value for key, value in settings.items() if key not in PHASES} | phases


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
    parser, defaults = build_parser(), Config()
    flags = vars(parser.parse_args(args))
    changes = merge(PRESETS[flags.pop("preset")], unflatten(flags))
    phases = {
        name: dataclasses.replace(getattr(defaults, name), **changes.pop(name, {}))
        for name in PHASES
    }
    try:
        return Config(**changes, **phases)
    except ValueError as error:
        parser.error(str(error))


def given_settings(args: list[str] | None = None) -> set[str]:
    """The settings that a command line names, as `flat` calls them."""
    return {*vars(build_parser().parse_args(args))} - {"preset"}


def build_parser() -> argparse.ArgumentParser:
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
    return parser


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
    for name in PHASES:
        merged[name] = preset.get(name, {}) | flags.get(name, {})
    return merged

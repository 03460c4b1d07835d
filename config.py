"""Every setting of a training run: its default, its unit and the reason for it.

The defaults are the paper's (Wang et al., 2018, arXiv 1809.00219, and its supplement); of what it
does not say, the numbers of steps and the average, its authors' BasicSR's. A preset names what it
changes; a flag changes one field: `--psnr.lr 1e-4`. Order: defaults < preset < flags.
"""

import argparse
import dataclasses
import itertools
import math
import re
import typing
from dataclasses import dataclass
from pathlib import PurePath

PHASES = ("psnr", "gan")
GROUPS = ("degradation", *PHASES)  # of settings, whose flags begin with these names
# A convolution of VGG19, and perhaps its weight.
VGG_LAYER = re.compile(r"(conv(?:[12]_[12]|[345]_[1-4]))(?::(\d*\.?\d+(?:e-?\d+)?))?")


def setting(default, help: str, **about):
    """A field with what is true of it:

    low, above, most, below: bounds of a number, or of each in a tuple; `low` and `most` themselves
        are allowed.
    choices: the values it can have.
    identity: another value is another run, so a resume with one is refused. Of a phase: if it has a
        VGG discriminator, which is built to it. Of what `needs` another setting: if that is on.
    term: the weight of a term of the loss, which has the field's name.
    generator, discriminator: the kind that has it.
    needs: the setting, of the run or of a phase, without which it has no effect.
    span: two numbers between which one is drawn, the smaller first.
    shares: how often each choice is drawn, in relation to the others.
    odd: only odd numbers.
    recorded: False where files of weights leave it out: where things are, what watches and saves.
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
    clip_grad_norm: float = setting(0.0, "largest norm of a network's gradient; 0: any", low=0)
    val_every: int = setting(
        0, "steps between two validations; 0: the run's val_every", low=0, recorded=False
    )
    busiest_of: int = setting(
        1, "places drawn for each crop; the one with the most detail is cut out", low=1, most=100
    )
    pixel: float = setting(1.0, "weight of the L1 loss on RGB in [0, 1]", low=0, term=True)
    log_mse: float = setting(0.0, "weight of the log of the MSE, Y + RGB / 4", low=0, term=True)
    perceptual: float = setting(0.0, "weight of the L1 loss on VGG19 features", low=0, term=True)
    adversarial: float = setting(
        0.0,
        "weight of the relativistic average loss as the paper writes it, the sum over real and "
        "fake (BasicSR takes half of that sum); 0: no discriminator is built",
        low=0,
        term=True,
    )
    feature_matching: float = setting(
        0.0,
        "weight of the L1 loss on the discriminator's own features, in relation to their size",
        low=0,
        term=True,
    )


TERMS = tuple(field.name for field in dataclasses.fields(Phase) if "term" in field.metadata)


@dataclass(frozen=True)
class Degradation:
    """What becomes of a crop before a generator sees it: Real-ESRGAN's model of what photographs
    go through, twice (Wang et al., 2021, arXiv 2107.10833, section 3; the numbers are those of its
    code). Blur, resizing, noise and JPEG; the names of the second round end in 2.

    images/degradation.py says what each step computes.
    """

    level: str = setting(
        "none",
        "none: LR is MATLAB's bicubic, and the others of this group have no effect; strong: the "
        "paper's numbers; mild: smaller ones, of photographs that were handled with care",
        choices=("none", "mild", "strong"),
    )
    mild: float = setting(
        0.0, "share of the images that get the level mild, its own numbers, instead", low=0, most=1
    )
    sharpen: bool = setting(
        False,
        "degrade sharpened HR (unsharp mask) and compare with it, as the paper does; the "
        "discriminator is shown HR as it is",
    )

    blur: float = setting(1.0, "probability of the first blur", low=0, most=1)
    blur2: float = setting(0.8, "probability of the second blur", low=0, most=1)
    kernel_side: tuple[int, int] = setting(
        (7, 21), "side of all filters' kernels, in pixels, odd", low=3, span=True, odd=True
    )
    sinc: float = setting(
        0.1, "share of sinc filters, which ring, among both rounds' blurs", low=0, most=1
    )
    kernels: tuple[float, float, float, float, float, float] = setting(
        (0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        "shares of the blurs that are no sinc: Gaussian round, elliptic, generalized round, "
        "elliptic, plateau round, elliptic",
        shares=True,
    )
    sigma: tuple[float, float] = setting(
        (0.2, 3.0), "standard deviation of the first blur, in pixels", above=0, span=True
    )
    sigma2: tuple[float, float] = setting(
        (0.2, 1.5), "standard deviation of the second blur, in pixels", above=0, span=True
    )
    generalized_beta: tuple[float, float] = setting(
        (0.5, 4.0), "exponent of a generalized Gaussian; 1 is a Gaussian", above=0, span=True
    )
    plateau_beta: tuple[float, float] = setting(
        (1.0, 2.0), "exponent of a plateau; larger is flatter", above=0, span=True
    )
    resize: tuple[float, float, float] = setting(
        (0.2, 0.7, 0.1), "shares of enlarging, shrinking and keeping, first round", shares=True
    )
    resize2: tuple[float, float, float] = setting(
        (0.3, 0.4, 0.3), "shares of enlarging, shrinking and keeping, second round", shares=True
    )
    factor: tuple[float, float] = setting(
        (0.15, 1.5), "size after the first resizing; HR's is 1", above=0, most=8, span=True
    )
    factor2: tuple[float, float] = setting(
        (0.3, 1.2), "size after the second resizing; LR's is 1", above=0, most=8, span=True
    )
    noise: float = setting(1.0, "probability of the first noise", low=0, most=1)
    noise2: float = setting(1.0, "probability of the second noise", low=0, most=1)
    poisson: float = setting(
        0.5, "share of Poisson noise in both rounds; the rest is Gaussian", low=0, most=1
    )
    gray: float = setting(
        0.4, "share of noise that is alike in R, G and B, of both kinds and rounds", low=0, most=1
    )
    gaussian_sigma: tuple[float, float] = setting(
        (1.0, 30.0), "first Gaussian noise: sigma in levels of 255", low=0, most=1e4, span=True
    )
    gaussian_sigma2: tuple[float, float] = setting(
        (1.0, 25.0), "second Gaussian noise: sigma in levels of 255", low=0, most=1e4, span=True
    )
    poisson_scale: tuple[float, float] = setting(
        (0.05, 3.0), "first Poisson noise; counted light has 1", low=0, most=1e4, span=True
    )
    poisson_scale2: tuple[float, float] = setting(
        (0.05, 2.5), "second Poisson noise; counted light has 1", low=0, most=1e4, span=True
    )
    jpeg: float = setting(1.0, "probability of the first JPEG", low=0, most=1)
    jpeg2: float = setting(1.0, "probability of the second JPEG", low=0, most=1)
    jpeg_quality: tuple[int, int] = setting(
        (30, 95), "quality of both JPEGs, 1 to 100 as libjpeg counts it", low=1, most=100, span=True
    )
    final_sinc: float = setting(
        0.8, "probability of a sinc filter at the end, before or after JPEG", low=0, most=1
    )

    @classmethod
    def of_level(cls, level: str = "none", **changes) -> "Degradation":
        """The settings of a level, but for `changes`."""
        return cls(level=level, **LEVELS.get(level, {}) | changes)


# What each level changes of the paper's numbers; `Degradation.of_level` applies it.
LEVELS: dict[str, dict] = {
    "none": {},
    "strong": {},
    "mild": dict(
        blur=0.7,
        blur2=0.3,
        sigma=(0.2, 1.6),
        sigma2=(0.2, 0.8),
        factor=(0.4, 1.2),
        factor2=(0.6, 1.2),
        noise=0.7,
        noise2=0.5,
        gaussian_sigma=(0.5, 10.0),
        gaussian_sigma2=(0.5, 6.0),
        poisson_scale=(0.05, 1.0),
        poisson_scale2=(0.05, 0.6),
        jpeg=0.7,
        jpeg2=0.9,
        jpeg_quality=(50, 95),
        final_sinc=0.4,
    ),
}


@dataclass(frozen=True)
class Config:
    """A whole run: the PSNR phase, then the GAN phase that starts from its EMA generator.

    Raises:
        ValueError: a value that cannot work; the message names the field, the value, the remedy.
    """

    name: str = setting(
        "esrgan", "the run's folder under checkpoints/; same name: resume", recorded=False
    )
    train_dir: tuple[str, ...] = setting(
        ("data/train",), "folders of HR images, any size, searched in depth", recorded=False
    )
    valid_dir: str = setting(
        "data/valid", "folder of HR images that are never trained on; '' for none", recorded=False
    )
    lr_dir: tuple[str, ...] = setting(
        (),
        "LR images, a folder per train_dir, the same names; none: MATLAB bicubic",
        recorded=False,
    )
    valid_lr_dir: str = setting(
        "",
        "LR images of valid_dir; none: MATLAB bicubic, or degraded as crops are, unsharpened",
        needs="valid_dir",
        recorded=False,
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
        "channels per dense convolution of an RRDB; most other tools load 32 only",
        low=1,
        identity=True,
        generator="rrdb",
    )
    batch_norm: bool = setting(
        False, "in SRResNet, as SRGAN has it; RRDBs have none", identity=True, generator="srresnet"
    )
    unshuffle: int = setting(
        1,
        "side of the squares of LR pixels that become channels; RealESRGAN_x2plus has 2",
        choices=(1, 2, 4),
        identity=True,
        generator="rrdb",
    )
    discriminator: str = setting(
        "vgg",
        "vgg, which judges crops, or unet, Real-ESRGAN's, which judges their pixels",
        choices=("vgg", "unet"),
        identity=True,
        needs="adversarial",
    )
    discriminator_features: int = setting(
        64, "the U-Net's channels", low=1, identity=True, needs="adversarial", discriminator="unet"
    )

    init_from: str = setting(
        "",
        "a generator's file or name to start from (as test.py --weights takes them), '' for none; "
        "at another scale, what fits is taken",
    )
    init_discriminator: str = setting(
        "", "a discriminator's file to start from, or a last.pt", needs="adversarial"
    )

    batch_size: int = setting(16, "crops per step, over all processes and accumulated parts", low=1)
    accumulate: int = setting(
        1,
        "parts a batch is computed in, one after the other: less memory, the same gradient "
        "(but batch norm and, in the GAN phase, what is a mean over the crops see one part)",
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
        50, "stop after so many skipped steps in a row (not finite), at the next log_every", low=1
    )
    ema_decay: float = setting(
        0.999, "of the average that is saved, per step n at most n / (10 + n)", low=0, below=1
    )
    vgg_weights: str = setting(
        "imagenet", "imagenet (548 MB, once), random, or a VGG19 file", needs="perceptual"
    )
    vgg_layer: str = setting(
        "conv5_4",
        "VGG19 convolution whose output is compared, or several: conv2_2:0.1,conv5_4:1",
        needs="perceptual",
    )
    vgg_before_activation: bool = setting(
        True, "compare before the ReLU, as ESRGAN does", needs="perceptual"
    )

    relativistic: bool = setting(
        True, "ESRGAN's adversarial loss; false: SRGAN's", needs="adversarial"
    )
    squared_error: bool = setting(
        False, "compare pixels and VGG19's features by squared error, as SRGAN does, not by L1"
    )

    seed: int = setting(
        0, "of initial weights and of the sample stream", low=0, below=2**64, identity=True
    )
    workers: int = setting(
        4, "processes that cut crops; 0: the training process itself", low=0, recorded=False
    )
    device: str = setting(
        "auto",
        "auto (cuda, then mps, then cpu), or one of these",
        choices=("auto", "cuda", "mps", "cpu"),
    )
    precision: str = setting(
        "auto",
        "auto (bf16 on NVIDIA GPUs from Ampere on and CPUs on Linux that have it), or one of these",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    compile: bool = setting(
        False, "torch.compile: minutes once, then faster steps of a small network on a GPU"
    )
    recompute: bool = setting(
        False,
        "generator blocks compute their activations again going backward: less memory",
        generator="rrdb",
    )

    log_every: int = setting(
        100, "steps between readings of the losses (each waits for a GPU)", low=1, recorded=False
    )
    val_every: int = setting(5000, "steps between two validations", low=1, recorded=False)
    val_images: int = setting(
        100,
        "images to validate on, the first of them (DIV2K has 100)",
        low=1,
        needs="valid_dir",
        recorded=False,
    )
    save_every: int = setting(
        1000, "steps between two checkpoints: what a power cut can cost", low=1, recorded=False
    )
    keep_generators: int = setting(
        10,
        "the GAN phase keeps the generators of this many last validations, to choose by eye",
        low=0,
        needs="gan.steps",
        recorded=False,
    )

    degradation: Degradation = Degradation()
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
        remedy = f"it has to divide batch_size, {self.batch_size}"
        require(self.batch_size % self.accumulate == 0, "accumulate", self.accumulate, remedy)
        for field in dataclasses.fields(self):
            kind, value = field.metadata.get("generator"), getattr(self, field.name)
            # The other kind's numbers keep their defaults: only a switch is turned on in vain.
            fits = kind in (None, self.generator) or value is not True
            require(fits, field.name, value, f"only --generator {kind} has it")
        fits = self.unshuffle == 1 or (self.generator == "rrdb" and self.scale != 3)
        require(fits, "unshuffle", self.unshuffle, "only --generator rrdb has it, not at scale 3")
        layer_weights(self.vgg_layer)
        remedy = "at least one of the phases needs steps"
        require(self.psnr.steps + self.gan.steps > 0, "psnr.steps", self.psnr.steps, remedy)
        check_fields(self.degradation, "degradation.")
        remedy = "LR images are made from HR or taken from lr_dir; give one of the two"
        level = self.degradation.level
        require(level == "none" or not self.lr_dir, "degradation.level", level, remedy)
        for name in PHASES:
            check_phase(name, self)

    def phase(self, name: str) -> Phase:
        """One of PHASES, by name."""
        return getattr(self, name)


def check_fields(settings, prefix: str) -> None:
    """Each field alone: the bounds and choices it was declared with."""
    types = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, about = getattr(settings, field.name), field.metadata
        name = prefix + field.name
        kind = types[field.name]
        words = kind if typing.get_args(kind) else kind.__name__
        require(has_kind(value, kind), name, value, f"its type has to be {words}")
        if "choices" in about:
            *others, last = map(str, about["choices"])
            remedy = f"choose {', '.join(others)} or {last}"
            require(value in about["choices"], name, value, remedy)
        kinds = typing.get_args(kind)
        if kinds and Ellipsis not in kinds:
            require(len(value) == len(kinds), name, value, f"give {len(kinds)} numbers")
        for number in value if isinstance(value, tuple) else (value,):
            require(within(number, about), name, value, describe_bounds(about))
        if "span" in about:
            require(value[0] <= value[1], name, value, "give the smaller number first")
        if "odd" in about:
            odd = tuple(number // 2 * 2 + 1 for number in value)
            require(value == odd, name, value, f"give odd numbers, like {odd}")
        if "shares" in about:
            fits = min(value) >= 0 and 0 < sum(value) < math.inf
            require(fits, name, value, "give numbers from 0 on, one of them at least above 0")


def has_kind(value, kind) -> bool:
    if kinds := typing.get_args(kind):
        return isinstance(value, tuple) and all(has_kind(each, kinds[0]) for each in value)
    return type(value) in ((int, float) if kind is float else (kind,))


def within(number, about: typing.Mapping) -> bool:
    """Whether a number is in its bounds, outside of which nan and infinity always are."""
    bounded = about.keys() & {"low", "above", "most", "below"}
    return not bounded or (
        about.get("low", -math.inf) <= number <= about.get("most", math.inf)
        and about.get("above", -math.inf) < number < about.get("below", math.inf)
    )


def describe_bounds(about: typing.Mapping) -> str:
    words = {"low": "at least", "above": "above", "most": "at most", "below": "below"}
    bounds = [f"{word} {shown(about[key])}" for key, word in words.items() if key in about]
    finite = about.keys() & {"most", "below"}
    return f"it has to be {' and '.join(bounds)}{'' if finite else ', and finite'}"


def shown(bound: float) -> str:
    """2**64 rather than its twenty digits."""
    return "2**64" if bound == 2**64 else str(bound)


def check_phase(name: str, config: Config) -> None:
    """Fields of a phase, each alone and, if it has steps, as they fit each other and the run."""
    phase, scale = config.phase(name), config.scale
    check_fields(phase, f"{name}.")
    if phase.steps == 0:
        return
    sides = {"the scale": scale}
    if config.unshuffle > 1:
        sides["unshuffle"] = scale * config.unshuffle
    if phase.perceptual > 0:  # VGG19 halves an image before each block but the first
        deepest = max(int(layer[len("conv")]) for layer in layer_weights(config.vgg_layer))
        sides["VGG19"] = 2 ** (deepest - 1)
    if phase.adversarial > 0:  # VGG halves it five times, the U-Net three times
        sides["the discriminator"] = {"vgg": 32, "unet": 8}[config.discriminator]
    unit = math.lcm(*sides.values())
    require(
        phase.patch % unit == 0,
        f"{name}.patch",
        phase.patch,
        f"for {', '.join(key for key in sides if phase.patch % sides[key])} it has to be a "
        f"multiple of {unit}: {max(unit, round(phase.patch / unit) * unit)} is one",
    )
    learns = any(getattr(phase, term) > 0 for term in TERMS)
    remedy = f"at least one of {', '.join(TERMS)} has to be above 0"
    require(learns, f"{name}.{TERMS[0]}", getattr(phase, TERMS[0]), remedy)
    matches = phase.adversarial > 0 or phase.feature_matching == 0
    remedy = f"without {name}.adversarial no discriminator is built whose features could match"
    require(matches, f"{name}.feature_matching", phase.feature_matching, remedy)
    rising = all(a < b for a, b in itertools.pairwise(phase.milestones))
    require(rising, f"{name}.milestones", phase.milestones, "give rising steps")


def layer_weights(vgg_layer: str) -> dict[str, float]:
    """{"conv1_2": 0.1, "conv5_4": 1.0} of "conv1_2:0.1,conv5_4".

    Raises:
        ValueError: it is not written like that; the message names the field.
    """
    matches = [VGG_LAYER.fullmatch(part.strip()) for part in vgg_layer.split(",")]
    weights = {match[1]: float(match[2] or 1) for match in matches if match}
    fits = len(weights) == len(matches) and all(0 < w < math.inf for w in weights.values())
    remedy = "give conv1_1 to conv5_4, each once, with weights above 0: conv2_2:0.1,conv5_4:1"
    require(fits, "vgg_layer", vgg_layer, remedy)
    return weights


def require(condition: bool, field: str, value, remedy: str) -> None:
    if not condition:
        raise ValueError(f"{field} is {value!r}: {remedy}")


def flat(settings: dict) -> dict:
    """{"psnr": {"lr": 1}} -> {"psnr.lr": 1}"""
    grouped = {f"{name}.{key}": v for name in GROUPS for key, v in settings.get(name, {}).items()}
    return {key: value for key, value in settings.items() if key not in GROUPS} | grouped


SMALL = dict(
    features=32,
    blocks=4,
    batch_size=8,  # 16 took twice the time and ended 0.17 dB higher on Set5
    vgg_weights="random",
    vgg_layer="conv2_2",  # of random features the shallow ones: sharp pictures after 600 steps
    workers=0,
    log_every=25,
    val_every=250,
    save_every=250,
)
# What each preset changes. esrgan is the paper; demo, on scikit-image's photographs, ends in
# pictures after some minutes on 2 CPU cores; srgan is the 2017 paper (Ledig et al., arXiv
# 1609.04802, section 3.2) with ESRGAN's discriminator; real is Real-ESRGAN (Wang et al., arXiv
# 2107.10833, section 4.1, and its option files), which starts from --init-from, a PSNR network;
# compact made two networks in the box, and compact-real is a run like those that made the others.
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
    "real": dict(
        name="real",
        batch_size=48,
        betas=(0.9, 0.99),
        vgg_layer="conv1_2:0.1,conv2_2:0.1,conv3_4:1,conv4_4:1,conv5_4:1",
        discriminator="unet",
        relativistic=False,
        degradation=dict(level="strong", sharpen=True),
        psnr=dict(steps=1_000_000, patch=256, milestones=(1_000_000,)),  # constant, as below
        gan=dict(patch=256, milestones=(400_000,), pixel=1.0, perceptual=1.0, adversarial=0.1),
    ),
    "compact": SMALL
    | dict(
        name="compact",
        psnr=dict(
            steps=16_000, patch=128, lr=1.2e-3, milestones=(), warmup=200, clip_grad_norm=0.2
        ),
        gan=dict(steps=1200, patch=96, lr=2e-4, milestones=(), warmup=50, adversarial=1e-2),
    ),
    "compact-real": SMALL
    | dict(discriminator="unet", discriminator_features=24, relativistic=False)
    | dict(
        name="compact-real",
        init_from="compact_x4_psnr",
        batch_size=3,
        workers=1,  # degrading a batch takes a tenth of a step
        # A small network that has only seen the worst is weak on what is nearly clean.
        degradation=dict(level="strong", mild=0.7),
        # Few and wide crops: beyond noise and JPEG, a place is known by its surroundings.
        psnr=dict(steps=12_000, patch=192, lr=4e-4, milestones=(), warmup=100, busiest_of=2)
        | dict(pixel=0.0, log_mse=0.01),
        # The U-Net's own features do as well as random ones of VGG19, and take less time.
        gan=dict(steps=360, patch=160, lr=2e-4, milestones=(), warmup=30, val_every=120)
        | dict(pixel=1.0, perceptual=0.0, adversarial=0.1, feature_matching=0.1),
    ),
    "demo": SMALL
    | dict(
        name="demo",
        train_dir=("data/demo/train",),
        valid_dir="data/demo/valid",
        blocks=2,
        vgg_layer="conv5_4",
        log_every=10,
        # At first, gradients of single layers grow a hundredfold in some steps: 0.999 lags behind.
        betas=(0.9, 0.95),
        psnr=dict(steps=1000, patch=96, lr=2e-3, milestones=(600, 800, 900), warmup=50),
        gan=dict(steps=80, patch=96, lr=1e-4, milestones=(), val_every=20),
    ),
}


def parse_args(args: list[str] | None = None) -> Config:
    """The configuration of a command line (default: of this process); exits with 2 if wrong."""
    try:
        parser, defaults = build_parser(), Config()
    except ValueError as error:  # somebody edited this file
        raise SystemExit(f"train.py: config.py: {error}") from None
    flags = vars(parser.parse_args(args))
    changes = unflatten(flat(PRESETS[flags.pop("preset")]) | flags)
    try:
        for name in PHASES:
            changes[name] = dataclasses.replace(getattr(defaults, name), **changes.get(name, {}))
        changes["degradation"] = Degradation.of_level(**changes.get("degradation", {}))
        return Config(**changes)
    except (ValueError, TypeError) as error:  # the latter is of a preset's name for a setting
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
    group = parser.add_argument_group("degradation", Degradation.__doc__)
    add_flags(group, defaults.degradation, prefix="degradation.")
    add_flags(parser.add_argument_group("PSNR phase"), defaults.psnr, prefix="psnr.")
    add_flags(parser.add_argument_group("GAN phase"), defaults.gan, prefix="gan.")
    return parser


def add_flags(parser, defaults, prefix: str) -> None:
    """One flag per field; its type is the annotation of the field."""
    types = typing.get_type_hints(type(defaults))
    for field in dataclasses.fields(defaults):
        if types[field.name] in (Degradation, Phase):
            continue
        kind, nargs = types[field.name], None
        if typing.get_origin(kind) is tuple:
            kind, nargs = typing.get_args(kind)[0], "*"
        default = getattr(defaults, field.name)
        ends = "smallest and largest " if "span" in field.metadata else ""
        parser.add_argument(
            f"--{prefix}{field.name}".replace("_", "-"),
            dest=prefix + field.name,
            type=boolean if kind is bool else kind,
            nargs=nargs,
            metavar=kind.__name__.upper(),
            default=argparse.SUPPRESS,  # absent flags leave the preset's value alone
            help=f"{ends}{field.metadata['help']} (default: {default})".replace("%", "%%"),
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
        group, _, field = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[field] = value
    return nested

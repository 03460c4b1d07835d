"""Train ESRGAN: a PSNR phase, then a GAN phase that starts from its averaged generator.

    python train.py --preset demo                   some minutes on a CPU, on photographs at hand
    python train.py                                 the paper's settings, on data/train
    python train.py --name mine --train-dir PHOTOS --gan.steps 50000
    python train.py --help                          every setting; config.py says why

Everything goes to checkpoints/NAME. Ctrl-C saves; the same command again goes on from there.
"""

import copy
import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from config import Config, Phase, parse_args
from dataset import (
    DEMO_DIR,
    CropStream,
    DataError,
    Pack,
    batches,
    pack_folder,
    write_demo_photographs,
)
from imaging import (
    enlarge_nearest,
    find_images,
    imresize,
    labelled_strip,
    psnr,
    ssim,
    upscale,
    write_image,
)
from loss import VGGError, VGGFeatures, generator_loss, relativistic_discriminator_loss
from model import RRDBNet, VGGDiscriminator
from utils import (
    CheckpointError,
    DeviceError,
    RunLog,
    StopRequest,
    autocast,
    choose_device,
    choose_precision,
    load_checkpoint,
    place,
    save_checkpoint,
    update_ema,
)
from weights import save_generator

RUNS = Path("checkpoints")
PHASES = ("psnr", "gan")
SAMPLE_COUNT = 4  # validation images of which strips are drawn
SAMPLE_SIDE = 512  # of those, the pixels around the centre
VALIDATION_TILE = 512  # LR pixels; bounds the memory that a large validation image takes

# What a checkpoint is worthless without: other values of these are another run.
IDENTITY = ("scale", "features", "blocks", "growth", "betas", "seed", "gan.patch")

# Settings that do not shape the weights, and so are not told by the files that hold them.
OUTSIDE_WEIGHTS = (
    *("name", "train_dir", "valid_dir", "lr_dir", "valid_lr_dir", "workers"),
    *("log_every", "val_every", "val_images", "save_every"),
)

NO_DATA = """\
no images in data/train. Put yours there and a few others into data/valid, or name other folders:
  python train.py --train-dir DIR --valid-dir DIR; or fetch DIV2K (4 GB): python dataset.py div2k
  or see it work on photographs that are here already: python train.py --preset demo"""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Run:
    """What both phases share."""

    config: Config
    folder: Path
    device: torch.device
    dtype: torch.dtype  # of convolutions, under autocast
    streams: dict[str, CropStream]  # by phase
    vgg: VGGFeatures | None
    valid: Pack | None
    bicubic: dict[str, float]  # scores of plain bicubic upscaling on `valid`
    log: RunLog
    stop: StopRequest


def main() -> None:
    config = parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DeviceError("several processes (torchrun) cannot train one run yet; start one")
    folder = RUNS / config.name
    device = choose_device(config.device)
    checkpoint = load_run(folder / "last.pt", config)
    find_data(config)
    vgg = load_vgg(config, device)
    streams, valid = load_data(config)
    run = Run(
        config=config,
        folder=folder,
        device=device,
        dtype=choose_precision(config.precision, device),
        streams=streams,
        vgg=vgg,
        valid=valid,
        bicubic=score_bicubic(valid, config) if valid else {},
        log=open_log(config, folder, checkpoint),
        stop=StopRequest(),
    )

    torch.manual_seed(config.seed)
    net_g = RRDBNet(3, 3, config.scale, config.features, config.blocks, config.growth)
    net_g = place(net_g, device)
    ema = copy.deepcopy(net_g).eval().requires_grad_(False)
    print(
        f"RRDBNet x{config.scale}, {count_parameters(net_g):,} parameters, "
        f"on {device} in {str(run.dtype).removeprefix('torch.')}; everything goes to {folder}"
    )
    if checkpoint:
        restore({"ema": ema}, checkpoint, folder / "last.pt")
    with run.stop, run.log:
        for name in PHASES:
            finished = checkpoint and PHASES.index(checkpoint["phase"]) > PHASES.index(name)
            if getattr(config, name).steps > 0 and not finished:
                train_phase(run, name, net_g, ema, checkpoint)
            if run.stop.signal:
                print(f"Stopped and saved in {folder / 'last.pt'}. The same command goes on.")
                sys.exit(128 + run.stop.signal)
    print(f"Done. Generators and pictures (samples/) are in {folder}. Upscale a folder with them:")
    print("  python test.py FOLDER")


def train_phase(run: Run, name: str, net_g: RRDBNet, ema: RRDBNet, checkpoint: dict | None) -> None:
    """Train until the phase's last step, from the checkpoint if it is of this phase.

    Otherwise from the averaged generator `ema` of whatever came before: that is the hand-over.
    """
    config, phase = run.config, getattr(run.config, name)
    net_g.load_state_dict(ema.state_dict())
    opt_g = torch.optim.Adam(net_g.parameters(), betas=config.betas)
    saved = {"net_g": net_g, "ema": ema, "opt_g": opt_g}
    net_d = opt_d = None
    if phase.adversarial > 0:
        torch.manual_seed(config.seed)  # the same discriminator, resumed at the hand-over or not
        net_d = place(VGGDiscriminator(phase.patch), run.device)
        opt_d = torch.optim.Adam(net_d.parameters(), betas=config.betas)
        saved |= {"net_d": net_d, "opt_d": opt_d}

    start = 0
    if checkpoint and checkpoint["phase"] == name:
        start = checkpoint["step"]
        restore(saved, checkpoint, run.folder / "last.pt")

    before = steps_before(config, name)
    loader = batches(
        run.streams[name],
        before + start,
        before + max(start, phase.steps),
        config.batch_size,
        config.workers,
        pin_memory=run.device.type == "cuda",
    )
    losses = MeanLosses()
    bar = tqdm(loader, desc=name, total=phase.steps, initial=start, unit="step")
    for step, (low_res, high_res) in enumerate(bar, start=start + 1):
        low_res, high_res = to_unit_range(low_res, run.device), to_unit_range(high_res, run.device)
        run_step = before + step

        set_learning_rate(opt_g, learning_rate(phase, step))
        fake, terms = generator_step(run, phase, low_res, high_res, net_g, opt_g, net_d)
        if phase.adversarial > 0:
            set_learning_rate(opt_d, learning_rate(phase, step))
            terms["discriminator"] = discriminator_step(run, high_res, fake, net_d, opt_d)
        # While a run is young, its average must not remember the random start.
        update_ema(ema, net_g, min(config.ema_decay, run_step / (10 + run_step)))
        losses.add(terms)

        done, stopped = step == phase.steps, run.stop.signal is not None
        validating = run.valid is not None and (step % config.val_every == 0 or done)
        saving = step % config.save_every == 0 or done or stopped
        if step % config.log_every == 0 or validating or saving:
            means = losses.read()
            check_finite(means, name, step, run.folder)
            bar.set_postfix({term: f"{value:.4f}" for term, value in means.items()})
            run.log.scalars(name, means | {"lr": learning_rate(phase, step)}, run_step)
        if validating:
            scores = validate(run, ema, name, step)
            seconds = round(bar.format_dict["elapsed"], 1)
            progress = dict(phase=name, step=step, run_step=run_step, seconds=seconds)
            run.log.metric(progress | scores | {"losses": means})
            bar.write(f"{name} {step}: {describe(scores)}")
        if saving:
            check_weights(ema, name, step, run.folder)
            run.log.flush()
            progress = dict(phase=name, step=step, config=dataclasses.asdict(config))
            state = {key: stateful.state_dict() for key, stateful in saved.items()}
            save_checkpoint(run.folder / "last.pt", progress | state)
        if stopped:
            return
    made_by = {k: v for k, v in dataclasses.asdict(config).items() if k not in OUTSIDE_WEIGHTS}
    save_generator(
        ema,
        run.folder / f"{name}.safetensors",
        metadata=dict(phase=name, step=max(start, phase.steps), config=made_by),
    )


def generator_step(
    run: Run,
    phase: Phase,
    low_res: Tensor,
    high_res: Tensor,
    net_g: nn.Module,
    opt_g: torch.optim.Optimizer,
    net_d: nn.Module | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One update of the generator; returns its images and its loss terms, without their graphs."""
    if net_d:
        net_d.requires_grad_(False)  # it only passes gradients on; its own are not computed
    with autocast(run.device, run.dtype):
        fake = net_g(low_res)
        terms = generator_loss(
            fake,
            high_res,
            pixel=phase.pixel,
            perceptual=phase.perceptual,
            adversarial=phase.adversarial,
            vgg=run.vgg,
            net_d=net_d,
        )
    opt_g.zero_grad()
    sum(terms.values()).backward()
    opt_g.step()
    return fake.detach(), {term: value.detach() for term, value in terms.items()}


def discriminator_step(
    run: Run, high_res: Tensor, fake: Tensor, net_d: nn.Module, opt_d: torch.optim.Optimizer
) -> Tensor:
    """One update of the discriminator; returns its loss, without its graph."""
    net_d.requires_grad_(True)
    with autocast(run.device, run.dtype):
        # Apart, as in the reference implementation: batch norm sees real or fake, never a mix.
        d_real, d_fake = net_d(high_res), net_d(fake)
    loss = relativistic_discriminator_loss(d_real, d_fake)
    opt_d.zero_grad()
    loss.backward()
    opt_d.step()
    return loss.detach()


def learning_rate(phase: Phase, step: int) -> float:
    """Of the phase's step number `step`, counted from 1: warm-up times halvings or cosine."""
    warm = min(1.0, step / (phase.warmup + 1))
    if phase.milestones:
        decay = 0.5 ** sum(step > milestone for milestone in phase.milestones)
    else:
        decay = 0.5 * (1 + math.cos(math.pi * (step - 1) / phase.steps))
    return phase.lr * warm * decay


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


class MeanLosses:
    """Means of loss terms since they were last read, kept on the device: reading waits for it."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, terms: dict[str, Tensor]) -> None:
        self.sums = {term: self.sums.get(term, 0) + value for term, value in terms.items()}
        self.count += 1

    def read(self) -> dict[str, float]:
        names, sums = self.sums.keys(), torch.stack(list(self.sums.values())).tolist()
        means = {term: total / self.count for term, total in zip(names, sums, strict=True)}
        self.sums, self.count = {}, 0
        return means


def check_finite(losses: dict[str, float], name: str, step: int, folder: Path) -> None:
    for term, value in losses.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the {term} loss became {value} shortly before {name} step {step}; "
                f"{folder / 'last.pt'} is older. Lower --{name}.lr or use --precision fp32."
            )


def check_weights(ema: RRDBNet, name: str, step: int, folder: Path) -> None:
    """A loss is from before its update: only the weights tell what the last update did."""
    if not all(parameter.isfinite().all() for parameter in ema.parameters()):
        raise TrainingError(
            f"the weights were no longer finite at {name} step {step}; "
            f"{folder / 'last.pt'} is older. Lower --{name}.lr or use --precision fp32."
        )


def validate(run: Run, ema: RRDBNet, name: str, step: int) -> dict[str, float]:
    """PSNR and SSIM on Y of whole images beside bicubic's; strips of some go to samples/."""
    valid, scale = run.valid, run.config.scale
    run_step = steps_before(run.config, name) + step
    scores = []
    for count, i in enumerate(
        tqdm(chosen(valid, run.config), desc="validation", leave=False, unit="image")
    ):
        low_res, high_res = valid.low_res(i), valid.high_res(i)
        with autocast(run.device, run.dtype):
            fake = upscale(ema, low_res, VALIDATION_TILE)
        scores.append(score(fake, high_res, scale))
        if count < SAMPLE_COUNT:
            bicubic = imresize(low_res, scale)
            pictures = {
                "LR, nearest": enlarge_nearest(low_res, scale),
                f"bicubic, {psnr(bicubic, high_res, scale):.2f} dB": bicubic,
                f"ours after {name} step {step}, {scores[-1][0]:.2f} dB": fake,
                "HR": high_res,
            }
            strip = labelled_strip(pictures, SAMPLE_SIDE)
            stem = Path(valid.name(i)).with_suffix("").as_posix().replace("/", "_")
            write_image(strip, run.folder / "samples" / f"{stem}_{run_step:07d}_{name}.png")
            run.log.picture(stem, strip, run_step)
    return mean_scores(scores) | run.bicubic


def describe(scores: dict[str, float]) -> str:
    gain = scores["psnr"] - scores["bicubic_psnr"]
    return (
        f"PSNR {scores['psnr']:.2f} dB ({gain:+.2f} over bicubic's {scores['bicubic_psnr']:.2f}), "
        f"SSIM {scores['ssim']:.4f} (bicubic {scores['bicubic_ssim']:.4f})"
    )


def score_bicubic(valid: Pack, config: Config) -> dict[str, float]:
    scores = []
    for i in tqdm(chosen(valid, config), desc="scoring bicubic", leave=False, unit="image"):
        enlarged = imresize(valid.low_res(i), config.scale)
        scores.append(score(enlarged, valid.high_res(i), config.scale))
    return {f"bicubic_{key}": value for key, value in mean_scores(scores).items()}


def score(image: np.ndarray, high_res: np.ndarray, scale: int) -> tuple[float, float]:
    """PSNR and SSIM as papers report them: on Y, `scale` pixels cropped from each side."""
    return psnr(image, high_res, scale), ssim(image, high_res, scale)


def mean_scores(scores: list[tuple[float, float]]) -> dict[str, float]:
    mean_psnr, mean_ssim = np.mean(scores, axis=0).tolist()
    return {"psnr": mean_psnr, "ssim": mean_ssim}


def chosen(valid: Pack, config: Config) -> list[int]:
    """The first images that are large enough to be scored."""
    fitting = [i for i in range(len(valid)) if min(valid.size(i)) >= smallest_scored(config)]
    return fitting[: config.val_images]


def smallest_scored(config: Config) -> int:
    """SSIM's 11-pixel window has to fit once the border is cropped."""
    return 11 + 2 * config.scale


def find_data(config: Config) -> None:
    """Write the demo's photographs if they are asked for; a newcomer without data is told more."""
    if any(DEMO_DIR in Path(folder).parents for folder in (*config.train_dir, config.valid_dir)):
        write_demo_photographs()
    if config.train_dir == Config.train_dir and not find_images(config.train_dir[0]):
        raise DataError(NO_DATA)


def load_data(config: Config) -> tuple[dict[str, CropStream], Pack | None]:
    """The crops of each phase and the validation images; every file is read, or known, by now."""
    lr_dirs = config.lr_dir or [None] * len(config.train_dir)
    packs = [
        pack_folder(folder, config.scale, lr_dir)
        for folder, lr_dir in zip(config.train_dir, lr_dirs, strict=True)
    ]
    valid = None
    if config.valid_dir == Config.valid_dir and not find_images(config.valid_dir):
        print(f"No validation: no images in {config.valid_dir}; --valid-dir names another folder.")
    elif config.valid_dir:
        valid = pack_folder(config.valid_dir, config.scale, config.valid_lr_dir or None)
    patches = {name: getattr(config, name).patch for name in PHASES if getattr(config, name).steps}
    left_out = [reason for pack in packs for reason in pack.index["unreadable"]]
    for pack in packs:
        for name, patch in patches.items():
            left_out += [
                f"{image}, below the crop of the {name} phase" for image in pack.below(patch)
            ]
    if valid:
        too_small = valid.below(smallest_scored(config))
        left_out += valid.index["unreadable"]
        left_out += [f"{image}, too small to be scored" for image in too_small]
    if left_out:
        print(f"Left out ({len(left_out)}):", *dict.fromkeys(left_out), sep="\n  ")
    if valid and not chosen(valid, config):
        raise DataError(f"{config.valid_dir}: no image is large enough to be scored")
    return {name: CropStream(packs, patch, config.seed) for name, patch in patches.items()}, valid


def load_vgg(config: Config, device: torch.device) -> VGGFeatures | None:
    """VGG19 if any phase will need it: now, not days later, is the time to find it missing."""
    if not any(phase.steps and phase.perceptual for phase in (config.psnr, config.gan)):
        return None
    weights, layer = config.vgg_weights, config.vgg_layer
    return place(VGGFeatures(weights, layer, config.vgg_before_activation, config.seed), device)


def load_run(path: Path, config: Config) -> dict | None:
    """The checkpoint to go on from, if there is one and it is of this very network."""
    if not path.exists():
        return None
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not {"phase", "step", "config"} <= checkpoint.keys():
        raise CheckpointError(f"{path} was not written by train.py; choose another --name")
    before, now = flat(checkpoint["config"]), flat(dataclasses.asdict(config))
    changed = [field for field in now if now[field] != before.get(field)]
    for field in changed:
        if field in IDENTITY:
            raise CheckpointError(
                f"{path} was trained with {field} {before.get(field)}, not {now[field]}: "
                "give that value, or choose another --name for a new run"
            )
        print(f"Changed since the last run: {field} was {before.get(field)}, is {now[field]}")
    print(f"Going on from {path}: {checkpoint['phase']} step {checkpoint['step']}")
    return checkpoint


def open_log(config: Config, folder: Path, checkpoint: dict | None) -> RunLog:
    """The run's log, from where the checkpoint is; from here on the run's folder exists."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    phase, step = (checkpoint["phase"], checkpoint["step"]) if checkpoint else (PHASES[0], 0)

    def keep(row: dict) -> bool:
        return (PHASES.index(row["phase"]), row["step"]) <= (PHASES.index(phase), step)

    return RunLog(folder, keep, steps_before(config, phase) + step)


def restore(saved: dict, checkpoint: dict, path: Path) -> None:
    for key, stateful in saved.items():
        try:
            stateful.load_state_dict(checkpoint[key])
        except (KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: its {key} does not fit this configuration ({error}); "
                "undo what changed, or choose another --name for a new run"
            ) from error


def flat(config: dict) -> dict:
    """{"psnr": {"lr": 1}} -> {"psnr.lr": 1}"""
    phases = {f"{name}.{key}": v for name in PHASES for key, v in config.get(name, {}).items()}
    return {key: value for key, value in config.items() if key not in PHASES} | phases


def steps_before(config: Config, name: str) -> int:
    """Steps of the run that come before a phase's first."""
    return config.psnr.steps if name == "gan" else 0


def to_unit_range(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (N, 3, H, W) to fp32 in [0, 1]; the bytes travel, the floats are made where needed."""
    return place(images, device).float() / 255


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


if __name__ == "__main__":
    try:
        main()
    except (DataError, DeviceError, VGGError, CheckpointError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        print(f"train.py: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit("A smaller --batch-size, --psnr.patch or --gan.patch needs less memory.")
    except (TrainingError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")

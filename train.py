"""Train ESRGAN: a PSNR phase, then a GAN phase that starts from its averaged generator.

    python train.py --preset demo                   some minutes on a CPU, on photographs at hand
    python train.py                                 the paper's settings, on data/train
    python train.py --name mine --train-dir PHOTOS --gan.steps 50000
    torchrun --nproc_per_node=4 train.py ...        one process per GPU
    python train.py --help                          every setting; config.py says why

Everything goes to checkpoints/NAME. Ctrl-C saves; the same command again goes on from there.
"""

import copy
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn import functional as F
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
from imaging import enlarge_nearest, imresize, labelled_strip, psnr, ssim, upscale
from loss import (
    VGGError,
    VGGFeatures,
    generator_loss,
    relativistic_discriminator_loss,
    standard_discriminator_loss,
)
from model import RRDBNet, SRResNet, VGGDiscriminator
from monitor import Balance, Faults, IntervalMeans, RunLog, beside_references
from pictures import find_images, write_image
from utils import (
    CheckpointError,
    DeviceError,
    Ranks,
    SafeStep,
    StopRequest,
    autocast,
    choose_device,
    choose_precision,
    is_lost_connection,
    keeping_gradients_here,
    load_checkpoint,
    make_adam,
    peak_memory,
    place,
    save_checkpoint,
    update_ema,
)
from weights import WeightsError, init_generator, save_generator

RUNS = Path("checkpoints")
PHASES = ("psnr", "gan")
LOSSES = ("pixel", "perceptual", "adversarial", "discriminator")  # the order they are shown in
SAMPLE_COUNT = 4  # validation images of which strips are drawn
SAMPLE_SIDE = 512  # of those, the pixels around the centre
VALIDATION_TILE = 256  # LR pixels; bounds the memory that a large validation image takes

# What a checkpoint is worthless without: other values of these are another run.
IDENTITY = (
    *("scale", "generator", "features", "blocks", "growth", "batch_norm"),
    *("betas", "seed", "gan.patch"),
)

# Settings that do not shape the weights, and so are not told by the files that hold them.
OUTSIDE_WEIGHTS = (
    *("name", "train_dir", "valid_dir", "lr_dir", "valid_lr_dir", "workers"),
    *("log_every", "val_every", "val_images", "save_every", "keep_generators"),
)

# Recorded runs of the demo preset, and what may differ in a run that is held against them.
REFERENCE = Path(__file__).resolve().parent / "benchmarks" / "reference" / "demo"
VARIABLE = (
    *("name", "seed", "workers", "device", "precision", "compile", "recompute"),
    *("log_every", "save_every", "keep_generators"),
)

RESUME = {"phase", "step", "before", "seconds", "config"}  # beside what has a state_dict

FP16_NOTE = " (fp16: now and then while its loss scale is being found is normal)"

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
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype  # of convolutions, under autocast
    streams: dict[str, CropStream]  # by phase
    vgg: VGGFeatures | None
    valid: Pack | None
    bicubic: dict[str, float]  # scores of plain bicubic upscaling on `valid`
    log: RunLog | None  # only the first rank has one
    stop: StopRequest


def main() -> None:
    config = parse_args()
    with Ranks.of_torchrun() as ranks, only_run_in(RUNS / config.name, ranks):
        if not ranks.first:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)
        train(config, ranks)


def train(config: Config, ranks: Ranks) -> None:
    folder = RUNS / config.name
    device = choose_device(config.device, ranks.local)
    share_batch(config, ranks)
    checkpoint = load_run(folder / "last.pt", config)
    find_data(config)
    vgg = load_vgg(config, device)
    streams, valid = load_data(config)
    run = Run(
        config=config,
        folder=folder,
        ranks=ranks,
        device=device,
        dtype=choose_precision(config.precision, device),
        streams=streams,
        vgg=vgg,
        valid=valid,
        bicubic=score_bicubic(valid, config, ranks) if valid else {},
        log=open_log(config, folder, checkpoint) if ranks.first else None,
        stop=StopRequest(),
    )

    torch.manual_seed(config.seed)
    net_g = build_generator(config)
    if config.init_from and not checkpoint:
        start_from(net_g, config.init_from)
    net_g = place(net_g, device)
    ema = copy.deepcopy(net_g).eval().requires_grad_(False)
    if isinstance(net_g, RRDBNet):
        net_g.recompute = config.recompute
    print(
        f"{type(net_g).__name__} x{config.scale}, {count_parameters(net_g):,} parameters, "
        f"on {device} in {str(run.dtype).removeprefix('torch.')}; everything goes to {folder}"
    )
    if checkpoint:
        restore({"ema": ema}, checkpoint, folder / "last.pt")
    with run.stop, run.log or nullcontext():
        for name in PHASES:
            finished = checkpoint and PHASES.index(checkpoint["phase"]) > PHASES.index(name)
            if getattr(config, name).steps > 0 and not finished:
                train_phase(run, name, net_g, ema, checkpoint)
            if number := ranks.largest(run.stop.signal or 0):
                print(f"Stopped and saved in {folder / 'last.pt'}. The same command goes on.")
                sys.exit(128 + number)
        if run.log and REFERENCE.is_dir() and is_the_reference(config):
            print(*beside_references(run.log.rows, REFERENCE), sep="\n")
    print(f"Done. Generators, curves.png and pictures (samples/) are in {folder}.")
    print("Upscale a folder with them:  python test.py FOLDER")


def is_the_reference(config: Config) -> bool:
    """Whether a run of these settings can be held against the recorded ones of the demo."""
    texts = (json.dumps(dataclasses.asdict(config)), (REFERENCE / "config.json").read_text())
    own, recorded = (
        {field: value for field, value in flat(json.loads(text)).items() if field not in VARIABLE}
        for text in texts
    )
    return own == recorded


def build_generator(config: Config) -> RRDBNet | SRResNet:
    if config.generator == "srresnet":
        return SRResNet(3, 3, config.scale, config.features, config.blocks, config.batch_norm)
    return RRDBNet(3, 3, config.scale, config.features, config.blocks, config.growth)


def train_phase(
    run: Run, name: str, net_g: nn.Module, ema: nn.Module, checkpoint: dict | None
) -> None:
    """Train until the phase's last step, from the checkpoint if it is of this phase.

    Otherwise from the averaged generator `ema` of whatever came before: that is the hand-over.
    """
    config, phase = run.config, getattr(run.config, name)
    net_g.load_state_dict(ema.state_dict())
    opt_g = make_adam(net_g, config.betas, run.device)
    safe = SafeStep(run.device, run.dtype, phase.clip_grad_norm)
    saved = {"net_g": net_g, "ema": ema, "opt_g": opt_g, "scaler": safe}
    net_d = opt_d = None
    if phase.adversarial > 0:
        torch.manual_seed(config.seed)  # the same discriminator, resumed at the hand-over or not
        net_d = place(VGGDiscriminator(phase.patch), run.device)
        opt_d = make_adam(net_d, config.betas, run.device)
        saved |= {"net_d": net_d, "opt_d": opt_d}

    # Steps of this phase, of the run before it, and seconds of this phase until now.
    start, before, seconds = 0, config.psnr.steps if name == "gan" else 0, 0.0
    if checkpoint and checkpoint["phase"] == name:
        start, before, seconds = (checkpoint[key] for key in ("step", "before", "seconds"))
        restore(saved, checkpoint, run.folder / "last.pt")

    # The raw networks are saved; these compute. The generator's step uses the raw discriminator,
    # of which it needs no gradients to be exchanged.
    if config.compile:
        for net in filter(None, (net_g, net_d, run.vgg)):
            net.compile()  # in place: names and state stay as they are
    wrapped_g = run.ranks.wrap(net_g)
    wrapped_d = run.ranks.wrap(net_d) if net_d else None

    loader = iter(
        batches(
            run.streams[name],
            before + start,
            before + max(start, phase.steps),
            config.batch_size,
            config.workers,
            pin_memory=run.device.type == "cuda",
            parts=config.accumulate,
            rank=run.ranks.rank,
            ranks=run.ranks.count,
        )
    )
    means, clock, balance, save_due = IntervalMeans(), Clock(run, seconds), Balance(), False
    bar = tqdm(
        range(start + 1, phase.steps + 1),
        desc=name,
        total=phase.steps,
        initial=start,
        unit="step",
        disable=not run.ranks.first,
    )
    for step in bar:
        with clock.waiting_for_data():
            parts = [next(loader) for _ in range(config.accumulate)]
        parts = [tuple(to_unit_range(images, run.device) for images in part) for part in parts]

        lr = learning_rate(phase, step)
        set_learning_rate(opt_g, lr)
        fakes, values = generator_step(run, phase, parts, wrapped_g, opt_g, net_d, safe)
        if phase.adversarial > 0:
            set_learning_rate(opt_d, lr)
            values |= discriminator_step(run, parts, fakes, wrapped_d, opt_d, safe)
        safe.update()
        # While a run is young, its average must not remember the random start.
        update_ema(ema, net_g, min(config.ema_decay, (before + step) / (10 + before + step)))
        means.add(values)

        done = step == phase.steps
        stopped = run.ranks.largest(run.stop.signal or 0) > 0
        validating = step % config.val_every == 0 or done
        save_due = save_due or step % config.save_every == 0 or done or stopped
        progress = dict(phase=name, step=step, run_step=before + step)
        if step % config.log_every == 0 or validating or save_due:
            interval, faults = means.read(run.ranks.mean)
            check_faults(run, faults, progress)
            interval |= {"lr": lr} | clock.read(faults.steps)
            if run.ranks.first:
                show_interval(run, bar, balance, interval, faults, progress)
        if validating or save_due:
            run.ranks.average_buffers(ema)
        if validating:
            scores = validate(run, ema, progress) if run.valid else {}
            if run.ranks.first:
                keep_generator(run, ema, scores, progress)
                record(run, bar, scores, interval, progress | {"seconds": clock.seconds()})
        # While steps are skipped, the weights may be what is wrong: the older file is kept.
        if save_due and (faults.in_a_row == 0 or done or stopped):
            save_due = False
            check_weights(ema, run.folder, progress)
            if run.ranks.first:
                run.log.flush()
                progress |= dict(before=before, seconds=clock.seconds())
                state = {key: stateful.state_dict() for key, stateful in saved.items()}
                settings = {"config": dataclasses.asdict(config)}
                save_checkpoint(run.folder / "last.pt", progress | settings | state)
        if stopped:
            return
    if run.ranks.first:
        metadata = made_by(config, name, max(start, phase.steps))
        save_generator(ema, run.folder / f"{name}.safetensors", metadata=metadata)
        run.log.draw_curves()


def generator_step(
    run: Run,
    phase: Phase,
    parts: list[tuple[Tensor, Tensor]],
    net_g: nn.Module,
    opt_g: torch.optim.Optimizer,
    net_d: nn.Module | None,
    safe: SafeStep,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """One update of the generator from the parts of a batch, each (low_res, high_res).

    Returns:
        Its images, one tensor a part, and its loss terms and gradient's norm, without their graphs.
    """
    if net_d:
        net_d.requires_grad_(False)  # it only passes gradients on; its own are not computed
    opt_g.zero_grad()
    fakes, listed = [], []
    for i, (low_res, high_res) in enumerate(parts):
        last = i == len(parts) - 1
        with nullcontext() if last else keeping_gradients_here(net_g):
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
                    relativistic=run.config.relativistic,
                    distance=F.mse_loss if run.config.squared_error else F.l1_loss,
                )
            safe.backward(sum(terms.values()) / len(parts))
        fakes.append(fake.detach())
        listed.append({term: value.detach() for term, value in terms.items()})
    gradient = safe.step(opt_g)
    return fakes, mean_values(listed) | {"generator gradient": gradient}


def discriminator_step(
    run: Run,
    parts: list[tuple[Tensor, Tensor]],
    fakes: list[Tensor],
    net_d: nn.Module,
    opt_d: torch.optim.Optimizer,
    safe: SafeStep,
) -> dict[str, Tensor]:
    """One update of the discriminator; returns its loss, and how it judges, without graphs."""
    discriminator_loss = (
        relativistic_discriminator_loss if run.config.relativistic else standard_discriminator_loss
    )
    net_d.requires_grad_(True)
    opt_d.zero_grad()
    listed = []
    for i, ((_, high_res), fake) in enumerate(zip(parts, fakes, strict=True)):
        last = i == len(parts) - 1
        with nullcontext() if last else keeping_gradients_here(net_d):
            with autocast(run.device, run.dtype):
                # Apart, as in the reference implementation: batch norm sees real or fake only.
                d_real, d_fake = net_d(high_res), net_d(fake)
            loss = discriminator_loss(d_real, d_fake)
            safe.backward(loss / len(parts))
        d_real, d_fake = d_real.detach(), d_fake.detach()
        listed.append(
            {
                "discriminator": loss.detach(),
                "D(real)": d_real.mean(),
                "D(fake)": d_fake.mean(),
                "pairs right": (d_real > d_fake).float().mean(),
            }
        )
    return mean_values(listed) | {"discriminator gradient": safe.step(opt_d)}


def mean_values(listed: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: sum(values[key] for values in listed) / len(listed) for key in listed[0]}


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


class Clock:
    """How fast a phase goes, and how long it waited for data; over all its processes' lives."""

    def __init__(self, run: Run, seconds: float):
        self.run = run
        self.begin = time.perf_counter() - seconds
        self.since, self.waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting_for_data(self):
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def seconds(self) -> float:
        return round(time.perf_counter() - self.begin, 1)

    def read(self, steps: int) -> dict[str, float]:
        """Of the steps since the last reading: images a second, share of the time without data."""
        elapsed = time.perf_counter() - self.since
        speed = {
            "images/s": steps * self.run.config.batch_size / elapsed,
            "data wait": self.waited / elapsed,
        }
        memory = peak_memory(self.run.device)
        self.since, self.waited = time.perf_counter(), 0.0
        return speed | ({} if memory is None else {"peak GiB": memory})


def show_interval(
    run: Run, bar: tqdm, balance: Balance, interval: dict, faults: Faults, progress: dict
) -> None:
    """The means of the last steps, on the progress bar and in TensorBoard; troubles in words."""
    name, step = progress["phase"], progress["step"]
    bar.set_postfix({key: f"{interval[key]:.4f}" for key in LOSSES if key in interval})
    run.log.scalars(name, interval | {"skipped": faults.faulty}, progress["run_step"])
    if faults.faulty:
        bar.write(f"{name} {step}: {faults}{FP16_NOTE if run.dtype == torch.float16 else ''}")
    if "pairs right" in interval:
        sentence = balance.judge(interval["pairs right"], interval["discriminator"])
        if sentence:
            bar.write(f"{name} {step}: {sentence}")


def record(run: Run, bar: tqdm, scores: dict, interval: dict, progress: dict) -> None:
    """A row of metrics.jsonl, and a line on the terminal where there is validation."""
    losses = {term: interval[term] for term in LOSSES if term in interval}
    others = {key: value for key, value in interval.items() if key not in losses}
    run.log.metric(progress | scores | {"losses": losses} | others)
    if scores:
        bar.write(f"{progress['phase']} {progress['step']}: {describe(scores)}")


def keep_generator(run: Run, ema: nn.Module, scores: dict, progress: dict) -> None:
    """The PSNR phase's best by PSNR; of the GAN phase, whose PSNR says little, the last few."""
    name, step = progress["phase"], progress["step"]
    metadata = made_by(run.config, name, step) | scores
    if name == "psnr" and scores and scores["psnr"] > run.log.best(name):
        save_generator(ema, run.folder / "psnr_best.safetensors", metadata=metadata)
    if name == "gan" and run.config.keep_generators:
        kept = run.folder / "generators"
        kept.mkdir(exist_ok=True)
        save_generator(ema, kept / f"gan_{step:07d}.safetensors", metadata=metadata)
        for old in sorted(kept.glob("gan_*.safetensors"))[: -run.config.keep_generators]:
            old.unlink()


def made_by(config: Config, name: str, step: int) -> dict:
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in OUTSIDE_WEIGHTS}
    return dict(source="train.py", phase=name, step=step, config=settings)


def check_faults(run: Run, faults: Faults, progress: dict) -> None:
    if faults.longest >= run.config.max_skipped:
        name = progress["phase"]
        raise TrainingError(
            f"{name} step {progress['step']}: {faults.longest} steps in a row were skipped "
            f"({faults}). {run.folder / 'last.pt'} is from before. Lower --{name}.lr, set "
            f"--{name}.clip-grad-norm 1, or use --precision fp32."
        )


def check_weights(ema: nn.Module, folder: Path, progress: dict) -> None:
    """Gradients are from before their update: only the weights tell what the last one did."""
    tensors = ema.state_dict().values()  # batch norm's statistics, too: no step is skipped for them
    if not all(tensor.isfinite().all() for tensor in tensors):
        name = progress["phase"]
        raise TrainingError(
            f"the weights were no longer finite at {name} step {progress['step']}; "
            f"{folder / 'last.pt'} is older. Lower --{name}.lr or use --precision fp32."
        )


def validate(run: Run, ema: nn.Module, progress: dict) -> dict[str, float]:
    """PSNR and SSIM on Y of whole images beside bicubic's; strips of some go to samples/."""
    valid, scale = run.valid, run.config.scale
    scores = []
    mine = share_of(chosen(valid, run.config), run.ranks)
    bar = tqdm(mine, desc="validation", leave=False, unit="image", disable=not run.ranks.first)
    for count, i in enumerate(bar):
        low_res, high_res = valid.low_res(i), valid.high_res(i)
        try:
            with autocast(run.device, run.dtype):
                fake = upscale(ema, low_res, VALIDATION_TILE)
        except FloatingPointError as error:
            raise TrainingError(
                f"{error} at {progress['phase']} step {progress['step']}; "
                f"{run.folder / 'last.pt'} is older. Lower --{progress['phase']}.lr."
            ) from error
        scores.append(score(fake, high_res, scale))
        if count < SAMPLE_COUNT and run.ranks.first:
            draw_strip(run, i, fake, scores[-1][0], progress)
    return mean_scores(run.ranks.gather(scores)) | run.bicubic


def draw_strip(run: Run, i: int, fake: np.ndarray, fake_psnr: float, progress: dict) -> None:
    scale, name = run.config.scale, progress["phase"]
    low_res, high_res = run.valid.low_res(i), run.valid.high_res(i)
    bicubic = imresize(low_res, scale)
    pictures = {
        "LR, nearest": enlarge_nearest(low_res, scale),
        f"bicubic, {psnr(bicubic, high_res, scale):.2f} dB": bicubic,
        f"ours after {name} step {progress['step']}, {fake_psnr:.2f} dB": fake,
        "HR": high_res,
    }
    strip = labelled_strip(pictures, SAMPLE_SIDE)
    stem = run.valid.stem(i)
    file = run.folder / "samples" / f"{stem}_{progress['run_step']:07d}_{name}.png"
    write_image(strip, file)
    run.log.picture(stem, strip, progress["run_step"])


def share_of(images: list[int], ranks: Ranks) -> list[int]:
    """This rank's consecutive share of the images that all ranks validate on."""
    size = -(-len(images) // ranks.count)
    return images[ranks.rank * size : (ranks.rank + 1) * size]


def describe(scores: dict[str, float]) -> str:
    gain = scores["psnr"] - scores["bicubic_psnr"]
    return (
        f"PSNR {scores['psnr']:.2f} dB ({gain:+.2f} over bicubic's {scores['bicubic_psnr']:.2f}), "
        f"SSIM {scores['ssim']:.4f} (bicubic {scores['bicubic_ssim']:.4f})"
    )


def score_bicubic(valid: Pack, config: Config, ranks: Ranks) -> dict[str, float]:
    scores = []
    mine = share_of(chosen(valid, config), ranks)
    bar = tqdm(mine, desc="scoring bicubic", leave=False, unit="image", disable=not ranks.first)
    for i in bar:
        enlarged = imresize(valid.low_res(i), config.scale)
        scores.append(score(enlarged, valid.high_res(i), config.scale))
    return {f"bicubic_{key}": value for key, value in mean_scores(ranks.gather(scores)).items()}


def score(image: np.ndarray, high_res: np.ndarray, scale: int) -> tuple[float, float]:
    """PSNR and SSIM as papers report them: on Y, `scale` pixels cropped from each side."""
    return psnr(image, high_res, scale), ssim(image, high_res, scale)


def mean_scores(scores: list[tuple[float, float]]) -> dict[str, float]:
    mean_psnr, mean_ssim = np.mean(scores, axis=0).tolist()
    return {"psnr": mean_psnr, "ssim": mean_ssim}


def chosen(valid: Pack, config: Config) -> list[int]:
    """The first images that are large enough to be scored."""
    fitting = [i for i in range(len(valid)) if min(valid.size(i)) >= smallest_scored(config.scale)]
    return fitting[: config.val_images]


def smallest_scored(scale: int) -> int:
    """SSIM's 11-pixel window has to fit once the border is cropped."""
    return 11 + 2 * scale


@contextmanager
def only_run_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold the run's folder, so that a second run in it is refused.

    The lock lies beside the folder: a run that ends for want of data leaves no folder behind.
    """
    if not ranks.first:
        yield
        return
    folder.parent.mkdir(exist_ok=True)
    try:
        with FileLock(folder.parent / f".{folder.name}.lock", blocking=False):
            yield
    except Timeout:
        raise DeviceError(
            f"another process is training {folder} right now; wait for it, or choose another --name"
        ) from None


def share_batch(config: Config, ranks: Ranks) -> None:
    if config.batch_size % (ranks.count * config.accumulate):
        raise DeviceError(
            f"batch_size is {config.batch_size}: it has to be a multiple of "
            f"{ranks.count} processes times accumulate {config.accumulate}"
        )


def start_from(net_g: RRDBNet | SRResNet, path: str) -> None:
    fresh, unused = init_generator(net_g, path)
    print(f"Starting from {path}")
    if fresh:
        print(f"  not in it, so starting at random: {', '.join(fresh)}")
    if unused:
        print(f"  in it, but not in this network: {', '.join(unused)}")


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
        too_small = valid.below(smallest_scored(config.scale))
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
    if not isinstance(checkpoint, dict) or not checkpoint.keys() >= RESUME:
        raise CheckpointError(f"{path} was not written by train.py; choose another --name")
    # A setting that a checkpoint does not know came later; its default is how things were before.
    before = flat(dataclasses.asdict(Config())) | flat(checkpoint["config"])
    now = flat(dataclasses.asdict(config))
    changed = [field for field in now if now[field] != before[field]]
    for field in changed:
        if field in IDENTITY:
            raise CheckpointError(
                f"{path} was trained with {field} {before[field]}, not {now[field]}: "
                "give that value, or choose another --name for a new run"
            )
        print(f"Changed since the last run: {field} was {before[field]}, is {now[field]}")
    print(f"Going on from {path}: {checkpoint['phase']} step {checkpoint['step']}")
    return checkpoint


def open_log(config: Config, folder: Path, checkpoint: dict | None) -> RunLog:
    """The run's log, from where the checkpoint is; from here on the run's folder exists."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    phase, step, before = PHASES[0], 0, 0
    if checkpoint:
        phase, step, before = (checkpoint[key] for key in ("phase", "step", "before"))

    def keep(row: dict) -> bool:
        return (PHASES.index(row["phase"]), row["step"]) <= (PHASES.index(phase), step)

    return RunLog(folder, keep, before + step)


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


def to_unit_range(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (N, 3, H, W) to fp32 in [0, 1]; the bytes travel, the floats are made where needed."""
    return place(images, device).float() / 255


def count_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def run_as_program() -> None:
    """`main`, whose foreseeable errors end the process with a line and a status."""
    try:
        main()
    except (DataError, DeviceError, VGGError, CheckpointError, WeightsError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError as error:
        print(f"train.py: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit("Less memory: --recompute true, a larger --accumulate, a smaller --gan.patch.")
    except (TrainingError, OSError) as error:
        sys.exit(f"train.py: {error}")
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            sys.exit(
                f"train.py: a process that cuts crops died: {str(error).splitlines()[0]} "
                "Most often memory ran out: give fewer --workers. The same command goes on."
            )
        if Ranks.of_torchrun().count > 1 and is_lost_connection(error):
            sys.exit(
                "train.py: another process of this run ended; what ended it is in its own message "
                "or torchrun's. The same command goes on from the last checkpoint."
            )
        raise
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")


if __name__ == "__main__":
    run_as_program()

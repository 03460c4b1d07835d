"""Train ESRGAN: a PSNR phase, then a GAN phase that starts from its averaged generator.

    python train.py --preset demo                   minutes on a CPU, on scikit-image's photographs
    python train.py                                 the paper's settings, on data/train
    python train.py --name mine --train-dir PHOTOS --gan.steps 50000
    torchrun --nproc_per_node=4 train.py ...        one process per GPU
    python train.py --help                          every setting; config.py says why

Everything goes to checkpoints/NAME. Ctrl-C saves; the same command again goes on from there.
"""

import copy
import dataclasses
import math
import sys
from collections.abc import Iterable

from config import Config, Phase, given_settings, layer_weights, parse_args
from utils import Bar, StopRequest, hear_kill, listed, nowhere, prepare_for_torch, prepare_output

if __name__ == "__main__":  # --help and wrong flags are answered before torch takes its seconds
    prepare_output(needed=False)  # a run is worth more than the terminal it was started from
    parse_args()
    prepare_for_torch()

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset import Crops, CropStream, batches
from formats.discriminators import load_discriminator
from images.opening import silence_pillow
from images.pairs import DataError
from loss import (
    VGGError,
    VGGFeatures,
    generator_loss,
    relativistic_discriminator_loss,
    standard_discriminator_loss,
)
from model import RRDBNet, SRResNet, UNetDiscriminator, VGGDiscriminator
from training.data import load_data, prepare_folders, uses_demo
from training.faults import remedy_for
from training.monitor import Monitor
from training.ranks import Ranks, accumulated, end_process
from training.runs import CheckpointError, RunFolder, TrainingError
from training.settings import At, check_batch_size, check_device, refuse_unlike_ranks
from training.steps import SafeStep, compile_networks, ema_decay_at, make_adam, update_ema
from training.validation import Validation, describe
from upscaling.devices import DeviceError, autocast, choose_device, choose_precision, place
from weights import Generator, WeightsError, init_generator


def main() -> int:
    """Returns the exit status: 0, or 128 and the number of the signal that stopped it."""
    config, given = parse_args(), given_settings()
    with Ranks.of_torchrun() as ranks, RunFolder(config, ranks) as run:
        if not ranks.first:
            sys.stdout, Bar.silent = nowhere(), True
        return train(run, given)


def train(run: RunFolder, given: set[str]) -> int:
    """Train both phases, from wherever the run is; first make sure that nothing is missing.

    `given` names the settings that the command line does. Returns as `main` does.
    """
    run.resume(given)
    config, ranks = run.config, run.ranks
    device = choose_device(config.device, ranks.local)
    dtype = choose_precision(config.precision, device)
    check_device(device, dtype, ranks)
    check_batch_size(config, ranks, run.phases_left())
    prepare_folders(config, run.packs)
    phases = run.phases_to_visit()
    vgg = load_vgg(config, run.phases_left(), device)
    states_d = load_discriminators(config, run)
    torch.manual_seed(config.seed)
    generator = build_generator(config)
    if run.checkpoint is None:
        if config.init_from:
            start_from(generator, config.init_from)
        elif config.phase(phases[0]).adversarial > 0:
            print("The GAN starts from random weights; --init-from, or PSNR steps, give it a start")
        elif config.degradation.level != "none":
            print("The run starts from random weights; --init-from would give it a PSNR network's")

    streams, valid, run.packs = load_data(config, run.phases_left(), run.packs)
    refuse_unlike_ranks(config, run.at, device, dtype, run.packs.values(), ranks)
    validation = Validation(valid, device, dtype, run) if valid else None
    run.open_log()
    generator = place(generator, device)
    size = sum(parameter.numel() for parameter in generator.parameters())
    print(
        f"{type(generator).__name__} x{config.scale}, {size:,} parameters, on {device} in "
        f"{str(dtype).removeprefix('torch.')}; everything goes to {run.folder}"
    )
    with StopRequest(speaks=ranks.first) as stop:
        for name in phases:
            learner = Learner(config, name, generator, vgg, dtype, ranks, states_d.get(name))
            seconds = run.restore(learner)
            monitor = Monitor(learner.at, seconds, device, run)
            # A phase of which only the last file is left to write has no stream.
            loader = batches_left(learner, streams[name], ranks) if name in streams else ()
            train_phase(learner, loader, monitor, validation, run, stop)
            if learner.at.step == learner.phase.steps:
                run.finish(learner)
            generator = learner.ema  # the next phase starts from the average
            if number := ranks.largest(stop.signal or 0):
                print(f"Stopped and saved in {run.last}. The same command goes on.")
                return 128 + number
    print(f"Done. Generators, curves.png and pictures (samples/) are in {run.folder}.")
    print("Upscale a folder with them:  python test.py FOLDER")
    if uses_demo(config):
        print(f"Compare with recorded runs:  python benchmarks/compare_runs.py {run.folder}")
    return 0


def batches_left(learner: "Learner", stream: CropStream, ranks: Ranks) -> Iterable[Crops]:
    config = learner.config
    return batches(
        stream,
        learner.at.run_step,
        learner.at.before + learner.phase.steps,
        config.batch_size,
        config.workers,
        pin_memory=learner.device.type == "cuda",
        parts=config.accumulate,
        rank=ranks.rank,
        ranks=ranks.count,
    )


def train_phase(
    learner: "Learner",
    loader: Iterable[Crops],
    monitor: Monitor,
    validation: Validation | None,
    run: RunFolder,
    stop: StopRequest,
) -> None:
    """Train until the phase's last step, or until someone asks to stop."""
    config, phase = run.config, learner.phase
    val_every = phase.val_every or config.val_every
    save_due = False
    for parts in monitor.watch(loader):
        lr = learning_rate(phase, learner.at.step + 1)
        monitor.add(learner.step(parts, lr))

        at = learner.at
        done = at.step == phase.steps
        stopped = run.ranks.largest(stop.signal or 0) > 0
        validation_due = done or at.step % val_every == 0
        save_due = save_due or done or stopped or at.step % config.save_every == 0
        if validation_due or save_due or at.step % config.log_every == 0:
            monitor.read(at, lr, stopped)
        if validation_due or save_due:
            run.ranks.average_buffers(learner.net_g, learner.ema)
        if validation_due:
            scores = validation(learner.ema, at) if validation else {}
            run.keep_generators(learner.ema, at, scores)
            run.record(at, monitor.row(scores))
            monitor.tell(at, describe(scores))
            monitor.clock.restart()
        # While steps are skipped, the weights may be what is wrong: the older file is kept, but at
        # an end, as skipped steps change nothing.
        if save_due and (done or stopped or monitor.faults.in_a_row == 0):
            run.save(learner, monitor.clock.seconds())
            save_due = False
            monitor.clock.restart()
        if stopped:
            return


class Learner:
    """The networks of one phase, their optimizers, and the step that improves them.

    Args:
        config: of the run.
        name: of the phase.
        generator: the averaged one of what came before. Training starts from a copy of it, and it
            goes on as the average, `ema`, which is validated and kept.
        vgg: needed where the phase has a perceptual loss.
        dtype: of convolutions, under autocast.
        ranks: that share each batch.
        state_d: of the discriminator to start from, if not from random weights.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        generator: Generator,
        vgg: VGGFeatures | None,
        dtype: torch.dtype,
        ranks: Ranks,
        state_d: dict[str, Tensor] | None = None,
    ):
        self.config, self.phase, self.vgg, self.dtype = config, config.phase(name), vgg, dtype
        self.at = At(name, step=0, before=config.psnr.steps if name == "gan" else 0)
        self.device = next(generator.parameters()).device
        self.ema = generator.eval().requires_grad_(False)
        self.net_g = copy.deepcopy(generator).train().requires_grad_(True)
        if isinstance(self.net_g, RRDBNet):
            self.net_g.recompute = config.recompute
        self.opt_g = make_adam(self.net_g, config.betas, self.device)
        self.safe = SafeStep(self.device, dtype, self.phase.clip_grad_norm)
        self.net_d = self.opt_d = None
        if self.phase.adversarial > 0:
            torch.manual_seed(config.seed)  # the same discriminator, however the phase is reached
            self.net_d = place(build_discriminator(config, self.phase), self.device)
            if state_d:
                self.net_d.load_state_dict(state_d)
            self.opt_d = make_adam(self.net_d, config.betas, self.device)
        if config.compile:
            whole_batches = config.accumulate == ranks.count == 1
            compile_networks(self.net_g, filter(None, (self.net_d, vgg)), whole_batches)
        # The raw networks are saved; the wrapped ones compute, and exchange gradients. The
        # generator's update looks at the raw discriminator, whose gradients it does not need.
        self.wrapped_g = ranks.wrap(self.net_g)
        self.wrapped_d = ranks.wrap(self.net_d) if self.net_d else None

    def step(self, parts: list[Crops], lr: float) -> dict[str, Tensor]:
        """One update of the generator, one of the discriminator, one of the average.

        Args:
            parts: of a batch, uint8; together they make the gradient of one step.
            lr: learning rate of both networks.

        Returns:
            Scalars on the device, to log: weighted losses, norms of gradients, how D judges.
        """
        parts = [part.map(self._to_unit_range) for part in parts]
        fakes, values = self.update_generator(parts, lr)
        if self.net_d is not None:
            values |= self.update_discriminator(parts, fakes, lr)
        self.safe.update()
        self.at = dataclasses.replace(self.at, step=self.at.step + 1)
        update_ema(self.ema, self.net_g, ema_decay_at(self.at.run_step, self.config.ema_decay))
        return values

    def update_generator(
        self, parts: list[Crops], lr: float
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Lower L_G = L_percep + lambda L_G^Ra + eta L_1 (equation 3), or its L_1 alone.

        Returns:
            G(low_res) of each part, and the terms of the loss, all without their graphs.
        """
        if self.net_d is not None:
            self.net_d.requires_grad_(False)  # it only passes gradients on; it gets none itself
        self.opt_g.zero_grad()
        fakes, terms = [], []
        for part in accumulated(parts, self.wrapped_g):
            with autocast(self.device, self.dtype):
                fake = self.wrapped_g(part.low_res)
                loss = generator_loss(
                    fake,
                    part.target,
                    part.high_res,
                    pixel=self.phase.pixel,
                    log_mse=self.phase.log_mse,
                    perceptual=self.phase.perceptual,
                    adversarial=self.phase.adversarial,
                    feature_matching=self.phase.feature_matching,
                    vgg=self.vgg,
                    net_d=self.net_d,
                    relativistic=self.config.relativistic,
                    distance=F.mse_loss if self.config.squared_error else F.l1_loss,
                )
            self.safe.backward(torch.stack(list(loss.values())).sum() / len(parts))
            fakes.append(fake.detach())
            terms.append({name: term.detach() for name, term in loss.items()})
        gradient = self.safe.step(self.opt_g, lr)
        return fakes, mean_values(terms) | {"generator gradient": gradient}

    def update_discriminator(
        self, parts: list[Crops], fakes: list[Tensor], lr: float
    ) -> dict[str, Tensor]:
        """Lower L_D^Ra (equation 1): real patches should look more real than generated ones.

        Returns:
            The loss and how it judges, without graphs.
        """
        assert self.net_d is not None and self.wrapped_d is not None and self.opt_d is not None
        relativistic = self.config.relativistic
        loss_of = relativistic_discriminator_loss if relativistic else standard_discriminator_loss
        self.net_d.requires_grad_(True)
        self.opt_d.zero_grad()
        judged = []
        pairs = [(part.high_res, fake) for part, fake in zip(parts, fakes, strict=True)]
        for real, fake in accumulated(pairs, self.wrapped_d):
            with autocast(self.device, self.dtype):
                # Apart, as in the reference implementation: batch norm sees real or fake only.
                d_real, d_fake = self.wrapped_d(real), self.wrapped_d(fake)
            loss = loss_of(d_real, d_fake)
            self.safe.backward(loss / len(parts))
            d_real, d_fake = d_real.detach(), d_fake.detach()
            judged.append(
                {
                    "discriminator": loss.detach(),
                    "D(real)": d_real.mean(),
                    "D(fake)": d_fake.mean(),
                    "pairs right": (d_real > d_fake).float().mean(),
                }
            )
        gradient = self.safe.step(self.opt_d, lr)
        return mean_values(judged) | {"discriminator gradient": gradient}

    def _to_unit_range(self, images: Tensor) -> Tensor:
        """uint8 to fp32 in [0, 1]; the bytes travel, the floats are made where needed."""
        # The loader's memory is pinned for CUDA, so the copy can wait for its turn there.
        moved = images.to(self.device, non_blocking=self.device.type == "cuda")
        return place(moved, self.device).float() / 255

    def _saved(self) -> dict:
        saved = {"net_g": self.net_g, "ema": self.ema, "opt_g": self.opt_g, "scaler": self.safe}
        return saved if self.net_d is None else saved | {"net_d": self.net_d, "opt_d": self.opt_d}

    def state_dict(self) -> dict:
        return {key: part.state_dict() for key, part in self._saved().items()}

    def load_state_dict(self, state: dict) -> None:
        """Take this phase's keys of `state`.

        Raises:
            ValueError: one is missing or does not fit; the message names it.
        """
        for key, part in self._saved().items():
            try:
                part.load_state_dict(state[key])
            except (KeyError, RuntimeError, ValueError) as error:
                raise ValueError(f"its {key}: {error}") from error


def mean_values(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([values[key] for values in parts]).mean() for key in parts[0]}


def learning_rate(phase: Phase, step: int) -> float:
    """Of the phase's step number `step`, counted from 1: warm-up times halvings or cosine."""
    warm = min(1.0, step / (phase.warmup + 1))
    if phase.milestones:
        decay = 0.5 ** sum(step > milestone for milestone in phase.milestones)
    else:
        decay = 0.5 * (1 + math.cos(math.pi * (step - 1) / phase.steps))
    return phase.lr * warm * decay


# --------------------------------------------------------------------- what the run is made from


def build_generator(config: Config) -> Generator:
    if config.generator == "srresnet":
        return SRResNet(3, 3, config.scale, config.features, config.blocks, config.batch_norm)
    return RRDBNet(
        3, 3, config.scale, config.features, config.blocks, config.growth, config.unshuffle
    )


def build_discriminator(config: Config, phase: Phase) -> VGGDiscriminator | UNetDiscriminator:
    if config.discriminator == "unet":
        return UNetDiscriminator(config.discriminator_features)
    return VGGDiscriminator(phase.patch)


def start_from(generator: Generator, path: str) -> None:
    source, fresh, unused = init_generator(generator, path)
    print(f"Starting from {source}")
    if fresh:
        print(f"  not in it, so starting at random: {listed(fresh)}")
    if unused:
        print(f"  in it, but not in this network: {listed(unused)}")


def load_discriminators(config: Config, run: RunFolder) -> dict[str, dict[str, Tensor]]:
    """Of each phase that has yet to begin, what its discriminator starts from, if a file."""
    states, path = {}, config.init_discriminator
    for name in run.phases_to_begin() if path else ():
        if (phase := config.phase(name)).adversarial > 0:
            own = build_discriminator(config, phase).state_dict()
            states[name] = load_discriminator(path, own, name)
            print(f"The discriminator of the {name} phase starts from {path}")
    return states


def load_vgg(config: Config, phases: list[str], device: torch.device) -> VGGFeatures | None:
    """VGG19 if any phase will need it: now, not days later, is the time to find it missing."""
    if not any(config.phase(name).perceptual for name in phases):
        return None
    weights, layers = config.vgg_weights, layer_weights(config.vgg_layer)
    return place(VGGFeatures(weights, layers, config.vgg_before_activation, config.seed), device)


def run_as_program() -> None:
    """`main`, whose foreseeable errors end the process with a line and a status."""
    silence_pillow()
    hear_kill()  # until a StopRequest hears all
    try:
        status = main()
    except (DataError, DeviceError, VGGError, CheckpointError, WeightsError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingError as error:
        sys.exit(f"train.py: {error}")
    except Exception as error:
        if remedy := remedy_for(error):
            sys.exit(f"train.py: {remedy} What was saved is kept, and the run goes on from there.")
        if isinstance(error, OSError):
            sys.exit(f"train.py: {error}")
        raise
    except KeyboardInterrupt:
        sys.exit("train.py: interrupted")
    end_process(status)


if __name__ == "__main__":
    run_as_program()

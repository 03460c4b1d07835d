"""What the settings mean to a run: which have an effect, which may change when it goes on."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from config import GROUPS, PHASES, Config, Degradation, Phase, flat
from training.ranks import Ranks
from training.steps import ema_decay_at
from upscaling.devices import DeviceError, choose_device, choose_precision

# What may differ between the machines of a run: where things are there, and how it computes.
OF_A_MACHINE = {"train_dir", "valid_dir", "lr_dir", "valid_lr_dir", "vgg_weights", "init_from"}
OF_A_MACHINE |= {"init_discriminator", "device", "workers", "compile", "recompute"}
NO_STEP = "no step is left to do"


@dataclass(frozen=True)
class At:
    """Where a run is: "gan step 12"."""

    phase: str
    step: int  # of the phase, counted from 1; 0 is its start
    before: int = 0  # steps of the run before this phase

    @property
    def run_step(self) -> int:
        return self.before + self.step

    def __str__(self) -> str:
        return f"{self.phase} step {self.step}"


START = At(PHASES[0], 0)


def identity(config: Config, phase: str) -> set[str]:
    """The settings whose change makes another run of one in this phase, as `flat` calls them."""
    values = dataclasses.asdict(config) | dataclasses.asdict(config.phase(phase))
    names = {
        field.name
        for field in dataclasses.fields(Config)
        if field.metadata.get("identity") and values.get(field.metadata.get("needs", ""), True)
    }
    if config.phase(phase).adversarial > 0 and config.discriminator == "vgg":
        own = {field.name for field in dataclasses.fields(Phase) if field.metadata.get("identity")}
        names |= {f"{phase}.{name}" for name in own}
    return names


def settings_of_weights(config: Config) -> dict:
    """What a file of weights records of the run that made it."""
    told = dataclasses.asdict(config)
    for settings, kind in ((told, Config), *((told[name], Phase) for name in PHASES)):
        for field in dataclasses.fields(kind):
            if not field.metadata.get("recorded", True):
                del settings[field.name]
    return told


def phases_over(config: Config, at: At) -> list[str]:
    """The phases that have no step left to do, for a run that goes on from there."""
    earlier = PHASES[: PHASES.index(at.phase)]
    done = 0 < at.step >= config.phase(at.phase).steps
    return [*earlier, at.phase] if done else [*earlier]


def phases_left(config: Config, at: At) -> list[str]:
    """The phases that have steps left to do."""
    over = phases_over(config, at)
    return [name for name in PHASES if name not in over and config.phase(name).steps > 0]


def idle_settings(config: Config, at: At = START) -> dict[str, str]:
    """The settings that change nothing, or not all they could, in what is left of a run, and why.

    Args:
        config: of the run.
        at: where it goes on from; a new run has done no step.
    """
    idle = {}
    values, left = flat(dataclasses.asdict(config)), phases_left(config, at)
    for field in dataclasses.fields(config):
        needed = field.metadata.get("needs")
        for network in ("generator", "discriminator"):
            kind = field.metadata.get(network)
            if kind not in (None, values[network]) and values[field.name] is not False:
                idle[field.name] = f"no effect, as only --{network} {kind} has it"
        if needed in values and not values[needed]:
            idle[field.name] = f"no effect, as {needed} is {values[needed]!r}"
        elif needed and needed not in values and not any(values[f"{n}.{needed}"] for n in left):
            without = f"{needed} is 0 in every phase with steps to do" if left else NO_STEP
            idle[field.name] = f"no effect, as {without}"
    if left and not any(values[f"{n}.{term}"] for n in left for term in ("pixel", "perceptual")):
        idle["squared_error"] = "no effect, as pixel and perceptual are 0 in every phase to come"
    if at.step > 0:
        own = "no effect, as the run has its own weights; another --name starts anew"
        idle["init_from"] = own
        if not any(values[f"{name}.adversarial"] for name in left if name != at.phase):
            idle.setdefault("init_discriminator", own)
    last = sum(config.phase(name).steps for name in PHASES)
    if left and (reached := ema_decay_at(last, config.ema_decay)) < config.ema_decay:
        idle["ema_decay"] = f"never reached, as the average warms up: {reached:.4f} at the end"
    if own_steps := {name: every for name in left if (every := values[f"{name}.val_every"])}:
        steps = " and ".join(f"{name}.val_every is {every}" for name, every in own_steps.items())
        idle["val_every"] = f"no effect in the phase {' or '.join(own_steps)}, as {steps}"
    idle |= {f"degradation.{key}": why for key, why in _idle_degradation(config).items()}
    for name in PHASES:
        idle |= {f"{name}.{key}": why for key, why in _idle_in(name, config, at).items()}
    if not left:
        done = flat(settings_of_weights(config)).keys() - identity(config, at.phase)
        idle = dict.fromkeys(done, f"no effect, as {NO_STEP}") | idle
    return idle


def _idle_degradation(config: Config) -> dict[str, str]:
    """The same for the settings of the degradation."""
    names = {field.name for field in dataclasses.fields(Degradation)}
    share = config.degradation.mild
    if config.degradation.level == "none":
        return dict.fromkeys(names - {"level"}, "no effect, as degradation.level is 'none'")
    idle: dict[str, str] = {}
    if share > 0:
        why = f"no effect on the {share:.0%} of images that degradation.mild gives the level mild"
        idle = dict.fromkeys(names - {"level", "mild", "sharpen"}, why)
    never = "no effect, as what it is for has the probability 0"
    return idle | dict.fromkeys(never_drawn(config.degradation), never)


def never_drawn(d: Degradation) -> set[str]:
    """The ranges and shares that no image's degradation depends on, given the probabilities."""
    noises, blurs = d.noise > 0 or d.noise2 > 0, d.blur > 0 or d.blur2 > 0
    shapes = blurs and d.sinc < 1
    drawn = {
        "sinc": blurs,
        "kernel_side": blurs or d.final_sinc > 0,
        "kernels": shapes,
        "sigma": d.blur > 0 and d.sinc < 1,
        "sigma2": d.blur2 > 0 and d.sinc < 1,
        "generalized_beta": shapes and sum(d.kernels[2:4]) > 0,
        "plateau_beta": shapes and sum(d.kernels[4:]) > 0,
        "factor": sum(d.resize[:2]) > 0,
        "factor2": sum(d.resize2[:2]) > 0,
        "poisson": noises,
        "gray": noises,
        "gaussian_sigma": d.noise > 0 and d.poisson < 1,
        "gaussian_sigma2": d.noise2 > 0 and d.poisson < 1,
        "poisson_scale": d.noise > 0 and d.poisson > 0,
        "poisson_scale2": d.noise2 > 0 and d.poisson > 0,
        "jpeg_quality": d.jpeg > 0 or d.jpeg2 > 0,
    }
    return {name for name, is_drawn in drawn.items() if not is_drawn}


def _idle_in(name: str, config: Config, at: At) -> dict[str, str]:
    """The same for the settings of the phase `name`."""
    settings = config.phase(name)
    steps = f"{name}.steps is {settings.steps}"
    others = [field.name for field in dataclasses.fields(Phase) if field.name != "steps"]
    if name in phases_over(config, at):
        why = f"no effect, as the {name} phase is over; another --name starts anew"
        ended = f"{at.step} are done, and the phase ends there"
        return dict.fromkeys(others, why) | {"steps": ended if name == at.phase else why}
    if settings.steps == 0:
        return dict.fromkeys(others, f"no effect, as {steps}")
    idle: dict[str, str] = {}
    if late := [milestone for milestone in settings.milestones if milestone >= settings.steps]:
        why = f"the phase ends before {late[0]}, so {name}.lr does not halve there"
        remedy = f"--{name}.milestones takes other steps, or none for a cosine"
        idle |= {"steps": f"{why}; {remedy}", "milestones": f"{why}; {remedy}"}
    if settings.warmup >= settings.steps:
        why = f"{name}.lr is never reached, as {steps} and {name}.warmup {settings.warmup}"
        idle |= {"steps": why, "warmup": why}
    return idle


def list_changes(config: Config, before: dict, at: At) -> list[str]:
    """What differs from the settings that a run had, a sentence each.

    Args:
        config: of the run that goes on.
        before: the settings it had, as `flat` gives them.
        at: where it goes on from.

    Raises:
        ValueError: a change that would make another run of it; the message names the field.
    """
    now, idle = flat(dataclasses.asdict(config)), idle_settings(config, at)
    fixed = identity(config, at.phase) - idle.keys()
    own = f"{at.phase}.adversarial"  # without it no discriminator would be kept, or none is there
    if at.step > 0 and own not in idle and (now[own] > 0) != (before[own] > 0):
        fixed.add(own)
    changes = []
    for field in now:
        if now[field] == before[field]:
            continue
        if field in fixed:
            raise ValueError(f"{field} {before[field]}, not {now[field]}")
        effect = f": {idle[field]}" if field in idle else ""
        if field == "batch_size" and not effect and at.run_step > 0:
            crops = at.run_step * (now[field] - before[field])
            effect = f": the stream of crops goes {'on' if crops > 0 else 'back'} by {abs(crops):,}"
        changes.append(f"{field} was {before[field]!r}, is {now[field]!r}{effect}")
    return changes


def with_what_is_over(config: Config, before: dict, at: At) -> Config:
    """The configuration with the old settings of what is over: how the run started, phases, or all.

    Args: as of `list_changes`.

    Raises:
        ValueError: they do not go together.
    """
    idle = idle_settings(config, at)
    names = {"init_from", "init_discriminator", "discriminator", "discriminator_features"}
    over: dict = {}
    if not phases_left(config, at):
        names |= settings_of_weights(config).keys() - GROUPS - OF_A_MACHINE - {"precision"}
        over["degradation"] = Degradation(**_of_group("degradation", Degradation, before))
        if over["degradation"].level != "none":
            over["lr_dir"] = ()  # the two exclude each other
    over |= {key: before[key] for key in names & idle.keys()}
    for name in phases_over(config, at):
        settings = _of_group(name, Phase, before)
        over[name] = Phase(**settings | ({"steps": at.step} if name == at.phase else {}))
    return dataclasses.replace(config, **over)


def _of_group(name: str, kind: type, settings: dict) -> dict:
    """What `flat` settings have of a group, as the fields of its kind are called."""
    return {field.name: settings[f"{name}.{field.name}"] for field in dataclasses.fields(kind)}


def against_divergence(config: Config, phase: str) -> str:
    """What to try, as a sentence, where a run's numbers are no longer finite."""
    norm = config.phase(phase).clip_grad_norm
    advice = f"Lower --{phase}.lr or set --{phase}.clip-grad-norm {norm / 2 if norm else 1:g}"
    computed_in = choose_precision(config.precision, choose_device(config.device))
    return f"{advice}." if computed_in == torch.float32 else f"{advice}, or use --precision fp32."


def check_device(device: torch.device, dtype: torch.dtype, ranks: Ranks) -> None:
    """Refuse what MPS cannot do."""
    if device.type == "mps" and dtype == torch.float16:
        raise DeviceError(
            "precision is 'fp16': MPS has no scaled loss, without which most gradients would be 0; "
            "use bf16 or fp32"
        )
    if device.type == "mps" and ranks.count > 1:
        raise DeviceError(
            "processes cannot share an MPS device; leave out torchrun, or --device cpu"
        )


def refuse_unlike_ranks(
    config: Config,
    at: At,
    device: torch.device,
    dtype: torch.dtype,
    images: Iterable[str],
    ranks: Ranks,
) -> None:
    """Processes that differ would learn apart, or wait for one another for ever.

    Args:
        at: where the run goes on from.
        device: that it computes on; of another kind, gradients would travel by other ways.
        dtype: that it computes in; `auto` depends on the machine.
        images: what tells their packs apart, in the order in which crops are drawn from them.
    """
    own = flat(dataclasses.asdict(config)) | {"last.pt": str(at), "images": list(images)}
    own |= {"kind of device": device.type, "precision computed in": str(dtype)}
    everyone = ranks.gather([own])
    for rank, other in enumerate(everyone):
        for field in sorted(own.keys() - OF_A_MACHINE):
            if other[field] != everyone[0][field]:
                values = f"{field} is {everyone[0][field]!r} for process 0 but {other[field]!r} for"
                differ = values if field != "images" else "images differ between process 0 and"
                raise DeviceError(
                    f"{differ} process {rank}: give all the same command and kind of device, and "
                    "checkpoints/ and the images on storage that they share"
                )


def check_batch_size(config: Config, ranks: Ranks, phases: Iterable[str]) -> None:
    """Crops for every process, and for batch norm more than one value of each channel."""
    shares = ranks.count * config.accumulate
    many = f"{ranks.count} processes times accumulate {config.accumulate}"
    if config.batch_size % shares:
        raise DeviceError(f"batch_size is {config.batch_size}: it has to be a multiple of {many}")
    for name in phases:
        phase = config.phase(name)
        # Of the maps that the last batch norm sees: in the discriminator, in the generator.
        sides = [phase.patch // 32] * (phase.adversarial > 0 and config.discriminator == "vgg")
        sides += [phase.patch // config.scale] * config.batch_norm
        if config.batch_size == shares and 1 in sides:
            raise DeviceError(
                f"batch_size is {config.batch_size}: batch norm cannot learn from one crop of "
                f"{name}.patch {phase.patch} at a time; give twice {many}, or a larger patch"
            )

"""Which recipe makes the best small network of a given time? Variants of the PSNR phase, a table.

    python benchmarks/recipe.py --train-dir A --valid-dir C [--minutes 20] [--seeds 0 1 2]
                                [--variants ours batch-16] [-o FOLDER] [--flags --features 24]

A variant is the compact preset's PSNR phase but for what its name says. First each trains for some
steps to learn what a step takes on this machine, while nothing else should run there. Then each
takes as many steps as fit in the minutes: these do not change the table if other work slows them
down. The same command goes on where it was stopped, and leaves alone what is done; for other
photographs or flags take another FOLDER. After each there is FOLDER/recipe.md, a table of PSNR on
the validation images, and FOLDER/recipe.png, its curves over minutes, of all that is done there.
With 20 minutes each, all of one seed take 8 hours.
"""

import argparse
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import prepare_for_torch

if __name__ == "__main__":
    prepare_for_torch()  # as train.py does it

import compare_runs
import numpy as np
import torch
from ablation import run_to_its_end
from matplotlib.figure import Figure

from images.decoding import read_visible
from images.files import write_image
from images.kinds import ImageError, find_images
from images.resize import imresize

LARGEST_PATCH = 128  # of the variants
WARM = 10  # steps that are not timed
TIMED = (20, 200, 2000)  # steps that are, as many as it takes
LEAST_SECONDS = 10  # that they have to take
POINTS = 5  # of each curve
LINES = ("-", "--", ":")  # of the first ten curves' colours, of the next ten's...


@dataclass(frozen=True)
class Stage:
    """A share of the time, and how it differs from the compact preset's PSNR phase."""

    share: float
    flags: list[str]


@dataclass(frozen=True)
class Variant:
    """What train.py has no setting for, `optimizer` and `distance`, is put in its place."""

    what: str
    flags: list[str] = field(default_factory=list)
    before: Stage | None = None  # what it starts with, at a rate that does not fall
    optimizer: str = "Adam"
    distance: str = "l1_loss"
    halves: bool = False


NIMBLE = ["--betas", "0.9", "0.99", "--psnr.clip-grad-norm", "0"]
SMALL_CROPS = ["--psnr.patch", "64"]
BUSIEST = [*SMALL_CROPS, "--psnr.busiest-of", "4"]
VARIANTS = {
    "ours": Variant("the compact preset: batches of 8 crops of 128, rate 1.2e-3, clipped at 0.2"),
    "betas": Variant("betas 0.9 0.99, unclipped", NIMBLE),
    "rate-2e-3": Variant("betas 0.9 0.99, unclipped, rate 2e-3", [*NIMBLE, "--psnr.lr", "2e-3"]),
    "rate-6e-4": Variant("betas 0.9 0.99, unclipped, rate 6e-4", [*NIMBLE, "--psnr.lr", "6e-4"]),
    "steady": Variant("a rate that stays", ["--psnr.milestones", "1000000000"]),
    "batch-4": Variant("batches of 4", ["--batch-size", "4"]),
    "batch-16": Variant("batches of 16", ["--batch-size", "16"]),
    "crop-64": Variant("crops of 64", SMALL_CROPS),
    "crop-64-first": Variant(
        "crops of 64 for half of the time, then of 128", [], Stage(0.5, SMALL_CROPS)
    ),
    "x2-first": Variant(
        "x2 (crops of 64) for a third of the time, then x4",
        [],
        Stage(1 / 3, ["--scale", "2", *SMALL_CROPS]),
    ),
    "crop-64-batch-4": Variant("batches of 4 crops of 64", [*SMALL_CROPS, "--batch-size", "4"]),
    "crop-64-frequency": Variant(
        "crops of 64, and the Fourier transform's L1", SMALL_CROPS, distance="frequency"
    ),
    "crop-64-busiest": Variant("crops of 64, the busiest of 4", BUSIEST),
    "crop-64-busiest-16": Variant(
        "crops of 64, the busiest of 16", [*SMALL_CROPS, "--psnr.busiest-of", "16"]
    ),
    "crop-64-busiest-frequency": Variant(
        "crops of 64, the busiest of 4, and the Fourier transform's L1",
        BUSIEST,
        distance="frequency",
    ),
    "box": Variant(
        "from the network in the box",  # whose size --flags may have changed
        ["--init-from", "compact_x4_psnr", "--features", "32", "--blocks", "4"],
    ),
    "charbonnier": Variant("Charbonnier's loss", distance="charbonnier"),
    "frequency": Variant("L1, and 0.05 of L1 of the Fourier transform", distance="frequency"),
    "squared": Variant("squared error", ["--squared-error", "true"]),
    "ema-0.99": Variant("average over fewer steps", ["--ema-decay", "0.99"]),
    "wide": Variant("2 blocks of 48 features", ["--features", "48", "--blocks", "2"]),
    # torch's Muon takes matrices alone, and a convolution's weights are none.
    "adamw": Variant("AdamW, decay 0.01", optimizer="AdamW"),
    "nadam": Variant("NAdam", optimizer="NAdam"),
    "halves": Variant("the photographs at half their size too", halves=True),
}


def main() -> None:
    arguments = parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    wanted = [(name, seed) for name in arguments.variants for seed in arguments.seeds]
    done = recorded(arguments)
    runs = dict.fromkeys([*done, *wanted])
    steps = {name: seconds_of_steps(name, arguments) for name in dict.fromkeys(n for n, _ in runs)}
    curves: dict[tuple[str, int], list[dict]] = {}
    for name, seed in runs:
        print(f"\n{name}, seed {seed}: {VARIANTS[name].what}", flush=True)
        curves[name, seed] = train_variant(name, seed, steps[name], arguments)
        if (name, seed) not in done:
            report(curves, arguments)
    table = report(curves, arguments)
    print("", table, f"The table and its curves are in {arguments.output}", sep="\n")


def report(curves: dict[tuple[str, int], list[dict]], arguments: argparse.Namespace) -> str:
    """Write the table, the best first, and its curves; returns the table."""
    best_first = dict(sorted(curves.items(), key=lambda run: -scored(run[1])[-1][1]))
    table = tabulate(best_first, arguments.minutes)
    (arguments.output / "recipe.md").write_text(table)
    draw(best_first, arguments.output / "recipe.png")
    return table


def recorded(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """The variants and seeds that an earlier call has done."""
    done = []
    for name, variant in VARIANTS.items():
        last = len(stages_of(variant)) - 1
        runs = arguments.output / "checkpoints"
        for folder in sorted(runs.glob(f"{name}_*_{arguments.minutes:g}_{last}")):
            if len(rows_of(folder)) >= POINTS:
                done.append((name, int(folder.name.split("_")[1])))
    return done


def seconds_of_steps(name: str, arguments: argparse.Namespace) -> list[float]:
    """Of a variant's stages, by short runs. They are kept: the same command has the same steps."""
    return [
        seconds_of_step(f"{name}_{number}_timed", flags, VARIANTS[name], arguments)
        for number, flags in enumerate(flags_of_stages(name, arguments))
    ]


def seconds_of_step(
    run: str, flags: list[str], variant: Variant, arguments: argparse.Namespace
) -> float:
    for timed in TIMED:
        alone = ["--val-every", str(WARM), "--valid-dir", ""]
        folder = train(f"{run}_{timed}", WARM + timed, [*flags, *alone], variant, arguments)
        rows = rows_of(folder)
        seconds = rows[-1]["seconds"] - rows[0]["seconds"]
        if seconds >= LEAST_SECONDS:
            break
    return max(seconds, 0.1) / timed  # the log has tenths


def train_variant(
    name: str, seed: int, seconds: list[float], arguments: argparse.Namespace
) -> list[dict]:
    """Run what is left of a variant; returns the rows of its log, `minutes` among their fields.

    `seconds` are those of a step of each stage, the machine being left alone.
    """
    rows: list[dict] = []
    start: list[str] = []
    stages = stages_of(VARIANTS[name])
    for number, flags in enumerate(flags_of_stages(name, arguments)):
        stage, step = stages[number], seconds[number]
        steps = max(POINTS, int(60 * arguments.minutes * stage.share / step))
        falls = [] if stage is stages[-1] else ["--psnr.milestones", str(steps)]
        validated = ["--valid-dir", str(arguments.valid_dir), "--val-every", str(steps // POINTS)]
        if "--scale" in stage.flags:
            validated = ["--valid-dir", ""]
        run = f"{name}_{seed}_{arguments.minutes:g}_{number}"
        flags = [*flags, *start, "--seed", str(seed), "--save-every", "100", *falls, *validated]
        folder = train(run, steps, flags, VARIANTS[name], arguments)
        begun = rows[-1]["minutes"] if rows else 0
        rows += [row | {"minutes": begun + row["step"] * step / 60} for row in rows_of(folder)]
        start = ["--init-from", str(folder / "psnr.safetensors")]
    return rows


def stages_of(variant: Variant) -> list[Stage]:
    before = [variant.before] if variant.before else []
    return [*before, Stage(1 - sum(stage.share for stage in before), variant.flags)]


def flags_of_stages(name: str, arguments: argparse.Namespace) -> list[list[str]]:
    """What a variant's stages are trained with, whatever the seed and the number of steps."""
    variant, folders = VARIANTS[name], [*arguments.train_dir]
    if variant.halves:
        folders += halve(arguments.train_dir, arguments.output / "halves")
    common = [
        *("--preset", "compact", "--gan.steps", "0"),
        *("--train-dir", *map(str, folders), "--workers", str(arguments.workers)),
        *arguments.flags,
    ]
    return [[*common, *stage.flags] for stage in stages_of(variant)]


def train(
    run: str, steps: int, flags: list[str], variant: Variant, arguments: argparse.Namespace
) -> Path:
    """The folder of a run of train.py, once it is done; Ctrl-C saves and ends it and this.

    It is done if its log says so: logs are enough to go on with a table on another machine.
    """
    folder = arguments.output / "checkpoints" / run
    logged = [row["step"] for row in rows_of(folder)][-1:] == [steps]
    stopped = (folder / "last.pt").exists() and not (folder / "psnr.safetensors").exists()
    if stopped or not logged:
        child = [sys.executable, __file__, "--child", variant.optimizer, variant.distance]
        length = ["--name", run, "--psnr.steps", str(steps)]
        run_to_its_end([*child, *length, *flags], arguments.output)
    return folder


def rows_of(folder: Path) -> list[dict]:
    log = folder / "metrics.jsonl"
    return compare_runs.rows_of(log) if log.exists() else []


def train_here(optimizer: str, distance: str, flags: list[str]) -> None:
    """train.py in this process, with another optimizer and another distance of pixels."""
    import train

    losses = {"l1_loss": train.F.l1_loss, "charbonnier": charbonnier, "frequency": frequency}
    train.F = types.SimpleNamespace(l1_loss=losses[distance], mse_loss=train.F.mse_loss)
    if optimizer != "Adam":
        kind = getattr(torch.optim, optimizer)
        fused = {"fused": True} if optimizer == "AdamW" else {}
        train.make_adam = lambda net, betas, device: kind(net.parameters(), betas=betas, **fused)
    sys.argv = ["train.py", *flags]
    train.run_as_program()


def charbonnier(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Lai et al., 2017 (arXiv 1704.03915): L1, but smooth below 1e-3."""
    return torch.sqrt((result - target) ** 2 + 1e-6).mean()


def frequency(result: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 of pixels, and a little of their Fourier transform, which is not normalized, as SAFMN has
    it (Sun et al., 2023, arXiv 2302.13800)."""
    difference = (result - target).float()
    spectrum = torch.fft.rfft2(difference)
    return difference.abs().mean() + 0.05 * torch.view_as_real(spectrum).abs().mean()


def halve(folders: list[Path], target: Path) -> list[Path]:
    """The images of folders at half their size, where a crop still fits in."""
    halved = []
    for i, folder in enumerate(folders):
        halved.append(target / str(i))
        halved[-1].mkdir(parents=True, exist_ok=True)
        for path in find_images(folder).images:
            file = halved[-1] / f"{path.relative_to(folder)}.png"
            if not file.exists():
                write_half(path, file)
    return [folder for folder in halved if find_images(folder).images]


def write_half(path: Path, file: Path) -> None:
    try:
        image, _ = read_visible(path)
    except ImageError as error:
        print(f"No half of {path}: {error}")
        return
    if min(image.shape[:2]) >= 2 * LARGEST_PATCH:
        write_image(imresize(image, 1 / 2), file)


def tabulate(curves: dict[tuple[str, int], list[dict]], minutes: float) -> str:
    """Of each variant, PSNR at fifths of the minutes (between a curve's points; the mean of its
    seeds), and the last PSNR of each seed."""
    times = [minutes * point / POINTS for point in range(1, POINTS)]
    shown = " | ".join(f"{time:g} min" for time in times)
    rows = [f"| | variant | {shown} | end, by seed |", f"|---|{'---|' * (POINTS + 1)}"]
    for name in dict.fromkeys(name for name, _ in curves):
        seeds = [scored(rows) for (variant, _), rows in curves.items() if variant == name]
        at = [np.interp(times, *zip(*points, strict=True), left=np.nan) for points in seeds]
        means = ["" if np.isnan(mean) else f"{mean:.2f}" for mean in np.mean(at, 0)]
        ends = ", ".join(f"{points[-1][1]:.3f}" for points in seeds)
        what = VARIANTS[name].what
        rows.append(f"| {name} | {what} | {' | '.join(means)} | {ends} |")
    return "\n".join(rows) + "\n"


def scored(rows: list[dict]) -> list[tuple[float, float]]:
    return [(row["minutes"], row["psnr"]) for row in rows if row.get("psnr") is not None]


def draw(curves: dict[tuple[str, int], list[dict]], path: Path) -> None:
    figure = Figure((9, 6), layout="constrained")
    axes = figure.subplots()
    numbers: dict[str, int] = {}
    for (name, _), rows in curves.items():
        label = name if name not in numbers else "_"  # one entry of the legend for all seeds
        round_of_colours, colour = divmod(numbers.setdefault(name, len(numbers)), 10)
        look = dict(linestyle=LINES[round_of_colours], color=f"C{colour}", marker=".")
        axes.plot(*zip(*scored(rows), strict=True), **look, label=label)
    axes.set(xlabel="minutes", ylabel="PSNR, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-dir", type=Path, nargs="+", required=True)
    parser.add_argument("--valid-dir", type=Path, required=True, help="images of the table")
    parser.add_argument("--minutes", type=float, default=20, help="of each variant and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=0, help="as of train.py")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/recipe"))
    parser.add_argument(
        "--flags",
        nargs=argparse.REMAINDER,
        default=[],
        help="train.py's, for all variants; the rest of the line",
    )
    arguments = parser.parse_args()
    # train.py is run in another folder than this one.
    arguments.output = arguments.output.resolve()
    arguments.train_dir = [folder.resolve() for folder in arguments.train_dir]
    arguments.valid_dir = arguments.valid_dir.resolve()
    return arguments


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        train_here(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()

"""From SRGAN to ESRGAN, one setting at a time: the ladder of the paper's figure 8.

    python benchmarks/ablation.py [--steps 50] [--train-dir DIR ...] [--valid-dir DIR] [-o FOLDER]

Each rung is a run of train.py, PSNR phase and GAN phase, whose settings differ from those of the
rung before by what the rung is called. The same command goes on where it was stopped; for other
images take another FOLDER. It ends in FOLDER/ablation.md, a table, and a labelled picture strip of
each validation image.

50 steps show that the ladder works, not which rung is better: its authors took 1.4 million.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset import write_demo_photographs
from images.files import write_image
from images.names import longest_name
from images.packs import Pack, pack_folder
from images.resize import imresize
from images.strips import labelled_strip
from training.validation import Scores, chosen, mean_scores, score, strip_names
from upscaling.tiles import upscale
from utils import Bar
from weights import load_generator

ROOT = Path(__file__).resolve().parents[1]
SCALE = 4
SIDE = 256  # pixels around the centre that a strip shows

# What the rungs have in common, at a size that a CPU trains.
COMMON = [
    *("--scale", str(SCALE), "--batch-size", "8", "--psnr.patch", "96", "--gan.patch", "96"),
    *("--psnr.lr", "4e-4", "--psnr.milestones", "--gan.milestones"),
]
SRGAN = {
    "generator": "srresnet",
    "features": "64",
    "blocks": "16",
    "batch-norm": "true",
    "vgg-before-activation": "false",
    "relativistic": "false",
}
RUNGS = {  # label -> what it changes
    "1 SRGAN": {},
    "2 no batch norm": {"batch-norm": "false"},
    "3 before activation": {"vgg-before-activation": "true"},
    "4 relativistic": {"relativistic": "true"},
    # About as many parameters: 23 blocks of 64 features are ten times as many.
    "5 RRDB": {"generator": "rrdb", "features": "32", "blocks": "4"},
}


def main() -> None:
    arguments = parse_args()
    if arguments.train_dir is None:
        photographs = arguments.output / "photographs"
        write_demo_photographs(photographs)
        arguments.train_dir, arguments.valid_dir = [photographs / "train"], photographs / "valid"
    settings = dict(SRGAN)
    files: dict[str, Path] = {}
    for number, (label, changes) in enumerate(RUNGS.items(), start=1):
        settings |= changes
        print(f"\n{label}  ({number} of {len(RUNGS)})", flush=True)
        files[label] = train_rung(number, settings, arguments)
    table = compare(files, pack_folder(arguments.valid_dir, SCALE), arguments.output)
    (arguments.output / "ablation.md").write_text(table)
    print("", table, f"Table and strips are in {arguments.output}", sep="\n")


def train_rung(number: int, settings: dict[str, str], arguments: argparse.Namespace) -> Path:
    """Run train.py, or what is left of its run; returns the generator it ends with."""
    name = f"rung_{number}_{arguments.steps}_steps"
    command = [sys.executable, str(ROOT / "train.py"), "--name", name]
    # train.py writes to checkpoints/ of the folder it runs in.
    arguments.output.mkdir(parents=True, exist_ok=True)
    run_to_its_end([*command, *flags(settings, arguments)], arguments.output)
    return arguments.output / "checkpoints" / name / "gan.safetensors"


def run_to_its_end(command: list[str], folder: Path) -> None:
    """Run a command that is train.py in a folder; Ctrl-C lets it save, and then ends this, too."""
    process = subprocess.Popen(command, cwd=folder)
    status = None
    while status is None:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            continue  # train.py was interrupted too: it saves first
    if status:
        program = Path(sys.argv[0]).name
        sys.exit(f"{program}: train.py ended with status {status}; the same command goes on")


def flags(settings: dict[str, str], arguments: argparse.Namespace) -> list[str]:
    """A rung's command line for train.py."""
    steps = str(arguments.steps)
    return [
        *COMMON,
        *(part for key, value in settings.items() for part in (f"--{key}", value)),
        *("--train-dir", *map(str, arguments.train_dir), "--valid-dir", str(arguments.valid_dir)),
        *("--psnr.steps", steps, "--gan.steps", steps, "--val-every", steps, "--save-every", "25"),
        *("--vgg-weights", arguments.vgg_weights, "--workers", "0"),
    ]


def compare(files: dict[str, Path], valid: Pack, output: Path) -> str:
    """Draw the strips; returns the table in Markdown."""
    nets = {label: load_generator(path) for label, path in files.items()}
    scores: dict[str, list[Scores]] = {label: [] for label in ("bicubic", *nets)}
    names = strip_names(valid, longest_name(output) - len(".png"))
    for i in Bar(chosen(valid, len(valid)), desc="comparing", unit="image"):
        low_res, high_res = valid.low_res(i), valid.high_res(i)
        pictures = {"bicubic": imresize(low_res, SCALE)}
        for label, net in nets.items():
            pictures[label] = upscale(net, low_res, tile=256)
        for label, picture in pictures.items():
            scores[label].append(score(picture, high_res, SCALE))
        strip = labelled_strip(pictures | {"HR": high_res}, SIDE)
        write_image(strip, output / f"{names[i]}.png")
    rows = ["| rung | parameters | PSNR, dB | SSIM |", "|---|---|---|---|"]
    for label, scored in scores.items():
        size = f"{sum(p.numel() for p in nets[label].parameters()):,}" if label in nets else ""
        mean = mean_scores(scored)
        rows.append(f"| {label} | {size} | {mean['psnr']:.2f} | {mean['ssim']:.4f} |")
    return "\n".join(rows) + "\n"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50, help="of each phase of each rung")
    parser.add_argument("--train-dir", type=Path, nargs="+", help="default: demo photographs")
    parser.add_argument("--valid-dir", type=Path, help="images of the table and the strips")
    parser.add_argument("--vgg-weights", default="random", help="as of train.py")
    parser.add_argument("-o", "--output", type=Path, default=Path("results/ablation"))
    arguments = parser.parse_args()
    if arguments.steps < 1:
        parser.error("--steps has to be at least 1")
    if (arguments.train_dir is None) != (arguments.valid_dir is None):
        parser.error("give both --train-dir and --valid-dir, or neither")
    # train.py is run in another folder than this one.
    if Path(arguments.vgg_weights).is_file():
        arguments.vgg_weights = str(Path(arguments.vgg_weights).resolve())
    arguments.output = arguments.output.resolve()
    if arguments.train_dir:
        arguments.train_dir = [folder.resolve() for folder in arguments.train_dir]
        arguments.valid_dir = arguments.valid_dir.resolve()
    return arguments


if __name__ == "__main__":
    main()

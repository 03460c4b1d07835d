"""How cost grows: upscaling over pixels and over processes, packing over images, resuming.

    python benchmarks/growth.py [--sides 256 512 1024 2048] [--json FILE] [--plot FILE]

It runs test.py and train.py as people do, each in a process of its own, on images it makes, with a
small network (32 features, 4 blocks, x4). It needs requirements-dev.txt and Linux or macOS.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.figure
from speed import ROOT, SCALE, write_photographs

sys.path.insert(0, str(ROOT))

from images.packs import pack_folder
from model import RRDBNet
from weights import save_generator

FEATURES, BLOCKS = 32, 4
WHOLE_LIMIT = 1024  # larger images are upscaled in tiles only: whole, they fill the memory


def main() -> None:
    arguments = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_generator(RRDBNet(features=FEATURES, blocks=BLOCKS), folder / "net.safetensors")
        table = {
            "pixels": over_pixels(folder, arguments.sides),
            "processes": over_processes(folder),
            "packing": [packing(folder, *size) for size in ((321, 481, 24), (1356, 2040, 6))],
            "resuming": resuming(folder),
        }
    draw(table["pixels"], arguments.plot)
    arguments.json.write_text(json.dumps(table, indent=2) + "\n")
    print(f"Saved: {arguments.plot}, {arguments.json}")


# Starts a command and tells the most memory it took, in the unit of ru_maxrss. It is a process of
# its own, for that number begins at what the starting process has: here, all of torch.
LAUNCHER = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print("ru_maxrss", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def timed(folder: Path, *command: str) -> tuple[float, float, str]:
    """A Python command's seconds, the GiB it took at most, and what it printed."""
    launched = [sys.executable, "-c", LAUNCHER, sys.executable, *command]
    begin = time.perf_counter()
    done = subprocess.run(
        launched, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    seconds = time.perf_counter() - begin
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = int(re.search(r"ru_maxrss (\d+)", done.stdout)[1])
    return seconds, peak * unit / 2**30, done.stdout


def upscaling(photographs: str, *flags: str) -> list[str]:
    options = ["--weights", "net.safetensors", "-o", f"results_{photographs}"]
    return [str(ROOT / "test.py"), photographs, *options, *flags]


def over_pixels(folder: Path, sides: list[int]) -> list[dict]:
    rows = []
    for side in sides:
        write_photographs(folder / str(side), side, side, 1)
        for tiles in ("auto", "0") if side <= WHOLE_LIMIT else ("auto",):
            command = upscaling(f"{side}/high", "--tile", tiles)
            seconds, memory, _ = timed(folder, *command)
            rows.append(dict(side=side, tile=tiles, seconds=seconds, memory=memory))
            print(f"{side}x{side}, --tile {tiles}: {seconds:.1f} s, {memory:.2f} GiB", flush=True)
    return rows


def over_processes(folder: Path) -> list[dict]:
    """torchrun shares the cores out: on one machine without GPUs, more processes gain little."""
    write_photographs(folder / "many", 256, 256, 16)
    rows = []
    for count in (1, 2):
        torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}"]
        _, _, text = timed(folder, *torchrun, *upscaling("many/high"))
        speed = float(re.search(r"([\d.]+) megapixels/s", text)[1]) * 1e6 / (256 * SCALE) ** 2
        rows.append(dict(processes=count, images_per_second=speed))
        print(f"{count} processes: {speed:.2f} images/s of 256x256", flush=True)
    return rows


def packing(folder: Path, height: int, width: int, count: int) -> dict:
    images = folder / f"packed_{width}"
    write_photographs(images, height, width, count)
    begin = time.perf_counter()
    pack_folder(images / "high", SCALE)
    seconds = (time.perf_counter() - begin) / count
    size = sum(file.stat().st_size for file in (images / "high").glob("esrgan-packed*")) / count
    print(f"packing {width}x{height}: {seconds:.2f} s and {size / 1e6:.1f} MB an image", flush=True)
    return dict(width=width, height=height, seconds=seconds, bytes=size)


def resuming(folder: Path) -> dict:
    """Seconds of a command that goes on for one step, start-up included."""
    photographs = ["--train-dir", "packed_481/high", "--valid-dir", ""]
    network = ["--features", str(FEATURES), "--blocks", str(BLOCKS), "--workers", "0"]
    command = [str(ROOT / "train.py"), *photographs, *network, "--gan.steps", "0"]
    timed(folder, *command, "--psnr.steps", "1")
    seconds, _, text = timed(folder, *command, "--psnr.steps", "2")
    assert "Going on from" in text
    print(f"resuming for one step: {seconds:.1f} s", flush=True)
    return dict(seconds=seconds)


def draw(rows: list[dict], path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(8, 3), layout="constrained")
    panels = figure.subplots(1, 2)
    for tiles, label in (("auto", "in tiles (the default)"), ("0", "whole image")):
        chosen = [row for row in rows if row["tile"] == tiles]
        megapixels = [row["side"] ** 2 / 1e6 for row in chosen]
        for panel, key in zip(panels, ("seconds", "memory"), strict=True):
            panel.plot(megapixels, [row[key] for row in chosen], marker="o", label=label)
    for panel, key in zip(panels, ("seconds, start-up included", "peak memory, GiB"), strict=True):
        panel.set(xlabel="megapixels of input", ylabel=key, ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.suptitle(f"Upscaling x4 on a CPU: {FEATURES} features, {BLOCKS} blocks")
    figure.savefig(path, dpi=100)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048])
    here = Path(__file__).resolve().parent
    parser.add_argument("--json", type=Path, metavar="FILE", default=here / "growth.json")
    parser.add_argument("--plot", type=Path, metavar="FILE", default=here / "growth.png")
    return parser.parse_args()


if __name__ == "__main__":
    main()

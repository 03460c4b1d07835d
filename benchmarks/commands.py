"""Whole commands, from their start to their last file, beside what people would run instead.

    python benchmarks/commands.py [--repeat 3] [--rows five-6 textures] [--json FILE]

The peers are the programs of benchmarks/peers.py; those whose packages are not installed are left
out, by name. All commands of a row take turns, and their medians are compared: on a busy machine
only the ratios mean something. Importing torch, which test.py and the official way have to wait
for, is measured too, and taken off both. It takes 40 minutes on 2 cores.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from images.files import write_image
from model import RRDBNet
from upscaling.devices import has_native_bf16
from utils import usable_cores
from weights import load_generator, save_generator

ROOT = Path(__file__).resolve().parents[1]
# Height and width of Set5's low-resolution images at x4.
SET5 = [(128, 128), (72, 72), (64, 64), (70, 70), (86, 57)]


@dataclass(frozen=True)
class Row:
    """Pictures, the network that enlarges them, and the side of the peers' tiles."""

    what: str
    sizes: list[tuple[int, int]]
    blocks: int = 0  # of 64 features; 0: the network in the box
    tile: int = 0


ROWS = {
    "five-6": Row("five of Set5's sizes, 6 blocks", SET5, 6),
    "five-23": Row("five of Set5's sizes, 23 blocks", SET5, 23),
    "textures": Row("300 textures of 64x64, the box's network", [(64, 64)] * 300),
    "photograph": Row("one of 1920x1080, the box's network", [(1080, 1920)], tile=512),
}
MODELS = {"official": ".pth", "onnxruntime": ".onnx", "openvino": ".onnx", "ncnn": ".param"}


def main() -> None:
    arguments = parse_args()
    print(*describe_machine(), "", sep="\n")
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.rows:
            seconds[name] = measure(ROWS[name], Path(folder, name), arguments)
            show(described(ROWS[name], arguments.most), seconds[name])
    if arguments.json:
        arguments.json.write_text(json.dumps(seconds, indent=2) + "\n")
        print(f"Saved: {arguments.json}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3, help="of each command")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--most", type=int, help="pictures of a row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save all seconds here, too")
    return parser.parse_args()


def describe_machine() -> list[str]:
    packages = [name for name in MODELS if name != "official"]
    engines = [f"{name} {version(name)}" for name in packages if find_spec(name)]
    missing = [name for name in packages if not find_spec(name)]
    bf16 = "native" if has_native_bf16(torch.device("cpu")) else "none"
    return [
        f"machine: {platform.machine()}, {usable_cores()} of {os.cpu_count()} cores, bf16: {bf16}",
        f"versions: Python {platform.python_version()}, torch {torch.__version__}",
        f"peers: {', '.join(engines)}; not installed: {', '.join(missing) or 'none'}",
    ]


def measure(row: Row, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each command."""
    rng, sizes = np.random.default_rng(0), row.sizes[: arguments.most]
    for i, (height, width) in enumerate(sizes):
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        write_image(smooth, folder / "in" / f"{i:03}.png")
    models = write_models(row, folder)
    ours = [str(ROOT / "test.py"), str(folder / "in"), "--weights", str(models["ours"]), "-o"]
    peers = str(ROOT / "benchmarks" / "peers.py")
    commands = {"import torch": ["-c", "import torch"], "ours": ours}
    if find_spec("ncnn"):
        commands["ours by ncnn"] = [ours[0], "--engine", "ncnn", *ours[1:]]
    for engine in MODELS:
        if engine in models:
            tile = ["--tile", str(row.tile)]
            commands[engine] = [peers, *tile, engine, str(models[engine]), str(folder / "in")]
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.repeat):
        for name, command in commands.items():
            shutil.rmtree(folder / "out", ignore_errors=True)
            out = [] if name == "import torch" else [str(folder / "out")]
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command, *out], check=True, capture_output=True)
            times[name].append(time.perf_counter() - begin)
            if out and len([*(folder / "out").glob("*.png")]) != len(sizes):
                sys.exit(f"{name} did not write all")
    return {name: statistics.median(values) for name, values in times.items()}


def write_models(row: Row, folder: Path) -> dict[str, Path]:
    """One network in the file of each engine that is installed, and in ours."""
    torch.manual_seed(0)
    net = RRDBNet(blocks=row.blocks) if row.blocks else load_generator("compact_x4_psnr")
    files = {"ours": folder / "net.safetensors", "official": folder / "net.pth"}
    save_generator(net, files["ours"])
    torch.save(net.state_dict(), files["official"])
    for engine, suffix in MODELS.items():
        if engine in files or not find_spec(engine):
            continue
        files[engine] = folder / f"net-x4{suffix}"
        if not files[engine].exists():
            to = suffix[1:].replace("param", "ncnn")
            convert = [str(ROOT / "weights.py"), "convert", str(files["ours"]), "--to", to]
            command = [sys.executable, *convert, "-o", str(files[engine])]
            subprocess.run(command, check=True, capture_output=True)
    return files


def described(row: Row, most: int | None) -> str:
    """What is measured, and how many of it where not all are."""
    count = len(row.sizes[:most])
    return row.what if count == len(row.sizes) else f"{row.what}, {count} of them"


def show(what: str, seconds: dict[str, float]) -> None:
    """Torch's import is taken off where there is one."""
    start = seconds["import torch"]
    net = {
        name: value - start * name.startswith(("ours", "official"))
        for name, value in seconds.items()
    }
    print(f"{what} (torch takes {start:.2f} s to import)")
    for name, value in net.items():
        if name != "import torch":
            print(f"  {name:14} {value:9.2f} s  {value / net['ours']:6.2f} times ours", flush=True)


if __name__ == "__main__":
    main()

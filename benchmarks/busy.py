"""What other processes on the same cores cost: upscaling, training's two passes, ncnn's upscaling.

    python benchmarks/busy.py [--rounds 3] [--seconds 3]

Each cell is a process of its own, alone and beside others: 2 or 4 that compute and never wait, or
one like itself. `torch` is what torch does by itself, `ours` with what our commands do before they
import it (`utils.prepare_for_torch`); ncnn is what a user would run instead. All cells take turns,
and medians of the rounds are compared: only the ratios mean something. It takes 10 minutes.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils import Bar, prepare_for_torch

ROWS = [
    *itertools.product(("upscale 64", "PSNR step"), ("torch", "ours")),
    ("ncnn 64", "ours"),
]
SPIN = "while True: pass"
BESIDE = {"alone": [], "2 that spin": [SPIN] * 2, "4 that spin": [SPIN] * 4, "its like": [""]}


def main() -> None:
    arguments = parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.seconds))
        return
    cells: dict[tuple, list[float]] = {}
    turns = itertools.product(range(arguments.rounds), BESIDE, ROWS)
    for _, beside, (work, wait) in Bar([*turns], unit="cell"):
        seconds = beside_others(beside, work, wait, arguments.seconds)
        cells.setdefault((work, wait, beside), []).append(seconds)
    print(f"| | | {' | '.join(BESIDE)} |\n|---|---|{'---|' * len(BESIDE)}")
    for work, wait in ROWS:
        times = [statistics.median(cells[work, wait, beside]) for beside in BESIDE]
        shown = " | ".join(f"{t * 1000:.0f} ms, {t / times[0]:.1f}" for t in times)
        print(f"| {work} | {wait} | {shown} |")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each cell")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser.parse_args()


def beside_others(beside: str, work: str, wait: str, seconds: float) -> float:
    """Seconds of one turn of the work, beside others that run all the while."""
    environment = os.environ | {"WAIT": wait}
    command = [sys.executable, __file__, "--measure", work, "--seconds"]
    programs = [["-c", program] for program in BESIDE[beside] if program]
    others = [subprocess.Popen([sys.executable, *program]) for program in programs]
    if beside == "its like":
        endless = [*command, "1000"]
        others = [subprocess.Popen(endless, env=environment, stdout=subprocess.DEVNULL)]
    try:
        done = subprocess.run(
            [*command, str(seconds)], env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout)


def measure(work: str, seconds: float) -> float:
    """The median of as many turns as fit; torch is imported here, after the environment is set."""
    if os.environ["WAIT"] == "ours":
        prepare_for_torch()
    turn = turn_of(work)
    turn()
    turns, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns) < 3:
        begin = time.perf_counter()
        turn()
        turns.append(time.perf_counter() - begin)
    return statistics.median(turns)


def turn_of(work: str) -> Callable[[], object]:
    import numpy as np
    import torch

    from weights import load_generator

    net = load_generator("compact_x4_psnr")
    if work == "PSNR step":
        net.train()
        low_res = torch.rand(8, 3, 24, 24)
        return lambda: net(low_res).mean().backward()

    from formats.ncnn import ncnn_program
    from upscaling.ncnn_engine import NcnnNetwork
    from upscaling.upscaler import Upscaler

    engine, side = work.split()
    if engine == "ncnn":
        net = NcnnNetwork(net, ncnn_program(net, half=False))
    upscaler = Upscaler(net, "cpu", "fp32")
    image = np.random.default_rng(0).integers(0, 256, (int(side), int(side), 3), np.uint8)
    return lambda: upscaler(image)


if __name__ == "__main__":
    main()

"""Speed of upscaling and of training, beside the reference implementation's, in one run.

    python benchmarks/speed.py [--features 64] [--blocks 4] [--repeat 5] [--json FILE]

The peer is spandrel's ESRGAN network, which computes what the official code does, driven as that
code and BasicSR's drive theirs: fp32, NCHW, eager, the whole image at once; pairs of PNG files are
decoded for each crop. It needs requirements-dev.txt, and about 10 minutes on 2 cores.

All repetitions of a row take turns, and their medians are compared: on a busy machine only the
ratios mean something. Both sides get the same losses, discriminator and random VGG19.
"""

import argparse
import dataclasses
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import Config, Degradation, Phase
from dataset import Crops, CropStream, batches
from images.degradation import Step, draw_steps
from images.files import write_image
from images.packs import pack_folder
from images.resize import imresize
from loss import VGGFeatures
from model import RRDBNet, VGGDiscriminator
from train import Learner
from training.monitor import peak_memory
from training.ranks import Ranks
from upscaling.devices import autocast, choose_device, choose_precision, place
from upscaling.tiles import upscale
from utils import usable_cores

ROOT = Path(__file__).resolve().parents[1]
SCALE, PATCH, BATCH, GAN_BATCH = 4, 128, 16, 8
MATRIX = 4096  # side of the product that tells what the hardware can do
MEMORY_SIDES = (512, 1024)
DEGRADED = 100  # crops, of which each draws other steps
PHOTOGRAPHS = ((321, 481, 24), (1356, 2040, 6))  # height, width, how many
PSNR_PHASE = Phase()
GAN_PHASE = Config().gan


def main() -> None:
    arguments = parse_args()
    device = choose_device("auto")
    dtype = choose_precision("auto", device)
    header = describe_machine(device, dtype, arguments)
    print(*(f"{key}: {value}" for key, value in header.items()), "", sep="\n")
    rows: list[dict] = []

    def show(name: str, unit: str, peer: float, ours: float, more_is_better: bool) -> None:
        ratio = ours / peer if more_is_better else peer / ours
        rows.append(dict(row=name, unit=unit, peer=peer, ours=ours, ratio=ratio))
        print(f"{name:44} {peer:10.3f} {ours:10.3f} {unit:10} {ratio:8.2f}", flush=True)

    print(f"{'':44} {'peer':>10} {'ours':>10} {'':10} {'times as good':>8}")
    rate = matmul_rate(device, dtype, arguments.repeat)
    for side in (96, 128, 256):
        seconds = inference(side, device, dtype, arguments)
        for label in ("fp32", "fastest"):
            show(f"upscale {side}x{side}, {label}", "s", seconds["peer"], seconds[label], False)
        achieved = convolution_flops(arguments, side, device) / seconds["fastest"]
        header[f"share of the matmul rate at {side}x{side}"] = round(achieved / rate, 3)
    for name, phase, batch in (("PSNR", PSNR_PHASE, BATCH), ("GAN", GAN_PHASE, GAN_BATCH)):
        seconds = training(phase, batch, device, dtype, arguments)
        for label in ("fp32", "fastest"):
            row = f"{name} step, batch {batch}, crop {PATCH}, {label}"
            show(row, "s", seconds["peer"], seconds[label], False)
    for height, width, count in PHOTOGRAPHS:
        speeds = reading(height, width, count, arguments.repeat)
        show(f"crops of {width}x{height} images", "pairs/s", *speeds, True)
    header |= degrading(arguments.repeat)
    if device.type == "cpu":
        for side in MEMORY_SIDES:
            memory = [peak_of(who, side, arguments) for who in ("peer", "ours")]
            show(f"peak memory, {side}x{side}, whole process", "GiB", *memory, False)
    for script in ("test.py", "train.py"):
        header[f"{script} --help, seconds"] = round(start_up(script, arguments.repeat), 2)

    print("", f"matmul rate: {rate / 1e12:.2f} TFLOP/s in {dtype}", sep="\n")
    print(*(f"{key}: {value}" for key, value in list(header.items())[5:]), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(dict(machine=header, rows=rows), indent=2) + "\n")
        print(f"Saved: {arguments.json}")


def describe_machine(device: torch.device, dtype: torch.dtype, arguments) -> dict:
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device} ({name}), {usable_cores()} cores, {torch.get_num_threads()} threads",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "precision": f"fastest is {dtype}",
        "network": f"RRDBNet x4, {arguments.features} features, {arguments.blocks} blocks",
        "repetitions": arguments.repeat,
    }


def medians(calls: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Seconds of each call; they take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for count in range(repeat + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if count > 0:
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peer_network(arguments) -> nn.Module:
    return ESRGAN(num_filters=arguments.features, num_blocks=arguments.blocks, scale=SCALE)


def our_network(arguments, device: torch.device) -> nn.Module:
    return place(RRDBNet(features=arguments.features, blocks=arguments.blocks), device)


# -------------------------------------------------------------------------------------- upscaling


def inference(side: int, device: torch.device, dtype: torch.dtype, arguments) -> dict[str, float]:
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    theirs, ours = peer_network(arguments).to(device).eval(), our_network(arguments, device).eval()

    def fastest() -> None:
        with autocast(device, dtype):
            upscale(ours, image)

    calls = {
        "peer": lambda: upscale_as_the_official_test(theirs, image, device),
        "fp32": lambda: upscale(ours, image),
        "fastest": fastest,
    }
    return medians(calls, arguments.repeat)


def upscale_as_the_official_test(
    net: nn.Module, image: np.ndarray, device: torch.device
) -> np.ndarray:
    low_res = torch.from_numpy(np.transpose(image / 255.0, (2, 0, 1))).float()[None].to(device)
    with torch.no_grad():
        output = net(low_res).squeeze().float().cpu().clamp_(0, 1).numpy()
    return (np.transpose(output, (1, 2, 0)) * 255.0).round().astype(np.uint8)


def convolution_flops(arguments, side: int, device: torch.device) -> int:
    """Of one upscaling by our network, as torch counts them; every pixel costs the same."""
    net = our_network(arguments, device)
    with FlopCounterMode(display=False) as counter:  # with gradients, without Winograd
        net(torch.zeros(1, 3, 8, 8, device=device))
    return counter.get_total_flops() // 8**2 * side**2


def matmul_rate(device: torch.device, dtype: torch.dtype, repeat: int) -> float:
    """Operations a second of a large square matrix product: what the hardware can do."""
    a, b = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    return 2 * MATRIX**3 / medians({"matmul": lambda: a @ b}, repeat)["matmul"]


def peak_of(who: str, side: int, arguments) -> float:
    """GiB that a process of its own takes at most to upscale one image."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(upscale_once, who, side, arguments).result()


def upscale_once(who: str, side: int, arguments) -> float:
    """Ours in tiles of 256 pixels, of which test.py takes up to 384 on a CPU."""
    device = torch.device("cpu")
    image = np.zeros((side, side, 3), np.uint8)
    if who == "peer":
        upscale_as_the_official_test(peer_network(arguments).eval(), image, device)
    else:
        with autocast(device, choose_precision("auto", device)):
            upscale(our_network(arguments, device).eval(), image, 256)
    return peak_memory(device)


# --------------------------------------------------------------------------------------- training


def training(
    phase: Phase, batch: int, device: torch.device, dtype: torch.dtype, arguments
) -> dict[str, float]:
    """Seconds of a step: the peer's, and ours in fp32 and in the fastest precision."""
    generator = torch.Generator().manual_seed(0)
    high_res = torch.rand(batch, 3, PATCH, PATCH, generator=generator)
    low_res = F.avg_pool2d(high_res, SCALE)
    calls = {
        "peer": peer_step(phase, low_res.to(device), high_res.to(device), arguments),
        "fp32": our_step(phase, low_res, high_res, device, torch.float32, arguments),
        "fastest": our_step(phase, low_res, high_res, device, dtype, arguments),
    }
    return medians(calls, arguments.repeat)


def our_step(
    phase: Phase, low_res: Tensor, high_res: Tensor, device: torch.device, dtype, arguments
) -> Callable[[], None]:
    """A step of train.py, from the bytes of a batch to the average."""
    vgg = place(VGGFeatures("random"), device) if phase.perceptual else None
    config = Config(psnr=dataclasses.replace(phase, patch=PATCH))
    learner = Learner(config, "psnr", our_network(arguments, device), vgg, dtype, Ranks())
    images = (low_res, high_res, high_res)
    parts = [Crops(*((image * 255).round().byte() for image in images))]
    return lambda: learner.step(parts, phase.lr)


def peer_step(phase: Phase, low_res: Tensor, high_res: Tensor, arguments) -> Callable[[], None]:
    """What BasicSR's SRModel and ESRGANModel do in a step (optimize_parameters), in its order."""
    device = low_res.device
    net_g, ema = (peer_network(arguments).to(device) for _ in range(2))
    net_d, vgg = VGGDiscriminator(PATCH).to(device), VGGFeatures("random").to(device)
    opt_g = torch.optim.Adam(net_g.parameters(), 1e-4)
    opt_d = torch.optim.Adam(net_d.parameters(), 1e-4)
    bce = nn.BCEWithLogitsLoss()

    def step() -> None:
        for parameter in net_d.parameters():
            parameter.requires_grad = False
        opt_g.zero_grad()
        output = net_g(low_res)
        loss = phase.pixel * F.l1_loss(output, high_res)
        if phase.perceptual:
            loss = loss + phase.perceptual * F.l1_loss(
                *(vgg(x)["conv5_4"] for x in (output, high_res))
            )
        if phase.adversarial:
            d_real, d_fake = net_d(high_res).detach(), net_d(output)
            real, fake = d_real - d_fake.mean(), d_fake - d_real.mean()
            adversarial = bce(real, torch.zeros_like(real)) + bce(fake, torch.ones_like(fake))
            loss = loss + phase.adversarial * adversarial / 2
        loss.backward()
        opt_g.step()
        if phase.adversarial:
            for parameter in net_d.parameters():
                parameter.requires_grad = True
            opt_d.zero_grad()
            d_fake, d_real = net_d(output).detach(), net_d(high_res)
            real = d_real - d_fake.mean()
            (bce(real, torch.ones_like(real)) / 2).backward()
            d_fake = net_d(output.detach())
            fake = d_fake - d_real.detach().mean()
            (bce(fake, torch.zeros_like(fake)) / 2).backward()
            opt_d.step()
        for averaged, parameter in zip(ema.parameters(), net_g.parameters(), strict=True):
            averaged.data.mul_(0.999).add_(parameter.data, alpha=0.001)

    return step


# ------------------------------------------------------------------------------------------- data


def reading(height: int, width: int, count: int, repeat: int) -> tuple[float, float]:
    """Pairs of crops a second in one process: the peer's, ours."""
    # Windows deletes no file that is still mapped.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_photographs(Path(folder), height, width, count)
        stream = CropStream([pack_folder(Path(folder, "high"), SCALE)], PATCH, seed=0)
        calls = {
            "peer": lambda: [decode_pair(Path(folder), i % count) for i in range(BATCH)],
            "ours": lambda: list(batches(stream, 0, 20, BATCH, workers=0, pin_memory=False)),
        }
        seconds = medians(calls, repeat)
    return BATCH / seconds["peer"], 20 * BATCH / seconds["ours"]


def degrading(repeat: int) -> dict[str, str]:
    """Crops a second of one process, with one thread of OpenCV's, at level strong; and what of
    that each kind of step takes."""
    height, width, count = PHOTOGRAPHS[0]
    threads = cv2.getNumThreads()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        write_photographs(Path(folder), height, width, count)
        packs = [pack_folder(Path(folder, "high"), SCALE)]
        plain, sharpened = (
            CropStream(packs, PATCH, 0, Degradation.of_level("strong", sharpen=sharpen))
            for sharpen in (False, True)
        )
        cv2.setNumThreads(0)
        calls = {
            "strong": lambda: [plain[k] for k in range(DEGRADED)],
            "strong, sharpened": lambda: [sharpened[k] for k in range(DEGRADED)],
        }
        seconds = medians(calls, repeat)
        costs = costs_of_steps(plain)
        cv2.setNumThreads(threads)
    rates = {f"degraded crops, {k}, a second": f"{DEGRADED / s:.1f}" for k, s in seconds.items()}
    taken = ", ".join(f"{kind} {ms:.2f}" for kind, ms in costs.items())
    return rates | {"steps of a degraded crop, ms": taken}


def costs_of_steps(stream: CropStream) -> dict[str, float]:
    """Milliseconds that each kind takes of a crop, on average over what is drawn for many."""
    spent: dict[str, float] = defaultdict(float)

    def timed(step: Step) -> Step:
        def run(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
            start = time.perf_counter()
            result = step(image, random)
            spent[type(step).__name__] += time.perf_counter() - start
            return result

        return run

    def drawn(*arguments) -> list[Step]:
        return [timed(step) for step in draw_steps(*arguments)]

    start = time.perf_counter()
    with unittest.mock.patch("dataset.draw_steps", drawn):
        for k in range(DEGRADED):
            stream.sample(k)
    spent["all"] = time.perf_counter() - start
    largest_first = sorted(spent.items(), key=lambda item: -item[1])
    return {kind: 1000 * seconds / DEGRADED for kind, seconds in largest_first}


def write_photographs(folder: Path, height: int, width: int, count: int) -> None:
    """Smooth noise with grain, which PNG packs about as well as photographs."""
    generator = np.random.default_rng(0)
    for i in range(count):
        coarse = generator.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        grain = generator.integers(0, 8, smooth.shape, np.uint8)
        high_res = cv2.add(smooth, grain)[: height // SCALE * SCALE, : width // SCALE * SCALE]
        write_image(high_res, folder / "high" / f"{i}.png")
        write_image(imresize(high_res, 1 / SCALE), folder / "low" / f"{i}.png")


def decode_pair(folder: Path, i: int) -> tuple[Tensor, Tensor]:
    """A sample of BasicSR's PairedImageDataset: two files decoded, one crop of each, a flip."""
    high_res = cv2.imread(str(folder / "high" / f"{i}.png")).astype(np.float32) / 255
    low_res = cv2.imread(str(folder / "low" / f"{i}.png")).astype(np.float32) / 255
    side = PATCH // SCALE
    top = np.random.randint(low_res.shape[0] - side + 1)
    left = np.random.randint(low_res.shape[1] - side + 1)
    low_res = low_res[top : top + side, left : left + side]
    high_res = high_res[SCALE * top :, SCALE * left :][:PATCH, :PATCH]
    if np.random.random() < 0.5:
        low_res, high_res = cv2.flip(low_res, 1), cv2.flip(high_res, 1)
    low_res, high_res = (cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in (low_res, high_res))
    low_res, high_res = (image.transpose(2, 0, 1).copy() for image in (low_res, high_res))
    return torch.from_numpy(low_res), torch.from_numpy(high_res)


def start_up(script: str, repeat: int) -> float:
    command = [sys.executable, str(ROOT / script), "--help"]
    calls = {script: lambda: subprocess.run(command, capture_output=True, check=True)}
    return medians(calls, repeat)[script]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=5, help="of each measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the table here, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()

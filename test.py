"""Upscale a photograph, or every photograph of a folder, with a trained generator.

    python test.py PHOTOS                           to results/, with the newest generator that was
                                                    trained here, or else the one in the box
    python test.py PHOTO.jpg -o out --weights checkpoints/demo/psnr.safetensors
    python test.py Set5/LR_bicubic/X4 --hr Set5/HR  a table of PSNR and SSIM beside bicubic's
    python test.py PHOTOS --compare                 also pictures side by side with bicubic
    python test.py PHOTOS --report                  also a page with a slider: results/index.html
    python test.py PHOTOS --format same --outscale 2 --skip-existing
    torchrun --nproc_per_node=4 test.py PHOTOS      shared among 4 GPUs
    python test.py PHOTOS --weights gan.safetensors --interpolate psnr.safetensors --alpha 0 0.5 1
                                                    only strips: from the PSNR network to the GAN

Exit status: 0 all upscaled, 1 some failed (the rest is done), 2 wrong usage.
"""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from imaging import Ensemble, PerChannel, imresize, labelled_strip, upscale
from pictures import (
    ImageError,
    Picture,
    bleed,
    find_images,
    read_image,
    read_picture,
    to_8_bits,
    write_image,
    write_picture,
)
from report import add_to_page, write_page
from scores import Metric, MetricError, as_text, load_metrics, rate, save_table
from utils import DeviceError, Ranks, autocast, choose_device, choose_precision, place
from weights import WeightsError, interpolate, load_generator

RUNS = Path("checkpoints")
IN_THE_BOX = Path(__file__).resolve().parent / "checkpoints" / "compact_x4_gan.safetensors"
COMPARED_SIDE = 1024  # --compare shows so many pixels around the centre of larger results
ALPHAS = (0, 0.2, 0.4, 0.6, 0.8, 1)  # of --interpolate
INTERPOLATED_SIDE = 512  # --interpolate shows so many pixels around the centre of larger results
CONTEXT = 32  # input pixels around what it shows, so that the networks see no border there
SMALLEST_TILE = 64  # twice the overlap of neighbouring tiles


class UsageError(ValueError):
    """A command line that cannot be carried out; no image has been written."""


@dataclass(frozen=True)
class Job:
    """One image to upscale."""

    source: Path
    target: Path
    comparison: Path | None  # where the side-by-side picture goes
    high_res: Path | None  # what the result is scored against


class Upscaler:
    """A network with what is needed to run it on any image: precision, tiles, output size."""

    def __init__(self, net: nn.Module, device: torch.device, arguments: argparse.Namespace):
        self.net = net
        self.device = device
        self.dtype = choose_precision(arguments.precision, device)
        self.automatic = arguments.precision == "auto"
        self.tile = choose_tile(net, device) if arguments.tile is None else arguments.tile
        self.batch = arguments.batch
        self.scale = arguments.outscale or net.scale

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3), uint8 or uint16, to (scale * H, scale * W, 3), rounded up."""
        result = self._run(image, self.dtype_for(image))
        if self.scale == self.net.scale:
            return result
        return self.cut(imresize(result, self.scale / self.net.scale), image)

    def dtype_for(self, image: np.ndarray) -> torch.dtype:
        """bf16 has 8 significant bits: in an image of 16, it would leave noise in the others."""
        return torch.float32 if self.automatic and image.dtype == np.uint16 else self.dtype

    def bicubic(self, image: np.ndarray) -> np.ndarray:
        """The same size by MATLAB's bicubic."""
        return self.cut(imresize(image, self.scale), image)

    def cut(self, result: np.ndarray, image: np.ndarray) -> np.ndarray:
        """To the size that belongs to `image`: 10 * 3.3 may come out as 33.000001, which is 34."""
        height, width = (math.ceil(side * self.scale - 1e-6) for side in image.shape[:2])
        return result[:height, :width]

    def _run(self, image: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """At the network's own scale; tiles shrink until they fit in memory."""
        try:
            with autocast(self.device, dtype):
                return upscale(self.net, image, self.tile, batch=self.batch)
        except FloatingPointError:
            if dtype == torch.float32:
                raise
            tqdm.write("not finite in half precision; once more in fp32")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or self.tile == SMALLEST_TILE:
                raise
            self.tile = max(SMALLEST_TILE, (self.tile or max(image.shape[:2])) // 2)
            self.batch = 1
            tqdm.write(f"not enough memory; going on with tiles of {self.tile} pixels")
            return self._run(image, dtype)
        return self._run(image, torch.float32)


@dataclass
class Results:
    """What came of the jobs of one process, or of all."""

    scores: list[dict] = field(default_factory=list)  # rows of the table
    failures: list[str] = field(default_factory=list)
    shown: list[dict] = field(default_factory=list)  # images of the page
    pixels: list[int] = field(default_factory=list)  # of each result
    skipped: list[Path] = field(default_factory=list)

    def of_all(self, ranks: Ranks) -> "Results":
        return Results(*(ranks.gather(getattr(self, column.name)) for column in fields(self)))


def main(ranks: Ranks) -> int:
    arguments = parse_args()
    weights = choose_weights(arguments)
    jobs = plan(arguments)
    device = choose_device(arguments.device, ranks.local)
    upscalers = {
        label: Upscaler(net, device, arguments)
        for label, net in load(weights, arguments, device).items()
    }
    upscaler = next(iter(upscalers.values()))
    metrics = load_metrics(arguments.metrics, device, arguments.hr is not None)
    if ranks.first:
        precision = str(upscaler.dtype).removeprefix("torch.")
        print(f"{weights} (x{upscaler.net.scale}) on {device} in {precision}")
        if weights == IN_THE_BOX:
            print("These are the weights in the box; --weights names others (README: Upscale).")

    began = time.perf_counter()
    own = work(jobs[ranks.rank :: ranks.count], upscalers, metrics, arguments, ranks.first)
    results = own.of_all(ranks)
    seconds = time.perf_counter() - began
    if not ranks.first:
        return 1 if results.failures else 0

    try:
        if (arguments.hr or arguments.metrics) and not arguments.interpolate:
            report(results.scores, arguments.output / "metrics.csv", upscaler.scale)
        if arguments.report:
            summary = f"{Path(weights).name}, x{upscaler.scale:g}, {len(results.shown)} images"
            page = write_page(arguments.output, results.shown, summary)
            print(f"Results beside bicubic, to compare by eye: {page}")
    except OSError as error:
        results.failures.append(f"the table or the page was not saved: {error}")
    for job in jobs:
        if arguments.hr and job.high_res is None:
            print(f"No partner in {arguments.hr}: {job.source}")
    for failure in results.failures:
        print(f"Failed: {failure}", file=sys.stderr)
    if results.skipped:
        print(f"{len(results.skipped)} images had a result already and were skipped")
    print(
        f"{len(results.pixels)} of {len(jobs) - len(results.skipped)} images upscaled, "
        f"{sum(results.pixels) / 1e6 / seconds:.2f} megapixels/s; "
        f"results are in {arguments.output}"
    )
    return 1 if results.failures else 0


def work(
    jobs: list[Job],
    upscalers: dict[str, Upscaler],
    metrics: dict[str, Metric],
    arguments: argparse.Namespace,
    show_progress: bool,
) -> Results:
    """While the network works on one image, the next is read and the last is written and scored."""
    results = Results()
    if arguments.skip_existing:
        done = {job.target for job in jobs if job.target.exists()}
        results.skipped = sorted(done)
        jobs = [job for job in jobs if job.target not in done]
    bar = tqdm(read_ahead(jobs), total=len(jobs), unit="image", disable=not show_progress)
    with ThreadPoolExecutor(1) as writer:
        unfinished: Future | None = None
        for job, reading in bar:
            bar.set_postfix_str(job.source.name)
            with failure_noted(job, results):
                picture = reading.result()
                if arguments.interpolate:
                    results.pixels.append(run_strip(job, picture.rgb, upscalers))
                    continue
                upscaler = upscalers["ours"]
                enlarged = enlarge(picture, upscaler)
                if arguments.check_tiles:
                    tqdm.write(f"{job.source}: {tile_difference(picture.rgb, upscaler)}")
                if unfinished:
                    unfinished.result()  # no more than one result waits in memory
                unfinished = writer.submit(
                    finish, job, picture, enlarged, upscaler, metrics, arguments, results
                )
        if unfinished:
            unfinished.result()
    return results


def read_ahead(jobs: list[Job]) -> Iterator[tuple[Job, Future]]:
    """Each job with its picture, and the next one's being read."""
    with ThreadPoolExecutor(1) as reader:
        pictures = (reader.submit(read_picture, job.source) for job in jobs)
        reading = next(pictures, None)
        for job in jobs:
            following = next(pictures, None)
            yield job, reading
            reading = following


@contextmanager
def failure_noted(job: Job, results: Results) -> Iterator[None]:
    """One file that cannot be read, does not fit in memory or cannot be written stops no other."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError) as error:
        results.failures.append(explain(job, error))


def load(
    weights: str | Path, arguments: argparse.Namespace, device: torch.device
) -> dict[str, nn.Module]:
    """The network, or those between two networks, by their labels in a strip."""
    net = load_generator(weights, scale=arguments.scale)
    nets = {"ours": net}
    if arguments.interpolate:
        psnr_net = load_generator(arguments.interpolate, scale=arguments.scale)
        alphas = arguments.alpha or ALPHAS
        nets = {f"alpha {alpha:g}": interpolate(psnr_net, net, alpha) for alpha in alphas}
    if net.in_channels not in (1, 3):
        raise UsageError(f"{weights} takes {net.in_channels} channels; images have 3")
    if net.in_channels == 1:
        nets = {label: PerChannel(net) for label, net in nets.items()}
    if arguments.ensemble:
        nets = {label: Ensemble(net) for label, net in nets.items()}
    return {label: place(net, device) for label, net in nets.items()}


def choose_tile(net: nn.Module, device: torch.device) -> int:
    """A tile whose activations take less than half of the memory that is free.

    Counted are three maps of all features in fp32, after the last enlargement; on a CPU the
    generator's end works in bands, and takes less.
    """
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    features = max(weight.shape[0] for weight in net.parameters())
    side = math.isqrt(free // 2 // (3 * 4 * features * net.scale**2))
    largest = 512 if device.type == "cuda" else 256  # beyond that it gets no faster
    return max(SMALLEST_TILE, min(side // 32 * 32, largest))


def finish(
    job: Job,
    picture: Picture,
    enlarged: Picture,
    upscaler: Upscaler,
    metrics: dict[str, Metric],
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    """Write, score, show."""
    with failure_noted(job, results):
        for remark in filter(None, (picture.remark, write_picture(enlarged, job.target))):
            tqdm.write(f"{job.source}: {remark}")
        # Without --hr, the metrics that need no true image judge every result.
        scored = job.high_res or (metrics and not arguments.hr)
        if scored or job.comparison or arguments.report:
            low_res, ours = to_8_bits(picture.rgb), to_8_bits(enlarged.rgb)
            pictures, score = {"bicubic": upscaler.bicubic(low_res), "ours": ours}, {}
            name = job.target.relative_to(arguments.output)
            if job.high_res:
                pictures["HR"] = read_high_res(job.high_res, ours.shape[:2], upscaler.scale)
            if scored:
                score = rate(low_res, pictures, upscaler.scale, metrics)
                results.scores.append({"image": name.as_posix()} | score)
            if arguments.report:
                results.shown.append(add_to_page(arguments.output, name, pictures, score))
            if job.comparison:
                size = ours.shape[1::-1]
                given = Image.fromarray(low_res).resize(size, Image.Resampling.NEAREST)
                strip = labelled_strip({"input": np.asarray(given)} | pictures, COMPARED_SIDE)
                write_image(strip, job.comparison)
        results.pixels.append(enlarged.rgb.shape[0] * enlarged.rgb.shape[1])


def enlarge(picture: Picture, upscaler: Upscaler) -> Picture:
    """Colour by the network, alpha by it too where it is neither 0 nor full."""
    if picture.alpha is None:
        rgb, alpha = upscaler(picture.rgb), None
    else:
        rgb = upscaler(bleed(picture.rgb, picture.alpha))
        # A network leaves a flat area almost as it is; of what is seen through, all of it.
        alpha = smooth = upscaler.bicubic(picture.alpha)
        top = np.iinfo(alpha.dtype).max
        if np.ptp(picture.alpha):
            sharp = upscaler(np.stack([picture.alpha] * 3, -1))
            sharp = (sharp.mean(-1) + 0.5).astype(alpha.dtype)
            alpha = np.where((smooth == 0) | (smooth == top), smooth, sharp)
    if picture.gray:
        rgb = np.repeat((rgb.mean(-1, keepdims=True) + 0.5).astype(rgb.dtype), 3, -1)
    return Picture(rgb, alpha, picture.gray, picture.profile)


def tile_difference(image: np.ndarray, upscaler: Upscaler) -> str:
    """How far the result in tiles is from the whole image's, in words."""
    with autocast(upscaler.device, upscaler.dtype_for(image)):
        whole = upscale(upscaler.net, image).astype(np.float64)
        tiled = upscale(upscaler.net, image, upscaler.tile, batch=upscaler.batch)
    difference = np.abs(whole - tiled) * 255 / np.iinfo(image.dtype).max
    return (
        f"tiles differ from the whole by at most {difference.max():.3g}/255, "
        f"{difference.mean():.2g}/255 on average"
    )


def run_strip(job: Job, image: np.ndarray, upscalers: dict[str, Upscaler]) -> int:
    """Write what each network makes of the centre of an image, side by side; returns its pixels."""
    image, scale = to_8_bits(image), next(iter(upscalers.values())).net.scale
    side = INTERPOLATED_SIDE // scale + 2 * CONTEXT
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    shown = image[top : top + side, left : left + side]
    pictures = {label: upscaler(shown) for label, upscaler in upscalers.items()}
    if job.high_res:
        size = (image.shape[0] * scale, image.shape[1] * scale)
        high_res = read_high_res(job.high_res, size, scale)[top * scale :, left * scale :]
        pictures["HR"] = high_res[: shown.shape[0] * scale, : shown.shape[1] * scale]
    strip = labelled_strip(pictures, INTERPOLATED_SIDE)
    write_image(strip, job.target)
    return strip.shape[0] * strip.shape[1]


def is_out_of_memory(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "allocate memory" in str(error)


def read_high_res(path: Path, size: tuple[int, int], scale: float) -> np.ndarray:
    """An HR image, less the pixels at the right and the bottom that make no whole LR pixel."""
    high_res = read_image(path)
    height, width = size
    surplus = (high_res.shape[0] - height, high_res.shape[1] - width)
    if not all(0 <= side < scale for side in surplus):
        raise ImageError(
            f"{path} is {high_res.shape[1]}x{high_res.shape[0]}; the result is {width}x{height}"
        )
    return high_res[:height, :width]


def explain(job: Job, error: Exception) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if is_out_of_memory(error):
        reason = f"not enough memory, even for tiles of {SMALLEST_TILE} pixels ({reason})"
    return reason if str(job.source) in reason else f"{job.source}: {reason}"


# --------------------------------------------------------------------------------------- planning


def plan(arguments: argparse.Namespace) -> list[Job]:
    """What is read from where and written to where, all of it checked before any work."""
    source, output, hr = arguments.input, arguments.output, arguments.hr
    if arguments.interpolate and (arguments.compare or arguments.report):
        raise UsageError("--interpolate writes strips of its own; leave --compare and --report out")
    if arguments.interpolate and arguments.outscale:
        raise UsageError("--interpolate shows the networks' own scale; leave --outscale out")
    if arguments.alpha and not arguments.interpolate:
        raise UsageError("--alpha needs --interpolate PSNR_WEIGHTS beside --weights GAN_WEIGHTS")
    if source.is_dir():
        # Results of an earlier call inside the input folder are no input.
        results = output.resolve() if output.resolve() != source.resolve() else None
        paths = [p for p in find_images(source) if results not in p.resolve().parents]
        root = source
    elif source.is_file():
        paths, root = [source], source.parent
    else:
        raise UsageError(f"{source}: no such file or folder")
    if not paths:
        raise UsageError(f"{source} holds no PNG, JPEG, WebP, BMP, TIFF or GIF image, at any depth")
    high_res = partners_in(hr) if hr else {}

    jobs = []
    for path in paths:
        relative = path.relative_to(root)
        kept = path.suffix.lower() if path.suffix.lower() != ".gif" else ".png"
        kind = kept if arguments.format == "same" else f".{arguments.format}"
        name = relative.with_name(path.stem + arguments.suffix + kind)
        target = output / "interpolated" / name if arguments.interpolate else output / name
        strip = output / "compare" / name.with_suffix(".png") if arguments.compare else None
        jobs.append(Job(path, target, strip, partner(relative, high_res)))
    refuse_overwriting(jobs)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the output folder {output} cannot be made: {error.strerror}") from error
    if not os.access(output, os.W_OK):
        raise UsageError(f"the output folder {output} is not writable; choose another with -o")
    return jobs


def partners_in(hr: Path) -> dict[Path, list[Path]]:
    """The HR images by where they lie in `hr` and their plain name."""
    if not hr.is_dir():
        raise UsageError(f"--hr {hr}: no such folder")
    found: dict[Path, list[Path]] = {}
    for path in find_images(hr):
        found.setdefault(path.relative_to(hr).parent / plain(path.stem), []).append(path)
    return found


def partner(name: Path, high_res: dict[Path, list[Path]]) -> Path | None:
    """The HR image of an LR image, at the same place or at the top; the very same name first."""
    for folder in (name.parent, Path()):
        alike = high_res.get(folder / plain(name.stem), [])
        if alike:
            return min(alike, key=lambda path: path.stem != name.stem)
    return None


def plain(stem: str) -> str:
    """`baby` of `babyx4`, `baby_LRBI_x4`, `baby_HR`, `baby_SRF_4_LR` and others of benchmarks."""
    marks = r"(?<=.)([_-]?x\d[a-z]?|[_-](lr[a-z]*|hr|gt|sr|srf_\d|bicubic))+$"
    return re.sub(marks, "", stem, flags=re.IGNORECASE)


def refuse_overwriting(jobs: list[Job]) -> None:
    written: dict[Path, Path] = {}
    read = {path.resolve() for job in jobs for path in (job.source, job.high_res) if path}
    for job in jobs:
        for target in filter(None, (job.target, job.comparison)):
            if target.resolve() in read:
                raise UsageError(f"{target} is an input; choose another output folder with -o")
            if target in written:
                raise UsageError(
                    f"{written[target]} and {job.source} would both become {target}; rename one"
                )
            written[target] = job.source


def choose_weights(arguments: argparse.Namespace) -> str | Path:
    """What was named, or else the newest that was trained here, or else those in the box."""
    weights = arguments.weights or newest_generator()
    if arguments.interpolate and not weights:
        raise UsageError("--interpolate PSNR_WEIGHTS goes with --weights GAN_WEIGHTS")
    return weights or IN_THE_BOX


def newest_generator() -> Path | None:
    """The generator that train.py wrote last."""
    found = [path for name in ("psnr", "gan") for path in RUNS.glob(f"*/{name}.safetensors")]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


# ---------------------------------------------------------------------------------- table, flags


def report(scores: list[dict], path: Path, scale: float) -> None:
    """Print the table, say how it was computed, and save it with all digits."""
    if not scores:
        print("No image was scored.")
        return
    table = save_table(scores, path)
    print(as_text(table))
    print(f"Protocol: 8-bit images, {math.ceil(scale)} pixels cropped from each side;", end=" ")
    if "psnr_y" in table[0]:
        print("PSNR in dB / SSIM, on Y (BT.601\nluma in [16, 235]) and on RGB;", end=" ")
        print("SSIM with an 11x11 Gaussian of sigma 1.5;", end=" ")
    print(f"bicubic is MATLAB's. Saved: {path}")
    if "lr_psnr" in table[0]:
        difference = table[-1]["lr_psnr"]
        print(f"Shrunk again, the results equal their inputs to {difference:.2f} dB (RGB).")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="test.py", description="Upscale images with a trained generator.", allow_abbrev=False
    )
    parser.add_argument("input", type=Path, help="an image, or a folder that is searched in depth")
    parser.add_argument("-o", "--output", type=Path, default=Path("results"))
    parser.add_argument(
        "--weights",
        metavar="FILE|NAME",
        help="a generator's file, or a published name such as RealESRGAN_x4plus, which is "
        "downloaded; default: what train.py wrote last, or else the compact GAN in checkpoints/",
    )
    parser.add_argument(
        "--scale", type=int, help="3, for weights whose file cannot tell x3 from x2"
    )
    parser.add_argument(
        "--interpolate",
        metavar="FILE|NAME",
        help="a PSNR network: write strips of the networks between it and the GAN in --weights",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        nargs="+",
        help="with --interpolate, where between the two: 0 is the PSNR network, 1 the GAN; "
        f"default: {' '.join(map(str, ALPHAS))}",
    )
    parser.add_argument(
        "--tile",
        type=tile_size,
        default="auto",
        metavar="auto|0|N",
        help="upscale in tiles of at most N input pixels each way; 0: the whole image at once",
    )
    parser.add_argument(
        "--batch", type=positive(int), default=1, metavar="N", help="tiles computed at once"
    )
    parser.add_argument(
        "--check-tiles", action="store_true", help="say how far tiles are from the whole image"
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpg", "webp", "same"),
        default="png",
        help="of the results; PNG keeps alpha and 16 bits, same is the input's",
    )
    parser.add_argument("--suffix", default="", help="goes behind each name: _x4")
    parser.add_argument(
        "--skip-existing", action="store_true", help="go on where an earlier call stopped"
    )
    parser.add_argument(
        "--outscale",
        type=positive(float),
        metavar="S",
        help="enlarge S times, by MATLAB's bicubic from the network's own scale",
    )
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="average 8 flips and rotations: slightly better, 8 times slower",
    )
    parser.add_argument(
        "--hr",
        type=Path,
        metavar="DIR",
        help="true HR images to score against: baby.png or baby_HR.png for babyx4.png and such",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="NAME",
        help="scores of pyiqa (pip install pyiqa) for the table: lpips dists niqe musiq ...",
    )
    parser.add_argument("--compare", action="store_true", help="pictures beside bicubic's, too")
    parser.add_argument(
        "--report", action="store_true", help="a page to compare with bicubic: index.html"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="default: auto, bf16 for 8-bit images where the hardware has it: of a trained "
        "network's values, 99.9%% are within 1/255 of fp32's",
    )
    return parser.parse_args()


def positive(kind: type) -> Callable[[str], float]:
    """A parser of numbers above 0."""

    def parse(text: str) -> float:
        number = kind(text)
        if not 0 < number < math.inf:
            raise ValueError
        return number

    parse.__name__ = f"positive {kind.__name__}"  # which argparse's message shows
    return parse


def tile_size(text: str) -> int | None:
    """None stands for auto."""
    if text == "auto":
        return None
    if not text.isdecimal() or 0 < int(text) < SMALLEST_TILE:
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, 0, or at least {SMALLEST_TILE}")
    return int(text)


if __name__ == "__main__":
    try:
        with Ranks.of_torchrun() as ranks:
            status = main(ranks)
        sys.exit(status)
    except (UsageError, DeviceError, WeightsError, MetricError) as error:
        print(f"test.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("test.py: interrupted; what was done is kept")

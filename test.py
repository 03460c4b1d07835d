"""Upscale a photograph, or every photograph of a folder, with a trained generator.

    python test.py PHOTOS                           to results/, with the newest generator that was
                                                    trained here, or else the one in the box
    python test.py PHOTO.jpg -o out --weights checkpoints/demo/psnr.safetensors
    python test.py Set5/LR_bicubic/X4 --hr Set5/HR  a table of PSNR and SSIM beside bicubic's
    python test.py PHOTOS --compare                 also pictures side by side with bicubic
    python test.py PHOTOS --report                  also a page with a slider: results/index.html
    python test.py PHOTOS --format same --outscale 2 --skip-existing
    python test.py -i PHOTO.jpg -o out.png -n RealESRGAN_x4plus -s 4
    python test.py PHOTOS --engine ncnn             computed by ncnn; with --device vulkan, by a GPU
    torchrun --nproc_per_node=4 test.py PHOTOS      shared among 4 GPUs

Exit status: 0 all upscaled, 1 some failed (the rest is done), 2 wrong usage.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from upscaling.flags import parse_args
from utils import (
    Bar,
    hear_kill,
    prepare_for_torch,
    prepare_output,
    printable,
    result_of,
    silence,
)

if __name__ == "__main__":  # --help and wrong flags are answered before torch takes its seconds
    prepare_output()
    parse_args()
    prepare_for_torch()

import torch
from tqdm import tqdm

from formats.ncnn import ncnn_program
from formats.published import DEFAULT, networks
from images.files import Picture, as_seen, to_8_bits, write_image
from images.opening import silence_pillow
from images.resize import part_by_nearest
from images.scores import Metric, MetricError, load_metrics, rate
from images.strips import centre_window, labelled_strip
from training.ranks import Ranks, end_process, is_lost_connection
from upscaling.devices import DeviceError, choose_device
from upscaling.inputs import UsageError, in_lines, make_output, read_high_res
from upscaling.jobs import (
    Job,
    neighbours,
    plan,
    refuse_large_result,
    refuse_long_name,
    refuse_neighbours,
)
from upscaling.ncnn_engine import NcnnNetwork, choose_gpu, import_ncnn
from upscaling.report import (
    page_image,
    refuse_among_pictures,
    refuse_foreign_page,
    refuse_foreign_table,
)
from upscaling.results import Results
from upscaling.saving import refuse_quality, save_result, without_metadata
from upscaling.upscaler import (
    CHANNELS,
    Upscaler,
    check_channels,
    ended_by_ctrl_c,
    enlarge,
    enlarge_together,
    with_visible_colours,
)
from weights import Generator, WeightsError, read_generator

A_WEEK = timedelta(days=7)  # the first process to be done waits for the last
COMPARED_SIDE = 1024  # --compare shows this many pixels around the centre of larger results
STRIP = ("input", "bicubic", "ours", "HR")  # from left to right
OTHER_PLACE = "another output folder with -o, or other names with --suffix _x4"


def main(ranks: Ranks) -> int:
    arguments = parse_args()
    Bar.silent = not ranks.first
    with silence() if arguments.quiet else nullcontext():
        return upscale_all(arguments, ranks)


def upscale_all(arguments: argparse.Namespace, ranks: Ranks) -> int:
    """Returns the exit status."""
    weights, given = arguments.weights or networks()[0], arguments.output
    jobs, others, arguments.output = plan(
        arguments.input,
        arguments.output,
        arguments.format,
        arguments.suffix,
        arguments.compare,
        arguments.hr,
        arguments.first_frame,
    )
    if not (arguments.suffix or arguments.skip_existing):
        refuse_neighbours(written(jobs, given), OTHER_PLACE)
    refuse_quality(jobs, arguments.quality)
    check_output(arguments, jobs)
    gpu = None
    if by_ncnn := arguments.engine == "ncnn":
        import_ncnn()  # before weights are downloaded in vain
        gpu = choose_gpu(ranks.count) if arguments.device == "vulkan" else None
        arguments.device, arguments.precision = "cpu", "fp32"  # torch only cuts tiles and scores
    device = choose_device(arguments.device, ranks.local)
    generator = read_generator(weights, arguments.scale)
    net = computed_by_ncnn(generator.net, weights, gpu) if by_ncnn else generator.net
    upscaler = build(net, weights, arguments, device)
    metrics = load_metrics(arguments.metrics, device, arguments.hr is not None)
    make_output(arguments.output)  # now that nothing is wrong with the command
    if ranks.first:
        place = f"{net.name} by ncnn" if isinstance(net, NcnnNetwork) else str(device)
        introduce(upscaler, f"{weights}{generator.part}", place)
        if weights == DEFAULT and not arguments.weights:
            print("These are the weights in the box; --weights names others (docs/weights.md).")

    # As the first process finds them: the others may have begun to write.
    found = there_already(jobs, given, arguments) if ranks.first else {}
    found = dict(ranks.gather([*found.items()]))
    left = [job for job in jobs if job.target not in found]
    done = {target for target, fault in found.items() if not fault}
    results, began = Results(), time.perf_counter()
    for line in filter(None, (*others, *found.values())) if ranks.first else ():
        results.fail(line)

    def end_with(results: Results) -> None:
        results.save(upscaler, weights, arguments)
        results.sum_up(jobs, done, time.perf_counter() - began, arguments)

    try:
        own = left[ranks.rank :: ranks.count]
        work(own, upscaler, metrics, arguments, results)
        results = Results(*(ranks.gather(each) for each in vars(results).values()))
    except KeyboardInterrupt:
        if ranks.first:
            end_with(results)
        raise
    if ranks.first:
        end_with(results)
    return 1 if results.failures else 0


def there_already(jobs: list[Job], named: Path, arguments: argparse.Namespace) -> dict[Path, str]:
    """Results that --skip-existing skips, and why that is a failure; mostly it is none.

    What lies beside its input without the strip that is wanted may be another photograph.
    """
    if not arguments.skip_existing:
        return {}
    found = dict.fromkeys(existing(jobs), "")
    others = [job for job in jobs if job.target not in found]
    faults = {} if arguments.suffix else dict(neighbours(written(others, named), OTHER_PLACE))
    return found | {job.target: faults[job.source] for job in others if job.source in faults}


def written(jobs: list[Job], named: Path) -> list[tuple[Path, Path]]:
    """Inputs, and where their results and strips go, but for a file that the user has named."""
    targets = [(job.source, path) for job in jobs for path in (job.target, job.comparison) if path]
    return [(source, path) for source, path in targets if path != named]


def check_output(arguments: argparse.Namespace, jobs: list[Job]) -> None:
    if arguments.report:
        refuse_foreign_page(arguments.output)
        refuse_among_pictures((job.target for job in jobs), arguments.output)
    if arguments.hr or arguments.metrics:
        refuse_foreign_table(arguments.output)


def introduce(upscaler: Upscaler, weights: str, place: str) -> None:
    """Say what computes, where and how."""
    precision = str(upscaler.dtype).removeprefix("torch.")
    print(printable(f"{weights} (x{upscaler.net.scale}) on {place} in {precision}"))
    if note := CHANNELS[upscaler.channels]:
        print(note)


def existing(jobs: list[Job]) -> list[Path]:
    """The results that are there already, with the strips that are wanted of them."""

    def is_there(job: Job) -> bool:
        return all(os.path.exists(path) for path in (job.target, job.comparison) if path)

    return [job.target for job in jobs if is_there(job)]


def computed_by_ncnn(net: Generator, weights: str | Path, gpu: int | None) -> NcnnNetwork:
    try:
        return NcnnNetwork(net, ncnn_program(net, half=False), gpu)
    except ValueError as error:
        raise UsageError(f"{weights} and --engine ncnn: {error}") from error


def build(
    net: Generator | NcnnNetwork,
    weights: str | Path,
    arguments: argparse.Namespace,
    device: torch.device,
) -> Upscaler:
    check_channels(net, str(weights))
    return Upscaler(
        net,
        device,
        precision=arguments.precision,
        tile=arguments.tile,
        batch=arguments.batch,
        scale=arguments.outscale,
        ensemble=arguments.ensemble,
        width=arguments.width,
        height=arguments.height,
        wrap=arguments.wrap,
        keep_hidden=arguments.keep_hidden,
    )


def work(
    jobs: list[Job],
    upscaler: Upscaler,
    metrics: dict[str, Metric],
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    """While the network works on one image, the next is read and the last is written and scored."""
    bar = Bar(read_ahead(jobs), total=len(jobs), unit="image")
    with ThreadPoolExecutor(1) as writer, ended_by_ctrl_c(upscaler):
        last: Future = Future()  # the result that is being written; at first there is none
        last.set_result(None)
        for group in grouped(bar, upscaler, results):
            bar.set_postfix_str(printable(group[0][0].source.name))
            make_room(group, upscaler, last)
            for job, picture, enlarged in enlarge_group(group, upscaler, results, bar):
                check_tiles(job, picture, upscaler, arguments, results)
                result_of(last)  # no more than one result waits in memory
                last = writer.submit(
                    finish, job, picture, enlarged, upscaler, metrics, arguments, results
                )
                del enlarged  # so that it goes once it is written
            if group[-1][0] is not jobs[-1] and results.in_vain(arguments.output):
                left = len(jobs) - 1 - jobs.index(group[-1][0])
                results.fail(
                    f"nothing can be written any more; images that were not tried: {left}. "
                    "Mend that, then go on with --skip-existing"
                )
                break
        result_of(last)


def grouped(
    jobs: Iterable[tuple[Job, Future]], upscaler: Upscaler, results: Results
) -> Iterator[list[tuple[Job, Picture]]]:
    """Small pictures of one size that follow each other, for the network at once; others alone."""
    group: list[tuple[Job, Picture]] = []
    for job, reading in jobs:
        with results.noting_failure(job.source):
            refuse_long_name(job.target)
            picture = result_of(reading)
            refuse_large_result(job.target, upscaler.size_of(picture.rgb))
            if group and kind_of(picture) != kind_of(group[0][1]):
                yield group
                group = []
            group.append((job, picture))
            if len(group) >= upscaler.at_once(picture.rgb):
                yield group
                group = []
            del picture
    if group:
        yield group


def kind_of(picture: Picture) -> tuple:
    return picture.rgb.shape, picture.rgb.dtype


def enlarge_group(
    group: list[tuple[Job, Picture]], upscaler: Upscaler, results: Results, bar: Bar
) -> Iterator[tuple[Job, Picture, Picture]]:
    """Each with its result: at once or, where one of several fails, one by one."""
    together: list[Picture] = []
    if len(group) > 1:
        with suppress(Exception):
            together = enlarge_together([picture for _, picture in group], upscaler, bar)
    for i, (job, picture) in enumerate(group):
        with results.noting_failure(job.source):
            yield job, picture, together[i] if together else enlarge(picture, upscaler, bar)


def make_room(group: list[tuple[Job, Picture]], upscaler: Upscaler, last: Future) -> None:
    """Where memory is short, first let the result before be written, and go."""
    if not upscaler.fits(group[0][1].rgb):
        result_of(last)


def read_ahead(jobs: list[Job]) -> Iterator[tuple[Job, Future]]:
    """Each job with its picture, and the next one's being read."""
    with ThreadPoolExecutor(1) as reader:
        ahead: Future | None = None
        for i, job in enumerate(jobs):
            reading = ahead or reader.submit(job.read)
            ahead = reader.submit(jobs[i + 1].read) if jobs[i + 1 :] else None
            yield job, reading


def check_tiles(
    job: Job,
    picture: Picture,
    upscaler: Upscaler,
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    if not arguments.check_tiles:
        return
    with results.noting_failure(job.source):
        said = upscaler.what_tiles_change(with_visible_colours(picture, upscaler).rgb)
        tqdm.write(printable(f"{job.source}: {said}"))


def finish(
    job: Job,
    picture: Picture,
    enlarged: Picture,
    upscaler: Upscaler,
    metrics: dict[str, Metric],
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    """Write, score, show (in sRGB)."""
    with results.noting_failure(job.source):
        kept = without_metadata(enlarged) if arguments.strip_metadata else enlarged
        for remark in save_result(kept, job, results.lost, arguments.quality, arguments.keep_time):
            tqdm.write(printable(f"{job.source}: {remark}"))
        results.unwritten.clear()
        # Without --hr, the metrics that need no true image judge every result.
        scored = job.high_res is not None or bool(metrics and not arguments.hr)
        if scored or job.comparison or arguments.report:
            judged = metrics if scored else None
            compare(job, picture, enlarged, upscaler, judged, arguments, results)
        results.pixels.append(enlarged.area)


def compare(
    job: Job,
    picture: Picture,
    enlarged: Picture,
    upscaler: Upscaler,
    metrics: dict[str, Metric] | None,
    arguments: argparse.Namespace,
    results: Results,
) -> None:
    """Score a result, unless `metrics` is None, and show it on the page and in a strip.

    Scores compare the files' own numbers, as papers do; what is shown is in sRGB and on white. Of a
    large picture each copy counts: what has been used is let go.
    """
    visible = with_visible_colours(picture, upscaler).mapped(to_8_bits)
    given = replace(visible, profile=enlarged.profile)
    ours = to_8_bits(enlarged.rgb)
    size, name = ours.shape[:2], job.target.relative_to(arguments.output)
    window = centre_window(size, COMPARED_SIDE)
    strip = {"input": as_seen(given.mapped(lambda pixels: part_by_nearest(pixels, size, window)))}
    page = page_image(arguments.output, name, size) if arguments.report else None

    def show(label: str, whole: Picture) -> None:
        shown = as_seen(whole)
        strip[label] = shown[window].copy()
        if page:
            page.add(label, shown)

    pictures, score = {"ours": ours}, {}
    show("ours", replace(enlarged, rgb=ours))
    if job.high_res:
        true = with_visible_colours(read_high_res(job.high_res, size, upscaler.scale), upscaler)
        pictures["HR"] = true.rgb
        show("HR", true)
        del true
    bicubic = given.mapped(upscaler.bicubic)
    pictures["bicubic"] = bicubic.rgb
    if metrics is not None:
        score = rate(given.rgb, pictures, upscaler.scale, metrics)
        results.scores.append({"image": name.as_posix()} | score)
    pictures.pop("HR", None)
    show("bicubic", bicubic)
    if page:
        results.shown.append(page.entry(score))
    if job.comparison:
        shown = {label: strip[label] for label in STRIP if label in strip}
        write_image(labelled_strip(shown, COMPARED_SIDE), job.comparison)


if __name__ == "__main__":
    silence_pillow()
    hear_kill()
    try:
        with Ranks.of_torchrun(patience=A_WEEK) as ranks:
            status = main(ranks)
        end_process(status)
    except (UsageError, DeviceError, WeightsError, MetricError) as error:
        print("test.py:", in_lines(error), file=sys.stderr)
        end_process(2)
    except KeyboardInterrupt:
        sys.exit("test.py: interrupted; what was done is kept")
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        sys.exit(f"test.py: another process ended or cannot be reached ({error}); see its message")

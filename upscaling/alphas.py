"""Pictures to choose alpha by: a photograph through networks from the PSNR network to the GAN."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from images.files import Picture, as_seen, read_picture, to_8_bits, write_image
from images.levels import is_neutral
from images.names import fitting
from images.scores import psnr
from images.strips import centre_window, labelled_strip
from upscaling.inputs import (
    Input,
    UsageError,
    find_inputs,
    find_partner,
    make_output,
    partners_in,
    places,
    read_high_res,
)
from upscaling.jobs import distinct_names, refuse_neighbours, refuse_results_among
from upscaling.results import Results
from upscaling.upscaler import Upscaler, enlarge, with_visible_colours
from utils import Bar, printable

SHOWN_SIDE = 512  # pixels around the centre of larger results
CONTEXT = 32  # input pixels around those, so that the networks see no border there


def write_strips(
    source: Path, output: Path, hr: Path | None, upscalers: dict[float, Upscaler]
) -> list[str]:
    """A strip for each photograph; says where they are, what failed, and each alpha's mean PSNR.

    Args:
        source: a photograph, or a folder that is searched in depth.
        output: folder of the strips.
        hr: folder of HR images, paired with the photographs by name.
        upscalers: by alpha.

    Returns:
        Why photographs failed, a line for each of those.

    Raises:
        UsageError: no photographs, or no place for the strips.
    """
    found = find_inputs([source], output, hr)
    photographs = found.images
    strips = strip_names(photographs, output)
    refuse_neighbours(strips.items(), "another folder with -o")
    high_res = partners_in(hr) if hr else {}
    partners = [find_partner(photograph.name, high_res) for photograph in photographs]
    make_output(output)
    scores: list[dict[float, float]] = []
    results = Results()
    for line in found.others:
        results.fail(line)
    for photograph, partner in zip(Bar(photographs, unit="image"), partners, strict=True):
        path = photograph.path
        with results.noting_failure(path):
            picture = read_picture(path)
            strip, score = draw_strip(picture, partner, upscalers)
            write_image(strip, strips[path])
            results.unwritten.clear()
            results.pixels.append(strip.size // 3)
            if picture.remark:
                tqdm.write(printable(f"{path}: {picture.remark}"))
            if score:
                scores.append(score)
            elif hr:
                tqdm.write(printable(f"No partner in {hr}: {path}"))
        if photograph is not photographs[-1] and results.in_vain(output):
            results.fail("nothing can be written any more; the other photographs were not tried")
            break
    for alpha in upscalers if scores else ():
        mean = np.mean([score[alpha] for score in scores])
        print(f"alpha {alpha:<4g} {mean:.2f} dB PSNR on Y, mean of {len(scores)} images")
    print(f"{len(results.pixels)} of {len(photographs)} strips are in {printable(str(output))}")
    return results.failures


def strip_names(photographs: list[Input], output: Path) -> dict[Path, Path]:
    """The strip in `output` that each photograph's file becomes; no two are alike.

    Raises:
        UsageError: a strip would overwrite a photograph.
    """
    sources = places(photograph.path for photograph in photographs)
    endings = [".png"] * len(photographs)
    refuse_results_among(photographs, endings, output)
    names = distinct_names(photographs, endings)
    strips = [fitting(output / name) for name in names]
    for strip in strips:
        if sources & places([strip]):
            raise UsageError(f"{strip} is an input; choose another folder with -o")
    return {image.path: strip for image, strip in zip(photographs, strips, strict=True)}


def draw_strip(
    picture: Picture, partner: Path | None, upscalers: dict[float, Upscaler]
) -> tuple[np.ndarray, dict[float, float]]:
    """What each network makes of a picture, side by side, and how close that is to the truth.

    The strip is in sRGB and on white. Scores compare the files' own numbers, as papers do.

    Args:
        picture: of any kind; 8 bits of it count.
        partner: file of the HR image, which then ends the strip. Without it there is no PSNR, and
            only the picture's centre, which the strip shows, is upscaled.
        upscalers: by alpha.

    Returns:
        The strip, uint8 (h, w, 3), and by alpha the PSNR of the whole image on Y in dB.
    """
    some_upscaler = next(iter(upscalers.values()))
    scale: int = some_upscaler.net.scale
    strip, scores = {}, {}
    height, width = picture.rgb.shape[:2]
    high_res, side = None, SHOWN_SIDE // scale + 2 * CONTEXT
    if partner is not None:
        high_res = read_high_res(partner, (height * scale, width * scale), scale)
        high_res, side = with_visible_colours(high_res, some_upscaler), 2**62
    window = centre_window((height, width), side)
    given = picture.mapped(lambda pixels: to_8_bits(pixels[window]))
    neutral = is_neutral(picture.rgb, picture.alpha)  # as the command finds it, of the whole
    for alpha, upscaler in upscalers.items():
        enlarged, label = enlarge(given, upscaler, neutral=neutral), f"alpha {alpha:g}"
        if high_res:
            scores[alpha] = psnr(enlarged.rgb, high_res.rgb, scale)
            label += f", {scores[alpha]:.2f} dB"
        strip[label] = as_seen(enlarged, centre_window(enlarged.rgb.shape[:2], SHOWN_SIDE))
    if high_res:
        strip["HR"] = as_seen(high_res, centre_window(high_res.rgb.shape[:2], SHOWN_SIDE))
    return labelled_strip(strip, SHOWN_SIDE), scores

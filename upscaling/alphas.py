"""Pictures to choose alpha by: a photograph through networks from the PSNR network to the GAN."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from images.colour import to_srgb
from images.files import read_picture, to_8_bits, write_image
from images.names import fitting
from images.scores import psnr
from images.strips import centre, labelled_strip
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
from upscaling.jobs import distinct_names, refuse_results_among
from upscaling.upscaler import Upscaler, check_size, explain
from utils import Bar, printable

SHOWN_SIDE = 512  # pixels around the centre of larger results
CONTEXT = 32  # input pixels around those, so that the networks see no border there


def write_strips(
    source: Path, output: Path, hr: Path | None, upscalers: dict[float, Upscaler]
) -> list[str]:
    """A strip for each photograph; says where they are, and the mean PSNR of each alpha.

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
    high_res = partners_in(hr) if hr else {}
    partners = [find_partner(photograph.name, high_res) for photograph in photographs]
    make_output(output)
    scores: list[dict[float, float]] = []
    failures = found.others
    done = 0
    for photograph, partner in zip(Bar(photographs, unit="image"), partners, strict=True):
        path = photograph.path
        try:
            picture = read_picture(path)
            image = to_8_bits(picture.rgb)
            strip, score = draw_strip(image, partner, upscalers, picture.profile)
            write_image(strip, strips[path])
        except Exception as error:  # of any kind: decoders raise a dozen
            failures.append(explain(path, error))
            continue
        done += 1
        if picture.remark:
            tqdm.write(printable(f"{path}: {picture.remark}"))
        if score:
            scores.append(score)
        elif hr:
            tqdm.write(printable(f"No partner in {hr}: {path}"))
    for alpha in upscalers if scores else ():
        mean = np.mean([score[alpha] for score in scores])
        print(f"alpha {alpha:<4g} {mean:.2f} dB PSNR on Y, mean of {len(scores)} images")
    print(f"{done} of {len(photographs)} strips are in {printable(str(output))}")
    return failures


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
    image: np.ndarray,
    partner: Path | None,
    upscalers: dict[float, Upscaler],
    profile: bytes | None = None,
) -> tuple[np.ndarray, dict[float, float]]:
    """What each network makes of an image, side by side, and how close that is to the truth.

    The strip is in sRGB. Scores compare the files' own numbers, as papers do.

    Args:
        image: uint8, (H, W, 3).
        partner: file of the HR image, which then ends the strip. Without it there is no PSNR, and
            only the image's centre, which the strip shows, is upscaled.
        upscalers: by alpha.
        profile: what the image's colours are; None: sRGB.

    Returns:
        The strip, uint8 (h, w, 3), and by alpha the PSNR of the whole image on Y in dB.
    """
    scale: int = next(iter(upscalers.values())).net.scale
    pictures, scores = {}, {}
    high_res = None
    if partner is None:
        image = centre(image, SHOWN_SIDE // scale + 2 * CONTEXT)
    else:
        size = (image.shape[0] * scale, image.shape[1] * scale)
        high_res = read_high_res(partner, size, scale)
    for alpha, upscaler in upscalers.items():
        check_size(image, upscaler)
        enlarged, label = upscaler(image), f"alpha {alpha:g}"
        if high_res:
            scores[alpha] = psnr(enlarged, high_res.rgb, scale)
            label += f", {scores[alpha]:.2f} dB"
        shown = centre(enlarged, SHOWN_SIDE).copy()  # and let go of the rest
        pictures[label] = to_srgb(shown, profile)
    if high_res:
        pictures["HR"] = to_srgb(centre(high_res.rgb, SHOWN_SIDE), high_res.profile)
    return labelled_strip(pictures, SHOWN_SIDE), scores

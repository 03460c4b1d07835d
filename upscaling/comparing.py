"""One file, upscaled as test.py does it, and what there is to see and to say of the result."""

from dataclasses import dataclass, replace
from pathlib import Path

from images.files import as_seen, to_8_bits, write_image
from images.strips import centre_window
from upscaling.devices import release_memory_of
from upscaling.inputs import UsageError
from upscaling.jobs import plan, refuse_long_name
from upscaling.saving import save_result
from upscaling.upscaler import Upscaler, enlarge, explain, with_visible_colours
from utils import printable

COMPARED_SIDE = 4096  # pixels around the centre of larger results that a browser is given


@dataclass(frozen=True)
class Compared:
    """A result.

    Attributes:
        file: what test.py would write.
        pictures: bicubic's and ours, of one size, in sRGB.
        words: its name and size, and what was turned or left out.
    """

    file: Path
    pictures: tuple[Path, Path]
    words: str


def upscale_file(source: Path, folder: Path, upscaler: Upscaler) -> Compared:
    """Upscale a picture.

    Args:
        source: its file.
        folder: for the result; the pictures to compare go to a folder in it.
        upscaler: that does it.

    Raises:
        UsageError: why there is no result, in a sentence that names the file without its folder,
            which is the server's own.
    """
    result, reason = None, ""
    try:
        result = upscale_job(source, folder, upscaler)
    except Exception as error:  # of any kind: decoders and encoders raise a dozen
        reason = str(error) if isinstance(error, UsageError) else explain(source, error)
    # Not while there is an error, whose traceback holds what was computed.
    release_memory_of(upscaler.device)  # the next picture may come in hours, or never
    if result is None:
        raise UsageError(printable(reason.replace(str(source), source.name)))
    return result


def upscale_job(source: Path, folder: Path, upscaler: Upscaler) -> Compared:
    (job,), _, _ = plan([source], folder)
    refuse_long_name(job.target)
    picture = job.read()
    enlarged = enlarge(picture, upscaler)
    lost: list[str] = []
    remarks = save_result(enlarged, job, lost)
    height, width = enlarged.rgb.shape[:2]
    words = [f"{job.target.name}: {width}x{height} pixels", *remarks, *lost]
    if max(height, width) > COMPARED_SIDE:
        words.append(f"the slider shows the {COMPARED_SIDE} pixels around its centre")
    window = centre_window((height, width), COMPARED_SIDE)
    visible = with_visible_colours(picture, upscaler)
    bicubic = visible.mapped(lambda pixels: upscaler.bicubic(to_8_bits(pixels)))
    pictures = {"bicubic": replace(bicubic, profile=enlarged.profile), "ours": enlarged}
    paths = {label: folder / "compared" / f"{label}.jpg" for label in pictures}
    for label, each in pictures.items():
        write_image(as_seen(each, window), paths[label])
    return Compared(job.target, (paths["bicubic"], paths["ours"]), "; ".join(words))

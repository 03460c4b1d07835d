"""Any picture in, any size out.

upscaler = Upscaler(load_generator("compact_x4_gan"))
enlarged = upscaler(image)  # uint8 or uint16, (H, W, 3)
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from images.bands import in_bands
from images.files import Picture, bleed
from images.levels import colourfulness, is_neutral
from images.resize import imresize, imresize_to
from images.strips import centre_window
from upscaling.arguments import OVERLAP, SMALLEST_TILE
from upscaling.devices import (
    choose_device,
    choose_precision,
    computing,
    free_on,
    is_out_of_memory,
    place,
)
from upscaling.inputs import UsageError
from upscaling.ncnn_engine import NcnnNetwork
from upscaling.tiles import Network, upscale, upscale_together
from upscaling.wrappers import Ensemble, PerChannel, Recoloured, Wrapper
from utils import available_swap, free_memory, printable

CHANNELS = {  # that a generator may take and give -> what its user should know of that
    (3, 3): "",
    (1, 1): "",  # it gets each colour as a separate image
    (1, 3): "The network takes gray, of a picture in colour its luma (BT.601), and gives colour.",
    (3, 1): "The network gives gray.",
}
COLOURING = 20  # levels of colour that a network means to give; those in the box tint by 2 to 12
WRAPPED = OVERLAP  # pixels from the other side, as if a tile followed there


class Upscaler:
    """A generator with what it takes to run it on any image: precision, tiles, output size.

    Args:
        net: an nn.Module in eval mode with `.scale`, `.in_channels` (1 or 3) and, where it gives
            another number, `.out_channels` (1 or 3).
        device: "auto" (CUDA, then MPS, then CPU), "cuda", "mps", "cpu", or a torch.device.
        precision: "bf16", "fp32", or "auto": bf16 for 8-bit images where the hardware has it.
        tile: largest side of a tile in input pixels; 0: the whole image at once; None: 384 (512 on
            CUDA), or what half of the free memory allows. If it runs out all the same, an image
            gets smaller ones.
        batch: tiles that are computed at once.
        scale: of the result, by MATLAB's bicubic from the network's own scale; None: that one.
        ensemble: average the 8 flips and rotations; takes 8 times as long.
        width, height: of the result in pixels, in place of `scale`; one alone keeps the ratio.
        wrap: the image's opposite borders meet, as a seamless texture's, and so do the result's.
        keep_hidden: `enlarge` takes the colour under alpha 0 for a part of the picture.
        progress: called before each batch of tiles, with how many tiles are done and how many
            there are; what it raises ends the work.

    Attributes:
        channels: what the network takes and gives.
        size_in_words: of results.

    Raises:
        UsageError: the network takes or gives another number of channels, or the tile is too small.
        DeviceError: the named device is not there.
    """

    def __init__(
        self,
        net: Network,
        device: torch.device | str = "auto",
        precision: str = "auto",
        tile: int | None = None,
        batch: int = 1,
        scale: float | None = None,
        ensemble: bool = False,
        width: int | None = None,
        height: int | None = None,
        wrap: bool = False,
        keep_hidden: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ):
        check_channels(net, "the network")
        if tile is not None and tile != 0 and tile < SMALLEST_TILE:
            raise UsageError(f"tile is {tile}; it can be 0, or from {SMALLEST_TILE} on")
        self.channels = channels_of(net)
        self.device = choose_device(device) if isinstance(device, str) else device
        if self.channels == (1, 1):
            net = PerChannel(net)
        elif self.channels != (3, 3):
            net = Recoloured(net)
        if ensemble:
            net = Ensemble(net)
        self.tile = choose_tile(net, self.device, batch) if tile is None else tile
        self.net: Network = place(net, self.device)
        self.dtype = choose_precision(precision, self.device)
        self.automatic = precision == "auto"
        self.batch = batch
        self.scale = scale or self.net.scale
        self.width, self.height = width or 0, height or 0
        self.wrap, self.keep_hidden = wrap, keep_hidden
        self.margin = WRAPPED if wrap else 0
        self.progress = progress
        sides = [f"{side} {way}" for side, way in ((width, "wide"), (height, "high")) if side]
        self.size_in_words = " and ".join(sides) or f"x{self.scale:g}"
        self.shortages: set[str] = set()  # of memory, that have been told
        self.lock = threading.Lock()  # one image at a time, whichever thread it comes from

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3), uint8 or uint16, to (scale * H, scale * W, 3), rounded up, of that dtype.

        With a width or a height, to that size.

        Raises:
            FloatingPointError: the network's output is not finite, in fp32 either.
            RuntimeError, MemoryError: too little memory, even for the smallest tiles.
        """
        return self.together([image])[0]

    def together(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The same for images of one size and dtype, several at once where they are small."""
        count, dtype, sized = self.at_once(images[0]), self.dtype_for(images[0]), []
        for first in range(0, len(images), count):
            part = images[first : first + count]
            surrounded = [wrapped(image, self.margin, self.margin) for image in part]
            with self.lock:
                results = self._run(surrounded, dtype, self.tile, self.batch)
            # Popped, so that a large one goes as soon as its other size is there.
            sized += [self._sized(image, results.pop(0)) for image in part]
        return sized

    def _sized(self, image: np.ndarray, result: np.ndarray) -> np.ndarray:
        """What the network made of an image, without its margin and in the size that is wanted."""
        border = self.margin * self.net.scale
        result = result[border : len(result) - border, border : result.shape[1] - border]
        result = np.ascontiguousarray(result)  # so that the border goes
        return self._resized(result, self.scale / self.net.scale, self.size_of(image))

    def at_once(self, image: np.ndarray) -> int:
        """How many of this size are computed together; they take less memory than a usual tile."""
        pixels = (image.shape[0] + 2 * self.margin) * (image.shape[1] + 2 * self.margin)
        return max(1, (min(self.tile, largest_tile(self.device)) // 2) ** 2 // pixels)

    def dtype_for(self, image: np.ndarray) -> torch.dtype:
        """bf16 has 8 significant bits: in an image of 16, it would leave noise in the others."""
        return torch.float32 if self.automatic and image.dtype == np.uint16 else self.dtype

    def bicubic(self, image: np.ndarray) -> np.ndarray:
        """The same size by MATLAB's bicubic."""
        return self._resized(image, self.scale, self.size_of(image))

    def what_tiles_change(self, image: np.ndarray) -> str:
        """In words; of an image that memory does not hold whole, around its centre."""
        part = image[centre_window(image.shape[:2], largest_whole(self.net, self.device))]
        height, width = part.shape[:2]
        where = "" if part.size == image.size else f" (of its central {width}x{height} pixels)"
        part = wrapped(part, self.margin, self.margin)
        if max(part.shape[:2]) <= self.tile:
            return "too large to compare with" if where else "it is one tile"
        try:
            worst, mean = self.tile_difference(part)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return "not enough memory to compare with the whole"
        return (
            f"tiles differ from the whole by at most {worst:.3g}/255, {mean:.2g}/255 on "
            f"average{where}"
        )

    def tile_difference(self, image: np.ndarray) -> tuple[float, float]:
        """Between the result in tiles and the whole one: the largest and the mean, in 255ths."""
        dtype = self.dtype_for(image)
        try:
            return self._difference_in(dtype, image)
        except FloatingPointError:
            if dtype == torch.float32:
                raise
        # Only now, as in `_run`, and in the precision that the result has.
        return self._difference_in(torch.float32, image)

    def _difference_in(self, dtype: torch.dtype, image: np.ndarray) -> tuple[float, float]:
        with self.lock, computing(self.device, dtype):
            whole = upscale(self.net, image).astype(np.float64)
            tiled = upscale(self.net, image, self.tile, batch=self.batch)
        difference = np.abs(whole - tiled) * 255 / np.iinfo(image.dtype).max
        return float(difference.max()), float(difference.mean())

    def _resized(self, image: np.ndarray, scale: float, size: tuple[int, int]) -> np.ndarray:
        if self.wrap or self.width or self.height:
            return image if image.shape[:2] == size else imresize_to(image, size, self.wrap)
        # 10 * 3.3 may come out as 33.000001, which is 34.
        return image if scale == 1 else imresize(image, scale)[: size[0], : size[1]]

    def size_of(self, image: np.ndarray) -> tuple[int, int]:
        """Height and width of its result."""
        return self.size_for(*image.shape[:2])

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The same for an image of that height and width."""
        if not (self.width or self.height):
            return math.ceil(height * self.scale - 1e-6), math.ceil(width * self.scale - 1e-6)
        down = self.height or max(1, math.floor(height * self.width / width + 0.5))
        across = self.width or max(1, math.floor(width * self.height / height + 0.5))
        return down, across

    def least_memory(self, image: np.ndarray) -> int:
        """Bytes of what is in memory together: of an image's way to its file, the most.

        What the network makes, with the row of tiles that is being blended (fp32); then that and
        its other size; then the result, Pillow's copy of it (four bytes a pixel) and the file.
        """
        height, width = self.size_of(image)
        rows, columns = (side + 2 * self.margin for side in image.shape[:2])
        own = self.net.scale**2 * columns
        made, result = 3 * own * rows * image.itemsize, 3 * height * width * image.itemsize
        blended = 12 * own * min(rows, self.tile or rows)
        return max(made + blended, made + result, 3 * result)

    def fits(self, image: np.ndarray) -> bool:
        """Whether there is that much memory now; where not, the system may kill the process."""
        wanted = self.least_memory(image) - available_swap()
        return wanted <= free_memory(wanted)

    def _run(
        self, images: Sequence[np.ndarray], dtype: torch.dtype, tile: int, batch: int
    ) -> list[np.ndarray]:
        """At the network's own scale; fewer at once, and smaller tiles, until they fit."""
        try:
            with computing(self.device, dtype):
                if len(images) > 1:
                    return upscale_together(self.net, images, self.progress)
                options = dict(tile=tile, batch=batch)
                return [upscale(self.net, images[0], progress=self.progress, **options)]
        except FloatingPointError:
            if dtype == torch.float32:
                raise
            tqdm.write("not finite in half precision; once more in fp32")
            dtype = torch.float32
        except (RuntimeError, MemoryError) as error:
            alone = len(images) == batch == 1
            if not is_out_of_memory(error) or (alone and tile == SMALLEST_TILE):
                raise
            smaller = "one image at a time"
            if len(images) == 1 and batch > 1:
                batch, smaller = 1, "one tile at a time"
            elif alone:
                tile = max(SMALLEST_TILE, (tile or max(images[0].shape[:2])) // 2)
                smaller = f"tiles of {tile} pixels"
            self._tell_shortage(f"not enough memory; this goes on with {smaller}")
        # Only now, as the error's traceback holds all that the failed attempt had computed.
        return [self._run([image], dtype, tile, batch)[0] for image in images]

    def _tell_shortage(self, sentence: str) -> None:
        """Once, as the next image is tried with the larger tiles again."""
        if sentence not in self.shortages:
            self.shortages.add(sentence)
            tqdm.write(sentence)


@contextmanager
def ended_by_ctrl_c(upscaler: Upscaler) -> Iterator[None]:
    """Ctrl-C ends what another thread enlarges, too: an animation's frames, while it is written."""
    interrupted = threading.Event()

    def check(*_) -> None:
        if interrupted.is_set():
            raise InterruptedError

    upscaler.progress = check
    try:
        yield
    except KeyboardInterrupt:
        interrupted.set()
        raise


def channels_of(net: Network) -> tuple[int, int]:
    """That it takes, and that it gives."""
    return net.in_channels, getattr(net, "out_channels", net.in_channels)


def check_channels(net: Network, name: str) -> None:
    """Refuse a network that has no use for colours, by the name that people know it by."""
    taken, given = channels_of(net)
    if (taken, given) not in CHANNELS:
        what = f"gives {given}" if taken in (1, 3) else f"takes {taken}"
        raise UsageError(f"{name} {what} channels; images have 3")


def enlarge(
    picture: Picture,
    upscaler: Upscaler,
    bar: tqdm | None = None,
    neutral: bool | None = None,
) -> Picture:
    """Colour by the network, alpha by it too where it is neither 0 nor full.

    A network that gives colour for gray says nothing about alpha, which then is bicubic. What
    follows the picture in its file is enlarged when it is asked for.

    Args:
        picture: of any kind.
        upscaler: for all of it.
        bar: shows which of several pictures it is at.
        neutral: whether it has no colour and shall have none; None: that is found out. Of a part,
            the whole may say otherwise.

    Raises:
        ValueError: the result has no pixels, or more than fit in memory.
    """
    return enlarge_together([picture], upscaler, bar, neutral)[0]


def enlarge_together(
    pictures: Sequence[Picture],
    upscaler: Upscaler,
    bar: tqdm | None = None,
    neutral: bool | None = None,
) -> list[Picture]:
    """`enlarge` of each of several that have one size and dtype: faster where they are small."""
    given = [images_of(picture, upscaler) for picture in pictures]
    results = iter(upscaler.together([image for images in given for image in images]))
    return [
        assembled(picture, [next(results) for _ in images], upscaler, bar, neutral)
        for picture, images in zip(pictures, given, strict=True)
    ]


def images_of(picture: Picture, upscaler: Upscaler) -> list[np.ndarray]:
    """What the network is given: its colour, and its alpha where that has an edge to sharpen."""
    check_size(picture.rgb, upscaler)
    if picture.alpha is None:
        return [picture.rgb]
    colours = visible_colours(picture.rgb, picture.alpha, upscaler)
    if np.ptp(picture.alpha) and upscaler.channels != (1, 3):
        return [colours, np.stack([picture.alpha] * 3, -1)]
    return [colours]


def assembled(
    picture: Picture,
    results: list[np.ndarray],
    upscaler: Upscaler,
    bar: tqdm | None,
    neutral: bool | None,
) -> Picture:
    """The enlarged picture, of what the network made of its `images_of`."""
    rgb, alpha = results[0], None
    if picture.alpha is not None:
        # A network changes even a flat area a little; what was fully opaque or clear stays so.
        alpha = smooth = upscaler.bicubic(picture.alpha)
        top = np.iinfo(alpha.dtype).max
        for sharp in results[1:]:
            alpha = np.where((smooth == 0) | (smooth == top), smooth, mean_colour(sharp))
    gray = {(1, 3): False, (3, 1): True}.get(upscaler.channels, picture.gray)
    # A network of RGB gives gray a tint, which many files of gray have three channels for.
    if neutral is None:
        neutral = is_neutral(picture.rgb, None if upscaler.keep_hidden else picture.alpha)
    tinted = neutral and upscaler.channels == (3, 3) and colourfulness(rgb) < COLOURING
    if gray or tinted:
        rgb = np.repeat(mean_colour(rgb)[..., None], 3, -1)
    enlarged = replace(picture, rgb=rgb, alpha=alpha, gray=gray)
    if sequence := picture.sequence:

        def later(picture: Picture, number: int) -> Picture:
            if bar is not None:
                bar.set_postfix_str(f"picture {number} of {sequence.count}")
            return enlarge(picture, upscaler)

        sizes = tuple(upscaler.size_for(*size) for size in sequence.sizes)
        enlarged.sequence = replace(sequence.mapped(later), sizes=sizes)
    remarks = [picture.remark]
    if gray != picture.gray and picture.profile:
        remarks.append("without its profile, which is for another number of channels")
        enlarged.profile = None
    if (upscaler.width or upscaler.height) and rgb.size < picture.rgb.size:
        remarks.append("smaller than its original")
    enlarged.remark = "; ".join(filter(None, remarks))
    return enlarged


def with_visible_colours(picture: Picture, upscaler: Upscaler) -> Picture:
    """The picture as the network is given it."""
    if picture.alpha is None:
        return picture
    return replace(picture, rgb=visible_colours(picture.rgb, picture.alpha, upscaler))


def visible_colours(rgb: np.ndarray, alpha: np.ndarray, upscaler: Upscaler) -> np.ndarray:
    """What the network is given of (H, W, 3), where its alpha, (H, W), leaves something to see."""
    if upscaler.keep_hidden:
        return rgb
    if not upscaler.wrap:
        return bleed(rgb, alpha)
    height, width = alpha.shape
    down, across = height // 2 + 1, width // 2 + 1  # no visible pixel is farther away
    surrounded = bleed(wrapped(rgb, down, across), wrapped(alpha, down, across))
    return surrounded[down : down + height, across : across + width]


def wrapped(image: np.ndarray, down: int, across: int) -> np.ndarray:
    """(H, W, ...) to (H + 2 * down, W + 2 * across, ...): it goes on beyond each border."""
    if not (down or across):
        return image
    rows, columns = np.arange(-down, len(image) + down), np.arange(-across, image.shape[1] + across)
    return image[rows % len(image)][:, columns % image.shape[1]]


def check_size(image: np.ndarray, upscaler: Upscaler) -> None:
    """Refuse what could only end in nothing, or in a process that the system kills.

    Raises:
        ValueError: the result has no pixels, or more than fit in memory.
    """
    height, width = upscaler.size_of(image)
    if max(image.shape[:2]) * upscaler.scale < 0.5:
        given = f"{image.shape[1]}x{image.shape[0]}"
        raise ValueError(f"x{upscaler.scale:g} leaves nothing of {given} pixels")
    if not upscaler.fits(image):
        raise ValueError(
            f"its result of {width}x{height} pixels takes at least "
            f"{upscaler.least_memory(image) / 2**30:.1f} GiB of memory, more than is free; cut it "
            "into parts, or choose a smaller size"
        )


def mean_colour(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) to (H, W), rounded half up."""
    return in_bands(lambda part: (part.mean(-1) + 0.5).astype(rgb.dtype), rgb)


def choose_tile(net: Network, device: torch.device, batch: int) -> int:
    """A tile, of which `batch` have activations that take less than half of the free memory."""
    side = int(largest_whole(net, device) / math.sqrt(batch))
    return max(SMALLEST_TILE, min(side // 32 * 32, largest_tile(device)))


def largest_tile(device: torch.device) -> int:
    """Beyond which it gets hardly faster."""
    return 512 if device.type == "cuda" else 384


def largest_whole(net: Network, device: torch.device) -> int:
    """The side in pixels of what the network can be given so that half of the free memory stays.

    Counted are three maps of all features in fp32, after the last enlargement; on a CPU the
    generator's end works in bands, and takes less. What a dense block holds before any enlargement
    is as much as 16 maps, with Winograd's convolutions. ncnn's hold more.
    """
    images = 1
    while isinstance(net, Wrapper):
        images, net = images * (3 if isinstance(net, PerChannel) else 1), net.net
    enlarged = net.scale**2
    free, maps = free_on(device), max(3 * enlarged, 16)
    if isinstance(net, NcnnNetwork):
        free, maps = net.free_memory(), 12 * enlarged
    features = max(weight.shape[0] for weight in net.parameters())
    return math.isqrt(free // 2 // (images * maps * 4 * features))


def explain(source: Path, error: Exception) -> str:
    """Why an image could not be upscaled, in a line that names it."""
    name = printable(str(source))
    text = str(error).replace(str(source), name)  # of whose lines the first tells enough
    reason = text.splitlines()[0] if text else type(error).__name__
    if not isinstance(error, (ValueError, OSError, RuntimeError, MemoryError, ArithmeticError)):
        reason = f"{type(error).__name__}: {reason}"  # whose text alone says little
    if is_out_of_memory(error):
        reason = f"not enough memory ({reason})"
    return reason if name in reason else f"{name}: {reason}"

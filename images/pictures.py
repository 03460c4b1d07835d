"""A picture in memory, with what its file says of it and the pictures that follow it there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from images.kinds import ImageError
from images.metadata import Metadata


@dataclass
class Picture:
    """A decoded image, upright.

    Attributes:
        rgb: (H, W, 3), uint8 or uint16.
        alpha: (H, W) of the same dtype, or None for an opaque image.
        gray: the file has one channel of colour (`rgb` has it three times), and so will a copy.
        profile: its ICC profile, or None.
        remark: a phrase about what was left out of the file; mostly empty.
        complete: no pixel is made up, as the last rows of a file that is cut short are.
        metadata: what else the file says of it.
        lossless: its pixels are kept exactly in a file whose type often does not.
        sequence: the pictures that follow it in its file, if they are wanted.
        duration: milliseconds that it is shown, of an animation's frame; None: it is no frame.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    gray: bool = False
    profile: bytes | None = None
    remark: str = ""
    complete: bool = True
    metadata: Metadata = field(default_factory=Metadata)
    lossless: bool = False
    sequence: "Sequence | None" = None
    duration: float | None = None

    @property
    def area(self) -> int:
        """Pixels, with those of the sequence."""
        if self.sequence is None:
            return self.rgb[..., 0].size
        sizes = self.sequence.sizes or [self.rgb.shape[:2]] * self.sequence.count
        return sum(height * width for height, width in sizes)

    def mapped(self, change: Callable[[np.ndarray], np.ndarray]) -> "Picture":
        """The same with changed pixels: its colours, and its alpha if it has one."""
        alpha = None if self.alpha is None else change(self.alpha)
        return replace(self, rgb=change(self.rgb), alpha=alpha)


@dataclass(frozen=True)
class Sequence:
    """What follows the first picture of a file.

    Attributes:
        kind: FRAMES of an animation, or PAGES.
        count: of all pictures, as the file has it.
        plays: how often an animation is shown; 0: for ever.
        rest: reads the file once more, and picture after picture but the first. An error stands
            for what cannot be read.
        sizes: height and width of each, the first one too; none: all are like the first.
    """

    kind: str
    count: int
    plays: int
    rest: Callable[[], Iterator[Picture | ImageError]]
    sizes: tuple[tuple[int, int], ...] = ()

    def mapped(self, change: Callable[[Picture, int], Picture]) -> "Sequence":
        """The same of changed pictures; `change` is told which one it is given, from 2 on."""

        def rest() -> Iterator[Picture | ImageError]:
            for number, picture in enumerate(self.rest(), 2):
                yield picture if isinstance(picture, ImageError) else change(picture, number)

        return replace(self, rest=rest)

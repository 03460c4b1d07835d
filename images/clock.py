"""The times of an animation in whole units of a file's, without drifting away from them."""


class Clock:
    """Whole units of time for an animation's frames, whose rounding never adds up.

    Args:
        unit: milliseconds.
        most: units that one frame can be shown.
    """

    def __init__(self, unit: float, most: int):
        self.unit, self.most = unit, most
        self.time = 0.0
        self.told = 0

    def ticks(self, duration: float, least: int = 0) -> int:
        """Units of the next frame, which is shown for that many milliseconds: at least so many."""
        self.time += duration
        ticks = min(max(least, round(self.time / self.unit) - self.told), self.most)
        self.told += ticks
        return ticks

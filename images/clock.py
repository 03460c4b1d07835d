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
        """Units of the next frame, which is shown for that many milliseconds; `least` at least."""
        self.time += duration
        ticks = max(0, round(self.time / self.unit) - self.told)
        if ticks < least:  # which no later frame has to make up for
            ticks, self.time = least, (self.told + least) * self.unit
        ticks = min(ticks, self.most)
        self.told += ticks
        return ticks

"""How old answers are: by the time that passed, not by a clock that somebody may have moved.

Two clocks are held against each other. The wall clock knows what passed while nothing ran, and may be wrong; the monotonic clock is
right, and knows only its own process. While both go on alike the wall clock is right. Once it has jumped, time goes on from where it
was, by the monotonic clock, until the wall clock has gone evenly for a day: then whoever set it meant it.
"""

import time

__all__ = ["LogClock"]

_DAY = 86_400.0
# Clocks that are set right by network time move by less.
_TOLERANCE = 60.0


class LogClock:
    """The time by which answers are deleted, in seconds since 1970.

    Args:
        last: The last time that was seen before, in an earlier process; None if none was.
        longest_pause: How long a service may have been down for its clock to be believed at once, in seconds.
    """

    def __init__(self, last: float | None, longest_pause: float):
        now = time.time()
        is_believed = last is None or now - last <= longest_pause
        self.time, self.passed = (now if is_believed or last is None else last), time.monotonic()
        # Wall and monotonic clock when the wall clock was last seen to jump; None while it is believed.
        self.jumped: tuple[float, float] | None = None if is_believed else (now, self.passed)

    def now(self) -> float:
        """The time, as far as it is known to have passed."""
        wall, passed = time.time(), time.monotonic()
        self.time, self.passed = self.time + passed - self.passed, passed
        if abs(wall - self.time) <= _TOLERANCE:
            self.time, self.jumped = wall, None
        elif self.jumped is None or abs((wall - self.jumped[0]) - (passed - self.jumped[1])) > _TOLERANCE:
            self.jumped = wall, passed
        elif passed - self.jumped[1] > _DAY:
            self.time, self.jumped = wall, None
        return self.time

    def ahead(self) -> float:
        """Seconds that the wall clock is ahead of the time that passed; 0 while it is believed."""
        now = self.now()
        return 0.0 if self.jumped is None else time.time() - now

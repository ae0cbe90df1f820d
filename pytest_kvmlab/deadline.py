"""A moment in the future that every blocking step of one operation shares."""

import math
import time


class Deadline:
    """A point in monotonic time, so that several steps share one budget.

    Args:
        seconds: the budget, counted from now; `math.inf` never ends.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the deadline was set."""
        return time.monotonic() - self._started

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.seconds - self.elapsed) if math.isfinite(self.seconds) else math.inf

    @property
    def passed(self) -> bool:
        """Whether the budget is used up."""
        return self.remaining <= 0

"""The one place that sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

from pytest_kvmlab.deadline import Deadline

Answer = TypeVar("Answer")


def until(attempt: Callable[[], Answer | None], deadline: Deadline, *, every: float = 0.05) -> Answer | None:
    """Try until there is an answer, at least once.

    Args:
        attempt: returns None as long as there is no answer yet.
        deadline: when to give up; one attempt that is under way is not cut short.
        every: seconds between the end of one attempt and the start of the next.

    Returns:
        The first answer, or None if the deadline passed.
    """
    while True:
        answer = attempt()
        if answer is not None or deadline.passed:
            return answer
        time.sleep(min(every, deadline.remaining))

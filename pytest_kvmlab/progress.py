"""How long work tells where it is: data only, so that everyone may say it."""

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Told what is being done now, and the done share of the whole, 0 to 1, or None if that is unknown."""


class Transfer(str):
    """A step that moves bytes, so that whoever shows it can tell a rate.

    Attributes:
        total: the bytes of the whole.
    """

    __slots__ = ("total",)

    total: int

    def __new__(cls, what: str, total: int) -> "Transfer":
        """Name the step."""
        step = super().__new__(cls, what)
        step.total = total
        return step

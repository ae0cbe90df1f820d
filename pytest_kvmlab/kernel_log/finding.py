"""One thing that a kernel complained about, and what makes two of them the same."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "panic",
    "oops",
    "bug",
    "warning",
    "lockup",
    "hung-task",
    "oom",
    "rcu-stall",
    "io-error",
    "fs-error",
    "taint",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Of a hexadecimal number, a decimal one that stands alone, and an offset within a function: nothing of it
# is the same in the next boot, or in the next version of the kernel.
_OFFSET = re.compile(r"\+0x[0-9a-f]+/0x[0-9a-f]+")
_ADDRESS = re.compile(r"\b0x[0-9a-f]+\b|\b(?=[0-9a-f]*[0-9])[0-9a-f]{8,}\b", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])\d+(\.\d+)?(kB|[munk]?s)?(?!\w)")


def normalised(text: str) -> str:
    """Take out of a kernel message what differs from boot to boot: addresses, numbers of CPUs and processes.

    Args:
        text: a line without its time.

    Returns:
        The line with `X` for each address and `N` for each number; a number within a name (`vda1`) stays.
    """
    return _NUMBER.sub("N", _ADDRESS.sub("X", _OFFSET.sub("", text)))


@dataclass(frozen=True)
class Finding:
    """One complaint of a kernel.

    Attributes:
        kind: which sort of complaint.
        title: the line that says it, without time and control characters.
        time: seconds since the kernel started, where the line says so.
        where: the function in which a kernel broke, if it is told apart from the title.
        stack: what followed, line by line: registers, calls.
    """

    kind: Kind
    title: str
    time: float | None = None
    where: str = ""
    stack: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What two findings have in common if they are the same complaint, in whatever boot or kernel."""
        place = f" in {self.where}" if self.where else ""
        return f"{self.kind}: {normalised(self.title)}{place}"

    @property
    def event(self) -> tuple[str, float | None]:
        """What tells one occurrence: a line that is both on the console and in the log is one event."""
        return (self.identity, self.time)

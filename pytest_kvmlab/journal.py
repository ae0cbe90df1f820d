"""The timed events of a run: data from which every report is drawn, and which every room may write."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        at: when it ended, in seconds since the epoch.
        subject: the guest or image that it happened to; empty for the run itself; of `memory`, who asked.
        kind: `begin` and `phase` (the start and the end of create, ssh, ready, …), `command`, `power`, `usb`
            (a dongle was pulled out, or is back), `failure` (a test failed because its guest broke), `reset`
            (how a test got a clean guest, and why in no quicker way) or `memory` (it was waited for, or there
            was not enough and it was given even so).
        name: which phase or command, the test that failed, or how much memory.
        seconds: how long it took.
        outcome: empty if it went well, else what went wrong.
    """

    at: float
    subject: str
    kind: str
    name: str
    seconds: float = 0.0
    outcome: str = ""


@dataclass
class Journal:
    """Events in the order in which they ended.

    Attributes:
        listeners: called with each event on the thread that wrote it, such as a progress display.
    """

    listeners: list[Callable[[Event], None]] = field(default_factory=list)
    _events: list[Event] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, subject: str, kind: str, name: str, *, seconds: float = 0.0, outcome: str = "") -> None:
        """Write down one event that has just ended."""
        self.add(Event(time.time(), subject, kind, name, seconds, outcome))

    def add(self, event: Event) -> None:
        """Write down an event; as a listener of another journal, also what was written there."""
        with self._lock:
            self._events.append(event)
        for listener in self.listeners:
            listener(event)

    @contextlib.contextmanager
    def phase(self, subject: str, name: str) -> Iterator[None]:
        """Time a phase; an exception that ends it is written down and goes on."""
        started = time.monotonic()
        self.note(subject, "begin", name)
        try:
            yield
        except BaseException as error:
            self.note(subject, "phase", name, seconds=time.monotonic() - started, outcome=_first_line(error))
            raise
        self.note(subject, "phase", name, seconds=time.monotonic() - started)

    def events(self) -> list[Event]:
        """Every event, oldest first."""
        with self._lock:
            return list(self._events)

    def of(self, subject: str, kind: str) -> list[Event]:
        """The events of one kind that happened to one subject, oldest first."""
        with self._lock:
            return [event for event in self._events if (event.subject, event.kind) == (subject, kind)]


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:500]

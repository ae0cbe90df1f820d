"""When the parts of a test took place: bars for a page."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from pytest_kvmlab.spec.run_record import GuestRecord, Phase, TestRecord

_PARTS: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Bar:
    """One part: where it begins and how long it is, as shares of the whole, 0 to 1."""

    name: str
    seconds: float
    start: float
    length: float
    failed: bool


@dataclass(frozen=True)
class Lane:
    """The bars of the test itself, or of one guest."""

    name: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Timeline:
    """The lanes of a test, over so many seconds."""

    seconds: float
    lanes: Sequence[Lane]


def timeline_of(test: TestRecord) -> Timeline:
    """Lay out a test: its parts one after the other, and the phases of its guests when they were.

    What took place before the test, such as a clone that was made while another test ran, is cut off.
    """
    whole = sum(test.seconds.values()) or 1e-9
    lanes = [Lane("test", list(_parts(test, whole)))]
    lanes += [Lane(guest.name, list(_phases(guest, test.started, whole))) for guest in test.guests]
    return Timeline(whole, lanes)


def _parts(test: TestRecord, whole: float) -> Iterator[Bar]:
    passed = 0.0
    for part in _PARTS:
        if part in test.seconds:
            seconds = test.seconds[part]
            yield Bar(part, seconds, passed / whole, seconds / whole, failed=False)
            passed += seconds


def _phases(guest: GuestRecord, started: float, whole: float) -> Iterator[Bar]:
    for phase in guest.phases:
        since = phase.started - started
        start, end = _within(since, whole), _within(since + phase.seconds, whole)
        yield Bar(phase.name, phase.seconds, start, end - start, failed=bool(phase.outcome))


def _within(moment: float, whole: float) -> float:
    return min(max(moment / whole, 0.0), 1.0)

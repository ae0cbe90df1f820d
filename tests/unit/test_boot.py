"""The order in which guests of a lab are started; what a guest is does not matter to it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import pytest

from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.boot import boot_all
from pytest_kvmlab.lab.guest import Guest


class Slow:
    """What boots until it is allowed to be ready, is switched off, or breaks."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.machine = self
        self.breaks = breaks
        self.off = threading.Event()
        self.started = threading.Event()

    def start(self, *, timeout: float) -> None:
        self.started.set()
        if self.breaks:
            raise GuestError("broke", phase="boot")
        if self.off.wait(timeout):
            raise GuestError("is off", phase="boot")

    def power_off(self) -> None:
        self.off.set()


@contextmanager
def at_once(_name: str, _check: Callable[[], None]) -> Iterator[None]:
    yield


def boot(guests: dict[str, Slow], after: dict[str, list[str]], timeout: float = 0.05) -> None:
    boot_all(cast(dict[str, Guest], guests), after, at_once, timeout=timeout)


def test_a_guest_is_started_after_those_that_it_needs() -> None:
    order: list[str] = []

    class Noted(Slow):
        def start(self, *, timeout: float) -> None:
            order.append(next(name for name, guest in guests.items() if guest is self))
            super().start(timeout=timeout)

    guests: dict[str, Slow] = {name: Noted() for name in ("web", "db", "cache")}
    boot(guests, {"web": ["db", "cache"], "db": ["cache"]})
    assert order == ["cache", "db", "web"]


def test_what_has_no_turn_when_another_breaks_is_not_started() -> None:
    guests = {"bad": Slow(breaks=True), "late": Slow()}

    @contextmanager
    def late_waits(name: str, check: Callable[[], None]) -> Iterator[None]:
        while name == "late":
            check()
        yield

    with pytest.raises(GuestError, match="broke"):
        boot_all(cast(dict[str, Guest], guests), {}, late_waits, timeout=30)
    assert not guests["late"].started.is_set()


def test_one_that_breaks_ends_the_others_and_its_own_error_is_told() -> None:
    guests = {"good": Slow(), "bad": Slow(breaks=True), "late": Slow()}
    with pytest.raises(GuestError, match="broke"):
        boot(guests, {"late": ["bad"]}, timeout=30)
    assert guests["good"].off.is_set() or not guests["good"].started.is_set()
    assert not guests["late"].started.is_set()
    assert not guests["bad"].off.is_set()

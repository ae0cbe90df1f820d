"""Guests that are started together: as many at once as have a turn, each after those it needs."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, suppress
from graphlib import TopologicalSorter

from pytest_kvmlab.errors import GuestError, KvmlabError
from pytest_kvmlab.lab.guest import Guest

Turn = Callable[[str, Callable[[], None]], AbstractContextManager[None]]
"""Gives a guest its turn to boot, by its name; meanwhile it calls what raises if the guest need not boot."""


def boot_one(guest: Guest, turn: Turn, *, timeout: float | None = None) -> None:
    """Start one guest when it has its turn, and wait until it is ready.

    Args:
        guest: the guest, switched off.
        turn: gives it its turn.
        timeout: seconds that it has from then on; None: its `boot_timeout`.

    Raises:
        GuestError: it did not get ready.
    """
    _boot(guest.name, guest, turn, threading.Event(), timeout)


def boot_all(
    guests: Mapping[str, Guest],
    after: Mapping[str, Sequence[str]],
    turn: Turn,
    *,
    timeout: float | None = None,
) -> None:
    """Start guests, and wait until all are ready.

    Args:
        guests: the guests by name, all switched off.
        after: the names of the guests that each is started after.
        turn: gives each its turn.
        timeout: seconds that each has to get ready, from its turn on; None: its own `boot_timeout`.

    Raises:
        GuestError: one did not get ready; the others are off.
    """
    given_up = threading.Event()
    order = TopologicalSorter({name: after.get(name, ()) for name in guests})
    order.prepare()
    booting: dict[Future[None], str] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(guests))) as pool:
        try:
            while order.is_active():
                for name in order.get_ready():
                    booting[pool.submit(_boot, name, guests[name], turn, given_up, timeout)] = name
                done, _ = wait(booting, return_when=FIRST_COMPLETED)
                order.done(*(_booted(future, booting) for future in done))
        except BaseException:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _give_up([guests[name] for name in booting.values()])
            raise


def _boot(name: str, guest: Guest, turn: Turn, given_up: threading.Event, timeout: float | None) -> None:
    def check() -> None:
        if given_up.is_set():
            raise GuestError(f"{name} is not started: another guest of its lab broke", phase="create")

    with turn(name, check):
        check()
        guest.start(timeout=timeout)


def _booted(future: "Future[None]", booting: "dict[Future[None], str]") -> str:
    """The name of a guest that is ready; or, if it will not be, the reason."""
    name = booting.pop(future)
    future.result()
    return name


def _give_up(guests: Sequence[Guest]) -> None:
    """What still boots finds itself switched off, so that nobody waits for it."""
    for guest in guests:
        with suppress(KvmlabError):
            guest.machine.power_off()

"""Guests that are started together: as many at once as there are processors, each after those it needs."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from graphlib import TopologicalSorter

from pytest_kvmlab.errors import KvmlabError
from pytest_kvmlab.lab.guest import Guest


def boot_all(guests: Mapping[str, Guest], after: Mapping[str, Sequence[str]], *, timeout: float) -> None:
    """Start guests, and wait until all are ready.

    More at once than there are processors would only make each of them late.

    Args:
        guests: the guests by name, all switched off.
        after: the names of the guests that each is started after.
        timeout: seconds that each has to get ready.

    Raises:
        GuestError: one did not get ready; the others are off.
    """
    order = TopologicalSorter({name: after.get(name, ()) for name in guests})
    order.prepare()
    booting: dict[Future[None], str] = {}
    with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
        try:
            while order.is_active():
                for name in order.get_ready():
                    booting[pool.submit(guests[name].start, timeout=timeout)] = name
                done, _ = wait(booting, return_when=FIRST_COMPLETED)
                order.done(*(_booted(future, booting) for future in done))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            _give_up([guests[name] for name in booting.values()])
            raise


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

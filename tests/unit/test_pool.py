"""The pool: what it starts ahead of time, for whom, and what becomes of what nobody wants."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from pytest_kvmlab.errors import GuestError, WaitTimeout
from pytest_kvmlab.lab.pool import Pool, pool_size

SECONDS = 20


class Starter:
    """Starts clones, which are numbers, and knows which of them have ended."""

    def __init__(self) -> None:
        self.started = 0
        self.ended: list[int] = []
        self.fails: BaseException | None = None
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, undo: ExitStack) -> int:
        assert self.may_go_on.wait(SECONDS)
        self.started += 1
        undo.callback(self.ended.append, self.started)
        if self.fails:
            raise self.fails
        return self.started


@pytest.fixture
def start() -> Starter:
    return Starter()


@pytest.fixture
def pool() -> Iterator[Pool[int]]:
    pool = Pool[int](2, ExitStack.close)
    yield pool
    pool.close()


@pytest.mark.parametrize(
    ("processors", "workers", "size"),
    [(1, 1, 0), (2, 1, 1), (16, 1, 4), (2, 2, 0), (2, 4, 0), (16, 4, 1), (16, 2, 2), (16, 16, 0)],
)
def test_clones_wait_where_a_processor_is_left_to_start_them(
    processors: int, workers: int, size: int
) -> None:
    assert pool_size(processors, workers) == size


def taken(pool: Pool[int], kind: str = "kind") -> int | None:
    waiting = pool.take(kind)
    return waiting.clones if waiting else None


def test_a_pool_has_nothing_before_it_was_filled(pool: Pool[int]) -> None:
    assert taken(pool) is None


def test_a_pool_gives_what_waits_the_longest_and_starts_more(pool: Pool[int], start: Starter) -> None:
    pool.refill("kind", start)
    assert taken(pool) == 1
    pool.refill("kind", start)
    assert [taken(pool), taken(pool), taken(pool)] == [2, 3, None]
    assert start.ended == []


def test_a_pool_of_size_zero_starts_nothing(start: Starter) -> None:
    pool = Pool[int](0, ExitStack.close)
    pool.refill("kind", start)
    assert taken(pool) is None
    pool.close()
    assert start.started == 0


def test_who_comes_early_waits_for_what_is_being_started(pool: Pool[int], start: Starter) -> None:
    start.may_go_on.clear()
    pool.refill("kind", start)
    threading.Timer(0.2, start.may_go_on.set).start()
    assert taken(pool) == 1


def test_another_kind_ends_what_waits(pool: Pool[int], start: Starter) -> None:
    pool.refill("kind", start)
    assert taken(pool) == 1
    assert taken(pool, "other") is None
    assert start.ended in ([2], [])  # it may not have been started yet
    assert start.started == 1 + len(start.ended)


def test_another_kind_is_not_held_up_by_what_is_being_started(start: Starter) -> None:
    pool = Pool[int](1, ExitStack.close)
    start.may_go_on.clear()
    pool.refill("kind", start)
    began = time.monotonic()
    threading.Timer(2.0, start.may_go_on.set).start()
    assert taken(pool, "other") is None
    assert time.monotonic() - began < 1
    pool.close()
    assert start.ended == list(range(1, start.started + 1))


@pytest.mark.parametrize(
    "error", [GuestError("it broke", phase="clone"), WaitTimeout("no answer"), OSError(28, "full")]
)
def test_a_start_that_fails_is_no_error_of_whoever_wants_a_clone(
    pool: Pool[int], start: Starter, error: BaseException
) -> None:
    start.fails = error
    pool.refill("kind", start)
    assert taken(pool) is None
    assert start.ended == [1, 2]


@pytest.mark.parametrize("error", [GuestError("it broke", phase="clone"), WaitTimeout("no answer")])
def test_a_start_that_fails_does_not_keep_a_pool_from_closing(start: Starter, error: BaseException) -> None:
    pool = Pool[int](1, ExitStack.close)
    start.fails = error
    start.may_go_on.clear()
    pool.refill("kind", start)
    threading.Timer(0.2, start.may_go_on.set).start()
    pool.close()
    assert start.ended in ([1], [])


def test_a_closed_pool_has_ended_everything(start: Starter) -> None:
    pool = Pool[int](3, ExitStack.close)
    pool.refill("kind", start)
    assert taken(pool) == 1
    pool.close()
    assert start.ended == list(range(2, start.started + 1))
    with pytest.raises(RuntimeError, match="shutdown"):
        pool.refill("kind", start)

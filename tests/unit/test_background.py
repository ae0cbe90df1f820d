"""Ends in the background: nobody waits for them, and nobody overlooks what goes wrong in them."""

import threading
import time
from collections.abc import Iterator

import pytest

from pytest_kvmlab.errors import TeardownError
from pytest_kvmlab.lab.background import Background, Failure, told

SECONDS = 20


@pytest.fixture
def background() -> Iterator[Background]:
    background = Background()
    yield background
    background.close()


def test_a_test_does_not_wait_for_an_end(background: Background) -> None:
    may_end = threading.Event()
    with background.ending("test_a") as undo:
        undo.callback(may_end.wait, SECONDS)
    may_end.set()
    assert background.failures() == []


def test_what_goes_wrong_is_told_once_with_its_test(background: Background) -> None:
    error = TeardownError("web does not end")
    for test in ("test_a", "test_b"):
        with background.ending(test) as undo:
            undo.callback(_fail if test == "test_a" else str, error)
    assert background.failures() == [Failure("test_a", error)]
    assert background.failures() == []


def _fail(error: Exception) -> None:
    raise error


def test_all_has_ended_when_failures_are_told(background: Background) -> None:
    ended: list[int] = []
    for number in range(10):
        with background.ending("test") as undo:
            undo.callback(ended.append, number)
            undo.callback(time.sleep, 0.02)
    assert background.failures() == []
    assert sorted(ended) == list(range(10))


def test_what_a_test_began_ends_even_if_it_fails(background: Background) -> None:
    ended: list[str] = []

    def fails() -> None:
        with background.ending("test") as undo:
            undo.callback(ended.append, "guest")
            raise AssertionError

    with pytest.raises(AssertionError):
        fails()
    assert background.failures() == []
    assert ended == ["guest"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TeardownError("web does not end"), "test_a: web does not end"),
        (OSError(28, "No space left"), "test_a: OSError: [Errno 28] No space left"),
    ],
)
def test_a_failure_is_told_in_a_line(error: Exception, line: str) -> None:
    assert told(Failure("test_a", error)) == line

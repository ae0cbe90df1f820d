import time

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until


def test_the_first_answer_ends_the_wait() -> None:
    answers = iter([None, None, 0, 1])
    assert until(lambda: next(answers), Deadline(60), every=0) == 0


def test_there_is_one_try_even_without_time() -> None:
    assert until(lambda: "at once", Deadline(0)) == "at once"


def test_a_wait_without_an_answer_ends_with_its_deadline() -> None:
    tries: list[float] = []
    started = time.monotonic()
    assert until(lambda: tries.append(time.monotonic()), Deadline(0.3), every=0.1) is None
    assert 0.3 <= time.monotonic() - started < 2
    assert 2 <= len(tries) <= 5

"""The search for the first bad version, and where it goes on after it was stopped."""

import json
import math
import random
from pathlib import Path

import pytest

from pytest_kvmlab.cli.bisect import sentence
from pytest_kvmlab.compare.bisection import Bisection, Verdict
from pytest_kvmlab.lab.bisecting import Question, search, verdict_of
from tests.unit.recorded_runs import case, run

QUESTION = Question("0", "9", ("tests",))


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def judge(first_bad: int, skipped: frozenset[int] = frozenset()) -> dict[str, Verdict]:
    def of(number: int) -> Verdict:
        if number in skipped:
            return "skip"
        return "bad" if number >= first_bad else "good"

    return {str(number): of(number) for number in range(100)}


def finished(count: int, verdicts: dict[str, Verdict]) -> Bisection:
    found = Bisection(names(count))
    while version := found.next:
        assert version not in found.verdicts
        found = found.knowing(version, verdicts[version])
    return found


@pytest.mark.parametrize("count", range(2, 34))
def test_the_first_bad_one_is_found_in_as_few_runs_as_can_be(count: int) -> None:
    for first_bad in range(1, count):
        found = finished(count, judge(first_bad))
        assert found.suspects == (str(first_bad),)
        assert len(found.verdicts) <= math.ceil(math.log2(count - 1))


@pytest.mark.parametrize("seed", range(200))
def test_what_cannot_be_tried_widens_the_answer_and_nothing_else(seed: int) -> None:
    luck = random.Random(seed)  # noqa: S311 -- no secret
    count = luck.randint(3, 30)
    first_bad = luck.randint(1, count - 1)
    skipped = frozenset(luck.sample(range(1, count - 1), luck.randint(0, count - 2)))
    *before, last = finished(count, judge(first_bad, skipped)).suspects
    assert str(first_bad) in (*before, last)
    assert {int(each) for each in before} <= skipped
    assert int(last) == count - 1 or int(last) not in skipped


def test_neighbours_need_no_run() -> None:
    assert finished(2, {}).suspects == ("1",)


def test_a_search_that_was_stopped_goes_on(tmp_path: Path) -> None:
    state, verdicts, tried = tmp_path / "cache" / "state.json", judge(7), list[str]()

    def stopped(version: str) -> Verdict:
        if tried:
            raise KeyboardInterrupt
        tried.append(version)
        return verdicts[version]

    with pytest.raises(KeyboardInterrupt):
        search(QUESTION, names(10), stopped, state, tell=lambda _: None)
    assert state.exists()
    told: list[str | None] = []
    found = search(QUESTION, names(10), verdicts.__getitem__, state, tell=lambda it: told.append(it.next))
    assert found.suspects == ("7",)
    assert tried[0] not in told
    assert tried[0] in found.verdicts
    assert not state.exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"question": {}}',
        '{"question": {"good": "0", "bad": "9", "arguments": ["other"]}, "verdicts": {"5": "bad"}}',
        '{"question": {"good": "0", "bad": "9", "arguments": ["tests"]}, "verdicts": {"5": "perhaps"}}',
        '{"question": {"good": "0", "bad": "9", "arguments": ["tests"]}, "verdicts": [5]}',
    ],
)
def test_what_another_search_or_nobody_has_left_is_not_believed(text: str, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    state.write_text(text)
    found = search(QUESTION, names(10), judge(7).__getitem__, state, tell=lambda _: None)
    assert found.suspects == ("7",)
    assert len(found.verdicts) >= 3


def test_what_is_left_behind_is_whole_json(tmp_path: Path) -> None:
    state, seen = tmp_path / "state.json", list[object]()

    def judged(version: str) -> Verdict:
        if state.exists():
            seen.append(json.loads(state.read_text())["verdicts"])
        return judge(7)[version]

    search(QUESTION, names(10), judged, state, tell=lambda _: None)
    assert seen


def test_the_end_is_a_sentence() -> None:
    assert sentence(finished(10, judge(7))) == (
        "7 is the first kernel under which the tests fail; 6 is good (3 runs, 10 kernels)"
    )
    assert "or one of those before it under which they could not run: 6" in sentence(
        finished(10, judge(6, frozenset({6})))
    )


def test_a_run_says_what_it_shows() -> None:
    broken = case("test_a", "failed").model_copy(update={"infrastructure": True})
    assert verdict_of(run(case("test_a"), case("test_b", "failed"))) == "bad"
    assert verdict_of(run(case("test_a"), case("test_b", "skipped"))) == "good"
    assert verdict_of(run(case("test_a"), broken)) == "skip"
    assert verdict_of(run(case("test_a"), case("test_b", "error"))) == "bad"
    assert verdict_of(run(case("test_a", "skipped"))) == "skip"
    assert verdict_of(run()) == "skip"

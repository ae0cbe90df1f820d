import itertools
import math
from collections.abc import Sequence

import pytest

from pytest_kvmlab.compare.rank_test import SIGNIFICANT, holm, rank_test, samples_for, with_an_answer
from tests.unit.recorded_runs import luck


def by_counting(before: Sequence[float], after: Sequence[float]) -> float:
    """The same chance, by writing down every way to deal the values out."""

    def wins(chosen: Sequence[float], others: Sequence[float]) -> float:
        return sum((b > a) + (b == a) / 2 for a in others for b in chosen)

    pooled, reached = [*before, *after], wins(after, before)
    ways = list(itertools.combinations(range(len(pooled)), len(after)))
    extreme = 0
    for way in ways:
        others = [pooled[place] for place in range(len(pooled)) if place not in way]
        extreme += wins([pooled[place] for place in way], others) >= reached
    return extreme / len(ways)


@pytest.mark.parametrize("seed", range(12))
def test_the_chance_is_that_of_counting_all_ways_ties_included(seed: int) -> None:
    chance = luck(seed)
    before = [chance.randrange(6) for _ in range(chance.randint(1, 5))]
    after = [chance.randrange(8) for _ in range(chance.randint(1, 5))]
    assert rank_test(before, after).p == pytest.approx(by_counting(before, after))


def test_the_smallest_chance_is_that_of_one_way_in_all() -> None:
    assert rank_test([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]).p == pytest.approx(1 / math.comb(10, 5))


@pytest.mark.parametrize(
    ("before", "after", "questions", "answer"),
    [
        (0, 5, 1, False),
        (5, 0, 1, False),
        (1, 1, 1, False),
        (4, 4, 1, False),
        (1, 99, 1, False),
        (3, 97, 1, True),
        (5, 5, 1, True),
        (3, 9, 1, True),
        (5, 5, 2, True),
        (5, 5, 3, False),
        (7, 7, 34, True),
        (7, 7, 35, False),
    ],
)
def test_too_few_samples_can_never_be_significant(
    before: int, after: int, questions: int, answer: bool
) -> None:
    found = rank_test(range(before), range(100, 100 + after))
    assert with_an_answer([found] * questions) == [answer] * questions
    (chance, *_) = holm([found.p] * questions)
    assert (chance <= SIGNIFICANT) is answer


def test_a_question_without_an_answer_is_no_burden_to_the_others() -> None:
    small, large = rank_test(range(5), range(5)), rank_test(range(10), range(10))
    assert with_an_answer([small] * 50 + [large] * 2) == [False] * 50 + [True] * 2
    assert with_an_answer([small] + [large] * 2) == [False, True, True]
    assert with_an_answer([]) == []


@pytest.mark.parametrize("questions", [1, 2, 3, 34, 35, 1000])
def test_how_many_samples_would_be_enough(questions: int) -> None:
    size = samples_for(questions)
    enough, fewer = (rank_test(range(count), range(count)) for count in (size, size - 1))
    assert with_an_answer([enough] * questions) == [True] * questions
    assert not any(with_an_answer([fewer] * questions))


def test_many_samples_agree_with_the_exact_chance() -> None:
    values = [float(place % 17) for place in range(24)]
    exact = rank_test(values[:12], [value + 2 for value in values[12:]])
    many = rank_test(values[:12] * 1 + [8.0], [value + 2 for value in values[12:]])
    assert many.p == pytest.approx(exact.p, abs=0.05)


def test_equal_samples_say_nothing() -> None:
    assert rank_test([1.0] * 30, [1.0] * 30).p == 1
    assert rank_test([1.0] * 5, [1.0] * 5).p == 1


def test_the_shift_is_the_median_difference() -> None:
    assert rank_test([1.0, 2.0, 3.0], [2.5, 3.5, 100.0]).shift == pytest.approx(1.5)


def test_a_false_alarm_is_as_rare_as_promised() -> None:
    chance = luck(1)
    alarms = sum(
        rank_test([chance.gauss() for _ in range(30)], [chance.gauss() for _ in range(30)]).p <= SIGNIFICANT
        for _ in range(1000)
    )
    assert alarms <= 20


def test_many_samples_take_little_time() -> None:
    assert rank_test([1.0, 2.0] * 50_000, [1.5] * 100_000).before <= 200


def test_many_questions_are_corrected_for() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []

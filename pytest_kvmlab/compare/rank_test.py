"""Whether one sample is larger than another: the rank test of Wilcoxon, Mann and Whitney.

Exact for small samples, ties included, because runs are few and their times are often equal to a millisecond.
"""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SIGNIFICANT = 0.01
# Of fewer, one that is an accident decides, whatever the other sample.
_FEWEST = 3
_MOST_EXACT = 24
_MOST_SAMPLES = 200


@dataclass(frozen=True)
class RankTest:
    """What two samples say.

    Attributes:
        before: how many values the first sample has.
        after: how many the second.
        p: how likely so high ranks of the second are if nothing differs; 1 if a sample is empty.
        least: the smallest chance that samples of these sizes can have; 1 if they can say nothing.
        shift: by how much the second is higher: the median of all differences (Hodges and Lehmann).
    """

    before: int
    after: int
    p: float
    least: float
    shift: float


def rank_test(before: Sequence[float], after: Sequence[float]) -> RankTest:
    """Test whether the second sample is the larger one.

    Args:
        before: values; of more than 200, so many, evenly taken.
        after: values, the same.
    """
    first, second = _thinned(before), _thinned(after)
    sizes = len(first), len(second)
    shift = statistics.median([b - a for a in first for b in second]) if min(sizes) else 0.0
    chance = _chance(first, second) if min(sizes) else 1.0
    return RankTest(*sizes, chance, least_chance(*sizes), shift)


def least_chance(before: int, after: int) -> float:
    """The smallest chance that samples of these sizes can have, however far apart they are."""
    return 1 / math.comb(before + after, after) if min(before, after) >= _FEWEST else 1.0


def samples_for(questions: int) -> int:
    """How many samples on each side make each of so many questions, asked at once, one that has an answer."""
    sizes = itertools.count(_FEWEST)
    return next(size for size in sizes if least_chance(size, size) * questions <= SIGNIFICANT)


def with_an_answer(questions: Sequence[RankTest]) -> list[bool]:
    """Which of some questions can be significant, when as many are asked at once as this leaves."""
    answered, asked = [True] * len(questions), -1
    while sum(answered) != asked:
        asked = sum(answered)
        answered = [
            still and test.least * asked <= SIGNIFICANT
            for test, still in zip(questions, answered, strict=True)
        ]
    return answered


def _thinned(values: Sequence[float]) -> list[float]:
    step = math.ceil(len(values) / _MOST_SAMPLES) or 1
    return list(values)[::step]


def _chance(first: Sequence[float], second: Sequence[float]) -> float:
    ranks = _doubled_ranks([*first, *second])
    reached = sum(ranks[len(first) :])
    if len(ranks) <= _MOST_EXACT:
        return _exact(ranks, len(second), reached)
    return _normal(ranks, len(second), reached)


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the rank of each value, so that ranks of ties, which are means, stay whole numbers."""
    ordered = sorted(values)
    first = {value: place for place, value in reversed(list(enumerate(ordered, 1)))}
    last = {value: place for place, value in enumerate(ordered, 1)}
    return [first[value] + last[value] for value in values]


def _exact(ranks: Sequence[int], chosen: int, reached: int) -> float:
    """The share of all choices of so many ranks whose sum is at least the one that was reached."""
    ways: list[dict[int, int]] = [{0: 1}, *({} for _ in range(chosen))]
    for rank in ranks:
        for count in range(chosen, 0, -1):
            for total, number in ways[count - 1].items():
                ways[count][total + rank] = ways[count].get(total + rank, 0) + number
    extreme = sum(number for total, number in ways[chosen].items() if total >= reached)
    return extreme / math.comb(len(ranks), chosen)


def _normal(ranks: Sequence[int], chosen: int, reached: int) -> float:
    """The normal approximation for sampling without replacement, with a correction for continuity."""
    size = len(ranks)
    mean = statistics.fmean(ranks)
    variance = chosen * (size - chosen) / (size - 1) * statistics.pvariance(ranks, mean)
    if variance == 0:
        return 1.0
    return 1 - statistics.NormalDist().cdf((reached - 1 - chosen * mean) / math.sqrt(variance))


def holm(chances: Sequence[float]) -> list[float]:
    """Correct chances for having been asked many questions at once (Holm, 1979).

    Args:
        chances: the p of each question.

    Returns:
        The corrected ones, in the same order.
    """
    order = sorted(range(len(chances)), key=chances.__getitem__)
    corrected, highest = [1.0] * len(chances), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, chances[index] * (len(chances) - place)))
        corrected[index] = highest
    return corrected

"""Whether phases of guests and tests take longer than they did, beyond the noise."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_kvmlab.compare.rank_test import SIGNIFICANT, RankTest, holm, rank_test
from pytest_kvmlab.compare.systems import label
from pytest_kvmlab.spec.run_record import RunRecord

Verdict = Literal["slower", "faster", "as before", "too few samples"]
# What is less matters to nobody, however sure it is.
_LEAST_SHARE = 0.1
_LEAST_SECONDS = 0.05


@dataclass(frozen=True)
class PhaseTimes:
    """How long one phase took on both sides, in seconds.

    Attributes:
        subject: the guest with its image, or the test.
        phase: create, ssh, ready, …, or `call` of a test.
        before: the samples to compare with.
        after: the samples of now.
        verdict: what they say.
        p: how likely the difference is chance, corrected for the number of phases that were compared.
        shift: by how much it takes longer now.
    """

    subject: str
    phase: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    verdict: Verdict
    p: float
    shift: float


Samples = Mapping[tuple[str, str], Sequence[Sequence[float]]]
"""For each subject and phase, the samples of each run."""


def phase_times(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> list[PhaseTimes]:
    """Compare each phase that both sides have.

    Args:
        before: the runs to compare with.
        after: the runs of now.
    """
    earlier, later = samples(before), samples(after)
    common = [key for key in earlier if key in later]
    slower = [rank_test(_pooled(earlier[key]), _pooled(later[key])) for key in common]
    faster = [rank_test(_pooled(later[key]), _pooled(earlier[key])) for key in common]
    return [
        _judged(key, earlier[key], later[key], up, down)
        for key, up, down in zip(common, _corrected(slower), _corrected(faster), strict=True)
    ]


def samples(runs: Sequence[RunRecord]) -> Samples:
    """The times of every phase that went well.

    Args:
        runs: each gives a list of its own, because runs differ more from each other than what is in them.
    """
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for run in runs:
        own: dict[tuple[str, str], list[float]] = defaultdict(list)
        for subject, phase, seconds in _times(run):
            own[subject, phase].append(seconds)
        for key, values in own.items():
            found[key].append(values)
    return found


def _times(run: RunRecord) -> Iterator[tuple[str, str, float]]:
    for test in run.tests:
        if test.outcome == "passed":
            yield test.id, "call", test.seconds.get("call", 0.0)
        for guest in test.guests:
            yield from (
                (label(guest), phase.name, phase.seconds) for phase in guest.phases if not phase.outcome
            )


def _pooled(of_runs: Sequence[Sequence[float]]) -> list[float]:
    return [value for values in of_runs for value in values]


def _corrected(tests: Sequence[RankTest]) -> list[tuple[RankTest, float]]:
    """Only what could be significant counts as a question."""
    asked = iter(holm([test.p for test in tests if test.enough]))
    return [(test, next(asked) if test.enough else 1.0) for test in tests]


def _judged(
    key: tuple[str, str],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    slower: tuple[RankTest, float],
    faster: tuple[RankTest, float],
) -> PhaseTimes:
    test, p = slower
    noise = _noise(before)
    verdict: Verdict = "as before"
    if not test.enough:
        verdict = "too few samples"
    elif p <= SIGNIFICANT and test.shift > noise:
        verdict = "slower"
    elif faster[1] <= SIGNIFICANT and -test.shift > noise:
        verdict = "faster"
    pooled = tuple(_pooled(before)), tuple(_pooled(after))
    return PhaseTimes(*key, *pooled, verdict, min(p, faster[1]), test.shift)


def _noise(of_runs: Sequence[Sequence[float]]) -> float:
    """What a phase has to be slower by: a tenth, and more than the runs before differed among themselves."""
    medians = [statistics.median(values) for values in of_runs]
    least = _LEAST_SHARE * statistics.median(_pooled(of_runs))
    return max(_LEAST_SECONDS, least, max(medians) - min(medians))

"""Whether phases of guests and tests take longer than they did, beyond the noise."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pytest_kvmlab.compare.rank_test import (
    SIGNIFICANT,
    RankTest,
    holm,
    least_chance,
    rank_test,
    with_an_answer,
)
from pytest_kvmlab.compare.systems import label
from pytest_kvmlab.spec.run_record import RunRecord

Verdict = Literal["slower", "faster", "as before", "too few samples", "busier machine"]
# What is less matters to nobody, however sure it is.
_LEAST_SHARE = 0.1
_LEAST_SECONDS = 0.05
# A machine on which tasks wait for a processor so much more of the time than ever before gives no verdict.
_MORE_PRESSURE_SHARE, _MORE_PRESSURE = 1.25, 0.05


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

    Where both sides have runs enough, each run counts once, by its median: what differs between runs, such as
    how busy the machine is, is in the samples then. Else all samples are pooled, and a run in which the
    machine was busier than ever before gives no verdict.

    Args:
        before: the runs to compare with.
        after: the runs of now.
    """
    earlier, later = samples(before), samples(after)
    pairs = [_Pair(*key, earlier[key], later[key]) for key in earlier if key in later]
    slower = _corrected([rank_test(pair.compared[0], pair.compared[1]) for pair in pairs])
    faster = _corrected([rank_test(pair.compared[1], pair.compared[0]) for pair in pairs])
    busier = _busier(before, after)
    return [
        _judged(pair, up, down, busier=busier and not pair.by_run)
        for pair, up, down in zip(pairs, slower, faster, strict=True)
    ]


@dataclass(frozen=True)
class _Pair:
    """One phase on both sides: the samples of each run."""

    subject: str
    phase: str
    before: Sequence[Sequence[float]]
    after: Sequence[Sequence[float]]

    @property
    def by_run(self) -> bool:
        """Whether there are runs enough for each to count once, though perhaps not for so many phases."""
        return least_chance(len(self.before), len(self.after)) <= SIGNIFICANT

    @property
    def compared(self) -> tuple[list[float], list[float]]:
        """What the rank test is given."""
        if self.by_run:
            return _medians(self.before), _medians(self.after)
        return _pooled(self.before), _pooled(self.after)

    @property
    def noise(self) -> float:
        """What it has to be slower by: a tenth, and, of a single run, more than the runs before differ by."""
        least = max(_LEAST_SECONDS, _LEAST_SHARE * statistics.median(_pooled(self.before)))
        medians = _medians(self.before)
        return least if self.by_run else max(least, max(medians) - min(medians))


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


def _medians(of_runs: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(values) for values in of_runs]


def _busier(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> bool:
    earlier, later = ([run.host.cpu_pressure for run in side if run.host] for side in (before, after))
    known = [[share for share in side if share is not None] for side in (earlier, later)]
    if not all(known):
        return False
    return max(known[1]) > max(known[0]) * _MORE_PRESSURE_SHARE + _MORE_PRESSURE


def _corrected(tests: Sequence[RankTest]) -> list[tuple[RankTest, float | None]]:
    """Each test with its chance as one of many; None if it could not be significant, and so asks nothing."""
    answered = with_an_answer(tests)
    chances = iter(holm([test.p for test, has in zip(tests, answered, strict=True) if has]))
    return [(test, next(chances) if has else None) for test, has in zip(tests, answered, strict=True)]


def _judged(
    pair: _Pair, slower: tuple[RankTest, float | None], faster: tuple[RankTest, float | None], *, busier: bool
) -> PhaseTimes:
    (test, up), (_, down) = slower, faster
    verdict: Verdict = "as before"
    if up is None or down is None:
        verdict = "too few samples"
    elif busier:
        verdict = "busier machine"
    elif up <= SIGNIFICANT and test.shift > pair.noise:
        verdict = "slower"
    elif down <= SIGNIFICANT and -test.shift > pair.noise:
        verdict = "faster"
    pooled = tuple(_pooled(pair.before)), tuple(_pooled(pair.after))
    p = min(1.0 if chance is None else chance for chance in (up, down))
    return PhaseTimes(pair.subject, pair.phase, *pooled, verdict, p, test.shift)

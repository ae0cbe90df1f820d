"""Everything that differs between two sets of runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from pytest_kvmlab.compare.kernel_axis import aligned
from pytest_kvmlab.compare.outcomes import TestChange, test_changes
from pytest_kvmlab.compare.systems import Loss, Message, losses, new_messages
from pytest_kvmlab.compare.times import PhaseTimes, phase_times
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.known_issues import KnownTest, known_test
from pytest_kvmlab.spec.run_record import RunRecord


@dataclass(frozen=True)
class Side:
    """What is compared.

    Attributes:
        name: how it was named: a baseline, a file.
        runs: its runs, at least one.
    """

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def tests(self) -> frozenset[str]:
        """The ids of its tests."""
        return frozenset(test.id for run in self.runs for test in run.tests)

    @property
    def failing(self) -> frozenset[str]:
        """The ids of those that failed in any of its runs."""
        bad = ("failed", "error")
        return frozenset(test.id for run in self.runs for test in run.tests if test.outcome in bad)

    @property
    def kernels(self) -> tuple[str, ...]:
        """The kernels of its guests."""
        guests = (guest for run in self.runs for test in run.tests for guest in test.guests)
        return tuple(sorted({guest.kernel for guest in guests if guest.kernel}))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The kernels of its hosts."""
        return tuple(sorted({run.host.kernel for run in self.runs if run.host}))


@dataclass(frozen=True)
class Comparison:
    """What differs.

    Attributes:
        before: what is compared with.
        after: what is compared.
        tests: tests that go otherwise, or fail as before.
        messages: what kernels complain about only now.
        silent: what they complained about only before.
        losses: what guests had before only.
        times: each phase that both have.
    """

    before: Side
    after: Side
    tests: tuple[TestChange, ...]
    messages: tuple[Message, ...]
    silent: tuple[Message, ...]
    losses: tuple[Loss, ...]
    times: tuple[PhaseTimes, ...]

    @property
    def regressions(self) -> list[str]:
        """What is worse than before, in a line each; slowness apart."""
        failing = [each.id for each in self.tests if each.change == "newly failing" and not each.known.holds]
        said = [each.finding.identity for each in self.messages if not each.finding.excused]
        lost = [f"{each.guest} lost {each.what} {each.name}" for each in self.losses if each.regression]
        return [*(f"{each} fails" for each in failing), *(f"kernel: {each}" for each in said), *lost]

    @property
    def slowdowns(self) -> list[PhaseTimes]:
        """The phases that take longer than before."""
        return [each for each in self.times if each.verdict == "slower"]


def compare(
    before: Side, after: Side, *, known: Sequence[KnownTest] = (), today: date = date.max
) -> Comparison:
    """Find out what differs.

    Args:
        before: what to compare with.
        after: what is compared.
        known: tests whose failure is known for a time.
        today: the day on which known issues have to be known still.

    Raises:
        ConfigError: the two have no test in common.
    """
    runs = aligned(before.runs, after.runs)
    before, after = replace(before, runs=runs[0]), replace(after, runs=runs[1])
    _require_overlap(before, after)
    changes = test_changes(before.runs, after.runs)
    return Comparison(
        before=before,
        after=after,
        tests=tuple(replace(each, known=known_test(each.id, known, today)) for each in changes),
        messages=tuple(new_messages(before.runs, after.runs)),
        silent=tuple(new_messages(after.runs, before.runs)),
        losses=tuple(losses(before.runs, after.runs)),
        times=tuple(phase_times(before.runs, after.runs)),
    )


def _require_overlap(before: Side, after: Side) -> None:
    if not before.tests & after.tests:
        suites = [", ".join(dict.fromkeys(run.suite for run in side.runs)) for side in (before, after)]
        raise ConfigError(
            f"{before.name} and {after.name} have no test in common: suites {suites[0]} and {suites[1]}",
            "compare runs of one suite, started in the same folder",
        )

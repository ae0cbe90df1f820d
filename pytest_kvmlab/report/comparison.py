"""A comparison, told: lines for a terminal, a document for a script."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, get_args

from pytest_kvmlab.compare.comparison import Comparison, Side
from pytest_kvmlab.compare.outcomes import Change
from pytest_kvmlab.compare.rank_test import samples_for
from pytest_kvmlab.compare.times import PhaseTimes

Row = tuple[str, str, str]

SUMMARY = ("Runs", "Kernel of guests", "Kernel of the host", "Tests", "Failing", "Worse", "Slower")
"""What the columns of a summary are."""

_CHANGES: tuple[Change, ...] = get_args(Change)
_LONGEST_NOTE = 200


def rows(comparison: Comparison) -> Iterator[Row]:
    """What differs, in rows of three cells: in which way, what, and a note.

    What did not change has no row; a phase with too few samples has none either, see `notes`.
    """
    yield from _test_rows(comparison)
    yield from _guest_rows(comparison)
    for times in comparison.times:
        if times.verdict in ("slower", "faster"):
            yield times.verdict, f"{times.subject}: {times.phase}", describe_times(times)


def _test_rows(comparison: Comparison) -> Iterator[Row]:
    for test in sorted(comparison.tests, key=lambda each: _CHANGES.index(each.change)):
        if test.change != "still failing":
            yield test.change, test.id, test.known.why or _first_line(test.message)


def _guest_rows(comparison: Comparison) -> Iterator[Row]:
    for message in comparison.messages:
        yield "new kernel message", message.finding.identity, message.finding.excuse or f"in {message.test}"
    for message in comparison.silent:
        yield "kernel message gone", message.finding.identity, ""
    for loss in comparison.losses:
        yield f"{loss.what} lost", f"{loss.guest}: {loss.name}", "" if loss.regression else "another kernel"


def describe_times(times: PhaseTimes) -> str:
    """How much longer a phase takes, and how sure that is."""
    samples = f"{len(times.before)} and {len(times.after)} samples"
    return f"{times.shift:+.2f} s, p = {times.p:.2g}, {samples}"


def notes(comparison: Comparison) -> Iterator[str]:
    """What a reader has to know to judge the rows."""
    for side in (comparison.before, comparison.after):
        yield describe_side(side)
    failing = sum(test.change == "still failing" for test in comparison.tests)
    if failing:
        yield f"{failing} tests fail as before"
    if any(times.verdict == "busier machine" for times in comparison.times):
        yield "the machine was busier than in any run before: no verdict on times; run again, or more often"
    few = [times for times in comparison.times if times.verdict == "too few samples"]
    yield f"{len(comparison.times) - len(few)} phases compared"
    if few:
        runs = samples_for(len(comparison.times))
        yield f"{len(few)} phases have too few samples: {runs} runs on each side would tell"


def describe_side(side: Side) -> str:
    """What one side is."""
    tests = len(side.tests)
    kernels, hosts = (", ".join(names) or "unknown" for names in (side.kernels, side.hosts))
    return (
        f"{side.name}: {len(side.runs)} runs, {tests} tests; kernel of guests {kernels}; of the host {hosts}"
    )


def verdict(comparison: Comparison) -> str:
    """The whole in a sentence."""
    worse, slower = len(comparison.regressions), len(comparison.slowdowns)
    if not worse and not slower:
        return "nothing is worse than before"
    return f"{worse} regressions, {slower} phases slower"


def summary(comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """All sides beside each other, a row of cells as in `SUMMARY` for each.

    Args:
        comparisons: one or more, all with the same side before.
    """
    worse = [("", "")] + [(str(len(each.regressions)), str(len(each.slowdowns))) for each in comparisons]
    sides = [comparisons[0].before, *(each.after for each in comparisons)]
    return [(*_summed_up(side), *counts) for side, counts in zip(sides, worse, strict=True)]


def _summed_up(side: Side) -> tuple[str, ...]:
    return (
        f"{side.name} ({len(side.runs)})",
        ", ".join(side.kernels) or "unknown",
        ", ".join(side.hosts) or "unknown",
        str(len(side.tests)),
        str(len(side.failing)),
    )


def document(comparison: Comparison) -> dict[str, Any]:
    """All of it, for a script."""
    return {
        "before": _side(comparison.before),
        "after": _side(comparison.after),
        "verdict": verdict(comparison),
        "regressions": comparison.regressions,
        "tests": [asdict(test) for test in comparison.tests],
        "new_kernel_messages": [
            {"test": each.test, **each.finding.model_dump(mode="json")} for each in comparison.messages
        ],
        "kernel_messages_gone": [each.finding.identity for each in comparison.silent],
        "losses": [asdict(loss) for loss in comparison.losses],
        "times": [asdict(times) for times in comparison.times],
    }


def _side(side: Side) -> dict[str, Any]:
    return {"name": side.name, "runs": len(side.runs), "kernels": side.kernels, "hosts": side.hosts}


def _first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:_LONGEST_NOTE]

"""Comparisons with one first side as a page, with a plot for each phase."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pytest_kvmlab.compare.comparison import Comparison, Side
from pytest_kvmlab.compare.times import samples
from pytest_kvmlab.report.comparison import SUMMARY, notes, rows, summary, verdict
from pytest_kvmlab.report.page import rendered
from pytest_kvmlab.report.plots import times_plot

_MOST_PLOTS = 60


@dataclass(frozen=True)
class _Plot:
    title: str
    svg: Markup


def comparison_page(comparisons: Sequence[Comparison]) -> str:
    """Make a page of comparisons.

    Args:
        comparisons: one or more, all with the same side before.

    Raises:
        ConfigError: the libraries for pages are not installed.
    """
    sides = [comparisons[0].before, *(each.after for each in comparisons)]
    keys = _keys(comparisons)
    return rendered(
        "comparison.html",
        title=" and ".join([sides[0].name, ", ".join(side.name for side in sides[1:])]),
        columns=SUMMARY,
        summary=summary(comparisons),
        comparisons=[_told(each) for each in comparisons],
        plots=list(_plots(sides, keys[:_MOST_PLOTS])),
        left_out=max(0, len(keys) - _MOST_PLOTS),
    )


def _told(comparison: Comparison) -> dict[str, Any]:
    return {
        "name": comparison.after.name,
        "verdict": verdict(comparison),
        "worse": bool(comparison.regressions or comparison.slowdowns),
        "notes": list(notes(comparison)),
        "rows": list(rows(comparison)),
        "messages": comparison.messages,
    }


def _keys(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """What is drawn: what changed first, then phases of guests; tests only if they changed."""
    found = [times for each in comparisons for times in each.times]
    changed = [times for times in found if times.verdict in ("slower", "faster")]
    guests = [times for times in found if times.phase != "call"]
    return list(dict.fromkeys((times.subject, times.phase) for times in [*changed, *guests]))


def _plots(sides: Sequence[Side], keys: Sequence[tuple[str, str]]) -> Iterator[_Plot]:
    of_sides = {f"{number}. {side.name}": samples(side.runs) for number, side in enumerate(sides, 1)}
    for number, (subject, phase) in enumerate(keys):
        lanes = {
            name: [value for values in found[subject, phase] for value in values]
            for name, found in of_sides.items()
            if (subject, phase) in found
        }
        yield _Plot(f"{subject}: {phase}", times_plot(lanes, name=str(number)))

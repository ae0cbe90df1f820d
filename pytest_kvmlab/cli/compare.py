"""`kvmlab compare`: what differs between runs."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from pytest_kvmlab.cli.output import AsJson, print_json, print_table
from pytest_kvmlab.compare.comparison import Comparison, Side
from pytest_kvmlab.compare.comparison import compare as compared
from pytest_kvmlab.compare.kernel_axis import kernels_of, under
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.baselines import Baselines, baselines_folder
from pytest_kvmlab.lab.whole_file import write_whole
from pytest_kvmlab.report.comparison import SUMMARY, document, notes, rows, summary, verdict
from pytest_kvmlab.spec.known_issues import KnownIssues, load_known_issues

Sides = Annotated[
    list[str],
    typer.Argument(
        help="Baselines, records of runs, or folders of artifacts; two, or one with several kernels."
    ),
]


def compare(
    sides: Sides,
    known_issues: Annotated[Path | None, typer.Option(help="A file of known issues.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots there.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what is otherwise in each run than in the first; exit status 1 if something is worse."""
    found = _comparisons(sides, load_known_issues(known_issues) if known_issues else KnownIssues())
    if html:
        # Its libraries are an extra, and take a second to import.
        from pytest_kvmlab.report.comparison_page import comparison_page  # noqa: PLC0415

        write_whole(html, comparison_page(found))
    if as_json:
        print_json([document(each) for each in found])
    else:
        for each in found:
            _print(each)
        if len(found) > 1:
            print()
            print_table([column.upper() for column in SUMMARY], summary(found))
    if any(each.regressions or each.slowdowns for each in found):
        raise typer.Exit(1)


def _comparisons(names: list[str], known: KnownIssues) -> list[Comparison]:
    baselines, today = Baselines(baselines_folder()), datetime.now(UTC).date()
    sides = [baselines.side(name, Path.cwd()) for name in names]
    first, *others = sides if len(sides) > 1 else _by_kernel(sides[0])
    return [compared(first, other, known=known.test, today=today) for other in others]


def _by_kernel(side: Side) -> list[Side]:
    """One side for each kernel that the tests of a run ran under."""
    kernels = kernels_of(side.runs)
    if len(kernels) < 2:
        raise ConfigError(
            "there is nothing to compare with",
            "name two: kvmlab compare BEFORE AFTER; or one that ran under several kernels (--kvm-kernel)",
        )
    return [Side(f"{side.name} under {kernel}", under(kernel, side.runs)) for kernel in kernels]


def _print(comparison: Comparison) -> None:
    for note in notes(comparison):
        print(note)
    if found := list(rows(comparison)):
        print_table(("", "WHAT", ""), found)
    print(f"{comparison.after.name}: {verdict(comparison)}")

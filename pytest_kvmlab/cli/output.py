"""How the command talks: tables and progress for people, JSON for scripts."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pytest_kvmlab.progress import Transfer

_UNLIMITED = 10_000  # columns: a pipe has no right margin

console = Console(width=None if sys.stdout.isatty() else _UNLIMITED)
# What is being done goes beside what was asked for: a script reads only the latter.
_beside = Console(stderr=True, width=None if sys.stderr.isatty() else _UNLIMITED)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def print_json(document: Any) -> None:
    """Print a document for a script: nothing is wrapped or coloured."""
    print(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under column names; in a pipe nothing is cut or coloured.

    Cells are text that anybody may have written: what would move the cursor is shown as a question mark.
    """
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for row in rows:
        table.add_row(*(escape(_printable(cell)) for cell in row))
    console.print(table)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def size(count: int) -> str:
    """Write a number of bytes for people: `1.5 GiB`."""
    number = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


@contextmanager
def progress(*, plain: bool = False) -> Iterator[Callable[[str, float | None], None]]:
    """Show on standard error what is being done: a bar on a terminal, a line for each step elsewhere.

    Args:
        plain: lines on a terminal too, because something else may write there meanwhile.

    Yields:
        What is told a step, and the done share of the whole, 0 to 1, or None if that is unknown.
    """
    if plain or not _beside.is_terminal:
        yield _lines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        _Rate(""),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_beside, transient=True) as bar:
        yield _bar(bar)


def _lines() -> Callable[[str, float | None], None]:
    told: list[str] = []

    def show(what: str, _share: float | None) -> None:
        if told[-1:] != [what]:
            told.append(what)
            print(what, file=sys.stderr, flush=True)

    return show


def _bar(bar: Progress) -> Callable[[str, float | None], None]:
    """Each step is a task of its own, so that the rate of one says nothing of the next."""
    task = bar.add_task("", total=None)
    shown = ""

    def show(what: str, share: float | None) -> None:
        nonlocal task, shown
        if what != shown:
            bar.remove_task(task)
            task, shown = bar.add_task(escape(what), total=None), what
        whole = what.total if isinstance(what, Transfer) else 1.0
        unit = "bytes" if isinstance(what, Transfer) else ""
        bar.update(task, completed=(share or 0.0) * whole, total=None if share is None else whole, unit=unit)

    return show


class _Rate(TextColumn):
    """Bytes in a second, where it is bytes that are moved."""

    def render(self, task: Task) -> Text:
        if task.fields.get("unit") != "bytes" or not task.speed:
            return Text()
        return Text(f"{size(int(task.speed))}/s", style="progress.data.speed")

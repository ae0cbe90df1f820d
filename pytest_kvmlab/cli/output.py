"""How the command talks: tables and progress for people, JSON for scripts."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

_UNLIMITED = 10_000  # columns: a pipe has no right margin

console = Console(width=None if sys.stdout.isatty() else _UNLIMITED)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def print_json(document: Any) -> None:
    """Print a document for a script: nothing is wrapped or coloured."""
    print(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under column names; in a pipe nothing is cut or coloured."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """Show what is being done: a bar on a terminal, a line for each step elsewhere.

    Yields:
        What is told a step, and the done share of the whole, 0 to 1, or None if that is unknown.
    """
    if not console.is_terminal:
        yield lambda what, _share: print(what, flush=True)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(what: str, share: float | None) -> None:
            bar.update(task, description=what, completed=share or 0.0, total=None if share is None else 1.0)

        yield show

"""How to reach and remove the guests that a run leaves behind on purpose."""

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.kept import KEPT_SECONDS, kept_guests, record_of


def kept_lines(run: RunFolder) -> list[str]:
    """Tell about the kept guests of a run, with commands to copy.

    Args:
        run: the run; its guests are let go of already.

    Returns:
        Lines for a person; none if no guest is kept.
    """
    guests = kept_guests(run)
    if not guests:
        return []
    lines = [line for name, folder in guests.items() for line in _guest_lines(run, name, folder)]
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + KEPT_SECONDS))
    return [*lines, f"they end at {until}, or with:", f"  {_command('down', run.run)}"]


def _guest_lines(run: RunFolder, name: str, folder: Path) -> Iterator[str]:
    record = record_of(folder)
    yield f"{name}, image {record['image']}, of {record['source']}"
    if record["channel"] == "ssh":
        yield f"  {_command('shell', run.run, name)}"
    yield f"  {_command('console', run.run, name)}"


def _command(*words: str) -> str:
    """A `kvmlab lab` command that finds the run from any shell, wherever runs are."""
    place = os.environ.get("KVMLAB_RUNS")
    moved = f"KVMLAB_RUNS={shlex.quote(place)} " if place else ""
    return moved + shlex.join(["kvmlab", "lab", *words])

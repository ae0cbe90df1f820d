"""What benches tell: figures with their limits, as a table and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """One line of a table; some are told without a limit."""

    name: str
    value: float
    told: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        return not (
            (self.at_most is not None and self.value > self.at_most)
            or (self.at_least is not None and self.value < self.at_least)
        )

    @property
    def limit(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


def report(figures: Iterable[Figure], file: Path | None) -> int:
    """Print each figure as soon as it is measured.

    Args:
        figures: measured one after the other.
        file: for all of them as JSON.

    Returns:
        The exit status: 1 if one of them falls short.
    """
    told = []
    for figure in figures:
        verdict = "" if figure.holds else "  FALLS SHORT"
        print(f"{figure.name:56} {figure.value:8.3f} {figure.limit:6} {figure.told}{verdict}", flush=True)
        told.append(figure)
    if file:
        file.write_text(json.dumps([vars(figure) for figure in told], indent=2))
    return 0 if all(figure.holds for figure in told) else 1

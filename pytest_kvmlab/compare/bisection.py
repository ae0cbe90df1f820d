"""Which of several versions is the first one that is bad, found with as few tries as possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["good", "bad", "skip"]


@dataclass(frozen=True)
class Bisection:
    """A search among versions: the first one is good, the last one is bad, and somewhere that changes.

    Attributes:
        versions: all of them, two at least; the first and the last are taken at somebody's word.
        verdicts: what is known of those between; `skip` where nothing can be said.
    """

    versions: Sequence[str]
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def bounds(self) -> tuple[int, int]:
        """The places of a good version and of a bad one behind it with none that is known between."""
        places = range(len(self.versions))
        bad = next(place for place in places if place == places[-1] or self._is(place, "bad"))
        return max(place for place in range(bad) if place == 0 or self._is(place, "good")), bad

    @property
    def open(self) -> tuple[str, ...]:
        """The versions between these bounds of which nothing is known, nor that nothing can be."""
        good, bad = self.bounds
        return tuple(each for each in self.versions[good + 1 : bad] if each not in self.verdicts)

    @property
    def next(self) -> str | None:
        """The version to try now, the one in the middle of what is open; None at the end."""
        return self.open[len(self.open) // 2] if self.open else None

    @property
    def suspects(self) -> tuple[str, ...]:
        """The versions of which one is the first bad one: one, but for those that were skipped before it."""
        good, bad = self.bounds
        return tuple(self.versions[good + 1 : bad + 1])

    def knowing(self, version: str, verdict: Verdict) -> "Bisection":
        """The search with one more verdict."""
        return Bisection(self.versions, {**self.verdicts, version: verdict})

    def _is(self, place: int, verdict: Verdict) -> bool:
        return self.verdicts.get(self.versions[place]) == verdict

"""What kernels complained about, told to a person."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pytest_kvmlab.kernel_log.finding import Finding
from pytest_kvmlab.spec.known_issues import Excuse

_SHOWN_STACK_LINES = 30


@dataclass(frozen=True)
class Complaint:
    """Something that the kernel of a guest complained about during a test.

    Attributes:
        guest: the guest's name.
        finding: the complaint.
        excuse: whether it is excused, and why.
    """

    guest: str
    finding: Finding
    excuse: Excuse


def describe_complaints(complaints: Iterable[Complaint]) -> str:
    """The complaints as the section of a test report; those that are the same are counted, not repeated."""
    return "\n".join(line for group in same_complaints(complaints) for line in _lines(group))


def failure_of(complaints: Iterable[Complaint]) -> str:
    """What fails a test whose kernels complained: each complaint without an excuse, and what to do."""
    groups = [group for group in same_complaints(complaints) if not group[0].excuse.holds]
    lines = [f"  {line}" for group in groups for line in _summary(group)]
    first = groups[0][0].finding
    return "\n".join(
        [
            f"the kernel of {', '.join(dict.fromkeys(group[0].guest for group in groups))} complained:",
            *lines,
            f"  what to do: see its report below; if the test means it: kvm(expect_kernel=[{first.kind!r}]);",
            "    if it is known and followed up elsewhere: --kvm-known-issues",
        ]
    )


def same_complaints(complaints: Iterable[Complaint]) -> list[list[Complaint]]:
    """Put the complaints of one guest that have one identity together, in the order of their first."""
    groups: dict[tuple[str, str], list[Complaint]] = {}
    for complaint in complaints:
        groups.setdefault((complaint.guest, complaint.finding.identity), []).append(complaint)
    return list(groups.values())


def _headline(group: list[Complaint]) -> str:
    finding = group[0].finding
    times = f" ({len(group)} times)" if len(group) > 1 else ""
    place = f" in {finding.where}" if finding.where else ""
    return f"{group[0].guest}: {finding.kind}: {finding.title}{place}{times}"


def _summary(group: list[Complaint]) -> Iterator[str]:
    yield _headline(group)
    if why := group[0].excuse.why:
        yield f"  {why}"


def _lines(group: list[Complaint]) -> Iterator[str]:
    yield from _summary(group)
    yield from (f"    {line}" for line in group[0].finding.stack[:_SHOWN_STACK_LINES])

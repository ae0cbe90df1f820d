"""A search for the first bad kernel: runs of a suite, and how far it was when it was stopped."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from pytest_kvmlab.compare.bisection import Bisection, Verdict
from pytest_kvmlab.drivers import debian
from pytest_kvmlab.drivers.pytest_run import run_pytest
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.kernels import find_kernel, kernels_at_hand
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.lab.whole_file import write_whole
from pytest_kvmlab.spec.kernel import flavour_of
from pytest_kvmlab.spec.run_record import RunRecord, read_runs

_PASSED, _FAILED = 0, 1

Judge = Callable[[str], Verdict]
"""Runs the suite under one kernel."""


@dataclass(frozen=True)
class Question:
    """What is searched for.

    Attributes:
        good: the release of a kernel under which the suite passes.
        bad: the release of one under which it fails.
        arguments: pytest's.
    """

    good: str
    bad: str
    arguments: tuple[str, ...]


def kernels_between(good: str, bad: str, store: Store) -> tuple[str, ...]:
    """The kernels at hand from a good one to a bad one, both included.

    Args:
        good: a version, or the name of a package.
        bad: the same.
        store: where older packages may be.

    Raises:
        ConfigError: they are the same kernel, or of two flavours.
        ImageError: there is no such kernel.
    """
    first, last = (find_kernel(wish, None, store) for wish in (good, bad))
    flavour = flavour_of(first, debian.architecture())
    if first == last or flavour_of(last, debian.architecture()) != flavour:
        raise ConfigError(
            f"there is nothing between the kernels {first} and {last}",
            "name two kernels of one flavour: --good 6.1.0-49 --bad 6.12",
        )
    offers = [each for each in kernels_at_hand(None, store)
              if flavour_of(each, debian.architecture()) == flavour]  # fmt: skip
    start, end = sorted((offers.index(first), offers.index(last)))
    between = tuple(offers[start : end + 1])
    return between if between[0] == first else between[::-1]


def search(
    question: Question,
    versions: Sequence[str],
    judge: Judge,
    state: Path,
    *,
    tell: Callable[[Bisection], None],
) -> Bisection:
    """Find the first bad kernel, going on where an earlier search for the same was stopped.

    Args:
        question: what is searched for.
        versions: from the good one to the bad one.
        judge: runs the suite.
        state: a file that is there while the search lasts.
        tell: called before each run.

    Returns:
        The search at its end; the file is gone then.
    """
    found = Bisection(versions, _known(question, state))
    while version := found.next:
        tell(found)
        found = found.knowing(version, judge(version))
        state.parent.mkdir(parents=True, exist_ok=True)
        write_whole(state, json.dumps({"question": asdict(question), "verdicts": dict(found.verdicts)}))
    state.unlink(missing_ok=True)
    return found


def judged(question: Question, version: str, artifacts: Path) -> Verdict:
    """Run a suite under a kernel.

    Args:
        question: has pytest's arguments.
        version: the kernel.
        artifacts: where the run leaves its record.

    Returns:
        `bad` if a test failed, or what it needs; `skip` if guests did not come up, or no test ran to its end.

    Raises:
        ConfigError: pytest did not run the suite: its arguments are wrong, or it was interrupted.
    """
    own = ["--kvm-lab", f"--kvm-kernel={version}", f"--kvm-artifacts={artifacts}"]
    status = run_pytest([*question.arguments, *own])
    if status not in (_PASSED, _FAILED):
        raise ConfigError(
            f"pytest ended with exit status {status} under the kernel {version}, so nothing is known of it",
            "run it by itself, then the same kvmlab bisect again: it goes on from here",
            looked_at=[" ".join(["pytest", *question.arguments, *own])],
        )
    (record,) = read_runs(artifacts)
    return verdict_of(record)


def verdict_of(record: RunRecord) -> Verdict:
    """What a run says of the kernel that it ran under; a guest that broke says nothing."""
    outcomes = {test.outcome for test in record.tests if not test.infrastructure}
    if outcomes & {"failed", "error"}:
        return "bad"
    broken = any(test.infrastructure for test in record.tests)
    return "good" if "passed" in outcomes and not broken else "skip"


def _known(question: Question, state: Path) -> Mapping[str, Verdict]:
    """What an earlier search for the same found out; nothing if there was none."""
    try:
        written = json.loads(state.read_bytes())
        same = written["question"] == json.loads(json.dumps(asdict(question)))
        verdicts = {str(version): verdict for version, verdict in written["verdicts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return verdicts if same and set(verdicts.values()) <= set(get_args(Verdict)) else {}

"""Runs whose tests ran once under each of several kernels: as runs for each, that compare test by test."""

import re
from collections.abc import Sequence

from pytest_kvmlab.spec.run_record import RunRecord

Runs = tuple[RunRecord, ...]

# The plugin puts the kernel at the end of a test's id.
_KERNEL = re.compile(r"(?P<before>.*)(?P<open>\[|-)kernel=(?P<kernel>[^\]]*)\]", re.DOTALL)


def kernels_of(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """The kernels that tests ran under, as `--kvm-kernel` named them, in the order of the tests."""
    found = (_KERNEL.fullmatch(test.id) for run in runs for test in run.tests)
    return tuple(dict.fromkeys(match["kernel"] for match in found if match))


def under(kernel: str, runs: Sequence[RunRecord]) -> Runs:
    """The same runs with only the tests that ran under one kernel."""
    end = f"kernel={kernel}]"
    return tuple(
        run.model_copy(update={"tests": tuple(test for test in run.tests if test.id.endswith(end))})
        for run in runs
    )


def aligned(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> tuple[Runs, Runs]:
    """Runs in which the same tests have equal ids.

    What ran under one kernel only is compared under that, whatever it is; what ran under several, each test
    with the same test under the same kernel.
    """
    if len(kernels_of(before)) > 1 or len(kernels_of(after)) > 1:
        return tuple(before), tuple(after)
    return tuple(map(_plain, before)), tuple(map(_plain, after))


def _plain(run: RunRecord) -> RunRecord:
    tests = tuple(test.model_copy(update={"id": _plain_id(test.id)}) for test in run.tests)
    return run.model_copy(update={"tests": tests})


def _plain_id(test: str) -> str:
    found = _KERNEL.fullmatch(test)
    if not found:
        return test
    return str(found["before"]) if found["open"] == "[" else f"{found['before']}]"

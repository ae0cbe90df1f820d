"""A test whose guest's kernel complained has failed, unless the complaint is expected or allowed.

Kernels are listened to as soon as the test's own code has ended: a complaint then fails the call, as an
assertion in its last line would, so that `xfail`, reruns and reports take it as they take any failure. What
a kernel says only while its test is taken down is an error of the teardown. A test that has failed already
keeps its own failure: the complaints are a section of its report.
"""

from collections.abc import Generator

import pytest

from pytest_kvmlab.plugin.accounts import FRESH
from pytest_kvmlab.plugin.session import INTERRUPTIONS, LabSession, told_without_traceback
from pytest_kvmlab.report.kernel import describe_complaints, failure_of


class KernelChecks:
    """Fails the tests whose kernels complained.

    Args:
        session: knows the guests.
    """

    def __init__(self, session: LabSession) -> None:
        self._session = session

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Tell the session whose turn it is."""
        self._session.running = item
        try:
            return (yield)
        finally:
            self._session.running = None

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """After the test's own code, look at its guests."""
        try:
            yield
        except INTERRUPTIONS:
            raise
        except BaseException:
            self._look(item)
            raise
        self._look(item)
        _fail_for_complaints(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, None, None]:
        """After its guests have gone, which were looked at a last time."""
        yield
        _fail_for_complaints(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Show what was found in this phase, excused or not: in a section, and to JUnit as properties."""
        fresh = item.stash.get(FRESH, [])
        item.stash[FRESH] = []
        item.user_properties += [(f"kvmlab.{each.guest}.complaint", each.finding.identity) for each in fresh]
        report = yield
        if fresh:
            report.sections.append(("kvmlab: kernel", describe_complaints(fresh)))
        return report

    def _look(self, item: pytest.Item) -> None:
        with told_without_traceback():
            for live in self._session.live_of(item):
                self._session.inspect(live.guest, live.node, ask=True)


def _fail_for_complaints(item: pytest.Item) -> None:
    if complaints := [each for each in item.stash.get(FRESH, []) if not each.excuse.holds]:
        pytest.fail(failure_of(complaints), pytrace=False)

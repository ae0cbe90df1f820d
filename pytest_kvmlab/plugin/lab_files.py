"""Reads the lab files of all tests before the first one runs: one that is wrong ends the run."""

from typing import Any

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plugin.asked import lab_of, merged_mark
from pytest_kvmlab.plugin.live import Node
from pytest_kvmlab.plugin.skipping import our_fixtures
from pytest_kvmlab.spec.options import Options
from pytest_kvmlab.spec.selection import needs_lab

_SENT = "kvmlab_wrong_lab_files"
"""What an xdist worker sends its controller, which collects no tests itself."""


class LabFiles:
    """The hooks that look at the lab files which tests get without naming them.

    Args:
        options: how to run.
    """

    def __init__(self, options: Options) -> None:
        self._options = options

    @pytest.hookimpl(trylast=True)  # when it is known which tests run
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Refuse lab files that are wrong; an xdist worker leaves that to its controller."""
        wrong = self._wrong(items)
        if wrong and hasattr(config, "workeroutput"):
            items.clear()
            config.workeroutput[_SENT] = wrong
        elif wrong:
            raise pytest.UsageError(*wrong)

    def _wrong(self, items: list[pytest.Item]) -> list[str]:
        """What is wrong, each file once."""
        found: dict[str, None] = {}
        for item in items:
            try:
                self._read(item)
            except ConfigError as error:
                found[str(error)] = None
        return list(found)

    def _read(self, item: pytest.Item) -> None:
        """Read the lab file of a test, and that of what it shares with its module.

        Raises:
            ConfigError: it is wrong, or there are several.
        """
        fixtures, module = our_fixtures(item), item.getparent(pytest.Module)
        self._read_nearest(item, one="kvm_guest" in fixtures, whole="kvm_lab" in fixtures)
        if module:
            self._read_nearest(module, one="shared_guest" in fixtures, whole="shared_lab" in fixtures)

    def _read_nearest(self, node: Node, *, one: bool, whole: bool) -> None:
        """Read the lab file of who asks for one guest or a whole lab, unless its mark says which or none."""
        if not (one or whole):
            return
        try:
            mark = merged_mark(node)
        except ConfigError:  # which the test's setup tells
            return
        if mark.lab is None and (whole or needs_lab(mark)):
            lab_of(mark, node, self._options)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Hear from an xdist worker which lab files are wrong."""
        if wrong := getattr(node, "workeroutput", {}).get(_SENT):
            raise pytest.UsageError(*wrong)

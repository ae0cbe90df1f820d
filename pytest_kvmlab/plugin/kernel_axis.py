"""Tests run once under each kernel of `--kvm-kernel`."""

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plugin import fixtures
from pytest_kvmlab.plugin.asked import asked_guest
from pytest_kvmlab.plugin.skipping import our_fixtures
from pytest_kvmlab.spec.options import Options

_FIXTURE = fixtures.kvm_kernel.__name__
_ONE_GUEST = {"kvm_guest", "shared_guest"}
_SEVERAL = {"kvm_lab", "shared_lab", "make_guest"}


class KernelAxis:
    """The hook that makes a test of each test and kernel.

    Args:
        options: how to run.
    """

    def __init__(self, options: Options) -> None:
        self._options = options

    @pytest.hookimpl(trylast=True)  # so that the kernel is the last word of an id, whatever comes before
    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give a test that wants guests one parameter more; tests under one kernel run together."""
        kernels = self._options.kernel
        if not kernels or _FIXTURE not in our_fixtures(metafunc.definition) or self._has_its_own(metafunc):
            return
        ids = [f"kernel={kernel}" for kernel in kernels]
        metafunc.parametrize(_FIXTURE, kernels, ids=ids, indirect=True, scope="session")

    def _has_its_own(self, metafunc: pytest.Metafunc) -> bool:
        """Whether mark or lab file say which kernel the one guest of a test has."""
        names = set(metafunc.fixturenames)
        if names & _SEVERAL or not names & _ONE_GUEST:
            return False
        try:
            return asked_guest(metafunc.definition, self._options).own_kernel
        except ConfigError:  # which the test's setup tells
            return False

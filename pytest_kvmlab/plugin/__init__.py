"""The pytest plugin: options, and what is loaded when they switch it on.

Every pytest of the environment imports this module, so it stays light: libvirt, paramiko, pydantic and the
like are imported by `session`, which is only loaded with `--kvm-lab`.
"""

import os
from typing import Literal

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plugin.fixtures import (
    guest,
    kvm_guest,
    kvm_host,
    kvm_kernel,
    kvm_lab,
    lab,
    make_guest,
    shared_guest,
    shared_lab,
)
from pytest_kvmlab.plugin.skipping import skip_without_lab
from pytest_kvmlab.spec.options import OPTIONS, Options, resolve_options

__all__ = [
    "guest",
    "kvm_guest",
    "kvm_host",
    "kvm_kernel",
    "kvm_lab",
    "lab",
    "make_guest",
    "shared_guest",
    "shared_lab",
]

_SESSION = "kvmlab-session"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register each option under its flag and its ini key."""
    group = parser.getgroup("kvmlab", "KVM guests (pytest-kvmlab)")
    group.addoption(
        "--kvm-lab",
        action="store_true",
        dest="kvmlab_lab",
        help="run the tests that need guests (also: KVMLAB=1)",
    )
    for option in OPTIONS:
        group.addoption(
            option.flag,
            action="append" if option.repeatable else "store",
            dest=f"kvmlab_{option.name}",
            metavar=option.metavar,
            help=f"{option.help} (also: {option.env}, ini key {option.ini})",
        )
        kind: Literal["linelist", "string"] = "linelist" if option.repeatable else "string"
        parser.addini(option.ini, option.help, type=kind, default=None)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read the options; with `--kvm-lab`, load what runs guests."""
    config.addinivalue_line(
        "markers", "kvm(**keys): the guest of a test: image, memory, networks, … (pytest-kvmlab)"
    )
    try:
        options = _options(config)
        if options.lab:
            _switch_on(config, options)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from None


def _switch_on(config: pytest.Config, options: Options) -> None:
    # Only now: these import libvirt and more, which a plain pytest should not pay for.
    from pytest_kvmlab.plugin.comparing import Comparing  # noqa: PLC0415
    from pytest_kvmlab.plugin.kernel_axis import KernelAxis  # noqa: PLC0415
    from pytest_kvmlab.plugin.kernel_checks import KernelChecks  # noqa: PLC0415
    from pytest_kvmlab.plugin.lab_files import LabFiles  # noqa: PLC0415
    from pytest_kvmlab.plugin.recording import Recording  # noqa: PLC0415
    from pytest_kvmlab.plugin.reporting import LabReporting  # noqa: PLC0415
    from pytest_kvmlab.plugin.resets import Resets  # noqa: PLC0415
    from pytest_kvmlab.plugin.run_report import RunReport  # noqa: PLC0415
    from pytest_kvmlab.plugin.session import LabSession  # noqa: PLC0415

    session = LabSession(config, options)
    config.pluginmanager.register(session, _SESSION)
    config.pluginmanager.register(LabReporting(session), "kvmlab-reporting")
    resets = Resets(session)
    config.pluginmanager.register(resets, "kvmlab-resets")
    config.pluginmanager.register(KernelAxis(options), "kvmlab-kernel-axis")
    config.pluginmanager.register(LabFiles(options), "kvmlab-lab-files")
    config.pluginmanager.register(KernelChecks(session), "kvmlab-kernel-checks")
    # At the end of a session each of these needs what the one before has found; pytest ends the guests of an
    # interrupted module only then, so all of them come last, in this order.
    recording = Recording(session, resets)
    config.pluginmanager.register(recording, "kvmlab-recording")
    config.pluginmanager.register(Comparing(session, recording, resets.failures), "kvmlab-comparing")
    config.pluginmanager.register(RunReport(session, recording), "kvmlab-run-report")


def _options(config: pytest.Config) -> Options:
    written = {option.name: config.getoption(f"kvmlab_{option.name}") for option in OPTIONS}
    written["lab"] = config.getoption("kvmlab_lab")
    ini = {option.name: config.getini(option.ini) for option in OPTIONS}
    return resolve_options(written, os.environ, ini)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without `--kvm-lab`, skip the tests that use our fixtures, and say why."""
    if not config.pluginmanager.hasplugin(_SESSION):
        skip_without_lab(items)

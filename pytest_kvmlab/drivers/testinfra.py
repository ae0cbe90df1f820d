"""pytest-testinfra over a guest's own `run`, so that it works the same over SSH and the serial line."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.errors import ConfigError

if TYPE_CHECKING:
    from testinfra.host import Host  # type: ignore[import-untyped] # it carries no types


def testinfra_host(run: Callable[[str], CommandResult]) -> "Host":
    """Make a testinfra host of a guest.

    Args:
        run: runs a command in the guest.

    Returns:
        A `testinfra.host.Host`, whose modules (`host.file`, `host.service`, …) ask the guest.

    Raises:
        ConfigError: pytest-testinfra is not installed.
    """
    try:
        from testinfra.backend import base  # type: ignore[import-untyped] # noqa: PLC0415 -- an extra
        from testinfra.host import Host  # noqa: PLC0415 -- an extra
    except ImportError as error:
        raise ConfigError(
            "pytest-testinfra is not installed", "pip install 'pytest-kvmlab[testinfra]'"
        ) from error

    class GuestBackend(base.BaseBackend):  # type: ignore[misc] # of an untyped class
        NAME = "kvmlab"

        def run(self, command: str, *args: str, **_: object) -> base.CommandResult:
            text = self.get_command(command, *args)
            result = run(text)
            return self.result(result.exit_status, self.encode(text), result.stdout, result.stderr)

    backend = GuestBackend("guest")
    host = Host(backend)
    backend.set_host(host)
    return host

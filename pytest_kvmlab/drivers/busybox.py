"""The door to a busybox that was unpacked and not installed."""

from pathlib import Path

from pytest_kvmlab.drivers.program import run

_SECONDS = 30


def applets(busybox: Path) -> list[str]:
    """Ask a busybox which commands it is.

    Args:
        busybox: the static program.

    Returns:
        Their paths, without a leading slash: `bin/sh`, `usr/bin/[`.

    Raises:
        HostError: the program is not there.
        ImageError: it does not run on this machine.
    """
    return run([busybox, "--list-full"], package="busybox-static", timeout=_SECONDS).split()

"""Namespaces of a run's own, and whether this user may make them."""

import os
import shutil
import subprocess

_PROBE_SECONDS = 10.0

_NAMESPACES = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
# libvirt needs its own uid inside: mapped to root it would call setgroups(2), which the kernel denies there.
_USER_NAMESPACE = ("--user", "--map-current-user", "--keep-caps")


def unshare_command(program: list[str]) -> list[str]:
    """The command that runs a program as PID 1 of namespaces of its own (unshare(1)).

    Args:
        program: the command line to run inside. For a user other than root, a user namespace is around it.
    """
    return ["unshare", *(() if os.geteuid() == 0 else _USER_NAMESPACE), *_NAMESPACES, *program]


def obstacle_to_namespaces() -> str:
    """Try to make the namespaces of a private host.

    Returns:
        Why it does not work; empty if it does.
    """
    if not shutil.which("unshare"):
        return "the program unshare is missing (Debian: util-linux)"
    command = unshare_command(["true"])
    try:
        tried = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"'{' '.join(command)}' does not end"
    return "" if tried.returncode == 0 else tried.stderr.strip() or f"unshare ended with {tried.returncode}"

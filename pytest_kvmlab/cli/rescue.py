"""A shell for a person in the guest of an image that could not be built."""

import sys

from pytest_kvmlab.drivers.terminal import interact
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.machine import connect_serial


def open_shell(guest: Guest) -> None:
    """Connect the terminal to a guest over the channel that its login names, until its user leaves.

    Raises:
        GuestError: the guest refused to start a shell, or its serial line is closed.
    """
    print("setup.sh failed. This is the half-built guest; it ends with this shell.", file=sys.stderr)
    if guest.spec.login.channel == "ssh":
        guest.ssh.interact()
        return
    print("Ctrl-] leaves its serial line.", file=sys.stderr)
    socket = guest.machine.plan.serial_socket
    guest.let_go()  # QEMU serves one connection at a time
    with connect_serial(socket) as line:
        interact(line)

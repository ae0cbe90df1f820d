"""Guests that stay after their run: what is written down so that another process finds its way in."""

import contextlib
import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError, GuestError, HostError
from pytest_kvmlab.keeper.client import Keeper, dial, dial_lan, hand_over_locks
from pytest_kvmlab.keeper.run_folder import KEPT, RunFolder, tail_of
from pytest_kvmlab.lab.access import LOGIN_FILES
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.machine import SSH_PORT, connect_serial
from pytest_kvmlab.lab.waits import until

KEPT_SECONDS = 8 * 3600.0
RECORD = KEPT
_HAND_OVER_SECONDS = 10.0
GUEST_DISK = "disk.qcow2"
_LOOPBACK = "127.0.0.1"


def leave(guest: Guest, source: str, locks: Sequence[Path] = ()) -> None:
    """Let go of a guest and write down how it is reached; the run's keeper has it from now on.

    The private key of its login lies in the run's folder already, readable by its owner only; a password is
    never written down.

    Args:
        guest: a guest that is switched on.
        source: the test or lab that it is of, for whoever finds it later.
        locks: those of its image and of its share of this machine, for the keeper to hold.

    Raises:
        HostError: the keeper is gone.
    """
    folder, channel = guest.machine.folder, _proved_channel(guest)
    record = {
        "name": guest.name,
        "source": source,
        "image": guest.spec.image,
        "user": guest.spec.login.user,
        "key": str(guest.spec.login.key or _folder_of_key(guest) / LOGIN_FILES[0]),
        "password": guest.spec.login.password is not None,
        "channel": channel,
        "host_key": guest.host_key,
        "ssh": _way_to_ssh(guest) if channel == "ssh" else None,
        "locks": [str(lock) for lock in locks],
    }
    guest.let_go()
    (folder / RECORD).write_text(json.dumps(record, indent=1))
    hand_over_locks(guest.machine.host.folder)


def hand_over(keeper: Keeper, seconds: float) -> None:
    """Leave a run to its keeper, and wait until that knows for how long.

    Args:
        keeper: the run's.
        seconds: after which it ends them.

    Raises:
        HostError: the keeper is gone, and with it what was to be kept; or it does not say that it knows.
    """
    keeper.keep(seconds)
    folder = keeper.folder
    if not until(lambda: folder.read(KEPT) or None, Deadline(_HAND_OVER_SECONDS)):
        raise HostError(
            f"the keeper of run {folder.run} did not say within {_HAND_OVER_SECONDS:g} s that it has guests",
            "see whether they are there: kvmlab ps; what is left of the run ends with: kvmlab reap --kept",
            looked_at=[folder.path / KEPT, f"{folder.keeper_log}: {tail_of(folder.keeper_log) or '(empty)'}"],
        )


def _proved_channel(guest: Guest) -> str:
    """The channel that let us in; `none` of a guest that never did: only its console tells why.

    A clone's channel was proved before its template was frozen.
    """
    channel, phases = guest.spec.login.channel, guest.machine.journal.of(guest.name, "phase")
    proved = any(event.name in (channel, "clone") and not event.outcome for event in phases)
    return channel if proved else "none"


def _folder_of_key(guest: Guest) -> Path:
    """A clone is let in by the key of its template."""
    return guest.machine.frozen.folder if guest.machine.frozen else guest.machine.folder


def _way_to_ssh(guest: Guest) -> dict[str, Any]:
    """Where the guest's SSH server is: in networks of a lab, on a real LAN, or behind a forwarded port."""
    if guest.machine.line:
        return {"lan": guest.nics[0].lan, "address": guest.nics[0].address, "port": SSH_PORT}
    return {"lan": None, "address": _LOOPBACK, "port": guest.machine.forwarded_port(SSH_PORT)}


def kept_guests(run: RunFolder) -> dict[str, Path]:
    """The guests of a run that were left to its keeper: their folders by name.

    Guests of different tests may have one name: each of them is called by the name of its folder.
    """
    folders = [path.parent for path in sorted(run.guests.glob(f"*/{RECORD}"))]
    names = [str(record_of(folder)["name"]) for folder in folders]
    times = Counter(names)
    return {
        name if times[name] == 1 else folder.name: folder for name, folder in zip(names, folders, strict=True)
    }


def record_of(folder: Path) -> dict[str, Any]:
    """What `leave` wrote down about a guest.

    Args:
        folder: the guest's folder.
    """
    record: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return record


def ssh_to(run: RunFolder, folder: Path, *, ask_password: Callable[[], str]) -> SshChannel:
    """An SSH channel to a kept guest, not yet open.

    Args:
        run: the run that it is of.
        folder: the guest's folder.
        ask_password: gives the password, where the login has one: it was never written down.

    Raises:
        ConfigError: the guest has no SSH.
    """
    record = record_of(folder)
    if record["ssh"] is None:
        raise ConfigError(f"{record['name']} has no SSH login", "use: kvmlab lab console")
    if record["password"]:
        login = Login(record["user"], password=ask_password())
    else:
        login = Login(record["user"], private_key=Path(record["key"]).read_text())
    way_in = partial(_dial, run, record["ssh"])
    return SshChannel(record["name"], way_in, login, host_key=record["host_key"] or "learn")


def disk_of(folder: Path) -> Path:
    """The first disk of a kept guest that is off.

    Args:
        folder: the guest's folder.

    Raises:
        ConfigError: the guest is on, or has no disk.
    """
    name, disk = record_of(folder)["name"], folder / GUEST_DISK
    if not disk.exists():
        raise ConfigError(f"{name} has no disk of an image")
    with contextlib.suppress(OSError), connect_serial(folder / "serial.sock"):
        raise ConfigError(f"{name} is on, so its disk is in motion", "in its shell: poweroff")
    return disk


def serial_of(folder: Path) -> socket.socket:
    """The serial line of a kept guest; it stays silent as long as somebody else is connected to it.

    Args:
        folder: the guest's folder.

    Raises:
        GuestError: the guest is gone.
    """
    try:
        return connect_serial(folder / "serial.sock")
    except OSError as error:
        raise GuestError(
            f"{record_of(folder)['name']} is gone: nobody answers on its serial line ({error.strerror})",
            "kvmlab ps lists what is up",
            phase="serial",
        ) from error


def _dial(run: RunFolder, ssh: dict[str, Any], seconds: float) -> socket.socket:
    lan, address, port = ssh["lan"], ssh["address"], ssh["port"]
    if lan:
        return dial_lan(run, lan, address, port, timeout=seconds)
    if address == _LOOPBACK and run.read("run.json").get("host") == "private":
        return dial(run, address, port, timeout=seconds)
    return socket.create_connection((address, port), timeout=seconds)

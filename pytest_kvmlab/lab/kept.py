"""Guests that stay after their run: what is written down so that another process finds its way in."""

import json
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.drivers.ssh_login import Login
from pytest_kvmlab.errors import ConfigError, GuestError
from pytest_kvmlab.keeper.client import dial
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.machine import SSH_PORT, connect_serial

KEPT_SECONDS = 8 * 3600.0
RECORD = "kept.json"
_LOOPBACK = "127.0.0.1"


def leave(guest: Guest, source: str) -> None:
    """Let go of a guest and write down how it is reached; the run's keeper has it from now on.

    The private key of its login lies beside the record already, readable by its owner only; a password is
    never written down.

    Args:
        guest: a guest that is switched on.
        source: the test or lab that it is of, for whoever finds it later.
    """
    folder, channel = guest.machine.folder, _proved_channel(guest)
    if channel == "ssh":
        guest.machine.forwarded_port(SSH_PORT)
    record = {
        "name": guest.name,
        "source": source,
        "image": guest.spec.image,
        "user": guest.spec.login.user,
        "key": str(guest.spec.login.key or folder / "id_ed25519"),
        "password": guest.spec.login.password is not None,
        "channel": channel,
        "host_key": guest.host_key,
        "ports": guest.machine.forwarded,
    }
    guest.let_go()
    (folder / RECORD).write_text(json.dumps(record, indent=1))


def _proved_channel(guest: Guest) -> str:
    """The channel that let us in; `none` of a guest that never did: only its console tells why."""
    channel = guest.spec.login.channel
    phases = guest.machine.journal.of(guest.name, "phase")
    return channel if any(event.name == channel and not event.outcome for event in phases) else "none"


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
    port = record["ports"].get(str(SSH_PORT))
    if port is None:
        raise ConfigError(f"{record['name']} has no SSH login", "use: kvmlab lab console")
    if record["password"]:
        login = Login(record["user"], password=ask_password())
    else:
        login = Login(record["user"], private_key=Path(record["key"]).read_text())
    return SshChannel(
        record["name"], partial(_dial, run, port), login, host_key=record["host_key"] or "learn"
    )


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


def _dial(run: RunFolder, port: int, seconds: float) -> socket.socket:
    if run.read("run.json").get("host") == "private":
        return dial(run, _LOOPBACK, port, timeout=seconds)
    return socket.create_connection((_LOOPBACK, port), timeout=seconds)

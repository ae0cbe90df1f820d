"""A store that two machines share over NFS: the locks of one hold in the other."""

from collections.abc import Callable
from pathlib import Path

import pytest

import pytest_kvmlab
from pytest_kvmlab import Guest
from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.launch import Launcher

pytestmark = pytest.mark.timeout(1800)

PACKAGE = Path(pytest_kvmlab.__file__).parent
NFS_PORT = 2049
IMAGE = "shared-store"
LEASE_SECONDS = 10
# Without a lease that is short, a dead machine's locks would stay for a minute and a half (nfsd(7)).
SERVE = f"""
mkdir -p /srv/store /etc/nfs.conf.d
echo '/srv/store *(rw,fsid=0,insecure,no_root_squash,sync,no_subtree_check)' >/etc/exports
cat >/etc/nfs.conf.d/short.conf <<'END'
[nfsd]
lease-time={LEASE_SECONDS}
grace-time={LEASE_SECONDS}
vers3=n
END
systemctl restart nfs-server
"""
# The server itself comes by NFS, too: its own flock(2) and the locks of its clients do not see each other.
MOUNT = "mkdir -p /store && mount -t nfs4 -o port={port} {address}:/ /store"
CODE = "/opt/pytest_kvmlab"
HOLD = """
import sys
from pathlib import Path
from pytest_kvmlab.lab import locks
with locks.shared(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
ASK = """
import sys
from pathlib import Path
from pytest_kvmlab.lab import locks
with locks.free(Path(sys.argv[1])) as ours:
    print("free" if ours else "held")
"""


def provide(guest: Guest) -> None:
    """Put the locks of the store, and what they import, into a guest."""
    guest.succeed(f"mkdir -p {CODE}/lab && touch {CODE}/__init__.py {CODE}/lab/__init__.py")
    guest.ssh.put(PACKAGE / "errors.py", f"{CODE}/errors.py")
    guest.ssh.put(PACKAGE / "lab" / "locks.py", f"{CODE}/lab/locks.py")
    for name, program in {"hold": HOLD, "ask": ASK}.items():
        guest.succeed(f"cat >/opt/{name}.py <<'END'\n{program}END")


def hold(guest: Guest) -> None:
    """Let a process of the guest hold the lock until it is killed."""
    guest.succeed(
        "systemd-run --unit=holder --property=StandardOutput=file:/run/held "
        "--setenv=PYTHONPATH=/opt sh -c 'sleep infinity | python3 /opt/hold.py /store/image.lock'"
    )
    guest.wait_until_succeeds("grep held /run/held")


def asked(guest: Guest) -> str:
    """Whether somebody holds the lock, as one guest sees it."""
    return guest.succeed("PYTHONPATH=/opt python3 /opt/ask.py /store/image.lock").strip()


@pytest.fixture
def machines(request: pytest.FixtureRequest, make_guest: Callable[..., Guest]) -> tuple[Guest, Guest]:
    """A file server and a client of it, both of which have mounted the store."""
    launcher = request.config.pluginmanager.getplugin("kvmlab-session").run.launcher
    assert isinstance(launcher, Launcher)
    build(Path(__file__).parent / IMAGE, launcher.images._store, guests=launcher, progress=print)
    server, client = make_guest(image=IMAGE), make_guest(image=IMAGE)
    # NFS tells its clients apart by their names: two of one name would take each other's locks away.
    for name, guest in {"server": server, "client": client}.items():
        guest.succeed(f"hostname {name}")
    server.succeed(SERVE, timeout=120)
    port = server.machine.forwarded_port(NFS_PORT)
    server.succeed(MOUNT.format(port=NFS_PORT, address="127.0.0.1"))
    client.succeed(MOUNT.format(port=port, address="10.0.2.2"), timeout=120)
    for guest in (server, client):
        provide(guest)
    return server, client


def test_the_locks_of_a_store_hold_between_machines(machines: tuple[Guest, Guest]) -> None:
    server, client = machines
    assert (asked(server), asked(client)) == ("free", "free")
    hold(client)
    assert (asked(server), asked(client)) == ("held", "held")
    client.succeed("systemctl kill --signal=KILL holder")
    server.wait_until_succeeds("PYTHONPATH=/opt python3 /opt/ask.py /store/image.lock | grep free")

    client.succeed("mount -o remount,ro /store")
    client.succeed("systemctl reset-failed; rm -f /run/held")
    hold(client)
    assert asked(server) == "held"
    client.crash()
    server.wait_until_succeeds(
        "PYTHONPATH=/opt python3 /opt/ask.py /store/image.lock | grep free", timeout=6 * LEASE_SECONDS
    )

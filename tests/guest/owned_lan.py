"""A process that owns a run with a network, without pytest: `python -m tests.guest.owned_lan [KIND]`.

Ends the run when its standard input ends. Of the kind `empty`, the name of the run is printed once the
network is there. Of any other, a guest is in the network: what its SSH server says first is printed, then
its address, and then, for each line of standard input, what that command prints in it.
"""

import os
import sys
from contextlib import ExitStack, closing

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork, LanRequest
from pytest_kvmlab.keeper.lans import Lan, open_lan
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.hosts import Host, choose_host, open_host
from pytest_kvmlab.lab.run import capabilities_folder, open_store
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.options import resolve_options
from tests.guest.lan_guests import SECONDS, Card, booted

OPTIONS = resolve_options({"lab": True}, os.environ, {})
WEB = LanHost("52:54:00:00:00:01", "10.77.0.10", "web", tap="ktweb")
KINDS = {
    "empty": LanNetwork("campus", "kbcampus", "10.77.0.1/24", hosts=(WEB,)),
    "closed": LanNetwork("campus", "kbcampus", "10.77.0.1/24", hosts=(WEB,)),
    "uplink": LanNetwork("campus", "kbcampus", "10.77.0.1/24", hosts=(WEB,), uplink=True),
    "real": LanNetwork("campus", "kbcampus", port_on="br0", hosts=(LanHost(WEB.mac, tap="ktweb"),)),
    "taken address": LanNetwork(
        "campus", "kbcampus", port_on="br0", hosts=(LanHost(WEB.mac, "192.0.2.1", tap="ktweb"),)
    ),
    "taken MAC": LanNetwork(
        "campus", "kbcampus", port_on="br0", hosts=(LanHost("52:54:00:00:00:99", tap="ktweb"),)
    ),
    "no bridge": LanNetwork("campus", "kbcampus", port_on="br7"),
}


def main() -> None:
    kind = sys.argv[1]
    with ExitStack() as stack:
        keeper = Keeper({}, capabilities=capabilities_folder(OPTIONS))
        stack.callback(keeper.close)
        choice, capabilities = choose_host("private"), capabilities_folder(OPTIONS)
        host = open_host(choice, keeper.folder, worker="main", capabilities=capabilities)
        stack.enter_context(closing(host))
        lan = stack.enter_context(closing(open_lan(host.folder, LanRequest("main", (KINDS[kind],)))))
        if kind == "empty":
            tell(host.folder.run)
            sys.stdin.read()
        else:
            _run_a_guest(host, lan, KINDS[kind])


def _run_a_guest(host: Host, lan: Lan, network: LanNetwork) -> None:
    image = ensure("micro", open_store(OPTIONS.store), progress=lambda *_: None)
    with booted(host, image, "web", [Card(network, network.hosts[0], "ktweb")]) as console:
        address = until(lambda: lan.addresses().get(WEB.mac), Deadline(SECONDS))
        with lan.dial(str(address), 22, SECONDS) as line:
            tell(line.recv(8).decode().strip())
        tell(str(address))
        _obey(console)


def _obey(console: SerialConsole) -> None:
    for command in sys.stdin:
        ran = console.run(command.strip(), timeout=SECONDS)
        tell(" ".join((ran.stdout + ran.stderr).split()))


def tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""The networks of one use of a lab: `python -m pytest_kvmlab.keeper.lan RUN-FOLDER NAME`.

PID 1 of a private host starts this process; what it was asked on is its standard input. It makes the bridges
in the run's network namespace, and in one of its own, where nothing of another use of the lab is, our ends of
them, with DHCP and names. It takes all of that down when its owner hangs up, and ends.
"""

import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.conversations import answer_in_threads, dial_for, listen
from pytest_kvmlab.keeper.faults import Wire, as_faults
from pytest_kvmlab.keeper.lan_request import LONGEST, LanRequest, as_request, taps
from pytest_kvmlab.keeper.links import (
    Port,
    enter_new_network_namespace,
    inner_name,
    make_links,
    refuse_closed_tun,
    refuse_taken_names,
    remove_links,
)
from pytest_kvmlab.keeper.names_and_leases import NameServer, names_elsewhere
from pytest_kvmlab.keeper.protocol import as_dial, receive_document, refusal, say
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.keeper.segment import Segment
from pytest_kvmlab.keeper.uplink import prepare_way_out

_OWNER = 0  # standard input: the connection of who asked for these networks


def main() -> int:
    """Make networks, and take them down when their owner is done or dead."""
    folder, name = RunFolder(Path(sys.argv[1])), sys.argv[2]
    with socket.socket(fileno=_OWNER) as owner:
        try:
            with _opened(_asked(owner, name), folder):
                say(owner, {})
                _wait_for_the_end(owner)
        except (OSError, ValueError, HostError) as error:
            with contextlib.suppress(OSError):
                say(owner, refusal(error))
            return 1
    return 0


def _asked(owner: socket.socket, name: str) -> LanRequest:
    """What the owner wants, once it knows that it is heard."""
    say(owner, {})
    request = as_request(receive_document(owner, longest=LONGEST))
    if request.lan != name:
        raise ValueError(f"this is {name}, not {request.lan}")
    return request


@contextlib.contextmanager
def _opened(request: LanRequest, run: RunFolder) -> Iterator[None]:
    with ExitStack() as made:
        folder = run.lan(request.lan)
        folder.mkdir()
        made.callback(shutil.rmtree, folder, ignore_errors=True)
        refuse_closed_tun()
        refuse_taken_names(request)
        networks = _Networks(request, folder)
        enter_new_network_namespace()
        made.callback(networks.remove)
        networks.make()
        listener = made.enter_context(listen(run.lan_socket(request.lan)))
        answer_in_threads(listener, networks.answer)
        yield


class _Networks:
    """The networks of this lan. To be made in the run's network namespace, before this process leaves it."""

    def __init__(self, request: LanRequest, folder: Path) -> None:
        self._request = request
        self._run = _opened_namespace("net")
        self._segments = {
            network.name: Segment({host.mac: host.address for host in network.hosts})
            for network in request.networks
            if network.port_on
        }
        self._servers = [
            NameServer(network, inner_name(index), folder, names_elsewhere(request, network))
            for index, network in enumerate(request.networks)
            if network.gateway
        ]
        # Root has the kernel join them with the host's bridges.
        self._ports = {name: Port() for name in self._segments if os.geteuid() != 0}
        self._wire = Wire(request.lan)
        self._way_out: list[int] = []
        self._end = -1

    def make(self) -> None:
        """Make all of them, in the run's namespace and in the one of this process."""
        make_links(self._request)
        prepare_way_out(self._request)
        for network in self._request.networks:
            if segment := self._segments.get(network.name):
                segment.listen(network.bridge)
            if port := self._ports.get(network.name):
                port.plug_into(network.bridge)
        for server in self._servers:
            server.start()
        self._end, self._held_until_the_end = os.pipe()
        users = [] if os.geteuid() == 0 else [_opened_namespace("user")]
        self._way_out = [_opened_namespace("net"), self._end, *users]

    def remove(self) -> None:
        """Remove whatever of them is there."""
        for server in self._servers:
            server.stop()
        self._wire.heal()
        remove_links(self._request)

    def answer(self, line: socket.socket) -> None:
        """Read one question, and answer it."""
        match receive_document(line, longest=LONGEST):
            case {"tell": "addresses"}:
                say(line, self._addresses())
            case {"tell": "way out"}:
                say(line, {}, self._way_out)
            case {"tell": "run"}:
                say(line, {}, [self._run])
            case {"tell": "port", "of": str(name)} if name in self._ports:
                say(line, {}, [self._ports[name].descriptor, self._end])
            case {"tell": "taken"}:
                say(line, self._taken())
            case {"faults": faults}:
                say(line, self._break(faults))
            case document:
                dial_for(line, as_dial(document))

    def _break(self, document: object) -> dict[str, str]:
        """Make these the faults on the wire; why that cannot be, if it cannot."""
        try:
            self._wire.apply(as_faults(document, list(taps(self._request))))
        except (ValueError, HostError) as error:
            return refusal(error)
        return {}

    def _addresses(self) -> dict[str, str]:
        """The address of each network card, as leased by us or seen on a real LAN."""
        sources: list[NameServer | Segment] = [*self._servers, *self._segments.values()]
        return {mac: address for source in sources for mac, address in source.addresses().items()}

    def _taken(self) -> dict[str, str]:
        """Which fixed addresses on real LANs somebody has already, and who."""
        return {
            address: mac
            for network in self._request.networks
            if (segment := self._segments.get(network.name))
            for address, mac in segment.taken(
                [host.address for host in network.hosts if host.address]
            ).items()
        }


def _opened_namespace(kind: str) -> int:
    return os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def _wait_for_the_end(owner: socket.socket) -> None:
    """Wait until the owner says so or hangs up; once it says that all is to be kept, for the run's end."""
    owner.settimeout(None)
    if owner.recv(100) == b"keep\n":
        owner.close()
        while True:
            signal.pause()


if __name__ == "__main__":
    # Straight out: threads that still dial would hold an interpreter that ends in order.
    os._exit(main())

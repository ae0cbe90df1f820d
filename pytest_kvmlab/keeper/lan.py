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
from functools import partial
from pathlib import Path

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.conversations import answer_in_threads, dial_for, listen
from pytest_kvmlab.keeper.lan_request import LONGEST, LanRequest, as_request
from pytest_kvmlab.keeper.links import (
    enter_new_network_namespace,
    inner_name,
    make_links,
    refuse_taken_names,
    remove_links,
)
from pytest_kvmlab.keeper.names_and_leases import NameServer
from pytest_kvmlab.keeper.protocol import as_dial, receive_document, say
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.keeper.uplink import prepare_way_out

_OWNER = 0  # standard input: the connection of who asked for these networks


def main() -> int:
    """Make networks, and take them down when their owner is done or dead."""
    folder, name = RunFolder(Path(sys.argv[1])), sys.argv[2]
    with socket.socket(fileno=_OWNER) as owner:
        try:
            with _opened(_asked(owner, name), folder.lan(name)):
                say(owner, {})
                _wait_for_the_end(owner)
        except (OSError, ValueError, HostError) as error:
            with contextlib.suppress(OSError):
                say(owner, {"error": str(error)})
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
def _opened(request: LanRequest, folder: Path) -> Iterator[None]:
    with ExitStack() as made:
        folder.mkdir()
        made.callback(shutil.rmtree, folder, ignore_errors=True)
        refuse_taken_names(request)
        enter_new_network_namespace()
        made.callback(remove_links, request)
        make_links(request)
        prepare_way_out(request)
        servers = [
            NameServer(network, inner_name(index), folder)
            for index, network in enumerate(request.networks)
            if network.gateway
        ]
        for server in servers:
            made.callback(server.stop)
            server.start()
        listener = made.enter_context(listen(folder / "sock"))
        answer_in_threads(listener, partial(_answer, servers, _passes()))
        yield


def _passes() -> list[int]:
    """Descriptors for whoever leads out of this lan: its namespaces, and what tells of its end."""
    end, _held_until_the_end = os.pipe()
    names = ["net"] if os.geteuid() == 0 else ["net", "user"]
    network, *user = (os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in names)
    return [network, end, *user]


def _answer(servers: list[NameServer], passes: list[int], line: socket.socket) -> None:
    match receive_document(line):
        case {"tell": "addresses"}:
            leases = [server.leases() for server in servers]
            say(line, {mac: address for each in leases for mac, address in each.items()})
        case {"tell": "passes"}:
            say(line, {}, passes)
        case document:
            dial_for(line, as_dial(document))


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

"""Guests with network cards of any kind, on a private host, without the lab that starts them for users."""

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.console_log import ConsoleReader
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork
from pytest_kvmlab.lab.hosts import Host
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.spec.manifest import INITRD, KERNEL

SECONDS = 120.0

_GUEST = """
<domain type='qemu'>
  <name>kvl-{run}-{name}</name><memory unit='MiB'>192</memory><cpu mode='maximum'/>
  <os>
    <type machine='q35'>hvm</type>
    <kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <controller type='usb' model='none'/><memballoon model='none'/>
    {cards}
    <serial type='unix'><source mode='connect' path='{line}'/></serial>
  </devices>
</domain>
"""
_OF_A_BRIDGE = (
    "<interface type='bridge'><source bridge='{bridge}'/><target dev='{device}'/>{rest}</interface>"
)
_OF_A_TAP = "<interface type='ethernet'><target dev='{device}' managed='no'/>{rest}</interface>"
_REST = "<mac address='{mac}'/><model type='virtio'/>"


@dataclass(frozen=True)
class Card:
    """A network card: in a network, as one of its hosts, behind a device of this name."""

    network: LanNetwork
    host: LanHost
    device: str

    def xml(self) -> str:
        form = _OF_A_TAP if self.host.tap else _OF_A_BRIDGE
        rest = _REST.format(mac=self.host.mac)
        return form.format(bridge=self.network.bridge, device=self.device, rest=rest)


@contextmanager
def booted(host: Host, image: Image, name: str, cards: Sequence[Card]) -> Iterator[SerialConsole]:
    """The shell of a guest on its serial line, once it has settled."""
    folder = host.folder.guests / name
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "line"))
        listener.listen()
        domain = host.connection.create(_xml(host, image, name, cards, folder / "line"), autodestroy=True)
        console = SerialConsole(ConsoleReader(listener.accept()[0], folder / "console.log"))
    try:
        domain.resume()
        console.expect(re.compile("micro: ready.*# ", re.DOTALL), timeout=SECONDS)
        console.run(f"until {image.manifest.guest['ready']}; do sleep 0.2; done", timeout=SECONDS)
        yield console
    finally:
        console.close()
        domain.destroy()


def _xml(host: Host, image: Image, name: str, cards: Sequence[Card], line: Path) -> str:
    return _GUEST.format(
        run=host.folder.run,
        name=name,
        kernel=image.folder / KERNEL,
        initrd=image.folder / INITRD,
        cmdline=escape(f"{image.manifest.cmdline} panic=-1"),
        cards="".join(card.xml() for card in cards),
        line=line,
    )


def settled(console: SerialConsole, command: str, seconds: float = 30.0) -> bool:
    """Whether a command in a guest succeeds at last."""
    deadline = Deadline(seconds)
    while not deadline.passed:
        if console.run(command, timeout=SECONDS).exit_status == 0:
            return True
    return False

"""What is seen on the bridge of a real LAN: who has which address there, and who took ours.

Packets are read from a packet socket (packet(7)) of the run's namespace. ARP: RFC 826, and RFC 5227 for the
question whether an address is taken; DHCP: RFC 2131.
"""

import ctypes
import socket
import struct
import threading
import time
from collections.abc import Collection
from ipaddress import IPv4Address

_ARP, _ALL = 0x0806, 0x0003  # linux/if_ether.h
_PACKET_LEVEL, _ADD_MEMBERSHIP, _PROMISCUOUS, _ATTACH_FILTER = 263, 1, 1, 26  # packet(7), socket(7)
_LONGEST_FRAME = 2048
_PROBES, _BETWEEN_PROBES_SECONDS = 3, 0.4
_BROADCAST = b"\xff" * 6
_COOKIE = b"\x63\x82\x53\x63"  # where DHCP's options begin
_MESSAGE_TYPE, _ACKNOWLEDGED, _PAD, _END = 53, 5, 0, 255

# Lets ARP pass, and UDP from the port of DHCP servers, by the code of classic BPF (linux/filter.h):
# operation, jumps if true and if not, and a number. Everything else would only keep Python busy.
_PASSES = (
    (0x28, 0, 0, 12),  # half word at 12: the protocol
    (0x15, 8, 0, _ARP),
    (0x15, 0, 8, 0x0800),  # IPv4
    (0x30, 0, 0, 23),  # byte at 23: what it carries
    (0x15, 0, 6, 17),  # UDP
    (0x28, 0, 0, 20),
    (0x45, 4, 0, 0x1FFF),  # a later fragment has no port
    (0xB1, 0, 0, 14),  # length of the IP header
    (0x48, 0, 0, 14),  # half word behind it: the port it is from
    (0x15, 0, 1, 67),
    (0x06, 0, 0, _LONGEST_FRAME),
    (0x06, 0, 0, 0),
)


class Segment:
    """One bridge, as seen from itself.

    The socket belongs to the network namespace that the process is in when this is made.

    Args:
        macs: of the network cards that are ours.
    """

    def __init__(self, macs: Collection[str]) -> None:
        self._macs = frozenset(macs)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._seen: dict[str, str] = {}
        self._senders: dict[str, str] = {}
        self._stopped = threading.Event()

    def listen(self, bridge: str) -> None:
        """Begin to read what passes a bridge.

        Raises:
            OSError: there is no such bridge.
        """
        program = b"".join(struct.pack("HBBI", *operation) for operation in _PASSES)
        code = ctypes.create_string_buffer(program)
        attached = struct.pack("HP", len(_PASSES), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, attached)
        self._socket.bind((bridge, _ALL))
        threading.Thread(target=self._read, daemon=True).start()

    def addresses(self) -> dict[str, str]:
        """The addresses of our network cards, as far as they were seen, by MAC."""
        return dict(self._seen)

    def taken(self, addresses: Collection[str]) -> dict[str, str]:
        """Ask whether anybody has one of these addresses (RFC 5227, section 2.1.1, in a second).

        Returns:
            The MAC addresses of those who answered, by address.
        """
        self._senders.clear()
        own = self._socket.getsockname()[4]
        for _ in range(_PROBES):
            for address in addresses:
                self._socket.send(arp_probe(own, address))
            self._stopped.wait(_BETWEEN_PROBES_SECONDS)
        return {address: self._senders[address] for address in addresses if address in self._senders}

    def _read(self) -> None:
        while True:
            frame = self._socket.recv(_LONGEST_FRAME)
            if found := sender(frame) or acknowledged(frame):
                mac, address = found
                self._senders[address] = mac
                if mac in self._macs:
                    self._seen[mac] = address

"""What is seen on the bridge of a real LAN: who has which address there, and who took ours.

Packets are read from a packet socket (packet(7)) of the run's namespace. ARP: RFC 826, and RFC 5227 for the
question whether an address is taken; DHCP: RFC 2131.
"""

import ctypes
import fcntl
import socket
import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

_ARP, _ALL = 0x0806, 0x0003  # linux/if_ether.h
_GET_INDEX = 0x8933  # SIOCGIFINDEX, netdevice(7)
_PACKET_LEVEL, _ADD_MEMBERSHIP, _PROMISCUOUS, _ATTACH_FILTER = 263, 1, 1, 26  # packet(7), socket(7)
_LONGEST_FRAME = 2048
_PROBES, _BETWEEN_PROBES_SECONDS = 3, 0.4
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


@dataclass(frozen=True)
class Sightings:
    """Where network cards were seen.

    Attributes:
        expected: the address that each is to have, by MAC address; None leaves that open.
        seen: the address that each was seen to have last. Once it was the one that it is to have, it stays
            that one: a card may have others beside it.
    """

    expected: Mapping[str, str | None]
    seen: dict[str, str] = field(default_factory=dict)

    def note(self, mac: str, address: str) -> None:
        """Take a sighting; those of strangers are passed by."""
        if mac in self.expected and self.seen.get(mac, "") != self.expected[mac]:
            self.seen[mac] = address


class Segment:
    """One bridge, as seen from itself.

    The socket belongs to the network namespace that the process is in when this is made.

    Args:
        cards: the network cards that are ours: their MAC addresses, and the address that each is to have.
    """

    def __init__(self, cards: Mapping[str, str | None]) -> None:
        self._cards = Sightings(cards)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._asked: dict[str, str | None] = {}
        self._never = threading.Event()

    def listen(self, bridge: str) -> None:
        """Begin to read what passes a bridge, whomever it is for.

        Raises:
            OSError: there is no such bridge.
        """
        code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in _PASSES))
        attached = struct.pack("HP", len(_PASSES), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, attached)
        self._socket.bind((bridge, _ALL))
        membership = struct.pack("iHH8x", self._index(bridge), _PROMISCUOUS, 0)
        self._socket.setsockopt(_PACKET_LEVEL, _ADD_MEMBERSHIP, membership)
        threading.Thread(target=self._read, daemon=True).start()

    def _index(self, bridge: str) -> int:
        """The number of a device in the namespace of the socket, in which this process is no more."""
        answer = fcntl.ioctl(self._socket, _GET_INDEX, struct.pack("16si", bridge.encode(), 0))
        return int(struct.unpack("16si", answer)[1])

    def addresses(self) -> dict[str, str]:
        """The addresses of our network cards, as far as they were seen, by MAC."""
        return dict(self._cards.seen)

    def taken(self, addresses: Collection[str]) -> dict[str, str]:
        """Ask whether anybody has one of these addresses (RFC 5227 section 2.1.1, within a second or two).

        Returns:
            The MAC addresses of those who answered, by address.
        """
        self._asked = dict.fromkeys(addresses)
        own = self._socket.getsockname()[4]
        for _ in range(_PROBES):
            for address in addresses:
                self._socket.send(arp_probe(own, address))
            self._never.wait(_BETWEEN_PROBES_SECONDS)
        return {address: mac for address, mac in self._asked.items() if mac}

    def _read(self) -> None:
        while True:
            frame = self._socket.recv(_LONGEST_FRAME)
            if found := announced(frame) or acknowledged(frame):
                mac, address = found
                if address in self._asked:
                    self._asked[address] = mac
                self._cards.note(mac, address)


def arp_probe(mac: bytes, address: str) -> bytes:
    """Write the question who has an address, from somebody who has none."""
    to_all = struct.pack("!6s6sH", b"\xff" * 6, mac, _ARP)
    return to_all + struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mac, bytes(4), bytes(6),
                                IPv4Address(address).packed)  # fmt: skip


def announced(frame: bytes) -> tuple[str, str] | None:
    """Read who sends an ARP packet, question or answer.

    Returns:
        MAC and address; None if it is none, or if the sender has no address yet.
    """
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04" or frame[28:32] == bytes(4):
        return None
    return _mac(frame[22:28]), str(IPv4Address(frame[28:32]))


def acknowledged(frame: bytes) -> tuple[str, str] | None:
    """Read whom a DHCP server has just given which address.

    Returns:
        MAC and address; None if it is no such packet.
    """
    if len(frame) < 34 or frame[12:14] != b"\x08\x00":
        return None
    message = frame[14 + (frame[14] & 0xF) * 4 + 8 :]
    if message[:3] != b"\x02\x01\x06" or message[236:240] != _COOKIE:
        return None
    if _option(message[240:], _MESSAGE_TYPE) != bytes([_ACKNOWLEDGED]) or message[16:20] == bytes(4):
        return None
    return _mac(message[28:34]), str(IPv4Address(message[16:20]))


def _option(options: bytes, wanted: int) -> bytes | None:
    """One of DHCP's options: each a code, a length, and as many bytes (RFC 2132)."""
    while options and options[0] != _END:
        if options[0] == _PAD:
            options = options[1:]
            continue
        length = options[1] if len(options) > 1 else 0
        if options[0] == wanted:
            return options[2 : 2 + length]
        options = options[2 + length :]
    return None


def _mac(six: bytes) -> str:
    return six.hex(":")

"""What tells guests their addresses and names in a network without a kernel's: frames in, frames out. Pure.

DHCP: RFC 2131 and RFC 2132. DNS: RFC 1035. What a guest sends is only read, within its bounds.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface

_IPV4, _UDP = 0x0800, 17
_DHCP_SERVER, _DHCP_CLIENT, _DNS = 67, 68, 53
_COOKIE = b"\x63\x82\x53\x63"
_PAD, _END = 0, 255
_MASK, _NAME_SERVER, _HOST_NAME, _DOMAIN, _WANTED, _LEASE, _TYPE, _SERVER = 1, 6, 12, 15, 50, 51, 53, 54
_DISCOVER, _OFFER, _REQUEST, _ACKNOWLEDGE, _REFUSE = 1, 2, 3, 5, 6
_FOR_EVER = b"\xff" * 4
_TO_ALL = IPv4Address("255.255.255.255")
_A, _INTERNET, _SECONDS = 1, 1, 60
_ANSWER, _NOT_THERE = 0x8580, 3  # an answer of who knows; no such name


@dataclass(frozen=True)
class Known:
    """What a card is told: its address, and the name of its guest, if it is the first card of one here."""

    address: IPv4Address
    name: str | None


@dataclass(frozen=True)
class Station:
    """The DHCP and name server of one network. It has no address of its own; it answers for the gateway's.

    Attributes:
        gateway: that address, with the network's size.
        mac: whom the gateway's packets are from.
        cards: the cards in the network, by MAC address in small letters.
        names: the addresses of guests by name.
        domain: the domain of the names, if there is one.
        taken: the addresses that cards have taken so far.
    """

    gateway: IPv4Interface
    mac: str
    cards: Mapping[str, Known]
    names: Mapping[str, IPv4Address]
    domain: str | None = None
    taken: dict[str, str] = field(default_factory=dict)

    def answer(self, frame: bytes) -> list[bytes] | None:
        """Answer a frame.

        Args:
            frame: from any card.

        Returns:
            What to send back, which may be nothing; None if the frame is for somebody else.
        """
        if (packet := _as_udp(frame)) is None:
            return None
        if packet.to_port == _DHCP_SERVER:
            return [self._reply(packet, _TO_ALL, told) for told in self._lease(packet.data)]
        if packet.to_port == _DNS and packet.target == self.gateway.ip:
            return [self._reply(packet, packet.source, told) for told in self._look_up(packet.data)]
        return None

    def _reply(self, packet: "_Udp", target: IPv4Address, data: bytes) -> bytes:
        mac = bytes.fromhex(self.mac.replace(":", ""))
        udp = struct.pack("!HHHH", packet.to_port, packet.from_port, 8 + len(data), 0) + data
        return packet.sender + mac + struct.pack("!H", _IPV4) + _ip(self.gateway.ip, target, udp)

    def _lease(self, message: bytes) -> Iterator[bytes]:
        """Answer a DHCP message, if it is from a card that we know."""
        if len(message) < 240 or message[:3] != b"\x01\x01\x06" or message[236:240] != _COOKIE:
            return
        mac, options = message[28:34].hex(":"), dict(_options(message[240:]))
        card, kind = self.cards.get(mac), options.get(_TYPE, b"")
        if card is None:
            return
        if kind == bytes([_DISCOVER]):
            yield self._offer(message, card, _OFFER)
        elif kind == bytes([_REQUEST]):
            wanted = options.get(_WANTED) or message[12:16]
            if wanted == card.address.packed:
                self.taken[mac] = str(card.address)
                yield self._offer(message, card, _ACKNOWLEDGE)
            else:
                yield self._offer(message, card, _REFUSE)

    def _offer(self, asked: bytes, card: Known, kind: int) -> bytes:
        own, address = self.gateway.ip.packed, card.address.packed if kind != _REFUSE else bytes(4)
        options = [(_TYPE, bytes([kind])), (_SERVER, own)]
        if kind != _REFUSE:
            options += [(_LEASE, _FOR_EVER), (_MASK, self.gateway.netmask.packed), (_NAME_SERVER, own)]
            options += [(_DOMAIN, self.domain.encode())] if self.domain else []
            options += [(_HOST_NAME, card.name.encode())] if card.name else []
        # An answer to the same question: the client's number, flags and hardware address come back.
        head = b"\x02\x01\x06\x00" + asked[4:8] + bytes(2) + asked[10:12] + bytes(4) + address + own
        told = b"".join(bytes([code, len(value)]) + value for code, value in options)
        return head + asked[24:44] + bytes(192) + _COOKIE + told + bytes([_END])

    def _look_up(self, question: bytes) -> Iterator[bytes]:
        """Answer a question for a name; other names than guests' do not exist here."""
        if len(question) < 12 or question[2] & 0xF8 or question[4:6] != b"\x00\x01":
            return  # no plain question (section 4.1.1)
        if (found := _name(question[12:])) is None:
            return
        name, length = found
        kind, of = struct.unpack_from("!HH", question, 12 + length)
        address = self._address(name)
        records = b""
        if address and (kind, of) == (_A, _INTERNET):
            records = struct.pack("!HHHIH", 0xC00C, _A, _INTERNET, _SECONDS, 4) + address.packed
        flags = _ANSWER | (question[2] & 1) << 8 | (0 if address else _NOT_THERE)
        head = question[:2] + struct.pack("!HHHHH", flags, 1, bool(records), 0, 0)
        yield head + question[12 : 16 + length] + records

    def _address(self, name: str) -> IPv4Address | None:
        return self.names.get(name.removesuffix(f".{self.domain}") if self.domain else name)


@dataclass(frozen=True)
class _Udp:
    sender: bytes
    source: IPv4Address
    target: IPv4Address
    from_port: int
    to_port: int
    data: bytes


def _as_udp(frame: bytes) -> _Udp | None:
    """Read a frame that carries a whole UDP packet (RFC 791, RFC 768)."""
    if len(frame) < 42 or frame[12:14] != b"\x08\x00" or frame[14] >> 4 != 4 or frame[23] != _UDP:
        return None
    start, fragment = 14 + (frame[14] & 0xF) * 4, struct.unpack_from("!H", frame, 20)[0]
    if fragment & 0x3FFF or len(frame) < start + 8:
        return None
    from_port, to_port, length = struct.unpack_from("!HHH", frame, start)
    return _Udp(
        sender=frame[6:12],
        source=IPv4Address(frame[26:30]),
        target=IPv4Address(frame[30:34]),
        from_port=from_port,
        to_port=to_port,
        data=frame[start + 8 : start + length],
    )


def _ip(source: IPv4Address, target: IPv4Address, udp: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, _UDP, 0) + source.packed + target.packed
    return head[:10] + _checksum(head) + head[12:] + udp


def _checksum(head: bytes) -> bytes:
    """The complement of the sum of all half words (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def _options(options: bytes) -> Iterator[tuple[int, bytes]]:
    """DHCP's options: each a code, a length, and as many bytes."""
    while options and options[0] != _END:
        if options[0] == _PAD:
            options = options[1:]
            continue
        length = options[1] if len(options) > 1 else 0
        yield options[0], options[2 : 2 + length]
        options = options[2 + length :]


def _name(question: bytes) -> tuple[str, int] | None:
    """The name that is asked for, in small letters, and how many bytes it takes; None if it is none."""
    labels, at = [], 0
    while at < len(question) and 0 < question[at] < 64:
        labels.append(question[at + 1 : at + 1 + question[at]])
        at += 1 + question[at]
    if at + 5 > len(question) or question[at] != 0:
        return None
    return b".".join(labels).decode("latin-1").lower(), at + 1

"""What is read of the packets on a real LAN, from whoever sends them."""

import random
import struct
from ipaddress import IPv4Address

import pytest

from pytest_kvmlab.keeper.segment import Sightings, acknowledged, announced, arp_probe

MAC = bytes.fromhex("525400000001")
TEXT = "52:54:00:00:00:01"
ADDRESS = IPv4Address("192.0.2.7").packed


def arp(operation: int = 1, sender: bytes = ADDRESS) -> bytes:
    packet = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, operation, MAC, sender, bytes(6), bytes(4))
    return b"\xff" * 6 + MAC + b"\x08\x06" + packet


def dhcp(kind: int = 5, options: bytes = b"", address: bytes = ADDRESS) -> bytes:
    message = struct.pack("!BBBB4s2s2s4s4s", 2, 1, 6, 0, b"abcd", b"", b"", bytes(4), address)
    message += bytes(8) + MAC.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    message += options + bytes([53, 1, kind, 255])
    headers = b"\x45".ljust(20, b"\0") + struct.pack("!HHHH", 67, 68, 8 + len(message), 0)
    return b"\xff" * 6 + MAC + b"\x08\x00" + headers + message


@pytest.mark.parametrize("operation", [1, 2])
def test_whoever_asks_or_answers_by_arp_has_the_address_it_says(operation: int) -> None:
    assert announced(arp(operation)) == (TEXT, "192.0.2.7")


def test_a_probe_says_nothing_of_an_address_of_the_sender() -> None:
    probe = arp_probe(MAC, "192.0.2.7")
    assert announced(probe) is None
    assert probe[:14] == b"\xff" * 6 + MAC + b"\x08\x06"
    assert probe[-4:] == ADDRESS


def test_whom_a_dhcp_server_acknowledges_has_the_address_it_gives() -> None:
    assert acknowledged(dhcp()) == (TEXT, "192.0.2.7")
    assert acknowledged(dhcp(options=b"\0\x0c\x03web")) == (TEXT, "192.0.2.7")


@pytest.mark.parametrize("frame", [dhcp(kind=2), dhcp(address=bytes(4)), dhcp(options=b"\xff"), arp()])
def test_what_is_no_acknowledgement_gives_nobody_an_address(frame: bytes) -> None:
    assert acknowledged(frame) is None


def test_broken_packets_are_read_without_harm() -> None:
    chance = random.Random(7)  # noqa: S311  the same in every run
    for whole in (arp(), dhcp(), dhcp(options=b"\x0c")):
        for length in range(len(whole)):
            broken = bytearray(whole[:length])
            if broken:
                broken[chance.randrange(length)] = chance.randrange(256)
            announced(bytes(broken))
            acknowledged(bytes(broken))


def test_a_card_is_where_it_was_seen_last_unless_that_is_beside_where_it_is_to_be() -> None:
    cards = Sightings({"open": None, "fixed": "192.0.2.7"})
    for address in ("192.0.2.6", "192.0.2.7", "192.0.2.8"):
        for mac in ("open", "fixed", "stranger"):
            cards.note(mac, address)
    assert cards.seen == {"open": "192.0.2.8", "fixed": "192.0.2.7"}

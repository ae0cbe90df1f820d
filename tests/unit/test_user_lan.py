"""Networks without a kernel's: who hears which frame, and what guests are told of addresses and names."""

import random
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from ipaddress import IPv4Address, IPv4Interface

import pytest

from pytest_kvmlab.drivers import frame_switch
from pytest_kvmlab.drivers.frame_switch import Switch
from pytest_kvmlab.drivers.lan_station import Known, Station
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.faults import Faults, Impairment
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork, LanRequest
from pytest_kvmlab.lab.user_lan import UserLan

WEB, DB = "52:54:00:00:00:01", "52:54:00:00:00:02"
TO_ALL, NOBODY = "ff:ff:ff:ff:ff:ff", "52:54:00:00:00:99"
SECONDS = 20.0


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


# What cards say

STATION = Station(
    gateway=IPv4Interface("10.77.0.1/24"),
    mac="52:55:0a:4d:00:01",
    cards={WEB: Known(IPv4Address("10.77.0.10"), "web")},
    names={"web": IPv4Address("10.77.0.10"), "db": IPv4Address("10.78.0.2")},
    domain="campus.test",
)
DISCOVER, REQUEST, OFFER, ACKNOWLEDGE, REFUSE = 1, 3, 2, 5, 6


def udp(source: str, target: str, port: int, data: bytes) -> bytes:
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    packet = struct.pack("!HHHH", 68, port, 8 + len(data), 0) + data
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(packet), 0, 0, 64, 17, 0) + addresses
    return mac(TO_ALL) + mac(WEB) + b"\x08\x00" + ip + packet


def question(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    head = b"\x12\x34\x01\x00\x00\x01" + bytes(6)
    return udp("10.77.0.10", "10.77.0.1", 53, head + labels + b"\x00" + struct.pack("!HH", kind, 1))


# The switch


class Card:
    """A network card of a QEMU, once it was heard."""

    def __init__(self, port: int, address: str) -> None:
        self.line = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.address = address
        self.is_heard()

    def is_heard(self) -> None:
        """Wait until all that it has said has been carried."""
        self._sends(question("web"))
        assert self.frame()[12:14] == b"\x08\x00"

    def says(self, text: str, to: str) -> None:
        self._sends(mac(to) + mac(self.address) + b"\x88\xb5" + text.encode())

    def _sends(self, frame: bytes) -> None:
        self.line.sendall(struct.pack("!I", len(frame)) + frame)

    def hears(self) -> str:
        return self.frame()[14:].decode()

    def frame(self) -> bytes:
        (length,) = struct.unpack("!I", self._exactly(4))
        return self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        return self.line.recv(size, socket.MSG_WAITALL)

    def is_cut_off(self) -> bool:
        return self.line.recv(1) == b""


@pytest.fixture
def switch() -> Iterator[Switch]:
    with closing(Switch(["web", "db", "third"], STATION.answer)) as switch:
        yield switch


@pytest.fixture
def cards(switch: Switch) -> Iterator[list[Card]]:
    with ExitStack() as opened:
        cards = [Card(port, f"52:54:00:00:00:0{n}") for n, port in enumerate(switch.numbers.values(), 1)]
        for card in cards:
            opened.enter_context(card.line)
            card.says("here", NOBODY)  # from now on, all know where it is
        for card in cards:
            assert [card.hears() for _ in cards[1:]] == ["here"] * 2
        yield cards


def test_a_frame_reaches_whom_it_is_for_and_one_for_all_reaches_all_others(cards: list[Card]) -> None:
    web, db, third = cards
    web.says("for db", db.address)
    web.says("for all", TO_ALL)
    assert [db.hears(), db.hears()] == ["for db", "for all"]
    assert third.hears() == "for all"


def test_a_guest_that_comes_back_is_heard_and_its_old_connection_is_closed(
    switch: Switch, cards: list[Card]
) -> None:
    web, db, third = cards
    again = Card(switch.numbers["db"], DB)
    with again.line:
        again.says("back", TO_ALL)
        assert [web.hears(), third.hears()] == ["back"] * 2
        assert db.is_cut_off()


@pytest.mark.parametrize("length", [0, 13, 2**31])
def test_who_sends_no_frames_is_cut_off_and_the_others_are_not(cards: list[Card], length: int) -> None:
    web, db, third = cards
    web.line.sendall(struct.pack("!I", length) + b"x" * 20)
    assert web.is_cut_off()
    db.says("still", third.address)
    assert third.hears() == "still"


def test_a_guest_that_does_not_listen_loses_frames_and_holds_up_nobody(cards: list[Card]) -> None:
    web, db, third = cards
    for _ in range(400):
        web.says("x" * 60_000, db.address)
    web.says("done", third.address)
    assert third.hears() == "done"
    assert len(db.hears()) == 60_000


def test_other_users_are_not_let_in(monkeypatch: pytest.MonkeyPatch, switch: Switch) -> None:
    monkeypatch.setattr(frame_switch.os, "geteuid", lambda: 4711)  # type: ignore[attr-defined] # its import of os
    with socket.create_connection(("127.0.0.1", switch.numbers["web"]), timeout=SECONDS) as line:
        assert line.recv(1) == b""


# Addresses and names


def dhcp(kind: int, who: str = WEB, wanted: str = "") -> bytes:
    head = b"\x01\x01\x06\x00" + b"\x12\x34\x56\x78" + bytes(20) + mac(who) + bytes(202) + b"\x63\x82\x53\x63"
    options = bytes([53, 1, kind]) + (b"\x32\x04" + IPv4Address(wanted).packed if wanted else b"") + b"\xff"
    return udp("0.0.0.0", "255.255.255.255", 67, head + options)  # noqa: S104 - nobody's address yet


def answered(frame: bytes) -> bytes:
    """What the one answer carries; its IP header has to be sound."""
    answers = STATION.answer(frame)
    assert answers is not None
    (answer,) = answers
    assert answer[:6] == mac(WEB)
    assert sum(struct.unpack("!10H", answer[14:34])) % 0xFFFF == 0
    assert struct.unpack_from("!H", answer, 16)[0] == len(answer) - 14
    return answer[42:]


def options_of(message: bytes) -> dict[int, bytes]:
    found, rest = {}, message[240:]
    while rest[0] != 255:
        found[rest[0]], rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
    return found


def test_a_card_that_is_known_gets_its_address_and_one_that_is_not_gets_none() -> None:
    offer = answered(dhcp(DISCOVER))
    assert offer[:8] == b"\x02\x01\x06\x00\x12\x34\x56\x78"
    assert IPv4Address(offer[16:20]) == IPv4Address("10.77.0.10")
    options = options_of(offer)
    assert (options[53], options[1], options[6]) == (b"\x02", b"\xff\xff\xff\x00", b"\x0a\x4d\x00\x01")
    assert (options[15], options[12]) == (b"campus.test", b"web")
    assert 3 not in options, "there is no way out"
    assert STATION.answer(dhcp(DISCOVER, DB)) == []


def test_an_address_is_taken_once_it_was_asked_for_and_another_one_is_refused() -> None:
    assert options_of(answered(dhcp(REQUEST, wanted="10.77.0.11")))[53] == bytes([REFUSE])
    assert STATION.taken == {}
    assert options_of(answered(dhcp(REQUEST, wanted="10.77.0.10")))[53] == bytes([ACKNOWLEDGE])
    assert STATION.taken == {WEB: "10.77.0.10"}


@pytest.mark.parametrize("name", ["db", "DB", "db.campus.test"])
def test_guests_have_names(name: str) -> None:
    answer = answered(question(name))
    assert answer[:8] == b"\x12\x34\x85\x80\x00\x01\x00\x01"
    assert IPv4Address(answer[-4:]) == IPv4Address("10.78.0.2")


def test_what_is_no_guest_has_no_address_and_a_guest_has_none_of_version_6() -> None:
    assert answered(question("example.org"))[2:8] == b"\x85\x83\x00\x01\x00\x00"
    assert answered(question("web", kind=28))[2:8] == b"\x85\x80\x00\x01\x00\x00"


def test_what_a_hostile_guest_sends_does_no_harm() -> None:
    chance = random.Random(7)  # noqa: S311 - the same each time
    for whole in (dhcp(DISCOVER), dhcp(REQUEST, wanted="10.77.0.10"), question("db.campus.test")):
        for _ in range(3000):
            frame = bytearray(whole)
            for _ in range(chance.randrange(1, 6)):
                frame[chance.randrange(14, len(frame))] = chance.randrange(256)
            answer = STATION.answer(bytes(frame[: chance.choice([len(frame), chance.randrange(len(frame))])]))
            assert answer is None or isinstance(answer, Sequence)


# Together

HOSTS = (LanHost(WEB, "10.77.0.10", "web", tap="ktweb"), LanHost(DB, "10.77.0.20", "db", tap="ktdb"))


@pytest.fixture
def lan() -> Iterator[UserLan]:
    network = LanNetwork("campus", "kbcampus", "10.77.0.1/24", hosts=HOSTS)
    with closing(UserLan("0123abcd", LanRequest("main-1", (network,)))) as lan:
        yield lan


def test_parted_guests_do_not_hear_each_other_until_they_are_healed(lan: UserLan) -> None:
    web, db = (Card(lan.ports[host.tap or ""], host.mac) for host in HOSTS)
    with web.line, db.line:
        db.says("here", TO_ALL)
        assert web.hears() == "here"
        for faults in (Faults(parted=[("ktweb", "ktdb")]), Faults({"ktdb": Impairment(loss=1.0)})):
            lan.break_wires(faults)
            web.says("lost", db.address)
            web.is_heard()
            lan.break_wires(Faults())
            web.says("healed", db.address)
            assert db.hears() == "healed"


def test_a_line_cannot_be_slow_or_late_without_a_kernel(lan: UserLan) -> None:
    for line in (Impairment(rate=8000), Impairment(delay=0.1)):
        with pytest.raises(HostError, match="can lose packets, but not be slow or late"):
            lan.break_wires(Faults({"ktweb": line}))


def test_a_test_reaches_a_guest_by_the_gateway(lan: UserLan) -> None:
    web = Card(lan.ports["ktweb"], WEB)
    with web.line, lan.dial("10.77.0.10", 22, SECONDS):
        asked = web.frame()
        assert (asked[12:14], asked[6:12]) == (b"\x08\x06", mac("52:55:0a:4d:00:01")), "who has 10.77.0.10?"
        assert IPv4Address(asked[38:42]) == IPv4Address("10.77.0.10")
    with pytest.raises(HostError, match=r"no network of the lab has 10\.99"):
        lan.dial("10.99.0.1", 22, SECONDS)

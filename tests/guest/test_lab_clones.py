"""A lab that is frozen as one: what its guests had begun with each other goes on in each clone of it."""

from collections.abc import Iterator

import pytest

from pytest_kvmlab.lab.lab import Lab
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.spec.labfile import LabSpec, load_lab
from tests.guest.own_launcher import frozen, own_launcher

ECHOES = "test -e /run/on || { touch /run/on; nc -ll -p 7 -e cat </dev/null >/dev/null 2>&1 & }"
# It opens one connection while it boots, and leaves it open.
SAYS = "nc server 7 <>/run/said >/run/heard 2>&1 &"
OPEN = "grep ':0007 01 ' /proc/net/tcp"
PAIR = f"""
[network.campus]
mode = "nat"
subnet = "10.77.0.0/24"

[guest.server]
image = "micro"
networks = ["campus"]
ready = "test -e /run/settled && {ECHOES}; grep -q ':0007 .* 0A ' /proc/net/tcp*"

[guest.client]
image = "micro"
networks = ["campus"]
after = ["server"]
ready = "test -p /run/said || {{ test -e /run/settled && mkfifo /run/said && {SAYS} }}; {OPEN}"
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LabSpec:
    file = tmp_path_factory.mktemp("lab") / "pair.lab.toml"
    file.write_text(PAIR)
    return load_lab(file)


@pytest.fixture(scope="module")
def clones(launcher: Launcher) -> Iterator[Launcher]:
    with own_launcher(launcher) as own:
        yield own


@pytest.fixture
def lab(clones: Launcher, pair: LabSpec) -> Iterator[Lab]:
    with clones.lab(pair, source="pair", witness=lambda *_: False) as lab:
        yield lab


def echoed(lab: Lab, word: str) -> None:
    """Say a word over the connection that was opened before the lab was frozen, and hear it."""
    lab["client"].succeed(f"echo {word} >/run/said")
    lab["client"].wait_until_succeeds(f"grep -x {word} /run/heard")
    assert lab["client"].succeed("cat /run/heard") == f"{word}\n"


@pytest.mark.parametrize("word", ["first", "second"])
def test_a_connection_between_guests_lives_on_in_each_clone(lab: Lab, word: str) -> None:
    assert {frozen(guest).folder.parent for guest in lab.values()} == {frozen(lab["client"]).folder.parent}
    echoed(lab, word)


def test_two_clones_of_a_lab_with_equal_addresses_never_meet(
    clones: Launcher, pair: LabSpec, lab: Lab
) -> None:
    with clones.lab(pair, source="other", witness=lambda *_: False) as other:
        cards = [each["server"].succeed("ip address show eth0") for each in (lab, other)]
        assert "10.77.0." in cards[0]
        assert cards[0] == cards[1]
        for each, word in ((lab, "one"), (other, "another")):
            echoed(each, word)
            assert each["server"].ssh.run("ls /tmp").ok


def test_a_lab_is_reset_as_one(lab: Lab) -> None:
    echoed(lab, "before")
    lab["server"].succeed("touch /tmp/x")
    lab.reset()
    lab["server"].fail("ls /tmp/x")
    echoed(lab, "after")

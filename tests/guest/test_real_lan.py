"""Labs on a bridge that the host has, or with an uplink: two machines stand for the campus."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.lab.waits import until
from tests.guest.campus import NEIGHBOUR, RESERVED, RESERVED_MAC, WORD, Campus, campus
from tests.guest.leftovers import NETWORK, Traces
from tests.guest.unprivileged import Unprivileged

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make namespaces that stand for a campus"
)

LAB = f"""
[network.lan]
mode = "bridge"
bridge = "br0"

[network.back]
mode = "isolated"

[guest.web]
image = "micro"
networks = ["lan", "back"]

[guest.db]
image = "micro"
networks = ["back", {{ name = "lan", address = "{RESERVED}", mac = "{RESERVED_MAC}" }}]
"""

TEST = f"""
def test_the_lab_is_on_the_campus(lab):
    lan = lab.networks["lan"]
    assert (lan.bridge, lan.subnet) == ("br0", None)
    assert lan.addresses["web"].startswith("192.0.2.1")
    assert lan.addresses["db"] == "{RESERVED}"
    for guest in lab.values():
        assert guest.succeed("nc -w 20 {NEIGHBOUR} 7 </dev/null") == "{WORD}\\n"
        with guest.connect(22) as line:
            assert line.recv(4) == b"SSH-"
    lab["web"].succeed("ping -c 1 -W 5 {RESERVED}")
    lab["db"].succeed(f"ping -c 1 -W 5 {{lan.addresses['web']}}")
    lab["web"].succeed(f"ping -c 1 -W 5 {{lab.networks['back'].addresses['db']}}")
"""


UPLINK = """
[network.out]
mode = "nat"
uplink = true

[network.back]
mode = "nat"

[guest.web]
image = "micro"
networks = ["out"]

[guest.db]
image = "micro"
networks = ["back"]
"""

TEST_OF_UPLINK = f"""
def test_only_the_uplink_leads_out(lab):
    assert lab["web"].succeed("nc -w 20 {NEIGHBOUR} 7 </dev/null") == "{WORD}\\n"
    lab["db"].fail("nc -w 5 {NEIGHBOUR} 7 </dev/null")
"""


def ran(
    outer: Campus,
    python: Sequence[str],
    home: Path,
    environment: Mapping[str, str],
    lab: str,
    *,
    test: str = TEST,
) -> str:
    """What pytest says of the test on that machine, where nothing of it is left."""
    (home / "campus.lab.toml").write_text(lab)
    (home / "test_campus.py").write_text(test)
    before = settled(outer)
    command = outer.host.command(
        *python, "-m", "pytest", "--kvm-lab", "-p", "no:cacheprovider", "test_campus.py"
    )
    told = subprocess.run(
        command, check=False, cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )
    assert until(lambda: network_of(outer) == before or None, Deadline(20)), network_of(outer)
    return told.stdout + told.stderr


def settled(outer: Campus) -> list[str]:
    """The network of that machine, once its bridge has a carrier."""
    assert until(lambda: "NO-CARRIER" not in outer.host.run("ip", "link") or None, Deadline(20))
    return network_of(outer)


def network_of(outer: Campus) -> list[str]:
    return [outer.host.run(*command) for command in NETWORK]


def test_a_lab_of_root_is_on_the_campus_whose_bridge_lets_nothing_pass_at_first(
    runs: Path, tmp_path: Path
) -> None:
    traces = Traces.of(runs)
    with campus(tmp_path, spanning_tree=True) as outer:
        assert "1 passed" in ran(outer, [sys.executable], tmp_path, os.environ, LAB)
    assert traces.left_at_last() == {}


def test_a_lab_of_an_unprivileged_user_is_on_the_campus(tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder, campus(tmp_path) as outer:
        user = Unprivileged.prepare(Path(folder))
        traces = Traces.of(user.runs)
        python = user.python_with_helper("allow br0")
        assert "1 passed" in ran(outer, python, user.home, user.environment, LAB)
        assert traces.left_at_last() == {}


@pytest.mark.usefixtures("runs")
def test_a_network_of_a_lab_cannot_have_the_addresses_of_the_campus(tmp_path: Path) -> None:
    lab = LAB.replace('mode = "isolated"', 'mode = "isolated"\nsubnet = "192.0.2.128/25"')
    with campus(tmp_path) as outer:
        told = ran(outer, [sys.executable], tmp_path, os.environ, lab)
    assert "network 'back' has the subnet 192.0.2.128/25, which overlaps 192.0.2.0/24" in told


@pytest.mark.usefixtures("runs")
def test_a_guest_to_which_the_campus_gives_another_address_is_told(tmp_path: Path) -> None:
    lab = LAB.replace(RESERVED_MAC, "52:54:00:00:00:78")
    with campus(tmp_path) as outer:
        told = ran(outer, [sys.executable], tmp_path, os.environ, lab)
    assert "GuestError: db: card 1 (52:54:00:00:00:78) in network 'lan' has the address 192.0.2.1" in told
    assert f"and was to have {RESERVED}" in told
    assert "the DHCP server of br0 is to give 52:54:00:00:00:78 that address" in told


def test_a_lab_file_with_an_uplink_leads_its_guests_to_the_campus_and_no_others(
    runs: Path, tmp_path: Path
) -> None:
    traces = Traces.of(runs)
    with campus(tmp_path) as outer:
        told = ran(outer, [sys.executable], tmp_path, os.environ, UPLINK, test=TEST_OF_UPLINK)
        assert "1 passed" in told
    assert traces.left_at_last() == {}

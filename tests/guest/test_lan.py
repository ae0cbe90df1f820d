"""Networks of a lab on a private host: who reaches whom, and that nothing of them is left."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from tempfile import TemporaryDirectory

import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.keeper.faults import Faults, Impairment
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork, LanRequest
from pytest_kvmlab.keeper.lans import Lan, open_lan
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.hosts import Host, HostChoice, open_host
from pytest_kvmlab.lab.run import capabilities_folder, open_store
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.options import resolve_options
from tests.guest.campus import NEIGHBOUR, NEIGHBOUR_MAC, WORD, Namespace, campus
from tests.guest.lan_guests import SECONDS, Card, booted
from tests.guest.leftovers import NETWORK, Traces, network_of_this_machine, processes_of
from tests.guest.started_run import ROOT, in_role
from tests.guest.unprivileged import Unprivileged

OPTIONS = resolve_options({"lab": True}, os.environ, {})
WEB = LanHost("52:54:00:00:00:01", "10.77.0.10", "web", tap="ktweb")
# For root, libvirt can make the TAP, too.
DB = LanHost("52:54:00:00:00:02", "10.77.0.20", "db", tap="ktdb" if os.geteuid() else None)
CAMPUS = LanNetwork("campus", "kbcampus", "10.77.0.1/24", hosts=(WEB, DB))
CLOSED = LanNetwork(
    "closed", "kbclosed", "10.77.0.1/24", hosts=(LanHost("52:54:00:00:00:03", tap="ktclosed"),)
)


for_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make namespaces that stand for a campus"
)


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """A private host of a run of this module's own."""
    capabilities = capabilities_folder(OPTIONS)
    keeper = Keeper({}, capabilities=capabilities)
    with ExitStack() as ended:
        ended.callback(keeper.close)
        opened = open_host(HostChoice("private", ""), keeper.folder, worker="main", capabilities=capabilities)
        yield ended.enter_context(closing(opened))


@pytest.fixture(scope="module")
def image() -> Image:
    return ensure("micro", open_store(OPTIONS.store), progress=lambda *_: None)


def in_the_run(folder: RunFolder, *command: str) -> str:
    """Run a program in the network namespace of a private host."""
    (pid_1,) = in_role("PID 1", [str(folder.path)])
    user = ["--user", "--preserve-credentials"] if os.geteuid() else []
    return printed("nsenter", f"--target={pid_1}", *user, "--net", "--", *command)


def printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def devices(folder: RunFolder) -> list[str]:
    """Network devices in the private host of a run, without the loopback device."""
    return [line.split()[0] for line in in_the_run(folder, "ip", "-br", "link").splitlines()][1:]


def network_of(machine: Namespace) -> list[str]:
    return [machine.run(*command) for command in NETWORK]


@contextmanager
def owned_lan(python: Sequence[str], environment: Mapping[str, str], kind: str) -> Iterator["Popen[str]"]:
    """A process that owns a run with a network."""
    command = [*python, "-m", "tests.guest.owned_lan", kind]
    with Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True, env=environment) as owner:
        try:
            yield owner
        finally:
            owner.kill()


def told(owner: "Popen[str]") -> str:
    assert owner.stdout is not None
    return owner.stdout.readline().strip()


def asked(owner: "Popen[str]", command: str) -> str:
    """What a command prints in the owner's guest."""
    assert owner.stdin is not None
    owner.stdin.write(f"{command}\n")
    owner.stdin.flush()
    return told(owner)


# Who reaches whom


@pytest.fixture(scope="module")
def lan(host: Host) -> Iterator[Lan]:
    with closing(open_lan(host.folder, LanRequest("main", (CAMPUS,)))) as lan:
        yield lan


def test_guests_have_their_addresses_and_reach_each_other_by_name(host: Host, image: Image, lan: Lan) -> None:
    with (
        booted(host, image, "web", [Card(CAMPUS, WEB, "ktweb")]) as web,
        booted(host, image, "db", [Card(CAMPUS, DB, "ktdb")]),
    ):
        assert lan.addresses() == {WEB.mac: WEB.address, DB.mac: DB.address}
        assert web.run("ping -c 1 -W 5 db", timeout=SECONDS).exit_status == 0
        with lan.dial("10.77.0.20", 22, SECONDS) as line:
            assert line.recv(4) == b"SSH-"
        with pytest.raises(ConnectionRefusedError):
            lan.dial("10.77.0.10", 1, SECONDS)


# The world outside


@for_root
def test_a_guest_reaches_the_world_by_an_uplink_and_the_machine_stays_as_it_is(
    runs: Path, tmp_path: Path
) -> None:
    with campus(tmp_path) as outer:
        before = network_of(outer.host)
        with owned_lan(outer.host.command(sys.executable), dict(os.environ), "uplink") as owner:
            assert [told(owner), told(owner)] == ["SSH-2.0-", "10.77.0.10"]
            traces = Traces.of(runs)
            assert asked(owner, "nc -w 20 192.0.2.1 7 </dev/null") == WORD
            assert network_of(outer.host) == before
            owner.kill()
        assert until(lambda: network_of(outer.host) == before or None, Deadline(SECONDS))
    assert traces.left_at_last() == {}


@for_root
def test_a_guest_is_on_a_real_lan_with_an_address_of_that_one_and_its_port_goes_with_it(
    runs: Path, tmp_path: Path
) -> None:
    with campus(tmp_path) as outer:
        before = network_of(outer.host)
        with owned_lan(outer.host.command(sys.executable), dict(os.environ), "real") as owner:
            assert told(owner) == "SSH-2.0-"
            assert told(owner).startswith("192.0.2.1")
            assert "kpcampus" in outer.host.run("bridge", "link")
            assert [line for line in outer.host.run(*NETWORK[0]).splitlines() if line in before[0]] == (
                before[0].splitlines()
            )
            traces = Traces.of(runs)
            assert asked(owner, "nc -w 20 192.0.2.1 7 </dev/null") == WORD
            owner.kill()
        assert until(lambda: network_of(outer.host) == before or None, Deadline(SECONDS))
    assert traces.left_at_last() == {}


@for_root
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("taken address", f"taken on the real LAN: 192.0.2.1 by {NEIGHBOUR_MAC}"),
        ("taken MAC", f"br0 knows the MAC address {NEIGHBOUR_MAC} already, from port0"),
        ("no bridge", "this host has no bridge br7"),
    ],
)
def test_what_somebody_on_a_real_lan_has_is_refused_and_the_port_goes(
    runs: Path, tmp_path: Path, kind: str, message: str
) -> None:
    with campus(tmp_path) as outer:
        before = network_of(outer.host)
        outer.neighbour.run("busybox", "arping", "-c", "1", "-U", "-I", "eth0", NEIGHBOUR)
        command = outer.host.command(sys.executable, "-m", "tests.guest.owned_lan", kind)
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS)
        assert message in ran.stderr
        assert network_of(outer.host) == before
    assert list(runs.iterdir()) == []


# A user without rights


@pytest.fixture
def nobody() -> Iterator[Unprivileged]:
    with TemporaryDirectory(prefix="kvl-", dir="/tmp") as home:
        yield Unprivileged.prepare(Path(home))


@for_root
def test_an_unprivileged_user_has_guests_in_a_network_with_an_uplink_and_nothing_is_left(
    nobody: Unprivileged, tmp_path: Path
) -> None:
    with (
        campus(tmp_path) as outer,
        owned_lan(outer.host.command(*nobody.python_with_tun), nobody.environment, "uplink") as owner,
    ):
        assert [told(owner), told(owner)] == ["SSH-2.0-", "10.77.0.10"]
        traces = Traces.of(nobody.runs)
        assert {"process", "namespace"} <= traces.left().keys()
        assert asked(owner, "nc -w 20 192.0.2.1 7 </dev/null") == WORD
        owner.communicate(timeout=SECONDS)
    assert traces.left_at_last() == {}


@for_root
def test_an_unprivileged_user_is_on_a_real_lan_by_the_helper_and_the_port_goes_with_the_run(
    nobody: Unprivileged, tmp_path: Path
) -> None:
    with campus(tmp_path) as outer:
        before = network_of(outer.host)
        python = outer.host.command(*nobody.python_with_helper("allow br0"))
        with owned_lan(python, nobody.environment, "real") as owner:
            assert told(owner) == "SSH-2.0-"
            assert told(owner).startswith("192.0.2.1")
            assert "tap0" in outer.host.run("bridge", "link")
            traces = Traces.of(nobody.runs)
            assert asked(owner, "nc -w 20 192.0.2.1 7 </dev/null") == WORD
            owner.kill()
        assert until(lambda: network_of(outer.host) == before or None, Deadline(SECONDS))
    assert traces.left_at_last() == {}


@for_root
def test_an_unprivileged_user_is_told_which_line_is_missing(nobody: Unprivileged, tmp_path: Path) -> None:
    with campus(tmp_path) as outer:
        before = network_of(outer.host)
        python = outer.host.command(*nobody.python_with_helper("allow br1"))
        command = [*python, "-m", "tests.guest.owned_lan", "real"]
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS,
            env=nobody.environment,
        )  # fmt: skip
        assert "/etc/qemu/bridge.conf has no line 'allow br0'" in ran.stderr
        assert "echo 'allow br0' >>/etc/qemu/bridge.conf" in ran.stderr
        assert network_of(outer.host) == before
    assert list(nobody.runs.iterdir()) == []


_CLOSED_TUN = 'mknod -m 600 "$0" c 10 200 && mount --bind "$0" /dev/net/tun && exec "$@"'


@for_root
def test_an_unprivileged_user_who_may_make_no_taps_is_told_so(nobody: Unprivileged) -> None:
    closed = ["unshare", "--mount", "sh", "-c", _CLOSED_TUN, f"{nobody.home}/closed"]
    command = [*closed, *nobody.python, "-m", "tests.guest.owned_lan", "empty"]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=nobody.environment,
    )
    assert "cannot be made: /dev/net/tun may not be opened by this user" in ran.stderr
    assert "chmod 666 /dev/net/tun" in ran.stderr
    assert list(nobody.runs.iterdir()) == []


# Faults on the wire

PARTED = LanNetwork(
    "parted",
    "kbparted",
    "10.79.0.1/24",
    hosts=(
        LanHost("52:54:00:00:00:11", "10.79.0.11", "one", tap="ktone"),
        LanHost("52:54:00:00:00:12", "10.79.0.12", "two", tap="kttwo"),
    ),
)
AMOUNT, RATE = 600_000, 800_000  # bytes, and bits per second


SECOND = LanNetwork(
    "second", "kbsecond", "10.80.0.1/24", hosts=(LanHost("52:54:00:00:00:21", "10.80.0.11", tap="ktsecond"),)
)


@pytest.fixture(scope="module")
def wires(host: Host, image: Image) -> Iterator[tuple[Lan, SerialConsole]]:
    """A lan with two networks and two guests, of which the first is in both; and the shell of that one."""
    one, two = (Card(PARTED, card, str(card.tap)) for card in PARTED.hosts)
    more = Card(SECOND, SECOND.hosts[0], "ktsecond")
    with (
        closing(open_lan(host.folder, LanRequest("wires", (PARTED, SECOND)))) as lan,
        booted(host, image, "one", [one, more]) as console,
        booted(host, image, "two", [two]),
    ):
        yield lan, console


def test_each_card_of_a_guest_has_its_address_and_is_reached_there(wires: tuple[Lan, SerialConsole]) -> None:
    lan, _ = wires
    assert lan.addresses() == {card.mac: card.address for card in (*PARTED.hosts, *SECOND.hosts)}
    for address in ("10.79.0.11", "10.80.0.11"):
        with lan.dial(address, 22, SECONDS) as line:
            assert line.recv(4) == b"SSH-"


def test_two_uses_of_a_lab_have_the_same_addresses_and_never_meet(
    host: Host, wires: tuple[Lan, SerialConsole]
) -> None:
    again = LanNetwork("parted", "kbagain", "10.79.0.1/24")
    with closing(open_lan(host.folder, LanRequest("again", (again,)))) as other:
        other.dial("10.79.0.1", 53, SECONDS).close()
        with pytest.raises(OSError, match=r"timed out|No route to host"):
            other.dial("10.79.0.11", 22, 5)
    lan, _ = wires
    lan.dial("10.79.0.11", 22, SECONDS).close()


def reaches(console: SerialConsole, whom: str) -> bool:
    return console.run(f"ping -c 3 -i 0.2 -W 2 {whom}", timeout=SECONDS).exit_status == 0


def test_guests_that_are_parted_hear_each_other_again_once_that_is_healed(
    wires: tuple[Lan, SerialConsole],
) -> None:
    lan, one = wires
    assert reaches(one, "two")
    lan.break_wires(Faults(parted=[("ktone", "kttwo")]))
    assert not reaches(one, "two")
    assert reaches(one, "10.79.0.1")
    lan.break_wires(Faults())
    assert reaches(one, "two")


def test_what_is_lost_on_a_line_does_not_come_through(wires: tuple[Lan, SerialConsole]) -> None:
    lan, one = wires
    lan.break_wires(Faults({"ktone": Impairment(loss=1.0)}))
    assert not reaches(one, "10.79.0.1")
    lan.break_wires(Faults({"ktone": Impairment(loss=0.3)}))
    said = one.run("ping -q -c 100 -i 0.02 -W 1 10.79.0.1", timeout=SECONDS).stdout
    received = int(re.search(r"(\d+) packets received", said)[1])  # type: ignore[index]  # none fails, too
    assert 20 <= received <= 80  # 49 on average, since question and answer are both lost sometimes
    lan.break_wires(Faults())


def test_a_slow_line_is_slow_in_both_directions(wires: tuple[Lan, SerialConsole]) -> None:
    lan, one = wires
    lan.break_wires(Faults({"ktone": Impairment(rate=RATE)}))
    assert min(seconds_to_fetch(lan, one), seconds_to_send(lan, one)) > 3
    lan.break_wires(Faults())
    assert max(seconds_to_fetch(lan, one), seconds_to_send(lan, one)) < 3


def seconds_to_fetch(lan: Lan, guest: SerialConsole) -> float:
    guest.run(f"(head -c {AMOUNT} /dev/zero | nc -l -p 99) >/dev/null 2>&1 & sleep 1", timeout=SECONDS)
    with lan.dial("10.79.0.11", 99, SECONDS) as line:
        deadline, left = Deadline(SECONDS), AMOUNT
        while left and (piece := line.recv(left)):
            left -= len(piece)
        assert left == 0
        return deadline.elapsed


def seconds_to_send(lan: Lan, guest: SerialConsole) -> float:
    read_all = f"head -c {AMOUNT} >/dev/null; echo done"
    guest.run(f"nc -l -p 98 -e sh -c '{read_all}' >/dev/null 2>&1 & sleep 1", timeout=SECONDS)
    with lan.dial("10.79.0.11", 98, SECONDS) as line:
        deadline = Deadline(SECONDS)
        line.sendall(bytes(AMOUNT))
        assert line.recv(4) == b"done"
        return deadline.elapsed


def test_a_fault_that_cannot_be_is_refused_with_the_reason(wires: tuple[Lan, SerialConsole]) -> None:
    lan, _ = wires
    with pytest.raises(HostError, match="no such devices: ktthree"):
        lan.break_wires(Faults({"ktthree": Impairment(loss=1.0)}))
    with pytest.raises(HostError, match="not a line: rate None, loss 7"):
        lan.break_wires(Faults({"ktone": Impairment(loss=7)}))


def test_packets_come_later_or_a_kernel_that_cannot_is_told(wires: tuple[Lan, SerialConsole]) -> None:
    lan, one = wires
    late = Faults({"ktone": Impairment(delay=0.5)})
    if kernel_has_netem():
        lan.break_wires(late)
        said = one.run("ping -q -c 3 10.79.0.1", timeout=SECONDS).stdout
        average = re.search(r"min/avg/max = ([0-9.]+)/", said)
        assert average
        assert float(average[1]) > 500
    else:
        with pytest.raises(HostError, match=r"this kernel cannot delay packets[^\0]*sch_netem"):
            lan.break_wires(late)
    lan.break_wires(Faults())
    assert reaches(one, "two")


def kernel_has_netem() -> bool:
    user = ["--map-root-user"] if os.geteuid() else []
    tried = ["unshare", *user, "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    return subprocess.run(tried, check=False, capture_output=True, timeout=30).returncode == 0


# What is left


def test_nothing_is_left_of_a_lan_that_is_closed_and_its_name_can_be_used_again(host: Host) -> None:
    for _ in range(2):
        lan = open_lan(host.folder, LanRequest("closed", (CLOSED,)))
        assert set(devices(host.folder)) >= {"kbclosed", "ktclosed"}
        lan.close()
        lan.close()
        assert not {name for name in devices(host.folder) if "closed" in name}
        assert of_the_lan(host, "closed") == []


def test_a_lan_ends_with_its_owner_while_the_run_goes_on(host: Host) -> None:
    opening = f"""
import sys
from pathlib import Path
from pytest_kvmlab.keeper.lan_request import LanHost, LanNetwork, LanRequest
from pytest_kvmlab.keeper.lans import open_lan
from pytest_kvmlab.keeper.run_folder import RunFolder
lan = open_lan(RunFolder(Path({str(host.folder.path)!r})), LanRequest("closed", ({CLOSED!r},)))
print(*lan.bridges.values(), flush=True)
sys.stdin.read()
"""
    with Popen([sys.executable, "-c", opening], cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "kbclosed\n"
        worker.kill()
    assert until(lambda: not of_the_lan(host, "closed") or None, Deadline(SECONDS))
    assert not {name for name in devices(host.folder) if "closed" in name}


@pytest.mark.parametrize("victim", ["owner", "keeper", "PID 1"])
def test_nothing_is_left_of_a_lan_when_somebody_is_killed(runs: Path, victim: str) -> None:
    before = network_of_this_machine()
    with owned_lan([sys.executable], dict(os.environ), "empty") as owner:
        run = RunFolder(runs / told(owner))
        traces = Traces.of(runs)
        assert len(processes_of([f"{run.lan('main')}/"])) == 1  # dnsmasq
        assert network_of_this_machine() == before
        for process in [owner.pid] if victim == "owner" else in_role(victim, traces.names):
            os.kill(process, signal.SIGKILL)
        owner.communicate(timeout=SECONDS)
    assert traces.left_at_last() == {}
    assert network_of_this_machine() == before


def of_the_lan(host: Host, name: str) -> list[str]:
    """The command lines of the processes of a lan: the one that makes it, and those that serve it."""
    found = processes_of([f"{host.folder.lan(name)}/", f"{host.folder.path}\0{name}\0"])
    return list(found.values())


def test_a_kept_lan_outlives_its_owner(host: Host) -> None:
    kept = LanNetwork("kept", "kbkept", "10.78.0.1/24")
    lan = open_lan(host.folder, LanRequest("kept", (kept,)))
    lan.keep()
    lan.close()
    with lan.dial("10.78.0.1", 53, SECONDS):
        assert "kbkept" in devices(host.folder)


# What cannot be had


def test_a_lan_that_cannot_be_made_says_why_and_leaves_nothing(host: Host) -> None:
    before = devices(host.folder)
    twin = replace(CLOSED, name="twin", bridge="kbtwin", hosts=())
    with pytest.raises(HostError, match=r"cannot be made: 'dnsmasq [^\0]*Address already in use"):
        open_lan(host.folder, LanRequest("broken", (CLOSED, twin)))
    assert devices(host.folder) == before
    assert of_the_lan(host, "broken") == []


def test_a_second_lan_of_the_same_name_is_refused_and_the_first_stays(host: Host, lan: Lan) -> None:
    with pytest.raises(HostError, match="File exists"):
        open_lan(host.folder, lan.request)
    with pytest.raises(HostError, match=r"a device of this name already: kbcampus, .*kvcampus"):
        open_lan(host.folder, replace(lan.request, lan="other"))
    lan.dial("10.77.0.1", 53, SECONDS).close()


def test_a_lan_of_a_run_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot be made: .*No such file"):
        open_lan(RunFolder(tmp_path), LanRequest("main", (CLOSED,)))

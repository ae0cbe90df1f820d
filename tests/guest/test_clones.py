"""Clones of a frozen guest: clean, machines of their own, and whole."""

import re
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab import freezing
from pytest_kvmlab.lab.frozen import FIRMWARE
from pytest_kvmlab.lab.launch import Launcher
from tests.guest.own_launcher import frozen, own_launcher, qemu_of, started, ways

RANDOM = "od -An -v -tx1 -N16 /dev/urandom"
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
LABEL = "dd if=$disk bs=64k count=8 2>/dev/null | grep -q CIDATA && echo seed"
KILL_INIT = r"""
pc=$(cut -d' ' -f9 /proc/1/syscall)
printf '\314\314\314\314' | dd of=/proc/1/mem bs=1 seek=$((pc)) conv=notrunc
(true &)
"""
WRITE = "while :; do dd if=/dev/urandom of=/data/much bs=64k count=99; sync; done"
# As in many an imported image: who logs in over the serial line is not root.
NO_ROOT_ON_SERIAL = r"""
if ! grep -q ^user /etc/passwd; then
    echo user:x:1000:1000::/tmp:/bin/sh >>/etc/passwd
    sed -i 's,^ttyS0.*,ttyS0::respawn:su user,' /etc/inittab
    kill -HUP 1
    for shell in /proc/[0-9]*; do
        [ "$(readlink $shell/fd/0)" = /dev/ttyS0 ] && kill -9 "${shell#/proc/}"
    done
fi
test -s /etc/passwd
"""
# Speaks just enough of the protocol (qemu-ga-ref) for libvirt's guest-sync and a guest-ping, so many times.
AGENT = r"""
test -e /run/agent || {
    echo begun >/run/agent
    modprobe virtio_console
    until ls /dev/vport*p1; do sleep 0.1; done
    (
        exec 3<>$(echo /dev/vport*p1)
        left=ANSWERS
        # There is nothing to read until libvirt has heard that somebody is there.
        while read -r line <&3 || sleep 0.1; do
            id=$(echo "$line" | sed -n 's/.*"id": *\([0-9]*\).*/\1/p')
            case $line in
            *guest-sync*) [ $left -gt 0 ] && echo "{\"return\": $id}" >&3 ;;
            *guest-ping*) left=$((left - 1)); echo '{"return": {}}' >&3 ;;
            esac
        done
    ) >/run/agent.log 2>&1 &
}
"""


def in_one_line(script: str) -> str:
    """A script as the key `ready` takes it."""
    return f"echo {b64encode(script.encode()).decode()} | base64 -d | sh"


# What one test does, and how the next one would notice.
SPOILT = {
    "a file": ("echo x >/etc/x; echo x >/data/x; sync", "ls /etc/x /data/x"),
    "a process": ("sleep 12345 >/dev/null 2>&1 &", "grep -l 1234[5] /proc/[0-9]*/cmdline"),
    "a mount": ("mkdir /tmp/m; mount -t tmpfs none /tmp/m", "grep /tmp/m /proc/mounts"),
    "a kernel module": ("modprobe uas", "grep ^uas /proc/modules"),
    "a clock change": ("date -s @1000000000", "test $(date +%Y) -lt 2020"),
    "a full disk": ("dd if=/dev/zero of=/data/all bs=1M; df /data | grep 100%", "df /data | grep 100%"),
    "a killed init": (f"({KILL_INIT}) >/dev/null 2>&1 &", "dmesg | grep panic"),
}


@pytest.fixture(scope="module")
def clones(launcher: Launcher) -> Iterator[Launcher]:
    with own_launcher(launcher) as own:
        yield own


@pytest.fixture
def clone(clones: Launcher) -> Iterator[Guest]:
    with started(clones) as guest:
        assert frozen(guest).state.exists()
        yield guest


# What a test leaves is not there in the next


@pytest.mark.parametrize("what", SPOILT)
def test_what_one_clone_did_is_not_seen_by_the_next(clones: Launcher, what: str) -> None:
    spoils, shows = SPOILT[what]
    with started(clones) as first:
        first.fail(shows)
        first.succeed(spoils)
        if what == "a killed init":
            with pytest.raises(GuestError, match=r"(?s)kernel of guest panicked.*kill init"):
                first.run("sleep 60")
        else:
            first.succeed(shows)
    with started(clones) as second:
        second.fail(shows)


# A machine of its own


def test_clones_never_have_the_same_random_numbers(clones: Launcher) -> None:
    with ExitStack() as up:
        guests = [up.enter_context(started(clones)) for _ in range(6)]
        at_once = [guest.serial.run(RANDOM).stdout for guest in guests]
        later = [guest.serial.run(RANDOM).stdout for guest in guests]
    assert len({*at_once, *later}) == 12


def test_a_clone_has_another_uuid_and_another_generation_than_its_template(clones: Launcher) -> None:
    with started(clones) as one, started(clones) as other:
        assert one.domain.UUIDString() != other.domain.UUIDString()
        told = [guest.succeed("dmesg") for guest in (one, other)]
    assert all("crng reseeded due to virtual machine fork" in lines for lines in told)


def test_the_clock_of_a_clone_is_right(clone: Guest) -> None:
    before = time.time()
    told = clone.serial.run("adjtimex | grep time.tv_").stdout
    after = time.time()
    seconds, rest = (int(number) for number in re.findall(r"(\d+)\n", told + "\n")[:2])
    now = seconds + rest / 1e6
    assert before - 1 <= now <= after + 1


def test_without_roots_shell_on_the_serial_line_the_clock_is_set_over_ssh(clones: Launcher) -> None:
    for _ in range(2):
        with started(clones, ready=in_one_line(NO_ROOT_ON_SERIAL)) as guest:
            assert frozen(guest).rest.channel == "ssh"
            time.sleep(3)  # which the next clone is late if nobody tells it
            before = time.time()
            assert before - 1.5 <= float(guest.serial.run("date +%s").stdout) <= time.time() + 1
            assert guest.serial.run("id -u").stdout == "1000\n"


def test_a_guest_whose_clock_nobody_may_set_boots(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "_SET_CLOCK", ("exec false {}",))
    with own_launcher(launcher, "auto") as own, started(own, source="late", memory="191MiB") as guest:
        assert guest.machine.frozen is None
    assert ways(own, "late")[0][1].startswith("it cannot be frozen: nobody may set the clock of guest")


@pytest.mark.parametrize(
    ("answers", "told"),
    [(99, []), (1, ["clones of guest are no good: the guest agent of a clone does not answer"])],
)
def test_a_clone_whose_agent_does_not_answer_is_not_used(
    launcher: Launcher, monkeypatch: pytest.MonkeyPatch, answers: int, told: list[str]
) -> None:
    monkeypatch.setattr(freezing, "_STEP_SECONDS", 4.0)
    ready = in_one_line(AGENT.replace("ANSWERS", str(answers)))
    with own_launcher(launcher, "auto") as own, started(own, source=ready, ready=ready) as guest:
        assert (guest.machine.frozen is None) is bool(told)
        assert guest.machine.frozen is None or frozen(guest).rest.agent
    assert [why for way, why in ways(own, ready) if why] == told


def test_time_goes_on_in_a_clone(clone: Guest) -> None:
    started_at = time.monotonic()
    clone.succeed("sleep 2")
    assert 1.5 <= time.monotonic() - started_at < 20
    assert float(clone.succeed("cut -d' ' -f1 /proc/uptime")) > 2


def test_each_clone_has_a_hostname_of_its_own_where_it_is_asked_for(clones: Launcher) -> None:
    names = []
    for _ in range(2):
        with started(clones, fresh=["hostname"]) as guest:
            names.append(guest.succeed("hostname").strip())
            assert guest.succeed("cat /etc/hostname").strip() == names[-1]
    assert all(re.fullmatch("guest-[0-9a-f]{8}", name) for name in names)
    assert names[0] != names[1]


# Reached in every way


def test_a_clone_shows_the_host_key_that_it_has_to(clone: Guest) -> None:
    assert clone.host_key.startswith("ssh-ed25519 ")
    assert clone.ssh.run("uname").stdout == "Linux\n"


def test_the_serial_line_goes_on_where_the_template_stopped(clone: Guest) -> None:
    waiting = frozen(clone).rest.session
    assert waiting
    assert clone.serial.run("echo $((6 * 7))").stdout == "42\n"
    assert clone.serial.session
    assert clone.serial.session.token == waiting.token


def test_a_port_of_a_clone_is_reached_from_outside(clone: Guest) -> None:
    clone.succeed("mkdir /tmp/www; echo from a clone >/tmp/www/index.html; httpd -p 80 -h /tmp/www")
    with urllib.request.urlopen(clone.url(80), timeout=60) as answer:  # noqa: S310  our own address
        assert answer.read() == b"from a clone\n"
    assert "10.0.2.15" in clone.succeed("ip -4 address show")
    clone.succeed("ping -c 1 -W 5 10.0.2.2")


def test_the_console_of_a_clone_begins_with_the_boot_of_its_template(clone: Guest) -> None:
    clone.serial.run("echo of the clone")
    transcript = clone.machine.transcript.read_text()
    assert transcript.index("micro: ready") < transcript.index("of the clone")
    assert "micro: ready" in clone.machine.console_log.read_text()


# Its power


def test_a_clone_whose_power_is_cut_boots_from_its_own_disk(clone: Guest) -> None:
    before = clone.succeed(BOOT_ID)
    clone.succeed("echo kept >/data/kept; sync")
    clone.crash()
    clone.start()
    assert clone.succeed("cat /data/kept") == "kept\n"
    assert clone.succeed(BOOT_ID) != before


def test_a_reset_starts_a_clone_from_its_template_again(clone: Guest) -> None:
    clone.succeed("echo x >/data/x; echo x >/tmp/x; sync")
    clone.reset()
    clone.fail("ls /data/x /tmp/x")
    phases = [event.name for event in clone.machine.journal.of("guest", "phase")]
    assert [phases.count(name) for name in ("clone", "create")] == [2, 0]


def test_a_clone_is_reset_while_it_writes_to_its_disk(clone: Guest) -> None:
    for _ in range(3):
        clone.succeed(f"({WRITE}) >/tmp/log 2>&1 &")
        clone.wait_for_file("/data/much")
        clone.reset()
        assert clone.succeed("ls /data") == "lost+found\n"
    clone.fail("dmesg | grep -i 'ext4.*error'")


def test_a_clone_can_be_set_back_to_a_snapshot(clone: Guest) -> None:
    clone.succeed("echo before >/tmp/file")
    clone.snapshot("before")
    clone.succeed("echo after >/tmp/file")
    clone.revert("before")
    assert clone.succeed("cat /tmp/file") == "before\n"


# What it costs, and what it may be


def test_a_clone_adds_little_memory(clone: Guest) -> None:
    clone.succeed("true")
    mapped = _mapping((qemu_of(clone) / "smaps").read_text(), frozen(clone).memory)
    assert int(mapped["Size"]) * 1024 == clone.spec.memory
    assert int(mapped["Anonymous"]) * 1024 < clone.spec.memory * 0.15


def _mapping(smaps: str, file: Path) -> dict[str, str]:
    """What is told of the one mapping of a file: kilobytes by name."""
    (part,) = [part for part in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps) if str(file) in part]
    return dict(re.findall(r"^(\w+): +(\d+) kB$", part, re.MULTILINE))


def test_a_clone_has_every_disk_and_disc_of_its_template(clones: Launcher, tmp_path: Path) -> None:
    disc = tmp_path / "disc.iso"
    disc.write_bytes(b"on a disc".ljust(2**20, b"\0"))
    keys: dict[str, Any] = {"disks": [{"size": "16MiB"}], "cdrom": str(disc), "seed": True, "vcpus": 2}
    with started(clones, **keys) as first:
        assert frozen(first).disks
        assert first.succeed("head -c 9 /dev/sr0") == "on a disc"
        first.succeed("echo spoilt >/dev/vdb; sync")
        assert first.succeed("head -c 6 /dev/vdb") == "spoilt"
    with started(clones, **keys) as second:
        assert second.succeed("head -c 4 /dev/vdb | od -An -tx1").split() == ["00"] * 4
        assert second.succeed("grep -c ^processor /proc/cpuinfo") == "2\n"
        assert "seed" in second.succeed(f"for disk in /dev/[vs]d?; do {LABEL}; done")


@pytest.mark.skipif(not list(Path("/usr/share/OVMF").glob("OVMF_VARS*.fd")), reason="OVMF is not installed")
def test_a_guest_with_systemd_and_uefi_is_cloned(clones: Launcher) -> None:
    with started(clones, image="debian-12", firmware="uefi") as guest:
        assert guest.machine.plan.uefi
        assert (frozen(guest).folder / FIRMWARE).exists()
        assert "BootOrder" in guest.succeed("ls /sys/firmware/efi/efivars")
        assert guest.succeed("systemctl is-system-running").strip() == "running"
        assert abs(time.time() - float(guest.succeed("date +%s.%N"))) < 1
        uuid = guest.succeed("cat /proc/sys/kernel/random/uuid")
    with started(clones, image="debian-12", firmware="uefi") as other:
        assert other.succeed("cat /proc/sys/kernel/random/uuid") != uuid


def test_a_guest_with_a_serial_line_only_is_cloned(clones: Launcher) -> None:
    for _ in range(2):
        with started(clones, login={"channel": "serial"}, networks=[]) as guest:
            assert frozen(guest).state.exists()
            guest.succeed("test ! -e /tmp/x && touch /tmp/x")

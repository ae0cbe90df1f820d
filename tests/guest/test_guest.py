"""The verbs of a guest, each proved inside a real one."""

import socket
import struct
import time
import urllib.request
import zlib
from pathlib import Path

import pytest

from pytest_kvmlab import Guest, MakeGuest
from pytest_kvmlab.errors import CommandFailed, ConfigError, WaitTimeout

pytestmark = pytest.mark.kvm(image="micro")

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
# With the timeout scale of an emulated guest still only a second or so.
SOON = 0.2


# Commands


def test_run_tells_output_and_exit_status(shared_guest: Guest) -> None:
    result = shared_guest.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_status, result.ok) == ("out\n", "err\n", 3, False)


def test_succeed_gives_the_output(shared_guest: Guest) -> None:
    assert shared_guest.succeed("uname -s") == "Linux\n"


def test_a_command_that_has_to_succeed_tells_how_it_failed(shared_guest: Guest) -> None:
    with pytest.raises(CommandFailed) as failure:
        shared_guest.succeed("echo seen; echo complaint >&2; exit 4")
    assert "'echo seen; echo complaint >&2; exit 4' ended with exit status 4" in str(failure.value)
    assert "wanted 0\nseen\n\ncomplaint" in str(failure.value)


def test_a_command_that_has_to_fail_tells_that_it_did_not(shared_guest: Guest) -> None:
    assert shared_guest.fail("echo no; false") == "no\n"
    with pytest.raises(CommandFailed, match=r"(?s)exit status 0 .*wanted anything but 0\nyes"):
        shared_guest.fail("echo yes")


def test_a_command_that_hangs_ends_with_its_timeout(shared_guest: Guest) -> None:
    started = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"(?s)'echo early; sleep 1000' .* did not end.*early"):
        shared_guest.run("echo early; sleep 1000", timeout=SOON)
    assert time.monotonic() - started < SOON * shared_guest.timeout_scale + 3
    assert shared_guest.succeed("echo usable") == "usable\n"


def test_the_journal_has_every_command_and_its_outcome(shared_guest: Guest) -> None:
    shared_guest.run("exit 9")
    with pytest.raises(WaitTimeout):
        shared_guest.run("sleep 999", timeout=SOON)
    events = shared_guest.machine.journal.of(shared_guest.name, "command")[-2:]
    assert [(event.name, event.outcome) for event in events] == [
        ("exit 9", "exit status 9"),
        ("sleep 999", "WaitTimeout"),
    ]


# Waiting


def test_waiting_for_a_command_that_succeeds_later(shared_guest: Guest) -> None:
    shared_guest.succeed("rm -f /tmp/later; (sleep 1; echo here >/tmp/later) >/dev/null 2>&1 &")
    assert shared_guest.wait_until_succeeds("cat /tmp/later") == "here\n"


def test_waiting_for_a_command_tells_what_it_printed_last(shared_guest: Guest) -> None:
    with pytest.raises(WaitTimeout, match=r"(?s)exit status 1 .*not yet"):
        shared_guest.wait_until_succeeds("echo not yet; false", timeout=SOON)


def test_waiting_for_a_port(shared_guest: Guest) -> None:
    shared_guest.succeed("(sleep 1; exec nc -l -p 4711 -e cat) >/dev/null 2>&1 &")
    shared_guest.wait_for_port(4711)
    with pytest.raises(WaitTimeout, match=r"nothing listens on port 4712 .*; open ports: 22, 4711"):
        shared_guest.wait_for_port(4712, timeout=SOON)


def test_waiting_for_a_file(shared_guest: Guest) -> None:
    shared_guest.succeed("mkdir -p '/tmp/a b'; (sleep 1; touch '/tmp/a b/c') >/dev/null 2>&1 &")
    shared_guest.wait_for_file("/tmp/a b/c")
    with pytest.raises(WaitTimeout, match=r"(?s)there is no /tmp/a b/d .*its folder:\n.* c\n"):
        shared_guest.wait_for_file("/tmp/a b/d", timeout=SOON)


def test_waiting_for_the_console(shared_guest: Guest) -> None:
    shared_guest.wait_for_console("^micro: ready")
    shared_guest.succeed("echo on the console >/dev/ttyS0")
    shared_guest.wait_for_console("on the console")
    with pytest.raises(WaitTimeout, match=r"(?s)showed no 'never' within .*on the console"):
        shared_guest.wait_for_console("never", timeout=SOON)


# SSH and serial line


def test_ssh_carries_files_ports_and_a_paramiko_client(shared_guest: Guest, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(bytes(range(256)) * 100)
    shared_guest.ssh.put(there, "/tmp/file")
    shared_guest.ssh.get("/tmp/file", back)
    assert back.read_bytes() == there.read_bytes()
    with shared_guest.ssh.forward(22) as forwarded, dialled(forwarded.port) as line:
        assert line.recv(4) == b"SSH-"
    assert shared_guest.ssh.client.exec_command("echo raw")[1].read() == b"raw\n"


def dialled(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=30)


def test_the_serial_line_leads_to_the_same_guest(shared_guest: Guest) -> None:
    shared_guest.serial.login("root")
    assert shared_guest.serial.run(BOOT_ID).stdout == shared_guest.ssh.run(BOOT_ID).stdout
    shared_guest.serial.sendline("echo $((6 * 7))")
    assert shared_guest.serial.expect(r"(42)\r\n").group(1) == "42"


def test_testinfra_looks_over_ssh(shared_guest: Guest) -> None:
    host = shared_guest.testinfra
    assert host.file("/etc/inittab").contains("respawn")
    assert not host.file("/nothing").exists
    assert host.mount_point("/data").filesystem == "ext4"
    assert host.check_output("hostname") == "micro"


# Network


def test_a_web_server_of_the_guest_is_reached_by_its_url(shared_guest: Guest) -> None:
    shared_guest.succeed("mkdir -p /tmp/www; echo served >/tmp/www/page; httpd -p 8080 -h /tmp/www")
    shared_guest.wait_for_port(8080)
    for _ in range(2):
        with urllib.request.urlopen(shared_guest.url(8080, "/page"), timeout=60) as answer:  # noqa: S310  our own address
            assert answer.read() == b"served\n"


def test_connect_gives_a_socket(shared_guest: Guest) -> None:
    shared_guest.succeed("nc -l -p 5000 -e cat >/dev/null 2>&1 &")
    shared_guest.wait_for_port(5000)
    with shared_guest.connect(5000) as line:
        line.sendall(b"echo?")
        assert line.recv(5, socket.MSG_WAITALL) == b"echo?"


def test_a_port_that_nobody_listens_on_ends_the_connection(shared_guest: Guest) -> None:
    with shared_guest.connect(4999) as line:
        assert line.recv(1) == b""


# Screen and keyboard


def test_a_screenshot_is_a_picture_of_the_screen(shared_guest: Guest, tmp_path: Path) -> None:
    before = pixels(shared_guest.screenshot(tmp_path / "before.png"))
    # the text screen of a VGA card: a character and its colours in turn, from physical address B8000 on
    text = "yes 'A\x1f' | tr -d '\\n'"
    shared_guest.succeed(f"{text} | dd of=/dev/mem bs=80 count=9 seek=753664 oflag=seek_bytes")
    after = pixels(shared_guest.screenshot(tmp_path / "after.png"))
    assert len(set(before)) > 1
    assert before != after


def pixels(picture: Path) -> bytes:
    """The pixels of a PNG, its filters left on (PNG specification, sections 5 and 10)."""
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    packed, at = b"", 8
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        packed += content[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    return zlib.decompress(packed)


def test_keys_arrive_in_the_guest_as_they_were_pressed(shared_guest: Guest) -> None:
    shared_guest.succeed("cat /dev/input/event0 >/tmp/keys 2>/dev/null & echo $! >/tmp/reader; sleep 0.2")
    shared_guest.send_keys("a", "shift-b", "f2")
    # each of the 8 is three events of 24 bytes: the scan code, the key, and the end of the report
    shared_guest.wait_until_succeeds("[ $(wc -c </tmp/keys) -ge $((8 * 3 * 24)) ]")
    assert pressed(shared_guest) == [(30, 1), (30, 0), (42, 1), (48, 1), (48, 0), (42, 0), (60, 1), (60, 0)]


def pressed(guest: Guest) -> list[tuple[int, int]]:
    """Codes and directions of keys: linux/input.h, struct input_event; type 1 is EV_KEY."""
    written = bytes.fromhex(guest.succeed("kill $(cat /tmp/reader); od -An -v -tx1 /tmp/keys"))
    events = struct.iter_unpack("<qqHHi", written)
    return [(code, value) for _, _, kind, code, value in events if kind == 1 and value < 2]


def test_an_unknown_key_is_refused_before_any_is_pressed(shared_guest: Guest) -> None:
    with pytest.raises(ConfigError, match="no key is called 'hyper'"):
        shared_guest.send_keys("a", "hyper-x")


# Names of hosts, sockets and files


def test_two_guests_of_one_test_are_two(shared_guest: Guest, make_guest: MakeGuest) -> None:
    other = make_guest(image="micro")
    shared_guest.succeed("echo mine >/data/mine")
    assert other.fail("cat /data/mine") == ""
    assert shared_guest.succeed(BOOT_ID) != other.succeed(BOOT_ID)
    assert shared_guest.machine.plan.name != other.machine.plan.name
    assert shared_guest.machine.forwarded_port(22) != other.machine.forwarded_port(22)

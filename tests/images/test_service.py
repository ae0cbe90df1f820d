"""The image debian-12-service: a service of one's own, with all that a unit is checked for."""

from collections.abc import Callable

import pytest

from pytest_kvmlab import CommandResult, Guest
from pytest_kvmlab.drivers import testinfra

pytestmark = [pytest.mark.kvm(image="debian-12-service"), pytest.mark.timeout(1800)]

PORT, UNIT = 7300, "measurement.service"


def ask(guest: Guest, *lines: str) -> list[str]:
    """What the service answers to each line."""
    with guest.connect(PORT) as connection, connection.makefile("rwb") as stream:
        connection.settimeout(60)
        stream.write("".join(f"{line}\n" for line in lines).encode())
        stream.flush()
        return [stream.readline().decode().strip() for _ in lines]


def test_it_answers(shared_guest: Guest) -> None:
    answers = ask(shared_guest, "MEAN roof", "RECORD roof 21", "RECORD roof 22.5", "MEAN roof", "DROP roof")
    assert answers[:4] == ["NONE", "RECORDED 1", "RECORDED 2", "MEAN 21.75 of 2"]
    assert answers[4].startswith("ERROR")


def test_it_keeps_what_it_confirmed_when_it_is_killed(shared_guest: Guest) -> None:
    assert ask(shared_guest, "RECORD cellar 12") == ["RECORDED 1"]
    shared_guest.succeed(
        f"systemctl kill --signal=KILL {UNIT}; printf 'cellar 9' >>/var/lib/measurement/readings"
    )
    shared_guest.succeed(f"systemctl restart {UNIT}")
    shared_guest.wait_for_unit(UNIT)
    assert ask(shared_guest, "RECORD cellar 14", "MEAN cellar") == ["RECORDED 2", "MEAN 13 of 2"]


def test_it_can_do_little_beyond_its_work(shared_guest: Guest) -> None:
    process = shared_guest.testinfra.process.get(comm="server.py")
    assert process.user == "measurement"
    status = shared_guest.succeed(f"cat /proc/{process.pid}/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert shared_guest.succeed("stat -c '%U %a' /var/lib/measurement/readings") == "measurement 600\n"


@pytest.mark.parametrize(
    "run", [lambda guest: guest.ssh.run, lambda guest: guest.serial.run], ids=["ssh", "serial"]
)
def test_testinfra_sees_it(shared_guest: Guest, run: Callable[[Guest], Callable[..., CommandResult]]) -> None:
    host = testinfra.testinfra_host(run(shared_guest))
    assert host.service("measurement").is_running
    assert host.service("measurement").is_enabled
    assert host.socket(f"tcp://0.0.0.0:{PORT}").is_listening
    assert host.user("measurement").shell == "/usr/sbin/nologin"
    assert not host.package("python3").is_installed
    assert host.package("python3-minimal").is_installed


def test_a_unit_that_fails_is_named_with_its_log(shared_guest: Guest) -> None:
    shared_guest.succeed("systemd-run --unit=doomed sh -c 'echo out of paper; exit 3'")
    with pytest.raises(AssertionError, match=r"(?s)doomed.service of .* is failed.*out of paper"):
        shared_guest.wait_for_unit("doomed.service")

"""The serial console of a real guest: what a terminal on this machine cannot show."""

from collections.abc import Iterator

import platformdirs
import pytest

from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.store import Store
from tests.guest.serial_lines import booted

SETUP = """
chmod 666 /dev/null
chmod 1777 /tmp
hash=$(busybox mkpasswd -m sha256 secret)
echo "tester:$hash:1000:1000::/tmp:/bin/sh" >>/etc/passwd
"""


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SerialConsole]:
    store = Store(platformdirs.user_cache_path("pytest-kvmlab"))
    image = ensure("micro", store, progress=lambda _step, _share: None)
    with booted(image, tmp_path_factory.mktemp("guest")) as console:
        # Its shell comes first. What it starts besides would be counted, and prints into what is expected.
        console.run("until [ -e /run/settled ]; do usleep 100000; done")
        yield console


def test_a_command_runs_in_the_guest(serial: SerialConsole) -> None:
    assert serial.run("uname -n; exit 7").stdout == "micro\n"
    assert serial.run("exit 7").exit_status == 7


def test_a_silent_command_costs_the_guest_one_process(serial: SerialConsole) -> None:
    """Processes are what a run waits for; unlike seconds, they do not depend on this machine."""
    first = started(serial)
    for _ in range(20):
        serial.run(":")
    assert started(serial) - first < 40


def started(serial: SerialConsole) -> int:
    return int(serial.run("grep ^processes /proc/stat").stdout.split()[1])


def test_the_kernel_may_print_into_an_answer(serial: SerialConsole) -> None:
    noise = 'for i in $(seq 100); do echo "<1>noise $i" >/dev/kmsg; usleep 2000; done'
    assert serial.run(f"({noise}) & seq 20000").stdout == "".join(f"{number}\n" for number in range(1, 20001))
    serial.expect(r"\] noise 100\b", timeout=20)


def test_a_shell_that_is_replaced_under_a_command_is_noticed(serial: SerialConsole) -> None:
    with pytest.raises(GuestError, match="ended or was interrupted while a command ran"):
        serial.run("kill -9 $PPID; sleep 0.1", timeout=30)
    assert serial.run("echo the next one").stdout == "the next one\n"


def test_a_login_is_refused_or_leads_to_a_shell(serial: SerialConsole) -> None:
    assert serial.run(SETUP).exit_status == 0
    serial.login("root")  # a shell is there already: nothing is done
    serial.sendline("exec busybox getty 115200 ttyS0 vt100")
    serial.expect("login: ", timeout=30)
    with pytest.raises(GuestError, match="login of 'tester' on the serial line was refused"):
        serial.login("tester", "wrong")
    with pytest.raises(GuestError, match="shows a login prompt"):
        serial.run("true", timeout=10)
    serial.login("tester", "secret")
    assert serial.run("id -un").stdout == "tester\n"
    assert "secret" not in serial.log.split("getty")[-1]

"""What a guest would find if it broke out of QEMU on a private host."""

from pathlib import Path

import pytest

from pytest_kvmlab import Guest

pytestmark = pytest.mark.kvm(
    image="micro", networks=[], login={"channel": "none"}, ready="console:micro: ready"
)

_SYS_ADMIN, _SYS_MODULE, _SYS_PTRACE = 21, 16, 19  # capabilities(7)


@pytest.fixture
def qemu(shared_guest: Guest) -> Path:
    """The folder in /proc of the guest's QEMU."""
    wanted = f"guest={shared_guest.domain.name()},".encode()
    (found,) = [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if wanted in _content(path)]
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile


def test_the_machine_is_read_only_but_for_the_run(qemu: Path, shared_guest: Guest) -> None:
    mounts = [line.split() for line in (qemu / "mountinfo").read_text().splitlines()]
    options = {mount[4]: mount[5].split(",") for mount in mounts}
    run = shared_guest.machine.host.folder.path
    assert ("ro" in options["/"], "ro" in options["/proc"], "rw" in options[str(run)]) == (True, True, True)


def test_qemu_cannot_administer_the_machine(qemu: Path) -> None:
    status = dict(line.split(":\t", 1) for line in (qemu / "status").read_text().splitlines())
    capabilities = int(status["CapEff"], 16)
    assert not any(capabilities >> each & 1 for each in (_SYS_ADMIN, _SYS_MODULE, _SYS_PTRACE))
    assert status["Seccomp"] == "2"


def test_the_host_sees_none_of_the_runs_mounts(shared_guest: Guest) -> None:
    assert str(shared_guest.machine.host.folder.path) not in Path("/proc/self/mountinfo").read_text()

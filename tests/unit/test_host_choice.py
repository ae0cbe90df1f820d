"""Which kind of host a run uses, and which libvirt daemon, by what a machine has."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.checks import NEEDED_FOR_EMBED, NEEDED_FOR_PRIVATE_HOST, Check, Finding
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper import daemon
from pytest_kvmlab.lab import hosts
from pytest_kvmlab.lab.hosts import choose_host

NO_NAMESPACES = Finding(False, "namespaces cannot be made: Operation not permitted", "sysctl …")


def machine(monkeypatch: pytest.MonkeyPatch, *, namespaces: bool, embed: bool) -> None:
    """A machine that has so much of what hosts need."""

    def examine(checks: Iterable[Check]) -> Iterator[tuple[Check, Finding]]:
        needed = list(checks)
        lacks = (not namespaces and needed == list(NEEDED_FOR_PRIVATE_HOST)) or (
            not embed and needed == list(NEEDED_FOR_EMBED)
        )
        for check in needed:
            yield check, NO_NAMESPACES if lacks else Finding(True, "there")

    monkeypatch.setattr(hosts, "examine", examine)


@pytest.mark.parametrize(
    ("namespaces", "kind", "why"),
    [
        (True, "private", "namespaces can be made here"),
        (False, "embed", "no private host: namespaces cannot be made: Operation not permitted"),
    ],
)
def test_auto_takes_a_private_host_where_it_can_and_says_why(
    monkeypatch: pytest.MonkeyPatch, namespaces: bool, kind: str, why: str
) -> None:
    machine(monkeypatch, namespaces=namespaces, embed=True)
    found = choose_host("auto")
    assert (found.kind, found.why) == (kind, why)


def test_a_machine_with_neither_is_told_why_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, namespaces=False, embed=False)
    with pytest.raises(HostError, match=r"neither a private host \(namespaces cannot be made.* nor the emb"):
        choose_host("auto")


@pytest.mark.parametrize("wish", ["private", "embed"])
def test_what_was_asked_for_is_not_replaced(monkeypatch: pytest.MonkeyPatch, wish: str) -> None:
    machine(monkeypatch, namespaces=False, embed=False)
    with pytest.raises(HostError, match="namespaces cannot be made"):
        choose_host(wish)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are looked for."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(daemon, "_SBIN", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("installed", "chosen", "socket"),
    [
        (["libvirtd"], "libvirtd", "libvirt-sock"),
        (["virtqemud"], "virtqemud", "virtqemud-sock"),
        (["libvirtd", "virtqemud"], "libvirtd", "libvirt-sock"),
    ],
)
def test_the_daemon_is_the_one_that_is_installed(
    programs: Path, installed: list[str], chosen: str, socket: str
) -> None:
    for name in installed:
        (programs / name).touch(mode=0o755)
    found = daemon.find_daemon(programs)
    assert (found.program, found.executable) == (chosen, str(programs / chosen))
    assert found.socket.name == socket
    assert f"socket={found.socket}" in found.uri


def test_a_machine_without_libvirt_is_told_what_to_install(programs: Path) -> None:
    with pytest.raises(HostError, match="no libvirt daemon is installed") as told:
        daemon.find_daemon(programs)
    assert "apt install libvirt-daemon" in told.value.hint

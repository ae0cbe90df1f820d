"""What is seen of QEMU's helper for bridges before it is asked, and how frames are carried from its port."""

import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from pytest_kvmlab import checks
from pytest_kvmlab.keeper.bridge_helper import Obstacle, find_obstacle
from pytest_kvmlab.keeper.pump import pump


@pytest.fixture
def helper(tmp_path: Path) -> Path:
    """A helper that runs with root's rights; that it is root's can be had by root only."""
    if os.geteuid() != 0:
        pytest.skip("only root has programs of root's")
    program = tmp_path / "qemu-bridge-helper"
    program.touch(0o755)
    program.chmod(0o4755)
    return program


def seen(program: Path, text: str) -> str:
    """What speaks against br0, whose list of bridges has this text."""
    allowed = program.parent / "bridge.conf"
    allowed.write_text(text)
    found = find_obstacle("br0", programs=[program], allowed=allowed)
    return found.seen.replace(f"{program.parent}/", "") if found else ""


@pytest.mark.parametrize("text", ["allow br0", "# all\n\n allow   all # of them", "allow br1\nallow br0\n"])
def test_nothing_speaks_against_a_bridge_that_is_allowed(helper: Path, text: str) -> None:
    assert seen(helper, text) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "bridge.conf has no line 'allow br0'"),
        ("# allow br0", "bridge.conf has no line 'allow br0'"),
        ("allow br01", "bridge.conf has no line 'allow br0'"),
        ("allow all\ndeny br0", "bridge.conf has a line 'deny br0'"),
        ("deny all\nallow br0", "bridge.conf has a line 'deny all'"),
    ],
)
def test_a_bridge_that_is_not_allowed_is_told_with_the_line(helper: Path, text: str, why: str) -> None:
    assert seen(helper, text) == why


def test_a_list_may_include_others_and_even_itself(helper: Path) -> None:
    more = helper.parent / "more.conf"
    more.write_text(f"include {helper.parent}/bridge.conf\nallow br0\n")
    assert seen(helper, f"include {more}") == ""
    assert seen(helper, "include /nowhere") == "there is no /nowhere with a line 'allow br0'"


def test_the_line_that_is_missing_is_written_out(helper: Path) -> None:
    found = find_obstacle("br0", programs=[helper], allowed=Path("/nowhere/bridge.conf"))
    assert found == Obstacle(
        "there is no /nowhere/bridge.conf with a line 'allow br0'",
        "as root: mkdir -p /nowhere; echo 'allow br0' >>/nowhere/bridge.conf",
    )


def test_a_helper_that_is_missing_or_has_no_rights_is_told(tmp_path: Path) -> None:
    program = tmp_path / "qemu-bridge-helper"
    found = find_obstacle("br0", programs=[program])
    assert found == Obstacle("qemu-bridge-helper is missing", "apt install qemu-system-common")
    program.touch(0o755)
    found = find_obstacle("br0", programs=[program])
    assert found is not None
    assert found.seen == f"{program} does not run as root"
    assert f"4755 {program}" in found.remedy


def test_doctor_looks_at_every_bridge_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(
        checks, "find_obstacle", lambda name: Obstacle("no line", "write it") if name == "br1" else None
    )
    assert checks._bridges(tmp_path).seen == "this machine has no bridge"
    for name in ("br0", "br1"):
        assert checks._bridges(tmp_path).ok
        (tmp_path / name / "bridge").mkdir(parents=True)
    finding = checks._bridges(tmp_path)
    assert (finding.ok, finding.seen, finding.remedy) == (False, "no line", "write it")


def test_frames_are_carried_both_ways_until_the_pipe_is_closed() -> None:
    with ExitStack() as opened:
        one, its_one, other, its_other = (
            opened.enter_context(end)
            for _ in range(2)
            for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        end, held = os.pipe()
        opened.callback(os.close, end)
        ports = its_one.fileno(), its_other.fileno()
        carrying = threading.Thread(target=pump, args=(*ports, end), daemon=True)
        carrying.start()
        for source, target in ((one, other), (other, one)):
            target.settimeout(20)
            for frame in (b"first", bytes(1514)):
                source.send(frame)
                assert target.recv(2000) == frame
        os.close(held)
        carrying.join(20)
        assert not carrying.is_alive()

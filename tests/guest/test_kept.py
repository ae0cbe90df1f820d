"""Guests that stay after their run: the ends that are not the ordinary one."""

import json
import socket
from contextlib import closing
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError, GuestError
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.lab.bring_up import bring_up
from pytest_kvmlab.lab.kept import RECORD, kept_guests, serial_of, ssh_to
from pytest_kvmlab.spec.labfile import LabSpec, load_lab
from pytest_kvmlab.spec.options import resolve_options

HALF_GOOD = """
[guest.good]
image = "micro"
[guest.bad]
image = "micro"
cdrom = "missing.iso"
after = ["good"]
"""


@pytest.fixture
def lab(tmp_path: Path) -> LabSpec:
    (tmp_path / "half.lab.toml").write_text(HALF_GOOD)
    return load_lab(tmp_path / "half.lab.toml")


def left(folder: Path, name: str = "web", **more: object) -> Path:
    """A guest's folder as a run leaves it."""
    folder.mkdir(parents=True)
    record = {"name": name, "ssh": None, "password": False, "user": "root", "host_key": "", **more}
    (folder / RECORD).write_text(json.dumps(record))
    return folder


def test_a_lab_of_which_one_guest_fails_is_taken_down_whole(runs: Path, lab: LabSpec) -> None:
    options = resolve_options({"lab": True}, {}, {})
    with pytest.raises(GuestError, match=r"bad cannot be created: .*missing\.iso"):
        bring_up(lab, options, seconds=60, progress=lambda _step, _share: None)
    assert not list(runs.iterdir())


def test_guests_of_a_shared_libvirt_are_not_kept(lab: LabSpec) -> None:
    options = resolve_options({"lab": True, "host": "qemu:///system"}, {}, {})
    with pytest.raises(ConfigError, match="guests of qemu:///system cannot be kept"):
        bring_up(lab, options, seconds=60, progress=lambda _step, _share: None)


def test_guests_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, name in {"web-1": "web", "web-2": "web", "db-3": "db"}.items():
        left(tmp_path / "guests" / folder, name)
    assert sorted(kept_guests(RunFolder(tmp_path))) == ["db", "web-1", "web-2"]


def test_a_guest_that_is_gone_says_so(tmp_path: Path) -> None:
    folder = left(tmp_path / "web")
    with pytest.raises(GuestError, match="web is gone: nobody answers on its serial line"):
        serial_of(folder)
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(folder / "serial.sock"))
    with pytest.raises(GuestError, match="Connection refused"):
        serial_of(folder)


def test_a_guest_without_ssh_leads_to_its_console(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"web has no SSH login\n.*kvmlab lab console"):
        ssh_to(RunFolder(tmp_path), left(tmp_path / "web"), ask_password=str)

"""What the checks of `kvmlab doctor` make of what they see."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvmlab import checks
from pytest_kvmlab.cli import doctor
from pytest_kvmlab.drivers.libvirt import what_is_missing
from pytest_kvmlab.errors import HostError

LOOK_TWICE = """
import pathlib, sys
from pytest_kvmlab.drivers.libvirt import what_is_missing
print(what_is_missing())
pathlib.Path("libvirt.py").unlink()
print(what_is_missing())
"""
NO_LIBRARY = "libvirt.so.0: cannot open shared object file: No such file or directory"


def test_a_libvirt_that_can_be_imported_lacks_nothing() -> None:
    assert what_is_missing() == ""
    assert checks.LIBVIRT_PYTHON.look().ok


def test_a_library_that_was_installed_meanwhile_is_seen(tmp_path: Path) -> None:
    (tmp_path / "libvirt.py").write_text(f"raise ImportError({NO_LIBRARY!r})")
    told = subprocess.run(
        [sys.executable, "-c", LOOK_TWICE],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert told.stdout.splitlines() == [NO_LIBRARY, ""]


@pytest.mark.parametrize(
    ("missing", "package", "remedy"),
    [
        (NO_LIBRARY, "libvirt0", "apt install libvirt0"),
        ("No module named 'libvirt'", "libvirt-dev", "apt install .*, then: pip install libvirt-python"),
    ],
)
def test_a_library_is_told_from_its_python_module(
    monkeypatch: pytest.MonkeyPatch, missing: str, package: str, remedy: str
) -> None:
    monkeypatch.setattr(checks, "what_is_missing", lambda: missing)
    finding = checks.LIBVIRT_PYTHON.look()
    assert package in finding.packages
    assert re.fullmatch(remedy, finding.remedy)
    assert missing in finding.seen


def test_only_root_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match=r"only root can install qemu-utils\n.*sudo apt install qemu-utils"):
        doctor._install(["qemu-utils"])

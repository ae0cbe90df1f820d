"""`kvmlab doctor`: what it sees on a machine that lacks things, and what `--fix` does about it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Installing would change the machine that runs the tests, so apt is a stand-in: it writes down how it was
# called, and puts one program where it would be found.
APT = """#!/bin/sh
echo "$@" >> {folder}/apt.log
printf '#!/bin/sh\\n' > {folder}/bin/qemu-system-x86_64
/bin/chmod +x {folder}/bin/qemu-system-x86_64
"""
DOCTOR = "import sys; from pytest_kvmlab.cli import main; sys.argv[0] = 'kvmlab'; main()"


@dataclass(frozen=True)
class Machine:
    """A machine whose PATH has nothing but apt-get."""

    folder: Path

    def doctor(self, *options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", DOCTOR, "doctor", *options],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"PATH": str(self.folder / "bin"), "KVMLAB_RUNS": str(self.folder / "runs")},
        )

    def calls_of_apt(self) -> list[str]:
        log = self.folder / "apt.log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(runs: Path) -> Machine:
    (runs / "bin").mkdir()
    (runs / "bin" / "apt-get").write_text(APT.format(folder=runs))
    (runs / "bin" / "apt-get").chmod(0o755)
    return Machine(runs)


def checks(told: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    return {check["check"]: check for check in json.loads(told.stdout)}


def test_what_is_missing_is_named_with_its_remedy(machine: Machine) -> None:
    told = machine.doctor()
    assert told.returncode == 1
    assert "NO  qemu (guests run in it): qemu-system-x86_64 is not in PATH" in told.stdout
    assert "to do: apt install qemu-system-x86" in told.stdout
    assert machine.calls_of_apt() == []


def test_fix_installs_what_is_missing_and_looks_again(machine: Machine) -> None:
    told = machine.doctor("--fix", "--json")
    update, install = machine.calls_of_apt()
    assert update == "update"
    assert install.startswith("install --yes --no-install-recommends ")
    assert {"qemu-system-x86", "swtpm"} <= set(install.split())
    assert "installing" in told.stderr
    assert checks(told)["qemu"]["ok"] is True


def test_fix_says_what_apt_said_when_it_fails(machine: Machine) -> None:
    (machine.folder / "bin" / "apt-get").write_text("#!/bin/sh\necho 'E: no such thing' >&2; exit 100\n")
    told = machine.doctor("--fix")
    assert told.returncode == 1
    assert "kvmlab: apt-get update ended with status 100\n  E: no such thing" in told.stderr

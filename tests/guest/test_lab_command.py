"""`kvmlab lab`, as a person uses it: up, look inside, down."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

KVMLAB = Path(sys.executable).with_name("kvmlab")


def kvmlab(*arguments: str, typed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [KVMLAB, *arguments], input=typed, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def runs() -> Iterator[Path]:
    """A place for runs of our own; short, because sockets lie below it."""
    with (
        tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("KVMLAB_RUNS", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def lab(runs: Path) -> Iterator[str]:
    """The demonstration lab, up."""
    up = kvmlab("lab", "up", "demo", "--hours", "1")
    assert up.returncode == 0, up.stderr
    yield "demo"
    assert kvmlab("lab", "down", "demo").returncode == 0
    assert not list(runs.iterdir())


def test_a_lab_that_is_up_is_listed_with_its_guests(lab: str) -> None:
    (run,) = json.loads(kvmlab("ps", "--json").stdout)
    assert (run["alive"], len(run["guests"]), Path(run["lab"]).name) == (True, 1, f"{lab}.lab.toml")
    assert run["kept_until"] is not None


def test_a_shell_passes_on_what_is_typed_and_its_exit_status(lab: str) -> None:
    shell = kvmlab("lab", "shell", lab, "micro", typed="uname -n; exit 3\n")
    assert (shell.stdout.strip(), shell.returncode) == ("micro", 3)


def test_the_console_leads_to_the_serial_shell(lab: str) -> None:
    with pexpect.spawn(
        str(KVMLAB), ["lab", "console", lab, "micro"], encoding="utf-8", timeout=30
    ) as console:
        console.sendline()
        console.expect("# ")
        console.sendline("echo $((6*7))")
        console.expect("42")
        console.sendcontrol("]")
        console.expect(pexpect.EOF)


def test_a_guest_that_is_not_there_is_named_with_the_nearest(lab: str) -> None:
    assert "did you mean 'micro'" in kvmlab("lab", "shell", lab, "mikro").stderr


def test_a_lab_is_brought_up_only_once(lab: str) -> None:
    again = kvmlab("lab", "up", lab)
    assert again.returncode == 1
    assert "is up already" in again.stderr

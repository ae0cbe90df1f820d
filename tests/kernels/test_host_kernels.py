"""The kernel of a host as an axis: the inner suite of the proving ground under each kernel, compared."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_kvmlab import MakeGuest
from pytest_kvmlab.plugin.session import LabSession
from tests.proving.ground import HOST, INNER, Outcomes, install_store, load, plug_in, provide, run_suite

pytestmark = pytest.mark.timeout(3600)

KERNELS = ("6.1", "6.12")


@pytest.fixture
def outcomes(make_guest: MakeGuest, session: LabSession, tmp_path: Path) -> list[Outcomes]:
    """What came of the inner suite under each kernel, and its artifacts."""
    load(tmp_path, session.run.launcher)
    return [run_on(kernel, make_guest, session, tmp_path) for kernel in KERNELS]


def run_on(kernel: str, make_guest: MakeGuest, session: LabSession, folder: Path) -> Outcomes:
    host = make_guest(**HOST, kernel=kernel)
    provide(host, folder)
    plug_in(host)
    install_store(host, "root")
    outcomes = run_suite(host, session, f"host-{kernel}", f"{INNER} --ignore={INNER}/user", "root")
    host.shutdown()
    return outcomes


def compared(outcomes: list[Outcomes], page: Path) -> dict[str, Any]:
    kvmlab, sides = Path(sys.executable).with_name("kvmlab"), [each.artifacts for each in outcomes]
    ran = subprocess.run(
        [kvmlab, "compare", *sides, "--json", "--html", page],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    (found,) = json.loads(ran.stdout)
    assert isinstance(found, dict)
    return found


def test_a_newer_kernel_of_the_host_breaks_nothing(outcomes: list[Outcomes], tmp_path: Path) -> None:
    assert [{test: said for test, said in each.said.items() if said} for each in outcomes] == [{}, {}]
    found = compared(outcomes, tmp_path / "hosts.html")
    assert found["regressions"] == []
    for side, kernel in zip(("before", "after"), KERNELS, strict=True):
        (host,) = found[side]["hosts"]
        assert host.startswith(f"{kernel}.")
        assert host in (tmp_path / "hosts.html").read_text(encoding="utf-8")

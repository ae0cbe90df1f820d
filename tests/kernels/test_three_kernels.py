"""A server and the wiki under three kernels of Debian's: one command, one table."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_kvmlab.plugin.session import LabSession

pytestmark = pytest.mark.timeout(5400)

ROOT = Path(__file__).parents[2]
SUITE = ["tests/guest/test_debian.py", "fixtures/wiki"]


def test_an_upgrade_breaks_neither(older: str, store: Path, session: LabSession) -> None:
    artifacts = session.artifacts / "three-kernels"
    kernels = [f"--kvm-kernel={kernel}" for kernel in ("image", older, "6.12")]
    pytest_ = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    subprocess.run(
        [*pytest_, *SUITE, *kernels, f"--kvm-artifacts={artifacts}"],
        cwd=ROOT,
        env=os.environ | {"KVMLAB_STORE": str(store)},
        check=True,
    )
    kvmlab = Path(sys.executable).with_name("kvmlab")
    compared = subprocess.run([kvmlab, "compare", artifacts], capture_output=True, text=True, check=False)
    print(compared.stdout)  # noqa: T201 -- the table, for whoever runs this
    assert compared.stdout.count("nothing is worse than before") == 2
    assert [kernel in compared.stdout for kernel in (older, "6.12.")] == [True, True]

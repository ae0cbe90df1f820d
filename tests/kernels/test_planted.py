"""What an upgrade may break, planted into real guests: each is found, with its verdict, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.project import Project

pytestmark = pytest.mark.timeout(1800)
WARNS = Path(__file__).with_name("images") / "debian-12-warns"
# So few phases can be told apart by so many runs.
RUNS = 7

SUITE = """
import os
import pytest

PLANTED = os.environ["PLANTED"]
BOOT = {
    "no driver": " module_blacklist=virtio_rng",
    "no usb": " module_blacklist=xhci_pci",
    "hangs": " boot_delay=10000 lpj=1000000",
}
DONGLE = {"virtual": "licence", "id": "0a5e:2110"}
pytestmark = pytest.mark.kvm(
    image="micro", cmdline="console=ttyS0 random.trust_cpu=on" + BOOT.get(PLANTED, ""), boot_timeout=5
)

def test_answers(guest):
    guest.succeed("true")

def test_complains(guest):
    guest.succeed({
        "complaint": "echo x > $(ls -d /sys/fs/ext4/vd*)/trigger_fs_error",
        "out of memory": "sleep 9 & echo 1000 > /proc/$!/oom_score_adj; echo f > /proc/sysrq-trigger",
        "panic": "echo c > /proc/sysrq-trigger",
    }.get(PLANTED, "true"))

def test_serves(guest):
    late = 1.3 if PLANTED == "late service" else 1.0
    guest.succeed(f"(sleep {late}; httpd -p 8080 -h /tmp) >/dev/null 2>&1 &")
    guest.wait_for_port(8080)

@pytest.mark.kvm(usb=[DONGLE])
def test_has_its_dongle(guest):
    assert "0a5e" in guest.succeed("cat /sys/bus/usb/devices/*/idVendor")
"""

WARNING = """
import os
import pytest

@pytest.mark.kvm(image="debian-12-warns")
def test_loads_a_module(guest):
    guest.succeed({"": "true", "warning": "insmod /usr/src/planted/planted.ko"}[os.environ["PLANTED"]])
"""

WARNED = [
    "kernel: taint: planted: loading out-of-tree module taints kernel.",
    (
        "kernel: taint: planted: module verification failed: signature and/or required key missing"
        " - tainting kernel"
    ),
    "kernel: warning: WARNING: CPU: N PID: N at /usr/src/planted/planted.c:N planted_init [planted]",
    "test_it.py::test_loads_a_module fails",
]
OOM = (
    "Out of memory: Killed process N (sh) total-vm:N, anon-rss:N, file-rss:N, shmem-rss:N, UID:N "
    "pgtables:N oom_score_adj:N"
)
BREAKS = {
    "no driver": [
        "guest (micro) lost driver of virtio virtio:d00000004v00001af4",
        "guest (micro) lost module virtio_rng",
    ],
    "no usb": [
        "guest (micro) lost device usb 0a5e:2110",
        "guest (micro) lost device usb 1d6b:0002",
        "guest (micro) lost device usb 1d6b:0003",
        "guest (micro) lost driver of pci 1b36:000d",
        "guest (micro) lost module xhci_pci",
        "test_it.py::test_has_its_dongle fails",
    ],
    "complaint": [
        "kernel: fs-error: EXT4-fs error (device vda): trigger_test_error:N: comm sh: x",
        "test_it.py::test_complains fails",
    ],
    "out of memory": [f"kernel: oom: {OOM}", "test_it.py::test_complains fails"],
    "panic": [
        "kernel: panic: Kernel panic - not syncing: sysrq triggered crash",
        "test_it.py::test_complains fails",
    ],
    "hangs": [
        f"test_it.py::test_{name} fails" for name in ("answers", "complains", "has_its_dongle", "serves")
    ],
}


def kvmlab(project: Project, *arguments: str, timeout: float = 60) -> str:
    return subprocess.run(
        [Path(sys.executable).with_name("kvmlab"), *arguments],
        cwd=project.folder,
        env=project.full_environment(XDG_DATA_HOME=str(project.folder / "data")),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    ).stdout


def run(project: Project, name: str, *arguments: str, planted: str = "") -> pytest.RunResult:
    data = str(project.folder / "data")
    options = ["--kvm-lab", f"--kvm-artifacts={name}", *arguments]
    return project.pytest(*options, PLANTED=planted, XDG_DATA_HOME=data)


@pytest.fixture(scope="module")
def sound(module_project: Project) -> Project:
    """A project whose baseline is runs of a suite with which all is well."""
    module_project.write("test_it.py", SUITE)
    kvmlab(module_project, "baseline", "save", "sound", *several(module_project, "sound", RUNS))
    return module_project


def several(project: Project, name: str, count: int, *arguments: str, planted: str = "") -> list[str]:
    """Run the suite so many times, and say where what came of it is."""
    names = [f"{name}{number}" for number in range(count)]
    for each in names:
        assert run(project, each, *arguments, planted=planted).ret == pytest.ExitCode.OK
    return names


def compared(project: Project, name: str) -> dict[str, Any]:
    (found,) = json.loads(kvmlab(project, "compare", "sound", name, "--json"))
    return {
        "regressions": sorted(found["regressions"]),
        "slower": [each["subject"] for each in found["times"] if each["verdict"] == "slower"],
    }


def test_an_unchanged_suite_raises_no_alarm(sound: Project) -> None:
    names = several(sound, "again", 10, "--kvm-baseline=sound", "--kvm-fail-on=slowdown")
    kvmlab(sound, "baseline", "save", "again", *names)
    assert compared(sound, "again") == {"regressions": [], "slower": []}


def test_a_service_that_starts_later_by_a_third_is_slower(sound: Project) -> None:
    kvmlab(sound, "baseline", "save", "late", *several(sound, "late", RUNS, planted="late service"))
    assert compared(sound, "late") == {"regressions": [], "slower": ["test_it.py::test_serves"]}


@pytest.mark.parametrize(("planted", "regressions"), BREAKS.items())
def test_what_a_kernel_breaks_is_found(sound: Project, planted: str, regressions: list[str]) -> None:
    name = planted.replace(" ", "-")
    options = ["--kvm-baseline=sound", "--kvm-fail-on=regression"]
    assert run(sound, name, *options, planted=planted).ret == pytest.ExitCode.TESTS_FAILED
    assert compared(sound, name) == {"regressions": regressions, "slower": []}


def test_a_warning_of_a_kernel_is_found_with_its_stack(project: Project) -> None:
    kvmlab(project, "image", "build", str(WARNS), timeout=1200)
    project.write("test_it.py", WARNING)
    options = ["--kvm-reset=boot"]
    assert run(project, "calm", *options).ret == pytest.ExitCode.OK
    kvmlab(project, "baseline", "save", "sound", "calm")
    result = run(project, "warned", *options, planted="warning")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*WARNING: CPU: * at /usr/src/planted/planted.c:5 planted_init*", "*do_init_module*"]
    )
    assert compared(project, "warned") == {"regressions": WARNED, "slower": []}

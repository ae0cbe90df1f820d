"""The proving ground: a guest that is itself a host of guests, and a pytest run inside it.

What has to get in is this project's wheel, those that it depends on, the micro image, and the inner tests.
"""

import io
import subprocess
import sys
import tarfile
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvmlab import Guest
from pytest_kvmlab.lab.backup import export_image
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.plugin.session import LabSession

ROOT = Path(__file__).parents[2]
INNER = Path("tests/proving/inner")
IMAGE = "micro"
THERE = "/opt/proving"
RESULTS = "/var/tmp/proving"
REQUEST = "/run/proving/request"
# The packages of PyPI that the guest's Python can use, whichever this one is.
FOR_THE_GUEST = ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
PLATFORMS = ["--platform=manylinux2014_x86_64", "--platform=manylinux_2_28_x86_64"]
LICENCE = {"virtual": "licence", "id": "0a5e:2110"}
DONGLES = [
    {**LICENCE, "name": "left"},
    {**LICENCE, "name": "right"},
    {**LICENCE, "name": "numbered", "serial": "A1"},
]
# An emulated processor that emulates nothing: a guest's guest boots in 20 seconds, not in half a one.
SETTINGS = "KVMLAB_ACCEL=kvm KVMLAB_TIMEOUT_SCALE=12 KVMLAB_WAIT=5"
PYTEST = "pytest --kvm-lab --import-mode=importlib --timeout=400 -p no:cacheprovider -v"
HOST: dict[str, Any] = {"image": "debian-12-kvmhost", "vcpus": 1, "usb": DONGLES, "boot_timeout": 120}
STICK = """
<disk type='file' device='disk'>
  <driver name='qemu' type='raw'/>
  <source file='{file}'/>
  <target dev='sdx' bus='usb'/>
</disk>
"""
# QEMU shows it to the guest only if there is something at the other end of the line: `null` is nothing.
CONVERTER = """
<serial type='file'>
  <source path='{file}'/>
  <target type='usb-serial' port='1'/>
</serial>
"""
BAD = ("failure", "error", "skipped")
PIP = "pip install --quiet --no-index --no-compile --break-system-packages --root-user-action=ignore"


def load(folder: Path, launcher: Launcher) -> None:
    """Gather everything that has to get into the guest.

    Args:
        folder: an empty one.
        launcher: knows where images are.
    """
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    # libvirt-python has no wheels: the image has Debian's.
    needed = [each for each in _dependencies() if not each.startswith("libvirt-python")]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--dest",
        str(wheels),
        *FOR_THE_GUEST,
        *PLATFORMS,
    ]
    subprocess.run([*pip, *needed, "pytest-timeout"], check=True, cwd=folder)
    store = launcher.images._store
    export_image(ensure(IMAGE, store, progress=_quietly), folder / IMAGE, progress=_quietly)


def _dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"])


def _quietly(*_: object) -> None:
    pass


def provide(guest: Guest, folder: Path) -> None:
    """Put everything in its place in the guest.

    Args:
        guest: the host of guests.
        folder: what `load` has filled.
    """
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(folder, arcname=".")
        archive.add(ROOT / INNER, arcname=str(INNER), filter=_source_only)
    unpack = f"mkdir -p {THERE} && tar -C {THERE} -x && chmod -R a+rX {THERE}"
    guest.ssh.run(unpack, stdin=stream.getvalue(), timeout=600)
    guest.succeed(f"{PIP} --find-links {THERE}/wheels pytest-kvmlab pytest-timeout", timeout=600)


def _source_only(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def plug_in(guest: Guest) -> None:
    """Plug QEMU's own stick and serial converter into the guest."""
    folder = guest.machine.folder
    (folder / "stick").write_bytes(b"stick".ljust(2**22, b"\0"))
    guest.domain.attachDevice(STICK.format(file=folder / "stick"))
    guest.domain.attachDevice(CONVERTER.format(file=folder / "line"))


def run_inside(guest: Guest, name: str, command: str, requests: Callable[[str], None]) -> None:
    """Run a command in the guest, and do what it asks for, until it has ended.

    Args:
        guest: the host of guests.
        name: of the command, for systemd.
        command: for a shell.
        requests: does what is asked for in `REQUEST`.
    """
    ended = f"{RESULTS}/{name}.ended"
    guest.succeed(f"mkdir -p {RESULTS} /run/proving && chmod 1777 {RESULTS} /run/proving")
    unit = f"systemd-run --unit={name} --property=StandardOutput=file:{RESULTS}/{name}.out"
    guest.succeed(f"{unit} --property=StandardError=inherit sh -c '{command}; touch {ended}'")
    # The guest waits by itself: to be asked again and again would cost it as much as its own guests.
    wait = f"i=0; until [ -e {REQUEST} ] || [ -e {ended} ] || [ $i = 20 ]; do i=$((i+1)); sleep 1; done"
    while asked := guest.succeed(f"{wait}; cat {REQUEST} 2>/dev/null || {{ [ -e {ended} ] || echo wait; }}"):
        if asked != "wait\n":
            requests(asked)
            guest.succeed(f"rm {REQUEST}")


@dataclass(frozen=True)
class Outcomes:
    """What came of each inner test: nothing if it passed, else what was said; and the artifacts."""

    said: Mapping[str, str]
    artifacts: Path


def run_suite(guest: Guest, session: LabSession, name: str, tests: str, user: str) -> Outcomes:
    """Run inner tests, and bring home what came of them."""
    results = f"--junitxml={RESULTS}/{name}.xml --kvm-artifacts={RESULTS}/{name}"
    paths = f"--rootdir={THERE} --override-ini=pythonpath={THERE}"
    settings = f"env HOME=/var/tmp {SETTINGS} KVMLAB_STORE={store_of(user)}"
    run_inside(
        guest,
        name,
        f"cd {THERE} && runuser -u {user} -- {settings} {PYTEST} {paths} {results} {tests}",
        lambda asked: play(guest, asked),
    )
    there = session.artifacts / "proving"
    there.mkdir(parents=True, exist_ok=True)
    archive = there / f"{name}.tar"
    guest.succeed(f"cd {RESULTS} && tar -cf {name}.tar {name}*", timeout=120)
    guest.ssh.get(f"{RESULTS}/{name}.tar", archive)
    with tarfile.open(archive) as members:
        members.extractall(there, filter="data")
    return Outcomes(dict(told(there / f"{name}.xml")), there / name)


def play(guest: Guest, asked: str) -> None:
    """Pull a dongle out of the outer guest, or put it back."""
    verb, name = asked.split()
    {"plug": guest.usb[name].plug, "unplug": guest.usb[name].unplug}[verb]()


def told(junit: Path) -> Iterator[tuple[str, str]]:
    for case in ET.parse(junit).iter("testcase"):  # noqa: S314 -- our own pytest wrote it
        module = case.attrib["classname"].rpartition(".")[2]
        said = [f"{each.tag}: {each.attrib.get('message')}\n{each.text}" for each in case if each.tag in BAD]
        yield f"{module}::{case.attrib['name']}", "\n".join(said)


def install_store(guest: Guest, user: str) -> None:
    restore = f"kvmlab image restore --store {store_of(user)} {THERE}/micro"
    guest.succeed(f"runuser -u {user} -- {restore}", timeout=300)


def store_of(user: str) -> str:
    return f"/var/tmp/store-{user}"

"""One guest, by hand and through the plugin, in turns: from nothing to its first answers.

By hand means what a careful person would write: qemu-img, one QEMU command line with the same devices, a
socket for the serial line, paramiko. libvirt's start-up is no part of either: a run pays it once.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import StringIO
from pathlib import Path

import paramiko

from pytest_kvmlab.drivers.ssh_keys import KeyPair, generate_key_pair
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import choose_host
from pytest_kvmlab.lab.run import Run, capabilities_folder, open_run, open_store
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL
from pytest_kvmlab.spec.options import Options, resolve_options
from pytest_kvmlab.spec.validation import validate

MOST_TIMES_BY_HAND = 1.15
MOST_ROUND_TRIP_MS = 10.0
ROUND_TRIPS = 30
_OVERLAY = ("driver=qcow2", "node-name=disk", "discard=unmap", "cache.no-flush=on", "file.driver=file")
PATIENCE = 0.4  # seconds: QEMU accepts before the guest listens, and such a connection stays silent


class ByHand:
    """A guest of an image, started with QEMU alone."""

    def __init__(self, image: Image, folder: Path, accel: str) -> None:
        self._folder = folder
        self._image = image
        self._accel = accel
        self._own, self._host = generate_key_pair(), generate_key_pair("host")
        self._port = _free_port()

    @contextmanager
    def running(self) -> Iterator["ByHand"]:
        """Make the overlay and start QEMU."""
        overlay = self._folder / "disk.qcow2"
        _run(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            str(self._image.folder / DISKS["qcow2"]),
            str(overlay),
        )
        for name, content in (("authorized_keys", self._own.public), ("host_key", self._host.private)):
            (self._folder / name).write_text(content + "\n")
        process = subprocess.Popen(self._command(overlay))
        try:
            yield self
        finally:
            process.kill()
            process.wait()

    def _command(self, overlay: Path) -> list[str]:
        folder, image = self._folder, self._image
        return [
            "qemu-system-x86_64", "-machine", "q35", "-accel", self._accel,
            "-cpu", "max" if self._accel == "tcg" else "host", "-m", "256", "-nodefaults", "-no-user-config",
            "-kernel", str(image.folder / KERNEL), "-initrd", str(image.folder / INITRD),
            "-append", image.manifest.cmdline or "",
            "-blockdev", ",".join([*_OVERLAY, f"file.filename={overlay}"]),
            "-device", "virtio-blk-pci,drive=disk",
            "-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self._port}-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-serial-pci", "-device", "qemu-xhci", "-device", "virtio-rng-pci",
            "-device", "VGA", "-device", "pvpanic", "-vnc", f"unix:{folder}/vnc",
            "-chardev", f"socket,id=serial,path={folder}/serial,server=on,wait=off",
            "-serial", "chardev:serial",
            "-fw_cfg", f"name=opt/org.kvmlab/authorized_keys,file={folder}/authorized_keys",
            "-fw_cfg", f"name=opt/org.kvmlab/host_key,file={folder}/host_key",
        ]  # fmt: skip

    def first_serial_answer(self) -> None:
        """Type a command at the prompt as soon as there is one, and wait for its output."""
        with _serial_socket(self._folder / "serial") as line:
            _read_until(line, b"# ")
            line.sendall(b"echo X$((1+1))\n")
            _read_until(line, b"X2")

    def first_ssh_command(self) -> None:
        """Connect as soon as the guest lets us, and run a command."""
        with _ssh(self._port, self._own, self._host) as client:
            client.exec_command("true")[1].channel.recv_exit_status()


@contextmanager
def _serial_socket(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as line:
        while True:
            try:
                line.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.002)
        yield line


def _read_until(line: socket.socket, wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        seen += line.recv(4096)


@contextmanager
def _ssh(port: int, own: KeyPair, host: KeyPair) -> Iterator[paramiko.SSHClient]:
    kind, key, *_ = host.public.split()
    client = paramiko.SSHClient()
    known = paramiko.Ed25519Key(data=base64.b64decode(key))
    client.get_host_keys().add(f"[127.0.0.1]:{port}", kind, known)
    private = paramiko.Ed25519Key.from_private_key(StringIO(own.private))
    sock = _speaking(port)
    client.connect("127.0.0.1", port, "root", pkey=private, sock=sock, allow_agent=False, look_for_keys=False)
    try:
        yield client
    finally:
        client.close()


def _speaking(port: int) -> socket.socket:
    """A connection on which the server has begun to speak."""
    while True:
        sock = None
        with suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            if sock.recv(1, socket.MSG_PEEK):
                sock.settimeout(None)
                return sock
        if sock is not None:
            sock.close()
        time.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Bench:
    """The two ways of one image on one host."""

    def __init__(self, image: Image, run: Run) -> None:
        self._image = image
        self._run = run

    def by_hand(self, answer: Callable[[ByHand], None]) -> float:
        """Seconds from nothing to the answer, by hand."""
        folder = Path(tempfile.mkdtemp(prefix="boot-", dir="/var/tmp"))
        try:
            started = time.perf_counter()
            with ByHand(self._image, folder, self._run.verdict.accel).running() as guest:
                answer(guest)
                return time.perf_counter() - started
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def guest(self, channel: str) -> Iterator[Guest]:
        """A guest of the plugin's, with nothing to wait for but its channel."""
        written = {"image": self._image.name, "login": {"channel": channel}, "ready": None}
        keys = validate(GuestKeys, written, source="bench")
        with self._run.launcher.guest("bench", keys, source="bench", witness=lambda *_: False) as guest:
            yield guest

    def through_plugin(self, channel: str) -> float:
        """Seconds from nothing to the answer, through the plugin."""
        started = time.perf_counter()
        with self.guest(channel) as guest:
            guest.run("true")
            return time.perf_counter() - started

    def round_trips(self) -> tuple[float, float]:
        """Medians in milliseconds: of `serial.run("sh -c :")`, and of `sh -c :` itself inside the guest."""
        with self.guest("serial") as guest:
            times = []
            for _ in range(ROUND_TRIPS):
                started = time.perf_counter()
                guest.serial.run(":")
                times.append(time.perf_counter() - started)
            loop = f"time -p sh -c 'i=0; while [ $i -lt {ROUND_TRIPS} ]; do sh -c :; i=$((i+1)); done'"
            inside = float(guest.serial.run(loop).stdout.split()[1]) / ROUND_TRIPS
            return statistics.median(times) * 1000, inside * 1000


def measure(bench: Bench, runs: int) -> dict[str, float]:
    """Medians, taken alternately so that a busy moment hits both ways; the first turn is thrown away."""
    figures: dict[str, float] = {}
    ways = {"serial": ByHand.first_serial_answer, "ssh": ByHand.first_ssh_command}
    for channel, answer in ways.items():
        pairs = [(bench.by_hand(answer), bench.through_plugin(channel)) for _ in range(runs + 1)][1:]
        by_hand, plugin = (statistics.median(column) for column in zip(*pairs, strict=True))
        figures |= {
            f"{channel}_by_hand_s": by_hand,
            f"{channel}_plugin_s": plugin,
            f"{channel}_ratio": plugin / by_hand,
        }
    trip, inside = bench.round_trips()
    return figures | {
        "round_trip_ms": trip,
        "round_trip_guest_ms": inside,
        "round_trip_over_ms": trip - inside,
    }


@contextmanager
def open_bench(options: Options) -> Iterator[Bench]:
    """A run of our own, ready, so that nothing of its start-up is measured."""
    choice = choose_host(options.host)
    with ExitStack() as undo:
        keeper = Keeper(
            {"command": ["bench"]}, capabilities=capabilities_folder(options) if choice.private else None
        )
        undo.callback(keeper.close)
        quiet: Callable[[str, float | None], None] = lambda *_: None  # noqa: E731 -- a named one would say no more
        run = open_run(options, choice, keeper.folder, worker="bench", journal=Journal(), progress=quiet)
        undo.callback(run.close)
        yield Bench(ensure("micro", open_store(options.store), progress=quiet), run)


def main() -> int:
    """Measure, print, and fail if the plugin is slower than it may be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    with open_bench(resolve_options({"lab": True}, os.environ, {})) as bench:
        figures = measure(bench, arguments.runs)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    for name, value in figures.items():
        print(f"{name:22} {value:8.2f}")
    slow = max(figures["serial_ratio"], figures["ssh_ratio"]) > MOST_TIMES_BY_HAND
    return 1 if slow or figures["round_trip_over_ms"] > MOST_ROUND_TRIP_MS else 0


if __name__ == "__main__":
    sys.exit(main())

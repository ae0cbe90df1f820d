"""A clean guest for every test: ours, the same clone by QEMU alone, a boot, and labgrid's, in one run.

All of them are of one image on one machine, in turns where it matters. By QEMU alone means: the command line
that libvirt would have used, started without libvirt, given the same state, asked the same thing.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from bench.figures import Figure, report
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import serial_protocol
from pytest_kvmlab.drivers.state_stream import send
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.keeper.reap import run_processes
from pytest_kvmlab.lab.frozen import Frozen
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.hosts import choose_host
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.run import Run, capabilities_folder, open_run
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.options import Options, Reset, resolve_options
from pytest_kvmlab.spec.validation import validate

MANY, FEW, TESTS, WORKERS = 20, 5, 100, 4
TEST_SECONDS = 1.0  # what a short test does with its guest, and the pool has to start the next one
MIB = 2**20
IMAGE, MEMORY, VCPUS = "debian-12", 512, 2
_ANSWER_SECONDS = 60.0


def median(times: int, measure: Callable[[], float]) -> float:
    """The median of several measurements; one before them is thrown away."""
    measure()
    return statistics.median(measure() for _ in range(times))


class Bench:
    """One run of ours with guests of one image."""

    def __init__(self, run: Run, options: Options) -> None:
        self.run = run
        self.options = options

    @contextmanager
    def launcher(self, reset: Reset, pool: int = 0) -> Iterator[Launcher]:
        """What starts guests in one way only, with as many of them waiting."""
        own = self.run.launcher
        launcher = Launcher(own.assembly, own.images, own.capacity, reset, pool, to_come=10**6)
        try:
            yield launcher
        finally:
            if failures := launcher.finish():
                raise RuntimeError(failures)

    @contextmanager
    def guest(self, launcher: Launcher, *, memory: int = MEMORY, channel: str = "ssh") -> Iterator[Guest]:
        written = {"image": IMAGE, "memory": f"{memory}MiB", "vcpus": VCPUS, "login": {"channel": channel}}
        keys = validate(GuestKeys, written, source="bench")
        with launcher.guest("guest", keys, source="bench", witness=lambda *_: False) as guest:
            yield guest

    def to_answer(self, launcher: Launcher, ask: Callable[[Guest], object], memory: int = MEMORY) -> float:
        """Seconds from nothing to an answer of a clean guest."""
        started = time.perf_counter()
        with self.guest(launcher, memory=memory) as guest:
            ask(guest)
            return time.perf_counter() - started

    def after_a_test(self, launcher: Launcher, ask: Callable[[Guest], object]) -> float:
        """The same as a test sees it that follows on a short one."""
        started = time.perf_counter()
        with self.guest(launcher) as guest:
            ask(guest)
            seconds = time.perf_counter() - started
            time.sleep(TEST_SECONDS)
        return seconds


def serial(guest: Guest) -> None:
    assert guest.serial.run("echo $((41+1))").stdout == "42\n"


def ssh(guest: Guest) -> None:
    assert guest.succeed("echo $((41+1))") == "42\n"


class ByHand:
    """A clone that libvirt and we have nothing to do with.

    Args:
        command: of a clone's QEMU, as libvirt started it.
        frozen: what it started from.
        own: the folder of that clone, whose paths the command has.
    """

    def __init__(self, command: Sequence[str], frozen: Frozen, own: Path) -> None:
        self._frozen = frozen
        self._own = own
        self._command = list(command)

    def to_serial_answer(self) -> float:
        """Seconds from nothing to the answer of the same command over the serial line."""
        folder = Path(tempfile.mkdtemp(prefix="hand-", dir="/var/tmp"))
        started = time.perf_counter()
        shutil.copyfile(self._frozen.blank(0), folder / "disk.qcow2")
        process = subprocess.Popen(_without_libvirt(self._command, self._own, folder))
        try:
            with _connected(folder / "charmonitor") as monitor, _connected(folder / "charserial0") as line:
                self._thaw(monitor, folder)
                session = self._frozen.rest.session
                assert session
                number = session.number + 1
                text = serial_protocol.escaped("echo $((41+1))")
                line.sendall(b"".join(serial_protocol.run_request(number, text)))
                _read_until(line, f":{session.token}:h:{number}:0:".encode())
                return time.perf_counter() - started
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(folder)

    def _thaw(self, monitor: socket.socket, folder: Path) -> None:
        lines = monitor.makefile("rw")
        lines.readline()  # its greeting
        _ask(lines, "qmp_capabilities")
        capability = {"capability": "x-ignore-shared", "state": True}
        _ask(lines, "migrate-set-capabilities", capabilities=[capability])
        _ask(lines, "migrate-incoming", uri=f"unix:{folder}/state")
        send(folder / "state", self._frozen.state.read_bytes(), Deadline(_ANSWER_SECONDS))
        while _ask(lines, "query-status")["status"] == "inmigrate":
            time.sleep(0.001)
        _ask(lines, "cont")


def _ask(lines: TextIO, command: str, **arguments: object) -> Any:
    lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
    lines.flush()
    while "return" not in (answer := json.loads(lines.readline())):
        if "error" in answer:
            raise RuntimeError(answer)
    return answer["return"]


def _without_libvirt(command: Sequence[str], own: Path, folder: Path) -> list[str]:
    """Libvirt's command line with paths of our own in place of descriptors and secrets that only it has."""
    words = [word.replace(str(own), str(folder)) for word in _without(command)]
    return [_with_path(word, folder) for word in words]


def _without(command: Sequence[str]) -> Iterator[str]:
    """Leave out descriptors that libvirt passes, and the key by which it would hand over passwords."""
    words = iter(command)
    for word in words:
        if word == "-add-fd":
            next(words)
        elif word == "-object" and '"secret"' in (value := next(words)):
            continue
        elif word == "-object":
            yield from (word, value)
        else:
            yield word


def _with_path(word: str, folder: Path) -> str:
    if found := re.match(r"socket,id=(\w+),", word):
        word = re.sub(r"\bfd=\d+", f"path={folder}/{found[1]}", word)
        return re.sub(r",log(file|append)=[^,]+", "", word)
    return word


@contextmanager
def _connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as line:
        while True:
            try:
                line.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.001)
        yield line


def _read_until(line: socket.socket, wanted: bytes) -> None:
    seen = b""
    while wanted not in seen:
        seen += line.recv(4096)


def many_by_hand(hand: ByHand) -> float:
    """Seconds for a clone for each test of a whole run, as many at a time as there are processors."""
    started = time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for clone in [threads.submit(hand.to_serial_answer) for _ in range(TESTS)]:
            clone.result()
    return time.perf_counter() - started


def by_hand(bench: Bench, launcher: Launcher) -> ByHand:
    """A clone by hand of the template that a clone of ours has."""
    with bench.guest(launcher) as guest:
        frozen = guest.machine.frozen
        assert frozen
        return ByHand(_command_of(guest, bench), frozen, guest.machine.folder)


def _command_of(guest: Guest, bench: Bench) -> list[str]:
    name = f"guest={guest.machine.plan.name}"
    for process in run_processes(bench.run.host.folder):
        words = os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes()).split("\0")[:-1]
        if any(word.startswith(name) for word in words):
            return words
    raise RuntimeError(f"no process of {name}")


def memory_added(bench: Bench, launcher: Launcher) -> float:
    """The share of a clone's memory that is its own, after its first commands."""
    with bench.guest(launcher) as guest:
        ssh(guest)
        memory = guest.machine.frozen.memory if guest.machine.frozen else Path()
        name = f"guest={guest.machine.plan.name}"
        for process in run_processes(bench.run.host.folder):
            if name in os.fsdecode(Path(f"/proc/{process}/cmdline").read_bytes()):
                return _private(process, memory) / (MEMORY * MIB)
    raise RuntimeError(f"no process of {name}")


def _private(process: int, file: Path) -> int:
    """Bytes of a mapped file that a process has changed for itself (proc(5), smaps)."""
    sizes, inside = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file))
        elif inside and line.startswith("Anonymous:"):  # what was only read is shared by all
            sizes += int(line.split()[1]) * 1024
    return sizes


def whole_run(options: Options, *, workers: int = 0) -> float:
    """Seconds of a pytest run of many tests, each on a clean guest with one command."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_many.py").write_text(
            "import pytest\n"
            f"@pytest.mark.kvm(image={IMAGE!r}, memory='{MEMORY}MiB', vcpus={VCPUS})\n"
            f"@pytest.mark.parametrize('number', range({TESTS}))\n"
            "def test_a_command(guest, number):\n"
            "    assert guest.serial.run('echo $((41+1))').stdout == '42\\n'\n"
        )
        command = [sys.executable, "-m", "pytest", "-q", "--kvm-lab", "-p", "no:cacheprovider"]
        command += ["-n", str(workers)] if workers else []
        store = ["--kvm-store", str(options.store)] if options.store else []
        started = time.perf_counter()
        subprocess.run([*command, *store], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def labgrid(times: int, bench: Bench, python: Path) -> float:
    """Seconds that labgrid needs for a clean guest of the same image, up to the first serial answer."""
    with bench.run.images.use(IMAGE) as image, tempfile.TemporaryDirectory() as folder:
        boot = image.boot
        assert boot.disk
        assert boot.kernel
        asked = {
            "disk": str(boot.disk.path),
            "kernel": str(boot.kernel),
            "initrd": str(boot.initrd),
            "cmdline": boot.cmdline,
            "memory": f"{MEMORY}M",
            "vcpus": VCPUS,
            "accel": bench.run.verdict.accel,
            "times": times,
        }
        script = Path(__file__).with_name("labgrid_guest.py")
        answer = subprocess.run(
            [python, script, json.dumps(asked)], cwd=folder, check=True, capture_output=True, text=True
        )
        return float(statistics.median(json.loads(answer.stdout.splitlines()[-1])))


def labgrid_python() -> Path:
    """A Python of its own with labgrid in it."""
    folder = Path(tempfile.mkdtemp(prefix="labgrid-"))
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin/pip"), "install", "--quiet", "labgrid>=26,<27"]
    subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
    return folder / "bin/python"


def measure(bench: Bench, python: Path | None) -> Iterator[Figure]:
    """Every figure, one after the other."""
    with bench.launcher("clone") as off:
        hand = by_hand(bench, off)
        pairs = [(bench.to_answer(off, serial), hand.to_serial_answer()) for _ in range(MANY + 1)][1:]
        ours, floor = (statistics.median(column) for column in zip(*pairs, strict=True))
        told = f"{ours:.3f} s / {floor:.3f} s"
        yield Figure("first serial answer, over the clone by QEMU alone", ours / floor, told, at_most=1.5)
        to_ssh = median(MANY, lambda: bench.to_answer(off, ssh))
        large = median(MANY, lambda: bench.to_answer(off, serial, 4 * MEMORY))
        again = median(MANY, lambda: bench.to_answer(off, serial))
        told = f"{large:.3f} s / {again:.3f} s"
        yield Figure("four times the memory, over this one", large / again, told, at_most=1.2)
        yield Figure("share of its memory that a clone adds", memory_added(bench, off), at_most=0.15)
        alone = many_by_hand(hand)
    with bench.launcher("boot") as boots:
        cold = median(FEW, lambda: bench.to_answer(boots, ssh))
    with bench.launcher("clone", pool=1) as on:
        pooled = median(MANY, lambda: bench.after_a_test(on, serial))
        pooled_ssh = median(MANY, lambda: bench.after_a_test(on, ssh))
    told = f"cold boot {cold:.1f} s, {cold / pooled_ssh:.0f} times as long; without pool {to_ssh:.2f} s"
    yield Figure("seconds to the first SSH command", pooled_ssh, told, at_most=1.2)
    yield Figure("seconds to the first serial answer, with pool", pooled)
    if python:
        peer = labgrid(FEW, bench, python)
        told = f"{peer:.1f} s / {ours:.3f} s; QEMU alone: {peer / floor:.0f}"
        yield Figure("labgrid's clean guest, over ours without pool", peer / ours, told, at_least=100)
        told = f"{peer:.1f} s / {pooled:.3f} s"
        yield Figure("labgrid's clean guest, over ours with pool", peer / pooled, told, at_least=300)
    one = whole_run(bench.options)
    told = f"{one:.1f} s / {cold:.1f} s"
    yield Figure(f"a run of {TESTS} tests, over one cold boot", one / cold, told, at_most=3)
    told = f"({alone:.1f} s + {cold:.1f} s) / {cold:.1f} s"
    yield Figure("a boot and as many clones by QEMU alone, over one cold boot", (alone + cold) / cold, told)
    one_worker, four = whole_run(bench.options, workers=1), whole_run(bench.options, workers=WORKERS)
    told = f"{four:.1f} s / {one_worker:.1f} s"
    yield Figure(f"the same with {WORKERS} workers, over one", four / one_worker, told, at_most=1.1)


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
        yield Bench(run, options)


def main() -> int:
    """Measure, print, and fail if one figure falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--labgrid", type=Path, metavar="PYTHON", help="has labgrid; else one is made")
    parser.add_argument("--no-labgrid", action="store_true", help="leave labgrid out")
    arguments = parser.parse_args()
    python = None if arguments.no_labgrid else arguments.labgrid or labgrid_python()
    with open_bench(resolve_options({"lab": True}, os.environ, {})) as bench:
        return report(measure(bench, python), arguments.json)


if __name__ == "__main__":
    sys.exit(main())

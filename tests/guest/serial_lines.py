"""Serial lines to test with: a real shell on a real terminal, or a real guest, behind a unix socket."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.console_log import ConsoleReader
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.spec.manifest import INITRD, KERNEL

SHELLS = {
    "bash": ("bash", "--norc", "--noprofile", "-i"),
    "dash": ("dash", "-i"),
    "ash": ("busybox", "ash", "-i"),
}
_COLOURED_PROMPT = r"\033[01;32mroot@guest\033[00m:\033[01;34m/a/rather/long/folder\033[00m# "


class Terminal:
    """A program on a terminal of 80 columns with echo; its far end is a socket, as QEMU's serial port is.

    Attributes:
        line: the far end.
        lose: what to lose once, `input` or `output`: the next piece that passes in that direction.
    """

    def __init__(self, program: Sequence[str], folder: Path) -> None:
        self._master, self._slave = os.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._process = subprocess.Popen(
            ["setsid", "--ctty", *program],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "TERM": "vt102", "TMPDIR": str(folder), "PS1": _COLOURED_PROMPT},
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
        )
        self.lose = ""
        self.line, self._ours = socket.socketpair()
        self._threads = [threading.Thread(target=self._to_line), threading.Thread(target=self._to_terminal)]
        for thread in self._threads:
            thread.start()

    def print(self, text: str) -> None:
        """Print on the terminal from outside, as a kernel does on its console."""
        os.write(self._slave, text.encode())

    def unplug(self) -> None:
        """Cut the line, as the end of QEMU does."""
        self._ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)  # the kernel hangs up on the program in its foreground
        self._process.wait()
        with contextlib.suppress(OSError):
            self.unplug()
        os.close(self._slave)
        for thread in self._threads:
            thread.join()
        os.close(self._master)
        self._ours.close()

    def _to_line(self) -> None:
        with contextlib.suppress(OSError):  # the last program has let go of the terminal
            while data := os.read(self._master, 512):
                if self._passes("output"):
                    self._ours.sendall(data)

    def _to_terminal(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._ours.recv(512):
                if self._passes("input"):
                    os.write(self._master, data)

    def _passes(self, direction: str) -> bool:
        lost = self.lose == direction
        self.lose = "" if lost else self.lose
        return not lost


@contextlib.contextmanager
def terminal(program: Sequence[str], folder: Path) -> Iterator[tuple[Terminal, SerialConsole]]:
    """A program's terminal and a serial console at the far end of it."""
    far = Terminal(program, folder)
    console = SerialConsole(ConsoleReader(far.line, folder / "console.log"))
    try:
        yield far, console
    finally:
        console.close()
        far.close()


@contextlib.contextmanager
def booted(image: Image, folder: Path) -> Iterator[SerialConsole]:
    """The serial console of a real guest, connected before its first instruction."""
    socket_path = folder / "serial"
    kernel = [
        "-kernel",
        str(image.folder / KERNEL),
        "-initrd",
        str(image.folder / INITRD),
        "-append",
        f"{image.manifest.cmdline} panic=-1",
    ]
    machine = ["-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(socket_path))
        listener.listen()
        chardev = [
            "-display",
            "none",
            "-chardev",
            f"socket,id=serial,path={socket_path}",
            "-serial",
            "chardev:serial",
        ]
        with subprocess.Popen(["qemu-system-x86_64", *machine, *kernel, *chardev]) as qemu:
            reader = ConsoleReader(listener.accept()[0], folder / "console.log")
            console = SerialConsole(reader)
            try:
                assert reader.wait_for(re.compile("micro: ready.*# ", re.DOTALL), Deadline(60)), reader.tail(
                    20
                )
                yield console
            finally:
                console.close()
                qemu.kill()

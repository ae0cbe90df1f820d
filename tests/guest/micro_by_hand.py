"""Boot an image with QEMU and nothing else: no libvirt, and nothing of ours but the overlay."""

import io
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko
import pexpect

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.drivers.ssh_keys import KeyPair
from pytest_kvmlab.lab.store import Image
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL

SECONDS = 60
_PROMPT = r"# (\x1b\[6n)?$"  # busybox asks the terminal where its cursor is
_SERIAL = ("-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line")


@dataclass(frozen=True)
class ByHand:
    """A guest on a pseudo terminal."""

    line: "pexpect.spawn[str]"
    folder: Path

    def prompt(self) -> None:
        self.line.expect(_PROMPT, timeout=SECONDS)

    def ask(self, command: str) -> str:
        # the markers are quoted so that the echo of the line does not look like its answer
        self.line.sendline(f"echo be''gin; {command}; echo en''d")
        self.line.expect(r"begin\r+\n((?s:.)*?)end\r+\n", timeout=SECONDS)
        assert isinstance(self.line.match, re.Match)
        said = str(self.line.match[1]).replace("\r", "")
        self.prompt()
        return said.strip()

    def monitor(self, command: str) -> str:
        """Run a command of QEMU's human monitor."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.folder / "qmp"))
            with connection.makefile("rw", encoding="utf-8") as qmp:
                qmp.readline()
                _request(qmp, "qmp_capabilities", {})
                return _request(qmp, "human-monitor-command", {"command-line": command})

    def port(self) -> int:
        """The loopback port that leads to the guest's SSH server."""
        found = re.search(r"127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b", self.monitor("info usernet"))
        assert found
        return int(found[1])


def _request(qmp: io.TextIOBase, command: str, arguments: dict[str, str]) -> str:
    qmp.write(json.dumps({"execute": command, "arguments": arguments}))
    qmp.flush()
    while "return" not in (reply := json.loads(qmp.readline())):
        assert "error" not in reply, reply
    return str(reply["return"])


@contextmanager
def booted(image: Image, folder: Path, *devices: str) -> Iterator[ByHand]:
    """A guest at its first prompt."""
    overlay = folder / "overlay.qcow2"
    qemu_img.create_overlay(image.folder / DISKS["qcow2"], "qcow2", overlay)
    machine = ["-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-no-user-config"]
    console = ["-display", "none", *_SERIAL, "-qmp", f"unix:{folder}/qmp,server=on,wait=off"]
    disk = ["-drive", f"if=virtio,format=qcow2,file={overlay}"]
    kernel = [
        "-kernel",
        str(image.folder / KERNEL),
        "-initrd",
        str(image.folder / INITRD),
        "-append",
        f"{image.manifest.cmdline} panic=-1",
    ]
    line = pexpect.spawn(
        "qemu-system-x86_64", [*machine, *console, *disk, *kernel, *devices], encoding="utf-8"
    )
    guest = ByHand(line, folder)
    try:
        guest.prompt()
        yield guest
    finally:
        line.close(force=True)


def passed(folder: Path, **texts: str) -> list[str]:
    """Arguments that give the guest files of fw_cfg."""
    arguments = []
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="ascii")
        arguments += ["-fw_cfg", f"name=opt/org.kvmlab/{name},file={folder / name}"]
    return arguments


@contextmanager
def connected(port: int, user_key: KeyPair, host_key: KeyPair) -> Iterator[paramiko.SSHClient]:
    """An SSH session as root with a guest that shows this host key and no other."""
    kind, blob, *_ = host_key.public.split()
    expected = paramiko.hostkeys.HostKeyEntry.from_line(f"[127.0.0.1]:{port} {kind} {blob}")
    assert expected
    with paramiko.SSHClient() as client:
        client.get_host_keys().add(f"[127.0.0.1]:{port}", kind, expected.key)
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        key = paramiko.Ed25519Key.from_private_key(io.StringIO(user_key.private))
        client.connect(
            "127.0.0.1",
            port,
            "root",
            pkey=key,
            timeout=SECONDS,
            banner_timeout=SECONDS,
            auth_timeout=SECONDS,
            allow_agent=False,
            look_for_keys=False,
        )
        yield client


def answer(client: paramiko.SSHClient, command: str) -> str:
    _, out, _ = client.exec_command(command, timeout=SECONDS)
    return out.read().decode()

"""A clean guest as a labgrid user gets one: QEMUDriver and ShellDriver, an overlay for each test, a boot.

Started by `bench.reset` with a Python that has labgrid; prints seconds from nothing to the first answer.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import yaml
from labgrid import Environment

# Bash switches bracketed paste on before each prompt, which labgrid would not look past.
PROMPT = r"(?:\x1b\[\?2004h)?root@\S*:\S*# "


def environment(asked: dict[str, object]) -> dict[str, object]:
    """What a labgrid user writes down about such a guest."""
    qemu = {
        "qemu_bin": "qemu",
        "machine": f"q35,accel={asked['accel']}",
        "cpu": "max" if asked["accel"] == "tcg" else "host",
        "memory": asked["memory"],
        "kernel": "kernel",
        "boot_args": asked["cmdline"],
        "extra_args": f"-smp {asked['vcpus']} -initrd {asked['initrd']} "
        "-drive file=overlay.qcow2,if=virtio,format=qcow2,cache=unsafe",
        "nic": "user",
    }
    shell = {"prompt": PROMPT, "login_prompt": "login: ", "username": "root", "login_timeout": 300}
    return {
        "targets": {"main": {"resources": {}, "drivers": {"QEMUDriver": qemu, "ShellDriver": shell}}},
        "tools": {"qemu": "/usr/bin/qemu-system-x86_64"},
        "images": {"kernel": asked["kernel"]},
    }


def seconds(asked: dict[str, object], file: str) -> float:
    """One clean guest, from nothing to its first answer."""
    started = time.perf_counter()
    overlay = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        str(asked["disk"]),
        "overlay.qcow2",
    ]
    subprocess.run(overlay, check=True)
    target = Environment(file).get_target("main")
    qemu, shell = target.get_driver("QEMUDriver"), target.get_driver("ShellDriver", activate=False)
    qemu.on()
    target.activate(shell)
    assert shell.run_check("echo $((41+1))") == ["42"]
    taken = time.perf_counter() - started
    qemu.off()
    target.cleanup()
    return taken


def main() -> None:
    """Measure as often as was asked for."""
    asked = json.loads(sys.argv[1])
    file = Path("environment.yaml")
    file.write_text(yaml.safe_dump(environment(asked)))
    print(json.dumps([seconds(asked, str(file)) for _ in range(asked["times"])]))


if __name__ == "__main__":
    main()

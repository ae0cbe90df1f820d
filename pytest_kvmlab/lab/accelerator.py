"""Which accelerator boots a guest here: a `/dev/kvm` that opens, or that libvirt lists, proves nothing."""

import hashlib
import json
import os
import platform
import shutil
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_kvmlab.checks import KVM
from pytest_kvmlab.errors import GuestError, HostError, KvmlabError
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.plan.guest import Accel
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.validation import validate

_PROBE_SOURCE = "the accelerator's probe"
_PROBE = {"image": "micro", "video": "none", "login": {"channel": "none"}, "ready": "console:micro: ready"}
# The probe image needs half a second with KVM on today's processors, and two under emulation.
_KVM_SECONDS = 8.0
_TCG_SECONDS = 120.0
_SECONDS_WITH_KVM = 0.5
_UNMEASURED_SCALE = 5.0
_REASON_CHARACTERS = 120  # the end of what libvirt passes on is QEMU's own reason
_MOST_SCALE = 12.0  # beyond that a hang costs more than patience gains


@dataclass(frozen=True)
class Verdict:
    """What was found out about this machine.

    Attributes:
        accel: `kvm` or `tcg` (QEMU's software emulation).
        why: the reason, for the report header.
        timeout_scale: how much slower than with KVM a guest is here: what timeouts are multiplied by.
    """

    accel: Accel
    why: str
    timeout_scale: float


def prove(wish: str, launcher: Callable[[Accel], Launcher], cache: Path, *, patience: float = 1.0) -> Verdict:
    """Find out which accelerator to use, by booting a guest with it; once per boot of this machine.

    Args:
        wish: `auto`, `kvm` or `tcg`.
        launcher: gives a launcher that uses an accelerator.
        cache: a folder that keeps verdicts.
        patience: how many times as long as usual a guest may take to boot with KVM, before it counts as
            one that hangs: somebody knows that this machine is slow, as one that is emulated itself.

    Returns:
        The verdict. Where no guest can be booted to prove it, emulation, with the reason.

    Raises:
        HostError: `kvm` was asked for, and no guest boots with it.
    """
    file = cache / f"{_key(wish, patience)}.json"
    verdict = _remembered(file)
    if verdict is None:
        verdict = _find_out(wish, launcher, _KVM_SECONDS * max(1.0, patience), file)
    if wish == "kvm" and verdict.accel != "kvm":
        raise HostError(
            f"KVM does not work here: {verdict.why}", "use --kvm-accel=auto, or mend KVM", check=KVM.name
        )
    return verdict


def _find_out(wish: str, launcher: Callable[[Accel], Launcher], kvm_seconds: float, file: Path) -> Verdict:
    try:
        verdict = _proved(wish, launcher, kvm_seconds)
    except KvmlabError as error:
        # Not remembered: what was in the way, such as an image that cannot be built, says nothing of KVM.
        return Verdict("tcg", f"unproved: {error.message}", _UNMEASURED_SCALE)
    _remember(file, verdict)
    return verdict


def _proved(wish: str, launcher: Callable[[Accel], Launcher], kvm_seconds: float) -> Verdict:
    obstacle = "emulation was asked for" if wish == "tcg" else _obstacle_to_kvm(launcher, kvm_seconds)
    if not obstacle:
        return Verdict("kvm", "a guest booted with it", 1.0)
    seconds = _boot_seconds(launcher("tcg"), _TCG_SECONDS)
    return Verdict("tcg", obstacle, min(_MOST_SCALE, max(1.0, round(seconds / _SECONDS_WITH_KVM, 1))))


def _obstacle_to_kvm(launcher: Callable[[Accel], Launcher], seconds: float) -> str:
    """Why KVM cannot be used; empty if a guest booted with it."""
    finding = KVM.look()
    if not finding.ok:
        return finding.seen
    try:
        _boot_seconds(launcher("kvm"), seconds)
    except GuestError as error:
        reason = textwrap.shorten(error.message.rpartition(": error: ")[2], _REASON_CHARACTERS)
        return f"/dev/kvm opens, but a guest does not boot with it within {seconds:g} s: {reason}"
    return ""


def _boot_seconds(launcher: Launcher, timeout: float) -> float:
    keys = validate(GuestKeys, _PROBE, source=_PROBE_SOURCE)
    started = time.monotonic()
    try:
        with launcher.guest("probe", keys, source=_PROBE_SOURCE, witness=_ignore, timeout=timeout):
            return time.monotonic() - started
    finally:
        launcher.finish()


def _ignore(*_: object) -> bool:
    """The probe leaves no evidence, and is not kept: its verdict is what counts."""
    return False


def _key(wish: str, patience: float) -> str:
    """What a verdict depends on: this boot of the machine, its kernel, its QEMU, who asks, how patiently."""
    emulator = shutil.which("qemu-system-x86_64")
    build = Path(emulator).stat() if emulator else None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts = [
        wish,
        boot,
        platform.release(),
        emulator,
        build and (build.st_mtime_ns, build.st_size),
        os.getuid(),
        patience,
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _remembered(file: Path) -> Verdict | None:
    """What was found out before; None if nothing was, or if the file says anything else."""
    try:
        match json.loads(file.read_text()):
            case {"accel": "kvm" | "tcg" as accel, "why": str(why), "timeout_scale": float(scale)}:
                return Verdict(accel, why, scale)
    except (OSError, ValueError):
        return None
    return None


def _remember(file: Path, verdict: Verdict) -> None:
    """Keep a verdict; where nothing can be written, the next run finds out again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(asdict(verdict)))
        fresh.rename(file)
    except OSError:
        return

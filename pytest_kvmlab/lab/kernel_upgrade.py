"""Another kernel in a guest that runs: installed, chosen in its boot loader, proved, taken back."""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.errors import (
    ConfigError,
    GuestError,
    KernelDidNotBoot,
    KvmlabError,
    WaitTimeout,
)
from pytest_kvmlab.lab.commands import TAIL_LINES
from pytest_kvmlab.lab.machine import Machine
from pytest_kvmlab.lab.power import Power
from pytest_kvmlab.plan.domain_xml import domain_xml
from pytest_kvmlab.plan.guest import GuestPlan, KernelPlan
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.resolved import GuestSpec

_INSTALL_SECONDS = 600.0
_BOOT_SECONDS = 300.0
_QUESTION_SECONDS = 30.0
_SNAPSHOT_SECONDS = 60.0
_CODENAME = re.compile(r"[a-z][a-z0-9-]*")
_FOLDER = "/var/tmp/kernel-packages"  # noqa: S108  in the guest, whose only user we are
_INSTALL = (
    "DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold -i {folder}/*.deb && rm -r {folder}"
)
# Debian's GRUB has an entry for each kernel in a submenu; a file of ours chooses one, whatever update-grub
# thinks is the newest (grub.d/41_custom).
_CHOOSE = """\
set -e
find_entry() {
    menu=$(grep -o "gnulinux-advanced-[^' ]*" /boot/grub/grub.cfg | head -n1)
    entry=$(grep -o "gnulinux-RELEASE-advanced-[^' ]*" /boot/grub/grub.cfg | head -n1)
    test -n "$menu" -a -n "$entry"
}
if [ ! -e /boot/initrd.img-RELEASE ]; then
    update-initramfs -c -k RELEASE
    update-grub
fi
find_entry || { update-grub; find_entry; }
echo "set default='$menu>$entry'" >/boot/grub/custom.cfg
sync
"""


@dataclass(frozen=True)
class KernelFiles:
    """The packages of a kernel.

    Attributes:
        release: as in `uname -r`.
        packages: their files, on this machine.
    """

    release: str
    packages: tuple[Path, ...]


Packages = Callable[[str, str, str], KernelFiles]
"""Finds the packages of a kernel: what is wished, the system's release of Debian, what it has installed."""


class KernelUpgrades(Power):
    """A guest as far as its kernel can be another one than its image's.

    Args:
        kernel: the version of its image's kernel.
        kernels: finds packages.
    """

    def __init__(
        self,
        machine: Machine,
        spec: GuestSpec,
        ssh: SshChannel,
        *,
        timeout_scale: float,
        kernel: str,
        kernels: Packages,
    ) -> None:
        super().__init__(machine, spec, ssh, timeout_scale=timeout_scale)
        self.kernel = kernel
        self._first = (machine.plan, kernel)
        self._kernels = kernels
        self._ways_back: dict[str, KernelPlan] = {}
        self._snapshots: set[str] | None = None

    def upgrade_kernel(self, kernel: str, *, timeout: float = _INSTALL_SECONDS) -> str:
        """Install a kernel of Debian's, or your own, in the guest, and boot it; its network is not used.

        Its disk stays as it is, but for the new packages. The old kernel stays on it: see `boot_kernel`.

        Args:
            kernel: as in `--kvm-kernel`: a version, a package, or a path with a slash.
            timeout: seconds for installing it; booting it has as long as for `boot_kernel`.

        Returns:
            The release of the kernel that runs now.

        Raises:
            KernelDidNotBoot: it does not come up.
            CommandFailed: the guest cannot install it.
            ConfigError: the guest has no Debian, or cannot be reached over SSH; or the kernel is of another
                architecture.
            ImageError: there is no such kernel.
        """
        if self.spec.login.channel != "ssh":
            raise ConfigError(
                f"{self.name} is not reached over SSH; its serial line would take hours for a kernel",
                'give it a network card and login = { channel = "ssh" }',
            )
        deadline = self.deadline(timeout)
        suite = self.ask_for(
            "sed -n s/^VERSION_CODENAME=//p /etc/os-release 2>/dev/null || true", deadline
        ).strip()
        status = self.ask_for("cat /var/lib/dpkg/status 2>/dev/null || true", deadline)
        if not (_CODENAME.fullmatch(suite) and status):
            raise ConfigError(
                f"{self.name} has no Debian whose kernel could be upgraded",
                f"run the test under another kernel: --kvm-kernel={kernel}",
            )
        files = self._kernels(kernel, suite, status)
        with self.machine.phase("upgrade"):
            self._install(files, deadline)
        self.boot_kernel(files.release)
        return files.release

    def boot_kernel(self, release: str, *, timeout: float = _BOOT_SECONDS) -> None:
        """Boot one of the kernels on the guest's disk, now and from now on, and prove that it runs.

        A guest whose kernel has just not come up boots from this machine the kernel that it had before.

        Args:
            release: as in `uname -r`.
            timeout: seconds for choosing and booting it.

        Raises:
            KernelDidNotBoot: it does not come up, or another one does.
            ConfigError: there is no such kernel.
            CommandFailed: the guest's boot loader is not Debian's GRUB.
        """
        deadline = self.deadline(timeout)
        if not self._answers():
            self._go_back(release, deadline)
        self._remember_way_back(deadline)
        before = self._boot_id(deadline)
        self._choose(release, deadline)
        self.shutdown()
        self._let_boot(None)
        self._prove(release, before, deadline)

    def reset(self, *, timeout: float | None = None) -> None:
        """Make the guest as it was at first, its kernel included: `Power.reset`."""
        plan, self.kernel = self._first
        self._start_from(plan)
        self._snapshots = None
        super().reset(timeout=timeout)

    def snapshot(self, name: str, *, timeout: float = _SNAPSHOT_SECONDS) -> None:
        """Keep memory, devices and disks as they are now: `Power.snapshot`."""
        super().snapshot(name, timeout=timeout)
        if self._snapshots is not None:
            self._snapshots.add(name)

    def revert(self, name: str, *, timeout: float = _SNAPSHOT_SECONDS) -> None:
        """Go back to a snapshot: `Power.revert`; not to one of before another kernel was booted."""
        if self._snapshots is not None and name not in self._snapshots:
            raise GuestError(
                f"{self.name} has no snapshot {name!r} of the time since it boots {self.kernel}",
                "guest.reset() makes it as it was at first",
                phase="create",
            )
        super().revert(name, timeout=timeout)

    def _install(self, files: KernelFiles, deadline: Deadline) -> None:
        self.ask_for(f"rm -rf {_FOLDER} && mkdir {_FOLDER}", deadline)
        for package in files.packages:
            self.ssh.put(package, f"{_FOLDER}/{package.name}")
        self.ask_for(_INSTALL.format(folder=_FOLDER), deadline)

    def _remember_way_back(self, deadline: Deadline) -> None:
        """Have what the running kernel boots from on this machine, where no boot loader is needed for it."""
        running = self.ask_for("uname -r", deadline).strip()
        if running in self._ways_back:
            return
        if self.machine.plan.boot is None:
            # The guest has no say in what files are called here.
            place = self.machine.folder / f"way-back-{len(self._ways_back)}"
            kernel, initrd = place.with_suffix(".vmlinuz"), place.with_suffix(".initrd")
            for name, local in (("vmlinuz", kernel), ("initrd.img", initrd)):
                self.ssh.get(f"/boot/{name}-{running}", local)
            words = self.ask_for("cat /proc/cmdline", deadline).split()
            cmdline = " ".join(word for word in words if not word.startswith("BOOT_IMAGE="))
            self._ways_back[running] = KernelPlan(kernel, initrd, cmdline)
        else:
            self._ways_back[running] = self.machine.plan.boot

    def _choose(self, release: str, deadline: Deadline) -> None:
        there = self.ask_for("cd /boot && ls -d vmlinuz-*", deadline).split()
        releases = [name.removeprefix("vmlinuz-") for name in there]
        if release not in releases:
            raise ConfigError(
                f"{self.name} has no kernel {release}{nearest(release, releases)}",
                f"it has: {', '.join(releases)}; guest.upgrade_kernel() installs one",
            )
        self.ask_for(f"sh -c {shlex.quote(_CHOOSE.replace('RELEASE', release))}", deadline)

    def _let_boot(self, kernel: KernelPlan | None) -> None:
        """Have the guest start from its disk, or from a kernel of this machine, from now on."""
        self._start_from(replace(self.machine.plan, boot=kernel))
        self._snapshots = set()

    def _start_from(self, plan: GuestPlan) -> None:
        self.machine.plan = plan
        self.machine.xml_file.write_text(domain_xml(plan))

    def _answers(self) -> bool:
        try:
            return self.ask("true", self.deadline(_QUESTION_SECONDS)).ok
        except (KvmlabError, WaitTimeout):
            return False

    def _go_back(self, release: str, deadline: Deadline) -> None:
        """Start a guest that did not come up with the kernel that it had before."""
        if release not in self._ways_back:
            known = ", ".join(self._ways_back) or "none"
            raise ConfigError(
                f"{self.name} does not answer, and {release} is not the kernel that it had before",
                f"go back to one of: {known}; or guest.reset()",
            )
        self.crash()
        self._let_boot(self._ways_back[release])
        self._start(release, deadline)

    def _prove(self, release: str, before: str, deadline: Deadline) -> None:
        self._start(release, deadline)
        running = self.ask_for("uname -r", deadline).strip()
        if running != release or self._boot_id(deadline) == before:
            raise KernelDidNotBoot(f"{self.name} was to boot the kernel {release}, but runs {running}")
        self.kernel = release

    def _start(self, release: str, deadline: Deadline) -> None:
        try:
            self.start(timeout=deadline.remaining / self.timeout_scale)
        except (GuestError, WaitTimeout) as error:
            console = "\n".join(f"    {line}" for line in self.machine.serial.tail(TAIL_LINES))
            why = getattr(error, "message", str(error))
            raise KernelDidNotBoot(
                f"the kernel {release} does not come up in {self.name}: {why}\n"
                f"  its console:\n{console}\n"
                "  what to do: look at the screenshot among the artifacts; guest.boot_kernel(OLD) goes back"
            ) from error

"""Switching a guest on, off and back: each verb waits until what it names has come true."""

import re

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.errors import CommandFailed, ConfigError, GuestError, WaitTimeout
from pytest_kvmlab.lab.conditions import Conditions
from pytest_kvmlab.lab.identity import become_somebody
from pytest_kvmlab.lab.kernel_watch import KernelWatch
from pytest_kvmlab.lab.machine import Machine
from pytest_kvmlab.lab.readiness import open_channel, prove_ready, prove_useful
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.lab.waking import go_on
from pytest_kvmlab.spec.resolved import GuestSpec

_POWER_SECONDS = 60.0
_ATTEMPT_SECONDS = 10.0
_BUTTON_SECONDS = 10.0
_SNAPSHOT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


class Power(Conditions):
    """A guest as far as its power and its state are concerned.

    Args:
        machine: the virtual machine.
        spec: what was asked for, all defaults filled in.
        ssh: the way in over SSH, not yet open.
        timeout_scale: what timeouts are multiplied by.

    Attributes:
        kernel_watch: listens to what its kernel complains about.
    """

    def __init__(self, machine: Machine, spec: GuestSpec, ssh: SshChannel, *, timeout_scale: float) -> None:
        super().__init__(machine, spec, ssh, timeout_scale=timeout_scale)
        self.kernel_watch = KernelWatch(self)

    def start(self, *, timeout: float | None = None) -> None:
        """Switch the guest on after `shutdown` or `crash`, its disks as they were; wait until it is ready.

        Args:
            timeout: seconds until it must be ready; None: its `boot_timeout`.

        Raises:
            GuestError: it is on already, or does not get ready; the message says how far it came.
        """
        deadline = self.deadline(self._boot_seconds(timeout))
        self.machine.power_on()
        prove_ready(self, deadline)

    def reboot(self, *, timeout: float | None = None) -> None:
        """Let the guest reboot, and wait until it is ready; a new boot id (random(4)) proves that it did.

        Args:
            timeout: seconds until it must be ready again; None: its `boot_timeout`.

        Raises:
            WaitTimeout: it did not start over in time.
            GuestError: it did, and then did not get ready.
        """
        deadline = self.deadline(self._boot_seconds(timeout))
        with self.machine.phase("reboot"):
            before = self._boot_id(deadline)
            self._leave("reboot", deadline)
            if not until(lambda: self._rebooted(before, deadline), deadline, every=0.2):
                raise WaitTimeout(
                    f"{self.name} did not reboot within {deadline.seconds:g} s: boot id still {before}"
                )
            prove_ready(self, deadline)

    def shutdown(self, *, timeout: float = _POWER_SECONDS) -> None:
        """Ask the guest to switch itself off, and wait until it has.

        Over its channel where it has one, else by the ACPI power button.

        Raises:
            WaitTimeout: it is still on.
        """
        deadline = self.deadline(timeout)
        with self.machine.phase("shutdown"):
            if self.spec.login.channel == "none":
                off = until(lambda: self._off_by_button(deadline), deadline)
            else:
                self._leave("poweroff", deadline)
                off = until(self._off, deadline)
            if not off:
                raise WaitTimeout(f"{self.name} did not switch itself off within {deadline.seconds:g} s")
        self.crash()  # takes away what is left

    def _off(self) -> bool | None:
        return None if self.machine.is_on else True

    def _off_by_button(self, deadline: Deadline) -> bool | None:
        """Press the button once: early in its boot, nobody in the guest notices."""
        self.machine.domain.press_power_button()
        return until(self._off, Deadline(min(_BUTTON_SECONDS, deadline.remaining)))

    def crash(self) -> None:
        """Cut the power, as a power failure would; `start` switches the guest on again."""
        self._look_before_it_ends()
        self._ssh.close()
        self.machine.power_off()

    def reset(self, *, timeout: float | None = None) -> None:
        """Make the guest as it was at first: fresh disks and firmware variables, ready.

        A clone starts from its template again; every other guest boots.

        Args:
            timeout: seconds until a guest that boots must be ready; None: its `boot_timeout`.
        """
        self.crash()
        self.machine.renew()
        self.machine.usb.renew()
        if self.machine.frozen:
            self.kernel_watch.skip(self.machine.frozen.shown)
            self.thaw()
        else:
            self.start(timeout=timeout)

    def thaw(self) -> None:
        """Start a clone, its disks new, from the moment in which its template was frozen.

        What is plugged in only now may be what its readiness depends on, so that is proved again then.

        Raises:
            GuestError: QEMU does not take it, or the guest does not answer or get ready.
        """
        deadline = self.deadline(_POWER_SECONDS)
        go_on(self, self.machine.thaw())
        become_somebody(self)
        if self.spec.usb:
            prove_useful(self, deadline)

    def snapshot(self, name: str, *, timeout: float = _POWER_SECONDS) -> None:
        """Keep memory, devices and disks as they are now, inside the guest's own overlay.

        Args:
            name: letters, digits, `.`, `_`, `-`, beginning with a letter.
            timeout: seconds for writing the memory down.

        Raises:
            GuestError: QEMU cannot (UEFI variables, which it would have to write to).
        """
        self._monitor_snapshot("savevm", name, timeout)

    def revert(self, name: str, *, timeout: float = _POWER_SECONDS) -> None:
        """Go back to a snapshot of this guest, also after its kernel panicked; open connections to it end.

        Args:
            name: as given to `snapshot`.
            timeout: seconds for reading the memory.

        Raises:
            GuestError: there is no such snapshot.
        """
        self.kernel_watch.look_before_it_ends()
        self._monitor_snapshot("loadvm", name, timeout)
        self.machine.went_back()
        self._ssh.close()
        self.serial.forget()

    def _monitor_snapshot(self, verb: str, name: str, timeout: float) -> None:
        if not _SNAPSHOT_NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a snapshot", "use letters, digits, '.', '_' and '-'")
        with self.machine.phase(verb):
            seconds, domain = self.deadline(timeout).seconds, self.machine.domain
            if refusal := domain.monitor(f"{verb} {name}", seconds=seconds).strip():
                if domain.state() == "paused":  # QEMU had stopped the guest for this, and left it so
                    domain.resume()
                raise GuestError(f"{verb} {name} of {self.name}: {refusal}", phase="create")

    def _boot_seconds(self, timeout: float | None) -> float:
        return self.spec.boot_timeout if timeout is None else timeout

    def _leave(self, program: str, deadline: Deadline) -> None:
        """Start a program that ends this boot, without waiting for its end, which is the channel's too."""
        self._look_before_it_ends()
        self.ask(f"(sleep 0.3; {program}) >/dev/null 2>&1 &", deadline)
        self._ssh.close()
        self.serial.forget()

    def _look_before_it_ends(self) -> None:
        self.kernel_watch.look_before_it_ends()
        self.kernel_watch.begin_anew()

    def _boot_id(self, deadline: Deadline) -> str:
        return self.ask_for("cat /proc/sys/kernel/random/boot_id", deadline).strip()

    def _rebooted(self, before: str, deadline: Deadline) -> bool | None:
        """Whether another boot answers; None if none does yet, or still the old one."""
        self.machine.check("boot")
        attempt = Deadline(min(_ATTEMPT_SECONDS, deadline.remaining))
        try:
            open_channel(self, attempt)
            return self._boot_id(attempt) != before or None
        except (GuestError, WaitTimeout, CommandFailed):
            self._ssh.close()
            return None

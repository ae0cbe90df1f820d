"""Every error this package raises on purpose.

::

    Exception
    ├── KvmlabError              message, what was looked at, what to do
    │   ├── ConfigError          what you wrote: a mark, an option, a lab file
    │   ├── HostError            this machine cannot: names a check of `kvmlab doctor`
    │   ├── ImageError           a base image is missing, damaged or lying
    │   ├── UsbError             a dongle: missing, held by somebody else, or misbehaving
    │   ├── GuestError           the guest broke before the test could ask
    │   └── TeardownError        something would not go away; the rest was still taken down
    └── AssertionError
        ├── CommandFailed        a command ended with the wrong exit status
        ├── KernelDidNotBoot     a kernel that was installed in the guest does not come up
        ├── WaitTimeout          a condition did not come true in time
        └── SerialMismatch       the serial line showed something else
"""

from collections.abc import Sequence


class KvmlabError(Exception):
    """Something other than the tested system went wrong.

    Args:
        message: what failed, in one sentence.
        hint: what the reader can do about it.
        looked_at: the places, files or values that were examined, in order.
    """

    def __init__(self, message: str, hint: str = "", *, looked_at: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.looked_at = tuple(str(place) for place in looked_at)

    def __str__(self) -> str:
        lines = [self.message]
        if self.looked_at:
            lines += ["  looked at:", *(f"    {place}" for place in self.looked_at)]
        if self.hint:
            lines.append(f"  what to do: {self.hint}")
        return "\n".join(lines)


class ConfigError(KvmlabError):
    """What was asked for is wrong: an option, a mark, a lab file."""


class HostError(KvmlabError):
    """This machine cannot do what was asked for.

    Args:
        message: what failed, in one sentence.
        hint: what the reader can do about it.
        check: the check of `kvmlab doctor` that examines this, if there is one.
        looked_at: the places, files or values that were examined, in order.
    """

    def __init__(
        self, message: str, hint: str = "", *, check: str = "", looked_at: Sequence[object] = ()
    ) -> None:
        super().__init__(message, hint, looked_at=looked_at)
        self.check = check

    def __str__(self) -> str:
        told = super().__str__()
        return f"{told}\n  see: kvmlab doctor, check '{self.check}'" if self.check else told


class ImageError(KvmlabError):
    """A base image is missing, damaged, or not what it claims to be."""


class UsbError(KvmlabError):
    """A USB device is missing, held by somebody else, or does not behave as one."""


class GuestError(KvmlabError):
    """The guest broke before the test could ask it anything.

    Args:
        message: what failed, in one sentence.
        hint: what the reader can do about it.
        phase: how far the guest had come: `create`, `boot`, `network`, `ssh`, `serial` or `ready`; or `host`,
            where what runs it has ended.
        looked_at: what was seen, newest last: console lines, addresses tried.
    """

    def __init__(self, message: str, hint: str = "", *, phase: str, looked_at: Sequence[object] = ()) -> None:
        super().__init__(message, hint, looked_at=looked_at)
        self.phase = phase


class TeardownError(KvmlabError):
    """Something would not go away; everything else was still taken down."""


class CommandFailed(AssertionError):
    """A command in the guest ended with another exit status than the test asked for."""


class KernelDidNotBoot(AssertionError):
    """A kernel does not come up in the guest; the message ends with what its console showed."""


class WaitTimeout(AssertionError):
    """A condition in the guest did not come true in time; the message says what was seen instead."""


class SerialMismatch(AssertionError):
    """The serial line did not show what the test expected; the message ends with what it did show."""

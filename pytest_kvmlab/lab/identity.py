"""What makes a clone somebody else than its siblings, where it is asked to be."""

import secrets
from collections.abc import Mapping

from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.commands import Commands
from pytest_kvmlab.spec.guest import Identity

_STEP_SECONDS = 30.0
# machine-id(5): 32 small hexadecimal digits. The host key lies among the firmware's files, where a clone has
# one of its own; what put the first one into place does so again.
_RENEWED: Mapping[Identity, str] = {
    # Where the root file system was read-only at first, systemd has mounted one over it.
    "machine-id": "{{ umount /etc/machine-id 2>/dev/null; printf '%s\\n' {machine_id} >/etc/machine-id; }}",
    "hostname": "printf '%s\\n' {hostname} >/etc/hostname && hostname {hostname}",
    "host-key": "/usr/local/sbin/guest-keys",
}


def become_somebody(clone: Commands) -> None:
    """Give a clone the parts of an identity that its spec names under `fresh`.

    Args:
        clone: a clone that has a shell.

    Raises:
        GuestError: it has no shell of root's on its serial line, or a command for this fails.
    """
    if not clone.spec.fresh:
        return
    names = {"machine_id": secrets.token_hex(16), "hostname": f"{clone.name}-{secrets.token_hex(4)}"}
    script = " && ".join(_RENEWED[part].format(**names) for part in clone.spec.fresh)
    result = clone.serial.run(script, timeout=clone.deadline(_STEP_SECONDS).seconds)
    if not result.ok:
        raise GuestError(
            f"{clone.name} cannot be given its own {', '.join(clone.spec.fresh)}: {result.stdout.strip()}",
            "fresh needs root's shell on the serial line, and for host-key the shipped images' guest-keys",
            phase="clone",
        )

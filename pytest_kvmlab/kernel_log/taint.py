"""The flags of a tainted kernel (Documentation/admin-guide/tainted-kernels.rst)."""

from collections.abc import Collection

from pytest_kvmlab.kernel_log.finding import Finding, Kind

_FLAGS = (
    ("P", "a proprietary module was loaded"),
    ("F", "a module was loaded by force"),
    ("S", "the processor is out of its specification"),
    ("R", "a module was unloaded by force"),
    ("M", "the processor reported a machine check"),
    ("B", "a bad page was found"),
    ("U", "a program asked for it"),
    ("D", "the kernel has died before"),
    ("A", "an ACPI table was overridden"),
    ("W", "a warning was issued before"),
    ("C", "a staging driver was loaded"),
    ("I", "a bug of the firmware was worked around"),
    ("O", "a module from outside the kernel was loaded"),
    ("E", "an unsigned module was loaded"),
    ("L", "a soft lockup occurred"),
    ("K", "the kernel was patched live"),
    ("X", "the distribution's own flag"),
    ("T", "the kernel was built with randomised structures"),
    ("N", "a test of the kernel itself was run"),
)
# What a finding of these kinds has told already.
_TOLD_BY: dict[str, tuple[Kind, ...]] = {
    "P": ("taint",),
    "F": ("taint",),
    "O": ("taint",),
    "E": ("taint",),
    "C": ("taint",),
    "B": ("bug",),
    "D": ("oops", "bug", "panic"),
    "W": ("warning",),
    "L": ("lockup",),
}


def flags(mask: int) -> str:
    """Write the content of `/proc/sys/kernel/tainted` as a kernel's own reports do: `PWO`."""
    return "".join(letter for bit, (letter, _) in enumerate(_FLAGS) if mask >> bit & 1)


def taint_findings(new: str, told: Collection[Kind]) -> list[Finding]:
    """What new flags say that nothing else has said.

    Args:
        new: letters of flags that were not there before.
        told: the kinds of what was found at the same time.
    """
    reasons = dict(_FLAGS)
    return [
        Finding("taint", f"{letter}: {reasons[letter]}")
        for letter in new
        if not set(_TOLD_BY.get(letter, ())) & set(told)
    ]

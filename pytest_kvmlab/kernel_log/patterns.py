"""The sentences in which Linux complains, as its source has them, from 5.10 to 6.12.

Sources: kernel/panic.c, kernel/watchdog.c, kernel/hung_task.c, kernel/rcu/tree_stall.h, kernel/module/main.c,
kernel/workqueue.c, kernel/locking/lockdep.c, mm/oom_kill.c, lib/bug.c, arch/x86/kernel/dumpstack.c,
arch/x86/mm/fault.c, block/blk-core.c, fs/buffer.c, fs/ext4/super.c, fs/jbd2/journal.c, fs/xfs/xfs_message.c,
fs/btrfs/messages.c, fs/fat/misc.c, fs/squashfs.
"""

import re
from dataclasses import dataclass

from pytest_kvmlab.kernel_log.finding import Kind


@dataclass(frozen=True)
class Pattern:
    """One way to complain.

    Attributes:
        kind: what it is.
        trigger: a literal part of the line, by which most lines are passed over quickly.
        line: matches from the start of the line, the time taken off.
        report: whether registers and calls follow.
    """

    kind: Kind
    trigger: str
    line: re.Pattern[str]
    report: bool = True


def _pattern(kind: Kind, trigger: str, line: str, *, report: bool = True) -> Pattern:
    return Pattern(kind, trigger, re.compile(line), report)


_LOCKDEP = (
    "possible |suspicious RCU|inconsistent lock|bad unlock|held lock|lock held when|nested lock"
    "|kernel stack|stack recursion"
)
# The first that matches counts, so what is special stands before what is general.
PATTERNS = (
    _pattern("panic", "Kernel panic", r"Kernel panic - not syncing"),
    _pattern("lockup", "lockup", r"(watchdog: )?BUG: (soft|workqueue) lockup"),
    _pattern("lockup", "LOCKUP", r"((NMI )?watchdog: )+(BUG|Watchdog).*hard LOCKUP"),
    _pattern("oops", "BUG: ", r"BUG: (unable to handle|kernel NULL pointer)"),
    _pattern("oops", " [#", r"[A-Za-z][\w ,:./-]{0,200}: [0-9a-f]{4,16} \[#\d+\]"),
    _pattern("bug", "BUG", r"(kernel )?BUG(:| at) \S"),
    _pattern("bug", "corruption", r"list_(add|del) corruption", report=False),
    _pattern("warning", "WARNING: ", rf"WARNING: (CPU: \d+ PID: \d+ |\S+:\d+ at |{_LOCKDEP})"),
    _pattern("hung-task", "blocked", r"INFO: task .{1,64} blocked (in I/O wait )?for more than \d+ second"),
    _pattern(
        "oom",
        "Killed process",
        r"(Out of memory|Memory cgroup out of memory).*: Killed process",
        report=False,
    ),
    _pattern("rcu-stall", " stall", r"rcu: INFO: \S+ (self-)?detected (expedited )?stall"),
    _pattern("rcu-stall", "kthread starved", r"rcu: \S+ kthread starved"),
    _pattern("io-error", "I/O error", r"(\w+: )?(Buffer )?I/O error(,| on) dev", report=False),
    _pattern("io-error", " error, dev ", r"(\w+: )?(critical \w+|\w+) error, dev \S+, sector", report=False),
    _pattern("fs-error", "-fs error", r"\S+-fs error( |:|\()", report=False),
    _pattern("fs-error", "FAT-fs (", r"FAT-fs \(.{1,32}\): error,", report=False),
    _pattern(
        "fs-error",
        "emounting filesystem",
        r"\S+( \(.{1,32}\))?: Remounting filesystem read-only",
        report=False,
    ),
    _pattern("fs-error", "Aborting journal", r"Aborting journal on device", report=False),
    _pattern(
        "fs-error",
        "XFS (",
        r"XFS \(.{1,32}\): (Metadata corruption|Internal error|Corruption|metadata I/O error|log I/O error"
        r"|Filesystem has been shut down)",
    ),
    _pattern("fs-error", "BTRFS", r"BTRFS:? (error|critical)", report=False),
    _pattern("fs-error", "SQUASHFS error", r"SQUASHFS error", report=False),
    _pattern("taint", "taint", r"[\w-]+: .{0,80}taint(s|ing) kernel", report=False),
)

TRIGGERS = tuple(dict.fromkeys(pattern.trigger for pattern in PATTERNS))

# What follows says in a warning's own words what is wrong; the line that calls it a warning comes after.
CUT = "[ cut here ]"
# Where a report of registers and calls ends.
ENDS = ("</TASK>", "---[ end ")
# What an oops says after its first line, and so is no complaint of its own.
CONTINUED = {("oops", "oops"), ("bug", "oops"), ("bug", "bug")}
WHERE = re.compile(r"RIP: [0-9a-f]{4}:(\w[\w.]*)\+0x")

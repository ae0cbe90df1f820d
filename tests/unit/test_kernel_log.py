"""Complaints of kernels: as Debian's 6.1 printed them, and as somebody prints who means harm."""

import time
import tracemalloc
from pathlib import Path

import pytest

from pytest_kvmlab.kernel_log.console_level import shows_warnings, with_warnings
from pytest_kvmlab.kernel_log.finding import Finding, normalised
from pytest_kvmlab.kernel_log.question import Device, read_answer
from pytest_kvmlab.kernel_log.scanner import MOST_FINDINGS, MOST_STACK_LINES, scan
from pytest_kvmlab.kernel_log.taint import flags, taint_findings

RECORDED = Path(__file__).parent / "kernel_logs"
PANIC = b"[    8.040122] Kernel panic - not syncing: sysrq triggered crash\r\n"
MIB = 2**20


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.txt").read_bytes()


def identities(data: bytes) -> list[str]:
    return [finding.identity for finding in scan([data])]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("boot", []),
        ("panic", ["panic: Kernel panic - not syncing: sysrq triggered crash"]),
        (
            "null",
            ["oops: BUG: kernel NULL pointer dereference, address: X in do_null"],
        ),
        ("fault", ["oops: BUG: unable to handle page fault for address: X in do_fault"]),
        (
            "gpf",
            ["oops: general protection fault, probably for non-canonical address X: N [#N] PREEMPT SMP"],
        ),
        ("bug", ["bug: kernel BUG at drivers/misc/complain.c:N! in set"]),
        ("warning", ["warning: WARNING: CPU: N PID: N at drivers/misc/complain.c:N set [complain]"]),
        ("hung", ["hung-task: INFO: task bash:N blocked for more than N seconds."]),
        ("rcu", ["rcu-stall: rcu: INFO: rcu_preempt self-detected stall on CPU"] * 2),
        (
            "oom",
            ["oom: Out of memory: Killed process N (tail) total-vm:N, anon-rss:N, file-rss:N, shmem-rss:N"],
        ),
        ("io", ["io-error: Buffer I/O error on dev dm-N, logical block N, async page read"] * 2),
        ("fs", ["fs-error: EXT4-fs error (device vda): trigger_test_error:N: comm sh: hello"]),
        (
            "taint",
            [
                "taint: complain: loading out-of-tree module taints kernel.",
                "taint: complain: module verification failed: signature and/or required key missing",
            ],
        ),
    ],
)
def test_what_a_kernel_printed_is_recognised(name: str, found: list[str]) -> None:
    """Each identity begins so; what follows are figures of memory, and the like."""
    seen = identities(recorded(name))
    assert [told[: len(wanted)] for told, wanted in zip(seen, found, strict=True)] == found


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [sh:353]", "lockup"),
        ("watchdog: Watchdog detected hard LOCKUP on cpu 0", "lockup"),
        ("BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!", "lockup"),
        ("BUG: KASAN: slab-out-of-bounds in kfree+0x1/0x2", "bug"),
        ("Oops: general protection fault, probably for non-canonical address 0x5: 0000 [#1] SMP", "oops"),
        ("Internal error: Oops: 0000000096000004 [#1] SMP", "oops"),
        ("WARNING: possible circular locking dependency detected", "warning"),
        ("WARNING: lib/refcount.c:28 at refcount_warn_saturate+0x1/0x2, CPU#1: sh/12", "warning"),
        ("INFO: task sh:1 blocked in I/O wait for more than 120 seconds.", "hung-task"),
        ("rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-...D }", "rcu-stall"),
        ("I/O error, dev vda, sector 0 op 0x0:(READ) flags 0x0 phys_seg 1 prio class 2", "io-error"),
        ("critical medium error, dev sda, sector 8 op 0x0:(READ)", "io-error"),
        ("blk_update_request: I/O error, dev vda, sector 0", "io-error"),
        ("EXT4-fs (vda1): Remounting filesystem read-only", "fs-error"),
        ("XFS (vda1): Metadata corruption detected at xfs_agf_verify", "fs-error"),
        ("BTRFS error (device vda): parent transid verify failed", "fs-error"),
        ("FAT-fs (vda1): error, fat_get_cluster: invalid cluster chain", "fs-error"),
        ("Aborting journal on device vda-8.", "fs-error"),
        ("SQUASHFS error: Unable to read page", "fs-error"),
    ],
)
def test_other_kernels_words_are_recognised(line: str, kind: str) -> None:
    assert [finding.kind for finding in scan([f"[    1.000000] {line}\n".encode()])] == [kind]


@pytest.mark.parametrize(
    "line",
    [
        "EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
        "XFS (vda): Ending clean mount",
        "traps: sh[12] general protection fault ip:1 sp:2 error:0 in sh",
        "Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
        "the test says: BUG: none",
        "sysrq: Trigger a crash",
        "ata2: SATA link down (SStatus 0 SControl 300)",
    ],
)
def test_ordinary_lines_are_none(line: str) -> None:
    assert scan([f"[    1.000000] {line}\n".encode()]) == []


def test_a_message_in_the_middle_of_a_line_is_found() -> None:
    (found,) = scan([b"# \x1b[6n\x1b[31mlogin: " + PANIC])
    assert (found.title, found.time) == ("Kernel panic - not syncing: sysrq triggered crash", 8.040122)


@pytest.mark.parametrize("prefix", [b"", b"<0>", b"<0>[    8.040122] ", b"[    8.040122][  T123] "])
def test_every_form_of_a_line_is_found(prefix: bytes) -> None:
    assert identities(prefix + PANIC.split(b"] ")[1]) == [
        "panic: Kernel panic - not syncing: sysrq triggered crash"
    ]


def test_a_warning_has_its_own_words_before_its_stack() -> None:
    data = recorded("warning").replace(b"] WARNING", b"] the answer is 42\n[   62.700000] WARNING")
    (found,) = scan([data])
    assert found.stack[0] == "the answer is 42"


def test_words_without_a_complaint_are_forgotten() -> None:
    cut = b"[    1.000000] ------------[ cut here ]------------\n"
    (found,) = scan([cut, b"[    1.000000] chatter\n" * 9, PANIC])
    assert found.stack == ()


def test_a_stack_leaves_out_other_peoples_lines_and_ends_with_its_report() -> None:
    lines = [
        PANIC,
        b"[    8.040200] Call Trace:\n",
        b"somebody else\n",
        b"[    8.040300]  panic+0x118/0x2f4\n",
    ]
    (found,) = scan([*lines, b"[   10.000000] later\n"])
    assert found.stack == ("Call Trace:", " panic+0x118/0x2f4")


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_pieces_of_any_size_say_the_same(size: int) -> None:
    data = recorded("boot") + recorded("null") + recorded("io")
    assert scan(data[start : start + size] for start in range(0, len(data), size)) == scan([data])


@pytest.mark.parametrize(
    ("noise", "times"),
    [(b"\xff\xfe\x80\n", 1000), (b"\x1b[2J\x1b]0;title\x07", 1000), (b"\0" * 9000 + b"\n", 1)],
)
def test_noise_hides_nothing(noise: bytes, times: int) -> None:
    assert len(scan([noise * times, b"\n", PANIC, noise * times])) == 1


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    (found,) = scan([b"Kernel panic - not syncing: \x1b]0;owned\x07 \xe2\x80\xae\x00 \x9b\r\n\x1b[2Jnext\n"])
    assert found.title.isprintable()
    assert all(line.isprintable() for line in found.stack)


def test_what_is_kept_is_bounded() -> None:
    found = scan([PANIC.replace(b"crash", b"x" * 5000) * 500])
    assert len(found) == MOST_FINDINGS
    assert len(scan([PANIC, b"[    8.040123] more\n" * 5000])[0].stack) == MOST_STACK_LINES
    assert max(len(finding.title) for finding in found) <= 300


def test_a_console_without_a_line_break_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        assert scan(b"x" * MIB for _ in range(20)) == []
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


def test_hostile_megabytes_take_seconds() -> None:
    """A scanner that is quadratic anywhere would take hours."""
    started = time.process_time()
    for pattern in (
        b"[ 1.000000] BUG: ",
        b"1:" * 100,
        b" [#",
        b"WARNING: a:" + b"1" * 90,
        b"\x1b[" + b"0" * 70,
    ):
        scan([pattern * (MIB // len(pattern))])
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("at lib/a.c:28 f+0x15/0x20 [mod]", "at lib/a.c:N f [mod]"),
        ("address: 0000000000000010 CPU#3 pid 12", "address: X CPU#N pid N"),
        ("vda1: sector 81920, 4532kB in 2.5s", "vda1: sector N, N in N"),
        ("dead4eef is an address, decade and fc0 are words", "X is an address, decade and fc0 are words"),
    ],
)
def test_what_differs_between_boots_is_taken_out(line: str, same: str) -> None:
    assert normalised(line) == same


@pytest.mark.parametrize(("mask", "letters"), [(0, ""), (512, "W"), (12288, "OE"), (1 << 40, "")])
def test_taint_has_the_letters_of_the_kernel(mask: int, letters: str) -> None:
    assert flags(mask) == letters


def test_taint_that_a_complaint_explains_is_not_told_twice() -> None:
    told = taint_findings("WU", [finding.kind for finding in scan([recorded("warning")])])
    assert [finding.title for finding in told] == ["U: a program asked for it"]


ANSWER = """noise
--kvmlab-release--
6.1.0-56-amd64
--kvmlab-taint--
512
--kvmlab-modules--
virtio_net
ext4
--kvmlab-devices--
pci/devices/0000:00:01.0/uevent:DRIVER=virtio-pci
pci/devices/0000:00:01.0/uevent:PCI_ID=1AF4:1041
usb/devices/1-1/uevent:PRODUCT=46f4/1/0
virtio/devices/virtio0/uevent:MODALIAS=virtio:d00000001v00001AF4
--kvmlab-log--
"""


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_answer_is_read(newline: str) -> None:
    answer = read_answer((ANSWER + PANIC.decode()).replace("\n", newline))
    assert (answer.release, answer.tainted, answer.modules) == ("6.1.0-56-amd64", 512, ("ext4", "virtio_net"))
    assert answer.devices == (
        Device("pci", "1af4:1041", "virtio-pci"),
        Device("usb", "46f4:0001", ""),
        Device("virtio", "virtio:d00000001v00001af4", ""),
    )
    assert [finding.kind for finding in answer.findings] == ["panic"]


@pytest.mark.parametrize(
    "output", ["", "--kvmlab-taint--\n" + "9" * 5000, "--kvmlab-modules--\n" + "x\x1b " * 9999]
)
def test_a_hostile_answer_is_bounded(output: str) -> None:
    answer = read_answer(output)
    assert answer.tainted == 0
    assert len(answer.modules) <= 500
    assert all(name.isprintable() for name in answer.modules)


def test_one_event_on_console_and_in_the_log_is_one() -> None:
    assert scan([PANIC])[0].event == scan([b"<0>" + PANIC])[0].event
    assert Finding("oom", "x", 1.0).event != Finding("oom", "x", 2.0).event


@pytest.mark.parametrize(
    ("cmdline", "told"),
    [
        ("console=ttyS0", "console=ttyS0"),
        ("console=ttyS0 quiet", "console=ttyS0 quiet loglevel=5"),
        ("loglevel=3", "loglevel=3 loglevel=5"),
        ("quiet loglevel=6", "quiet loglevel=6"),
        ("loglevel=9 quiet", "loglevel=9 quiet loglevel=5"),
        ("quiet debug", "quiet debug"),
        ("loglevel=x", "loglevel=x"),
        (None, None),
    ],
)
def test_a_quiet_kernel_is_made_to_show_its_warnings(cmdline: str | None, told: str | None) -> None:
    assert with_warnings(cmdline) == told
    assert shows_warnings(told or "")

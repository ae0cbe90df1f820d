"""A process that reserves memory and gives it back as its standard input says, and tells what comes of it.

Lines of input: `memory BYTES`, `builder BYTES` (which does not wait), `lab BYTES DONGLE…` (of a machine that
is made of files), `boot`; `keep` and `back` are about what was given last. Lines of output: `given`, `kept`,
`back`, `waiting …`, `refused …`, `noted …`.
"""

import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from pytest_kvmlab.errors import KvmlabError
from pytest_kvmlab.journal import Journal
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.claims import Entry
from pytest_kvmlab.lab.dongles import Wish
from pytest_kvmlab.spec.usb import UsbKeys
from tests.unit.fake_usb import FakeHost


def tell(*words: object) -> None:
    print(*words, flush=True)  # noqa: T201  its test reads it


def wanted(capacity: Capacity, line: list[str]) -> AbstractContextManager[Entry | None]:
    match line:
        case ["memory", amount]:
            return capacity.memory(int(amount), "a test")
        case ["builder", amount]:
            return capacity.memory(int(amount), "a builder", at_once=True)
        case ["lab", amount, *wanted]:
            wishes = [Wish("server", UsbKeys.model_validate(dongle)) for dongle in wanted]
            return capacity.memory(int(amount), "a lab", dongles=capacity.dongles(wishes, "a lab"))
        case _:
            return capacity.boot("a guest", lambda: None)


def serve(capacity: Capacity) -> None:
    given: list[tuple[ExitStack, Entry | None]] = []
    for line in map(str.split, sys.stdin):
        if line == ["back"]:
            given.pop()[0].close()
            tell("back")
        elif line == ["keep"]:
            if entry := given[-1][1]:
                entry.keep()
            tell("kept")
        else:
            end = ExitStack()
            try:
                given.append((end, end.enter_context(wanted(capacity, line))))
                tell("given")
            except KvmlabError as error:
                tell("refused", str(error).replace("\n", " "))


def main() -> None:
    folder, worker, limit, wait = sys.argv[1:]
    journal = Journal([lambda event: tell("noted", event.kind, event.outcome)])
    serve(
        Capacity(
            "0badcafe",
            worker,
            int(limit),
            float(wait),
            journal,
            lambda what, _: tell(what),
            Path(folder),
            FakeHost(Path(folder)).usb,
        )
    )


if __name__ == "__main__":
    main()

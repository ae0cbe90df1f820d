"""The guests that are up, and the tests that they are up for."""

from dataclasses import dataclass

import pytest

from pytest_kvmlab.errors import GuestError, KvmlabError
from pytest_kvmlab.lab.guest import Guest

Node = pytest.Item | pytest.Collector


@dataclass
class LiveGuest:
    """A guest that is up.

    Attributes:
        guest: the guest.
        node: the test or module that it lasts for.
        broken: why it is of no use to later tests, if it is not.
        broken_in: the test in which it broke.
    """

    guest: Guest
    node: Node
    broken: KvmlabError | None = None
    broken_in: str = ""

    def serves(self, item: pytest.Item) -> bool:
        """Whether a test uses this guest: its own, or, with a fixture that modules share, its module's."""
        if self.node is item:
            return True
        return self.node in item.listchain() and bool(
            {"shared_guest", "shared_lab"}.intersection(getattr(item, "fixturenames", ()))
        )

    def note_failure(self, item: pytest.Item, error: GuestError | None) -> None:
        """Remember of a failed test whether this guest is the reason.

        Args:
            item: the test.
            error: what ended it, if that came out of this guest.
        """
        if error:
            outcome = f"infrastructure: {error.message}"
            self.guest.machine.journal.note(self.guest.name, "failure", item.nodeid, outcome=outcome)
        broken = error or self._look()
        if broken and not self.broken:
            self.broken, self.broken_in = broken, item.nodeid

    def _look(self) -> KvmlabError | None:
        """What is wrong with the guest, though something else ended the test: a hung command, perhaps."""
        try:
            self.guest.machine.check("ready")
        except KvmlabError as error:
            return error
        return None

    def require_sound(self) -> None:
        """Refuse a guest that broke: each later test would wait for it as long as its timeout is.

        Raises:
            GuestError: what broke it, and in which test.
        """
        if self.broken:
            raise GuestError(
                f"{self.guest.name} broke in {self.broken_in}: {self.broken.message}",
                "see the report of that test",
                phase=getattr(self.broken, "phase", "ready"),
            )

"""What happens now, on a terminal: a few words behind what pytest has written, that come and go."""

import os
import sys
from typing import TYPE_CHECKING

import pytest

from pytest_kvmlab.journal import Event, Journal

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter  # public as pytest.TerminalReporter from pytest 9 on

# DECSC, DECRC and EL (VT100 user guide, chapter 3): remember the cursor; go back there, erase the rest.
_SAVE, _BACK_AND_ERASE = "\x1b7", "\x1b8\x1b[K"
_LEAST_ROOM = 20


class ProgressLine:
    """Shows which guest is in which phase, and which image is being built.

    Nothing is shown in xdist's workers, which have no terminal. Where output is no terminal, only the
    building of images is told, in plain lines: it takes long, and rarely happens.

    Args:
        config: pytest's.
        journal: whose events are shown.
    """

    def __init__(self, config: pytest.Config, journal: Journal) -> None:
        self._config = config
        self._told = ""
        self._shown = False
        journal.listeners.append(self._show_event)

    def building(self, what: str, share: float | None) -> None:
        """Show what is being done for an image.

        Args:
            what: the step.
            share: how much of the whole is done, 0 to 1, if known.
        """
        if self._transient:
            self._show(what + (f" ({share:.0%})" if share else ""))
        elif what != self._told and self._reporter:
            self._told = what
            self._write(f"\nkvmlab: {what}\n")

    def clear(self) -> None:
        """Leave nothing of what was shown; called before pytest itself writes again."""
        if self._shown:
            self._shown = False
            self._write(_BACK_AND_ERASE)

    def _show_event(self, event: Event) -> None:
        if event.kind == "begin" and self._transient:
            self._show(f"{event.subject}: {event.name} …")

    def _show(self, text: str) -> None:
        self.clear()
        writer = self._config.get_terminal_writer()
        # A line that wraps cannot be erased again.
        room = writer.fullwidth - writer.width_of_current_line - 2
        if room >= _LEAST_ROOM:
            self._shown = True
            self._write(f"{_SAVE} {f'kvmlab: {text}'[:room]}")

    @property
    def _transient(self) -> bool:
        """Whether there is a terminal on which something can be erased."""
        return bool(self._reporter and self._reporter.isatty and os.environ.get("TERM") != "dumb")

    @property
    def _reporter(self) -> "TerminalReporter | None":
        if hasattr(self._config, "workerinput"):
            return None
        reporter: TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        return reporter

    def _write(self, text: str) -> None:
        """Past pytest's own writer, which would count these characters as part of its line."""
        self._config.get_terminal_writer().flush()
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        if capture is None:
            _print(text)
        else:
            with capture.global_and_fixture_disabled():
                _print(text)


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

"""What happens now, on a terminal: one line that comes and goes."""

from typing import Any

from pytest_kvmlab.journal import Event, Journal


class ProgressLine:
    """Shows which guest is in which phase, and which image is being built.

    Nothing is shown in xdist's workers, which have no terminal. Where output is no terminal, only the
    building of images is told, in plain lines: it takes long, and rarely happens.

    Args:
        config: pytest's.
        journal: whose events are shown.
    """

    def __init__(self, config: Any, journal: Journal) -> None:
        self._config = config
        self._last = ""
        journal.listeners.append(self._show_event)

    def building(self, what: str, share: float | None) -> None:
        """Show what is being done for an image.

        Args:
            what: the step.
            share: how much of the whole is done, 0 to 1, if known.
        """
        text = f"kvmlab: {what}" + (f" ({share:.0%})" if share else "")
        if what != self._last:
            self._write(text, plain=True)
        self._last = what

    def _show_event(self, event: Event) -> None:
        if event.kind == "begin":
            self._write(f"kvmlab: {event.subject}: {event.name} …", plain=False)
        elif event.kind == "phase":
            self._write("", plain=False)

    def _write(self, text: str, *, plain: bool) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or hasattr(self._config, "workerinput"):
            return
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled():
            if reporter.isatty:
                reporter.write(f"\r\x1b[K{text}", flush=True)
            elif plain:
                reporter.write_line(text)

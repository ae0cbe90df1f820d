"""Signals that are waited for together with everything else, instead of breaking in anywhere."""

import os
import signal


def wake_on(*signals: signal.Signals) -> int:
    """Catch signals from now on.

    Args:
        signals: which; caught, they interrupt nothing.

    Returns:
        A descriptor that becomes readable when one arrives (signal.set_wakeup_fd).
    """
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return readable

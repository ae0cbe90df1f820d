"""What a guest's terminal repeats of what is typed there, where that is a secret."""

import threading

HIDDEN = b"(hidden)"


class SecretEcho:
    """Cuts the echo of a secret out of what a guest sends.

    A login should switch the echo off before a password comes; one that is slow to do so would put it into
    every log. Only the line that is being typed is looked at: elsewhere the same letters mean something else.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._secret = b""
        self._held = b""

    def expect(self, secret: bytes) -> None:
        """Hide this from now on, once, until the end of the line.

        Args:
            secret: what is about to be typed, without its newline.
        """
        with self._turn:
            self._secret = secret

    def cut(self, data: bytes) -> bytes:
        """Take the echo out of what was received.

        Args:
            data: what was received next.

        Returns:
            What may be shown; what may be the beginning of the secret follows once it turns out not to be.
        """
        with self._turn:
            data, self._held = self._held + data, b""
            if not self._secret:
                return data
            before, echo, after = data.partition(self._secret)
            if echo or b"\n" in data:
                self._secret = b""
                return before + HIDDEN + after if echo else data
            self._held = _beginning(self._secret, data)
            return data.removesuffix(self._held)


def _beginning(secret: bytes, data: bytes) -> bytes:
    """With how much of the secret the data ends."""
    lengths = range(min(len(secret) - 1, len(data)), 0, -1)
    return next((secret[:length] for length in lengths if data.endswith(secret[:length])), b"")

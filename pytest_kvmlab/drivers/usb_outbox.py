"""What a device has for the guest until the guest asks for it."""

import threading
from collections import defaultdict, deque

MOST_BYTES = 4 << 20
"""That may wait on one endpoint: a guest that fetches nothing must not fill the memory of this machine."""
MESSAGE_BYTES = 64
"""What a message takes beside its own bytes."""


class Outbox:
    """Messages by endpoint, oldest first. Any thread may use it."""

    def __init__(self) -> None:
        self._messages: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self._taken: defaultdict[int, int] = defaultdict(int)
        self._lock = threading.Lock()

    def put(self, endpoint: int, message: bytes) -> bool:
        """Add a message; False if too much is waiting already."""
        with self._lock:
            taken = self._taken[endpoint] + len(message) + MESSAGE_BYTES
            if taken > MOST_BYTES:
                return False
            self._taken[endpoint] = taken
            self._messages[endpoint].append(message)
            return True

    def take(self, endpoint: int, most: int) -> bytes | None:
        """Remove up to so many bytes of the oldest message, whose rest stays; None if there is none."""
        with self._lock:
            messages = self._messages[endpoint]
            if not messages:
                return None
            message = messages.popleft()
            if len(message) > most:
                messages.appendleft(message[most:])
                self._taken[endpoint] -= most
            else:
                self._taken[endpoint] -= len(message) + MESSAGE_BYTES
            return message[:most]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._messages.clear()
            self._taken.clear()

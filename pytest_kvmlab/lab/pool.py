"""Clones that run already, and wait for the test that wants them."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Clones = TypeVar("Clones")


def pool_size(processors: int, workers: int) -> int:
    """How many clones each worker keeps waiting if nobody says it.

    A clone that is started keeps a processor busy, and so does a test: where each worker has only one, clones
    that wait would take it from tests.

    Args:
        processors: those of this machine that the run may use.
        workers: how many processes run tests at one time.
    """
    share = processors // workers
    return max(1, share // 4) if share > 1 else 0


@dataclass(frozen=True)
class Waiting(Generic[Clones]):
    """Clones that wait.

    Attributes:
        clones: they run, and answer.
        undo: ends them.
    """

    clones: Clones
    undo: ExitStack


@dataclass
class Pool(Generic[Clones]):
    """Starts the next clones while a test uses the last ones.

    It has clones of one kind only, of which a test has just had some: tests that are alike stand together.

    Attributes:
        size: how many it keeps waiting.
        give_up: ends clones that nobody wanted.
    """

    size: int
    give_up: Callable[[ExitStack], None]
    _kind: str = ""
    _next: "deque[Future[Waiting[Clones]]]" = field(default_factory=deque)
    _starter: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="kvmlab-pool")
    )

    def take(self, kind: str) -> Waiting[Clones] | None:
        """The clones that wait the longest, or that are just being started; None if there are none.

        Args:
            kind: what has to be equal for clones to be alike.
        """
        if kind != self._kind:
            self._abandon()
        while self._next:
            with suppress(Exception):  # whoever starts one now will be told the same
                return self._next.popleft().result()
        return None

    def refill(self, kind: str, start: Callable[[ExitStack], Clones]) -> None:
        """Have clones started until there are enough.

        Args:
            kind: as for `take`.
            start: starts some, called on a thread of the pool's.
        """
        self._kind = kind
        while len(self._next) < self.size:
            self._next.append(self._starter.submit(_started, start))

    def _abandon(self) -> None:
        """Have all clones end that wait; who wants others does not wait for those that are being started."""
        while self._next:
            clones = self._next.popleft()
            if not clones.cancel():
                clones.add_done_callback(self._end)

    def _end(self, clones: "Future[Waiting[Clones]]") -> None:
        if not clones.exception():
            self.give_up(clones.result().undo)

    def drain(self) -> None:
        """End all clones that wait."""
        while self._next:
            clones = self._next.popleft()
            if not clones.cancel():
                with suppress(Exception):
                    self.give_up(clones.result().undo)

    def close(self) -> None:
        """End all clones that wait, and start none any more."""
        self.drain()
        self._starter.shutdown()


def _started(start: Callable[[ExitStack], Clones]) -> Waiting[Clones]:
    with ExitStack() as undo:
        return Waiting(start(undo), undo.pop_all())

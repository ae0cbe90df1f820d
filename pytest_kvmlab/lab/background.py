"""Ends of guests that no test waits for, and what goes wrong in them."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from pytest_kvmlab.errors import KvmlabError

_THREADS = 4


@dataclass(frozen=True)
class Failure:
    """What went wrong after a test was over.

    Attributes:
        source: the test.
        error: what went wrong.
    """

    source: str
    error: BaseException


@dataclass
class Background:
    """Ends what tests leave behind, a few at a time, while the next tests run."""

    _threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="kvmlab-end")
    )
    _ending: "dict[Future[None], str]" = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def ending(self, source: str) -> Iterator[ExitStack]:
        """Give a stack whose contexts end in the background once this one ends.

        Args:
            source: the test that they are of.
        """
        undo = ExitStack()
        try:
            yield undo
        finally:
            self.later(source, undo)

    def later(self, source: str, undo: ExitStack) -> None:
        """End contexts in the background."""
        try:
            ending = self._threads.submit(undo.close)
        except RuntimeError:  # an interrupted run lets go of shared guests after it has waited for the others
            undo.close()
            return
        with self._lock:
            self._ending[ending] = source

    def wait(self) -> None:
        """Wait until all has ended; what went wrong is told later."""
        with self._lock:
            endings = list(self._ending)
        wait(endings)

    def failures(self) -> list[Failure]:
        """Wait until all has ended, and tell what went wrong, each thing once."""
        with self._lock:
            endings, self._ending = self._ending, {}
        wait(endings)
        failed = [(source, ending.exception()) for ending, source in endings.items()]
        return [Failure(source, error) for source, error in failed if error]

    def close(self) -> None:
        """Wait until all has ended; nothing can be ended here afterwards."""
        self._threads.shutdown()


def told(failure: Failure) -> str:
    """A line for people about what went wrong."""
    error = failure.error
    text = str(error) if isinstance(error, KvmlabError) else f"{type(error).__name__}: {error}"
    return f"{failure.source}: {text}"

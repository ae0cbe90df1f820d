"""Clean guests from templates: made at the first use, proved good, started before they are wanted."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pytest_kvmlab.errors import HostError, KvmlabError, WaitTimeout
from pytest_kvmlab.lab.assembly import Parts, cloned_parts, own_parts
from pytest_kvmlab.lab.boot import boot_all
from pytest_kvmlab.lab.freezing import Candidate, freeze, what_is_wrong
from pytest_kvmlab.lab.frozen import Frozen
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.place import Place
from pytest_kvmlab.lab.pool import Pool
from pytest_kvmlab.lab.stage import Stage, Together
from pytest_kvmlab.lab.templates import NoClones, Templates
from pytest_kvmlab.lab.wanted import Asked, Wanted, template_key, why_not_cloned
from pytest_kvmlab.plan.guest import MemoryFile

_POOL = "the pool of clones"
_SSH_SECONDS = 30.0
# Once as much again as clones that wait take has to be left for others.
_SPARE_TIMES = 2

Watch = Callable[[Together], AbstractContextManager[object]]
"""Looks at guests that may break as long as the context lasts."""


@dataclass
class Cloning:
    """Starts clones for one process of a run.

    Attributes:
        stage: where guests are put together.
        templates: what clones start from.
        pool: has the next ones ready.
        hold: locks an image, by its name, for as long as the run lasts: templates stand on it.
    """

    stage: Stage
    templates: Templates
    pool: Pool[Together]
    hold: Callable[[str], None]
    _held: set[str] = field(default_factory=set)
    _last: tuple[str, Together] | None = None

    def clones(self, wanted: Wanted, undo: ExitStack, watch: Watch, *, more: bool, always: bool) -> Together:
        """Clones that run, and are ready.

        Args:
            wanted: what they are.
            undo: ends them.
            watch: looks at the guests of a template while they boot, if they have to.
            more: whether such guests will be wanted again, as far as it is known.
            always: make a template even for one use.

        Raises:
            NoClones: such guests cannot be cloned here; the message says why.
            KvmlabError: guests of a new template do not get ready.
        """
        if why := why_not_cloned(wanted, self.stage.assembly.host):
            raise NoClones(why)
        key = template_key(wanted.without_usb, self.stage.assembly.host, self.stage.assembly.accel)
        if not (more or always or self.templates.has(key)):
            raise NoClones("a template for one guest would take longer than its boot")
        template = self._template(key, wanted.without_usb, watch)
        kind = key + wanted.kind
        waiting = self.pool.take(kind)
        if waiting:
            undo.push(waiting.undo)
            up = waiting.clones
            self.stage.hand_over(up, wanted.source)
        else:
            up = self._started_or_refused(key, wanted, template, undo)
        self._show(up)
        if more and not wanted.dongles:
            self.pool.refill(kind, partial(self._for_the_pool, wanted, template, self._over_ssh(kind)))
        self._last = kind, up
        return up

    def _over_ssh(self, kind: str) -> set[str]:
        """The guests that the last test with such guests used over SSH: the next one probably does, too."""
        if self._last is None or self._last[0] != kind:
            return set()
        return {name for name, guest in self._last[1].guests.items() if guest.used_ssh}

    def _started_or_refused(
        self, key: str, wanted: Wanted, template: Sequence[Frozen], undo: ExitStack
    ) -> Together:
        """Start clones; where they do not start, nobody is to try that template again."""
        try:
            return self._started(wanted, template, undo)
        except NoClones as error:
            self.templates.refuse(key, error.message)
            raise

    def _started(
        self, wanted: Wanted, template: Sequence[Frozen], undo: ExitStack, *, wait: bool = True
    ) -> Together:
        with ExitStack() as attempt:
            parts = [partial(_of_clone, frozen) for frozen in template]
            up = self.stage.together(wanted, attempt, parts, wait=wait)
            _thaw_all(list(up.guests.values()))
            undo.push(attempt.pop_all())
        return up

    def _for_the_pool(
        self, wanted: Wanted, template: Sequence[Frozen], over_ssh: set[str], undo: ExitStack
    ) -> Together:
        # What waits here must not be what the tests of other processes wait for.
        if not self.stage.capacity.has_spare_memory(_SPARE_TIMES * wanted.memory):
            raise HostError(f"memory is too short for {_POOL}")
        asked = [replace(each, source=_POOL) for each in wanted.guests]
        up = self._started(replace(wanted, guests=asked, source=_POOL), template, undo, wait=False)
        for name in over_ssh:
            with suppress(KvmlabError):  # the test that uses it is told
                up.guests[name].open_ssh(up.guests[name].deadline(_SSH_SECONDS))
        up.memory.idle()
        return up

    def _show(self, up: Together) -> None:
        """From now on, what happens to these guests is a test's."""
        journal = self.stage.assembly.journal
        for guest in up.guests.values():
            for event in guest.machine.journal.events():
                journal.add(event)
            guest.machine.journal.listeners.append(journal.add)

    def _template(self, key: str, wanted: Wanted, watch: Watch) -> Sequence[Frozen]:
        """What clones of these guests start from, made now if it is the first time that they are wanted."""
        make, check = partial(self._frozen, wanted, watch), partial(self._check_kept, wanted)
        template = self.templates.get(key, wanted.memory, make, check)
        if key not in self._held:
            self._held.add(key)
            for asked in wanted.guests:
                self.hold(asked.spec.image)
        return template

    def _frozen(self, wanted: Wanted, watch: Watch, place: Place) -> Sequence[Frozen]:
        """Make a template: boot its guests, freeze them, and look whether clones of them are any good."""
        parts = [partial(_of_template, place, number) for number in range(len(wanted.guests))]
        with ExitStack() as undo:
            up = self.stage.together(wanted, undo, parts)
            with watch(up):
                boot_all(up.guests, wanted.after, self.stage.capacity.boot, timeout=wanted.timeout)
            template = _freeze(up, place)
        self._check(wanted, template)
        return template

    def _check_kept(self, wanted: Wanted, template: Sequence[Frozen]) -> None:
        """Look at clones of a template of an earlier run as at those of a new one, and tell if they are bad.

        Raises:
            NoClones: they are no good.
        """
        try:
            self._check(wanted, template)
        except NoClones as error:
            journal = self.stage.assembly.journal
            journal.note(wanted.source, "reset", "kept template removed", outcome=error.message)
            raise

    def _check(self, wanted: Wanted, template: Sequence[Frozen]) -> None:
        """Start clones twice, and see that they are machines of their own.

        Raises:
            NoClones: they are not.
        """
        with ExitStack() as undo:
            try:
                one, other = (self._started(wanted, template, undo).guests for _ in range(2))
            except (KvmlabError, WaitTimeout) as error:
                raise NoClones(f"a clone does not start: {_first_line(error)}") from error
            for name, guest in one.items():
                if why := what_is_wrong(guest, other[name]):
                    raise NoClones(f"clones of {name} are no good: {why}")


def _thaw_all(guests: Sequence[Guest]) -> None:
    """Start the clones of a lab at one time, as their templates stopped."""
    for guest in guests:
        guest.machine.journal.listeners.clear()  # nobody has to see clones that are still in the pool
    with ThreadPoolExecutor(max_workers=len(guests)) as threads:
        for thawed in [threads.submit(_thaw, guest) for guest in guests]:
            thawed.result()


def _thaw(guest: Guest) -> None:
    try:
        guest.thaw()
    except (KvmlabError, WaitTimeout) as error:
        if guest.spec.usb:  # clones without them did start, so it is the devices, and a boot would not help
            raise
        raise NoClones(f"a clone of {guest.name} did not start: {_first_line(error)}") from error


def _freeze(up: Together, place: Place) -> Sequence[Frozen]:
    candidates = [
        Candidate(made.guest, made.parts.disks, place.of_guest(number)) for number, made in enumerate(up.made)
    ]
    try:
        return freeze(candidates)
    except (KvmlabError, WaitTimeout) as error:
        raise NoClones(f"it cannot be frozen: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _of_template(place: Place, number: int, asked: Asked, _folder: Path) -> Parts:
    """The parts of a guest that will be frozen: its disks, keys and memory stay where clones find them."""
    memory = MemoryFile(place.memory_of(number), writes=True)
    return replace(own_parts(asked, place.of_guest(number)), memory=memory)


def _of_clone(frozen: Frozen, asked: Asked, folder: Path) -> Parts:
    return cloned_parts(asked, frozen, folder)

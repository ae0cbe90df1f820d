"""From what is asked for to a guest that is ready, and back to nothing."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from pytest_kvmlab.checks import TPM
from pytest_kvmlab.errors import ConfigError, HostError, KvmlabError
from pytest_kvmlab.lab.assembly import Assembly, own_parts
from pytest_kvmlab.lab.background import Background, Failure
from pytest_kvmlab.lab.base_image import BaseImage
from pytest_kvmlab.lab.boot import boot_all, boot_one
from pytest_kvmlab.lab.capacity import Capacity
from pytest_kvmlab.lab.cloning import Cloning
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.kept import leave
from pytest_kvmlab.lab.lab import Lab
from pytest_kvmlab.lab.pool import Pool
from pytest_kvmlab.lab.rewinding import NoWayBack, Rewindable, Rewinding
from pytest_kvmlab.lab.stage import Made, Stage, Together
from pytest_kvmlab.lab.template_shelf import Shelf
from pytest_kvmlab.lab.templates import NoClones, Templates
from pytest_kvmlab.lab.wanted import Asked, Wanted
from pytest_kvmlab.lab.wiring import Cards, require_networks
from pytest_kvmlab.spec.guest import GuestKeys, merge
from pytest_kvmlab.spec.labfile import LabSpec
from pytest_kvmlab.spec.options import Reset
from pytest_kvmlab.spec.resolved import GuestSpec, resolve_guest

Witness = Callable[[Guest, BaseException | None], bool]
"""Told of every guest that was switched on, while it can be looked at, and what went wrong, if anything.
Says whether the guest is to stay after the run."""


@dataclass
class Launcher:
    """Starts the guests of one process of a run.

    Attributes:
        assembly: puts them together.
        images: what they boot from.
        capacity: gives them memory, and turns to boot.
        reset: how each becomes a clean one.
        pool_size: how many clones wait for the next tests.
        shelf: keeps templates for later runs, if it is to.
        to_come: how many more times guests will be asked for, this time included, as far as it is known.
    """

    assembly: Assembly
    images: Images
    capacity: Capacity
    reset: Reset = "boot"
    pool_size: int = 0
    shelf: Shelf | None = None
    to_come: int = 0
    _left: list[ExitStack] = field(default_factory=list)
    _held: ExitStack = field(default_factory=ExitStack)
    _background: Background = field(default_factory=Background)

    def __post_init__(self) -> None:
        self._stage = Stage(self.assembly, self.capacity, self._end_what_waits)
        self._rewinding = Rewinding(self._give_up)
        pool = Pool[Together](self.pool_size, self._give_up)
        self._cloning = Cloning(
            self._stage, Templates(self.assembly.host.folder, self.shelf), pool, self._hold
        )

    def _give_up(self, undo: ExitStack) -> None:
        self._background.later("guests kept for later tests", undo)

    def _end_what_waits(self) -> None:
        self._cloning.pool.drain()
        self._rewinding.close()

    def _hold(self, image: str) -> None:
        self._held.enter_context(self.images.use(image, guests=self))

    def failures(self) -> list[Failure]:
        """Wait until the guests of all tests that are over have ended, and tell what went wrong."""
        return self._background.failures()

    def finish(self) -> list[Failure]:
        """End the clones that nobody wanted, wait until all guests have ended, and tell what went wrong."""
        self._cloning.pool.close()
        self._rewinding.close()
        failures = self._background.failures()
        self._background.close()
        self._held.close()
        return failures

    @contextmanager
    def guest(
        self,
        name: str,
        keys: GuestKeys,
        *,
        lab: LabSpec | None = None,
        source: str,
        witness: Witness,
        timeout: float | None = None,
    ) -> Iterator[Guest]:
        """Run a guest as long as the context lasts.

        Args:
            name: the guest's name in its lab.
            keys: what the mark and the lab file say, merged.
            lab: the lab that it is of; its networks are made, its other guests are not started.
            source: the guest as the reader knows it, for messages.
            witness: told before the guest ends, and also if it never got ready.
            timeout: seconds until the guest must be ready; None: its `boot_timeout`.

        Yields:
            The guest, ready.

        Raises:
            ConfigError: the keys do not fit together.
            ImageError: the image cannot be used.
            HostError: this machine lacks something.
            GuestError: the guest does not get ready; the message says how far it came.
        """
        with self._background.ending(source) as undo:
            if lab:
                self._require_networks(lab, source)
            asked = undo.enter_context(self._asked(name, keys, lab.networks if lab else (), source))
            networks, cards = (lab.networks, _cards(lab, {name: keys})) if lab else ({}, {})
            wanted = Wanted([asked], networks, cards, {}, source, timeout)
            with self._up(wanted, witness, undo) as up:
                yield up.guests[name]

    @contextmanager
    def lab(
        self, lab: LabSpec, *, source: str, witness: Witness, timeout: float | None = None
    ) -> Iterator[Lab]:
        """Run all guests of a lab as long as the context lasts.

        Args:
            lab: the lab.
            source: who asks, for messages.
            witness: told of each guest before it ends, and also if it never got ready.
            timeout: seconds that each guest has to get ready; None: its `boot_timeout`.

        Yields:
            The lab, all its guests ready.

        Raises:
            ConfigError: the keys of a guest do not fit together.
            ImageError: an image cannot be used.
            HostError: this machine lacks something.
            GuestError: a guest does not get ready; the message says how far it came.
        """
        with self._background.ending(source) as undo:
            self._require_networks(lab, source)
            asked = [
                undo.enter_context(self._asked(name, keys, lab.networks, f"{source}: guest '{name}'"))
                for name, keys in lab.guests.items()
            ]
            after = {name: keys.after for name, keys in lab.guests.items()}
            wanted = Wanted(asked, lab.networks, _cards(lab, {}), after, source, timeout)
            with self._up(wanted, witness, undo) as up:
                yield Lab(lab, up.guests, up.wiring)

    @contextmanager
    def start(
        self, name: str, keys: GuestKeys, image: BaseImage, *, source: str, timeout: float
    ) -> Iterator[Guest]:
        """Run a guest for a builder: `pytest_kvmlab.lab.base_image.StartsGuests`.

        It does not wait for memory: who has some may wait for the image that is being built.
        """
        spec = replace(_resolved(keys, image, (), source), usb=())  # what an image is made of is no dongle
        asked = Asked(name, spec, image, source, ExitStack())
        with ExitStack() as undo:
            guest = self._stage.alone(asked, own_parts, undo)
            boot_one(guest, self.capacity.boot, timeout=timeout)
            yield guest

    def _require_networks(self, lab: LabSpec, source: str) -> None:
        require_networks(self.assembly.host, lab.networks, source=source, keep=self.assembly.keep)

    @contextmanager
    def _up(self, wanted: Wanted, witness: Witness, undo: ExitStack) -> Iterator[Together]:
        """Guests that are clean and ready, in the quickest way that works; `undo` ends them.

        The witness is told of each guest when the context ends.
        """
        if up := self._cloned(wanted, witness, undo):
            with up.in_use(), self._watched(wanted, up, witness):
                yield up
        elif rewound := self._rewound(wanted, witness):
            up = rewound.up
            with self._giving_back(wanted, rewound), up.in_use(), self._watched(wanted, up, witness):
                yield up
        else:
            up = self._together(wanted, undo)
            with up.in_use(), self._watched(wanted, up, witness):
                boot_all(up.guests, wanted.after, self.capacity.boot, timeout=wanted.timeout)
                yield up

    def _together(self, wanted: Wanted, undo: ExitStack) -> Together:
        """Guests that are to boot, once nobody else has their addresses."""
        if wanted.on_a_real_lan:  # which knows those of guests that idle, or end just now
            self._end_what_waits()
            self._background.wait()
        return self._stage.together(wanted, undo, [own_parts for _ in wanted.guests])

    def _cloned(self, wanted: Wanted, witness: Witness, undo: ExitStack) -> Together | None:
        """Clones, if such guests can be cloned, and shall be."""
        if self.reset not in ("auto", "clone"):
            return None
        try:
            up = self._cloning.clones(
                wanted,
                undo,
                lambda up: self._watched(wanted, up, _only_if_it_breaks(witness)),
                more=self.to_come > 1,
                always=self.reset == "clone" or self.shelf is not None,
            )
        except NoClones as error:
            self._refuse_if_asked_for("clone", wanted, error)
            self._note(wanted, "no clone", error.message)
            return None
        self._note(wanted, "clone")
        return up

    def _rewound(self, wanted: Wanted, witness: Witness) -> Rewindable | None:
        """Guests of earlier tests, set back, if such guests can be, and shall be."""
        if self.reset not in ("auto", "rewind"):
            return None
        try:
            found = self._rewinding.take(wanted.kind) or self._rewindable(wanted, witness)
        except NoWayBack as error:
            self._refuse_if_asked_for("rewind", wanted, error)
            self._note(wanted, "boot", error.message)
            return None
        self._note(wanted, "rewind")
        return found

    def _rewindable(self, wanted: Wanted, witness: Witness) -> Rewindable:
        """Guests that have just booted, and can be set back from now on."""
        if self.reset == "auto" and self.to_come <= 1:
            raise NoWayBack("it is the last one")
        if any(asked.spec.login.channel == "none" for asked in wanted.guests):
            raise NoWayBack("nobody can ask it how it is")
        if any(asked.spec.usb for asked in wanted.guests):
            raise NoWayBack("what is plugged into its USB ports does not go back")
        with self._background.ending(wanted.source) as attempt:
            up = self._together(wanted, attempt)
            with self._watched(wanted, up, _only_if_it_breaks(witness)):
                boot_all(up.guests, wanted.after, self.capacity.boot, timeout=wanted.timeout)
            found = self._rewinding.keep(up, attempt.pop_all)
        for asked in wanted.guests:
            self._hold(asked.spec.image)
        return found

    @contextmanager
    def _giving_back(self, wanted: Wanted, rewound: Rewindable) -> Iterator[None]:
        try:
            yield
        finally:
            self._rewinding.give_back(wanted.kind, rewound)

    def _refuse_if_asked_for(self, way: Reset, wanted: Wanted, error: KvmlabError) -> None:
        """Let no other way be taken in place of the one that was asked for by name."""
        if self.reset == way:
            hint = "use --kvm-reset=auto, which takes another way"
            raise HostError(f"{wanted.source}: --kvm-reset={way}: {error.message}", hint) from error

    def _note(self, wanted: Wanted, way: str, why: str = "") -> None:
        self.assembly.journal.note(wanted.source, "reset", way, outcome=why)

    @contextmanager
    def _watched(self, wanted: Wanted, up: Together, witness: Witness) -> Iterator[None]:
        """Have the witness look at guests at their end, the last one first."""
        with ExitStack() as seen:
            for asked, made in zip(wanted.guests, up.made, strict=True):
                seen.enter_context(self._seen(asked, made, up, witness))
            yield

    @contextmanager
    def _asked(self, name: str, keys: GuestKeys, networks: Collection[str], source: str) -> Iterator[Asked]:
        """A guest whose keys are complete and whose image is there, built now if need be."""
        with ExitStack() as held:
            image = held.enter_context(self._image(keys, source))
            yield Asked(name, _resolved(keys, image, networks, source), image, source, held)

    def _image(self, keys: GuestKeys, source: str) -> AbstractContextManager[BaseImage]:
        if keys.image is None:
            raise ConfigError(f"{source}: no image is named", 'name one: kvm(image="micro")')
        return self.images.use(keys.image, guests=self)

    @contextmanager
    def _seen(self, asked: Asked, made: Made, up: Together, witness: Witness) -> Iterator[None]:
        """Have the witness look at a guest at its end, and leave it to the run's keeper if it is to stay."""
        guest, kept = made.guest, False
        try:
            yield
            kept = witness(guest, None)
        except BaseException as error:
            kept = guest.machine.was_on and witness(guest, error)
            raise
        finally:
            if kept and guest.machine.is_on:
                locks = [*asked.image.locks, up.memory.claim.file, *guest.usb.keep()]
                leave(guest, asked.source, locks)
                up.left.append(guest)
                up.wiring.keep()
                up.memory.keep()
                # Held until the keeper has taken over: the locks of the image.
                self._left += [made.undo.pop_all(), asked.held.pop_all()]


def _cards(lab: LabSpec, nearer: Mapping[str, GuestKeys]) -> Cards:
    """The cards of a lab's guests: those of its file, unless something nearer has a say."""
    return {name: nearer.get(name, keys).networks or () for name, keys in lab.guests.items()}


def _only_if_it_breaks(witness: Witness) -> Witness:
    """The guest of a template is nobody's evidence, unless it does not get that far."""
    return lambda guest, error: error is not None and witness(guest, error)


def _resolved(keys: GuestKeys, image: BaseImage, networks: Collection[str], source: str) -> GuestSpec:
    """All that a guest is; what it asks for in vain is told before anything is waited for."""
    spec = resolve_guest(merge(keys, image.keys), source=source, networks=networks)
    _require(spec)
    return spec


def _require(spec: GuestSpec) -> None:
    """See that this machine has what few guests need: libvirt's own complaint would name no remedy."""
    if spec.tpm and not (finding := TPM.look()).ok:
        raise HostError(f"a TPM is asked for, but {finding.seen}", finding.remedy, check=TPM.name)

"""The guests of a test, their networks and dongles, as a drawing."""

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_kvmlab.spec.run_record import CardRecord, GuestRecord

_BOX_WIDTH, _BOX_HEIGHT, _GAP = 150, 44, 30
_TOP, _FIRST_NETWORK, _BETWEEN_NETWORKS = 26, 116, 44


@dataclass(frozen=True)
class Box:
    """A guest: its place, and what is written in it and on top of it."""

    x: int
    name: str
    image: str
    dongles: str


@dataclass(frozen=True)
class Bus:
    """A network: a line across the drawing."""

    y: int
    name: str


@dataclass(frozen=True)
class Wire:
    """A card: a line from a guest down to a network."""

    x: int
    y: int


@dataclass(frozen=True)
class LabPicture:
    """A drawing, in units of its own."""

    width: int
    height: int
    top: int
    box_width: int
    box_height: int
    boxes: Sequence[Box]
    buses: Sequence[Bus]
    wires: Sequence[Wire]


def picture_of(guests: Sequence[GuestRecord]) -> LabPicture | None:
    """Draw guests above the networks that they are in.

    Args:
        guests: those of one test.

    Returns:
        The drawing; none of a single guest without a network of a lab and without dongles.
    """
    names = {card.network: _title(card) for guest in guests for card in guest.networks}
    if len(guests) < 2 and set(names) <= {"user"} and not any(guest.dongles for guest in guests):
        return None
    rows = {name: _FIRST_NETWORK + at * _BETWEEN_NETWORKS for at, name in enumerate(names)}
    return LabPicture(
        width=len(guests) * (_BOX_WIDTH + _GAP) + _GAP,
        height=_FIRST_NETWORK + len(rows) * _BETWEEN_NETWORKS,
        top=_TOP,
        box_width=_BOX_WIDTH,
        box_height=_BOX_HEIGHT,
        boxes=[
            Box(_left(at), guest.name, guest.image, ", ".join(guest.dongles))
            for at, guest in enumerate(guests)
        ],
        buses=[Bus(y, names[name]) for name, y in rows.items()],
        wires=[
            Wire(_left(at) + (number + 1) * _BOX_WIDTH // (len(guest.networks) + 1), rows[card.network])
            for at, guest in enumerate(guests)
            for number, card in enumerate(guest.networks)
        ],
    )


def _title(card: CardRecord) -> str:
    return f"{card.network} (simulated {card.simulated_bridge})" if card.simulated_bridge else card.network


def _left(place: int) -> int:
    return _GAP + place * (_BOX_WIDTH + _GAP)

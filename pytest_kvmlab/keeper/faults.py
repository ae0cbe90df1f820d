"""Faults on the wire: bandwidth, loss and delay of a network card, and guests that do not hear each other.

They sit on the ports of the bridges, in the run's network namespace, so the guest sees an ordinary card on a
bad line. The door to `tc` (tc-tbf(8), tc-netem(8)) and, for these, to `nft` (nft(8), bridge family).
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.programs import find_program, run_program

# A packet of 64 KiB that a guest leaves to its card to cut up has to fit (virtio, section 5.1).
_LEAST_BURST = 131_072  # bytes
_PER_MILLION = 1_000_000
_QUEUE = "200ms"
_MOST_BITS, _MOST_DELAY = 10**11, 60.0


@dataclass(frozen=True)
class Impairment:
    """A bad line.

    Attributes:
        rate: bits per second in each direction; None is as many as there may be.
        loss: the share of packets that is lost in each direction, from 0 to 1.
        delay: seconds that each packet to the guest comes later.
    """

    rate: int | None = None
    loss: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Faults:
    """Everything that is wrong in the networks of a lab at one time.

    Attributes:
        impaired: bad lines, by the TAP at their end.
        parted: pairs of TAPs between which nothing passes.
    """

    impaired: Mapping[str, Impairment] = field(default_factory=dict)
    parted: Collection[tuple[str, str]] = ()


def faults_as_document(faults: Faults) -> dict[str, Any]:
    """Write faults as what JSON knows."""
    return {
        "impaired": {tap: asdict(line) for tap, line in faults.impaired.items()},
        "parted": [list(pair) for pair in faults.parted],
    }


def as_faults(document: object, taps: Collection[str]) -> Faults:
    """Read faults, from whoever sent them.

    Args:
        document: what was sent.
        taps: the devices there are.

    Raises:
        ValueError: it has another form, names another device, or a number that makes no sense.
    """
    match document:
        case {"impaired": dict(impaired), "parted": list(parted)}:
            faults = Faults(
                {tap: _line(line) for tap, line in impaired.items()}, [_pair(pair) for pair in parted]
            )
        case _:
            raise ValueError("faults have 'impaired' and 'parted'")
    named = {*faults.impaired, *chain.from_iterable(faults.parted)}
    if unknown := named - set(taps):
        raise ValueError(f"no such devices: {', '.join(sorted(map(str, unknown)))[:200]}")
    return faults


def _line(document: object) -> Impairment:
    match document:
        case {
            "rate": None | int() as rate,
            "loss": float() | int() as loss,
            "delay": float() | int() as delay,
        }:
            if not (
                (rate is None or 8 <= rate <= _MOST_BITS) and 0 <= loss <= 1 and 0 <= delay <= _MOST_DELAY
            ):
                raise ValueError(f"not a line: rate {rate}, loss {loss}, delay {delay}")
            return Impairment(rate, loss, delay)
    raise ValueError(f"not a line: {str(document)[:200]}")


def _pair(document: object) -> tuple[str, str]:
    match document:
        case [str(one), str(other)]:
            return one, other
    raise ValueError(f"not a pair: {str(document)[:200]}")


class Wire:
    """The ports of one lan, and what is wrong with them.

    Args:
        lan: its name among those of the run.
    """

    def __init__(self, lan: str) -> None:
        self._lan = lan
        self._shaped: set[str] = set()
        self._broken = False

    def apply(self, faults: Faults) -> None:
        """Make these faults all there are.

        Raises:
            HostError: a program is missing, or this kernel cannot; then no line is slow, and nothing else has
                changed.
        """
        self._shape(faults)
        self._broken = True
        run_program(_in_the_run("nft", "--file", "-"), text=rules(self._lan, faults))

    def heal(self) -> None:
        """Take everything away, if there ever was something; what cannot be ends with the run."""
        if self._broken:
            with contextlib.suppress(HostError):
                self.apply(Faults())

    def _shape(self, faults: Faults) -> None:
        lines = shaping(faults)
        healed = [_healing(tap) for tap in sorted(self._shaped - lines.keys())]
        before, self._shaped = self._shaped, set(lines)
        if not (healed or lines):
            return
        try:
            run_program(_in_the_run("tc", "-batch", "-"), text="\n".join([*healed, *lines.values()]))
        except HostError as error:
            self._straighten(before | self._shaped)
            raise _explained(error) from error

    def _straighten(self, shaped: Collection[str]) -> None:
        """Take away whatever there is, on ports some of which have nothing."""
        self._shaped = set()
        with contextlib.suppress(HostError):
            run_program(_in_the_run("tc", "-force", "-batch", "-"), text="\n".join(map(_healing, shaped)))


def _in_the_run(program: str, *words: str) -> list[str]:
    """The command that runs a program in the run's network namespace, which is that of PID 1 (nsenter(1))."""
    return ["nsenter", "--target", "1", "--net", "--", find_program(program, check="faults"), *words]


def _healing(tap: str) -> str:
    return f"qdisc delete dev {tap} root"


def _explained(error: HostError) -> HostError:
    if "Specified qdisc kind is unknown" not in error.message:
        return error
    return HostError(
        f"this kernel cannot delay packets: {error.message}",
        "load the module sch_netem (kernel option CONFIG_NET_SCH_NETEM), or leave out the delay",
        check="faults",
    )


def shaping(faults: Faults) -> dict[str, str]:
    """Write what `tc -batch` is to do for packets to guests, by TAP."""
    slow = {tap: line for tap, line in faults.impaired.items() if line.rate or line.delay}
    return {tap: f"qdisc replace dev {tap} root {_discipline(line)}" for tap, line in slow.items()}


def _discipline(line: Impairment) -> str:
    if line.delay:
        rate = f" rate {line.rate}bit" if line.rate else ""
        return f"netem delay {line.delay * 1e6:.0f}us limit 100000{rate}"
    return f"tbf rate {line.rate}bit burst {_burst(line)} latency {_QUEUE}"


def _burst(line: Impairment) -> int:
    """Bytes that may pass at once: a hundredth of a second's, or a whole packet."""
    return max(_LEAST_BURST, (line.rate or 0) // 800)


def rules(lan: str, faults: Faults) -> str:
    """Write what nft(8) is to be told: all of a lan's faults, in the place of those before."""
    table = f"table bridge faults_{lan.replace('-', '_')}"
    chains = {
        "from_guests": ("prerouting", chain.from_iterable(map(_from_guest, *_columns(faults)))),
        "to_guests": ("postrouting", chain.from_iterable(map(_to_guest, *_columns(faults)))),
        "across": ("forward", chain.from_iterable(map(_parted, faults.parted))),
    }
    text = "".join(_chain(name, hook, lines) for name, (hook, lines) in chains.items())
    fresh = f"{table} {{\n{text}}}\n" if faults.impaired or faults.parted else ""
    return f"{table}\ndelete {table}\n{fresh}"


def _columns(faults: Faults) -> tuple[list[str], list[Impairment]]:
    return list(faults.impaired), list(faults.impaired.values())


def _chain(name: str, hook: str, lines: Iterator[str]) -> str:
    head = f"chain {name} {{\n type filter hook {hook} priority 0;\n"
    return head + "".join(f" {line}\n" for line in lines) + "}\n"


def _from_guest(tap: str, line: Impairment) -> Iterator[str]:
    if line.loss:
        yield f'iifname "{tap}" {_lost(line)}'
    if line.rate:
        limit = f"limit rate over {line.rate // 8} bytes/second burst {_burst(line)} bytes"
        yield f'iifname "{tap}" {limit} drop'


def _to_guest(tap: str, line: Impairment) -> Iterator[str]:
    if line.loss:
        yield f'oifname "{tap}" {_lost(line)}'


def _lost(line: Impairment) -> str:
    lost = round(line.loss * _PER_MILLION)
    return "drop" if lost == _PER_MILLION else f"numgen random mod {_PER_MILLION} < {lost} drop"


def _parted(pair: tuple[str, str]) -> Iterator[str]:
    one, other = pair
    yield f'iifname "{one}" oifname "{other}" drop'
    yield f'iifname "{other}" oifname "{one}" drop'

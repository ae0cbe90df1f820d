"""Which bridges of a host were only simulated: so that nobody takes a lab's own network for the campus."""

from pytest_kvmlab.spec.run_record import RunRecord


def simulated_bridges(record: RunRecord) -> list[str]:
    """Tell of every bridge that a network of a lab stood for.

    Args:
        record: a run.

    Returns:
        One line for each; none if all networks were what they seem to be.
    """
    cards = (card for test in record.tests for guest in test.guests for card in guest.networks)
    found = sorted({(card.network, card.simulated_bridge) for card in cards if card.simulated_bridge})
    return [
        f"network {network}: simulated: a bridge of the lab's own stood for {bridge} and its LAN"
        for network, bridge in found
    ]

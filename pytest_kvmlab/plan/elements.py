"""Elements of libvirt's XML, and how a document is printed."""

from xml.etree import ElementTree as ET
from xml.etree.ElementTree import Element

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.characters import printable

METADATA_NAMESPACE = "urn:pytest-kvmlab:1"
"""The namespace of the element that says whose a domain is."""

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def element(tag: str, text: str | None = None, /, **attributes: str) -> Element:
    """Make an element with text."""
    made = Element(tag, attributes)
    made.text = text
    return made


def nested(outer: Element, *children: Element) -> Element:
    """Put elements into another one, and return that."""
    outer.extend(children)
    return outer


def owned(kind: str, *, run: str, name: str, owner: str) -> Element:
    """Say whose something is: the element that libvirt keeps for us.

    Args:
        kind: `guest` or `network`.
        run: the run that makes it.
        name: its name in the lab.
        owner: who takes it down.

    Returns:
        The element `metadata`.
    """
    return nested(
        element("metadata"), element(f"{{{METADATA_NAMESPACE}}}{kind}", run=run, name=name, owner=owner)
    )


def document(root: Element) -> str:
    """Print a document.

    Args:
        root: its root element, which is indented on the way.

    Returns:
        The XML, always the same for the same elements.

    Raises:
        ConfigError: a path or a text has a character that XML cannot hold.
    """
    _refuse_unprintable(root)
    ET.register_namespace("qemu", QEMU_NAMESPACE)
    ET.register_namespace("kvmlab", METADATA_NAMESPACE)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _refuse_unprintable(root: Element) -> None:
    for each in root.iter():
        for text in (each.text or "", *each.attrib.values()):
            if not printable(text):
                raise ConfigError(
                    f"{each.tag}: {text!r} has a character that libvirt's XML cannot hold",
                    "rename the file, or write it without control characters",
                )

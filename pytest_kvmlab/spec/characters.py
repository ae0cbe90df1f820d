"""Which text may later stand in XML, on a command line or in a file name."""


def one_line(written: object) -> str:
    """Accept a line of text.

    Args:
        written: the text.

    Returns:
        The same text.

    Raises:
        ValueError: it is no text, empty, has control characters (XML 1.0 section 2.2 has no way to write most
            of them) or bytes that are not UTF-8.
    """
    if not isinstance(written, str) or not written.strip():
        raise ValueError("should be a text that is not empty")
    if not printable(written):
        raise ValueError("has a line break, another control character, or bytes that are not UTF-8")
    return written


def printable(text: str) -> bool:
    """Whether every character may stand on one line of an XML document."""
    return not any(_unprintable(ord(character)) for character in text)


def _unprintable(code: int) -> bool:
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE

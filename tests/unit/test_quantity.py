import pytest

from pytest_kvmlab.spec.quantity import GIB, KIB, MIB, PIB, parse_memory, parse_size


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512MiB", 512 * MIB),
        ("2GiB", 2 * GIB),
        ("1.5GiB", 3 * GIB // 2),
        ("0.5KiB", 512),
        ("64KiB", 64 * KIB),
        ("1024TiB", PIB),
    ],
)
def test_a_size_with_a_binary_unit_is_read(written: str, size: int) -> None:
    assert parse_size(written) == size


@pytest.mark.parametrize(
    "written",
    [
        *(512, 512.0, True, None, b"512MiB", ["512MiB"]),
        *("512", "", "MiB", " 512MiB", "512 MiB", "512MiB\n", "512mib", "512MB", "512MB!", "512M", "512B"),
        *("-1GiB", "+1GiB", "1e3MiB", "0x10MiB", "1_000MiB", "1,5GiB", ".5GiB", "1.GiB", "infGiB", "٢GiB"),
        "9" * 5000 + "MiB",
    ],
)
def test_anything_else_is_refused_with_an_example(written: object) -> None:
    with pytest.raises(ValueError, match="such as '512MiB'"):
        parse_size(written)


@pytest.mark.parametrize("written", ["0MiB", "0.0GiB", "1025TiB", "9999999999999999TiB"])
def test_nothing_and_more_than_a_pebibyte_are_out_of_range(written: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        parse_size(written)


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size("0.0001KiB")


@pytest.mark.parametrize(("written", "near"), [("1536.5MiB", "'1536MiB'"), ("100KiB", "'1MiB'")])
def test_memory_that_qemu_would_round_is_refused_with_the_nearest(written: str, near: str) -> None:
    with pytest.raises(ValueError, match=near):
        parse_memory(written)


def test_memory_is_in_bytes() -> None:
    assert parse_memory("1.5GiB") == 1536 * MIB

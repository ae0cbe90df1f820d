"""A virtual device in a port: what it answers, and what becomes of what goes wrong."""

import hmac
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab import ControlRequest, UsbEndpoint, UsbInterface, UsbStall, VirtualUsbDevice
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers import usbredir
from pytest_kvmlab.drivers.usb_models import MODELS, READ_LICENCE
from pytest_kvmlab.drivers.usb_outbox import MESSAGE_BYTES, MOST_BYTES
from pytest_kvmlab.drivers.usbredir import Packet
from pytest_kvmlab.drivers.usbredir_session import MOST_WAITING
from pytest_kvmlab.errors import UsbError, WaitTimeout
from pytest_kvmlab.lab.waits import until
from tests.unit.usb_port import SECONDS, Port, listening

SUCCESS, CANCELLED, INVALID, STALL = 0, 1, 2, 4
BULK_OUT, BULK_IN, REPORT_OUT, REPORT_IN = 0x01, 0x82, 0x03, 0x84
SECRET = b"only the vendor knows"


class Challenged(VirtualUsbDevice):
    """A licence dongle that proves that it knows the vendor's secret."""

    def control_out(self, _request: ControlRequest, data: bytes) -> None:
        self.challenge = data

    def control_in(self, _request: ControlRequest) -> bytes:
        return hmac.digest(SECRET, self.challenge, "sha256")


class Echo(VirtualUsbDevice):
    """Sends back what it gets; `no` is not taken, and `bug` is one."""

    interfaces = (
        UsbInterface(
            endpoints=(
                UsbEndpoint(BULK_OUT),
                UsbEndpoint(BULK_IN),
                UsbEndpoint(REPORT_OUT, "interrupt", packet_size=8),
                UsbEndpoint(REPORT_IN, "interrupt", packet_size=8),
            )
        ),
    )

    def received(self, endpoint: int, data: bytes) -> None:
        if data == b"no":
            raise UsbStall
        if data == b"bug":
            raise ZeroDivisionError("a bug of the test's own")
        if data == b"die":
            self.unplug()
        self.send({BULK_OUT: BULK_IN, REPORT_OUT: REPORT_IN}[endpoint], data)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with listening(tmp_path / "port") as port:
        yield port


@pytest.fixture
def echo(port: Port) -> Iterator[Echo]:
    device = Echo("0a5e:2110", serial="E1")
    with port.configured(device):
        yield device


def bulk(address: int, length: int) -> usbredir.BulkTransfer:
    return usbredir.BulkTransfer(address, 0, length, 0, 0)


def report(address: int, length: int) -> usbredir.InterruptTransfer:
    return usbredir.InterruptTransfer(address, 0, length)


def status(packet: Packet) -> int:
    assert isinstance(packet.header, usbredir.BulkTransfer | usbredir.InterruptTransfer)
    return packet.header.status


def test_a_port_learns_everything_of_the_device_before_it_is_connected(port: Port) -> None:
    with Echo("0a5e:2110").serve(port.path):
        interfaces, endpoints, connect = (packet.header for packet in port.accept())
        port.close()
    assert isinstance(interfaces, usbredir.InterfaceInfo)
    assert isinstance(endpoints, usbredir.EndpointInfo)
    assert (interfaces.how_many, interfaces.classes[0]) == (1, 0xFF)
    assert endpoints.types == bytes((0, 2, 255, 3, *[255] * 12, 0, 255, 2, 255, 3, *[255] * 11))
    assert endpoints.packet_sizes[:8] == bytes((64, 0, 64, 0, 0, 0, 8, 0))
    assert connect == usbredir.DeviceConnect(1, 0, 0, 0, 0x0A5E, 0x2110, 0x0100)


def test_a_dongle_answers_a_challenge(port: Port) -> None:
    with port.configured(Challenged("0a5e:2110")):
        assert port.control(0x40, 1, data=b"nonce") == (SUCCESS, b"")
        assert port.control(0xC0, 2, data=64) == (SUCCESS, hmac.digest(SECRET, b"nonce", "sha256"))


def test_the_built_in_dongle_tells_its_licence_number(port: Port) -> None:
    with port.configured(MODELS["licence"]("0a5e:2110", serial="L1")):
        assert port.control(*READ_LICENCE, data=64) == (SUCCESS, b"KVMLAB-2110")
        assert port.control(*READ_LICENCE, data=6) == (SUCCESS, b"KVMLAB")
        assert port.control(0xC0, 2, data=64) == (STALL, b"")
        assert port.control(0x40, 1) == (STALL, b"")


@pytest.mark.usefixtures("echo")
def test_standard_requests_are_answered_for_every_device(port: Port) -> None:
    assert port.control(0x80, 6, 0x0100, data=8)[1] == bytes.fromhex("12 01 0002 00 00 00 40")
    assert port.control(0x80, 6, 0x0301, data=255) == (SUCCESS, b"\x06\x03E\x001\x00")
    assert port.control(0x80, 6, 0x0F00, data=255) == (STALL, b"")
    assert port.control(0x80, 0, data=2) == (SUCCESS, bytes(2))
    assert port.ask(usbredir.GetConfiguration())[0].header == usbredir.ConfigurationStatus(SUCCESS, 1)
    assert port.ask(usbredir.SetConfiguration(2))[0].header == usbredir.ConfigurationStatus(STALL, 1)
    assert port.ask(usbredir.GetAltSetting(0))[0].header == usbredir.AltSettingStatus(SUCCESS, 0, 0)
    assert port.ask(usbredir.SetAltSetting(0, 1))[0].header == usbredir.AltSettingStatus(STALL, 0, 0)
    assert port.ask(usbredir.SetAltSetting(1, 0))[0].header == usbredir.AltSettingStatus(STALL, 1, 0)


@pytest.mark.usefixtures("echo")
def test_a_request_whose_directions_differ_is_invalid(port: Port) -> None:
    header = usbredir.ControlTransfer(0, 6, 0x80, 0, 0x0100, 0, 0)
    answer = port.ask(header)[0].header
    assert isinstance(answer, usbredir.ControlTransfer)
    assert answer.status == INVALID


@pytest.mark.usefixtures("echo")
def test_a_read_waits_until_there_is_something(port: Port) -> None:
    port.say(Packet(bulk(BULK_IN, 64), id=1), Packet(bulk(BULK_OUT, 5), b"hello", 2))
    written, read = port.hear(), port.hear()
    assert (written.id, written.header, written.data) == (2, bulk(BULK_OUT, 5), b"")
    assert (read.id, read.header, read.data) == (1, bulk(BULK_IN, 5), b"hello")


def test_what_is_longer_than_a_read_is_read_on(port: Port, echo: Echo) -> None:
    echo.send(BULK_IN, b"0123456789")
    echo.send(BULK_IN, b"")
    assert [port.ask(bulk(BULK_IN, 4))[0].data for _ in range(4)] == [b"0123", b"4567", b"89", b""]


@pytest.mark.usefixtures("echo")
def test_a_cancelled_read_says_so_and_takes_nothing(port: Port) -> None:
    port.say(Packet(bulk(BULK_IN, 64), id=1), Packet(usbredir.CancelDataPacket(), id=1))
    assert (port.hear().header, port.ask(bulk(BULK_OUT, 1), b"x")[0].data) == (
        usbredir.BulkTransfer(BULK_IN, CANCELLED, 0, 0, 0),
        b"",
    )
    port.say(Packet(usbredir.CancelDataPacket(), id=1), Packet(bulk(BULK_IN, 64), id=3))
    assert port.hear().data == b"x"


@pytest.mark.usefixtures("echo")
def test_a_reset_ends_what_waits_and_the_configuration(port: Port) -> None:
    port.say(Packet(bulk(BULK_IN, 64), id=1), Packet(usbredir.Reset()))
    assert status(port.hear()) == CANCELLED
    assert port.ask(usbredir.GetConfiguration())[0].header == usbredir.ConfigurationStatus(SUCCESS, 0)
    assert status(port.ask(bulk(BULK_OUT, 1), b"x")[0]) == INVALID


def test_reports_come_once_they_are_polled(port: Port, echo: Echo) -> None:
    echo.send(REPORT_IN, b"longer than 8")
    assert port.ask(usbredir.StartInterruptReceiving(REPORT_IN))[0].header == (
        usbredir.InterruptReceivingStatus(SUCCESS, REPORT_IN)
    )
    assert [port.hear().data, port.hear().data] == [b"longer t", b"han 8"]
    port.say(Packet(report(REPORT_OUT, 3), b"key", 9))
    assert [port.hear().data, port.hear().data] == [b"", b"key"]
    port.ask(usbredir.StopInterruptReceiving(REPORT_IN))
    echo.send(REPORT_IN, b"later")
    assert port.ask(usbredir.GetConfiguration())[0].id == 7


@pytest.mark.usefixtures("echo")
def test_a_stalled_endpoint_stays_so_until_its_halt_is_cleared(port: Port) -> None:
    assert [status(port.ask(bulk(BULK_OUT, 2), data)[0]) for data in (b"no", b"ok")] == [STALL, STALL]
    assert port.control(0x82, 0, index=BULK_OUT, data=2) == (SUCCESS, b"\x01\x00")
    assert port.control(0x02, 1, index=BULK_OUT) == (SUCCESS, b"")
    assert port.control(0x82, 0, index=BULK_OUT, data=2) == (SUCCESS, b"\x00\x00")
    assert status(port.ask(bulk(BULK_OUT, 2), b"ok")[0]) == SUCCESS
    port.control(0x02, 3, index=BULK_IN)
    assert status(port.ask(bulk(BULK_IN, 2))[0]) == STALL
    assert port.control(0x02, 1, index=0x05) == (STALL, b"")


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(
    "header",
    [bulk(0x05, 0), bulk(0x85, 9), bulk(REPORT_OUT, 0), report(BULK_OUT, 0), report(REPORT_IN, 8)],
    ids=str,
)
def test_a_transfer_that_the_device_has_no_endpoint_for_is_invalid(
    port: Port, header: usbredir.Header
) -> None:
    assert status(port.ask(header)[0]) == INVALID


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("address", [BULK_IN, REPORT_OUT, 0x8F])
def test_only_reports_are_polled(port: Port, address: int) -> None:
    answer = port.ask(usbredir.StartInterruptReceiving(address))[0].header
    assert answer == usbredir.InterruptReceivingStatus(INVALID, address)


def test_an_exception_of_the_model_is_a_stall_and_is_remembered(port: Port, echo: Echo) -> None:
    assert status(port.ask(bulk(BULK_OUT, 3), b"bug")[0]) == STALL
    (error,) = echo.errors
    assert str(error) == "a bug of the test's own"
    frames = [frame for frame, _line in traceback.walk_tb(error.__traceback__)]
    assert [frame.f_code.co_name for frame in frames][-1] == "received"
    assert not any(frame.f_locals for frame in frames)
    assert echo.is_plugged


def test_pulling_it_out_is_seen_by_the_port_before_the_call_returns(port: Port, echo: Echo) -> None:
    heard: list[Packet] = []

    def acknowledge() -> None:
        heard.append(port.hear())
        port.say(Packet(usbredir.DeviceDisconnectAck()))

    thread = threading.Thread(target=acknowledge)
    thread.start()
    echo.unplug()
    assert [packet.header for packet in heard] == [usbredir.DeviceDisconnect()]
    assert not echo.is_plugged
    thread.join()
    echo.unplug()


def test_a_device_can_be_plugged_in_again_and_has_forgotten_what_it_had_to_send(
    port: Port, echo: Echo
) -> None:
    echo.send(BULK_IN, b"old")
    port.line.shutdown(socket.SHUT_WR)
    echo.unplug()
    port.plug(echo)
    echo.plug()
    echo.send(BULK_IN, b"new")
    assert port.ask(bulk(BULK_IN, 64))[0].data == b"new"


def test_a_device_can_pull_itself_out(port: Port, echo: Echo) -> None:
    port.say(Packet(bulk(BULK_OUT, 3), b"die"))
    assert [type(port.hear().header) for _ in range(2)] == [usbredir.BulkTransfer, usbredir.DeviceDisconnect]
    assert not echo.is_plugged


def test_a_guest_that_is_gone_is_no_error(port: Port, echo: Echo) -> None:
    port.close()
    for thread in threading.enumerate():
        if thread.name == "usb-port":
            thread.join(SECONDS)
    with pytest.raises(UsbError, match="is not plugged in"):
        echo.wait_until_configured(timeout=SECONDS)
    assert (echo.is_plugged, echo.errors) == (False, ())
    port.plug(echo)
    assert echo.is_configured


def test_a_port_that_takes_nothing_does_not_hold_the_test_up(port: Port, echo: Echo) -> None:
    """As QEMU does while its guest is paused: the device's thread waits, the test does not."""
    echo.send(BULK_IN, bytes(MOST_BYTES - MESSAGE_BYTES))
    with pytest.raises(UsbError, match="4 MiB wait on endpoint 0x82"):
        echo.send(BULK_IN, b"x")
    port.say(*[Packet(bulk(BULK_IN, 0xFFFF), id=number) for number in range(65)])
    echo.unplug()
    assert not echo.is_plugged


def test_a_device_that_is_not_configured_in_time_is_a_failed_wait(port: Port) -> None:
    with Echo("0a5e:2110").serve(port.path) as device:
        port.accept()
        with pytest.raises(WaitTimeout, match=r"did not configure <Echo 0a5e:2110> within 0.01 s"):
            device.wait_until_configured(timeout=0.01)
        port.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\xff" * 16,
        usbredir.encoded(usbredir.greeting()),
        usbredir.encoded(Packet(usbredir.DeviceDisconnect())),
    ],
    ids=["no packet", "a second greeting", "a packet of the other side"],
)
def test_a_guest_that_breaks_the_protocol_loses_the_device_and_the_test_learns_why(
    port: Port, echo: Echo, nonsense: bytes
) -> None:
    port.line.sendall(nonsense)
    assert port.is_closed()
    assert ["the port sent a packet" in str(error) for error in echo.errors] == [True]
    assert not echo.is_plugged


def test_a_guest_that_leaves_reads_without_end_loses_the_device(port: Port, echo: Echo) -> None:
    port.say(*[Packet(bulk(BULK_IN, 1), id=number) for number in range(MOST_WAITING + 1)])
    assert port.is_closed()
    assert "more than 4096 transfers wait on endpoint 0x82" in str(echo.errors[0])


def test_a_port_that_is_too_old_is_refused(port: Port) -> None:
    with Echo("0a5e:2110").serve(port.path) as device:
        line, _ = port._listener.accept()
        with line:
            line.sendall(usbredir.encoded(usbredir.greeting([usbredir.Capability.FILTER])))
            assert line.recv(1)
            while line.recv(4096):
                pass
    assert "it lacks bulk_length_32_bits, connect_device_version" in str(device.errors[0])


def test_a_port_that_does_not_want_the_device_is_told_of(port: Port, echo: Echo) -> None:
    port.say(Packet(usbredir.FilterRules(), b"-1,-1,-1,-1,0"), Packet(usbredir.FilterReject()))
    assert port.is_closed()
    assert "QEMU does not take the device" in str(echo.errors[0])


def test_a_device_without_a_guest_cannot_be_plugged_in(tmp_path: Path) -> None:
    device = Echo("0a5e:2110", serial="E1")
    with pytest.raises(UsbError, match="<Echo 0a5e:2110 E1> belongs to no guest"):
        device.plug()
    with (
        pytest.raises(UsbError, match="no guest has the USB port nowhere"),
        device.serve(tmp_path / "nowhere"),
    ):
        pass
    with pytest.raises(UsbError, match="no guest has the USB port"), device.serve(tmp_path / ("x" * 200)):
        pass


def test_a_device_is_in_one_guest_at_a_time(port: Port, echo: Echo) -> None:
    with pytest.raises(UsbError, match="is in a guest already"), echo.serve(port.path):
        pass
    assert echo.is_plugged


def test_a_device_is_plugged_in_when_the_port_has_greeted_it(port: Port) -> None:
    """QEMU's port does so when its guest runs, however long it is connected by then."""
    with Echo("0a5e:2110").serve(port.path) as device:
        line, _ = port._listener.accept()
        with line:
            assert line.recv(4096)
            assert not device.is_plugged
            line.sendall(usbredir.encoded(usbredir.greeting()))
            device.plug()  # which it is: this waits only until the port has it
            assert (device.is_plugged, device.is_configured) == (True, False)
        until(lambda: None if device.is_plugged else True, Deadline(SECONDS))
        assert not device.is_plugged


def test_a_device_can_be_there_unplugged(port: Port) -> None:
    with Echo("0a5e:2110").serve(port.path, plugged=False) as device:
        assert not device.is_plugged
        assert not device.is_configured


def test_data_for_an_endpoint_that_is_not_there_are_refused(echo: Echo) -> None:
    for address in (BULK_OUT, 0x85):
        with pytest.raises(UsbError, match="has no endpoint 0x"):
            echo.send(address, b"")


def test_any_thread_may_plug_unplug_and_send(port: Port) -> None:
    device = Echo("0a5e:2110")
    welcome = threading.Thread(target=port.welcome)
    welcome.start()
    with device.serve(port.path, plugged=False):
        testers = [threading.Thread(target=_plug_and_unplug, args=(device,)) for _ in range(4)]
        for tester in testers:
            tester.start()
        for tester in testers:
            tester.join(SECONDS)
    port.end()
    welcome.join(SECONDS)
    assert not [thread for thread in (welcome, *testers) if thread.is_alive()]
    assert (device.is_plugged, device.errors) == (False, ())


def _plug_and_unplug(device: VirtualUsbDevice) -> None:
    for _ in range(25):
        device.plug()
        device.send(BULK_IN, b"x")
        device.unplug()

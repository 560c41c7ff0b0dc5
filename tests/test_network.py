"""The guard against the network is there, in every process."""

import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from guard import network


@pytest.fixture
def asked(no_network):
    """What was asked for; taken from the log, so that the guard lets this test pass."""
    log = Path(os.environ[network.LOG])

    def take():
        lines = log.read_text().splitlines()
        log.write_text("")
        return lines

    return take


def test_a_name_and_an_address_are_refused_and_noted(asked):
    with pytest.raises(OSError, match="a test asked for example.org"):
        socket.getaddrinfo("example.org", 80)
    with socket.socket() as client, pytest.raises(OSError, match="a test asked for 192.0.2.1"):
        client.connect(("192.0.2.1", 80))
    assert asked() == ["socket.getaddrinfo example.org", "socket.connect 192.0.2.1"]


def test_code_that_goes_on_without_it_is_found_out(asked):
    try:
        urllib.request.urlopen("http://example.org/a.png", timeout=5)
    except OSError:
        pass
    assert asked() == ["socket.getaddrinfo example.org"]


def test_a_python_that_a_test_starts_is_watched_too(asked):
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert asked() == ["socket.getaddrinfo 192.0.2.1"]


def test_this_machine_is_not_the_network(asked):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    assert asked() == []

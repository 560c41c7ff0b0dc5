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


def test_code_that_continues_without_the_network_fails(asked):
    try:
        urllib.request.urlopen("http://example.org/a.png", timeout=5)
    except OSError:
        pass
    assert asked() == ["socket.getaddrinfo example.org"]


def test_a_python_that_a_test_starts_is_watched_too(asked):
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert asked() == ["socket.getaddrinfo 192.0.2.1"]


@pytest.mark.parametrize(
    "body",
    [
        "def test_a(): ask()",
        "@pytest.fixture(scope='module')\ndef f(): ask()\ndef test_a(f): pass",
        "ask()\ndef test_a(): pass",
    ],
    ids=["in the test", "in a fixture", "while it is collected"],
)
def test_a_test_that_asks_and_goes_on_fails(tmp_path, body):
    ask = "def ask():\n try: socket.create_connection(('192.0.2.1', 80), 1)\n except OSError: pass\n"
    (tmp_path / "test_it.py").write_text(f"import pytest, socket\n{ask}{body}\n\ndef test_b(): pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "guard.fixture", "-p", "no:cacheprovider", "test_it.py"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "ERROR test_it.py::test_a" in done.stdout
    assert "socket.getaddrinfo 192.0.2.1" in done.stdout
    assert "2 passed, 1 error" in done.stdout


@pytest.mark.parametrize(
    ("event", "arguments", "host"),
    [
        ("socket.connect", (None, ("127.0.0.1.example.org", 80)), "127.0.0.1.example.org"),
        ("socket.getaddrinfo", ("localhost.example.org", 80), "localhost.example.org"),
        ("socket.connect", (None, ("2001:db8::1", 80, 0, 0)), "2001:db8::1"),
        ("socket.sendto", (None, (b"192.0.2.1", 53)), "192.0.2.1"),
        ("socket.gethostbyaddr", ("192.0.2.1",), "192.0.2.1"),
        ("socket.getnameinfo", (("192.0.2.1", 80),), "192.0.2.1"),
        ("socket.connect", (None, ("::ffff:127.0.0.1", 80, 0, 0)), None),
        ("socket.connect", (None, "a.socket"), None),
        ("socket.connect", (None, b"\0abstract"), None),
        ("socket.getaddrinfo", (None, 80), None),
        ("open", ("example.org",), None),
    ],
)
def test_what_counts_as_another_machine(event, arguments, host):
    assert network.host_of(event, arguments) == host


def test_this_machine_is_not_the_network(asked):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
        socket.create_connection(("localhost", server.getsockname()[1])).close()
    assert asked() == []

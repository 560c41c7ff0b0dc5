"""The fixture that fails a test which asks for the network."""

import os
import tempfile
from pathlib import Path

import pytest

from guard import network


def start() -> None:
    """Watch this process and every Python that it starts with its environment."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ[network.LOG] = tempfile.mkstemp(prefix="network-", suffix=".log")[1]
    network.install()


start()


@pytest.fixture(autouse=True)
def no_network():
    """A test that asks for another machine fails, also where the code under test goes on without it.

    What fixtures of a module or a session ask for, or modules while they are collected, fails the next test.
    """
    log = Path(os.environ[network.LOG])
    yield
    asked = log.read_text().splitlines()
    log.write_text("")
    assert not asked, asked


def pytest_unconfigure():
    """Leave no log."""
    Path(os.environ[network.LOG]).unlink(missing_ok=True)

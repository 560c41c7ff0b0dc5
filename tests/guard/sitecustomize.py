"""Run by every Python that a test starts: see `network`."""

import network

network.install()

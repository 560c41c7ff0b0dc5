"""Tests that take long, and whose like runs in every suite: `SLOW=1 make test` runs them too."""

import os

import pytest

slow = pytest.mark.skipif(not os.environ.get("SLOW"), reason="takes long; SLOW=1 runs it")

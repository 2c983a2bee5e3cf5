"""Certificates and attacks on a device that is not the CPU, in a process of its own, which keeps knowing it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch.utils import backend_registration

KNOWN = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")


@pytest.mark.slow
@pytest.mark.skipif(not KNOWN, reason="this PyTorch has no devices in Python")
def test_no_tensor_is_made_on_the_wrong_device():
    """Of every kind of classifier but IBP, the same certificates as on the CPU, and no error under attacks."""
    done = subprocess.run([sys.executable, "-m", "tests.run_elsewhere"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2_000:]
    assert done.stdout.splitlines()[-1] == "11 of 11 cases are right"

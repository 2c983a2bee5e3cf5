"""Settings of the whole suite: one torch thread a worker, and hypothesis without deadlines or a database."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "robustpatch",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("robustpatch")
torch.set_num_threads(1)

"""The same verdict on somebody else's certifier."""

from evaluate.audit.finding import Audit, Finding
from evaluate.audit.reproduce import replay
from evaluate.audit.run import audit

__all__ = ["Audit", "Finding", "audit", "replay"]

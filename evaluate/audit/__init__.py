"""An audit of any certifier: a search for certificates that do not hold."""

from evaluate.audit.finding import Audit, Finding
from evaluate.audit.reproducer import replay
from evaluate.audit.run import audit

__all__ = ["Audit", "Finding", "audit", "replay"]

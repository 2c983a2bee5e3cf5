"""A run's folder as one HTML page, as Markdown and as JSON."""

from evaluate.report.data import Report, read_report
from evaluate.report.markdown import markdown
from evaluate.report.page import page
from evaluate.report.write import write_report

__all__ = ["Report", "markdown", "page", "read_report", "write_report"]

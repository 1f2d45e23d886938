"""The page of a run or a zoo: formats what the other rooms have measured, computes nothing."""

from weightspace.report.page import write
from weightspace.report.picture import readme_picture
from weightspace.report.run import ReportError

__all__ = ["ReportError", "readme_picture", "write"]

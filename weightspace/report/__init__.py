"""The page of a run or a zoo: formats what the other rooms have measured, computes nothing."""

from weightspace.report.barrier import barrier_picture
from weightspace.report.layers import layers_picture
from weightspace.report.page import write
from weightspace.report.picture import readme_picture
from weightspace.report.run import ReportError

__all__ = ["ReportError", "barrier_picture", "layers_picture", "readme_picture", "write"]

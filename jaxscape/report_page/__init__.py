"""One page that shows the results of runs side by side, and says how far to trust them."""

from jaxscape.report_page._report import report

__all__ = ["report"]

"""What every page of ours has: no connections, no buttons that send figures, texts that are no markup."""

import html as markup
from collections.abc import Mapping
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; form-action 'none'; base-uri 'none'"
)
"""A browser that obeys this opens no connection, whatever the scripts do. plotly.js compiles code at run time."""

CONFIG = {"responsive": True, "displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
"""Options of plotly.js, which has a button that sends the figure to a server of its makers."""


def attr_rows(attrs: Mapping[Any, Any]) -> str:
    """The rows of a table with the attrs of a result."""
    cells = ((markup.escape(str(name)), markup.escape(str(value))) for name, value in attrs.items())
    return "\n".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in cells)

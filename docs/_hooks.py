"""Sphinx roles in docstrings (``:class:`X```) become plain code on the site."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):(?=<code>|`)")


def on_page_content(html: str, **_: Any) -> str:
    """Drop the role's name and keep its code."""
    return _ROLE.sub("", html)

"""The page at `/`: one HTML document with its own style and scripts, which loads nothing from any other host.

Its parts are separate files of this package and are assembled once. The content security policy that is sent with it
lets the browser run exactly these scripts, by their hashes, and connect to this server alone.
"""

import base64
import hashlib
from functools import cache
from importlib import resources

STYLE = "style.css"
SCRIPTS = ("highlight.js", "markdown.js", "store.js", "api.js", "view.js", "main.js")
"""Concatenated in this order, in one scope."""


@cache
def page_html() -> str:
    """Return the whole document."""
    return _part("index.html").replace("/*style*/", _style()).replace("/*script*/", _script())


@cache
def content_security_policy() -> str:
    """Return the policy: run our script, use our style, connect to this server, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(_script())}'",
            f"style-src '{_hash(_style())}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _style() -> str:
    return _part(STYLE)


def _script() -> str:
    return '"use strict";\n' + "\n".join(_part(name) for name in SCRIPTS)


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

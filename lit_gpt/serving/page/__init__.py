"""The page at `/`: one HTML document with its own style and scripts, which loads nothing from any other host.

Its parts are separate files of this package and are assembled once. The content security policy that is sent with it
lets the browser run exactly these scripts, by their hashes, and connect to this server alone.
"""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

STYLE = "style.css"
VENDORED = ("vendor/markdown-it.umd.min.js", "vendor/purify.min.js", "vendor/highlight.min.js")
"""Published libraries, byte for byte; `vendor/vendor.json` has their versions, licences and checksums."""
SCRIPTS = ("markdown.js", "store.js", "api.js", "view.js", "main.js")
"""Ours. All are concatenated in this order, in one scope."""
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)


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
            # One library alone may make HTML of a text, and it removes what could run.
            "require-trusted-types-for 'script'",
            "trusted-types dompurify",
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
    libraries = "\n".join(_SOURCE_MAP.sub("", _part(name)) for name in VENDORED)
    own = "\n".join(_part(name) for name in SCRIPTS)
    # `<!--` would change how the rest of an inline script is read; in a string or a pattern, \x3C means the same.
    return f'"use strict";\n{libraries}\n{own}'.replace("<!--", "\\x3C!--")


def _part(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

"""The page at `/`: one HTML document with its own style and scripts, which loads nothing from other hosts.

Its parts are separate files of this package and are assembled once. The content security policy that is sent with it
allows the browser to run only these scripts, identified by their hashes, and to connect only to this server.
"""

import base64
import hashlib
import re
from functools import cache
from importlib import resources

STYLE = "style.css"
VENDORED = ("vendor/markdown-it.umd.min.js", "vendor/purify.min.js", "vendor/highlight.min.js")
"""Third-party libraries, unmodified; `vendor/vendor.json` has their versions, licenses and checksums."""
SCRIPTS = ("markdown.js", "store.js", "api.js", "view.js", "main.js")
"""Our own scripts. All are concatenated in this order, in one scope."""
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)


@cache
def page_html() -> str:
    """Return the whole document."""
    return _part("index.html").replace("/*style*/", _style()).replace("/*script*/", _script())


@cache
def page_etag() -> str:
    """Return the document's validator: a browser that has this version is answered without the document."""
    return f'"{hashlib.sha256(page_html().encode()).hexdigest()[:32]}"'


@cache
def content_security_policy() -> str:
    """Return the policy: run our scripts, use our style, connect to this server, and nothing else."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(_script())}'",
            f"style-src '{_hash(_style())}'",
            # Only one library may create HTML from text, and it removes anything executable.
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

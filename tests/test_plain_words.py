"""The private dialect of earlier versions occurs nowhere: the field's words are used instead."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIALECT = {
    r"occupant": "cache entry",
    r"\bslabs?\b": "cache block",
    r"warmth": "temperature",
    r"_untold|\bgone on with\b|what becomes of|whole or absent": "plain verbs; complete or absent",
    r"\b(wake|woken)\b|reread": "reuse, re-prefill",
    r"\btheirs\b": "hf, file, the other",
    r"\bbeside\b": "next to, in addition to",
    r"\bkin\b": "related, similar",
    r"\bahead_fns|trains_ahead": "mtp_head_fns, trains_mtp",
    r"\bthe house('s)?\b|\b(lower|higher|upper|ground|two) (room|floor)s?\b": "the project, package, layer",
    r"\blikeliest\b|\banew\b": "most likely, again",
    r"^\s{4,}\w+: (Of|Whose) ": "a noun phrase that stands alone, as the description of an argument",
    r"\bshall\b": "should, must",
    r"\bwhoever\b": "code that, a user who",
    r"\b(go|goes|going) on (with|from|training|where)\b": "continue, resume",
}
FILES = [
    path
    for folder in ("lit_gpt", "configs", "docs", "notebooks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".yaml", ".yml", ".md", ".html", ".css", ".js", ".ipynb"} and "vendor" not in path.parts
] + [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml")]


def test_the_dialect_is_gone():
    found = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            for pattern, instead in DIALECT.items():
                if re.search(pattern, line, re.IGNORECASE):
                    found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()} (instead: {instead})")
    assert not found, "\n".join(found)


def test_files_are_looked_at():
    assert len(FILES) > 300

"""The blocks of the documentation's pages.

A fenced block may have a title (`title="my.yaml"`), under which it is saved for the commands that follow, and a comment
`<!-- needs: gpu -->` before it, which says why it is not run here: gpu, network, browser, terminal, server or time.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
NEEDS = {"gpu", "network", "browser", "terminal", "server", "time"}
_BLOCK = re.compile(
    r'(?:<!-- needs: (\w+) -->\n)?^```(\w+)(?: title="([^"]+)"| start)?\n(.*?)^```', re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    title: str = ""
    needs: str = ""

    @property
    def commands(self) -> list[str]:
        """The shell commands of the block, continued lines joined, comments dropped."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: Path) -> list[Block]:
    return [
        Block(language, text, title or "", needs or "")
        for needs, language, title, text in _BLOCK.findall(page.read_text(encoding="utf-8"))
    ]

"""Render windows for a terminal: a heading for each document and its text below, in color if supported."""

import shutil
from collections.abc import Iterator

from lit_gpt.data.inspection.view import Report, Token, Window
from lit_gpt.data.provenance import Piece
from lit_gpt.pages.text import visible

_HUES = (36, 33, 35, 32, 34, 31)  # cyan, yellow, magenta, green, blue, red


class Style:
    """Applies escape sequences, or nothing.

    Args:
        colour: Whether to use color.
    """

    def __init__(self, colour: bool) -> None:
        self.colour = colour

    def __call__(self, text: str, *codes: int) -> str:
        """Return the text with these codes (SGR parameters) applied."""
        if not self.colour or not text:
            return text
        return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m"


def render(report: Report, colour: bool, width: int | None = None) -> str:
    """Return the report as text.

    Args:
        report: Report to show.
        colour: Whether to use colors; without them, tokens without a loss are enclosed in ⟦⟧.
        width: Width in columns; None queries the terminal.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 120)
    style = Style(colour)
    lines = [style(report.title, 1)]
    for name, value in [*report.facts, *report.totals(), ("windows by corpus", report.corpora())]:
        if value:
            lines.append(f"  {style(name.ljust(20), 2)} {visible(value)}")
    not_learned = style("text", 2, 9) if colour else "⟦text⟧"
    head = style("reading it".ljust(20), 2)
    lines.append(f"  {head} ■ special token (stop), {not_learned}: not learned, ⏎ line end")
    for number, window in enumerate(report.shown):
        lines += ["", *_window(number, window, style, width)]
    if report.num_hidden:
        lines.append(f"\n… and {report.num_hidden} more windows of the step (--num_windows shows more)")
    return "\n".join([*lines, *report.notes])


def _window(number: int, window: Window, style: Style, width: int) -> Iterator[str]:
    parts = [f"window {number}"]
    parts += [window.name] if window.name else []
    parts += [f"sample {window.sample:,}"] if window.sample is not None else []
    parts += [window.corpus] if window.corpus else []
    parts.append(f"{window.length:,} positions")
    parts.append(f"{window.num_learned:,} learned" if window.has_labels else "no labels")
    parts += [f"{window.num_padding:,} padding"] if window.num_padding else []
    head = "━━ " + " · ".join(parts) + " "
    yield style(head + "━" * max(0, width - len(head)), 1)
    for surprise in window.surprises:
        yield style(f"   ! {surprise}", 31, 1)
    by_document: dict[int, list[Token]] = {}
    for token in window.tokens:
        by_document.setdefault(token.document, []).append(token)
    for position, tokens in enumerate(by_document.values()):
        hue = _HUES[position % len(_HUES)]
        first, last = tokens[0].index, tokens[-1].index + 1
        pieces = [piece for piece in window.pieces if piece.begin < last and piece.end > first]
        if window.isolated:
            pieces = pieces[:1]  # the last target opens the next document
        yield style(f" ▌ tokens {first}-{last - 1}", hue, 1) + style(_positions(tokens), 2)
        for piece in pieces:
            yield style(" ▌ ", hue) + style(piece_line(piece), 2)
        for line in _text(tokens, style, width - 3):
            yield style(" ▌ ", hue) + line
    yield style(" ▌ attention: ", 2) + _attention(window)
    if window.num_padding:
        yield style(f" ▌ {window.num_padding} positions of padding", 2)


def piece_line(piece: Piece) -> str:
    """Return a one-line description of a piece: source, hash, and its range in the document."""
    end = piece.offset + piece.end - piece.begin
    whole = f" of {piece.num_tokens}" if piece.num_tokens else ""
    corpus = f"{piece.corpus} · " if piece.corpus else ""
    return f"{corpus}{visible(piece.where)} · sha256 {piece.sha256[:12]}… · its tokens {piece.offset}-{end - 1}{whole}"


def _positions(tokens: list[Token]) -> str:
    known = [token.position for token in tokens if token.position is not None]
    return f"  positions {known[0]}-{known[-1]}" if known else "  only predicted"


def _text(tokens: list[Token], style: Style, width: int) -> Iterator[str]:
    """Yield the text in lines of at most `width` columns, styled token by token."""
    line, column, open_mark = "", 0, False
    for token in tokens:
        learned = token.learned
        shown = f"■{token.text}" if token.special else visible(token.text, keep="\n")
        codes = (7,) if token.special else () if learned else (2, 9)
        mark = not style.colour and not learned
        if mark and not open_mark:
            shown = "⟦" + shown
        elif open_mark and not mark:
            shown = "⟧" + shown
        open_mark = mark
        for part in _parts(shown):
            if part == "\n":
                yield line + style("⏎", 2)
                line, column = "", 0
                continue
            while column + len(part) > width:
                cut = width - column
                yield line + style(part[:cut], *codes)
                line, column, part = "", 0, part[cut:]
            line += style(part, *codes)
            column += len(part)
    if line or open_mark:
        yield line + ("⟧" if open_mark else "")


def _parts(text: str) -> Iterator[str]:
    for number, part in enumerate(text.split("\n")):
        if number:
            yield "\n"
        if part:
            yield part


def _attention(window: Window) -> str:
    if not window.isolated:
        return "causal over the whole window; documents see those before them"
    blocks = ", ".join(f"{first}-{end - 1}" for first, end in window.blocks)
    return f"causal within {blocks}; nothing across" if len(window.blocks) > 1 else f"causal within {blocks}"


def trace_table(report: Report, colour: bool) -> str:
    """Return a line for each document of each window of a step.

    Args:
        report: Report with all windows of the step.
        colour: Whether to use colors.
    """
    style = Style(colour)
    lines = [style(f"optimizer step {report.step:,}: {len(report.windows):,} windows", 1)]
    lines.append(style("sample  window tokens  sha256            document's tokens  document", 2))
    for window in report.windows:
        sample = "-" if window.sample is None else str(window.sample)
        for piece in window.pieces:
            here = f"{piece.begin}-{piece.end - 1}"
            there = f"{piece.offset}-{piece.offset + piece.end - piece.begin - 1}"
            there += f"/{piece.num_tokens}" if piece.num_tokens else ""
            corpus = f"{piece.corpus}: " if piece.corpus else ""
            source = visible(piece.where)
            lines.append(f"{sample:>6}  {here:<13}  {piece.sha256[:16]}  {there:<17}  {corpus}{source}")
        if not window.pieces:
            lines.append(f"{sample:>6}  the DataModule cannot tell: it has no provenance()")
    return "\n".join(lines) + "\n"

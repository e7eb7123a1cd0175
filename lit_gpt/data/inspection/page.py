"""Windows as one HTML page that needs nothing from elsewhere: no script, no font, no image."""

from collections.abc import Iterator
from html import escape

from lit_gpt.data.inspection.escape import visible
from lit_gpt.data.inspection.report import Report
from lit_gpt.data.inspection.view import Token, Window
from lit_gpt.data.provenance import Piece

_HUES = (210, 28, 145, 275, 340, 180, 55, 0)

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #e3e7ee; --card: #fff; --page: #f5f7fa;
  --accent: #3157d5; --warn: #b42318; --light: 93%; --text: 30%; --deep: 45%; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #2b3242; --card: #171c27;
  --page: #0f131b; --accent: #8ea6ff; --warn: #ff8a80; --light: 20%; --text: 78%; --deep: 60%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 80px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; }
.lead { color: var(--soft); margin: 0 0 22px; max-width: 75ch; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(125px, 1fr)); gap: 10px; margin: 0 0 14px; }
.cards div, .facts, article, .legend { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.cards div { padding: 10px 13px; }
.cards b { display: block; font-size: 18px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.cards span, .facts dt, th { color: var(--soft); font-size: 12px; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; padding: 12px 16px; margin: 0 0 14px; }
.facts dt { padding-top: 2px; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.legend { padding: 10px 16px; margin: 0 0 26px; display: flex; flex-wrap: wrap; gap: 6px 22px; font-size: 13px;
  align-items: center; }
article { margin: 0 0 22px; padding: 16px 18px 12px; }
article header { display: flex; flex-wrap: wrap; gap: 4px 14px; align-items: baseline; margin-bottom: 12px; }
h2 { font-size: 16px; margin: 0; } header span { color: var(--soft); font-size: 13px; }
.chip { background: var(--accent); color: var(--card) !important; border-radius: 99px; padding: 0 10px; font-size: 12px;
  font-weight: 600; }
.body { display: grid; grid-template-columns: minmax(0, 1fr) 200px; gap: 20px; align-items: start; }
.text { font: 13px/1.75 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; tab-size: 4; max-height: 640px; overflow-y: auto; }
.t { background: hsl(var(--h) 75% var(--light)); border-right: 1px solid var(--card); border-radius: 2px;
  padding: 1px 0; }
.n { background: repeating-linear-gradient(135deg, transparent 0 4px, hsl(var(--h) 40% 50% / .18) 4px 5px);
  color: var(--soft); }
.stop { background: hsl(var(--h) 60% var(--deep)); color: var(--card); border-radius: 5px; padding: 1px 6px;
  font-weight: 600; font-size: 12px; }
.stop.n { background: none; color: var(--soft); border: 1px dashed var(--soft); }
.nl { color: var(--soft); opacity: .6; } .hex { font-size: 10px; opacity: .75; }
.next { outline: 1px dashed var(--soft); outline-offset: 1px; }
.doc { display: block; height: 0; border-top: 1px dashed hsl(var(--h) 50% var(--deep)); margin: 5px 0 3px; }
figure { margin: 0 0 14px; } figcaption { color: var(--soft); font-size: 12px; margin-top: 4px; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: 12px; font-size: 13px; }
th { text-align: left; font-weight: 500; } th, td { padding: 4px 12px 4px 0; border-top: 1px solid var(--line);
  vertical-align: top; } td { overflow-wrap: anywhere; } code { font: 12px ui-monospace, Menlo, Consolas, monospace; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 3px; vertical-align: -1px;
  background: hsl(var(--h) 60% var(--deep)); margin-right: 7px; }
.num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.warn { color: var(--warn); font-weight: 600; margin: 0 0 10px; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 820px) { .body { grid-template-columns: 1fr; } figure { max-width: 220px; } }
"""


def render(report: Report) -> str:
    """Returns the report as a whole HTML document."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(report.title)}</title><style>{_STYLE}</style></head><body><main>",
            f"<h1>{escape(report.title)}</h1>",
            '<p class="lead">Exactly what the model sees: the tokens that go in, which positions see each other, '
            "which tokens the loss teaches, and where every document came from.</p>",
            *_summary(report),
            *_legend(),
            *(part for number, window in enumerate(report.windows) for part in _window(number, window)),
            *_footer(report),
            "</main></body></html>\n",
        ]
    )


def _summary(report: Report) -> Iterator[str]:
    yield '<div class="cards">'
    for name, value in report.totals():
        yield f"<div><b>{_shown(value)}</b><span>{escape(name)}</span></div>"
    yield '</div><dl class="facts">'
    for name, value in [*report.facts, ("windows by corpus", report.corpora())]:
        if value:
            yield f"<dt>{escape(name)}</dt><dd>{_shown(value)}</dd>"
    yield "</dl>"


def _legend() -> Iterator[str]:
    hue = f"--h:{_HUES[0]}"
    yield f'<div class="legend" style="{hue}">'
    yield '<span><span class="t">learned</span> a target of the loss</span>'
    yield '<span><span class="t n">not learned</span> seen, but no target</span>'
    yield '<span><span class="stop">■ token</span> a special token: here a document ends and the next begins</span>'
    yield '<span><span class="t next">last</span> only predicted, not an input</span>'
    yield '<span><span class="t"><span class="hex">e6</span></span> a byte of a character that the next token '
    yield "completes</span><span>each colour is a document; point at a token for its number</span></div>"


def _window(number: int, window: Window) -> Iterator[str]:
    yield f'<article id="window-{number}"><header><h2>Window {number}</h2>'
    for chip in (window.name, window.corpus):
        if chip:
            yield f'<span class="chip">{_shown(chip)}</span>'
    facts = [f"sample {window.sample:,}"] if window.sample is not None else []
    facts.append(f"{window.length:,} positions")
    facts.append(f"{window.num_learned:,} learned" if window.has_labels else "no labels in this batch")
    if window.num_bytes is not None:
        facts.append(f"{window.num_bytes:,} bytes")
    if window.num_padding:
        facts.append(f"{window.num_padding:,} padding")
    facts.append(
        f"{len(window.blocks)} document{'s' * (len(window.blocks) != 1)}" if window.isolated else "no isolation"
    )
    yield "".join(f"<span>{fact}</span>" for fact in facts)
    yield "</header>"
    for surprise in window.surprises:
        yield f'<p class="warn">{escape(surprise)}</p>'
    yield '<div class="body"><div class="text">' + "".join(_tokens(window)) + "</div><div>"
    yield from _mask(window)
    yield from _loss(window)
    yield "</div></div>"
    if window.pieces:
        yield from _pieces(window)
    yield "</article>"


def _tokens(window: Window) -> Iterator[str]:
    document = window.tokens[0].document if window.tokens else 0
    for token in window.tokens:
        if token.document != document:
            document = token.document
            yield f'<span class="doc" style="--h:{_hue(document)}"></span>'
        yield _token(token)


def _token(token: Token) -> str:
    kinds = ["stop" if token.special else "t"]
    kinds += [] if token.learned else ["n"]
    kinds += ["next"] if token.position is None else []
    where = "only predicted" if token.position is None else f"position {token.position}"
    state = "learned" if token.learned else "not learned"
    about = f"token {token.index} · id {token.id} · {visible(token.text) or 'part of a character'} · {where} · {state}"
    if token.special:
        inner = "■ " + _shown(token.text)
    elif not token.text:
        inner = f'<span class="hex">{token.raw.hex()}</span>'
    else:
        inner = "".join(
            '<span class="nl">⏎</span>\n' if character == "\n" else escape(visible(character, keep="\t"))
            for character in token.text
        )
    return f'<span class="{" ".join(kinds)}" style="--h:{_hue(token.document)}" title="{escape(about)}">{inner}</span>'


def _mask(window: Window) -> Iterator[str]:
    """Draws who sees whom: a triangle for each document, queries downwards, keys to the right."""
    size = max(window.length, 1)
    yield f'<figure><svg viewBox="0 0 {size} {size}" role="img" aria-label="attention mask">'
    for place, (first, end) in enumerate(window.blocks):
        hue = _hue(place) if window.isolated else _HUES[0]
        yield f'<polygon points="{first},{first} {first},{end} {end},{end}" fill="hsl({hue} 60% 55%)"/>'
    yield "</svg><figcaption>Attention: each position (row) sees the columns in colour. "
    yield "Documents do not see each other." if window.isolated else "Documents see those before them."
    yield "</figcaption></figure>"


def _loss(window: Window) -> Iterator[str]:
    """Draws which tokens are learned, from left to right."""
    size = max(window.length + 1, 1)
    yield f'<figure><svg viewBox="0 0 {size} {size / 12:.2f}" preserveAspectRatio="none" role="img" '
    yield 'aria-label="loss mask">'
    run: list[Token] = []
    for token in [*window.tokens, None]:
        if token is not None and token.learned and (not run or run[-1].document == token.document):
            run.append(token)
            continue
        if run:
            width = run[-1].index + 1 - run[0].index
            fill = f"hsl({_hue(run[0].document)} 60% 55%)"
            yield f'<rect x="{run[0].index}" y="0" width="{width}" height="{size / 12:.2f}" fill="{fill}"/>'
        run = [token] if token is not None and token.learned else []
    yield f"</svg><figcaption>Loss: {window.num_learned:,} of {len(window.tokens):,} tokens are learned; "
    yield f"{window.num_stops} stop{'s' * (window.num_stops != 1)} among them.</figcaption></figure>"


def _pieces(window: Window) -> Iterator[str]:
    corpus = any(piece.corpus for piece in window.pieces)
    yield '<div class="scroll"><table><thead><tr>'
    yield "<th>document" + ("</th><th>corpus" if corpus else "") + "</th><th>SHA-256</th>"
    yield '<th class="num">tokens here</th><th class="num">tokens of the document</th></tr></thead><tbody>'
    for number, piece in enumerate(window.pieces):
        yield _piece(piece, number, corpus)
    yield "</tbody></table></div>"


def _piece(piece: Piece, number: int, corpus: bool) -> str:
    end = piece.offset + piece.end - piece.begin
    whole = f" of {piece.num_tokens:,}" if piece.num_tokens else ""
    name = f"<td>{_shown(piece.corpus)}</td>" if corpus else ""
    return (
        f'<tr><td style="--h:{_hue(number)}"><span class="swatch"></span>{_shown(piece.where)}</td>{name}'
        f'<td><code title="{piece.sha256}">{piece.sha256[:16]}…</code></td>'
        f'<td class="num">{piece.begin:,} - {piece.end - 1:,}</td>'
        f'<td class="num">{piece.offset:,} - {end - 1:,}{whole}</td></tr>'
    )


def _footer(report: Report) -> Iterator[str]:
    notes = list(report.notes)
    if report.num_hidden:
        notes.append(f"{report.num_hidden} more windows of the step are not shown (--num_windows shows more).")
    yield f"<footer>{'<br>'.join(map(escape, notes))}</footer>"


def _hue(document: int) -> int:
    return _HUES[document % len(_HUES)]


def _shown(text: str) -> str:
    return escape(visible(text))

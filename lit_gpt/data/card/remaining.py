"""The parts of the page about what is left: lengths, languages, sources and licences, tokens, unreadable input."""

from typing import Any

from lit_gpt.data.cache import human_bytes
from lit_gpt.data.card.charts import bars, count, curve, escape, histogram, kept_bars, legend, share
from lit_gpt.data.pipeline.sources.code import LANGUAGES

_SHOWN_LANGUAGES = 24


def lengths_section(card: dict[str, Any]) -> str:
    """Histogram of the documents' characters, before and after."""
    before, after = card["lengths"]["before"], card["lengths"]["after"]
    picture = histogram([("read", "--before", before), ("left", "--keep", after)], "characters")
    return legend(("--before", "as read"), ("--keep", "as left")) + picture


def _compared_bars(groups: dict[str, Any]) -> str:
    ranked = sorted(groups.items(), key=lambda item: (-max(item[1]["read"][1], item[1]["left"][1]), item[0]))
    rows = []
    for name, value in ranked[:_SHOWN_LANGUAGES]:
        read, left = max(value["read"][1], value["left"][1]), value["left"][1]
        rows.append((name, read, left, f"{value['left'][0]:,} docs · {human_bytes(left)}"))
    more = len(ranked) - _SHOWN_LANGUAGES
    tail = f'<p class="note">and {more} more, in card.json</p>' if more > 0 else ""
    return kept_bars(rows) + tail


def languages_section(card: dict[str, Any]) -> str:
    """Natural and programming languages, as found and as left."""
    if not card["languages"]:
        return (
            "<p>Not identified: the recipe has no <code>language</code> step, and the sources declare no language.</p>"
        )
    natural = {name: value for name, value in card["languages"].items() if name not in LANGUAGES}
    code = {name: value for name, value in card["languages"].items() if name in LANGUAGES}
    parts = legend(("--keep", "text left"), ("--drop", "text dropped or cut"))
    if natural:
        parts += _compared_bars(natural)
    if code:
        parts += ("<h3>Programming languages</h3>" if natural else "") + _compared_bars(code)
    return parts


def sources_section(card: dict[str, Any]) -> str:
    """Where the text comes from, with the licence as declared."""
    rows = []
    pictures = []
    for source in card["sources"]:
        read, left = source["read"], source["left"]
        described = source["described"]
        origin = described.get("path") or described.get("class_path") or described.get("from") or ""
        origin = ", ".join(map(str, origin)) if isinstance(origin, list) else str(origin)
        tokens = count(source["tokens"]) if source["tokens"] is not None else "-"
        rows.append(
            f'<tr><td class="words">{escape(source["name"])}</td>'
            f'<td class="words wide">{escape(described["kind"])}: <code>{escape(origin)}</code></td>'
            f'<td class="words">{escape(source.get("license", "not declared"))}</td>'
            f"<td>{read['documents']:,}</td><td>{left['documents']:,}</td><td>{human_bytes(left['bytes'])}</td>"
            f"<td>{tokens}</td></tr>"
        )
        kept = share(left["bytes"], read["bytes"])
        pictures.append((source["name"], max(read["bytes"], left["bytes"]), left["bytes"], f"{kept} kept"))
    table = (
        '<div class="scroll"><table><thead><tr><th>source</th><th class="words">what</th><th class="words">licence</th>'
        "<th>documents read</th><th>left</th><th>text left</th><th>tokens</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    picture = legend(("--keep", "text left"), ("--drop", "text dropped or cut")) + kept_bars(pictures)
    licences = ""
    if len(card["licenses"]) > 1:
        licences = "<h3>By licence</h3>" + bars(
            [
                (name, value["left"][1], f"{value['left'][0]:,} docs · {human_bytes(value['left'][1])}")
                for name, value in sorted(card["licenses"].items(), key=lambda item: (-item[1]["left"][1], item[0]))
            ]
        )
    note = '<p class="note">Licences are what the recipe declares; nobody has checked them.</p>'
    return picture + table + licences + note


def tokens_section(card: dict[str, Any]) -> str:
    """The token corpus: splits, lengths, use of the vocabulary."""
    tokens = card["tokens"]
    if not tokens:
        return "<p>Not tokenised: the recipe sets <code>tokenizer: null</code>.</p>"
    rows = "".join(
        f"<tr><td>{name}</td><td>{split['documents']:,}</td><td>{split['tokens']:,}</td>"
        f"<td>{human_bytes(split['bytes'])}</td></tr>"
        for name, split in tokens["splits"].items()
        if split["documents"]
    )
    table = (
        '<div class="scroll"><table><thead><tr><th>split</th><th>documents</th><th>tokens, separators included</th>'
        f"<th>text</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    unused = tokens["vocab_size"] - tokens["used"]
    vocabulary = (
        f"<p>{tokens['used']:,} of {tokens['vocab_size']:,} entries of the vocabulary occur "
        f"({share(unused, tokens['vocab_size'])} unused).</p>"
    )
    lengths = histogram([("documents", "--keep", tokens["lengths"])], "tokens")
    top = "".join(
        f"<span>{escape(text).replace(chr(10), '⏎').replace(chr(9), '⇥')}<small>{count(number)}</small></span>"
        for text, number in tokens["top"]
    )
    by_source = ""
    if len(tokens["by_source"]) > 1:
        ranked = sorted(tokens["by_source"].items(), key=lambda item: (-item[1][0], item[0]))
        by_source = "<h3>By source</h3>" + bars(
            [
                (name, number, f"{count(number)} · {size / max(number, 1):.2f} bytes each")
                for name, (number, size) in ranked
            ]
        )
    occurrences = curve(tokens["curve"], "rank of the token", "occurrences")
    return (
        f'{table}{by_source}<div class="pair"><div><h3>Documents by tokens</h3>{lengths}</div>'
        f"<div><h3>How often the tokens occur</h3>{occurrences}</div></div>"
        f'{vocabulary}<h3>Most frequent tokens</h3><div class="tokens">{top}</div>'
    )


def bad_input_section(card: dict[str, Any]) -> str:
    """What could not be read, by name."""
    bad = card["bad_input"]
    if not bad["num_skipped"]:
        return ""
    items = "\n".join(bad["named"])
    more = bad["num_skipped"] - len(bad["named"])
    tail = f"<p class='note'>and {more:,} more</p>" if more else ""
    return f"<p>{bad['num_skipped']:,} files or rows were skipped:</p><pre>{escape(items)}</pre>{tail}"

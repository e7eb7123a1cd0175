"""The parts of the page about what went: steps, reasons with examples, duplicates, personal data."""

from typing import Any

from lit_gpt.data.cache import human_bytes
from lit_gpt.data.card.charts import bars, count, counted, escape, legend, share, stacked_bar

_SHOWN_CLUSTERS = 6
_SIZES_SHOWN = 10


def steps_section(card: dict[str, Any]) -> str:
    """Documents and bytes in and out of each step."""
    whole = card["read"]["bytes"]
    rows = []
    for step in card["steps"]:
        dropped_documents = step["documents_in"] - step["documents_out"]
        dropped_bytes = sum(size for _, size in step["rejected"].values())
        cut = max(step["bytes_in"] - dropped_bytes - step["bytes_out"], 0)
        bar = stacked_bar(
            [
                (step["bytes_in"] - dropped_bytes - cut, "--keep", f"left: {human_bytes(step['bytes_out'])}"),
                (cut, "--before", f"cut out of kept documents: {human_bytes(cut)}"),
                (dropped_bytes, "--drop", f"in dropped documents: {human_bytes(dropped_bytes)}"),
            ],
            whole,
        )
        rows.append(
            f'<tr><td class="words">{escape(step["name"])}</td><td class="picture">{bar}</td>'
            f"<td>{step['documents_in']:,}</td><td>{step['documents_out']:,}</td>"
            f"<td>{_number(dropped_documents)}</td>"
            f"<td>{_number(step['edited'])}</td>"
            f"<td>{human_bytes(step['bytes_in'])}</td><td>{human_bytes(step['bytes_out'])}</td></tr>"
        )
    table = (
        '<div class="scroll"><table><thead><tr><th>step</th><th class="words">text, of all that was read</th>'
        "<th>documents in</th><th>out</th><th>dropped</th><th>edited</th><th>bytes in</th><th>out</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    colours = legend(
        ("--keep", "left"), ("--before", "cut out of documents that stay"), ("--drop", "in dropped documents")
    )
    return colours + table + _other_counts(card)


def _number(value: int) -> str:
    return f"{value:,}" if value else "-"


def _other_counts(card: dict[str, Any]) -> str:
    """What steps counted in the documents that they kept (personal data has its own part)."""
    shown = [step for step in card["steps"] if step["counts"] and step["name"] != "pii"]
    if not shown:
        return ""
    body = ""
    for step in shown:
        rows = [(kind.replace("_", " "), number, f"{number:,}") for kind, number in _ranked(step["counts"])]
        body += f"<div><h3>{escape(step['name'])}: what it did to texts</h3>{bars(rows)}</div>"
    return f'<div class="pair">{body}</div>'


def _ranked(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def reasons_section(card: dict[str, Any]) -> str:
    """Reasons of each step, and ten examples of each."""
    parts = []
    for step in card["steps"]:
        if not step["rejected"]:
            continue
        reasons = sorted(step["rejected"].items(), key=lambda item: (-item[1][0], item[0]))
        most = max(documents for _, (documents, _) in reasons)
        dropped = sum(documents for _, (documents, _) in reasons)
        parts.append(
            f"<h3>{escape(step['name'])}</h3><p class='note'>{dropped:,} of "
            f"{counted(step['documents_in'], 'document')} ({share(dropped, step['documents_in'])})</p>"
        )
        for reason, (documents, size) in reasons:
            words = f"{documents:,} · {human_bytes(size)}"
            row = (
                f'<span class="row"><span class="name">{escape(reason.replace("_", " "))}</span>'
                f'{stacked_bar([(documents, "--drop", words)], most)}<span class="value">{escape(words)}</span></span>'
            )
            examples = "".join(_example(example) for example in step["examples"].get(reason, []))
            parts.append(f"<details><summary>{row}</summary>{examples}</details>")
    if not parts:
        return "<p>No document was dropped.</p>"
    return (
        '<p class="note">Open a reason for up to ten of its documents, an even sample by hash; long texts are shown '
        f"by their beginning and end.</p>{''.join(parts)}"
    )


def _example(example: dict[str, Any]) -> str:
    why = f'<div class="why">{escape(example["detail"])}</div>' if example["detail"] else ""
    kept = f'<div class="why">kept instead: <code>{escape(example["kept"])}</code></div>' if "kept" in example else ""
    text = f'<pre dir="auto">{escape(example["text"])}</pre>' if example["text"] else ""
    return f'<div class="example"><div class="id">{escape(example["id"])}</div>{why}{kept}{text}</div>'


def duplicates_section(card: dict[str, Any]) -> str:
    """Clusters of duplicates: how many, how large, and what the largest look like."""
    parts = []
    for step in card["steps"]:
        if not step["num_clusters"] and not step["clusters"]:
            continue
        dropped = step["documents_in"] - step["documents_out"]
        parts.append(
            f"<h3>{escape(step['name'])}</h3><p class='note'>{counted(step['num_clusters'], 'cluster')}; of "
            f"each one document stays, {dropped:,} ({share(dropped, step['documents_in'])}) went.</p>"
        )
        sizes = sorted(
            ((int(size), number) for size, number in step["cluster_sizes"].items()), key=lambda item: item[0]
        )
        if sizes:
            rows = [(f"{size:,} alike", number, f"{number:,}") for size, number in sizes[:_SIZES_SHOWN]]
            rest = sizes[_SIZES_SHOWN:]
            if rest:
                number = sum(number for _, number in rest)
                rows.append((f"{rest[0][0]:,} to {rest[-1][0]:,} alike", number, f"{number:,}"))
            parts.append(bars(rows, "--drop"))
        for cluster in step["clusters"][:_SHOWN_CLUSTERS]:
            members = "".join(_member(member) for member in cluster["members"])
            size = counted(cluster["size"], "document") if cluster["size"] else "documents alike"
            parts.append(
                f"<details><summary>{size}, of which stays <code>{escape(cluster['kept'] or '')}</code></summary>"
                f"{members}</details>"
            )
    return "".join(parts)


def _member(member: dict[str, Any]) -> str:
    kind = "kept" if member["kept"] else "dropped"
    return (
        f'<div class="example {kind}"><div class="id">{kind}: {escape(member["id"])}</div>'
        f'<pre dir="auto">{escape(member["text"])}</pre></div>'
    )


def personal_section(card: dict[str, Any]) -> str:
    """Personal data by kind."""
    parts = ""
    for step in card["steps"]:
        if step["name"] != "pii":
            continue
        rows = [(kind.replace("_", " "), number, f"{number:,}") for kind, number in _ranked(step["counts"])]
        dropped = sum(documents for documents, _ in step["rejected"].values())
        if rows:
            total = sum(number for _, number, _ in rows)
            where = counted(step["edited"], "document")
            parts += f"<p class='note'>{count(total)} found in {where} and replaced, by kind:</p>"
            parts += bars(rows)
        else:
            parts += "<p>None was found in the documents that stay.</p>"
        if dropped:
            parts += f"<p>Dropped for what they hold: {counted(dropped, 'document')}; see the reasons above.</p>"
    return parts

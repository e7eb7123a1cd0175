"""Data card of a prepared corpus: what was read, what was dropped and why, and what the corpus contains.

The numbers come first (`card.json`, from the reports of the transforms and one pass over the token shards), then the
page that displays them (`card.html`, rendered only from that JSON). Neither depends on when, where or with how many
workers the corpus was made: the same corpus always has the same card.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.data.cache import write_atomic, write_json
from lit_gpt.data.pipeline.recipe import Recipe
from lit_gpt.data.pipeline.sources.code import LANGUAGES
from lit_gpt.data.records import SPLITS
from lit_gpt.data.shards import DOCUMENT, TokenCorpus
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.pages import render_page
from lit_gpt.pages.text import abbreviated, human_bytes

FORMAT = "lit_gpt.card"
FORMAT_VERSION = 1
_CHUNK_TOKENS = 1 << 22
_CURVE_POINTS = 60
_TOP_TOKENS = 24
_SHOWN_LANGUAGES = 24
_SHOWN_CLUSTER_SIZES = 10
_SECTIONS = {
    "steps": "What each step did",
    "reasons": "Why documents were dropped",
    "duplicates": "Duplicates",
    "personal": "Personal data and secrets",
    "lengths": "Length of the documents",
    "languages": "Languages",
    "sources": "Sources and licenses",
    "tokens": "Tokens",
    "input": "Input that could not be read",
    "recipe": "Recipe",
}


def write_card(out: Path, recipe: Recipe, key: str) -> None:
    """Write `card.html` and `card.json` of a prepared corpus.

    The page is written first: a corpus with a `card.json` is complete.

    Args:
        out: Folder of the corpus.
        recipe: Recipe of the corpus.
        key: Hash of recipe and input.
    """
    card = collect_card(out, recipe, key)
    write_atomic(out / "card.html", card_page(card).encode())
    write_json(out / "card.json", card)


# ---- the numbers ----------------------------------------------------------------------------------------------------


def collect_card(out: Path, recipe: Recipe, key: str) -> dict[str, Any]:
    """Return the numbers of the card: `read` counts the input, `left` the documents that all transforms kept.

    Args:
        out: Folder of the prepared corpus; `steps/` and `tokens/` are read.
        recipe: Recipe of the corpus.
        key: Hash of recipe and input.
    """
    reports = [json.loads(path.read_bytes()) for path in sorted((out / "steps").glob("[0-9]*.json"))]
    first, last = reports[0], reports[-1]
    tokens = None
    if (out / "tokens").exists():
        one = len(recipe.sources) == 1
        source_of = {"" if one else f"{source.name}/": source.name for source in recipe.sources}
        tokens = token_statistics(TokenCorpus(out / "tokens"), load_tokenizer(out / "tokenizer"), source_of)
    personal_data = {spec.index for spec in recipe.transforms if spec.target.removes_personal_data}
    identifying = {spec.index for spec in recipe.transforms if spec.target.identifies_language}
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "key": key,
        "name": out.resolve().name,
        "read": {"documents": first["documents_in"], "bytes": first["bytes_in"]},
        "left": {"documents": last["out"]["documents"], "bytes": last["out"]["bytes"]},
        "lengths": {"before": first["out"]["lengths"], "after": last["out"]["lengths"]},
        "sources": [_source(named, first, last, tokens) for named in recipe.sources],
        "licenses": _compared(first, last, "license"),
        "languages": _languages(reports, identifying),
        "bad_input": first["bad_input"],
        "steps": [_step(report, report["index"] in personal_data) for report in reports],
        "tokens": tokens,
        "recipe": recipe.written,
    }


def _source(named: Any, first: dict[str, Any], last: dict[str, Any], tokens: dict[str, Any] | None) -> dict[str, Any]:
    read = first["out"]["groups"].get("source", {}).get(named.name, [0, 0])
    left = last["out"]["groups"].get("source", {}).get(named.name, [0, 0])
    return {
        "name": named.name,
        **named.metadata,
        "described": named.source.describe(),
        "read": {"documents": read[0], "bytes": read[1]},
        "left": {"documents": left[0], "bytes": left[1]},
        "tokens": tokens["by_source"].get(named.name, [0, 0])[0] if tokens else None,
    }


def _compared(first: dict[str, Any], last: dict[str, Any], kind: str) -> dict[str, Any]:
    before, after = (report["out"]["groups"].get(kind, {}) for report in (first, last))
    return {
        value: {"read": before.get(value, [0, 0]), "left": after.get(value, [0, 0])}
        for value in sorted({*before, *after})
    }


def _languages(reports: list[dict[str, Any]], identifying: set[int]) -> dict[str, Any]:
    """Return documents and bytes per language, at the first transform that reports languages and at the end.

    Args:
        reports: The merged reports of the transforms, in order.
        identifying: Indices of the transforms that identify languages; the first of them is used if there is one.
    """
    left = reports[-1]["out"]["groups"].get("language", {})
    found: dict[str, list[int]] = {}
    for report in reports:
        kept = report["out"]["groups"].get("language", {})
        if kept or report["rejected_languages"]:
            for groups in (kept, report["rejected_languages"]):
                for language, (documents, size) in groups.items():
                    entry = found.setdefault(language, [0, 0])
                    entry[0] += documents
                    entry[1] += size
            if report["index"] in identifying or not identifying:
                break
            found = {}
    return {
        value: {"read": found.get(value, [0, 0]), "left": left.get(value, [0, 0])} for value in sorted({*found, *left})
    }


def _step(report: dict[str, Any], personal_data: bool) -> dict[str, Any]:
    """Return the report of a transform without the fields that only merging needs."""
    examples = {
        reason: [_without_key(example) for example in examples] for reason, examples in report["examples"].items()
    }
    clusters = [
        cluster | {"members": [_without_key(member) for member in cluster["members"]]}
        for cluster in report["clusters"].values()
    ]
    return {
        "name": report["name"],
        "personal_data": personal_data,
        "documents_in": report["documents_in"],
        "bytes_in": report["bytes_in"],
        "documents_out": report["out"]["documents"],
        "bytes_out": report["out"]["bytes"],
        "edited": report["edited"],
        "split": report["split"],
        "counts": report["counts"],
        "rejected": report["rejected"],
        "examples": examples,
        "num_clusters": report["num_clusters"],
        "cluster_sizes": report["cluster_sizes"],
        "clusters": clusters,
    }


def _without_key(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if name != "key"}


def token_statistics(corpus: TokenCorpus, tokenizer: Tokenizer, source_of: dict[str, str]) -> dict[str, Any]:
    """Compute statistics of a corpus in one pass over its shards, a few megabytes at a time.

    Args:
        corpus: The corpus.
        tokenizer: Its tokenizer, which decodes tokens for display.
        source_of: Map from prefixes of the source names in the shards to sources of the recipe; "" matches every name.

    Returns:
        JSON values: splits, bytes per token, document lengths in tokens by their bit length, vocabulary use, token
        frequencies by rank, the most frequent tokens, and tokens by source.
    """
    counts = np.zeros(corpus.vocab_size, dtype=np.int64)
    lengths = np.zeros(64, dtype=np.int64)
    splits: dict[str, Any] = {}
    by_source: dict[str, list[int]] = {}
    for name in SPLITS:
        split = corpus.split(name)
        splits[name] = {"documents": split.num_documents, "tokens": split.num_tokens, "bytes": split.num_bytes}
        owners = _owners(split.source_names, source_of)
        for shard in split.shards:
            _count_tokens(corpus.path / shard.tokens, split.dtype, counts)
            records = np.memmap(corpus.path / shard.documents, dtype=DOCUMENT, mode="r")
            offsets = records["offset"].astype(np.int64)
            tokens = np.diff(offsets, append=shard.num_tokens) - 1
            lengths += np.bincount(_num_bits(tokens), minlength=64)
            per_source = np.bincount(records["source"], weights=tokens, minlength=len(owners))
            size_of_source = np.bincount(records["source"], weights=records["num_bytes"], minlength=len(owners))
            for owner, num_tokens, size in zip(owners, per_source, size_of_source, strict=True):
                entry = by_source.setdefault(owner, [0, 0])
                entry[0] += int(num_tokens)
                entry[1] += int(size)
    num_documents = sum(split["documents"] for split in splits.values())
    text_tokens = int(counts.sum()) - num_documents  # one separator per document
    num_bytes = sum(split["bytes"] for split in splits.values())
    counts[corpus.separator_id] -= num_documents
    order = np.argsort(-counts, kind="stable")
    used = int((counts > 0).sum())
    ranks = np.unique(np.geomspace(1, max(used, 1), _CURVE_POINTS).astype(int))
    return {
        "splits": splits,
        "vocab_size": corpus.vocab_size,
        "used": used,
        "text_tokens": text_tokens,
        "bytes_per_token": num_bytes / max(text_tokens, 1),
        "lengths": {str(bits): int(count) for bits, count in enumerate(lengths) if count},
        "curve": [[int(rank), int(counts[order[rank - 1]])] for rank in ranks if used],
        "top": [[tokenizer.decode([index]), int(counts[index])] for index in order[:_TOP_TOKENS] if counts[index]],
        "by_source": {name: by_source[name] for name in sorted(by_source) if by_source[name][0]},
        "tokenizer": corpus.manifest["tokenizer"],
        "fingerprint": corpus.fingerprint,
    }


def _owners(names: list[str], source_of: dict[str, str]) -> list[str]:
    prefixes = sorted(source_of, key=len, reverse=True)
    return [next((source_of[p] for p in prefixes if name.startswith(p)), "unknown") for name in names]


def _count_tokens(path: Path, dtype: np.dtype[Any], counts: np.ndarray) -> None:
    with open(path, "rb") as file:
        while len(chunk := np.fromfile(file, dtype=dtype, count=_CHUNK_TOKENS)):
            counts += np.bincount(chunk, minlength=len(counts))


def _num_bits(values: np.ndarray) -> np.ndarray:
    """Return the bit length of each value: (n,) int64, exact below 2^53."""
    return np.where(values > 0, np.frexp(values.astype(np.float64))[1], 0).astype(np.int64)


# ---- the page -------------------------------------------------------------------------------------------------------


def card_page(card: dict[str, Any]) -> str:
    """Return the card as an HTML page.

    Args:
        card: Result of `collect_card`.
    """
    absent = set()
    if not any(step["num_clusters"] or step["clusters"] for step in card["steps"]):
        absent.add("duplicates")
    if not any(step["personal_data"] for step in card["steps"]):
        absent.add("personal")
    if not card["bad_input"]["num_skipped"]:
        absent.add("input")
    return render_page(
        "data_card.html",
        card=card,
        titles=_SECTIONS,
        sections=[(anchor, title) for anchor, title in _SECTIONS.items() if anchor not in absent],
        by_documents=_by_documents,
        by_text_left=_by_text_left,
        cluster_sizes=_cluster_sizes,
        compare=_compare,
        origin=_origin,
        rank=_rank,
        split_languages=_split_languages,
        tokens_by_source=_tokens_by_source,
    )


def _rank(counts: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Return bars of counts, largest first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [(kind.replace("_", " "), number, f"{number:,}") for kind, number in ranked]


def _by_documents(rejected: Mapping[str, list[int]]) -> list[tuple[str, int, int]]:
    """Return (reason, documents, bytes), most documents first."""
    ranked = sorted(rejected.items(), key=lambda item: (-item[1][0], item[0]))
    return [(reason, documents, size) for reason, (documents, size) in ranked]


def _cluster_sizes(sizes: Mapping[str, int]) -> list[tuple[str, int, str]]:
    """Return bars of the number of clusters by cluster size; the largest sizes share one bar."""
    ordered = sorted((int(size), number) for size, number in sizes.items())
    rows = [(f"{size:,} alike", number, f"{number:,}") for size, number in ordered[:_SHOWN_CLUSTER_SIZES]]
    if rest := ordered[_SHOWN_CLUSTER_SIZES:]:
        number = sum(number for _, number in rest)
        rows.append((f"{rest[0][0]:,} to {rest[-1][0]:,} alike", number, f"{number:,}"))
    return rows


def _compare(groups: Mapping[str, Any]) -> tuple[list[tuple[str, int, int, str]], int]:
    """Return bars of the text read and kept per group, largest first, and the number of groups not shown."""
    ranked = sorted(groups.items(), key=lambda item: (-max(item[1]["read"][1], item[1]["left"][1]), item[0]))
    rows = []
    for name, value in ranked[:_SHOWN_LANGUAGES]:
        documents, left = value["left"]
        rows.append((name, max(value["read"][1], left), left, f"{documents:,} docs · {human_bytes(left)}"))
    return rows, max(len(ranked) - _SHOWN_LANGUAGES, 0)


def _split_languages(languages: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return natural languages and programming languages as two separate mappings."""
    natural = {name: value for name, value in languages.items() if name not in LANGUAGES}
    return natural, {name: value for name, value in languages.items() if name in LANGUAGES}


def _by_text_left(groups: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    ranked = sorted(groups.items(), key=lambda item: (-item[1]["left"][1], item[0]))
    return [
        (name, value["left"][1], f"{value['left'][0]:,} docs · {human_bytes(value['left'][1])}")
        for name, value in ranked
    ]


def _tokens_by_source(sources: Mapping[str, list[int]]) -> list[tuple[str, int, str]]:
    ranked = sorted(sources.items(), key=lambda item: (-item[1][0], item[0]))
    return [
        (name, number, f"{abbreviated(number)} · {size / max(number, 1):.2f} bytes each")
        for name, (number, size) in ranked
    ]


def _origin(described: Mapping[str, Any]) -> str:
    """Return a description of where a source reads from."""
    origin = described.get("path") or described.get("class_path") or described.get("name") or ""
    return ", ".join(map(str, origin)) if isinstance(origin, list) else str(origin)

"""The numbers of the card: the steps' reports and the token corpus, put together into one JSON value.

Nothing in it depends on when, where or with how many workers the corpus was made: the same corpus has the same card.
"""

import json
from pathlib import Path
from typing import Any

from lit_gpt.data.card.token_stats import token_statistics
from lit_gpt.data.pipeline.recipe import Recipe
from lit_gpt.data.shards import TokenCorpus
from lit_gpt.data.tokenizers import load_tokenizer

FORMAT = "lit_gpt.card"
FORMAT_VERSION = 1


def collect_card(out: Path, recipe: Recipe, key: str) -> dict[str, Any]:
    """Returns the card's numbers.

    Args:
        out: Folder of the prepared corpus: its `steps/` and `tokens/` are read.
        recipe: What made it.
        key: Its key.
    """
    reports = [json.loads(path.read_bytes()) for path in sorted((out / "steps").glob("[0-9]*.json"))]
    first, last = reports[0], reports[-1]
    tokens = None
    if (out / "tokens").exists():
        one = len(recipe.sources) == 1
        source_of = {"" if one else f"{source.name}/": source.name for source in recipe.sources}
        tokens = token_statistics(TokenCorpus(out / "tokens"), load_tokenizer(out / "tokenizer"), source_of)
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
        "languages": _languages(reports),
        "bad_input": first["bad_input"],
        "steps": [_step(report) for report in reports],
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


def _languages(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns documents and bytes by language: as found by the first step that knows it, and as left."""
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
            identified = any(report["name"] == "language" for report in reports)
            if report["name"] == "language" or not identified:
                break
            found = {}
    return {
        value: {"read": found.get(value, [0, 0]), "left": left.get(value, [0, 0])} for value in sorted({*found, *left})
    }


def _step(report: dict[str, Any]) -> dict[str, Any]:
    """Returns a step's report without what only merging needs."""
    examples = {
        reason: [_without_key(example) for example in examples] for reason, examples in report["examples"].items()
    }
    clusters = [
        cluster | {"members": [_without_key(member) for member in cluster["members"]]}
        for cluster in report["clusters"].values()
    ]
    return {
        "name": report["name"],
        "documents_in": report["documents_in"],
        "bytes_in": report["bytes_in"],
        "documents_out": report["out"]["documents"],
        "bytes_out": report["out"]["bytes"],
        "edited": report["edited"],
        "counts": report["counts"],
        "rejected": report["rejected"],
        "examples": examples,
        "num_clusters": report["num_clusters"],
        "cluster_sizes": report["cluster_sizes"],
        "clusters": clusters,
    }


def _without_key(shown: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shown.items() if name != "key"}

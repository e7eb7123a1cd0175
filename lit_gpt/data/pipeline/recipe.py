"""The recipe: what the YAML of `prepare` says, checked before any work starts."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from lit_gpt.data.bpe import check_vocab_size, train_bpe
from lit_gpt.data.documents import BadInput, OnBadInput
from lit_gpt.data.hub import HubDataset
from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.data.pipeline.parts import NamedSource, Plan
from lit_gpt.data.pipeline.registry import StepSpec, build_step, check_steps, step_class
from lit_gpt.data.pipeline.sources import KINDS
from lit_gpt.data.pipeline.sources.hub import HubParts
from lit_gpt.data.split import check_fractions
from lit_gpt.data.tokenizers import is_local_tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json
from lit_gpt.instantiate import construct, import_object, parameters
from lit_gpt.suggest import unknown_name

FORMAT_VERSION = 1
DECLARED = ("name", "license", "language")
"""What any source may declare about itself; the last two go along with each document."""

_NOT_TRAINED_WITH = ("texts", "show_progress")
DEFAULT_VOCAB_SIZE = 16_384


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        out: Folder of the prepared corpus.
        sources: Where the documents come from, in order.
        steps: What happens to them, in order.
        tokenizer: None (stop at text), the path or name of one, or the settings of one to train.
        val_fraction: Share of the documents held out for validation, by hash.
        test_fraction: Share held out for the test.
        on_bad_input: `error` or `skip`.
        seed: What the steps that draw at random start from; None leaves each its own.
        keep_rejected: Whether the lists of dropped documents hold their texts.
        shard_bytes: Text of a shard of documents; None chooses by the size of the corpus.
        expected_bytes: Text of all documents, where the sources cannot know it (streams).
        executor: Where the passes run; not part of what decides the bytes.
        written: Sources and steps as the user wrote them, for the key and the card.
    """

    out: Path
    sources: list[NamedSource]
    steps: list[StepSpec]
    tokenizer: str | dict[str, Any] | None
    val_fraction: float
    test_fraction: float
    on_bad_input: OnBadInput
    seed: int | None
    keep_rejected: bool
    shard_bytes: int | None
    expected_bytes: int | None
    executor: ExecutorOptions
    written: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_out_personal_data(self) -> bool:
        """Whether a step takes personal data out of the documents, so that no report may show them either."""
        return any(spec.name == "pii" for spec in self.steps)

    def stamps(self) -> dict[str, str]:
        """Returns hashes of what the recipe only names: benchmarks, the user's own code, a tokenizer's folder.

        Raises:
            UserError: if one of them cannot be read.
        """
        found = {}
        for spec in self.steps:
            step = build_step(spec)
            if hasattr(step, "stamps"):
                found[f"step {spec.index} ({spec.name})"] = sha256_json(step.stamps())
        if isinstance(self.tokenizer, str) and is_local_tokenizer(self.tokenizer):
            tokenizer = load_tokenizer(self.tokenizer)
            files = {name: sha256(data).hexdigest() for name, data in tokenizer.folder_files().items()}
            found["tokenizer"] = sha256_json([tokenizer.fingerprint, files])
        return found

    def key(self, plan: Plan, stamps: dict[str, str] | None = None) -> str:
        """Returns the hash of all that decides the bytes.

        Args:
            plan: The sources as they are now.
            stamps: What `stamps` returned; None asks it.
        """
        stamps = self.stamps() if stamps is None else stamps
        return sha256_json([FORMAT_VERSION, self.written, plan.stamps, plan.shard_bytes, stamps])


def make_recipe(
    out: str | None,
    sources: list[dict[str, Any]] | None,
    steps: list[Any] | None = None,
    tokenizer: str | dict[str, Any] | None = None,
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    on_bad_input: OnBadInput = "error",
    seed: int | None = None,
    keep_rejected: bool = False,
    shard_megabytes: float | None = None,
    expected_gigabytes: float | None = None,
    executor: ExecutorOptions | None = None,
) -> Recipe:
    """Checks what the user wrote and makes the recipe of it.

    Raises:
        UserError: naming the value, the nearest right one and what to write instead.
    """
    if not out:
        raise UserError("out is not set; name the folder of the prepared corpus, as in `out: corpora/stdlib`")
    if not sources:
        raise UserError(
            f"sources is empty; list at least one of {', '.join(KINDS)}, as in\nsources:\n  - files: my_texts/**/*.txt"
        )
    check_fractions(val_fraction, test_fraction)
    BadInput(on_bad_input)
    for name, value in (("shard_megabytes", shard_megabytes), ("expected_gigabytes", expected_gigabytes)):
        if value is not None and value <= 0:
            raise UserError(f"{name} is {value}; it must be above 0, or null")
    named = [make_source(entry, number) for number, entry in enumerate(sources, start=1)]
    specs = [make_step(entry, number, seed) for number, entry in enumerate(steps or [], start=1)]
    check_steps(specs)
    check_tokenizer(tokenizer)
    for source in named:
        _check_out_is_no_input(source.source, Path(out).expanduser())
    written = {
        "sources": sources,
        "steps": [{spec.name: spec.options} for spec in specs],
        "tokenizer": tokenizer,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "on_bad_input": on_bad_input,
        "seed": seed,
        "keep_rejected": keep_rejected,
        "shard_megabytes": shard_megabytes,
    }
    return Recipe(
        out=Path(out).expanduser(),
        sources=_uniquely_named(named),
        steps=specs,
        tokenizer=tokenizer,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        on_bad_input=on_bad_input,
        seed=seed,
        keep_rejected=keep_rejected,
        shard_bytes=None if shard_megabytes is None else int(shard_megabytes * 1_000_000),
        expected_bytes=None if expected_gigabytes is None else int(expected_gigabytes * 1e9),
        executor=executor or ExecutorOptions(),
        written=written,
    )


def make_source(entry: Any, number: int) -> NamedSource:
    """Makes the source of one entry: a mapping with exactly one key that names a kind.

    Args:
        entry: `{files: ..., text_field: ..., name: ..., license: ...}`.
        number: Its place in the list, for messages.
    """
    where = f"source {number}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {entry!r}; write a mapping, as in `files: {entry}`")
    kinds = [key for key in entry if key in KINDS]
    if len(kinds) > 1:
        raise UserError(f"{where} names {' and '.join(kinds)}; make two sources of it")
    if not kinds:
        others = [key for key in entry if key not in DECLARED]
        raise unknown_name("source kind", others[0] if others else "", KINDS, f"at {where}")
    kind = kinds[0]
    target = import_object(KINDS[kind].replace(":", "."), where, "data")
    options = {key: value for key, value in entry.items() if key not in DECLARED}
    for key in options:
        if key not in parameters(target):
            raise unknown_name("option", key, [*parameters(target), *DECLARED], f"of {where} ({kind})")
    if kind == "hub":
        if not isinstance(options["hub"], Mapping):
            raise UserError(f"{where}: hub is {options['hub']!r}; write `hub: {{path: {options['hub']}}}`")
        options["hub"] = construct(HubDataset, options["hub"], f"hub of {where}")
        source = target(**options)
    else:
        source = construct(target, options, f"{where} ({kind})")
    for key in DECLARED:
        if key in entry and not isinstance(entry[key], str):
            raise UserError(f"{where}: {key} is {entry[key]!r}; it must be text")
    metadata = {key: entry[key] for key in ("license", "language") if key in entry}
    return NamedSource(entry.get("name") or _default_name(kind, entry[kind]), source, metadata)


def _check_out_is_no_input(source: Any, out: Path) -> None:
    """Refuses a data set's folder that would hold the prepared corpus (of other sources, files in it are left out)."""
    folder = Path(source.hub.path).expanduser() if isinstance(source, HubParts) else None
    if folder is not None and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"out is {out}, which lies in the data set's folder {folder}; set out to one outside of it")


def _default_name(kind: str, value: Any) -> str:
    if kind == "stdlib":
        return "stdlib"
    if kind == "hub":
        return str(value["path"]).rstrip("/").rpartition("/")[2]
    first = value[0] if isinstance(value, list) else value
    plain = [part for part in Path(str(first)).parts if not any(sign in part for sign in "*?[/")]
    return plain[-1] if plain else kind


def _uniquely_named(sources: list[NamedSource]) -> list[NamedSource]:
    taken: set[str] = set()
    result = []
    for source in sources:
        name, number = source.name, 1
        while name in taken:
            number += 1
            name = f"{source.name}-{number}"
        taken.add(name)
        result.append(dataclasses.replace(source, name=name))
    return result


def make_step(entry: Any, number: int, seed: int | None = None) -> StepSpec:
    """Makes the spec of one entry: `{length: {min_chars: 200}}`, or just `length`.

    A step that takes a `seed` and is given none gets the recipe's.
    """
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise UserError(
            f"step {number} is {entry!r}; write one name with its options, as in `length: {{min_chars: 200}}`"
        )
    ((name, options),) = entry.items()
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise UserError(
            f"step {number} ({name}) has the options {options!r}; write a mapping, as in {{min_chars: 200}}"
        )
    options = dict(options)
    if seed is not None and "seed" in parameters(step_class(str(name), f"at step {number}")):
        options.setdefault("seed", seed)
    return StepSpec(number, str(name), options)


def check_tokenizer(tokenizer: str | dict[str, Any] | None) -> None:
    """Checks the settings of a tokenizer to train."""
    if isinstance(tokenizer, Mapping):
        settings = tokenizer_settings(tokenizer)
        check_vocab_size(settings["vocab_size"], settings.get("special_tokens") or ())


def tokenizer_settings(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments for `train_bpe`, and `sample_megabytes`.

    Raises:
        UserError: for a setting that it does not have.
    """
    known = [name for name in inspect.signature(train_bpe).parameters if name not in _NOT_TRAINED_WITH]
    for name, value in tokenizer.items():
        if name not in (*known, "sample_megabytes"):
            raise unknown_name("option", name, [*known, "sample_megabytes"], "of tokenizer")
        if name in ("vocab_size", "sample_megabytes") and (not isinstance(value, int) or value < 1):
            raise UserError(f"tokenizer.{name} is {value!r}; it must be a whole number above 0")
    return {"vocab_size": DEFAULT_VOCAB_SIZE, **tokenizer}

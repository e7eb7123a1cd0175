"""The recipe (YAML) of `prepare`, which is validated before any work starts, and the help of `prepare --explain`."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from lit_gpt.checks import check_above, local_path
from lit_gpt.data.bpe import check_vocab_size, train_bpe
from lit_gpt.data.cleaning import TRANSFORMS, CorpusTransform, Transform
from lit_gpt.data.cleaning.base import code_fingerprint
from lit_gpt.data.corpus_spec import check_fractions
from lit_gpt.data.pipeline.options import ExecutorOptions
from lit_gpt.data.pipeline.parts import NamedSource, Plan
from lit_gpt.data.pipeline.sources import KINDS
from lit_gpt.data.pipeline.sources.data import HubParts
from lit_gpt.data.records import BadInput, HubDataset, OnBadInput
from lit_gpt.data.tokenizers import is_local_tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.hashing import sha256_json
from lit_gpt.instantiate import construct, find_class, import_object, parameters, parse_entry
from lit_gpt.suggest import unknown_name

FORMAT_VERSION = 1
DECLARED = ("name", "license", "language")
"""Metadata that any source may declare; the last two are stored with each document."""

_NOT_TRAINED_WITH = ("texts", "show_progress")
DEFAULT_VOCAB_SIZE = 16_384


@dataclass(frozen=True)
class TransformSpec:
    """One entry of the recipe's `steps:`: a filter or transform with its options.

    Attributes:
        index: Position in the list, from 1.
        name: Short name in the registry; for a custom class, the name of the class.
        class_path: Import path of the class, used by worker processes to import it.
        options: Arguments of the constructor, as the recipe sets them.
        is_custom: Whether the class belongs to another package; if so, its code is part of the corpus's key, and its
            return values are checked.
        version: User-provided version of the class's code; "" uses the hash of its source file.
        written: The entry in normalized form, for the key and the card.
    """

    index: int
    name: str
    class_path: str
    options: dict[str, Any]
    is_custom: bool = False
    version: str | int = ""
    written: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Label of the entry in error messages."""
        return f"transform {self.index} ({self.name})"

    @property
    def folder(self) -> str:
        """Name of its folders and files; sorted by name, they are in the order in which the transforms run."""
        return f"{self.index:02d}-{self.name}"

    @property
    def target(self) -> type[Transform]:
        """The class."""
        found: type[Transform] = find_class(self.class_path, "transform", self.where, base=Transform)
        return found

    @property
    def sees_corpus(self) -> bool:
        """Whether it must see all documents before it can judge one."""
        return issubclass(self.target, CorpusTransform)

    def build(self) -> Transform:
        """Return a new transform with these options.

        Raises:
            UserError: for an unknown option, or a value that the transform does not accept.
        """
        transform: Transform = construct(self.target, self.options, self.where)
        return transform

    def input_fingerprints(self) -> list[Any]:
        """Return fingerprints of external inputs that the options name (files, custom code); [] if there are none.

        Raises:
            UserError: if such a file cannot be read.
        """
        own = self.build().input_fingerprints()
        code = code_fingerprint(self.class_path, self.where, self.version) if self.is_custom else None
        return [stamp for stamp in (own, code) if stamp is not None]


@dataclass(frozen=True)
class Recipe:
    """A validated recipe.

    Attributes:
        out: Folder of the prepared corpus.
        sources: Sources of the documents, in order.
        transforms: Filters and transforms, in the order in which they run (`steps:` in YAML).
        tokenizer: None (stop before tokenizing), the path or name of a tokenizer, or the settings of one to train.
        val_fraction: Fraction of the documents held out for validation, by hash.
        test_fraction: Fraction held out for testing.
        on_bad_input: `error` or `skip`.
        seed: Default seed for randomized transforms; None keeps each transform's own default.
        keep_rejected: Whether the lists of dropped documents include their texts.
        shard_bytes: Bytes of text per document shard; None chooses by the size of the corpus.
        expected_bytes: Bytes of text of all documents, for sources that do not know it (streams).
        executor: Executor settings; they do not affect the output and are not part of the key.
        written: Sources and steps in normalized form, for the key and the card.
    """

    out: Path
    sources: list[NamedSource]
    transforms: list[TransformSpec]
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
    def removes_personal_data(self) -> bool:
        """Whether a transform removes personal data from the documents, so that no report may show them either."""
        return any(spec.target.removes_personal_data for spec in self.transforms)

    def input_fingerprints(self) -> dict[str, str]:
        """Return hashes of external content that the recipe refers to: benchmarks, custom code, a tokenizer folder.

        Raises:
            UserError: if one of them cannot be read.
        """
        found = {}
        for spec in self.transforms:
            if fingerprints := spec.input_fingerprints():
                found[spec.where] = sha256_json(fingerprints)
        if isinstance(self.tokenizer, str) and is_local_tokenizer(self.tokenizer):
            tokenizer = load_tokenizer(self.tokenizer)
            files = {name: sha256(data).hexdigest() for name, data in tokenizer.folder_files().items()}
            found["tokenizer"] = sha256_json([tokenizer.fingerprint, files])
        return found

    def key(self, plan: Plan, input_fingerprints: dict[str, str] | None = None) -> str:
        """Return the hash of everything that the output depends on.

        Args:
            plan: Current parts of the sources.
            input_fingerprints: Result of `input_fingerprints`; None computes it.
        """
        input_fingerprints = self.input_fingerprints() if input_fingerprints is None else input_fingerprints
        return sha256_json([FORMAT_VERSION, self.written, plan.part_stamps, plan.shard_bytes, input_fingerprints])


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
    """Validate the user's settings and return the recipe.

    Raises:
        UserError: naming the value, the closest valid one and how to fix it.
    """
    if not out:
        raise UserError("out is not set; name the folder of the prepared corpus, as in `out: corpora/stdlib`")
    if not sources:
        raise UserError(
            f"sources is empty; list at least one of {', '.join(KINDS)}, as in\nsources:\n  - files: my_texts/**/*.txt"
        )
    check_fractions(val_fraction, test_fraction)
    BadInput(on_bad_input)
    check_above("shard_megabytes", shard_megabytes, 0, "null chooses by the size of the input")
    check_above("expected_gigabytes", expected_gigabytes, 0, "null leaves the disk space unchecked")
    named = [make_source(entry, number) for number, entry in enumerate(sources, start=1)]
    specs = [make_spec(entry, number, seed) for number, entry in enumerate(steps or [], start=1)]
    for spec in specs:  # a mistake in the last one is reported before the first one runs for hours
        spec.build()
    check_tokenizer(tokenizer)
    for source in named:
        _check_out_is_no_input(source.source, local_path("out", out))
    written = {
        "sources": sources,
        "steps": [spec.written for spec in specs],
        "tokenizer": tokenizer,
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "on_bad_input": on_bad_input,
        "seed": seed,
        "keep_rejected": keep_rejected,
        "shard_megabytes": shard_megabytes,
    }
    return Recipe(
        out=local_path("out", out),
        sources=_uniquely_named(named),
        transforms=specs,
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
    """Return the source of one entry: a mapping with exactly one key that names a kind of source.

    Args:
        entry: `{files: ..., text_field: ..., name: ..., license: ...}`.
        number: Position in the list, for messages.

    Raises:
        UserError: if it is no such mapping, or has an unknown option; the message names the entry.
    """
    where = f"source {number}"
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {entry!r}; write a mapping, as in `files: {entry}`")
    kinds = [key for key in entry if key in KINDS]
    if len(kinds) > 1:
        raise UserError(f"{where} names {' and '.join(kinds)}; write them as separate sources")
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
    """Reject a dataset folder that would contain the prepared corpus (other sources exclude files in it)."""
    folder = Path(source.hub.path).expanduser() if isinstance(source, HubParts) else None
    if folder is not None and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"out is {out}, which lies in the dataset's folder {folder}; set out to a folder outside of it")


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


def make_spec(entry: Any, number: int, seed: int | None = None) -> TransformSpec:
    """Return the spec of one entry of `steps:`.

    An entry is `length: {min_chars: 200}`, just `length`, or `class_path: my_package.MyTransform` with `init_args` and
    `version`. A transform with a `seed` argument that is not set gets the recipe's seed.

    Raises:
        UserError: for an entry of another form, or an unknown name, with the closest valid one.
    """
    where = f"transform {number}"
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, Mapping) or not ("class_path" in entry or len(entry) == 1):
        raise UserError(
            f"{where} is {entry!r}; write one name with its options, as in `length: {{min_chars: 200}}`, or class_path "
            "and init_args"
        )
    version: str | int = ""
    if "class_path" in entry:
        version = entry.get("version", "")
        name, options = parse_entry({k: v for k, v in entry.items() if k != "version"}, "transform", where)
    else:
        ((name, options),) = entry.items()
        name, options = str(name), {} if options is None else options
        if not isinstance(options, Mapping):
            raise UserError(f"{where} ({name}) has the options {options!r}; write a mapping, as in {{min_chars: 200}}")
    target = find_class(name, "transform", where, TRANSFORMS, Transform, extra="data")
    options = dict(options)
    if seed is not None and "seed" in parameters(target):
        options.setdefault("seed", seed)
    written: dict[str, Any] = {name: options}
    if name not in TRANSFORMS:
        written = {"class_path": name, "init_args": options} | ({} if version == "" else {"version": version})
        name = target.__name__
    class_path = f"{target.__module__}.{target.__qualname__}"  # so that a worker does not need the registry
    is_custom = not class_path.startswith("lit_gpt.")
    return TransformSpec(number, name, class_path, options, is_custom, version, written)


def check_tokenizer(tokenizer: str | dict[str, Any] | None) -> None:
    """Validate the settings of a tokenizer to train."""
    if isinstance(tokenizer, Mapping):
        settings = tokenizer_settings(tokenizer)
        check_vocab_size(settings["vocab_size"], settings.get("special_tokens") or ())


def tokenizer_settings(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for `train_bpe`, and `sample_megabytes`.

    Raises:
        UserError: for an unknown setting.
    """
    known = [name for name in inspect.signature(train_bpe).parameters if name not in _NOT_TRAINED_WITH]
    for name, value in tokenizer.items():
        if name not in (*known, "sample_megabytes"):
            raise unknown_name("option", name, [*known, "sample_megabytes"], "of tokenizer")
        if name in ("vocab_size", "sample_megabytes") and (not isinstance(value, int) or value < 1):
            raise UserError(f"tokenizer.{name} is {value!r}; it must be a whole number above 0")
    return {"vocab_size": DEFAULT_VOCAB_SIZE, **tokenizer}


# What `prepare --explain` prints

_SOURCES_HEAD = """Sources: a list; each entry names one kind, its options, and what you declare about it
(name, license, language).

sources:
  - files: my_texts/**/*.txt
    license: CC-BY-4.0
  - hub: {path: roneneldan/TinyStories, split: train, streaming: true}
    name: tinystories
"""
_TRANSFORMS_HEAD = """Steps: filters and transforms, a list of `name: {options}`, in the order in which they run.
A custom one is a subclass of lit_gpt.data.cleaning.Transform, which may edit, drop or split documents.

steps:
  - fix_encoding: {}
  - length: {min_chars: 200}
  - class_path: my_package.MyTransform
    init_args: {option: 1}
"""


def explanation(topic: str) -> str:
    """Return the help on `sources`, `steps`, or one of them by name or import path; for `topics`, the list of topics.

    Raises:
        UserError: If there is no such topic; the message names the closest one.
    """
    if topic == "sources":
        lines = [f"  {name:<20} {_summary(_source_class(name))}" for name in KINDS]
        return "\n".join([_SOURCES_HEAD, *lines, "", "`--explain <kind>` shows one with its options."])
    if topic == "steps":
        lines = [f"  {name:<20} {_summary(_transform_class(name))}" for name in TRANSFORMS]
        return "\n".join([_TRANSFORMS_HEAD, *lines, "", "`--explain <name>` shows one with its options."])
    if topic == "topics":
        names = {"sources": KINDS, "steps": TRANSFORMS}
        return "\n".join(["Topics of --explain:", *(f"  {name}, or one: {', '.join(names[name])}" for name in names)])
    if topic in KINDS:
        return _full(topic, _source_class(topic), is_transform=False)
    if topic in TRANSFORMS or "." in topic:
        return _full(topic, _transform_class(topic), is_transform=True)
    raise unknown_name("topic", topic, ["topics", "sources", "steps", *KINDS, *TRANSFORMS], "of --explain")


def _source_class(kind: str) -> type:
    target: type = import_object(KINDS[kind].replace(":", "."), "source", "data")
    return target


def _transform_class(name: str) -> type[Transform]:
    found: type[Transform] = find_class(name, "transform", known=TRANSFORMS, base=Transform, extra="data")
    return found


def _summary(target: type) -> str:
    return (inspect.getdoc(target) or "").strip().split("\n\n")[0].replace("\n", " ")


def _full(name: str, target: type, is_transform: bool) -> str:
    options = parameters(target)
    if is_transform:
        set_options = ", ".join(
            f"{key}: {_written(p.default)}" for key, p in options.items() if p.default is not p.empty
        )
        example = f"steps:\n  - {name}: {{{set_options}}}"
    else:
        lines = [f"    {key}: {_written(p.default)}" for key, p in options.items() if key != name]
        example = "\n".join([f"sources:\n  - {name}: ...", *lines])
    return f"{name}\n\n{inspect.getdoc(target) or ''}\n\nIn a recipe, with its defaults:\n\n{example}"


def _written(value: Any) -> str:
    """Return a default value in YAML syntax."""
    if value is inspect.Parameter.empty:
        return "..."
    try:
        return json.dumps(value)
    except TypeError:
        return str(value)

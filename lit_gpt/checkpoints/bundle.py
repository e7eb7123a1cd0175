"""A bundle: a finished model in one folder that Hugging Face's tools and ours open.

- `config.json`, `model.safetensors`: the model as `transformers` reads it
- `tokenizer.json` and others: its tokenizer
- `generation_config.json`: how to sample, and which tokens end a text; an imported model's own is kept
- `lit_gpt.json`: our own configuration, complete
- `lineage.json`: where it comes from, by content hash
- `README.md`: the model card, from all that was recorded (`model_card.py`)
- `manifest.json`: sizes and SHA-256 of all of them, written last
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.atomic import atomic_folder
from lit_gpt.checkpoints.huggingface import export_hf, open_hf
from lit_gpt.checkpoints.huggingface.tensors import read_json
from lit_gpt.checkpoints.model_card import CARD, CardFacts, Opens, model_card
from lit_gpt.checkpoints.provenance import LINEAGE, MANIFEST, verify, write_manifest
from lit_gpt.data.chat import stop_token_ids
from lit_gpt.data.tokenizers import TOKENIZER_FILES, Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

CONFIG = "lit_gpt.json"
GENERATION_CONFIG = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Carried:
    """What a model folder says beside shape and weights, carried along from import to export."""

    token_ids: dict[str, Any] = field(default_factory=dict)
    """Ids of special tokens in its config.json, without those that are null."""
    generation_config: dict[str, Any] | None = None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, by the generation config or else the config.

        Raises:
            UserError: those are no numbers.
        """
        found = (self.generation_config or {}).get("eos_token_id", self.token_ids.get("eos_token_id"))
        ids = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(index) is int for index in ids):
            raise UserError(f"eos_token_id is {found!r} in this model's folder; it must be a number or a list of them")
        return tuple(ids)


@dataclass(frozen=True)
class Bundle:
    """What a bundle's folder holds."""

    config: GPTConfig
    state_dict: Mapping[str, Tensor]
    """Under our names, read when asked for; a tied head once, as `wte.weight`."""
    tokenizer_path: Path | None
    lineage: dict[str, Any] | None


def save_bundle(
    out: str | Path,
    config: GPTConfig,
    state_dict: Mapping[str, Tensor],
    tokenizer_path: str | Path | None = None,
    lineage: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    carried: Carried | None = None,
    facts: CardFacts | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Write a bundle, whole or not at all.

    Args:
        out: its folder.
        config: the model's.
        state_dict: whole weights under our names; if they are lazy, no more than one of them is in memory at a time.
        tokenizer_path: folder of the tokenizer; None: the bundle has none.
        lineage: see `collect_lineage`.
        dtype: float32, bfloat16 or float16 for the weights; None: as they are.
        overwrite: replace what is at `out`.
        carried: what the model's source says beside its weights; None: the tokenizer decides.
        facts: what the model card says beyond the lineage.
        check: called with the folder when it is complete but not yet in its place; what it raises leaves nothing.

    Returns:
        The folder.

    Raises:
        UserError: there is something at `out`, the dtype is unknown, the tokenizer has tokens that the model lacks,
            or the disk is full.
    """
    out = Path(out)
    check_free(out, overwrite)
    kind = None if dtype is None else torch_dtype(dtype)
    beside = Beside.of(config, tokenizer_path, lineage, carried, facts or CardFacts(out.name))
    with atomic_folder(out, write_manifest) as folder:
        export_hf(config, state_dict, folder, dtype=kind, **beside.token_ids)
        beside.write(folder)
        if check is not None:
            check(folder)
    return out


@dataclass(frozen=True)
class Beside:
    """What every bundle holds beside its weights."""

    config: GPTConfig
    tokenizer: Tokenizer | None
    token_ids: dict[str, Any]
    generation: dict[str, Any]
    lineage: dict[str, Any]
    facts: CardFacts = field(default_factory=CardFacts)

    @classmethod
    def of(
        cls,
        config: GPTConfig,
        tokenizer_path: str | Path | None,
        lineage: Mapping[str, Any] | None,
        carried: Carried | None,
        facts: CardFacts | None = None,
    ) -> "Beside":
        """Gather it; arguments as of `save_bundle`.

        Raises:
            UserError: the tokenizer has tokens that the model lacks.
        """
        carried = carried or Carried()
        ids: dict[str, Any] = {}
        tokenizer = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
        if tokenizer is not None:
            _check_vocabulary(tokenizer, config.vocab_size, str(tokenizer_path))
            ids = {"bos_token_id": tokenizer.separator_id, "eos_token_id": _end_ids(tokenizer)}
        ids |= carried.token_ids
        generation = carried.generation_config
        if generation is None:
            generation = {**ids, "do_sample": True, "_from_model_config": False}
        return cls(config, tokenizer, ids, generation, dict(lineage or {}), facts or CardFacts())

    def write(self, folder: Path) -> None:
        """Write its files."""
        if self.tokenizer is not None:
            for name, content in self.tokenizer.folder_files().items():
                (folder / name).write_bytes(content)
        write_json(folder / GENERATION_CONFIG, self.generation)
        # blocks that predict further tokens are left out of exports
        write_json(folder / CONFIG, replace(self.config, multi_token=0).to_dict())
        write_json(folder / LINEAGE, self.lineage)
        theirs = folder / "config.json"  # a quantised bundle has none, so that nobody opens it wrongly
        dtype = read_json(theirs)["dtype"] if theirs.is_file() else None
        opens: Opens = "lit_gpt" if dtype is None else "transformers"
        card = model_card(self.config, self.tokenizer, self.lineage, self.facts, dtype, opens)
        (folder / CARD).write_text(card, encoding="utf-8")


def check_free(out: Path, overwrite: bool = False) -> None:
    """Refuse a place where something is already.

    Raises:
        UserError: there is.
    """
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; choose another --out, or remove it first")


def load_bundle(path: str | Path) -> Bundle:
    """Verify a bundle and read it.

    Raises:
        UserError: naming the file that is missing, cut off or damaged.
    """
    path = Path(path)
    verify(path)
    config = read_bundle_config(path)
    _, weights = open_hf(path)
    return Bundle(config, weights, tokenizer_in(path), read_json(path / LINEAGE))


def is_bundle(path: Path) -> bool:
    """Whether a folder is (or was meant to be) a bundle."""
    return (path / CONFIG).is_file() and (path / MANIFEST).is_file()


def read_bundle_config(path: Path) -> GPTConfig:
    """Read our own configuration of a bundle.

    Raises:
        UserError: it is missing or damaged.
    """
    return GPTConfig.from_dict(read_json(path / CONFIG))


def tokenizer_in(folder: Path) -> Path | None:
    """Return the folder itself if it holds a tokenizer, else None."""
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def read_carried(folder: Path) -> Carried:
    """Read what a Hugging Face folder or a bundle says beside shape and weights.

    Raises:
        UserError: if one of the files is no JSON.
    """
    config = read_json(folder / "config.json")
    config = {**(config.get("text_config") or {}), **{k: v for k, v in config.items() if v is not None}}
    ids = {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
    path = folder / GENERATION_CONFIG
    return Carried(ids, read_json(path) if path.is_file() else None)


def torch_dtype(name: str) -> torch.dtype:
    """Return the floating-point type of a name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer to a folder of their own, whole or not at all."""
    with atomic_folder(target) as folder:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Refuse a tokenizer with tokens that have no row in the embedding (more rows than tokens are padding, and fine).

    Gemma 3's small models come with one such token, for images, that no text can give: a special token that the chat
    template does not write either is warned of and let through.
    """
    if tokenizer.vocab_size <= vocab_size:
        return
    vocabulary: dict[str, int] = tokenizer.backend.get_vocab(with_added_tokens=True)
    special = {t.content for t in tokenizer.backend.get_added_tokens_decoder().values() if t.special}
    written = " ".join(content.decode(errors="replace") for content in _chat_templates(tokenizer))
    beyond = sorted(token for token, index in vocabulary.items() if index >= vocab_size)
    needed = [token for token in beyond if token not in special or token in written]
    if needed:
        raise UserError(
            f"the tokenizer {where} has {tokenizer.vocab_size} tokens, more than the model's vocab_size {vocab_size} "
            f"({', '.join(map(repr, needed[:5]))}{', ...' if len(needed) > 5 else ''}); it belongs to another model"
        )
    warnings.warn(
        f"the tokenizer {where} has special tokens beyond the model's vocab_size {vocab_size}, which the model cannot "
        f"read: {', '.join(map(repr, beyond))}",
        stacklevel=3,
    )


def _end_ids(tokenizer: Tokenizer) -> int | list[int]:
    """The end of text, and before it the token that ends an answer in the tokenizer's chat template, if it has one."""
    try:
        ids = list(stop_token_ids(tokenizer))
    except UserError:  # no template, or one that cannot say
        return tokenizer.separator_id
    return ids if len(ids) > 1 else ids[0]


def _chat_templates(tokenizer: Tokenizer) -> list[bytes]:
    files = tokenizer.files or {}
    return [
        files[name] for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json") if name in files
    ]


def write_json(path: Path, value: Any) -> None:
    """Write plain data as every bundle does."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""A bundle: a finished model in one folder that both Hugging Face's tools and lit_gpt can load.

- `config.json`, `model.safetensors`: the model as `transformers` reads it
- `tokenizer.json` and others: its tokenizer
- `generation_config.json`: sampling defaults and end-of-text tokens; an imported model keeps its own
- `lit_gpt.json`: the complete `GPTConfig`
- `lineage.json`: data, code and parent models, by content hash
- `README.md`: the model card, generated from everything that was recorded (`model_card.py`)
- `manifest.json`: sizes and SHA-256 of all other files, written last
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
from lit_gpt.checks import local_path
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
    """Special token IDs and generation settings of an imported model, preserved until it is exported."""

    token_ids: dict[str, Any] = field(default_factory=dict)
    """IDs of special tokens in its config.json, without those that are null."""
    generation_config: dict[str, Any] | None = None
    """Contents of its generation_config.json; None: it has none."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text, from the generation config or, failing that, from config.json.

        Raises:
            UserError: an ID is not an integer.
        """
        found = (self.generation_config or {}).get("eos_token_id", self.token_ids.get("eos_token_id"))
        ids = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(index) is int for index in ids):
            raise UserError(f"eos_token_id is {found!r} in this model's folder; it must be a number or a list of them")
        return tuple(ids)


@dataclass(frozen=True)
class Bundle:
    """The contents of a bundle."""

    config: GPTConfig
    state_dict: Mapping[str, Tensor]
    """Weights under lit_gpt's names, read on demand; a tied head appears once, as `wte.weight`."""
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
    """Write a bundle atomically.

    Args:
        out: output folder.
        config: the model's configuration.
        state_dict: complete weights under lit_gpt's names; lazy ones are read one at a time.
        tokenizer_path: folder of the tokenizer; None: the bundle has no tokenizer.
        lineage: the model's lineage (`collect_lineage`).
        dtype: dtype of the weights: float32, bfloat16 or float16; None: unchanged.
        overwrite: whether to replace an existing folder.
        carried: special token IDs and generation settings of the source model; None: derived from the tokenizer.
        facts: facts for the model card in addition to the lineage; None: only the folder's name.
        check: called with the complete temporary folder before it is moved to `out`; if it raises, nothing is written.

    Returns:
        The folder.

    Raises:
        UserError: `out` exists, the dtype is unknown, the tokenizer has tokens that the model lacks, or the disk is
            full.
    """
    out = local_path("out", out)
    check_free(out, overwrite)
    kind = None if dtype is None else torch_dtype(dtype)
    metadata = BundleMetadata.of(config, tokenizer_path, lineage, carried, facts or CardFacts(out.name))
    with atomic_folder(out, write_manifest) as folder:
        export_hf(config, state_dict, folder, dtype=kind, **metadata.token_ids)
        metadata.write(folder)
        if check is not None:
            check(folder)
    return out


@dataclass(frozen=True)
class BundleMetadata:
    """Everything in a bundle except the weights: configuration, tokenizer, generation settings, lineage and card."""

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
    ) -> "BundleMetadata":
        """Collect the metadata; arguments as in `save_bundle`.

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
        """Write its files to a bundle's folder, whose weights have been written."""
        if self.tokenizer is not None:
            for name, content in self.tokenizer.folder_files().items():
                (folder / name).write_bytes(content)
        write_json(folder / GENERATION_CONFIG, self.generation)
        # Exports omit the multi-token-prediction blocks.
        write_json(folder / CONFIG, replace(self.config, multi_token=0).to_dict())
        write_json(folder / LINEAGE, self.lineage)
        hf_config = folder / "config.json"  # absent in a quantized bundle, which transformers must not load
        dtype = read_json(hf_config)["dtype"] if hf_config.is_file() else None
        opens: Opens = "lit_gpt" if dtype is None else "transformers"
        card = model_card(self.config, self.tokenizer, self.lineage, self.facts, dtype, opens)
        (folder / CARD).write_text(card, encoding="utf-8")


def check_free(out: Path, overwrite: bool = False) -> None:
    """Check that nothing would be overwritten at `out`; an empty folder is accepted.

    Raises:
        UserError: `out` exists, and `overwrite` is False.
    """
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; choose another --out, or remove it first")


def load_bundle(path: str | Path) -> Bundle:
    """Verify and open a bundle.

    Raises:
        UserError: a file is missing, truncated or damaged; the message names it.
    """
    path = Path(path)
    verify(path)
    config = read_bundle_config(path)
    _, weights = open_hf(path)
    return Bundle(config, weights, tokenizer_in(path), read_json(path / LINEAGE))


def is_bundle(path: Path) -> bool:
    """Return whether a folder is a bundle, intact or not."""
    return (path / CONFIG).is_file() and (path / MANIFEST).is_file()


def read_bundle_config(path: Path) -> GPTConfig:
    """Read the `GPTConfig` of a bundle.

    Raises:
        UserError: it is missing or damaged.
    """
    return GPTConfig.from_dict(read_json(path / CONFIG))


def tokenizer_in(folder: Path) -> Path | None:
    """Return the folder itself if it contains a tokenizer, otherwise None."""
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def read_carried(folder: Path) -> Carried:
    """Read the special token IDs and generation settings of a Hugging Face folder or bundle.

    Raises:
        UserError: one of the files is not valid JSON.
    """
    config = read_json(folder / "config.json")
    config = {**(config.get("text_config") or {}), **{k: v for k, v in config.items() if v is not None}}
    ids = {name: config[name] for name in _TOKEN_IDS if config.get(name) is not None}
    path = folder / GENERATION_CONFIG
    return Carried(ids, read_json(path) if path.is_file() else None)


def torch_dtype(name: str) -> torch.dtype:
    """Return the floating-point dtype with a name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer to a new folder, atomically."""
    with atomic_folder(target) as folder:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _check_vocabulary(tokenizer: Tokenizer, vocab_size: int, where: str) -> None:
    """Check that every token has a row in the embedding (surplus rows are padding and allowed).

    Gemma 3's small models include one token without a row, for images, which text never produces. So a special token
    without a row only causes a warning, unless the chat template contains it.

    Raises:
        UserError: an ordinary token, or one that the chat template contains, has no row.
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
            f"({', '.join(map(repr, needed[:5]))}{', ...' if len(needed) > 5 else ''}): it belongs to another model; "
            "use the model's own"
        )
    warnings.warn(
        f"the tokenizer {where} has special tokens beyond the model's vocab_size {vocab_size}, which the model cannot "
        f"read: {', '.join(map(repr, beyond))}",
        stacklevel=3,
    )


def _end_ids(tokenizer: Tokenizer) -> int | list[int]:
    """Return the IDs that end generation: the chat template's end of turn, if there is one, then the end of text."""
    try:
        ids = list(stop_token_ids(tokenizer))
    except UserError:  # no chat template, or one whose end of turn is unknown
        return tokenizer.separator_id
    return ids if len(ids) > 1 else ids[0]


def _chat_templates(tokenizer: Tokenizer) -> list[bytes]:
    files = tokenizer.files or {}
    return [
        files[name] for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json") if name in files
    ]


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, in the format common to all files of a bundle."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

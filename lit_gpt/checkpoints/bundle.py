"""A bundle: a finished model in one folder that Hugging Face's tools and ours open.

- `config.json`, `model.safetensors`: the model as `transformers` reads it
- `tokenizer.json` and others: its tokenizer
- `generation_config.json`: which token ends a text
- `lit_gpt.json`: our own configuration, complete
- `lineage.json`: where it comes from, by content hash
- `manifest.json`: sizes and SHA-256 of all of them, written last
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.atomic import whole_folder
from lit_gpt.checkpoints.huggingface import export_hf, import_hf
from lit_gpt.checkpoints.lineage import LINEAGE
from lit_gpt.checkpoints.manifest import MANIFEST, verify, write_manifest
from lit_gpt.data.tokenizers import TOKENIZER_FILES, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig

CONFIG = "lit_gpt.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Bundle:
    """What a bundle's folder holds."""

    config: GPTConfig
    state_dict: dict[str, Tensor]
    """Under our names; a tied head once, as `wte.weight`."""
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
) -> Path:
    """Write a bundle, whole or not at all.

    Args:
        out: its folder.
        config: the model's.
        state_dict: whole weights under our names.
        tokenizer_path: folder of the tokenizer; None: the bundle has none.
        lineage: see `collect_lineage`.
        dtype: float32, bfloat16 or float16 for the weights; None: as they are.
        overwrite: replace what is at `out`.

    Returns:
        The folder.

    Raises:
        UserError: there is something at `out`, the dtype is unknown, the tokenizer has tokens that the model lacks,
            or the disk is full.
    """
    out = Path(out)
    if out.exists() and not overwrite and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists; choose another --out, or remove it first")
    weights = dict(state_dict) if dtype is None else cast(state_dict, dtype)
    extra: dict[str, Any] = {}
    tokenizer = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
    if tokenizer is not None:
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the tokenizer {tokenizer_path} has {tokenizer.vocab_size} tokens, more than the model's vocab_size "
                f"{config.vocab_size}; it belongs to another model"
            )
        extra = {"bos_token_id": tokenizer.separator_id, "eos_token_id": tokenizer.separator_id}
    with whole_folder(out, write_manifest) as folder:
        export_hf(config, weights, folder, **extra)
        if tokenizer is not None:
            for name, content in tokenizer.folder_files().items():
                (folder / name).write_bytes(content)
        _write_json(folder / "generation_config.json", {**extra, "do_sample": True, "_from_model_config": False})
        _write_json(folder / CONFIG, config.to_dict())
        _write_json(folder / LINEAGE, dict(lineage or {}))
    return out


def load_bundle(path: str | Path) -> Bundle:
    """Verify a bundle and read it.

    Raises:
        UserError: naming the file that is missing, cut off or damaged.
    """
    path = Path(path)
    verify(path)
    config = read_bundle_config(path)
    _, weights = import_hf(path)
    return Bundle(config, weights, tokenizer_in(path), json.loads((path / LINEAGE).read_text(encoding="utf-8")))


def is_bundle(path: Path) -> bool:
    """Whether a folder is (or was meant to be) a bundle."""
    return (path / CONFIG).is_file() and (path / MANIFEST).is_file()


def read_bundle_config(path: Path) -> GPTConfig:
    """Read our own configuration of a bundle."""
    return GPTConfig.from_dict(json.loads((path / CONFIG).read_text(encoding="utf-8")))


def tokenizer_in(folder: Path) -> Path | None:
    """Return the folder itself if it holds a tokenizer, else None."""
    return folder if any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def cast(state_dict: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return the weights in another floating-point type.

    Raises:
        UserError: the name of the type is unknown.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    kind = DTYPES[dtype]
    return {name: value.to(kind) if value.is_floating_point() else value for name, value in state_dict.items()}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of a tokenizer to a folder of their own, whole or not at all."""
    with whole_folder(target) as folder:
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")

"""Adapters on disk: in a run's checkpoints, and as folders that `peft` can load.

A checkpoint of a run that trains an adapter contains only the adapter. The header of its `model.safetensors` identifies
the base model by the name that the user gave and by the SHA-256 of its weights (`hash_weights`), which is the same for
a run and for a bundle exported from it. A peft folder contains

    adapter_config.json         as written by peft, with Hugging Face's layer names
    adapter_model.safetensors   as written by peft
    lit_gpt.json                lit_gpt's configuration of the adapter and the model, and the base's hash
    manifest.json               sizes and SHA-256 of all files
    tokenizer and lineage       as in a bundle

In the few families whose layers have a different layout in Hugging Face's implementation (GPT-2's fused projections),
layers keep their lit_gpt names, which `lit_gpt.json` records; only lit_gpt can load such a folder.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_gpt.adapters import AdapterConfig, merged_weights
from lit_gpt.adapters.inject import plain_name
from lit_gpt.atomic import atomic_folder
from lit_gpt.checkpoints.bundle import CONFIG, check_free, tokenizer_in, write_json
from lit_gpt.checkpoints.provenance import LINEAGE, verify, write_manifest
from lit_gpt.checks import local_path
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.families import get_family
from lit_gpt.models.linear import is_plain_linear

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter on disk, whose weights are read on demand."""

    path: Path
    adapter: AdapterConfig
    config: GPTConfig
    """The adapted model's configuration; its vocabulary may be larger than that of the base."""
    base: str | None
    """The base model's name (path or Hub name) when the adapter was trained."""
    base_sha256: str | None
    load_tensors: Callable[[], dict[str, Tensor]]
    """Returns the adapter's tensors under lit_gpt's names (`lit_gpt.adapters.adapter_state_dict`)."""
    tokenizer_path: Path | None
    lineage: dict[str, Any] | None
    builder: dict[str, Any] | None = None
    """As in `ModelSource`."""

    def check_base(self, weights: Mapping[str, Tensor], config: GPTConfig, where: str) -> None:
        """Check that these weights are those of the base model that the adapter was trained on.

        Args:
            weights: the base model's complete weights under lit_gpt's names.
            config: the base model's configuration.
            where: name of the base in error messages.

        Raises:
            UserError: the hash of the weights differs.
        """
        found = hash_weights(weights, config)
        if self.base_sha256 is not None and found != self.base_sha256:
            raise UserError(
                f"the adapter {self.path} was trained on a different base than {where}: the base's weights hash to "
                f"{found[:12]}..., the adapter's base to {self.base_sha256[:12]}...; use its base, {self.base}"
            )

    def merged(self, weights: Mapping[str, Tensor], config: GPTConfig, where: str) -> dict[str, Tensor]:
        """Check the base and return its weights with the adapter merged in; arguments as in `check_base`."""
        self.check_base(weights, config, where)
        return merged_weights(weights, self.load_tensors(), self.adapter, block_linears(self.config))


def hash_weights(weights: Mapping[str, Tensor], config: GPTConfig) -> str:
    """Return the SHA-256 of a model's weights: names, dtypes, shapes and values, independent of the file format.

    Args:
        weights: complete weights under lit_gpt's names; a tied head is hashed once.
        config: the model's configuration.

    Returns:
        The hash; "" for a model on the meta device, which has no values.
    """
    if any(tensor.is_meta for tensor in weights.values()):
        return ""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adapter_info(adapter: AdapterConfig, base: str, base_sha256: str) -> dict[str, Any]:
    """Return the description of an adapter that is saved in a checkpoint, as plain data."""
    return {"config": adapter.to_dict(), "base": base, "base_sha256": base_sha256}


def read_adapter_info(info: Mapping[str, Any]) -> tuple[AdapterConfig, str | None, str | None]:
    """Return the adapter's configuration, its base's name and its base's hash: the inverse of `adapter_info`."""
    return AdapterConfig(**info["config"]), info.get("base"), info.get("base_sha256")


def block_linears(config: GPTConfig) -> list[str]:
    """Return the names of the linear layers in a model's blocks."""
    with torch.device("meta"):
        model = GPT(config)
    return [name for name, module in model.named_modules() if is_plain_linear(module) and name.startswith("blocks.")]


def from_checkpoint_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an adapter's tensors from the names in a checkpoint to those used in adapter files."""
    return {plain_name(name): value for name, value in tensors.items()}


def is_peft_folder(path: Path) -> bool:
    """Return whether a folder contains an adapter in peft's format."""
    return (path / PEFT_CONFIG).is_file()


def save_peft_folder(out: str | Path, saved: SavedAdapter) -> Path:
    """Write an adapter in peft's format, atomically, and return the folder.

    Raises:
        UserError: `out` exists, or the disk is full.
    """
    out = local_path("out", out)
    check_free(out)
    hf_names = hf_layer_names(saved.config)
    tensors = saved.load_tensors()
    adapted = sorted({name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name})
    as_hf = all(layer in hf_names for layer in adapted)
    named = {_PEFT_PREFIX + (_renamed(name, hf_names) if as_hf else name): value for name, value in tensors.items()}
    unadapted = sorted({name.rpartition(".")[0] for name in tensors if ".lora_" not in name})
    with atomic_folder(out, write_manifest) as folder:
        save_file({name: value.contiguous() for name, value in named.items()}, folder / PEFT_WEIGHTS)
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": saved.base,
            "inference_mode": True,
            "r": saved.adapter.rank,
            "lora_alpha": saved.adapter.alpha,
            "lora_dropout": saved.adapter.dropout,
            "use_dora": saved.adapter.dora,
            "use_rslora": saved.adapter.rslora,
            "bias": "none",
            "target_modules": [hf_names[layer] for layer in adapted] if as_hf else adapted,
            "modules_to_save": [hf_names.get(name, name).rpartition(".")[2] for name in unadapted] or None,
        }
        write_json(folder / PEFT_CONFIG, config)
        info = adapter_info(saved.adapter, saved.base or "", saved.base_sha256 or "")
        names = "hugging_face" if as_hf else "lit_gpt"
        write_json(folder / CONFIG, {"adapter": info, "names": names, "config": saved.config.to_dict()})
        write_json(folder / LINEAGE, saved.lineage or {})
        if saved.tokenizer_path is not None:
            for name, content in load_tokenizer(saved.tokenizer_path).folder_files().items():
                (folder / name).write_bytes(content)
    return out


def read_peft_folder(path: Path) -> SavedAdapter:
    """Open a folder written by `save_peft_folder`.

    Raises:
        UserError: the folder is damaged, or was not written by lit_gpt.
    """
    if not (path / CONFIG).is_file():
        raise UserError(
            f"{path} was not written by lit_gpt: it has no {CONFIG}, so its base cannot be checked; merge it into its "
            "base with peft, and import the result"
        )
    verify(path)
    values = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    adapter, base, base_sha256 = read_adapter_info(values["adapter"])
    config = GPTConfig.from_dict(values["config"])

    def load() -> dict[str, Tensor]:
        tensors = load_file(path / PEFT_WEIGHTS)
        to_local = {hf: local for local, hf in hf_layer_names(config).items()} if values["names"] != "lit_gpt" else {}
        return {_renamed(name.removeprefix(_PEFT_PREFIX), to_local): value for name, value in tensors.items()}

    lineage = path / LINEAGE
    return SavedAdapter(
        path,
        adapter,
        config,
        base,
        base_sha256,
        load,
        tokenizer_in(path),
        json.loads(lineage.read_text(encoding="utf-8")) if lineage.is_file() else None,
    )


def hf_layer_names(config: GPTConfig) -> dict[str, str]:
    """Return a map from lit_gpt's layer names to Hugging Face's, for layers whose weight is the same tensor in both."""
    entries = get_family(config.family).entries(config)
    same = {e.local[0]: e.file[0] for e in entries if len(e.local) == len(e.file) == 1 and not e.transforms}
    return {
        local.removesuffix(".weight"): hf.removesuffix(".weight")
        for local, hf in same.items()
        if local.endswith(".weight") and hf.endswith(".weight")
    }


def _renamed(name: str, layers: Mapping[str, str]) -> str:
    """Return a tensor's name with its layer renamed."""
    for ending in (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector", ".weight"):
        if name.endswith(ending):
            layer = name.removesuffix(ending)
            return layers.get(layer, layer) + ending
    return name

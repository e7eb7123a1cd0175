"""Adapters on disk: in a run's checkpoints, and as folders that `peft` opens.

A checkpoint of a run with an adapter holds the adapter alone, and in the header of its `model.safetensors` what base
it belongs to: the name that the user gave, and the SHA-256 of the base's weights (`hash_weights`), which is the same
for a run and for the bundle that was exported from it. A peft folder holds

    adapter_config.json         as peft writes it, with Hugging Face's names of the layers
    adapter_model.safetensors   the same
    lit_gpt.json                our configuration of the adapter, the model's, and the base's hash
    manifest.json               sizes and SHA-256
    tokenizer and lineage       as in a bundle

For the few families whose layers are laid out otherwise on Hugging Face's side (GPT-2's fused projections), the layers
keep our names, and `lit_gpt.json` says so: such a folder is for lit_gpt alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lit_gpt.adapters import AdapterConfig, merged_weights
from lit_gpt.adapters.inject import plain_name
from lit_gpt.atomic import atomic_folder
from lit_gpt.checkpoints.bundle import CONFIG, check_free, tokenizer_in, write_json
from lit_gpt.checkpoints.provenance import LINEAGE, verify, write_manifest
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.families import get_family

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that was found, its weights not read yet."""

    path: Path
    adapter: AdapterConfig
    config: GPTConfig
    """Of the adapted model: its vocabulary may be larger than the base's."""
    base: str | None
    """How the base was named when the adapter was trained."""
    base_sha256: str | None
    load_tensors: Callable[[], dict[str, Tensor]]
    """The adapter's tensors by our names (`lit_gpt.adapters.adapter_state_dict`)."""
    tokenizer_path: Path | None
    lineage: dict[str, Any] | None

    def check_base(self, weights: Mapping[str, Tensor], config: GPTConfig, where: str) -> None:
        """Refuse a base that is not the one that the adapter was trained on.

        Raises:
            UserError: its weights have another hash.
        """
        found = hash_weights(weights, config)
        if self.base_sha256 is not None and found != self.base_sha256:
            raise UserError(
                f"the adapter {self.path} was trained on another base than {where}: the base's weights hash to "
                f"{found[:12]}..., the adapter's base to {self.base_sha256[:12]}... ({self.base})"
            )

    def merged(self, weights: Mapping[str, Tensor], config: GPTConfig, where: str) -> dict[str, Tensor]:
        """Return the base's weights with the adapter in them, after checking the base."""
        self.check_base(weights, config, where)
        return merged_weights(weights, self.load_tensors(), self.adapter, block_linears(self.config))


def hash_weights(weights: Mapping[str, Tensor], config: GPTConfig) -> str:
    """Return one SHA-256 for a model's weights by content, whatever files they lie in.

    Args:
        weights: whole, under our names; a tied head counts once.
        config: the model's.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def adapter_info(adapter: AdapterConfig, base: str, base_sha256: str) -> dict[str, Any]:
    """Return what a checkpoint says about its adapter, as plain data."""
    return {"config": adapter.to_dict(), "base": base, "base_sha256": base_sha256}


def read_adapter_info(info: Mapping[str, Any]) -> tuple[AdapterConfig, str | None, str | None]:
    """Return what `adapter_info` made plain data of."""
    return AdapterConfig(**info["config"]), info.get("base"), info.get("base_sha256")


def block_linears(config: GPTConfig) -> list[str]:
    """Return the names of the linear layers in a model's blocks."""
    with torch.device("meta"):
        model = GPT(config)
    return [name for name, module in model.named_modules() if type(module) is nn.Linear and name.startswith("blocks.")]


def from_checkpoint_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an adapter's tensors under the names of the files from those of a checkpoint."""
    return {plain_name(name): value for name, value in tensors.items()}


def is_peft_folder(path: Path) -> bool:
    """Whether a folder holds an adapter in peft's format."""
    return (path / PEFT_CONFIG).is_file()


def save_peft_folder(out: str | Path, saved: SavedAdapter) -> Path:
    """Write an adapter in peft's format, whole or not at all.

    Raises:
        UserError: there is something at `out`, or the disk is full.
    """
    out = Path(out)
    check_free(out)
    hf_names = hf_layer_names(saved.config)
    tensors = saved.load_tensors()
    adapted = sorted({name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name})
    as_hf = all(layer in hf_names for layer in adapted)
    named = {_PEFT_PREFIX + (_renamed(name, hf_names) if as_hf else name): value for name, value in tensors.items()}
    whole = sorted({name.rpartition(".")[0] for name in tensors if ".lora_" not in name})
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
            "modules_to_save": [hf_names.get(name, name).rpartition(".")[2] for name in whole] or None,
        }
        write_json(folder / PEFT_CONFIG, config)
        ours = adapter_info(saved.adapter, saved.base or "", saved.base_sha256 or "")
        names = "hugging_face" if as_hf else "lit_gpt"
        write_json(folder / CONFIG, {"adapter": ours, "names": names, "config": saved.config.to_dict()})
        write_json(folder / LINEAGE, saved.lineage or {})
        if saved.tokenizer_path is not None:
            for name, content in load_tokenizer(saved.tokenizer_path).folder_files().items():
                (folder / name).write_bytes(content)
    return out


def read_peft_folder(path: Path) -> SavedAdapter:
    """Find the adapter in a folder that `save_peft_folder` wrote.

    Raises:
        UserError: it is damaged, or was not written by lit_gpt.
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
        ours = {their: our for our, their in hf_layer_names(config).items()} if values["names"] != "lit_gpt" else {}
        return {_renamed(name.removeprefix(_PEFT_PREFIX), ours): value for name, value in tensors.items()}

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
    """Return our name of each layer → Hugging Face's, of those whose weight is the same tensor there."""
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

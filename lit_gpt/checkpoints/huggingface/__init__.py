"""Hugging Face folders in and out, one file a family.

Importing: config.json → `GPTConfig`, then each of the file's tensors through the family's table; whatever is left
over, missing or of another shape is an error that lists it. Exporting is the same table read the other way.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.huggingface.family import Entry, Family
from lit_gpt.checkpoints.huggingface.gpt2 import GPT2
from lit_gpt.checkpoints.huggingface.llama import LLAMA
from lit_gpt.checkpoints.huggingface.qwen3 import QWEN3
from lit_gpt.checkpoints.huggingface.tensors import Readers, open_tensors, read_json
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.models.nearest import nearest

FAMILIES: dict[str, Family] = {family.model_type: family for family in (GPT2, LLAMA, QWEN3)}

__all__ = ["FAMILIES", "Entry", "Family", "config_from_hf", "config_to_hf", "export_hf", "import_hf"]


def config_from_hf(values: dict[str, Any]) -> GPTConfig:
    """A config.json, parsed, as `GPTConfig`.

    Raises:
        UserError: If the family is unknown (the nearest are named) or the config asks for what we do not compute.
    """
    model_type = str(values.get("model_type"))
    if model_type not in FAMILIES:
        raise UserError(f"model_type {model_type!r} cannot be imported; nearest: {nearest(model_type, FAMILIES)}")
    if values.get("quantization_config") is not None:
        raise UserError("config.json has a quantization_config; import the model's unquantised weights")
    return FAMILIES[model_type].read_config(values)


def config_to_hf(config: GPTConfig, **extra: Any) -> dict[str, Any]:
    """A `GPTConfig` as the contents of config.json.

    Args:
        config: The model's shape.
        **extra: Further keys, e.g. `eos_token_id`. The ids of special tokens are null unless given, because
            transformers' defaults for a family are those of its own vocabulary.

    Raises:
        UserError: If the config's family cannot express it.
    """
    family = FAMILIES[config.family]
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        **family.write_config(config),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **extra,
    }


def import_hf(path: str | Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Read a Hugging Face model folder.

    Args:
        path: The folder, with config.json and weights.

    Returns:
        The config, and the weights under our names, in the dtypes of the file; a tied head is in there once, as
        `wte.weight` (`GPT.load_state_dict` knows).

    Raises:
        UserError: If a file is missing or damaged, the family is unknown, or weights and config disagree.
    """
    folder = Path(path)
    config = config_from_hf(read_json(folder / "config.json"))
    family = FAMILIES[config.family]
    entries = family.entries(config)
    readers = _matched(family, config, open_tensors(folder), entries, folder)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GPT(config).named_parameters()}
    state: dict[str, Tensor] = {}
    for entry in entries:
        for name, tensor in entry.to_ours(readers[entry.theirs]()).items():
            if tensor.shape != shapes[name]:
                raise UserError(
                    f"{entry.theirs} in {folder} gives {name} the shape {tuple(tensor.shape)}, but config.json asks "
                    f"for {tuple(shapes[name])}; the two files do not belong together"
                )
            state[name] = tensor
    return config, state


def export_hf(
    config: GPTConfig,
    state_dict: dict[str, Tensor],
    out_dir: str | Path,
    max_shard_size: int | str = "5GB",
    **extra: Any,
) -> None:
    """Write config.json and safetensors that `AutoModelForCausalLM.from_pretrained` opens.

    Args:
        config: The model's shape; its `family` chooses the class.
        state_dict: Weights under our names, whole tensors on any device.
        out_dir: Made if it is not there.
        max_shard_size: Bytes, or such as "5GB"; more than that is split over several files with an index.
        **extra: Further keys of config.json, e.g. `eos_token_id`.

    Raises:
        UserError: If the family cannot express the config, or tensors are missing or left over (they are listed).
    """
    from huggingface_hub import save_torch_state_dict

    values = config_to_hf(config, **extra)
    entries = FAMILIES[config.family].entries(config)
    needed = {name for entry in entries for name in entry.ours}
    given = set(state_dict) - ({"lm_head.weight"} if config.tie_embeddings else set())
    _agree(f"the weights to export as {config.family}", missing=needed - given, leftover=given - needed)
    values["dtype"] = str(state_dict["wte.weight"].dtype).removeprefix("torch.")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {entry.theirs: entry.to_theirs(state_dict).detach().cpu() for entry in entries}
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _matched(family: Family, config: GPTConfig, readers: Readers, entries: list[Entry], folder: Path) -> Readers:
    """The readers under the table's names, after checking that the file holds those and nothing else."""
    needed = {entry.theirs for entry in entries}
    named: Readers = {}
    for name, reader in readers.items():
        if name.endswith(family.buffers):
            continue
        # Files saved from the model without its head lack the prefix.
        whole = name if name in needed else family.base_prefix + name
        named[whole if whole in needed else name] = reader
    head = named.pop("lm_head.weight", None) if config.tie_embeddings else None
    _agree(f"{folder}", missing=needed - set(named), leftover=set(named) - needed)
    if head is not None:
        embedding = next(entry.theirs for entry in entries if entry.ours == ("wte.weight",))
        if not torch.equal(head(), named[embedding]()):
            raise UserError(
                f"config.json in {folder} ties the embeddings, but lm_head.weight and {embedding} differ; "
                "set tie_word_embeddings to false there"
            )
    return named


def _agree(where: str, missing: set[str], leftover: set[str]) -> None:
    problems = [
        f"{len(names)} tensors {what}: {', '.join(sorted(names))}"
        for what, names in (("are missing", missing), ("are left over", leftover))
        if names
    ]
    if problems:
        raise UserError(f"{where} and the config disagree; {'; '.join(problems)}")

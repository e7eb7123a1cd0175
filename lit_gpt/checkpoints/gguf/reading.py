"""Read a GGUF file as a `GPTConfig` and weights under lit_gpt's names: the inverse of `architecture` and `writing`.

A file contains less than a config.json: some settings are fixed for an architecture (`GGUFArchitecture.fixed`), others
can be inferred only from which tensors exist (biases, a tied head, learned positions), and Llama 3's RoPE scaling is
stored as the resulting divisors. So the settings that an export of the config would write are compared with the file's,
and a setting that this does not explain is an error and never ignored.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.checkpoints.gguf.architecture import rope_factors, settings, weight_table
from lit_gpt.checkpoints.gguf.file import GGUFFile, open_gguf
from lit_gpt.checkpoints.gguf.vocabulary import ReadVocabulary, read_vocabulary
from lit_gpt.checkpoints.huggingface import LazyWeights, config_to_hf
from lit_gpt.checkpoints.huggingface.tensors import check_names
from lit_gpt.errors import UserError
from lit_gpt.models import GPTConfig
from lit_gpt.models.config import MoEConfig, RopeScaling
from lit_gpt.models.families import Family, GGUFArchitecture, model_types
from lit_gpt.models.families.config_json import FULL, SLIDING, read_layers, shortest_pattern
from lit_gpt.models.families.family import ANY

_NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.layer_norm_epsilon": ANY,  # in addition to that of RMSNorm
    "attention.max_alibi_bias": 0.0,
    "expert_count": 0,
    "expert_gating_func": 1,  # softmax
    "expert_group_count": 0,
    "expert_group_used_count": 0,
    "expert_shared_count": 0,
    "expert_used_count": 0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "nextn_predict_layers": 0,
    "rope.scale_linear": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.finetuned": ANY,
    "rope.scaling.original_context_length": ANY,  # read if a scaling needs it
    "rope.scaling.type": "none",
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "tensor_data_layout": ANY,  # a note on the file's origin
}
"""Settings that are not part of a `GPTConfig`, with the value that has no effect."""
_PATTERN = "attention.sliding_window_pattern"
_LLAMA3_FACTORS = "rope_freqs.weight"
_LONGROPE_FACTORS = ("rope_factors_short.weight", "rope_factors_long.weight")
_LONGEST_CONTEXT = 24
"""Original contexts of Llama 3's scaling are searched among the powers of two below this exponent."""


@dataclass(frozen=True)
class GGUFModel:
    """A model in a GGUF file."""

    config: GPTConfig
    weights: LazyWeights
    tokenizer: ReadVocabulary | None


def open_gguf_model(path: str | Path) -> GGUFModel:
    """Open a GGUF file; its weights are dequantized one at a time, on access.

    Raises:
        UserError: If it is damaged, or has an unsupported architecture, setting, type or tokenizer.
    """
    file = open_gguf(path)
    config, weights = read_gguf(file)
    try:
        return GGUFModel(config, weights, read_vocabulary(file.metadata, config.vocab_size))
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_gguf(file: GGUFFile) -> tuple[GPTConfig, LazyWeights]:
    """Return a file's config and its weights, each of which is dequantized when it is accessed.

    Weights are float32 unless a single half-precision type represents all of them exactly.

    Raises:
        UserError: If the architecture is unknown or has an unsupported feature, or tensors are missing, unexpected or
            of the wrong shape.
    """
    config, architecture = read_config(file)
    table = weight_table(config, architecture)
    needed = {name for entry in table for name in entry.file}
    extra = {_LLAMA3_FACTORS, *_LONGROPE_FACTORS, *(("output.weight",) if config.tie_embeddings else ())}
    check_names(str(file.path), missing=needed - file.tensors.keys(), leftover=file.tensors.keys() - needed - extra)
    return config, LazyWeights(config, table, file.tensors, _common_dtype(file), file.path)


def read_config(file: GGUFFile) -> tuple[GPTConfig, GGUFArchitecture]:
    """Return a file's config and architecture.

    Several families may share an architecture (Llama, Mistral and Mixtral are all `llama`): the first one that can
    express the settings is used.

    Raises:
        UserError: If the architecture is unknown, or no family expresses the settings; the message names the first
            unsupported setting.
    """
    name = file.metadata.get("general.architecture")
    if file.metadata.get("general.type", "model") != "model":
        raise UserError(
            f"{file.path} is not a model but a file of type {file.metadata['general.type']!r}; use a model file"
        )
    families = [family for family in model_types().values() if family.gguf is not None and family.gguf.name == name]
    if not families:
        known = dict.fromkeys(family.gguf.name for family in model_types().values() if family.gguf is not None)
        raise UserError(
            f"{file.path} has architecture {name!r}; lit_gpt reads {', '.join(known)}: import the model's Hugging "
            "Face folder instead"
        )
    problems = []
    for family in families:
        assert family.gguf is not None
        try:
            config = _config_as(file, family, family.gguf)
            config_to_hf(config)  # raises for values that the family cannot express
            return config, family.gguf
        except UserError as error:
            problems.append(error)
    raise UserError(f"{file.path} cannot be read: {problems[0]}") from problems[0]


def _config_as(file: GGUFFile, family: Family, architecture: GGUFArchitecture) -> GPTConfig:
    prefix = f"{architecture.name}."
    values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    try:
        fields = _Settings(values, file, architecture).fields()
        fields |= _attention_scale(fields, architecture)
        config = GPTConfig(**fields, family=family.name)
        if (scaling := _scaling(values, config, file.tensors)) is not None:
            config = replace(config, rope_scaling=scaling)
        _check_settings(values, config, architecture)
        return config
    except UserError:
        raise
    except (TypeError, AttributeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(f"a setting has a type or value that llama.cpp does not write ({error})") from error


class _Settings:
    """Reads the config fields that are common to all architectures, and those of this one."""

    def __init__(self, values: Mapping[str, Any], file: GGUFFile, architecture: GGUFArchitecture) -> None:
        self.values, self.file, self.architecture = values, file, architecture

    def fields(self) -> dict[str, Any]:
        fixed, own = self.architecture.fixed, self.architecture.read(self.values)
        n_head, n_embd = self._get("attention.head_count"), self._get("embedding_length")
        head_dim = self._get("attention.key_length", n_embd // n_head)
        kv_heads = self._get("attention.head_count_kv", n_head)
        if "token_embd.weight" not in self.file.tensors:
            raise UserError("it has no tensor token_embd.weight; download it again")
        norm = fixed.get("norm", "rmsnorm")
        fields: dict[str, Any] = {
            "n_layer": self._get("block_count"),
            "n_head": n_head,
            "n_kv_head": None if kv_heads == n_head else kv_heads,
            "n_embd": n_embd,
            "head_size": None if head_dim * n_head == n_embd else head_dim,
            "block_size": self._get("context_length"),
            "vocab_size": self.file.tensors["token_embd.weight"].shape[0],
            "intermediate_size": self._get("feed_forward_length"),
            "bias": False,
            "norm": norm,
            "norm_eps": self._get(f"attention.layer_norm{'_rms' if norm == 'rmsnorm' else ''}_epsilon"),
            "positions": "rope",
            "mlp": "swiglu",
            "tie_embeddings": self._tied(),
            "scale_residual_init": False,
            "attention_softcap": self.values.get("attn_logit_softcapping"),
            "logit_softcap": self.values.get("final_logit_softcapping"),
            **self._mixture(),
            **dict(self._biases(fixed.get("bias", False))),
        }
        if fixed.get("positions", "rope") == "rope":
            fields["rope_theta"] = self._get("rope.freq_base", 10000.0)
            fields["rope_fraction"] = self._get("rope.dimension_count", head_dim) / head_dim
            fields |= self._layers(fields, own.get("rope_local_theta", self.values.get("rope.freq_base_swa")))
        return fields | {key: value for key, value in own.items() if key != "rope_local_theta"} | dict(fixed)

    def _get(self, key: str, *default: Any) -> Any:
        """Return a setting; if it is a list with one value per layer, the values must be equal."""
        value = self.values.get(key, *default)
        if value is None:
            raise UserError(f"it has no setting {self.architecture.name}.{key}; download it again")
        if not isinstance(value, list):
            return value
        if len(set(value)) != 1:
            raise UserError(f"{self.architecture.name}.{key} differs between layers, which lit_gpt does not support")
        return value[0]

    def _tied(self) -> bool:
        """Return whether the head is tied: it has no tensor, or (`own_head`) one that equals the embedding."""
        tensors, types = self.file.tensors, self.file.types
        head, embedding = "output.weight", "token_embd.weight"
        if head not in tensors:
            return True
        if not self.architecture.own_head or types[head] != types[embedding]:
            return False
        return torch.equal(tensors[head].read(), tensors[embedding].read())

    def _biases(self, bias: bool) -> Iterator[tuple[str, bool]]:
        """Yield the bias fields that differ from `bias`, inferred from the tensors of the first layer."""
        names = self.file.tensors
        attention = "blk.0.attn_q.bias" in names or "blk.0.attn_qkv.bias" in names
        out, mlp = "blk.0.attn_output.bias" in names, "blk.0.ffn_up.bias" in names
        if attention != bias:
            yield "attention_bias", attention
        if out != attention:
            yield "attention_out_bias", out
        if mlp != bias:
            yield "mlp_bias", mlp

    def _layers(self, fields: dict[str, Any], local: float | None) -> dict[str, Any]:
        """Return which layers use RoPE and sliding windows, and RoPE's base in sliding-window layers."""
        layers, found = range(fields["n_layer"]), {}
        if (every := self.architecture.unrotated_every) is not None:
            found["rope_layers"] = shortest_pattern([bool((layer + 1) % every) for layer in layers])
        window = self.values.get("attention.sliding_window")
        if not window:
            return found
        pattern = self.values.get(_PATTERN, self.architecture.full_every)
        slides = _slides(pattern, fields["n_layer"])
        types = [SLIDING if slide else FULL for slide in slides]
        found |= read_layers(types, window, fields["block_size"], keep=local is not None)
        return found | ({} if found["sliding_window"] is None else {"rope_local_theta": local})

    def _mixture(self) -> dict[str, Any]:
        if not self.values.get("expert_count"):
            return {}
        size = self.values.get("expert_feed_forward_length")
        return {
            "moe": MoEConfig(
                num_experts=self.values["expert_count"],
                num_experts_per_tok=self._get("expert_used_count"),
                intermediate_size=None if size == self._get("feed_forward_length") else size,
            )
        }


def _slides(pattern: list[bool] | int | None, n_layer: int) -> list[bool]:
    """Return which layers use a sliding window: those in a list, all but every n-th, or all."""
    if isinstance(pattern, list):
        return [bool(slides) for slides in pattern]
    return [pattern is None or bool((layer + 1) % pattern) for layer in range(n_layer)]


def _attention_scale(fields: dict[str, Any], architecture: GGUFArchitecture) -> dict[str, Any]:
    """Return the attention scale of architectures that derive it from the width at one depth."""
    n_embd, n_head = fields["n_embd"], fields["n_head"]
    if fields["n_layer"] != architecture.width_scaled_depth or fields["head_size"] in (None, n_embd // n_head):
        return {}
    return {"attention_scale": (n_embd // n_head) ** -0.5}


def _scaling(values: Mapping[str, Any], config: GPTConfig, tensors: Mapping[str, Any]) -> RopeScaling | None:
    """Return the RoPE scaling given by settings and tensors.

    Raises:
        UserError: If it is not supported.
    """
    kind, factor = values.get("rope.scaling.type", "none"), values.get("rope.scaling.factor", 1.0)
    original = values.get("rope.scaling.original_context_length") or config.block_size
    attention = values.get("rope.scaling.attn_factor", 1.0)
    if _LLAMA3_FACTORS in tensors:
        return _llama3(tensors[_LLAMA3_FACTORS].read(), config)
    if _LONGROPE_FACTORS[1] in tensors:
        short, long = (tuple(_rounded(tensors[name].read())) for name in _LONGROPE_FACTORS)
        found = RopeScaling("longrope", config.block_size / original, original, short_factors=short, long_factors=long)
        same = math.isclose(found.rotation_scale, attention, rel_tol=1e-6)
        return found if same else replace(found, attention_factor=attention)
    if kind == "linear":
        return RopeScaling("linear", factor) if factor != 1 else None
    if kind == "yarn":
        fast, slow = values.get("rope.scaling.yarn_beta_fast", 32.0), values.get("rope.scaling.yarn_beta_slow", 1.0)
        found = RopeScaling("yarn", factor, original, beta_fast=fast, beta_slow=slow)
        scale = attention * found.temperature(1.0)  # llama.cpp multiplies it by the paper's temperature
        return found if attention == 1.0 else replace(found, attention_factor=scale)
    if kind != "none":
        raise UserError(f"rope.scaling.type is {kind!r}; lit_gpt reads none, linear, yarn, longrope and Llama 3's")
    return None


def _llama3(divisors: Tensor, config: GPTConfig) -> RopeScaling | None:
    """Return the scaling with these divisors of the frequencies, if it has Llama 3's low and high frequency factors."""
    if bool((divisors == 1).all()):
        return None
    for power in range(_LONGEST_CONTEXT):
        found = RopeScaling("llama3", float(divisors.max()), 1 << power)
        scaled = replace(config, rope_scaling=found)
        if torch.allclose(rope_factors(scaled)[_LLAMA3_FACTORS], divisors, rtol=1e-4, atol=0.0):
            return found
    raise UserError(
        f"{_LLAMA3_FACTORS} has divisors that differ from Llama 3's (low_freq_factor 1, high_freq_factor 4); import "
        "the "
        "model's Hugging Face folder instead"
    )


def _rounded(tensor: Tensor) -> list[float]:
    return [float(str(value)) for value in tensor.numpy()]


def _check_settings(values: Mapping[str, Any], config: GPTConfig, architecture: GGUFArchitecture) -> None:
    """Raise unless the config explains all of the file's settings."""
    prefix = f"{architecture.name}."
    written = {key.removeprefix(prefix): value for key, value in settings(config, architecture).items()}
    for key, value in values.items():
        if key == _PATTERN:
            understood = config.sliding_window is None or _slides(value, config.n_layer) == [
                config.slides(layer) for layer in range(config.n_layer)
            ]
        elif key == "attention.sliding_window" and config.sliding_window in (None, config.block_size):
            understood = value == 0 or value >= config.block_size  # a window without effect
        elif key in written:
            understood = _same(value, written[key])
        else:
            understood = key in _NEUTRAL and (_NEUTRAL[key] is ANY or _same(value, _NEUTRAL[key]))
        if not understood:
            only = f"only {written[key]!r}" if key in written else "the setting is unknown"
            raise UserError(f"it has {prefix}{key} = {value!r}, which lit_gpt does not support ({only})")


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, list) and not isinstance(wanted, list):
        return all(_same(one, wanted) for one in value)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(map(_same, value, wanted))
    if isinstance(value, float) or isinstance(wanted, float):
        return math.isclose(value, wanted, rel_tol=1e-6)
    return bool(value == wanted)


def _common_dtype(file: GGUFFile) -> torch.dtype:
    """Return the half-precision dtype of all matrices if it represents the vectors exactly, otherwise float32.

    llama.cpp always stores vectors in float32; for a model trained in half precision this is lossless.
    """
    matrices = {tensor.dtype for tensor in file.tensors.values() if len(tensor.shape) > 1}
    half = matrices.pop() if len(matrices) == 1 else torch.float32
    reads: list[Callable[[], Tensor]] = [tensor.read for tensor in file.tensors.values() if len(tensor.shape) == 1]
    exact = half != torch.float32 and all(torch.equal(value.to(half).float(), value) for value in (r() for r in reads))
    return half if exact else torch.float32

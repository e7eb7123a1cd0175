"""GGUF files read back with the `gguf` package: every tensor by llama.cpp's own table of names, settings, tokenizers.

(A real llama.cpp is asked in `benchmarks/llama_cpp.py`: it has to be built.)
"""

import math
import sys

import gguf
import numpy as np
import pytest
import torch
import transformers

from lit_gpt.checkpoints.gguf import gguf_families, save_gguf
from lit_gpt.checkpoints.gguf.architecture import differences
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig, get_preset, preset_names
from lit_gpt.models.families import get_family
from lit_gpt.models.families.ladder import shrink


def small(family, **overrides):
    """A preset of a family in small, without the windows that llama.cpp does not compute."""
    preset = get_preset(next(name for name in preset_names() if get_preset(name).family == family))
    if family in ("mistral", "phi3"):
        overrides["sliding_window"] = None
    return shrink(preset, n_layer=2, n_embd=64, n_head=4, block_size=64, vocab_size=96).overridden(overrides)


def random_weights(config):
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in GPT(config).state_dict().items()}


def read(path):
    """Fields and tensors (as float32, in torch's order of dimensions) of a file."""
    reader = gguf.GGUFReader(path)
    tensors = {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(list(reversed(t.shape.tolist()))) for t in reader.tensors
    }
    return {name: field.contents() for name, field in reader.fields.items()}, tensors, reader


def for_neighbours(rows, heads):
    """llama.cpp's own `permute` (conversion/llama.py): halves of a head become neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def as_llama_cpp_has_them(config, weights):
    """Every tensor from Hugging Face's, by gguf's table of names and the converters' rules."""
    names = gguf.get_tensor_name_map(
        next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == get_family(config.family).gguf.name),
        config.n_layer,
    )
    hf = {}
    for entry in get_family(config.family).entries(config):
        hf |= {name: value.numpy() for name, value in entry.to_file(weights).items()}
    expected, experts = {}, {}
    D, heads, kv_heads = config.head_dim, config.n_head, config.num_kv_heads
    for name, value in hf.items():
        if config.family == "gpt2" and value.ndim == 2 and name.split(".")[-2].startswith("c_"):
            value = value.T
        if "query_key_value" in name:
            value = np.concatenate(list(np.moveaxis(value.reshape(heads, 3, D, *value.shape[1:]), 1, 0)))
            value = value.reshape(3 * heads * D, *value.shape[2:])
        if get_family(config.family).gguf.interleaved and "q_proj" in name:
            value = for_neighbours(value, heads)
        if get_family(config.family).gguf.interleaved and "k_proj" in name:
            value = for_neighbours(value, kv_heads)
        if config.family.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        if ".experts." in name:
            before, _, after = name.partition(".experts.")
            number, _, part = after.partition(".")
            before = before.replace("block_sparse_moe", "mlp").replace("mlp", "mlp.experts")
            part = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(part.split(".")[0], part.split(".")[0])
            experts.setdefault(f"{before}.{part}.weight", {})[int(number)] = value
            continue
        expected[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value
    for name, parts in experts.items():
        expected[names.get_name(name, try_suffixes=(".weight",))] = np.stack([parts[i] for i in range(len(parts))])
    return expected


@pytest.mark.parametrize("family", gguf_families())
def test_every_tensor_is_where_llama_cpp_looks_for_it(tmp_path, family):
    config = small(family)
    weights = random_weights(config)
    report = save_gguf(tmp_path / "model.gguf", config, weights, dtype="float32")
    fields, tensors, _ = read(report.path)
    assert fields["general.architecture"] == get_family(family).gguf.name
    expected = as_llama_cpp_has_them(config, weights)
    if config.tie_embeddings and get_family(family).gguf.own_head:
        expected["output.weight"] = expected["token_embd.weight"]
    assert tensors.keys() - {"rope_freqs.weight"} == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(tensors[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_settings_of_a_llama_and_of_a_gemma(tmp_path):
    llama = GPTConfig(
        n_layer=2, n_head=4, n_kv_head=2, n_embd=64, head_size=24, block_size=128, vocab_size=96, bias=False,
        norm="rmsnorm", norm_eps=1e-5, positions="rope", rope_theta=5e5, mlp="swiglu", intermediate_size=160,
        tie_embeddings=False, family="llama",
    )  # fmt: skip
    save_gguf(tmp_path / "llama.gguf", llama, random_weights(llama), name="small llama")
    fields, _, _ = read(tmp_path / "llama.gguf")
    assert fields["general.name"] == "small llama"
    found = {key.removeprefix("llama."): value for key, value in fields.items() if key.startswith("llama.")}
    assert found == pytest.approx(
        {
            "vocab_size": 96,
            "context_length": 128,
            "embedding_length": 64,
            "block_count": 2,
            "feed_forward_length": 160,
            "attention.head_count": 4,
            "attention.head_count_kv": 2,
            "attention.key_length": 24,
            "attention.value_length": 24,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": 24,
            "rope.freq_base": 5e5,
        }
    )
    gemma = small("gemma3")
    save_gguf(tmp_path / "gemma.gguf", gemma, random_weights(gemma))
    fields, _, _ = read(tmp_path / "gemma.gguf")
    assert fields["gemma3.attention.sliding_window"] == 16
    assert fields["gemma3.rope.freq_base"] == 1e6
    assert fields["gemma3.rope.freq_base_swa"] == 1e4


def test_stretched_rope(tmp_path):
    scaling = {"kind": "llama3", "factor": 8.0, "original_block_size": 64, "low_freq_factor": 1.0}
    config = small("llama").overridden({"rope_scaling": scaling, "block_size": 512})
    save_gguf(tmp_path / "llama3.gguf", config, random_weights(config))
    _, tensors, _ = read(tmp_path / "llama3.gguf")
    expected = []  # LlamaModel.generate_extra_tensors of llama.cpp's converter, which is Llama's own `apply_scaling`
    for pair in range(config.head_dim // 2):
        wavelength = 2 * math.pi * config.rope_theta ** (2 * pair / config.head_dim)
        if wavelength < 64 / 4.0:
            expected.append(1.0)
        elif wavelength > 64 / 1.0:
            expected.append(8.0)
        else:
            smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append(1 / ((1 - smooth) / 8.0 + smooth))
    assert {1.0, 8.0} < set(expected)
    np.testing.assert_allclose(tensors["rope_freqs.weight"], expected, rtol=1e-5)

    yarn = small("qwen3").overridden({"rope_scaling": {"kind": "yarn", "factor": 4.0, "original_block_size": 16}})
    save_gguf(tmp_path / "yarn.gguf", yarn, random_weights(yarn))
    fields, _, _ = read(tmp_path / "yarn.gguf")
    assert fields["qwen3.rope.scaling.type"] == "yarn"
    assert fields["qwen3.rope.scaling.factor"] == 4.0
    assert fields["qwen3.rope.scaling.original_context_length"] == 16
    assert fields["qwen3.rope.scaling.attn_factor"] == 1.0  # llama.cpp has the paper's temperature itself


@pytest.mark.parametrize(
    ("dtype", "kind", "share"), [("float16", "F16", 0.51), ("bfloat16", "BF16", 0.51), ("q8_0", "Q8_0", 0.29)]
)
def test_matrices_are_rounded_and_vectors_are_not(tmp_path, dtype, kind, share):
    config = small("qwen3_moe").overridden({"n_embd": 96, "head_size": 20})  # o_proj: rows of 80, no blocks of 32
    weights = random_weights(config)
    full = save_gguf(tmp_path / "full.gguf", config, weights, dtype="float32")
    report = save_gguf(tmp_path / "model.gguf", config, weights, dtype=dtype)
    _, tensors, reader = read(report.path)
    types = {t.name: t.tensor_type.name for t in reader.tensors}
    assert types["blk.0.attn_q.weight"] == types["blk.0.ffn_down_exps.weight"] == types["token_embd.weight"] == kind
    assert types["blk.0.attn_norm.weight"] == types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.attn_output.weight"] == ("F16" if dtype == "q8_0" else kind)
    assert report.num_bytes < full.num_bytes * share
    _, exact, _ = read(full.path)
    for name, value in exact.items():
        step = 1 / 127 if types[name] == "Q8_0" else 2.0**-8
        assert np.abs(tensors[name] - value).max() <= step * np.abs(value).max(), name


def test_a_file_that_came_out_wrong_is_not_kept(tmp_path, monkeypatch):
    config = small("llama")
    right = gguf.quantize
    monkeypatch.setattr(gguf, "quantize", lambda data, kind: right(data, kind) * np.float32(1.01))
    with pytest.raises(UserError, match=r"token_embd\.weight .*differs"):
        save_gguf(tmp_path / "model.gguf", config, random_weights(config), dtype="float32")
    assert list(tmp_path.iterdir()) == []
    save_gguf(tmp_path / "model.gguf", config, random_weights(config), dtype="float32", check=False)


@pytest.mark.parametrize("size", [1e-4, 1e-5, 5e-6, 1e-7, 0.0])
def test_rows_that_are_all_but_zero_are_no_damage(tmp_path, size):
    """Tokens that no text of the training had shrink by weight decay; Q8_0's scale of such a row is below float16's."""
    config = small("llama")
    weights = random_weights(config)
    weights["wte.weight"][7] *= size
    for dtype in ("q8_0", "float16"):
        save_gguf(tmp_path / f"{dtype}.gguf", config, weights, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, dtype):
    config = small("llama")
    weights = random_weights(config)
    weights["blocks.1.mlp.down_proj.weight"][3, 5] = math.nan
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down\.weight of the model .* not finite"):
        save_gguf(tmp_path / "model.gguf", config, weights, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def stops(writer, tensor):
        raise OSError("524288 requested and 479488 written")  # as ndarray.tofile says it, without a number

    config = small("llama")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", stops)
    with pytest.raises(UserError, match="no space to write"):
        save_gguf(tmp_path / "model.gguf", config, random_weights(config))
    assert list(tmp_path.iterdir()) == []


def test_refusals_leave_nothing_behind(tmp_path, monkeypatch):
    llama = small("llama")

    def refused(config, match, **arguments):
        with pytest.raises(UserError, match=match):
            save_gguf(arguments.pop("out", tmp_path / "x.gguf"), config, arguments.pop("weights", {}), **arguments)
        assert not (tmp_path / "x.gguf").exists()

    refused(small("gpt_oss"), "'gpt_oss'.* GGUF")
    refused(small("mistral").overridden({"sliding_window": 16}), "'llama' .*sliding_window 16")
    moe = small("qwen3_moe")
    refused(moe.overridden({"moe": {"norm_topk_prob": False}}), r"'qwen3moe' .*moe\.norm_topk_prob False")
    refused(small("qwen3", attention_bias=True), "has_attention_out_bias True")
    refused(small("olmo2", head_size=20), "head_size 20")
    dynamic = {"kind": "dynamic", "factor": 2.0, "original_block_size": 32}
    refused(llama.overridden({"rope_scaling": dynamic}), "rope_scaling 'dynamic'")
    refused(small("gemma2", layer_windows=(True, True, False)), "layer_windows")
    refused(small("gemma3", attention_scale=0.1), "scale|attention_scale")
    refused(small("smollm3", rope_layers=(False, True)), "rope_layers")
    refused(llama, "blocks.0.attn.k_proj.weight", weights={"wte.weight": torch.zeros(96, 64)})
    refused(llama, "dtype 'int4' is unknown", dtype="int4")
    refused(llama, r"must end with \.gguf", out=tmp_path / "folder")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(llama, r"pip install -e '\.\[export\]'", weights=random_weights(llama))
    assert list(tmp_path.iterdir()) == []


def test_what_llama_cpp_computes_otherwise_is_said():
    assert differences(small("llama")) == []
    assert "GELU" in differences(small("gpt_neox"))[0]
    assert "exact" in differences(small("gpt_neox", mlp="gelu"))[0]


def test_the_oracle_of_rows_agrees_with_transformers_rotation():
    """What `for_neighbours` relies on: rotating neighbours of moved rows is rotating halves of the others."""
    torch.manual_seed(0)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
        transformers.LlamaConfig(hidden_size=16, num_attention_heads=2)
    )
    q = torch.randn(1, 2, 5, 8)
    cos, sin = rotary(q, torch.arange(5)[None])
    halves, _ = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)
    rows = torch.from_numpy(for_neighbours(q.transpose(2, 3).reshape(16, 5).numpy(), 2)).reshape(2, 8, 5)
    turned = torch.empty_like(rows)
    for pair in range(4):
        angle = torch.arange(5) * 10000.0 ** (-2 * pair / 8)
        first, second = rows[:, 2 * pair], rows[:, 2 * pair + 1]
        turned[:, 2 * pair] = first * angle.cos() - second * angle.sin()
        turned[:, 2 * pair + 1] = first * angle.sin() + second * angle.cos()
    expected = for_neighbours(halves.transpose(2, 3).reshape(16, 5).numpy(), 2)
    np.testing.assert_allclose(turned.reshape(16, 5), expected, atol=1e-5)

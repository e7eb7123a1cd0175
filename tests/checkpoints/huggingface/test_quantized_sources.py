"""Quantised files of the hub, written small by the tests, against transformers and arithmetic by hand."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lit_gpt.checkpoints.huggingface import export_hf, import_hf
from lit_gpt.checkpoints.huggingface.quantized import dequantize_fp8, dequantize_mxfp4
from lit_gpt.errors import UserError
from lit_gpt.models import GPT

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def as_value(nibble):
    return (-1 if nibble & 8 else 1) * E2M1[nibble & 7]


def test_mxfp4_is_two_numbers_a_byte_and_an_exponent():
    blocks = torch.randint(0, 256, (2, 3, 2, 16), dtype=torch.uint8)
    scales = torch.randint(110, 140, (2, 3, 2), dtype=torch.uint8)
    found = dequantize_mxfp4(blocks, scales)
    assert found.dtype == torch.bfloat16
    for e, m, g, b in torch.cartesian_prod(*(torch.arange(n) for n in blocks.shape)).tolist():
        byte, power = int(blocks[e, m, g, b]), 2.0 ** (int(scales[e, m, g]) - 127)
        place = 32 * g + 2 * b
        assert found[e, m, place] == as_value(byte & 15) * power
        assert found[e, m, place + 1] == as_value(byte >> 4) * power


def test_mxfp4_is_what_transformers_makes_of_it():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.randint(0, 256, (3, 8, 2, 16), dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 8, 2), dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(dequantize_mxfp4(blocks, scales).transpose(1, 2), theirs)


@pytest.mark.parametrize(("shape", "block"), [((8, 12), [4, 4]), ((9, 10), [4, 4]), ((2, 8, 12), [4, 6])])
def test_fp8_blocks_have_their_scales(shape, block):
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    rows, columns = -(-shape[-2] // block[0]), -(-shape[-1] // block[1])
    scales = torch.rand(*shape[:-2], rows, columns)
    found = dequantize_fp8(weight, scales, block)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        *stack, m, n = place
        scale = scales[(*stack, m // block[0], n // block[1])]
        assert found[tuple(place)] == (weight[tuple(place)].float() * scale).to(torch.bfloat16)


def test_fp8_scales_of_whole_tensors_and_of_each_matrix():
    weight = torch.randn(3, 4, 6).to(torch.float8_e4m3fn)
    assert torch.equal(dequantize_fp8(weight, torch.tensor(0.5)), (weight.float() * 0.5).bfloat16())
    each = torch.tensor([0.5, 2.0, 4.0])
    expected = (weight.float() * each.view(3, 1, 1)).bfloat16()
    assert torch.equal(dequantize_fp8(weight, each), expected)
    assert torch.equal(dequantize_fp8(weight, each.view(3, 1, 1)), expected)


def test_fp8_blocks_are_not_guessed():
    weight = torch.randn(300, 4).to(torch.float8_e4m3fn)
    with pytest.raises(UserError, match=r"\(300, 4\) has scales of \(8, 1\).*weight_block_size"):
        dequantize_fp8(weight, torch.ones(8, 1))  # 38 rows a block, or 40, or more
    with pytest.raises(UserError, match="weight_block_size"):
        dequantize_fp8(weight, torch.ones(8, 1), [128, 128])  # three blocks of rows
    assert dequantize_fp8(weight, torch.ones(3, 1), [128, 128]).shape == (300, 4)
    assert dequantize_fp8(weight, torch.ones(3, 2)).shape == (300, 4)


@pytest.mark.parametrize("block_size", ["128", [128], [0, 128], [1.5, 2]])
def test_fp8_blocks_of_no_size(tmp_path, block_size):
    quantization = {"quant_method": "fp8", "weight_block_size": block_size}
    quantized_folder(small_deepseek(), tmp_path, quantization, lambda name, tensor: None)
    with pytest.raises(UserError, match="weight_block_size"):
        import_hf(tmp_path)


# ---- whole folders -------------------------------------------------------------------------------------------------


def quantized_folder(model, folder, quantization, replace):
    """Save a transformers model, then replace tensors: `replace(name, tensor)` → new tensors by name, or None."""
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        new = replace(name, tensor)
        tensors |= {name: tensor} if new is None else new
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))


def small_gpt_oss():
    config = transformers.GptOssConfig(
        num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, hidden_size=32, intermediate_size=64,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=61, max_position_embeddings=64, pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    config._experts_implementation = "eager"
    return transformers.GptOssForCausalLM._from_config(config, attn_implementation="eager").float().eval()


def small_deepseek():
    config = transformers.DeepseekV3Config(
        num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2, n_group=2, topk_group=1,
        hidden_size=40, intermediate_size=48, moe_intermediate_size=24, num_attention_heads=2, num_key_value_heads=2,
        kv_lora_rank=16, q_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, vocab_size=61,
        max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config).float().eval()


@torch.no_grad()
def test_gpt_oss_in_mxfp4(tmp_path):
    theirs = small_gpt_oss()
    plain = {}

    def replace(name, tensor):
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            return None
        E, inputs, outputs = tensor.shape
        blocks = torch.randint(0, 256, (E, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(120, 124, (E, outputs, inputs // 32), dtype=torch.uint8)
        plain[name] = dequantize_mxfp4(blocks, scales).transpose(1, 2).float()
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}

    quantized_folder(theirs, tmp_path / "hub", {"quant_method": "mxfp4"}, replace)
    assert len(plain) == 4
    theirs.load_state_dict(theirs.state_dict() | plain)
    config, state = import_hf(tmp_path / "hub", dtype=torch.float32)
    ours = GPT(config).eval()
    ours.load_state_dict(state)
    ids = torch.randint(1, 61, (2, 20))
    expected = theirs(ids).logits
    assert (ours(ids) - expected).abs().max() < 1e-5 * expected.abs().max()
    export_hf(config, ours.state_dict(), tmp_path / "exported")
    assert torch.equal(load_file(tmp_path / "exported/model.safetensors")["model.layers.0.mlp.experts.down_proj"], plain["model.layers.0.mlp.experts.down_proj"])  # fmt: skip
    assert "quantization_config" not in json.loads((tmp_path / "exported/config.json").read_text())


@torch.no_grad()
def test_deepseek_in_fp8_without_its_layer_ahead(tmp_path):
    theirs = small_deepseek()
    plain = {}

    def replace(name, tensor):
        if tensor.dim() != 2 or "_proj" not in name:
            return None
        scales = 0.01 + torch.rand(-(-tensor.shape[0] // 16), -(-tensor.shape[1] // 16)) / 10
        rounded = (10 * tensor).to(torch.float8_e4m3fn)
        plain[name] = dequantize_fp8(rounded, scales, [16, 16]).float()
        new = {name: rounded, f"{name}_scale_inv": scales}
        if "layers.1." in name:  # the hub's layer after the last, which predicts a token further
            new |= {key.replace("layers.1.", "layers.2."): value.clone() for key, value in list(new.items())}
            new["model.layers.2.eh_proj.weight"] = torch.zeros(40, 80)
        return new

    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]}
    quantized_folder(theirs, tmp_path / "hub", quantization, replace)
    (tmp_path / "plain").mkdir()
    tensors = load_file(tmp_path / "hub/model.safetensors")
    assert any(name.startswith("model.layers.2.") for name in tensors)
    state = {
        n: plain.get(n, t) for n, t in tensors.items() if not n.startswith("model.layers.2.") and "scale_inv" not in n
    }
    save_file(state, tmp_path / "plain/model.safetensors", metadata={"format": "pt"})
    theirs.config.save_pretrained(tmp_path / "plain")
    again = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32).eval()
    config, weights = import_hf(tmp_path / "hub", dtype=torch.float32)
    ours = GPT(config).eval()
    ours.load_state_dict(weights)
    ids = torch.randint(61, (2, 20))
    expected = again(ids).logits
    assert (ours(ids) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_what_is_not_undone_is_refused(tmp_path):
    quantized_folder(small_deepseek(), tmp_path, {"quant_method": "gptq"}, lambda name, tensor: None)
    with pytest.raises(UserError, match=r"'gptq'.*fp8 and mxfp4"):
        import_hf(tmp_path)


def test_missing_scales_are_named(tmp_path):
    def replace(name, tensor):
        return {name: tensor.to(torch.float8_e4m3fn)} if "q_b_proj" in name else None

    quantized_folder(small_deepseek(), tmp_path, {"quant_method": "fp8"}, replace)
    with pytest.raises(UserError, match="q_b_proj.weight_scale_inv"):
        import_hf(tmp_path)

"""A quantised bundle opens again with the very numbers that were rounded, and every other use of it is refused."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from safetensors import safe_open
from small_chats import small_tokenizer, tokenizer_folder
from torch import nn

from lit_gpt.checkpoints.bundle import Carried, save_bundle
from lit_gpt.checkpoints.provenance import write_manifest
from lit_gpt.checkpoints.quantization import Quantization, quantizable_layers, save_quantized_bundle
from lit_gpt.checkpoints.quantization.scheme import pack_int4, unpack_int4
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.errors import UserError
from lit_gpt.generation import Engine, SamplingParams
from lit_gpt.generation.loading import load_for_generation, load_source
from lit_gpt.models import GPT, GPTConfig, MLAConfig, MoEConfig
from lit_gpt.modules import PretrainModule

CPU = torch.device("cpu")
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 48, "vocab_size": 304}
MODERN = {"norm": "rmsnorm", "bias": False, "positions": "rope", "mlp": "swiglu", "intermediate_size": 64}
SHAPES = {
    "textbook": {},
    "grouped queries, untied": MODERN | {"n_kv_head": 1, "tie_embeddings": False},
    "sliding, biased": MODERN | {"sliding_window": 7, "attention_bias": True},
    "latent attention and experts": MODERN
    | {"mla": MLAConfig(16, 32, 16, 8, 16), "moe": MoEConfig(4, 2, 16, shared_intermediate_size=32)},
    "further tokens": {"multi_token": 2},
}
METHODS = [Quantization("int8"), Quantization("int8", 8), Quantization("int4", 16), Quantization("int8_dynamic")]
BOTH = (
    [(METHODS[2], shape) for shape in SHAPES]
    + [(scheme, "textbook") for scheme in METHODS]
    + [(METHODS[0], "latent attention and experts")]
)
IDS = torch.arange(20).view(2, 10) * 13 % 300


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


def save(out, model, scheme, tokenizer_path=None, **arguments):
    return save_quantized_bundle(
        out,
        model.config,
        model.state_dict(),
        scheme,
        CPU,
        "original",
        tokenizer_path,
        {"corpus_sha256": "abc"},
        **arguments,
    )


def rounded(weight, scheme):
    """Symmetric rounding in loops: the largest magnitude of each group lies half a step beyond the last number."""
    low, high = (-8, 7) if scheme.method == "int4" else (-128, 127)
    result = weight.clone()
    group = scheme.group_size or weight.shape[1]
    for row in result:
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale = part.abs().max() / ((high - low) / 2)
            part.copy_((part * (1 / scale)).round().clamp(low, high) * scale)
    return result


def test_four_bits_and_back():
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(2, 3)
    packed = pack_int4(values)
    assert packed.shape == (2, 24)
    assert packed[0, 0] == 0 + 16 * 1  # -8 and -7, the first in the low half
    assert unpack_int4(packed).equal(values)


@pytest.mark.parametrize(("scheme", "shape"), BOTH, ids=str)
def test_it_computes_with_the_rounded_weights(tmp_path, tokenizer_path, scheme, shape):
    model = GPT(GPTConfig(**SMALL | SHAPES[shape])).eval().requires_grad_(False)
    save(tmp_path / "small", model, scheme, tokenizer_path)
    opened, _ = load_source(resolve_model(tmp_path / "small"), "cpu")
    assert opened.multi_token is None
    whole = model(IDS)
    for layer in quantizable_layers(model).values():
        layer.weight.copy_(rounded(layer.weight, scheme))
    # In 8 bits, activations of a token are rounded as well: to 0.4 % of its largest.
    bound = {"rtol": 0.1, "atol": 0.02} if scheme.method == "int8_dynamic" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(opened(IDS), model(IDS), **bound)
    assert not opened(IDS).equal(whole)


@pytest.mark.parametrize(("scheme", "shape"), BOTH, ids=str)
def test_the_engine_writes_what_the_model_says(tmp_path, tokenizer_path, scheme, shape):
    """Its layers are neither fused nor laid out anew, and cached batches are as whole texts alone."""
    model = GPT(GPTConfig(**SMALL | SHAPES[shape]))
    save(tmp_path / "small", model, scheme, tokenizer_path)
    opened, tokenizer = load_for_generation(str(tmp_path / "small"), "cpu")
    kinds = {name: type(layer.weight) for name, layer in quantizable_layers(opened).items()}
    assert all(kind is not nn.Parameter for kind in kinds.values())
    prompts = [[5, 9, 200], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    engine = Engine(opened, tokenizer, max_batch_size=2, prefill_chunk=4)
    written = engine.generate(prompts, SamplingParams(max_new_tokens=12, temperature=0, ignore_eos=True))
    assert {name: type(layer.weight) for name, layer in quantizable_layers(opened).items()} == kinds
    for prompt, completion in zip(prompts, written, strict=True):
        ids = list(prompt)
        for token in completion.token_ids:
            logits = opened(torch.tensor([ids]))[0, -1]
            assert logits[token] >= logits.max() - 1e-4
            ids.append(token)


@pytest.mark.parametrize("scheme", METHODS, ids=str)
def test_what_is_in_the_folder(tmp_path, tokenizer_path, scheme):
    model = GPT(GPTConfig(**SMALL))
    carried = Carried({"eos_token_id": 7}, {"eos_token_id": 7, "top_p": 0.5})
    sizes = save(tmp_path / "small", model, scheme, tokenizer_path, carried=carried)
    source = resolve_model(tmp_path / "small")
    assert source.carried.eos_token_ids == (7,)
    assert source.carried.generation_config == carried.generation_config
    assert source.config == model.config
    assert source.lineage["corpus_sha256"] == "abc"
    assert source.lineage["quantized"] == {**scheme.to_dict(), "source": "original"}
    with safe_open(tmp_path / "small" / "quantized.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "lm_head.weight" not in tensors
    layers = quantizable_layers(model)
    values = sum(layer.weight.numel() for layer in layers.values())
    stored = sum(t.nbytes for name, t in tensors.items() if name.endswith(".qdata"))
    assert stored == (values // 2 if scheme.method == "int4" else values)
    assert sizes.layers_before == 4 * values
    assert sizes.after == sum(tensor.nbytes for tensor in tensors.values())
    assert sizes.before == sum(p.nbytes for p in model.parameters())


def test_another_dtype(tmp_path, tokenizer_path):
    model = GPT(GPTConfig(**SMALL)).eval()
    save(tmp_path / "small", model, Quantization("int4", 16), tokenizer_path, dtype="bfloat16")
    opened, _ = load_for_generation(str(tmp_path / "small"), "cpu")
    assert opened.wte.weight.dtype == opened(IDS).dtype == torch.bfloat16
    torch.testing.assert_close(opened(IDS).float(), model(IDS), rtol=0.2, atol=0.1)


def test_transformers_does_not_take_it_for_a_model(tmp_path, tokenizer_path):
    save(tmp_path / "small", GPT(GPTConfig(**SMALL)), Quantization(), tokenizer_path)
    with pytest.raises((OSError, ValueError)):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")


def test_its_weights_are_for_running_alone(tmp_path, tokenizer_path):
    save(tmp_path / "small", GPT(GPTConfig(**SMALL)), Quantization(), tokenizer_path)
    source = resolve_model(tmp_path / "small")
    message = r"is quantized \(int8\).*\(original\)"
    with pytest.raises(UserError, match=message):
        source.load_state_dict()
    with pytest.raises(UserError, match=message):
        PretrainModule(init_from=str(tmp_path / "small")).load_source(GPT(source.config))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Quantization("int8", 24), r"group_size 24 does not divide the 32 inputs of blocks.0.attn.q_proj; choose .*16"),
        (Quantization("int4", 64), r"group_size 64 does not divide the 32"),
        (Quantization("fp8"), r"fp8 needs a CUDA device of capability 8.9 or more .*this one is cpu"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path, scheme, message):
    with pytest.raises(UserError, match=message):
        save(tmp_path / "small", GPT(GPTConfig(**SMALL)), scheme)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("int3",), "int8, int4, int8_dynamic, fp8"),
        (("int8_dynamic", 32), "group_size is 32"),
        (("int4", 1), "at least 2"),
        (("int4", 9), "even"),
    ],
)
def test_schemes_that_do_not_exist(arguments, message):
    with pytest.raises(UserError, match=message):
        Quantization(*arguments)


def test_a_check_that_fails_leaves_nothing(tmp_path):
    def check(folder):
        assert (folder / "quantized.safetensors").is_file()
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        save(tmp_path / "small", GPT(GPTConfig(**SMALL)), Quantization(), check=check)
    assert not any(tmp_path.iterdir())


def test_damage_is_named(tmp_path, tokenizer_path):
    out = tmp_path / "small"
    save(out, GPT(GPTConfig(**SMALL)), Quantization(), tokenizer_path)
    path = out / "quantized.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"quantized\.safetensors.*SHA-256"):
        resolve_model(out)
    path.unlink()
    with pytest.raises(UserError, match=r"quantized\.safetensors"):
        resolve_model(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "lit_gpt-quantized-9"}, "format 'lit_gpt-quantized-9'"),
        ({"method": "os.system"}, "damaged.*os.system"),
        ({"group_size": "many"}, "damaged"),
        ({"dtype": "int32"}, "damaged.*int32"),
        ({"group_size": 8}, r"scales torch.float32 \(32, 1\).*float32 \(32, 4\)"),
        ({"method": "int4", "group_size": 16}, "the model has"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, tokenizer_path, change, message):
    out = tmp_path / "small"
    save(out, GPT(GPTConfig(**SMALL)), Quantization(), tokenizer_path)
    about = json.loads((out / "quantization.json").read_text())
    (out / "quantization.json").write_text(json.dumps(about | change))
    write_manifest(out)
    with pytest.raises(UserError, match=message):
        load_for_generation(str(out), "cpu")


def test_a_plain_bundle_is_still_one(tmp_path, tokenizer_path):
    model = GPT(GPTConfig(**SMALL)).eval()
    save_bundle(tmp_path / "plain", model.config, model.state_dict(), tokenizer_path)
    source = resolve_model(tmp_path / "plain")
    assert source.quantized is None
    assert small_tokenizer().vocab_size <= source.config.vocab_size
    torch.testing.assert_close(load_source(source, "cpu")[0](IDS), model(IDS))


def test_generation_does_without_blocks_for_further_tokens(tmp_path, tokenizer_path):
    """Those of a checkpoint, which has them, are neither built nor kept."""
    config = GPTConfig(**SMALL, multi_token=2)
    model = GPT(config).eval()
    save_bundle(tmp_path / "plain", config, model.state_dict(), tokenizer_path)
    source = resolve_model(tmp_path / "plain")
    opened, _ = load_source(replace(source, config=config, load_state_dict=model.state_dict), "cpu")
    assert opened.multi_token is None
    assert not any(name.startswith("multi_token") for name in opened.state_dict())
    torch.testing.assert_close(opened(IDS), model(IDS))

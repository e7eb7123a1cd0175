"""GGUF files read back: every family that exports, every quantisation type, tokenizers, and files that are refused."""

import re
import struct

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tokenizers import normalizers

from lit_gpt.checkpoints.gguf import gguf_families, open_gguf_model, save_gguf
from lit_gpt.checkpoints.gguf.file import open_gguf
from lit_gpt.checkpoints.gguf.vocabulary import read_vocabulary, vocabulary
from lit_gpt.checkpoints.huggingface import config_to_hf
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.cli import main
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.chat import load_chat_template, with_chat_template
from lit_gpt.data.tokenizers import Tokenizer, load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation.loading import source_tokenizer
from lit_gpt.models import GPT
from tests.checkpoints.gguf.test_gguf import random_weights, small
from tests.checkpoints.gguf.test_gguf_vocabulary import PREPENDING, TEXT, sentencepiece_like

TRAINING_ALONE = ("initializer_range", "router_aux_loss_coef", "attention_dropout")


def meaning(config):
    """What a config computes, whoever's name it has: sizes that follow from others are spelled out."""
    values = config_to_hf(config) | {"n_inner": config.mlp_size}
    for rope in (
        values.get("rope_scaling"),
        values.get("rope_parameters"),
        values.get("rope_parameters", {}).get("full_attention"),
    ):
        if rope and rope.get("rope_type") in ("yarn", "longrope"):
            rope["attention_factor"] = pytest.approx(config.rope_scaling.rotation_scale)
    return {key: value for key, value in values.items() if key not in TRAINING_ALONE}


@pytest.mark.parametrize("family", gguf_families())
def test_a_file_in_float32_comes_back_bit_for_bit(tmp_path, family):
    config = small(family)
    weights = random_weights(config)
    weights = {name: w for name, w in weights.items() if name != "lm_head.weight" or not config.tie_embeddings}
    if config.norm_offset:  # the file holds gains plus one: those that float32 can add one to without rounding
        weights = {name: (w * 4096).round() / 4096 if w.ndim == 1 else w for name, w in weights.items()}
    report = save_gguf(tmp_path / "model.gguf", config, weights, dtype="float32")
    found = open_gguf_model(report.path)
    same_build = family in ("mistral",)  # without its window a Mistral is a Llama, and the file says no more
    wanted = meaning(config.overridden({"family": "llama"}) if same_build else config)
    assert meaning(found.config) == wanted
    assert found.tokenizer is None
    assert found.weights.keys() == weights.keys()
    assert all(torch.equal(found.weights[name], weights[name]) for name in found.weights)
    model = GPT(config)
    model.load_state_dict(weights)
    again = GPT(found.config)
    again.load_state_dict(found.weights.to_dict())
    ids = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(again.eval()(ids), model.eval()(ids))


YARN = {"kind": "yarn", "factor": 4.0, "original_block_size": 16, "beta_fast": 16.0}
LLAMA3 = {"kind": "llama3", "factor": 8.0, "original_block_size": 64}


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"rope_scaling": LLAMA3, "block_size": 512}),
        ("llama", {"rope_scaling": {"kind": "linear", "factor": 3.0}, "rope_theta": 12345.678, "norm_eps": 1e-6}),
        ("llama", {"head_size": 24, "tie_embeddings": False, "attention_bias": True}),
        ("qwen3", {"rope_scaling": YARN}),
        ("qwen3", {"rope_scaling": YARN | {"attention_factor": 1.5}}),
        ("olmo3", {"rope_scaling": YARN, "sliding_window": 8, "layer_windows": (True, False)}),
        ("gemma3", {"rope_scaling": {"kind": "linear", "factor": 8.0}}),
        ("gemma2", {"n_layer": 46, "attention_scale": 16**-0.5, "head_size": 8}),
        ("granite", {"logit_scale": 1 / 6, "attention_scale": 0.015625, "residual_scale": 0.22}),
        ("gpt_neox", {"parallel_residual": False}),
        ("phi3", {"rope_fraction": 0.5}),
    ],
)
def test_settings_that_only_some_models_have(tmp_path, family, overrides):
    config = small(family).overridden(overrides)
    save_gguf(tmp_path / "model.gguf", config, random_weights(config), dtype="float32")
    assert meaning(open_gguf_model(tmp_path / "model.gguf").config) == meaning(config)


def test_longrope(tmp_path):
    factors = {"short_factors": (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7), "long_factors": (4.0,) * 8}
    scaling = {"kind": "longrope", "factor": 4.0, "original_block_size": 16, **factors}
    config = small("phi3").overridden({"rope_scaling": scaling})
    save_gguf(tmp_path / "model.gguf", config, random_weights(config), dtype="float32")
    assert open_gguf_model(tmp_path / "model.gguf").config.rope_scaling == config.rope_scaling


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_logits_are_those_of_transformers_own_reader(tmp_path, family):
    config = small(family)
    weights = {name: w * 0.1 for name, w in random_weights(config).items()}
    save_gguf(tmp_path / "model.gguf", config, weights, dtype="q8_0")
    found = open_gguf_model(tmp_path / "model.gguf")
    ours = GPT(found.config)
    ours.load_state_dict(found.weights.to_dict())
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    ids = torch.arange(24).reshape(2, 12)
    torch.testing.assert_close(ours.eval()(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_half_precision_is_kept_where_nothing_is_lost(tmp_path, dtype, kind):
    config = small("llama")
    weights = random_weights(config)
    save_gguf(tmp_path / "mixed.gguf", config, weights, dtype=dtype)
    assert {w.dtype for w in open_gguf_model(tmp_path / "mixed.gguf").weights.to_dict().values()} == {torch.float32}
    rounded = {name: w.to(kind) for name, w in weights.items()}
    save_gguf(tmp_path / "half.gguf", config, rounded, dtype=dtype)
    found = open_gguf_model(tmp_path / "half.gguf").weights
    assert all(torch.equal(found[name], rounded[name]) for name in found)


def types():
    """Every type that the gguf package dequantises."""
    found = []
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        found.append((kind, block, size))
    return found


def test_every_quantisation_type(tmp_path):
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(tmp_path / "types.gguf", "llama")
    expected = {}
    for kind, block, size in types():
        if kind.name in ("F32", "F16"):
            raw = rng.standard_normal((3, 2 * block)).astype(np.float32 if kind.name == "F32" else np.float16)
            expected[kind.name] = raw.astype(np.float32)
        else:
            raw = rng.integers(0, 60, (3, 2 * size), dtype=np.uint8)  # bytes whose scales are finite
            expected[kind.name] = gguf.dequantize(raw, kind)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = open_gguf(tmp_path / "types.gguf")
    assert len(expected) > 20
    assert file.types == {name: name for name in expected}
    for name, values in expected.items():
        np.testing.assert_array_equal(file.tensors[name].read().float().numpy(), values, err_msg=name)


# ------------------------------------------------------------------ tokenizers


def read_back(tokenizer, rows, stop_ids, folder):
    folder.mkdir()
    found = read_vocabulary(vocabulary(tokenizer, rows, stop_ids), rows)
    for name, content in found.files.items():
        (folder / name).write_bytes(content)
    return load_tokenizer(folder), found


@pytest.mark.parametrize(("pattern", "digits"), [("gpt2", False), ("gpt4", False), ("gpt4", True)])
def test_byte_level_tokenizers_come_back(tmp_path, pattern, digits):
    tokenizer = with_chat_template(
        train_bpe([TEXT] * 3, 300, pattern, split_digits=digits), load_chat_template("chatml")
    )
    end = tokenizer.backend.token_to_id("<|im_end|>")
    again, found = read_back(tokenizer, 310, [tokenizer.separator_id, end], tmp_path / "tokenizer")
    assert again.separator == tokenizer.separator
    assert found.token_ids == {"bos_token_id": 0, "eos_token_id": [tokenizer.separator_id, end]}
    assert "<|im_start|>" in found.files["chat_template.jinja"].decode()
    for text in (TEXT, "a  b\n\n c\t1234567", "don't DON'T we'Ll", "<|im_end|>", "é漢🙂"):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist(), text
        assert again.decode(again.encode(text)) == text


@pytest.mark.parametrize("normalizer", [PREPENDING, normalizers.Replace(" ", "▁")])
def test_sentencepiece_tokenizers_come_back(tmp_path, normalizer):
    tokenizer = sentencepiece_like(normalizer)
    again, found = read_back(tokenizer, 440, tokenizer.stop_ids, tmp_path / "tokenizer")
    for text in (TEXT, "returned   leftmost", "left", "ééé\t\n", "漢 漢"):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist(), text
        assert again.decode(again.encode(text)) == text
    assert found.token_ids["eos_token_id"] == 2


def metadata(pre="smollm", **values):
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|end|>", *alphabet, "Ġ1", "12", "<tool>"]
    values = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": ["Ġ 1", "1 2"], "eos_token_id": 0} | values
    values.setdefault("token_type", [3, *[1] * (len(tokens) - 2), 4])
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def test_smollm_splits_digits_singly_before_words(tmp_path):
    """As llama.cpp: " 12" is a space, a 1 and a 2, though the merges could join them."""
    for pre, wanted in (("smollm", ["Ġ", "1", "2"]), ("refact", ["Ġ", "1", "2"]), ("gpt-2", ["Ġ1", "2"])):
        found = read_vocabulary(metadata(pre), 260)
        backend = tokenizers.Tokenizer.from_str(found.files["tokenizer.json"].decode())
        assert backend.encode(" 12").tokens == wanted, pre
    tokenizer = Tokenizer(backend, "<|end|>")
    assert tokenizer.encode("<tool>").tolist() == [259]


@pytest.mark.parametrize(
    ("values", "opening"),
    [
        ({}, ()),
        ({"bos_token_id": 0}, ()),
        ({"bos_token_id": 0, "add_bos_token": True}, (0,)),
        ({"bos_token_id": 0, "pre": "llama-bpe"}, (0,)),  # llama.cpp's default for this name
        ({"bos_token_id": 0, "pre": "llama-bpe", "add_bos_token": False}, ()),
    ],
)
def test_what_a_text_begins_with(values, opening):
    found = read_vocabulary(metadata(**values), 260)
    backend = tokenizers.Tokenizer.from_str(found.files["tokenizer.json"].decode())
    assert Tokenizer(backend, "<|end|>", found.files).as_published().opening_ids == opening


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"model": "bert"}, "'bert'.*gpt2.*llama"),
        ({"pre": "kimi-k2"}, "'kimi-k2'.*smollm"),
        ({"tokens": ["a", "b"]}, "2 tokens.*260 rows"),
        ({"token_type": [1, 1]}, "260 tokens.*2 token_type"),
        ({"merges": ["Ġ 漢"]}, "damaged"),
        ({"merges": 7}, "merges"),
        ({"eos_token_id": 999}, "eos_token_id 999"),
    ],
)
def test_tokenizers_that_are_refused(values, match):
    with pytest.raises(UserError, match=match):
        read_vocabulary(metadata(**values), 260)


# ------------------------------------------------------------------ whole models, and what is refused


@pytest.fixture
def exported(tmp_path):
    config = small("llama", vocab_size=310)
    tokenizer = with_chat_template(train_bpe([TEXT] * 3, 300), load_chat_template("chatml"))
    ids = [tokenizer.separator_id, tokenizer.backend.token_to_id("<|im_end|>")]
    path = tmp_path / "small.gguf"
    save_gguf(path, config, random_weights(config), tokenizer, ids, dtype="float32")
    return path


def test_a_file_is_a_model_wherever_one_is_named(exported, tmp_path, capsys):
    source = resolve_model(exported)
    assert source.kind == "gguf"
    assert source.lineage == {"imported_from": "small.gguf"}
    assert source.carried.eos_token_ids == (0, source_tokenizer(source).backend.token_to_id("<|im_end|>"))
    main(["import", "--model", str(exported), "--out", str(tmp_path / "bundle")])
    bundle = resolve_model(tmp_path / "bundle")
    assert all(torch.equal(w, source.load_state_dict()[name]) for name, w in bundle.load_state_dict().items())
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path / "bundle").encode("Hi")
        == source_tokenizer(source).encode("Hi").tolist()
    )
    texts = []
    for model in (exported, tmp_path / "bundle"):
        capsys.readouterr()
        main(["generate", "--model", str(model), "--prompt", "left", "--max_new_tokens", "5", "--temperature", "0"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    # the inverse of the export: what is exported from it again is the same file, but for its name
    main(["export", "--model", str(exported), "--out", str(tmp_path / "again.gguf"), "--format", "gguf"])
    first, second = open_gguf(exported), open_gguf(tmp_path / "again.gguf")
    assert all(torch.equal(t.read(), second.tensors[name].read()) for name, t in first.tensors.items())
    differing = {key for key, value in first.metadata.items() if second.metadata.get(key) != value}
    assert differing <= {"general.name", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id"}


def patched(path, old, new, count=1):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, count))


def swapped(path):
    content = path.read_bytes()
    path.write_bytes(content[:4] + content[4:8][::-1] + content[8:])


def unknown_type(path):
    name = b"token_embd.weight" + struct.pack("<IQQ", 2, 64, 310)
    patched(path, name + struct.pack("<I", 0), name + struct.pack("<I", 99))


def cut(share):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def key(old, new):
    return lambda path: patched(path, old.encode(), new.encode())


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 a zip"), "not a GGUF file"),
        (lambda path: path.write_bytes(b""), "not a GGUF file"),
        (cut(0.999), r"truncated.*\d,\d+ bytes.*download"),
        (cut(0.01), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:9]), "truncated"),
        (swapped, "big-endian"),
        (lambda path: patched(path, struct.pack("<4sI", b"GGUF", 3), struct.pack("<4sI", b"GGUF", 1)), "version 1"),
        (unknown_type, r"token_embd\.weight in type 99.*gguf"),
        (key("general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama", "general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba"), "'mamba'.*llama"),
        (key("llama.block_count", "llama.block_coumt"), r"block_count"),
        (key("llama.context_length", "llama.comtext_length"), r"context_length"),
        (key("llama.attention.value_length", "llama.attention.output_scale"[:28]), r"llama\.attention\.output_scale"),
        (key("blk.1.ffn_norm.weight", "blk.1.ffn_morn.weight"), r"blk\.1\.ffn_norm\.weight.*blk\.1\.ffn_morn\.weight"),
    ],
)  # fmt: skip
def test_files_that_are_refused(exported, tmp_path, capsys, damage, match):
    damage(exported)
    assert main(["import", "--model", str(exported), "--out", str(tmp_path / "bundle")]) != 0
    said = capsys.readouterr().err
    assert re.search(match, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "bundle").exists()


def test_a_part_of_a_model_and_an_adapter_are_refused(tmp_path):
    for values, match in (({"split.count": 3}, "3 parts.*--merge"), ({"general.type": "adapter"}, "'adapter'")):
        path = tmp_path / "x.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, value in values.items():
            (writer.add_uint16 if isinstance(value, int) else writer.add_string)(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(UserError, match=match):
            open_gguf_model(path)

"""A bundle is whole, opens with Hugging Face's tools and ours, and gives back the same weights."""

import json

import pytest
import tokenizers
import torch
import transformers

from lit_gpt.checkpoints.bundle import load_bundle, save_bundle
from lit_gpt.checkpoints.provenance import verify
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=300, sliding_window=None)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>"],
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(["def f(x):\n    return x\n"] * 4, trainer)
    Tokenizer(backend).save(folder)
    return folder


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG).eval()


def test_hugging_face_opens_a_bundle_and_so_do_we(tmp_path, tokenizer_path, model):
    out = save_bundle(tmp_path / "out", CONFIG, model.state_dict(), tokenizer_path, {"corpus_sha256": "abc"})
    verify(out)
    ids = torch.randint(0, 280, (2, 9))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer("def f(x)")["input_ids"]) == "def f(x)"
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == 0

    bundle = load_bundle(out)
    assert bundle.config == CONFIG
    assert bundle.lineage == {"corpus_sha256": "abc"}
    assert bundle.tokenizer_path == out
    ours = GPT(bundle.config)
    ours.load_state_dict(bundle.state_dict)
    assert all(a.equal(b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))
    assert {"config.json", "generation_config.json", "lit_gpt.json", "lineage.json", "tokenizer.json"} <= {
        path.name for path in out.iterdir()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(tmp_path, model, dtype):
    out = save_bundle(tmp_path / "out", CONFIG, model.state_dict(), dtype=dtype)
    assert {value.dtype for value in load_bundle(out).state_dict.values()} == {getattr(torch, dtype)}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


def test_what_cannot_become_a_bundle(tmp_path, tokenizer_path, model):
    weights = model.state_dict()
    with pytest.raises(UserError, match="'int4'.*float32"):
        save_bundle(tmp_path / "out", CONFIG, weights, dtype="int4")
    small = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=100)
    with pytest.raises(UserError, match="vocab_size.* 100"):
        save_bundle(tmp_path / "out", small, weights, tokenizer_path)
    with pytest.raises(UserError):
        save_bundle(tmp_path / "out", CONFIG, {})
    assert list(tmp_path.iterdir()) == []
    save_bundle(tmp_path / "out", CONFIG, weights)
    with pytest.raises(UserError, match="--out"):
        save_bundle(tmp_path / "out", CONFIG, weights)
    save_bundle(tmp_path / "out", CONFIG, weights, overwrite=True)


def test_a_damaged_bundle_is_refused_by_the_name_of_its_file(tmp_path, model):
    out = save_bundle(tmp_path / "out", CONFIG, model.state_dict())
    with open(out / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_bundle(out)

"""Tokenizer, chat template, special tokens and generation config go along, in and out."""

import json

import pytest
import tokenizers
import torch
import transformers

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.huggingface import export_hf
from lit_gpt.checkpoints.resolve import resolve_model
from lit_gpt.commands.export import export
from lit_gpt.commands.import_ import import_
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
GENERATION = {"temperature": 0.7, "top_p": 0.8, "eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(folder, size, extra=(), special=True, template=TEMPLATE):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["def f(x):\n    return x + 1\n", "class A:\n    pass\n"] * 4, trainer)
    if extra:
        (backend.add_special_tokens if special else backend.add_tokens)(list(extra))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return backend.get_vocab_size()


@pytest.fixture
def hub(tmp_path):
    """A folder as on the hub: an embedding padded to 320 rows, two ends of text, sampling settings."""
    folder = tmp_path / "hub"
    config = GPTConfig.from_preset(
        "qwen2.5-0.5b", n_layer=1, n_head=2, n_embd=16, intermediate_size=32, vocab_size=320, block_size=64
    )
    export_hf(config, GPT(config).state_dict(), folder, bos_token_id=0, eos_token_id=[2, 0])
    num_tokens = make_tokenizer(folder, 280)
    assert num_tokens < 320
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


def contents(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


def test_everything_comes_in_and_goes_out(hub, tmp_path, capsys):
    import_(str(hub), str(tmp_path / "bundle"))
    assert "next: python -m lit_gpt chat --model" in capsys.readouterr().out
    export(str(tmp_path / "bundle"), str(tmp_path / "out"), dtype="bfloat16")
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    for folder in (tmp_path / "bundle", tmp_path / "out"):
        assert contents(folder, *files) == contents(hub, *files)
        assert json.loads((folder / "generation_config.json").read_text()) == GENERATION
        values = json.loads((folder / "config.json").read_text())
        assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (0, [2, 0], None)
        assert values["vocab_size"] == 320  # padding stays
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "pass"}], tokenize=False)
    assert chat == "<|im_start|>user\npass<|im_end|>\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == [2, 0]
    assert model.generation_config.temperature == 0.7


def test_dtype_flag_of_import(hub, tmp_path):
    import_(str(hub), str(tmp_path / "bundle"), dtype="float16")
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["dtype"] == "float16"


def test_a_folder_without_tokenizer(hub, tmp_path, capsys):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (hub / name).unlink()
    import_(str(hub), str(tmp_path / "bundle"))
    assert "has no tokenizer" in capsys.readouterr().out


def test_a_bundle_is_not_imported_again(hub, tmp_path):
    import_(str(hub), str(tmp_path / "bundle"))
    with pytest.raises(UserError, match="export"):
        import_(str(tmp_path / "bundle"), str(tmp_path / "again"))


@pytest.mark.parametrize(
    ("special", "template", "allowed"),
    [
        (False, TEMPLATE, False),  # an ordinary token that texts give
        (True, "<image>" + TEMPLATE, False),  # one that every chat would hold
        (True, TEMPLATE, True),  # Gemma 3's: no text gives it
    ],
)
def test_tokens_beyond_the_embedding(tmp_path, special, template, allowed):
    vocab_size = make_tokenizer(tmp_path / "tokenizer", 280)
    make_tokenizer(tmp_path / "tokenizer", 280, ["<image>"], special, template)
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=vocab_size)
    weights = GPT(config).state_dict()
    assert load_tokenizer(tmp_path / "tokenizer").vocab_size == vocab_size + 1
    if allowed:
        with pytest.warns(UserWarning, match="'<image>'"):
            save_bundle(tmp_path / "out", config, weights, tmp_path / "tokenizer")
    else:
        with pytest.raises(UserError, match=f"{vocab_size + 1}.*{vocab_size}.*'<image>'"):
            save_bundle(tmp_path / "out", config, weights, tmp_path / "tokenizer")
        assert not (tmp_path / "out").exists()


def test_padding_of_the_vocabulary_is_silent(hub, tmp_path):
    from lit_gpt.generation import stream_text

    import_(str(hub), str(tmp_path / "bundle"))
    tokenizer = load_tokenizer(tmp_path / "bundle")
    source = resolve_model(tmp_path / "bundle")
    model = GPT(source.config).eval()
    model.load_state_dict(source.load_state_dict())
    padding = torch.arange(source.config.vocab_size) >= tokenizer.vocab_size
    assert padding.sum() > 20
    # An embedding whose padding is all that is ever likely: its tokens have no text, and none is made up.
    with torch.no_grad():
        model.wte.weight[~padding] = 0
        model.wte.weight[padding] = 100 * model.ln_f.weight
    text = "".join(stream_text(model, tokenizer, "def", max_new_tokens=10, temperature=1.0, seed=0))
    assert tokenizer.decode([tokenizer.vocab_size, source.config.vocab_size - 1]) == ""
    assert len(text) <= 10

"""Runs with an adapter: small checkpoints, exact resume, the base checked by content, tools that take them."""

import subprocess
import sys

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows

from lit_gpt.adapters import AdapterConfig
from lit_gpt.checkpoints.adapters import hash_weights
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.resolve import resolve_adapter, resolve_model
from lit_gpt.commands.export import export
from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import SFTModule
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 64, "intermediate_size": 128, "block_size": 128}


@pytest.fixture
def base(tmp_path):
    """A bundle of random weights with a tokenizer."""
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size, tie_embeddings=False)
    model = GPT(config)
    return str(save_bundle(tmp_path / "base", config, model.state_dict(), tokenizer_folder(tmp_path / "tokenizer")))


@pytest.fixture
def fit(tmp_path, base):
    def run(name="run", max_steps=6, ckpt_path=None, template="alpaca", adapter=None, init_from=None, **arguments):
        data = InstructionDataModule(
            tokenizer=base, chat_template=template, files=write_rows(tmp_path / "rows.json", alpaca_rows(60)),
            block_size=128, global_batch_size=4, val_fraction=0.2, cache_dir=str(tmp_path / "cache"), packing=False, system_prompt="Hi.",
        )  # fmt: skip
        module = SFTModule(
            init_from=init_from or base, adapter=adapter or AdapterConfig(rank=4, dropout=0.1),
            vocab_size=data.vocab_size, block_size=128, optimizer=lambda g: torch.optim.AdamW(g, lr=0.02),
        )  # fmt: skip
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=3,
            accelerator="cpu", logger=False, enable_progress_bar=False, **arguments,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, trainer

    return run


def logits(source, ids):
    model = GPT(source.config)
    model.load_state_dict(dict(source.load_state_dict()))
    return model.eval()(ids)


@pytest.mark.parametrize("template", ["alpaca", "chatml"])
def test_checkpoint_holds_the_adapter_alone_and_resumes_exactly(fit, tmp_path, template, capsys):
    whole, _ = fit("whole", template=template)
    assert "% trainable" in " ".join(capsys.readouterr().out.replace("%)", "% )").split()).replace("% )", "%")
    fit("cut", max_steps=3, template=template)
    (checkpoint,) = (tmp_path / "runs" / "cut" / "checkpoints").glob("step-00000003.ckpt")
    saved = load_file(checkpoint / "model.safetensors")
    new_tokens = {"model.wte.weight", "model.lm_head.weight"} if template == "chatml" else set()
    assert {name for name in saved if "lora_" not in name} == new_tokens
    resumed, _ = fit("cut", ckpt_path="last", template=template)
    for (name, one), (_, other) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    "adapter",
    [AdapterConfig(rank=4), AdapterConfig(rank=4, dora=True, rslora=True), AdapterConfig(rank=4, quantize="nf4")],
    ids=["lora", "dora rslora", "nf4"],
)
def test_every_way_to_name_an_adapted_model_is_the_trained_one(fit, base, tmp_path, adapter):
    module, trainer = fit(adapter=adapter, template="chatml")
    ids = torch.randint(0, 300, (2, 20))
    trained = module.model.eval()(ids)
    run = trainer.run_dir
    last = str(run / "checkpoints" / "step-00000006.ckpt")
    export(model=last, out=str(tmp_path / "peft"), format="adapter")
    export(model=last, out=str(tmp_path / "merged"))
    (tmp_path / "base" / "adapters").mkdir()
    (tmp_path / "peft").rename(tmp_path / "base" / "adapters" / "mine")
    ways = [(last, None), (base, last), (base, str(tmp_path / "base/adapters/mine")), (base, "mine")]
    ways += [(str(tmp_path / "base/adapters/mine"), None), (str(tmp_path / "merged"), None)]
    for model, chosen in ways:
        source = resolve_model(model, adapter=chosen)
        assert source.tokenizer_path is not None
        torch.testing.assert_close(logits(source, ids), trained, rtol=1e-4, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(theirs(ids).logits, trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_peft_opens_the_folder_beside_the_exported_base(fit, base, tmp_path, dora):
    module, trainer = fit(adapter=AdapterConfig(rank=4, dora=dora, targets=["q_proj", "down_proj"]))
    export(
        model=str(trainer.run_dir / "checkpoints" / "step-00000006.ckpt"), out=str(tmp_path / "peft"), format="adapter"
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "peft")
    ids = torch.randint(0, 300, (2, 20))
    torch.testing.assert_close(theirs(ids).logits, module.model.eval()(ids), rtol=1e-4, atol=1e-5)


def test_another_base_is_refused(fit, base, tmp_path):
    fit()
    other = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size, tie_embeddings=False)
    model = GPT(other)
    model.init_weights(99)
    save_bundle(tmp_path / "other", other, model.state_dict(), tmp_path / "tokenizer")
    source = resolve_model(str(tmp_path / "other"), adapter=str(tmp_path / "runs" / "run"))
    with pytest.raises(UserError, match="trained on a different base"):
        source.load_state_dict()
    with pytest.raises(UserError, match="SHA-256"):
        fit(ckpt_path="last", max_steps=9, init_from=str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"the checkpoint's adapter is .*'rank': 4.* this run's is .*'rank': 8"):
        fit(ckpt_path="last", max_steps=9, adapter=AdapterConfig(rank=8))
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--model <base> --adapter"):
        resolve_model(str(tmp_path / "runs" / "run"))
    assert resolve_model(str(tmp_path / "moved"), adapter=str(tmp_path / "runs" / "run")).load_state_dict()


def test_mistakes(fit, base, tmp_path):
    with pytest.raises(UserError, match="adapter is set but init_from is not"):
        SFTModule(adapter=AdapterConfig())
    with pytest.raises(UserError, match="does not exist"):
        resolve_adapter("nowhere")
    with pytest.raises(UserError, match="no adapter"):
        resolve_adapter(tmp_path)
    with pytest.raises(UserError, match="no adapter|no checkpoint"):
        resolve_model(base, adapter=base)
    with pytest.raises(UserError, match=r"train_embeddings.*false.*null or true"):
        fit(template="chatml", adapter=AdapterConfig(rank=4, train_embeddings=False))


def test_the_hash_is_of_the_content():
    config = GPTConfig(n_layer=1, n_head=1, n_embd=8, vocab_size=11, block_size=4)
    weights = GPT(config).state_dict()
    assert hash_weights(weights, config) == hash_weights(dict(reversed(weights.items())), config)
    without_head = {name: value for name, value in weights.items() if name != "lm_head.weight"}
    assert hash_weights(without_head, config) == hash_weights(weights, config)
    weights["wte.weight"][0, 0] += 1e-3
    assert hash_weights(weights, config) != hash_weights(
        without_head | {"wte.weight": weights["wte.weight"] - 1}, config
    )


@pytest.mark.slow
def test_generate_takes_an_adapter(fit, base, tmp_path):
    fit()
    words = [sys.executable, "-m", "lit_gpt", "generate", "--model", base, "--adapter", str(tmp_path / "runs" / "run")]
    words += ["--prompt", "red", "--max_new_tokens", "5"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("red")

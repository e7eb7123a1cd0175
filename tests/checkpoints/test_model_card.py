"""The card beside a bundle: what was recorded is in it, what was not is asked for, and no path of the machine leaks."""

import ast
import json
import shlex

import yaml
from small_chats import small_tokenizer, tokenizer_folder

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.model_card import CardFacts, model_card
from lit_gpt.checkpoints.provenance import verify
from lit_gpt.checkpoints.resolve import training_facts
from lit_gpt.models import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=300)
LINEAGE = {
    "config_sha256": "c0ffee",
    "tokenizer_sha256": None,
    "init_from": "/home/somebody/runs/first",
    "corpus": {
        "class": "lit_gpt.datamodules.prepared.PreparedDataModule",
        "block_size": 16,
        "global_batch_size": 4,
        "corpus": {
            "sources": [{"name": "Tales | old", "num_files": 1200, "license": "CC-BY-4.0"}, {"name": "Poems"}],
            "splits": {"train": {"documents": 30, "tokens": 123456, "sha256": "ab"}},
        },
    },
    "code": {"lit_gpt": "0.1.0", "git_commit": None},
}
RESULT = {
    "title": "Language modelling",
    "scores": [
        {"name": "bits_per_byte", "value": 1.23456, "count": 31, "unit": "bits", "interval": {"low": 1.2, "high": 1.3}},
        {"name": "loss", "value": None, "count": 31, "unit": "", "interval": None},
    ],
}
VERDICT = {"key": "language_modeling.bits_per_byte", "reason": "1.235, above the maximum of 1.1"}


def rows(card):
    """First and second cell of every line of a table."""
    cells = [line.strip("|").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {cell[0].strip(): cell[1].strip() for cell in cells if len(cell) == 2}


def test_the_card_says_what_was_recorded():
    training = {
        "step": 900,
        "monitor": "val/loss",
        "value": 3.14159,
        "config": {
            "trainer": {"precision": "bf16-mixed"},
            "model": {
                "class_path": "lit_gpt.PretrainModule",
                "init_args": {"optimizer": {"class_path": "x.AdamW", "init_args": {"lr": 0.001}}},
            },
        },
    }
    gate = {"passed": False, "verdicts": [VERDICT]}
    facts = CardFacts("tales", training, [RESULT], "on 2026-01-02 by the plan `small`", gate)
    card = model_card(CONFIG, small_tokenizer(), LINEAGE, facts, "bfloat16")
    found = rows(card)
    assert found["parameters"] == f"{sum(p.numel() for p in GPT(CONFIG).parameters()):,}"
    body = sum(p.numel() for name, p in GPT(CONFIG).named_parameters() if name.split(".")[0] not in ("wte", "wpe"))
    assert found["without embeddings"] == f"{body:,}"  # the tied head is the embedding
    assert found["context"] == "16 tokens"
    assert found["weights"] == "bfloat16"
    assert found["license of the training data"] == "CC-BY-4.0; *to fill in* of Poems"
    assert found["license of the weights"] == "*to fill in*"
    assert found["sources (2)"] == r"Tales \| old (1,200 files, CC-BY-4.0), Poems"
    assert found["`train`"] == "30 documents, 123,456 tokens"
    assert f"{900 * 4 * 16:,}" in found["training tokens"]
    assert found["optimizer"] == "AdamW(lr=0.001)"
    assert found["best `val/loss`"] == "3.1416"
    assert found["SHA-256 of config"] == "`c0ffee`"
    assert "SHA-256 of tokenizer" not in found
    assert "| Language modelling | bits_per_byte (bits) | 1.235 | 1.2 to 1.3 | 31 |" in card
    assert "| Language modelling | loss | not a number |  | 31 |" in card
    assert "Gate: **FAILED**" in card
    assert "- `language_modeling.bits_per_byte`: 1.235, above the maximum of 1.1" in card
    assert "/home" not in card
    assert "from `first`" in card
    assert "AutoModelForCausalLM" in card
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["lit_gpt", "gpt2"]}


def test_the_card_of_a_model_of_which_nothing_is_known():
    card = model_card(CONFIG, None, {}, CardFacts(), None, "lit_gpt")
    assert rows(card)["training data"] == "*to fill in*"
    assert rows(card)["tokenizer"] == "none in this folder"
    assert "recorded for these weights" in card
    assert "transformers" not in card
    imported = model_card(
        CONFIG, None, {"imported_from": "openai-community/gpt2"}, CardFacts("x"), "float16", "llama.cpp"
    )
    front = yaml.safe_load(imported.split("---")[1])
    assert front["base_model"] == "openai-community/gpt2"
    assert "gguf" in front["tags"]
    assert "llama-cli -m x.gguf" in imported


def test_names_from_elsewhere_stay_in_their_place():
    hostile = 'tales"; rm -rf ~\n## Licence: MIT'
    training = {"config": {"prompt": "Write:\n```python\nprint()\n```\n# Free for all"}}
    card = model_card(
        CONFIG, None, {"imported_from": "a/b`\n---\nlicense: mit"}, CardFacts(hostile, training), "float32"
    )
    assert [line for line in card.splitlines() if line.startswith("## Lic")] == ["## License and use"]
    assert yaml.safe_load(card.split("---\n")[1]).keys() == {"library_name", "pipeline_tag", "tags"}
    command = next(line for line in card.splitlines() if line.startswith("python -m lit_gpt"))
    assert shlex.split(command)[5] == " ".join(hostile.split())
    call = next(line for line in card.splitlines() if line.startswith("model = "))
    assert ast.literal_eval(call.partition("from_pretrained(")[2][:-1]) == " ".join(hostile.split())
    fenced = card[card.index("````yaml\n") + 9 : card.index("\n````\n")]
    assert yaml.safe_load(fenced) == training["config"]


def test_a_folder_here_is_no_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def front():
        return yaml.safe_load(model_card(CONFIG, None, {"init_from": "out/base"}, CardFacts()).split("---")[1])

    assert front()["base_model"] == "out/base"
    (tmp_path / "out" / "base").mkdir(parents=True)
    assert "base_model" not in front()


def test_a_quantised_model_does_not_claim_the_loss_of_the_whole_one():
    facts = CardFacts("x", {"monitor": "val/loss", "value": 2.5})
    lineage = {"quantized": {"method": "int8", "group_size": None, "source": "whole"}}
    found = rows(model_card(CONFIG, None, lineage, facts, None, "lit_gpt"))
    assert found["best `val/loss`"] == "2.5000, before the weights were quantized"


def test_every_bundle_has_one_under_its_manifest(tmp_path):
    folder = tokenizer_folder(tmp_path / "tokenizer")
    bundle = save_bundle(tmp_path / "tales", CONFIG, GPT(CONFIG).state_dict(), folder, LINEAGE)
    assert "# tales\n" in (bundle / "README.md").read_text()
    assert "README.md" in verify(bundle)["files"]


def test_facts_of_a_run(tmp_path):
    checkpoints = tmp_path / "run" / "checkpoints"
    for step in (3, 6):
        (checkpoints / f"step-{step:08d}.ckpt").mkdir(parents=True)
    best = {"checkpoint": "step-00000003.ckpt", "step": 3, "monitor": "val/loss", "value": 2.5}
    (checkpoints / "best.json").write_text(json.dumps(best))
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{files: [{tmp_path}/texts/a.txt]}}\n")
    found = training_facts(checkpoints / "step-00000003.ckpt")
    assert found == {"step": 3, "monitor": "val/loss", "value": 2.5, "config": {"data": {"files": ["a.txt"]}}}
    assert "value" not in training_facts(checkpoints / "step-00000006.ckpt")  # not the one that was validated best
    assert training_facts(tmp_path) == {}

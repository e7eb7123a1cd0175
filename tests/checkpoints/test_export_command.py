"""`export`: checked before it is done, held back by a failed gate, one command for every form."""

import json

import gguf
import psutil
import pytest
import torch
import transformers
from small_chats import tokenizer_folder

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.checkpoints.huggingface.verify import check_opens
from lit_gpt.commands.export import export
from lit_gpt.errors import UserError
from lit_gpt.evaluation.report import weights_sha256
from lit_gpt.models import GPT, GPTConfig, get_preset, preset_names
from lit_gpt.models.families.ladder import shrink
from lit_gpt.planning.devices import find_device
from lit_gpt.planning.framing import Answers
from lit_gpt.planning.framing import brief as project_brief

CONFIG = GPTConfig(
    n_layer=2, n_head=2, n_embd=64, block_size=32, vocab_size=304, bias=False, norm="rmsnorm", norm_eps=1e-6,
    positions="rope", mlp="swiglu", intermediate_size=96, qk_norm="head", family="qwen3",
)  # fmt: skip


@pytest.fixture
def bundle(tmp_path):
    torch.manual_seed(0)
    folder = tokenizer_folder(tmp_path / "tokenizer")
    return save_bundle(tmp_path / "bundle", CONFIG, GPT(CONFIG).state_dict(), folder, {"corpus_sha256": "abc"})


def test_a_hugging_face_folder_is_opened_and_compared(bundle, tmp_path, capsys):
    export(str(bundle), str(tmp_path / "out"), dtype="bfloat16")
    assert "checked: transformers opens it" in capsys.readouterr().out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16
    export(str(bundle), str(tmp_path / "unchecked"), check=False)
    assert "checked:" not in capsys.readouterr().out


def test_a_comparison_that_does_not_fit_is_told_of_before_writing(bundle, tmp_path, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=100_000))
    with pytest.raises(UserError, match=r"0\.0 GB.*--check false"):
        export(str(bundle), str(tmp_path / "out"))
    export(str(bundle), str(tmp_path / "out"), check=False)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "qwen3_moe", "gpt_oss", "deepseek_v3", "phi3"])
def test_the_comparison_agrees_for_every_kind_of_family_and_sees_a_changed_weight(tmp_path, family):
    preset = get_preset(next(name for name in preset_names() if get_preset(name).family == family))
    config = shrink(preset, n_layer=2, n_embd=32, n_head=2, block_size=32, vocab_size=64)
    torch.manual_seed(0)
    weights = {name: value + 0.02 * torch.randn_like(value) for name, value in GPT(config).state_dict().items()}
    seen = []
    save_bundle(
        tmp_path / "out", config, weights, check=lambda folder: seen.append(check_opens(folder, config, weights))
    )
    assert seen[0] < 1e-4
    other = weights | {"ln_f.weight": weights["ln_f.weight"] * 1.5}
    with pytest.raises(UserError, match="logits differ"):
        save_bundle(tmp_path / "no", config, weights, check=lambda folder: check_opens(folder, config, other))
    assert not (tmp_path / "no").exists()


def test_a_gguf_file_with_its_card(bundle, tmp_path, capsys):
    export(str(bundle), str(tmp_path / "small.gguf"), format="gguf", dtype="q8_0")
    said = capsys.readouterr().out
    assert "tensors read back" in said
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "small.gguf").fields.items()}
    assert fields["general.name"] == "small"
    assert fields["tokenizer.ggml.eos_token_id"] == 0
    assert len(fields["tokenizer.ggml.tokens"]) == 304
    assert "llama-cli -m small.gguf" in (tmp_path / "small.gguf.md").read_text()
    export(str(bundle), str(tmp_path / "kept.gguf"), format="gguf")
    kept = gguf.GGUFReader(tmp_path / "kept.gguf")
    assert {tensor.tensor_type.name for tensor in kept.tensors} == {"F32"}  # as the weights are


def test_a_torch_program_with_its_card(bundle, tmp_path, capsys):
    export(str(bundle), str(tmp_path / "small.pt2"), format="torch")
    assert "checked: read again" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "small.pt2").module()
    ids = torch.randint(304, (3, 11))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(bundle)
    torch.testing.assert_close(program(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert 'torch.export.load("small.pt2")' in (tmp_path / "small.pt2.md").read_text()


def test_mistakes(bundle, tmp_path):
    with pytest.raises(UserError, match="q8_0"):
        export(str(bundle), str(tmp_path / "out"), dtype="q8_0")
    with pytest.raises(UserError, match=r"must end with \.gguf"):
        export(str(bundle), str(tmp_path / "out"), format="gguf")
    with pytest.raises(UserError, match=r"\.md|exists"):
        export(str(bundle), str(bundle))
    (tmp_path / "notes.gguf.md").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.gguf\.md, where the model card would be, exists"):
        export(str(bundle), str(tmp_path / "notes.gguf"), format="gguf")
    with pytest.raises(UserError, match="adapter"):
        export(str(bundle), str(tmp_path / "out"), format="adapter")


def write_report(bundle, passed, created, weights=None):
    """A report as `evaluate` leaves it, as far as it is read here."""
    folder = bundle / "evaluation" / f"plan-{created}"
    folder.mkdir(parents=True)
    score = {
        "name": "loss", "value": 2.0, "count": 3, "interval": None, "unit": "nats", "better": "lower", "per_item": {},
    }  # fmt: skip
    result = {
        "name": "language_modeling", "title": "Language modelling", "definition": "d", "source": "s",
        "scores": [score], "examples": [], "charts": [], "settings": {}, "notes": [],
    }  # fmt: skip
    verdict = {
        "key": "language_modeling.loss", "kind": "max", "bound": 1.5, "by": "value", "found": 2.0, "passed": passed,
        "reason": "2, above the maximum of 1.5",
    }  # fmt: skip
    report = {
        "format": "lit_gpt.evaluation",
        "version": 1,
        "name": "plan",
        "created": created,
        "model": {"name": "m", "weights_sha256": weights or weights_sha256(bundle)},
        "results": [result],
        "gate": {"passed": passed, "verdicts": [verdict]},
    }
    (folder / "report.json").write_text(json.dumps(report))


def test_a_failed_gate_holds_the_model_back(bundle, tmp_path):
    write_report(bundle, False, "2026-01-02T00:00:00")
    with pytest.raises(UserError, match=r"language_modeling\.loss.*--allow_failed_gate"):
        export(str(bundle), str(tmp_path / "out"))
    with pytest.raises(UserError, match="gate"):
        export(str(bundle), str(tmp_path / "out.gguf"), format="gguf")
    assert not (tmp_path / "out").exists()
    export(str(bundle), str(tmp_path / "out"), allow_failed_gate=True, check=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Gate: **FAILED**" in card
    assert "| Language modelling | loss (nats) | 2 |  | 3 |" in card
    # a later evaluation of the same weights counts, one of other weights does not
    write_report(bundle, True, "2026-01-03T00:00:00")
    write_report(bundle, False, "2026-01-04T00:00:00", weights="another")
    export(str(bundle), str(tmp_path / "passed"), check=False)
    assert "Gate: passed." in (tmp_path / "passed" / "README.md").read_text()


def write_brief(tmp_path, **answers):
    path = tmp_path / "brief.md"
    text = project_brief(Answers("chat", languages=("de", "fr"), **answers), find_device("h100"), "Helpdesk")
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_brief_fills_the_card(bundle, tmp_path):
    export(str(bundle), str(tmp_path / "out"), check=False, brief=write_brief(tmp_path, use="commercial"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| intended use | chat in de, fr, commercial" in card
    assert "language:\n- de\n- fr\n" in card


def test_a_brief_asks_for_a_gate_where_a_wrong_answer_is_costly(bundle, tmp_path):
    brief = write_brief(tmp_path, risk="high")
    with pytest.raises(UserError, match=r"high.*--allow_failed_gate"):
        export(str(bundle), str(tmp_path / "out"), check=False, brief=brief)
    assert not (tmp_path / "out").exists()
    write_report(bundle, True, "2026-01-02T00:00:00")
    export(str(bundle), str(tmp_path / "out"), check=False, brief=brief)
    assert "| cost of a wrong answer | high |" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("| all documents must be known | no |", "| all documents must be known | yes |", "corpus"),
        ("| use | research |", "", "use"),
        ("| use | research |", "| use | resale |", "resale"),
        ("| cost of a wrong answer | low |", "| cost of a wrong answer | none |", "low"),
    ],
)
def test_a_brief_that_cannot_be_kept_or_read(bundle, tmp_path, old, new, words):
    brief = tmp_path / "brief.md"
    write_brief(tmp_path)
    brief.write_text(brief.read_text().replace(old, new))
    with pytest.raises(UserError, match=words):
        export(str(bundle), str(tmp_path / "out"), check=False, brief=str(brief))
    assert not (tmp_path / "out").exists()

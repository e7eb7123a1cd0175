"""Loss over texts: each token once, from the right context, and the numbers that transformers gives by hand."""

import math

import pytest
import torch
import transformers
from small_models import BLOCK, TEXTS, small_bundle
from torch.nn import functional as F

from lit_gpt.data.bpe import train_bpe
from lit_gpt.errors import UserError
from lit_gpt.evaluation.language_modeling import LanguageModeling, check_window, windows
from lit_gpt.evaluation.subject import load_subject
from lit_gpt.evaluation.texts import Texts

LONG = "".join(f"{n} größer 漢字 🙂, def add({n}, b): return {n * n}\n" for n in range(40))


@pytest.mark.parametrize(("length", "window", "stride"), [(1, 8, 4), (7, 8, 8), (50, 8, 3), (33, 32, 16), (40, 1, 1)])
def test_every_token_is_predicted_once_from_what_precedes_it(length, window, stride):
    text = list(range(100, 100 + length))
    found = list(windows([7], text, window, stride))
    assert [token for one in found for token in one.targets] == text
    whole = [7, *text]
    for one in found:
        place = whole.index(one.targets[0])
        assert list(one.context) == whole[place - len(one.context) : place]
        read = len(one.context) + len(one.targets) - 1
        assert read <= window
        if one is not found[0] and window > stride:
            assert len(one.context) >= window - stride


def test_bounds_of_window_and_stride():
    assert check_window(None, None, 1) == (1, 1)
    assert check_window(None, None, 32) == (32, 16)
    assert check_window(None, None, 33) == (33, 16)
    assert check_window(2048, None, 8192) == (2048, 1024)
    assert check_window(None, None, 8192) == (8192, 8192 - 1024), "no token has less context than with 2,048"
    for window, stride, said in (
        (33, None, "window is 33"),
        (0, None, "window is 0"),
        (8, 9, "stride is 9"),
        (8, 0, "stride is 0"),
    ):
        with pytest.raises(UserError, match=said):
            check_window(window, stride, 32)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small GPT-2 and a small Llama as transformers writes them, and a text."""
    folders = {}
    for name in ("gpt2", "llama"):
        folder = tmp_path_factory.mktemp("published") / name
        tokenizer = train_bpe(TEXTS, 300)
        tokenizer.save(folder)
        ids = {"bos_token_id": tokenizer.separator_id, "eos_token_id": tokenizer.separator_id}
        torch.manual_seed(0)
        if name == "gpt2":
            config = transformers.GPT2Config(
                vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=BLOCK, initializer_range=0.4, **ids
            )
            model = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.LlamaConfig(
                vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=BLOCK, initializer_range=0.4, **ids,
            )  # fmt: skip
            model = transformers.LlamaForCausalLM(config)
        model.save_pretrained(folder)
        folders[name] = folder
    text = tmp_path_factory.mktemp("texts") / "long.txt"
    text.write_text(LONG, encoding="utf-8")
    return folders, text


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("stride", [32, 10])
def test_equals_transformers_by_hand(published, name, stride):
    folders, text = published
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name]).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folders[name])(LONG, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([model.config.bos_token_id, *ids])
    nats, done = 0.0, 1
    while done < len(tokens):  # the next `stride` tokens, from all that the context holds before the last of them
        end = min(done + (BLOCK if done == 1 else stride), len(tokens))
        begin = max(0, end - 1 - BLOCK)
        with torch.no_grad():
            logits = model(tokens[None, begin : end - 1]).logits[0, -(end - done) :].double()
        nats += F.cross_entropy(logits, tokens[done:end], reduction="sum").item()
        done = end
    (result,) = LanguageModeling(Texts(files=str(text)), stride=stride).run(load_subject(str(folders[name])))
    assert result.score("bits_per_byte").value == pytest.approx(nats / math.log(2) / len(LONG.encode()), abs=1e-5)
    assert result.score("loss").value == pytest.approx(nats / len(ids), abs=1e-5)
    assert result.score("perplexity").value == pytest.approx(math.exp(nats / len(ids)), rel=1e-4)
    assert result.score("loss").count == len(ids)


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(str(small_bundle(tmp_path_factory.mktemp("model") / "tiny")))


@pytest.fixture
def folder(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for n in range(30):
        (texts / f"{n}.txt").write_text(f"text {n} " * (n + 1) + "größer 🙂")
    return texts


def test_bits_per_byte_is_the_mean_of_its_parts_and_of_the_bytes(subject, folder):
    (result,) = LanguageModeling(Texts(files=str(folder))).run(subject)
    score = result.score("bits_per_byte")
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert sum(score.per_item.values()) / len(score.per_item) == pytest.approx(score.value)
    assert score.value == pytest.approx(result.score("loss").value * result.score("loss").count / size / math.log(2))
    assert score.count == 30
    assert score.interval.method == "bootstrap over documents"
    assert score.interval.low < score.value < score.interval.high
    assert result.settings["texts"][0]["bytes"] == size


def test_several_places_are_reported_one_by_one(subject, folder, tmp_path):
    (tmp_path / "b.txt").write_text("def add(a, b):\n" * 50)
    several = [Texts(files=str(folder), name="The Texts"), Texts(files=str(tmp_path / "b.txt"))]
    (result,) = LanguageModeling(several).run(subject)
    names = [score.name for score in result.scores]
    assert names == ["bits_per_byte", "loss", "perplexity", "bits_per_byte_the_texts", "bits_per_byte_b_txt"]
    assert result.charts[1].title == "By source"
    assert "The Texts" in result.charts[1].x


def test_the_end_of_a_document_is_a_token_without_bytes(subject, folder):
    (without,) = LanguageModeling(Texts(files=str(folder))).run(subject)
    (with_end,) = LanguageModeling(Texts(files=str(folder)), end_of_document=True).run(subject)
    assert with_end.score("loss").count == without.score("loss").count + 30
    assert with_end.score("bits_per_byte").value > without.score("bits_per_byte").value


def test_loss_by_position_adds_up(subject, folder):
    (result,) = LanguageModeling(Texts(files=str(folder)), stride=BLOCK).run(subject)
    chart = result.charts[0]
    assert chart.x[0] == 1
    assert chart.x[-1] <= BLOCK
    assert all(0 < loss < 30 for loss in chart.series["loss"])


def test_few_documents_say_that_their_interval_is_over_windows(subject, folder):
    (result,) = LanguageModeling(Texts(files=str(folder)), limit=3).run(subject)
    assert result.score("bits_per_byte").interval.method == "bootstrap over windows"
    assert any("few documents" in note for note in result.notes)
    assert any("first 3" in note for note in result.notes)


def test_progress_advances_within_a_long_document(subject, tmp_path, monkeypatch):
    monkeypatch.setattr("lit_gpt.evaluation.language_modeling._TOKENS_AT_ONCE", 256)
    file = tmp_path / "long.txt"
    file.write_text(LONG, encoding="utf-8")
    ticks = []
    LanguageModeling(Texts(files=str(file))).run(subject, lambda done, total: ticks.append((done, total)))
    size = file.stat().st_size
    assert {total for _, total in ticks} == {size}
    done = [done for done, _ in ticks]
    assert done == sorted(done)
    assert done[-1] == size
    assert len(set(done)) > 5


def test_texts_come_from_one_place():
    with pytest.raises(UserError, match="files and stdlib are given"):
        Texts(files="a", stdlib=True)
    with pytest.raises(UserError, match="nothing is given"):
        Texts()
    with pytest.raises(UserError, match="sample is 0"):
        Texts(stdlib=True, sample=0)


def test_a_split_is_the_one_of_training_and_a_sample_is_chosen_by_hash(folder):
    split = {
        name: {d.where for d in Texts(files=str(folder), split=name, val_fraction=0.3, test_fraction=0.3).read()}
        for name in ("train", "val", "test")
    }
    assert len(split["train"] | split["val"] | split["test"]) == 30 == sum(map(len, split.values()))
    sample = [d.where for d in Texts(files=str(folder), sample=0.5).read()]
    assert 5 < len(sample) < 25
    assert sample == [d.where for d in Texts(files=str(folder), sample=0.5).read()]


def test_empty_texts_are_a_mistake(tmp_path, subject):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"contains no text"):
        LanguageModeling(Texts(files=str(tmp_path / "empty.txt"))).run(subject)

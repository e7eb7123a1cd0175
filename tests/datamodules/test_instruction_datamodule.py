"""Instructions become batches: exactly the answers are learned, in an order that nothing but rows and seed decides."""

import json

import numpy as np
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows

from lit_gpt.data.chat import CHAT_TEMPLATES
from lit_gpt.data.rows.loader import RowEvaluationLoader
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.datamodules.inspection import inspect_data
from lit_gpt.errors import UserError

ROWS = alpaca_rows(80)


@pytest.fixture
def make(tmp_path):
    """Makes a DataModule of 80 rows, prepared and set up."""

    def make(rows=None, stage="fit", **arguments):
        defaults = {
            "tokenizer": tokenizer_folder(tmp_path / "tokenizer"),
            "chat_template": "chatml",
            "files": write_rows(tmp_path / "rows.jsonl", ROWS if rows is None else rows),
            "block_size": 96,
            "global_batch_size": 8,
            "val_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
        }
        data = InstructionDataModule(**(defaults | arguments))
        data.prepare_data()
        data.setup(stage)
        return data

    return make


def learned(data, batch):
    """Texts of the supervised tokens of a batch, document by document."""
    tokenizer = data.chat_tokenizer
    texts = []
    for row in range(len(batch["labels"])):
        documents = batch["document_ids"][row] if "document_ids" in batch else torch.zeros(batch["labels"].shape[1])
        for document in sorted(set(documents.tolist()) - {-1}):
            labels = batch["labels"][row][documents == document]
            texts.append(tokenizer.decode(labels[labels != -100].tolist()))
    return [text for text in texts if text]


@pytest.mark.parametrize("template", CHAT_TEMPLATES)
@pytest.mark.parametrize("packing", [True, False])
def test_exactly_the_answers_are_learned(make, template, packing):
    data = make(chat_template=template, packing=packing, val_fraction=0.0, block_size=256)
    stop = data.chat_tokenizer.decode([data.renderer.stop_ids[0]])
    loader = data.train_dataloader()
    seen = set()
    for _ in range(12):
        for step in loader:
            for micro_batch in step:
                seen.update(learned(data, micro_batch))
    assert seen == {row["output"] + stop for row in ROWS}


def test_inputs_are_the_rendered_conversation_and_positions_restart(make):
    data = make(val_fraction=0.0)
    split = data.store.split("train")
    wanted = {tuple(split.sequence(row)[0].tolist()) for row in range(len(split))}
    batch = next(iter(data.train_dataloader()))[0]
    assert batch["input_ids"].shape == (8, 96)
    for row in range(8):
        documents = batch["document_ids"][row]
        for document in range(int(documents.max()) + 1):
            here = documents == document
            inputs, labels = batch["input_ids"][row][here], batch["labels"][row][here]
            assert batch["position_ids"][row][here].tolist() == list(range(int(here.sum())))
            assert (*inputs.tolist(), int(labels[-1])) in wanted
    flat = batch["labels"].flatten()
    assert batch["target_index"].tolist() == torch.nonzero(flat != -100).flatten().tolist()
    texts = [text.removesuffix("<|im_end|>") for text in learned(data, batch)]
    assert batch["num_bytes"].sum() == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("packing", [True, False])
def test_order_is_the_same_for_any_cut(make, packing):
    def rows(**arguments):
        steps = [step for _, step in zip(range(15), repeat(make(packing=packing, **arguments)), strict=False)]
        return [sorted(i for micro in step for i in micro["sample_ids"].tolist()) for step in steps]

    def repeat(data):
        loader = data.train_dataloader()
        while True:
            yield from loader

    assert rows() == rows(micro_batch_size=2) == rows(micro_batch_size=4)
    assert rows() != rows(seed=1)


@pytest.mark.parametrize("packing", [True, False])
def test_ranks_share_a_step(make, packing):
    data = make(packing=packing)
    whole = next(iter(data.train_dataloader()))[0]["sample_ids"].tolist()
    parts = []
    for rank in range(2):
        data._ranks = lambda rank=rank: {"rank": rank, "world_size": 2}
        parts += next(iter(data.train_dataloader()))[0]["sample_ids"].tolist()
    assert parts == whole


def test_resume_goes_on_where_it_was(make):
    data = make()
    loader = data.train_dataloader()
    assert len(loader) >= 2
    first = iter(loader)
    next(first)
    state = loader.state_dict()
    rest = [step[0]["input_ids"] for step in first]
    again = data.train_dataloader()
    again.load_state_dict(state)
    assert all(torch.equal(a, b[0]["input_ids"]) for a, b in zip(rest, again, strict=False))
    for changed in ({"seed": 3}, {"packing": False}, {"global_batch_size": 4}, {"rows": ROWS[:40]}):
        with pytest.raises(UserError, match="the checkpoint was trained with"):
            make(**changed).train_dataloader().load_state_dict(state)


def test_split_is_by_prompt_and_stays_when_rows_are_added(make):
    def prompts(data, split):
        rows = data.store.split(split)
        return {data.chat_tokenizer.decode(rows.sequence(row)[0]).split("assistant")[0] for row in range(len(rows))}

    few, many = make(rows=ROWS[:60]), make(rows=ROWS)
    assert prompts(few, "val") <= prompts(many, "val")
    assert not prompts(many, "val") & prompts(many, "train")
    twins = [{**row, "output": f"{n}"} for row in ROWS[:20] for n in range(3)]
    data = make(rows=twins)
    assert not prompts(data, "val") & prompts(data, "train")


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_sees_every_row_once(make, world_size):
    data = make()
    split = data.store.split("val")
    collate = data.collator()
    loaders = [RowEvaluationLoader(split, collate, 4, rank, world_size) for rank in range(world_size)]
    assert len({len(loader) for loader in loaders}) == 1
    texts = sorted(text for loader in loaders for batch in loader for text in learned(data, batch))
    assert len(texts) == len(split)
    assert sum(int((b["labels"] != -100).sum()) for loader in loaders for b in loader) == split.num_targets


def test_long_rows_are_cut_dropped_or_refused_and_counted(make, capsys):
    longest = {"instruction": "last", "output": "stone " * 40}
    rows = [*ROWS[:10], longest]
    data = make(rows=rows, block_size=48, val_fraction=0.0)
    assert max(data.store.split("train").lengths()) == 49
    cut = data.store.manifest["notes"]["cut off at the context's end"]
    assert cut >= 1
    assert f"{cut} cut off at the context's end" in capsys.readouterr().err
    dropped = make(rows=rows, block_size=48, val_fraction=0.0, long_rows="drop").store.manifest
    assert dropped["notes"] == {"left out as longer than the context": cut}
    assert dropped["splits"]["train"]["num_rows"] == 11 - cut
    with pytest.raises(UserError, match=r"rows.jsonl:\d+: it has \d+ tokens, more than block_size 48"):
        make(rows=rows, block_size=48, long_rows="error")


BAD = [
    ({"instruction": "x"}, "no answer"),
    ({"instruction": "x", "output": "  "}, "empty answer"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "roles out of order"),
    ({"instruction": "stone " * 99, "output": "x"}, "prompt has"),
    ({"instruction": "x \ud800", "output": "y"}, "surrogate"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": 0}]}, "no target token"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_are_named_or_counted(make, tmp_path, row, message):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*ROWS[:5], row, *ROWS[5:9]]))
    with pytest.raises(UserError, match=rf"bad\.jsonl:6: .*{message}"):
        make(files=str(path))
    data = make(files=str(path), on_bad_input="skip", val_fraction=0.0)
    assert data.store.manifest["num_skipped"] == 1
    assert data.store.manifest["skipped"][0].startswith("bad.jsonl:6: ")
    assert len(data.store.split("train")) == 9
    with pytest.raises(UserError, match=rf"bad\.jsonl:6: .*{message}"):  # also from the cache
        make(files=str(path), val_fraction=0.0)


def test_mistakes_in_the_settings(make, tmp_path):
    with pytest.raises(UserError, match="set files"):
        make(files=None)
    with pytest.raises(UserError, match="--chat_template"):
        make(chat_template=None)
    with pytest.raises(UserError, match="no row fell into the val split"):
        make(rows=ROWS[:3], val_fraction=0.0, stage="validate")
    with pytest.raises(UserError, match="micro_batch_size 3"):
        make(micro_batch_size=3)
    with pytest.raises(UserError, match="long_rows is 'shorten'"):
        make(long_rows="shorten")
    with pytest.raises(UserError, match=r"columns.prompt"):
        make(columns={"prompt": "question"})


def test_a_run_that_is_not_there_is_named_with_what_trains_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "first.yaml").write_text("trainer:\n  name: first\n")
    with pytest.raises(UserError, match=r"tokenizer runs/first does not exist.*configs/first\.yaml"):
        InstructionDataModule(tokenizer="runs/first", files="a.jsonl")


def test_the_cache_goes_by_content(make, capsys):
    make()
    assert "rows: " in capsys.readouterr().err
    make()
    assert "rows: " not in capsys.readouterr().err
    make(rows=ROWS[1:])
    assert "rows: " in capsys.readouterr().err
    store = make().store
    ids = store.folder / "train" / "ids.bin"
    ids.write_bytes(ids.read_bytes()[:-2])
    make()
    assert "damaged" in capsys.readouterr().err


def test_the_tokenizer_folder_has_template_and_tokens(make):
    data = make()
    saved = load_tokenizer(data.tokenizer_path)
    assert data.vocab_size == saved.vocab_size == small_tokenizer().vocab_size + 2
    assert data.new_tokens == ["<|im_start|>", "<|im_end|>"]
    again = make(tokenizer=str(data.tokenizer_path), chat_template=None)
    assert again.new_tokens == []
    assert again.store.folder == data.store.folder


def test_other_files_are_held_out_by_name(make, tmp_path):
    held = write_rows(tmp_path / "held.json", alpaca_rows(7, seed=9))
    data = make(val_files=held, val_fraction=0.0)
    assert [len(data.store.split(name)) for name in ("train", "val")] == [80, 7]
    assert np.all([data.store.split("val").where(row).startswith("held.json:") for row in range(7)])


# Renders answers without their reasoning once a question follows, as Qwen3's template does.
REWRITING = (
    "{#- tokens: <|im_start|> <|im_end|> -#}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and loop.last %}({{ m.reasoning_content }}) {% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def thinking_row(turns):
    answer = {"role": "assistant", "content": "stone", "reasoning_content": "river"}
    return {"id": 7, "messages": [{"role": "user", "content": "blue"}, answer] * turns}


def test_a_template_that_rewrites_history_gives_a_sequence_for_each_answer(make, tmp_path, capsys):
    (tmp_path / "own.jinja").write_text(REWRITING)
    data = make([thinking_row(1), thinking_row(3)], chat_template=str(tmp_path / "own.jinja"), val_fraction=0.0,
                packing=False, global_batch_size=1)  # fmt: skip
    manifest = data.store.manifest
    assert manifest["splits"]["train"]["num_rows"] == 4
    assert manifest["rows"] == {"read": 2, "used": 2, "left_out": 0}
    assert list(manifest["notes"].values()) == [1]  # counted by row
    assert manifest["fields_left_out"] == {"id": 2}
    assert "fields left out: id" in capsys.readouterr().err
    texts = [text for step in data.train_dataloader() for batch in step for text in learned(data, batch)]
    assert texts == ["(river) stone<|im_end|>"] * 4


def test_counts_add_up(make):
    rows = [
        {"prompt": "a", "completion": "b"}, {"prompt": "word " * 300, "completion": "b"}, {"prompt": "a"},
        {"prompt": "a", "completion": "b", "margin": 1},
    ]  # fmt: skip
    data = make(rows, long_rows="drop", on_bad_input="skip", val_fraction=0.0, global_batch_size=1)
    manifest = data.store.manifest
    assert manifest["rows"] == {"read": 4, "used": 1, "left_out": 1}
    assert manifest["num_skipped"] == 2


def test_dropping_every_row_says_what_to_change(make):
    with pytest.raises(UserError, match=r"1 left out as longer than the context; raise block_size .* long_rows: cut"):
        make([{"prompt": "word " * 300, "completion": "b"}], long_rows="drop")


def test_the_inspector_says_that_unpacked_rows_are_alone(make):
    for packing in (False, True):
        data = make(ROWS[:1], packing=packing, val_fraction=0.0, global_batch_size=1)
        assert all(window.isolated for window in inspect_data(data, "train", 1, None).windows)

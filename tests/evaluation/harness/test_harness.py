"""lm-eval with our model against lm-eval with its own `hf` model, on the same weights and files."""

import json
import shutil

import pytest
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_gpt.data.chat import load_chat_template
from lit_gpt.errors import UserError
from lit_gpt.evaluation.harness import Harness
from lit_gpt.evaluation.harness import forms as file_forms
from lit_gpt.evaluation.subject import Subject, load_subject
from lit_gpt.extras import need

lm_eval = pytest.importorskip("lm_eval")

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "it",
    "ran",
    "off",
    "to",
    "see",
    "two",
    "dogs",
    "play",
    "with",
    "one",
    "red",
    "ball",
    "in",
    "3",
    "or",
    "14",
    "parks",
]


def sentence(number: int, length: int = 6) -> str:
    return " ".join(WORDS[(number * 7 + 3 * place) % len(WORDS)] for place in range(length))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small files in the published forms."""
    folder = tmp_path_factory.mktemp("files")

    def lines(name, rows):
        path = folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    found = {
        "hellaswag": lines(
            "hellaswag.jsonl",
            [
                {
                    "ind": i,
                    "ctx": f"Play: {sentence(i)}.",
                    "label": i % 4,
                    "endings": [sentence(4 * i + j, 3 + j) for j in range(4)],
                }
                for i in range(12)
            ],
        ),
        "gsm8k": lines(
            "gsm8k.jsonl",
            [{"question": f"{sentence(i)}?", "answer": f"{sentence(i + 1)}\n#### {i}"} for i in range(8)],
        ),
    }
    truthful = [
        {
            "question": f"{sentence(i)}?",
            "mc1_targets": {sentence(9 * i + j, 2 + j): int(j == i % 3) for j in range(3)},
            "mc2_targets": {sentence(9 * i + j, 2 + j): int(j < 2) for j in range(5)},
        }
        for i in range(6)
    ]
    (folder / "mc_task.json").write_text(json.dumps(truthful))
    found["truthfulqa_mc1"] = found["truthfulqa_mc2"] = str(folder / "mc_task.json")
    quiz = ["question,A,B,C,answer"] + [
        f"{sentence(i)}?,{sentence(i, 1)},{sentence(i + 1, 2)},{sentence(i + 2, 3)},{'ABC'[i % 3]}" for i in range(6)
    ]
    (folder / "quiz.csv").write_text("\n".join(quiz) + "\n")
    found["quiz"] = str(folder / "quiz.csv")
    return found


@pytest.fixture(scope="module", params=["plain", "with a beginning-of-text rule"])
def published(request, tmp_path_factory):
    """A Hugging Face folder with random weights, and a chat template."""
    folder = tmp_path_factory.mktemp("published")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<s>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([sentence(i, 12) for i in range(30)], trainer)
    if request.param != "plain":
        backend.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>" if request.param == "plain" else "<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    tokenizer.chat_template = load_chat_template("alpaca").source
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=32,
        intermediate_size=48,
        vocab_size=400,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=0 if request.param == "plain" else 1,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def hf_says(folder, files, task, **options):
    """What lm-eval's own model says of one of our tasks."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    from lit_gpt.evaluation.harness.find import SEED, find_tasks

    found = find_tasks([task], data={task: files[task]})
    for one in found.tasks.values():
        if one.get_config("num_fewshot") is None:
            one.set_config(key="num_fewshot", value=0)
        if one.OUTPUT_TYPE == "generate_until":
            one.set_config(key="generation_kwargs", value={"max_gen_toks": 12}, update=True)
        one.set_fewshot_seed(seed=SEED)
    model = HFLM(str(folder), device="cpu", dtype="float32", batch_size=4)
    return evaluate(model, task_dict={"tasks": found.tasks, "groups": {}}, bootstrap_iters=0, **options)


@pytest.mark.parametrize("chat", [False, True], ids=["plain text", "chat"])
@pytest.mark.parametrize("task", ["hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "quiz", "gsm8k"])
def test_scores_are_those_of_the_harness_own_model(published, files, task, chat, monkeypatch):
    from lit_gpt.evaluation.harness import model as ours

    asked = []
    plain = ours.HarnessModel.loglikelihood
    monkeypatch.setattr(
        ours.HarnessModel,
        "loglikelihood",
        lambda self, requests: asked.append((requests, said := plain(self, requests))) or said,
    )
    measure = Harness([task], data={task: files[task]}, max_gen_toks=12, apply_chat_template=chat)
    (result,) = measure.run(load_subject(str(published), device="cpu"))
    expected = hf_says(published, files, task, apply_chat_template=chat, fewshot_as_multiturn=True)
    assert {score.name for score in result.scores}
    for score in result.scores:
        filtered = next(
            (
                row["filter"]
                for row in expected["samples"][task]
                if score.name.endswith(row["filter"].replace("-", "_"))
            ),
            "none",
        )
        metric = score.name.removesuffix("_" + filtered.replace("-", "_"))
        theirs = {str(row["doc_id"]): row[metric] for row in expected["samples"][task] if row["filter"] == filtered}
        assert score.per_item == pytest.approx(theirs, abs=1e-5)
        assert score.value == pytest.approx(expected["results"][task][f"{metric},{filtered}"], abs=1e-5)
        assert score.interval.low <= score.value <= score.interval.high
    if asked:
        ((requests, said),) = asked
        of_choice = {(r.doc_id, r.idx): answer for r, answer in zip(requests, said, strict=True)}
        for row in expected["samples"][task]:
            for idx, answers in enumerate(row["resps"]):
                logprob, is_greedy = of_choice[row["doc_id"], idx]
                assert logprob == pytest.approx(answers[0][0], abs=1e-4)
                assert is_greedy == answers[0][1]


def test_written_answers_are_those_of_the_harness_own_model(published, files):
    (result,) = Harness(["gsm8k"], data={"gsm8k": files["gsm8k"]}, max_gen_toks=12).run(
        load_subject(str(published), device="cpu")
    )
    theirs = {str(row["doc_id"]): row["resps"][0][0] for row in hf_says(published, files, "gsm8k")["samples"]["gsm8k"]}
    shown = {example.item: example.fields["answer"] for example in result.examples}
    assert shown
    assert shown == {item: theirs[item] for item in shown}


@pytest.fixture
def task_folder(tmp_path):
    """Two task files of a user's own and a group of them: a whole text's perplexity, and a choice."""
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": sentence(i, 40 * (1 + 29 * (i == 2)))}) + "\n" for i in range(4))
    )
    (tmp_path / "texts.yaml").write_text(
        f"task: my_texts\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/text.jsonl}}, cache_dir: {tmp_path}/cache}}\n"
        "output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}\n"
    )
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(
            f"task: my_{name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/text.jsonl}}, cache_dir: {tmp_path}/cache}}\n"
            "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{text[:20]}}'\ndoc_to_target: 0\ndoc_to_choice: ['a cat', 'a dog']\n"
            "metric_list:\n  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        )
    (tmp_path / "group.yaml").write_text(
        "group: my_group\ntask: [my_one, my_two]\naggregate_metric_list:\n  - {metric: acc, aggregation: mean, weight_by_size: true}\n"
    )
    return tmp_path


def test_a_folder_of_tasks_needs_no_network(published, task_folder):
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    subject = load_subject(str(published), device="cpu")
    results = {
        result.name: result for result in Harness(["my_texts", "my_group"], include_path=str(task_folder)).run(subject)
    }
    assert set(results) == {"my_texts", "my_one", "my_two", "my_group"}
    loaded = TaskManager(include_path=str(task_folder), include_defaults=False).load(["my_texts", "my_group"])
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    expected = evaluate(HFLM(str(published), device="cpu", dtype="float32"), task_dict=loaded, bootstrap_iters=0)[
        "results"
    ]
    perplexity = results["my_texts"].score("byte_perplexity")
    assert perplexity.value == pytest.approx(expected["my_texts"]["byte_perplexity,none"], rel=1e-5)
    assert perplexity.better == "lower"
    assert perplexity.interval.low < perplexity.value < perplexity.interval.high
    group = results["my_group"].score("acc")
    assert group.value == expected["my_group"]["acc,none"]
    assert group.count == 8
    assert group.per_item.keys() >= {"my_one/0", "my_two/3"}


def test_our_own_models_read_a_text_as_they_were_trained(published, files):
    subject = load_subject(str(published), device="cpu")
    own = Subject("own", subject.model, type(subject.tokenizer)(subject.tokenizer.backend))
    measure = Harness(["quiz"], data={"quiz": files["quiz"]})
    (result,) = measure.run(own)
    assert result.settings["opening"] == "trained"
    (result,) = measure.run(subject)
    assert result.settings["opening"] == "hf"


def test_limit_shots_and_examples_are_in_the_result(published, files):
    measure = Harness(
        ["hellaswag"],
        data={"hellaswag": files["hellaswag"]},
        fewshot_data={"hellaswag": files["hellaswag"]},
        num_fewshot=2,
        limit=5,
    )
    (result,) = measure.run(load_subject(str(published), device="cpu"))
    assert result.score("acc").count == 5
    assert result.settings["num_fewshot"] == 2
    assert result.settings["file"].startswith("hellaswag.jsonl")
    assert any("5 of 12" in note for note in result.notes)
    assert {example.title for example in result.examples} <= {"wrong", "right"}
    assert json.dumps(result.to_dict())


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("task", "row", "words"),
    [
        ("hellaswag", {"ctx": "a", "label": 0}, "rows.jsonl:2: no 'endings'.*its fields are 'ctx', 'label'"),
        (
            "hellaswag",
            {"ctx": "a", "label": 4, "endings": ["b", "c"]},
            "rows.jsonl:2: 'label' is 4.* 2 choices",
        ),
        ("gsm8k", {"question": "a", "answer": "12"}, "rows.jsonl:2: .*does not end with '#### '"),
        ("truthfulqa_mc1", {"question": "a", "mc1_targets": {"b": 1}}, "rows.jsonl:2: 'mc1_targets' needs"),
        ("quiz", {"question": "a", "answer": "A"}, "rows.jsonl:2: no choices.*read as multiple_choice"),
        ("quiz", {"question": "a", "choices": ["b", "c"], "answer": "C"}, "rows.jsonl:2: 'answer' is 'C'"),
    ],
)
def test_a_row_that_does_not_fit_is_named(tmp_path, task, row, words):
    from lit_gpt.evaluation.harness.find import find_tasks

    good = {
        "hellaswag": {"ctx": "a", "label": "1", "endings": ["b", "c"]},
        "gsm8k": {"question": "a", "answer": "b\n#### 12"},
        "truthfulqa_mc1": {"question": "a", "mc1_targets": {"b": 1, "c": 0}, "mc2_targets": {"b": 1, "c": 0}},
        "quiz": {"question": "a", "choices": ["b", "c"], "answer": "B"},
    }
    with pytest.raises(UserError, match=words):
        find_tasks([task], data={task: write(tmp_path / "rows.jsonl", [good[task], row])})


def test_an_empty_file_and_a_missing_one_are_named(tmp_path):
    from lit_gpt.evaluation.harness.find import find_tasks

    with pytest.raises(UserError, match=r"empty.jsonl contains no rows"):
        find_tasks(["gsm8k"], data={"gsm8k": write(tmp_path / "empty.jsonl", [])})
    with pytest.raises(UserError, match="does not exist"):
        find_tasks(["gsm8k"], data={"gsm8k": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match="not among the tasks: gsm8k"):
        find_tasks(["gsm8k"], data={"gsm": "x"})


def test_an_unknown_task_gets_its_nearest_names(task_folder, monkeypatch):
    from lit_gpt.evaluation.harness import find

    real = find.TaskManager
    find._manager.cache_clear()
    monkeypatch.setattr(
        find,
        "TaskManager",
        lambda include_path, include_defaults: real(include_path=include_path, include_defaults=False),
    )
    with pytest.raises(UserError, match=r"no task 'my_txts'; the nearest are my_texts"):
        find.find_tasks(["my_txts"], include_path=str(task_folder))
    with pytest.raises(UserError, match="include_path"):
        find.find_tasks(["my_texts"], include_path=str(task_folder / "none"))
    find._manager.cache_clear()


@pytest.mark.slow
def test_the_harness_own_tasks_are_known_by_name():
    from lit_gpt.evaluation.harness.find import find_tasks

    with pytest.raises(UserError, match="no task 'helaswag'; the nearest are hellaswag"):
        find_tasks(["helaswag"])
    with pytest.raises(UserError, match=r"no task 'xyzzyq' \(for"):
        find_tasks(["xyzzyq"])
    with pytest.raises(UserError, match="the task 'humaneval' runs the code"):
        find_tasks(["humaneval"])


def test_a_task_that_runs_written_code_is_refused_before_it_loads(task_folder):
    from lit_gpt.evaluation.harness.find import find_tasks

    (task_folder / "unsafe.yaml").write_text("task: my_unsafe\nunsafe_code: true\ndataset_path: nowhere/at_all\n")
    (task_folder / "unsafe_group.yaml").write_text("group: my_risky\ntask: [my_one, my_unsafe]\n")
    for name in ("my_unsafe", "my_risky"):
        with pytest.raises(UserError, match="HumanEval"):
            find_tasks([name], include_path=str(task_folder))


def test_what_a_model_cannot_be_asked_is_said(published, files, tmp_path):
    folder = tmp_path / "without template"
    shutil.copytree(published, folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template.*--chat_template"):
        Harness(["quiz"], data={"quiz": files["quiz"]}, apply_chat_template=True).run(
            load_subject(str(folder), device="cpu")
        )
    with pytest.raises(UserError, match=r"'gsm8k' asks for 600 new tokens.*block_size of 512"):
        Harness(["gsm8k"], data={"gsm8k": files["gsm8k"]}, max_gen_toks=600).run(
            load_subject(str(published), device="cpu")
        )
    for bad in ({"tasks": []}, {"tasks": ["a"], "limit": 0}, {"tasks": ["a"], "opening": "bos"}):
        with pytest.raises(UserError):
            Harness(**bad)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[eval\]'"):
        need("lm_eval", "eval", "measuring by lm-eval's tasks")


def test_prompts_are_those_of_the_harness_own_tasks():
    """Our task files against lm-eval's of the same names."""
    from pathlib import Path

    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    from lm_eval.utils import apply_template

    theirs = Path(lm_eval.__file__).parent / "tasks"
    ours = Path(file_forms.__file__).parent / "tasks"
    doc = {"question": "Why?", "query": "A", "choices": ["b", "c"], "gold": 1, "answer": "4\n#### 4", "label": 1}
    for name, path in {
        "hellaswag": "hellaswag/hellaswag",
        "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1",
        "gsm8k": "gsm8k/gsm8k",
    }.items():
        one = yaml.load((ours / f"{name}.yaml").read_text(), Loader)
        other = yaml.load((theirs / f"{path}.yaml").read_text(), Loader)
        text = doc.get(one["doc_to_text"]) or apply_template(one["doc_to_text"], doc)
        assert text == apply_template(other["doc_to_text"], doc)
        for key in ("output_type", "metric_list", "generation_kwargs", "filter_list", "num_fewshot"):
            assert one.get(key) == other.get(key), key


def test_hellaswag_rows_become_the_harness_own_documents():
    import datasets
    from lm_eval.tasks.hellaswag.utils import process_docs

    rows = [
        {
            "activity_label": "Roof",
            "ctx_a": "A man [title] sits.",
            "ctx_b": "he  stands",
            "ctx": "x",
            "endings": ["a [step] b", " c"],
            "label": "1",
        },
        {
            "activity_label": "Ice",
            "ctx_a": "It is cold.",
            "ctx_b": "",
            "ctx": "x",
            "endings": ["one", "two"],
            "label": "0",
        },
    ]
    theirs = list(process_docs(datasets.Dataset.from_list(rows)))
    for row, other in zip(rows, theirs, strict=True):
        mine = file_forms._hellaswag(row)
        assert {key: mine[key] for key in ("query", "choices", "gold")} == {
            key: other[key] for key in ("query", "choices", "gold")
        }

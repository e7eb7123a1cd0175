import itertools
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mixing import NAMES, G, Recorder, make_corpora, mixture, text
from recording import stock_trainer

from lit_gpt.callbacks import MixtureProportions
from lit_gpt.data.mixture import MixtureChange, MixtureCorpus, plan_phases
from lit_gpt.data.tokenizers import load_tokenizer
from lit_gpt.datamodules import PreparedDataModule
from lit_gpt.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixing")
    make_corpora(folder)
    return folder


def ready(data, stage: str = "fit"):
    data.prepare_data()
    data.setup(stage)
    return data


def steps(loader, count: int) -> list[list[tuple[int, ...]]]:
    """(corpus, sample, tokens) of each row of the next steps, over as many epochs as it takes."""
    endless = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return [
        [
            (corpus, sample, *row)
            for micro in step
            for corpus, sample, row in zip(
                micro["corpus_ids"].tolist(), micro["sample_ids"].tolist(), micro["input_ids"].tolist(), strict=True
            )
        ]
        for step in itertools.islice(endless, count)
    ]


def test_a_row_is_from_the_corpus_that_it_names(root: Path) -> None:
    data = ready(mixture(root))
    tokenizer = load_tokenizer(data.tokenizer_path)
    for row in itertools.chain.from_iterable(steps(data.train_dataloader(), 20)):
        letters = {word[0] for word in tokenizer.decode(row[2:]).split() if word[1:].isdigit() and word[0].isalpha()}
        assert letters <= {NAMES[row[0]][0]}


def test_weights_are_realised_within_one_percent_over_2000_steps(root: Path, tmp_path: Path) -> None:
    data, callback, module = mixture(root), MixtureProportions(), Recorder()
    stock_trainer(tmp_path, 2000, callbacks=[callback], log_every_n_steps=100, limit_val_batches=0).fit(module, data)
    corpora = np.array([[row[0] for row in step] for step in module.seen])
    assert corpora.shape == (2000, G)
    shares = np.bincount(corpora.ravel()) / corpora.size
    assert np.abs(shares - [0.7, 0.2, 0.1]).max() < 1e-4
    # And all along the way: never more than about one sample off.
    drawn = np.cumsum(np.eye(3)[corpora.ravel()], axis=0)
    wanted = np.outer(np.arange(1, 2000 * G + 1), [0.7, 0.2, 0.1])
    assert np.abs(drawn - wanted).max() < 1.01
    for name, share in zip(NAMES, shares, strict=True):
        assert callback.latest[f"mixture_total/{name}"] == pytest.approx(share)
        assert callback.latest[f"mixture_wanted/{name}"] == pytest.approx(share, abs=1e-4)
        assert callback.latest[f"mixture/{name}"] == pytest.approx(share, abs=0.01)


def test_each_corpus_is_gone_through_once_before_it_comes_again(root: Path) -> None:
    data = ready(mixture(root))
    windows = data.mixture.num_windows
    samples = np.arange(12 * sum(windows))
    corpora, starts = data.mixture.locate(samples)
    for corpus, count in enumerate(windows):
        own = starts[corpora == corpus]
        assert len(own) > 2 * count
        for epoch in range(len(own) // count):
            assert len(set(own[epoch * count : (epoch + 1) * count].tolist())) == count


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_is_exact_and_elastic(root: Path, num_workers: int) -> None:
    schedule = [MixtureChange(at=6, weights={"code": 1.0, "web": 1.0}, over=5)]
    expected = steps(ready(mixture(root, schedule=schedule)).train_dataloader(), 20)
    state, seen = None, []
    for ranks, count in ((1, 4), (2, 5), (4, 3), (1, 8)):
        data = ready(mixture(root, schedule=schedule, num_workers=num_workers, micro_batch_size=2))
        shares = []
        for rank in range(ranks):
            data._ranks = lambda rank=rank, ranks=ranks: {"rank": rank, "world_size": ranks}
            loader = data.train_dataloader()
            if state is not None:
                loader.load_state_dict(state)
            shares.append(steps(loader, count))
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        seen += [list(itertools.chain.from_iterable(parts)) for parts in zip(*shares, strict=True)]
    assert seen == expected


def test_an_epoch_cap_hands_the_weight_on(root: Path) -> None:
    corpora = [MixtureCorpus(str(root / "corpora" / name), weight=1.0) for name in NAMES]
    corpora[2] = MixtureCorpus(corpora[2].path, weight=1.0, max_epochs=2)
    data = ready(mixture(root, corpora=corpora))
    cap = 2 * data.mixture.num_windows[2]
    corpora_of, _ = data.mixture.locate(np.arange(10 * cap))
    assert (corpora_of == 2).sum() == cap
    last = np.flatnonzero(corpora_of == 2)[-1]
    after = corpora_of[last + 1 :]
    assert abs((after == 0).mean() - 0.5) < 0.01
    assert data.mixture.sampler.num_samples is None


def test_a_mixture_that_is_used_up(root: Path, tmp_path: Path) -> None:
    corpora = [MixtureCorpus(str(root / "corpora" / name), max_epochs=1) for name in NAMES]
    data = ready(mixture(root, corpora=corpora))
    loader = data.train_dataloader()
    assert len(loader) == sum(data.mixture.num_windows) // G
    everything = list(itertools.chain.from_iterable(steps(loader, len(loader))))
    assert len({row[1] for row in everything}) == len(loader) * G
    with pytest.raises(UserError, match="the mixture is used up after"):
        next(iter(loader))
    with pytest.raises(UserError, match=r"used up after \d+ steps, .* the run has 5000; raise max_epochs"):
        stock_trainer(tmp_path, 5000).fit(Recorder(), mixture(root, corpora=corpora))
    with pytest.raises(UserError, match=rf"used up after {len(loader)} steps, .* the run has {2 * len(loader)}"):
        stock_trainer(tmp_path, -1, max_epochs=2).fit(Recorder(), mixture(root, corpora=corpora))
    module = Recorder()
    stock_trainer(tmp_path, -1, max_epochs=1, limit_val_batches=0).fit(module, mixture(root, corpora=corpora))
    assert len(module.seen) == len(loader)
    module = Recorder()
    settings = {"max_epochs": 3, "limit_train_batches": len(loader) // 3, "limit_val_batches": 0}
    stock_trainer(tmp_path, -1, **settings).fit(module, mixture(root, corpora=corpora))
    assert len(module.seen) == len(loader) // 3 * 3


@pytest.mark.parametrize(
    ("mode", "temperature", "exponent"), [("tokens", 1.0, 1.0), ("temperature", 2.0, 0.5), ("temperature", 1e9, 0.0)]
)
def test_weights_by_size_and_temperature(root: Path, mode: str, temperature: float, exponent: float) -> None:
    data = ready(mixture(root, weights=None) if mode == "tokens" else mixture(root, None))
    data.weights, data.temperature = mode, temperature
    data.setup("fit")
    tokens = np.array([split.num_tokens for split in data.mixture.splits], dtype=float)
    wanted = tokens**exponent / (tokens**exponent).sum()
    assert data.mixture.sampler.segments[0].weights == pytest.approx(wanted.tolist())


def test_a_schedule_in_shares_of_the_run(root: Path, tmp_path: Path) -> None:
    schedule = [MixtureChange(at=0.5, weights={"books": 3.0, "code": 1.0})]
    module = Recorder()
    stock_trainer(tmp_path, 100, limit_val_batches=0).fit(module, mixture(root, schedule=schedule))
    corpora = np.array([[row[0] for row in step] for step in module.seen])
    for half, wanted in ((corpora[:50], [0.7, 0.2, 0.1]), (corpora[50:], [0, 0.75, 0.25])):
        assert np.abs(np.bincount(half.ravel(), minlength=3) / half.size - wanted).max() < 0.004
    with pytest.raises(UserError, match=r"at 0\.5 .* length is not known; set trainer\.max_steps"):
        ready(mixture(root, schedule=schedule))


def test_the_future_of_the_weights_may_change_and_their_past_not(root: Path) -> None:
    def loader(at: int):
        schedule = [MixtureChange(at=at, weights={"code": 1.0})]
        return ready(mixture(root, schedule=schedule)).train_dataloader()

    first = loader(at=30)
    seen = steps(first, 10)
    state = first.state_dict()
    later = loader(at=12)
    later.load_state_dict(state)
    assert {row[0] for row in steps(later, 8)[-1]} == {2}
    earlier = loader(at=7)
    with pytest.raises(UserError, match=r"other weights of the mixture: from step 0 web 0\.7.*from step 7 web 0"):
        earlier.load_state_dict(state)
    assert len(seen) == 10
    other = ready(mixture(root, seed=6)).train_dataloader()
    with pytest.raises(UserError, match="trained with seed 5, this run has 6"):
        other.load_state_dict(state)


def test_the_corpora_keep_their_order(root: Path) -> None:
    def loader(names: tuple[str, ...]):
        corpora = [MixtureCorpus(str(root / "corpora" / name), weight=1.0) for name in names]
        return ready(mixture(root, corpora=corpora)).train_dataloader()

    first = loader(("web", "books"))
    steps(first, 3)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    same = loader(("web", "books"))
    same.load_state_dict(state)
    assert steps(same, 3) == steps(first, 3)
    with pytest.raises(UserError, match="in the order web, books, this run has books, web: .*restore that order"):
        loader(("books", "web")).load_state_dict(state)
    with pytest.raises(UserError, match="trained with corpora"):
        loader(("web", "code")).load_state_dict(state)


def test_a_slow_change_may_end_with_the_run() -> None:
    change = MixtureChange(at=0.3, weights={"code": 1.0}, over=0.7)  # 2 and 4 of 5 steps, both rounded up
    phases = plan_phases((1.0, 0.0), ["web", "code"], [change], total_steps=5, global_batch_size=1)
    assert [(phase.start, round(phase.weights[1], 3)) for phase in phases] == [(0, 0.0), (2, 0.167), (3, 0.5), (4, 1.0)]
    plan_phases((1.0, 0.0), ["web", "code"], [MixtureChange(30, {"code": 1.0}, 10)], 40, 1)
    for at, over in ((30, 11), (0.5, 0.9), (30, 0.5), (0.75, 11)):
        with pytest.raises(UserError, match="and the run ends after 40 steps"):
            plan_phases((1.0, 0.0), ["web", "code"], [MixtureChange(at, {"code": 1.0}, over)], 40, 1)


def test_validation_of_each_corpus_and_of_all(root: Path) -> None:
    data = ready(mixture(root))
    found: dict[str, int] = {}
    order = []
    for batch in data.val_dataloader():
        order.append(batch["corpus"])
        found[batch["corpus"]] = found.get(batch["corpus"], 0) + int(batch["num_bytes"].sum())
    expected = {n: p.corpus.split("val").num_bytes for n, p in zip(NAMES, data._opened, strict=True)}
    assert found == {name: count for name, count in expected.items() if count}
    assert order[: len(found)] == list(found)  # in turns, so that limit_val_batches meets all
    documents = {}
    for batch in ready(mixture(root), "predict").predict_dataloader():
        for index, source in zip(batch["document_index"].tolist(), batch["sources"], strict=True):
            if index >= 0:
                documents.setdefault(index, source)
    assert len(documents) == sum(p.corpus.split("test").num_documents for p in data._opened)
    assert {source.split("/")[0] for source in documents.values()} <= set(NAMES)


def test_any_window_is_traced_to_its_documents(root: Path) -> None:
    data = ready(mixture(root))
    tokenizer = load_tokenizer(data.tokenizer_path)
    micro = next(iter(data.train_dataloader()))[0]
    for row, pieces in zip(micro["input_ids"].tolist(), data.provenance(micro), strict=True):
        assert [pieces[0].begin, pieces[-1].end] == [0, 17]
        for piece in pieces:
            whole = [tokenizer.separator_id, *tokenizer.encode(text(piece.corpus, piece.record - 1)).tolist()]
            assert piece.num_tokens == len(whole)
            assert row[piece.begin : piece.end] == whole[piece.offset :][: min(piece.end, 16) - piece.begin]


def test_lineage_is_json(root: Path) -> None:
    lineage = json.loads(json.dumps(ready(mixture(root)).lineage()))
    assert lineage["segments"][0]["weights"] == pytest.approx({"web": 0.7, "books": 0.2, "code": 0.1})
    assert set(lineage["corpora"]) == set(NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": (0.7, None, 0.1)}, "the corpus books has no weight"),
        ({"weights": (0.7, -1.0, 0.1)}, "books -1, code 0.1; all must be at least 0"),
        ({"schedule": [MixtureChange(at=5, weights={"bookss": 1.0})]}, "did you mean books"),
        ({"schedule": [MixtureChange(at=5, weights={"web": 0.0})]}, "and one above 0"),
        ({"schedule": [MixtureChange(at=1.5, weights={"web": 1.0})]}, "between 0 and 1, or a whole number"),
        ({"schedule": [MixtureChange(at=0, weights={"web": 1.0})]}, "give a later one"),
        ({"schedule": [MixtureChange(at=50, weights={"web": 1.0})], "total_steps": 40}, "the run ends after 40"),
        ({"schedule": [MixtureChange(at=5, weights={"web": 1.0})] * 2}, "let `at` increase"),
        ({"block_size": 10**6}, "corpus web: .* fewer than one window"),
        ({"global_batch_size": 8, "micro_batch_size": 3}, "does not divide"),
    ],
)
def test_impossible_mixtures(root: Path, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        arguments = dict(arguments)
        ready(mixture(root, arguments.pop("weights", (0.7, 0.2, 0.1)), **arguments))


def test_corpora_that_do_not_go_together(root: Path, tmp_path: Path) -> None:
    other = make_corpora(tmp_path, vocab_size=310)
    corpora = [MixtureCorpus(str(root / "corpora" / "web")), MixtureCorpus(str(other["books"]))]
    with pytest.raises(UserError, match="another tokenizer"):
        mixture(root, corpora=corpora)
    with pytest.raises(UserError, match="different `name`"):
        mixture(root, corpora=[corpora[0], corpora[0]])
    with pytest.raises(UserError, match="at least one prepared corpus"):
        mixture(root, corpora=[])
    with pytest.raises(UserError, match=r"no prepared corpus .*nowhere; make it first: python -m lit_gpt prepare"):
        mixture(root, corpora=[MixtureCorpus(str(tmp_path / "nowhere"))])


def test_a_prepared_corpus_is_opened_as_it_lies(root: Path, tmp_path: Path) -> None:
    data = ready(PreparedDataModule(str(root / "corpora" / "web"), block_size=16, global_batch_size=4))
    assert data.vocab_size == load_tokenizer(data.tokenizer_path).vocab_size
    assert next(iter(data.train_dataloader()))[0]["input_ids"].shape == (4, 16)
    assert sum(int(b["num_bytes"].sum()) for b in data.val_dataloader()) == data.corpus.split("val").num_bytes
    batch = next(iter(data.val_dataloader()))
    assert next(pieces[0].begin for pieces in data.provenance(batch, "val") if pieces) == 0
    shards = root / "corpora" / "web" / "tokens"
    assert PreparedDataModule(str(shards)).tokenizer_path == data.tokenizer_path
    assert PreparedDataModule(str(shards), vocab_size=512).vocab_size == 512
    with pytest.raises(UserError, match="vocab_size 256 is smaller than the 300 entries"):
        PreparedDataModule(str(shards), vocab_size=256)
    shutil.copytree(shards, tmp_path / "alone")
    with pytest.raises(UserError, match="tokenizer of the corpus"):
        PreparedDataModule(str(tmp_path / "alone"))
    assert PreparedDataModule(str(tmp_path / "alone"), tokenizer=str(data.tokenizer_path)).vocab_size == 300
    other = make_corpora(tmp_path / "other", vocab_size=310)
    with pytest.raises(UserError, match="was not made with the tokenizer"):
        PreparedDataModule(str(tmp_path / "alone"), tokenizer=str(other["web"] / "tokenizer"))


@pytest.mark.slow
def test_one_and_two_processes_train_on_the_same(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "corpora", tmp_path / "corpora")
    schedule = [{"at": 0.5, "weights": {"code": 1.0, "books": 1.0}}]
    (tmp_path / "schedule.json").write_text(json.dumps(schedule))

    def run(devices: int, last_step: int, *checkpoint: str) -> tuple[list, dict]:
        command = [sys.executable, "mixing.py", str(tmp_path), str(devices), str(last_step), *checkpoint]
        subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, timeout=180)
        records = [json.loads((tmp_path / f"mixed-{last_step}-{r}.json").read_text()) for r in range(devices)]
        per_rank = zip(*(record["seen"] for record in records), strict=True)
        return [[row for share in shares for row in share] for shares in per_rank], records[0]["latest"]

    whole, logged = run(1, 40)
    seen = run(1, 10)[0] + run(2, 25, str(tmp_path / "step-10.ckpt"))[0]
    last, latest = run(1, 40, str(tmp_path / "step-25.ckpt"))
    assert seen + last == whole
    assert {k: v for k, v in latest.items() if "total" in k} == {k: v for k, v in logged.items() if "total" in k}

"""Reinforcement learning under a Trainer: fixed answers cut in any way, exact resumes, and a reward that rises."""

import json

import lightning.pytorch as pl
import pytest
import torch
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder

from lit_gpt.adapters import AdapterConfig
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.datamodules import PromptDataModule
from lit_gpt.errors import UserError
from lit_gpt.generation import Completion
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import GRPOModule
from lit_gpt.modules.rollouts import request_seed
from lit_gpt.rewards import ExactAnswer
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 96}


def share_of_s(sample):
    """Share of the letter s."""
    return sample.completion.count("s") / max(len(sample.completion), 1)


def constant(sample):
    """The same for all."""
    return 0.1


def fails_once(sample):
    """Raises for some rows."""
    if sample.row["instruction"][:2] in ("3 ", "4 ", "5 ", "6 "):
        raise KeyError("nothing here")
    return share_of_s(sample)


class Record(pl.Callback):
    """First gradients, each step's loss, and all answers' advantages."""

    def __init__(self):
        self.losses, self.advantages, self.ids = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.model.named_parameters()
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        if not self.losses:
            self.gradients = gradients

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        answers = [answer for group in pl_module._groups.values() for answer in group]
        self.advantages.append([answer.advantage for answer in answers])
        self.ids.append([answer.ids for answer in answers])
        self.last = batch


class Logged(pl.loggers.Logger):
    """Keeps what is logged."""

    name = version = "logged"

    def __init__(self):
        super().__init__()
        self.values, self.texts = {}, {}

    @property
    def experiment(self):
        return self

    def add_text(self, name, text, step):
        self.texts[name, step] = text

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            self.values.setdefault(name, {})[step] = value

    def log_hyperparams(self, *arguments, **named):
        pass


class FixedAnswers(GRPOModule):
    """Answers of very different length that do not depend on the policy."""

    def sample(self, prompts, seeds, temperature):
        self.training_mode_seen = self.model.training
        answers = []
        for prompt, of_prompt in zip(prompts, seeds, strict=True):
            group = []
            for seed in of_prompt:
                generator = torch.Generator().manual_seed(seed)
                length = int(torch.randint(1, 30, (), generator=generator))
                ids = torch.randint(1, 290, (length,), generator=generator).tolist()
                group.append(Completion("", prompt["ids"], ids, "s" * (seed % 5) + "x", "stop"))
            answers.append(group)
        return answers


@pytest.fixture
def run(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE, vocab_size=small_tokenizer().vocab_size)
    base = save_bundle(tmp_path / "base", config, GPT(config).state_dict(), tokenizer_folder(tmp_path / "tokenizer"))
    rows = alpaca_rows(24, longest=4)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def run(
        name="run",
        max_steps=2,
        ckpt_path=None,
        lr=1e-3,
        kind=GRPOModule,
        data=None,
        logger=False,
        trainer=None,
        **arguments,
    ):
        prompts = PromptDataModule(
            tokenizer=str(base), chat_template="chatml", files=str(tmp_path / "rows.jsonl"), block_size=96,
            max_prompt_tokens=80, cache_dir=str(tmp_path / "cache"),
            **{"global_batch_size": 4, "val_fraction": 0.25, **(data or {})},
        )  # fmt: skip
        given = {"rewards": [share_of_s], "group_size": 4, "max_new_tokens": 12, "completions_per_forward": 8}
        module = kind(
            init_from=str(base), vocab_size=prompts.vocab_size, block_size=96,
            optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr), **{**given, **arguments},
        )  # fmt: skip
        record = Record()
        fit = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=2,
            accelerator="cpu", logger=logger, enable_progress_bar=False, callbacks=[record],
            **{"log_every_n_steps": 1, **(trainer or {})},
        )  # fmt: skip
        fit.fit(module, datamodule=prompts, ckpt_path=ckpt_path)
        return module, fit, record

    return run


def same(one, other, tolerance=0.0):
    for (name, a), (_, b) in zip(one.items(), other.items(), strict=True):
        assert torch.linalg.norm(a - b) <= tolerance * torch.linalg.norm(a), name


AVERAGES = ["token", "completion", "constant"]


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_one_times_eight_is_eight_times_one(run, average, kl_coefficient):
    arguments = {"kind": FixedAnswers, "max_steps": 1, "data": {"global_batch_size": 2}}
    arguments |= {"average": average, "kl_coefficient": kl_coefficient}
    records = [run(f"by {size}", completions_per_forward=size, **arguments)[2] for size in (8, 1, 4)]
    assert any(any(each) for each in records[0].advantages)
    for record in records[1:]:
        assert record.gradients.keys() == records[0].gradients.keys()
        same(records[0].gradients, record.gradients, 2e-6)


@pytest.mark.parametrize("scale_by_std", [True, False])
def test_a_constant_reward_has_no_gradient(run, scale_by_std):
    module, _, record = run(rewards=[constant], scale_by_std=scale_by_std)
    assert set(record.advantages[0]) == {0.0}
    assert all(not gradient.any() for gradient in record.gradients.values())
    assert record.losses == [0, 0]


@pytest.mark.parametrize("kind", [FixedAnswers, GRPOModule])
def test_the_gradient_is_that_of_the_formula(run, kind):
    """A step against -A log p, row by row and without a batch, with the first weights in a model of its own."""
    module, _, record = run(kind=kind, max_steps=1, data={"val_fraction": 0.0})
    model = GPT(module.config)
    module.load_source(model)
    total = num_tokens = 0
    for group in module._groups.values():
        for answer in group:
            logits = model(torch.tensor([answer.ids[:-1]]))[0]
            targets = torch.tensor(answer.ids[1:])
            log_probs = logits.log_softmax(-1).gather(1, targets[:, None])[answer.num_prompt - 1 :]
            total = total - answer.advantage * log_probs.sum()
            num_tokens += answer.num_tokens
    (total / num_tokens).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == record.gradients.keys(), "each weight learns"
    same(gradients, record.gradients, 1e-4)


def test_measures_and_samples_are_logged(run):
    logger = Logged()
    _, trainer, _ = run(logger=logger, max_steps=2, kl_coefficient=0.01, trainer={"num_sanity_val_steps": -1})
    for name in ("reward", "reward_share_of_s", "length", "finished"):
        assert logger.values[f"train/{name}"].keys() == {1, 2}
        assert {0, 2} <= logger.values[f"val/{name}"].keys(), "before training and after"
    for name in ("signal", "clip_fraction", "kl", "entropy"):
        assert logger.values[f"train/{name}"].keys() == {1, 2}
    assert 0 < logger.values["train/entropy"][1] <= torch.tensor(302.0).log()
    assert logger.values["train/kl"][1] == pytest.approx(0, abs=1e-6)
    assert logger.values["train/kl"][2] > 0
    assert "was answered" in logger.texts["train/completions", 1]
    assert "share_of_s" in logger.texts["val/completions", 0]
    assert trainer.callback_metrics["val/reward"] == -trainer.callback_metrics["val/loss"]


def test_a_rising_reward(run):
    logger = Logged()
    run(max_steps=15, lr=1e-2, logger=logger, group_size=8, trainer={"num_sanity_val_steps": -1}, eval_samples=4,
        data={"global_batch_size": 8})  # fmt: skip
    rewards = logger.values["val/reward"]
    assert rewards[0] < 0.03
    assert rewards[14] > 0.15


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ({}, {}),
        ({"kl_coefficient": 0.1}, {"updates_per_rollout": 3}),
        ({"adapter": AdapterConfig(rank=4, dropout=0.1), "kl_coefficient": 0.1}, {"updates_per_rollout": 2}),
        ({"dynamic_sampling": True}, {"candidates": 2}),
    ],
    ids=["plain", "in the middle of a rollout", "adapter", "dynamic sampling"],
)
def test_resume_is_exact(run, arguments, data):
    whole, _, one = run("whole", max_steps=6, data=data, **arguments)
    _, _, before = run("cut", max_steps=4, data=data, **arguments)
    resumed, _, after = run("cut", max_steps=6, ckpt_path="last", data=data, **arguments)
    assert one.ids == before.ids + after.ids
    assert one.losses == before.losses + after.losses
    for (name, a), (_, b) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_micro_batches_do_not_change_what_is_drawn(run):
    *_, one = run("one", max_steps=1)
    *_, other = run("other", max_steps=1, completions_per_forward=1)
    assert one.ids == other.ids
    same(one.gradients, other.gradients, 5e-6)


def test_several_updates_learn_from_the_same_answers(run):
    logger = Logged()
    *_, record = run(max_steps=4, lr=1e-2, logger=logger, data={"updates_per_rollout": 4})
    assert record.ids[0] == record.ids[3]
    clipped = logger.values["train/clip_fraction"]
    assert clipped[1] == 0
    assert clipped[4] > 0, "the policy has left the one that drew"


def test_dynamic_sampling_tries_the_next_prompt(run):
    def sometimes(sample):
        return share_of_s(sample) if int(sample.row["instruction"].split()[0]) % 2 else 0.1

    *_, plain = run("plain", max_steps=1, rewards=[sometimes], kind=FixedAnswers, data={"candidates": 3})
    module, _, record = run(
        "tried", max_steps=1, rewards=[sometimes], kind=FixedAnswers, dynamic_sampling=True, data={"candidates": 3}
    )
    groups = list(module._groups.values())
    drawn = [group[0].ids[: group[0].num_prompt] for group in groups]
    for candidates, prompt, group in zip(record.last[0]["prompts"], drawn, groups, strict=True):
        odd = [c for c in candidates if int(c["row"]["instruction"].split()[0]) % 2]
        assert prompt == (odd[0] if odd else candidates[-1])["ids"]
        assert all(answer.counts == bool(odd) for answer in group)
    assert any(not any(a) for a in zip(*[iter(plain.advantages[0])] * 4, strict=True))


def test_unfinished_answers_can_be_left_out(run):
    module, _, _ = run(max_steps=1, mask_unfinished=True, max_new_tokens=1)
    answers = [answer for group in module._groups.values() for answer in group]
    stops = set(module.sampler.stop_ids)
    assert all(answer.counts == (answer.ids[-1] in stops) for answer in answers)


def test_a_failing_reward(run):
    with pytest.raises(UserError, match=r"rows\.jsonl:[4567]: the reward fails_once .*KeyError"):
        run("error", max_steps=6, rewards=[fails_once])
    logger = Logged()
    run("skip", max_steps=6, rewards=[fails_once], on_bad_input="skip", logger=logger)
    assert max(logger.values["train/skipped_rewards"].values()) >= 4


def test_what_was_skipped_is_told_at_the_end(run, capsys):
    module, _, _ = run(max_steps=3, rewards=[fails_once], on_bad_input="skip", trainer={"log_every_n_steps": 100})
    count = module.rewards.bad_input.num_skipped
    told = capsys.readouterr().out
    assert count >= 4
    assert f"{count} completions had a reward that was skipped" in told
    assert "rows.jsonl:" in told
    assert "KeyError" in told


def test_a_rollout_without_any_reward_is_an_error(run):
    def fails(sample):
        raise OSError("the judge is away")

    with pytest.raises(UserError, match="every reward of a whole rollout was skipped.*the judge is away"):
        run(rewards=[fails], on_bad_input="skip", data={"val_fraction": 0.0})


class Third(ExactAnswer):
    """Needs a field that some rows do not have."""

    def check_row(self, row):
        if row["instruction"].startswith("3 "):
            raise UserError("a third is missing")

    def __call__(self, sample):
        return share_of_s(sample)


def test_rows_that_cannot_be_rated_are_found_before_the_first_step(run, capsys):
    drawn = []

    class Noted(GRPOModule):
        def sample(self, prompts, seeds, temperature):
            drawn.append(len(prompts))
            return super().sample(prompts, seeds, temperature)

    wrong = {"kind": Noted, "trainer": {"num_sanity_val_steps": 0}}
    with pytest.raises(
        UserError, match=r"24 of 24 rows .*rows\.jsonl:\d+: the reward exact_answer .* no field 'answr'"
    ):
        run("all", rewards=[ExactAnswer(column="answr")], on_bad_input="skip", **wrong)
    with pytest.raises(UserError, match=r"1 of 24 rows .*rows\.jsonl:4: .*a third is missing"):
        run("one", rewards=[Third()], **wrong)
    assert not drawn
    run("skip", max_steps=1, rewards=[Third()], on_bad_input="skip", **wrong)
    assert "1 of 24 rows" in capsys.readouterr().out
    assert drawn


def test_a_prompt_drawn_twice_is_two_groups(run):
    """More prompts in a step than there are rows; and all candidates of a slot are one row."""
    data = {"global_batch_size": 40, "val_fraction": 0.0}
    module, _, record = run(max_steps=1, kind=FixedAnswers, data=data)
    numbers = [candidates[0]["number"] for candidates in record.last[0]["prompts"]]
    assert len(set(numbers)) == 24
    assert list(module._groups) == list(range(40))
    groups = [tuple(tuple(answer.ids) for answer in group) for group in module._groups.values()]
    assert len(set(groups)) == 40, "each is answered anew"


def test_the_model_stays_in_training_mode(run):
    module, _, _ = run(max_steps=1, kind=FixedAnswers)
    assert module.training_mode_seen
    module, _, _ = run("drawn", max_steps=1)
    assert module.model.training


def test_seeds_are_a_function_of_their_parts():
    seeds = {request_seed(0, step, prompt, n) for step in range(3) for prompt in range(3) for n in range(3)}
    assert len(seeds) == 27
    assert request_seed(0, 1, 2, 3) == 10614861933566819


def test_mistakes(run):
    with pytest.raises(UserError, match="at least 2"):
        GRPOModule(rewards=[share_of_s], group_size=1)
    with pytest.raises(UserError, match="temperature"):
        GRPOModule(rewards=[share_of_s], temperature=0.0)
    with pytest.raises(UserError, match="there is no adapter"):
        GRPOModule(rewards=[share_of_s], reference="disabled_adapter")
    with pytest.raises(UserError, match="do not fit"):
        run(max_new_tokens=50)

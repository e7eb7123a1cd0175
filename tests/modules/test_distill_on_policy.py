"""On-policy distillation: the student's own answers under the teacher's eyes, exact on resume and in micro-batches."""

import pytest
import torch
from lightning.pytorch.loggers import Logger
from small_chats import alpaca_rows, small_tokenizer, tokenizer_folder, write_rows
from torch.nn import functional as F

from lit_gpt.batch import IGNORE_INDEX
from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.datamodules import InstructionDataModule
from lit_gpt.errors import UserError
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.modules import DistillModule
from lit_gpt.modules.distill import prompt_length
from lit_gpt.trainer import Trainer

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "block_size": 160}


class Values(Logger):
    """Keeps the latest value of each metric."""

    name, version = "values", ""

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_metrics(self, metrics, step=None):
        self.values |= metrics

    def log_hyperparams(self, *arguments, **named):
        pass


class Watched(DistillModule):
    """Keeps the batches that it learned from, and its gradients."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.learned, self.first_weights, self.gradients = [], None, None

    def loss(self, batch):
        self.learned.append(batch)
        self.first_weights = self.first_weights or {n: p.detach().clone() for n, p in self.model.named_parameters()}
        return super().loss(batch)

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)
        if self.gradients is None:
            self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}


def weights_of(path, config, seed):
    model = GPT(config)
    model.init_weights(seed)
    return str(save_bundle(path, config, model.state_dict(), tokenizer_folder(path.parent / "tok")))


class Texts(Logger):
    """Keeps what is logged as text."""

    name = version = "texts"

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    @property
    def experiment(self):
        return self

    def add_text(self, name, text, step):
        self.texts[name, step] = text

    def log_metrics(self, *arguments, **named):
        pass

    def log_hyperparams(self, *arguments, **named):
        pass


@pytest.fixture
def teacher(tmp_path):
    config = GPTConfig.from_preset("tiny", **SHAPE | {"n_embd": 48}, vocab_size=small_tokenizer().vocab_size)
    return weights_of(tmp_path / "teacher", config, 7)


@pytest.fixture
def fit(tmp_path, teacher):
    def run(name="run", max_steps=1, micro_batch_size="auto", ckpt_path=None, packing=False, logger=False, **arguments):
        data = InstructionDataModule(
            tokenizer=teacher, chat_template="alpaca", system_prompt="S", packing=packing, block_size=160,
            files=write_rows(tmp_path / "rows.json", alpaca_rows(40)), global_batch_size=8,
            micro_batch_size=micro_batch_size, val_fraction=0.2, cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        module = Watched(**{
            "teacher": teacher, "overrides": SHAPE, "vocab_size": data.vocab_size, "lmbda": 1.0, "max_new_tokens": 12,
            "optimizer": lambda groups: torch.optim.AdamW(groups, lr=1e-2), "hard_weight": 0.25,
        } | arguments)  # fmt: skip
        trainer = Trainer(
            name=name, default_root_dir=str(tmp_path / "runs"), max_steps=max_steps, val_check_interval=max_steps,
            accelerator="cpu", logger=logger, enable_progress_bar=False, log_every_n_steps=1,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module

    return run


def test_the_gradient_is_that_of_the_formula_on_its_own_words(fit):
    """The oracle is a plain loop: mean over all learned tokens, KL alone on its own answers."""
    module = fit(lmbda=0.5, divergence="reverse")
    (batch,) = module.learned
    assert 0 < int(batch["own"].sum()) < 8
    student = GPT(module.config)
    student.load_state_dict(module.first_weights)
    total, count = 0.0, 0
    for row in range(8):
        ids, labels = batch["input_ids"][row : row + 1], batch["labels"][row]
        learned = (labels != IGNORE_INDEX).nonzero().squeeze(1)
        logits = student(ids)[0, learned]
        with torch.no_grad():
            theirs = module._teacher_model(ids)[0, learned].log_softmax(-1)
        ours = logits.log_softmax(-1)
        apart = (ours.exp() * (ours - theirs)).sum(-1)
        hard = F.cross_entropy(logits, labels[learned], reduction="none")
        total = total + (apart if batch["own"][row] else 0.25 * hard + 0.75 * apart).sum()
        count += len(learned)
    (total / count).backward()
    for name, parameter in student.named_parameters():
        assert torch.allclose(module.gradients[name], parameter.grad, atol=1e-6, rtol=1e-4), name


def test_a_step_leaves_every_parameter_where_it_is(fit, monkeypatch):
    places, original = [], Watched.training_step

    def noted(module, *arguments):
        before = {name: (p.data_ptr(), p.stride()) for name, p in module.model.named_parameters()}
        loss = original(module, *arguments)
        places.append((before, {name: (p.data_ptr(), p.stride()) for name, p in module.model.named_parameters()}))
        return loss

    monkeypatch.setattr(Watched, "training_step", noted)
    module = fit(max_steps=2)
    assert module.model.blocks[0].attn.fused is None, "a copy was laid out"
    assert len(places) == 2
    assert all(before == after for before, after in places)


def test_the_prompt_stays_and_the_answer_is_the_students(fit):
    logger = Values()
    module, plain = fit("own", logger=logger), fit("plain", lmbda=0.0)
    (batch,), (given,) = module.learned, plain.learned
    assert batch["own"].all()
    assert batch["sample_ids"].tolist() == given["sample_ids"].tolist()
    for row in range(8):
        length = prompt_length(given["labels"][row])
        assert torch.equal(batch["input_ids"][row, :length], given["input_ids"][row, :length])
        answer = batch["labels"][row][batch["labels"][row] != IGNORE_INDEX]
        assert 1 <= len(answer) <= 12
        assert torch.equal(batch["input_ids"][row, length : length + len(answer) - 1], answer[:-1])
    assert logger.values["train/own_answers"] == 1.0
    assert logger.values["train/own_length"] == float((batch["labels"] != IGNORE_INDEX).sum() / 8)


@pytest.mark.parametrize("micro_batch_size", [1, 2])
def test_one_times_eight_is_eight_times_one(fit, micro_batch_size):
    whole, cut = fit("whole", lmbda=0.5), fit("cut", lmbda=0.5, micro_batch_size=micro_batch_size)
    for name, gradient in whole.gradients.items():
        assert torch.linalg.norm(cut.gradients[name] - gradient) <= 1e-5 * torch.linalg.norm(gradient), name


def test_some_answers_are_written_to_the_log(fit):
    texts = {}
    module = fit("shown", num_logged_samples=3, logger=Texts(texts))
    (name, step), text = next(iter(texts.items()))
    assert (name, step) == ("train/completions", 1)
    parts = text.split("\n\n---\n\n")
    assert len(parts) == 3
    (batch,) = module.learned
    answer = batch["labels"][0][batch["labels"][0] != IGNORE_INDEX].tolist()
    first = module.sampler.tokenizer.decode(
        [token for token in answer if token not in module.sampler.stop_ids]
    ).splitlines()
    assert parts[0].startswith(f"row {int(batch['sample_ids'][0])}\n\n")
    assert "was answered" in parts[0]
    assert parts[0].endswith("\n".join(f"    {line}" for line in first) or "    ")


def test_resume_is_exact(fit):
    whole = fit("whole", max_steps=4, lmbda=0.3)
    fit("cut", max_steps=2, lmbda=0.3)
    resumed = fit("cut", max_steps=4, lmbda=0.3, ckpt_path="last")
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_of_itself_there_is_nothing_to_learn(fit, teacher):
    module = fit(init_from=teacher, hard_weight=0.0, overrides=None, vocab_size=None)
    assert all(gradient.abs().max() < 1e-5 for gradient in module.gradients.values())


def test_what_cannot_be_is_refused(fit):
    with pytest.raises(UserError, match=r"lmbda is 1\.5; .*at most 1"):
        fit(lmbda=1.5)
    with pytest.raises(UserError, match="packing to false"):
        fit(packing=True)


def test_the_last_answer_of_several_turns():
    labels = torch.tensor([IGNORE_INDEX, 5, 6, IGNORE_INDEX, IGNORE_INDEX, 7, 8, IGNORE_INDEX])
    assert prompt_length(labels) == 6
    assert prompt_length(torch.full((4,), IGNORE_INDEX)) == 0

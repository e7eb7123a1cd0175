"""`EvaluationSuite` measures the model in training, and leaves training exactly as it was."""

import pytest
import tokenizers
import torch
from lightning.pytorch import LightningDataModule
from tiny_run import ListLogger, TinyModule

from lit_gpt.callbacks import EvaluationSuite
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.progress import no_progress
from lit_gpt.evaluation.result import Result, Score
from lit_gpt.generation.request import SamplingParams

LETTERS = ["<|endoftext|>", *"abcdefghi "]


@pytest.fixture
def data(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(LETTERS, range(11), strict=True)), "a"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<|endoftext|>"])
    Tokenizer(backend).save(tmp_path / "letters")

    class Data(LightningDataModule):
        train_dataloader = TinyModule.train_dataloader

    data = Data()
    data.tokenizer_path = tmp_path / "letters"
    return data


class WeightSum(Measure):
    """What the weights are, and whether the engine runs; draws random numbers too."""

    def run(self, subject, progress=no_progress):
        torch.rand(3)
        text = subject.complete(["ab"], SamplingParams(max_new_tokens=2))[0].text
        assert not subject.model.training
        total = sum(float(parameter.double().sum()) for parameter in subject.model.parameters())
        return [Result("weights", "", "", "", (Score("sum", total, 1), Score("letters", float(len(text)), 1)))]


class Failing(Measure):
    def run(self, subject, progress=no_progress):
        raise UserError("the file is not there")


class Unseeded(TinyModule):
    """Random numbers are not seeded anew at each step."""

    def on_train_start(self):
        torch.manual_seed(3)
        self.model.blocks[0].mlp.eval()

    def on_train_batch_start(self, *_):
        assert not self.model.blocks[0].mlp.training
        assert self.model.drop.training


def layouts(module):
    return [(parameter.data_ptr(), parameter.stride()) for parameter in module.parameters()]


def test_training_is_the_same_with_it(make_trainer, data, capsys):
    plain, measured, logger = Unseeded(), Unseeded(), ListLogger()
    before = layouts(measured)
    make_trainer().fit(plain, datamodule=data)
    suite = EvaluationSuite([WeightSum(), Failing()], every_n_steps=5)
    make_trainer(suite, logger=logger).fit(measured, datamodule=data)
    assert measured.losses == plain.losses
    assert all(a.equal(b) for a, b in zip(measured.parameters(), plain.parameters(), strict=True))
    assert layouts(measured) == before
    found = logger.of("eval/weights.sum")
    assert sorted(found) == [5, 10, 12]
    assert found[12] == pytest.approx(sum(float(p.double().sum()) for p in plain.parameters()), abs=1e-9)
    assert suite.results[0].name == "weights"
    assert "Failing: failed: the file is not there" in capsys.readouterr().err


def test_measures_as_in_a_yaml(make_trainer, data, tmp_path):
    entry = {"class_path": "ParsesAsPython", "init_args": {"headers": ["abc"], "samples": 1, "max_new_tokens": 3}}
    file = tmp_path / "small.yaml"
    file.write_text(
        "seed: 3\nmeasures:\n  - class_path: ParsesAsPython\n    init_args: {headers: [abc], samples: 1, max_new_tokens: 3}\n"
    )
    for suite in (EvaluationSuite([entry]), EvaluationSuite(config=str(file))):
        logger = ListLogger()
        make_trainer(suite, logger=logger).fit(TinyModule(), datamodule=data)
        assert 12 in logger.of("eval/parses_as_python.parses")
    assert suite.seed == 3


def test_it_says_why_it_measures_nothing(make_trainer):
    with pytest.warns(UserWarning, match="measures nothing: the DataModule has no tokenizer_path"):
        make_trainer(EvaluationSuite([WeightSum()]), logger=ListLogger()).fit(TinyModule())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither is given"),
        ({"measures": [WeightSum()], "config": "x.yaml"}, "both are given"),
        ({"measures": [3]}, "is 3; write it as"),
        ({"measures": [{"class_path": "ParseAsPython"}]}, "did you mean ParsesAsPython"),
        ({"measures": [WeightSum()], "every_n_steps": 0}, "every_n_steps of EvaluationSuite is 0"),
        ({"config": "/nowhere.yaml"}, "cannot be read"),
    ],
)
def test_mistakes_are_named_before_the_first_step(arguments, message):
    with pytest.raises(UserError, match=message):
        EvaluationSuite(**arguments)

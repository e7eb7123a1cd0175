"""Samples and pictures show the model, and leave training exactly as it was."""

import signal

import pytest
import tokenizers
import torch
from lightning.pytorch import LightningDataModule
from tiny_run import CONFIG, ListLogger, TinyModule

from lit_gpt.callbacks import AttentionPicture, GracefulStop, RunCheckpoint, SampleText
from lit_gpt.callbacks.pictures import COLORS, GAP, picture
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation import generate

LETTERS = ["<|endoftext|>", *"abcdefghi "]


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    """Eleven tokens: letters, and the separator as number 0."""
    folder = tmp_path_factory.mktemp("letters")
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(LETTERS, range(11), strict=True)), "a"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.add_special_tokens(["<|endoftext|>"])
    Tokenizer(backend).save(folder)
    return folder


@pytest.fixture
def data(tokenizer_path):
    class Data(LightningDataModule):
        train_dataloader = TinyModule.train_dataloader

    data = Data()
    data.tokenizer_path = tokenizer_path
    return data


class Writer:
    def __init__(self):
        self.texts, self.images = [], []

    def add_text(self, *arguments):
        self.texts.append(arguments)

    def add_image(self, *arguments):
        self.images.append(arguments)


class WritingLogger(ListLogger):
    def __init__(self):
        super().__init__()
        self.experiment = Writer()


def test_training_is_the_same_with_them(make_trainer, data):
    class Dropout(TinyModule):
        """Half the modules stand in eval mode, and random numbers are not seeded anew at each step."""

        def on_train_start(self):
            torch.manual_seed(3)
            self.model.blocks[0].mlp.eval()

        def on_train_batch_start(self, *_):
            assert not self.model.blocks[0].mlp.training
            assert self.model.drop.training

    plain, looked_at = Dropout(), Dropout()
    make_trainer().fit(plain, datamodule=data)
    callbacks = SampleText(every_n_steps=2, max_new_tokens=3), AttentionPicture(every_n_steps=2, prompt="abc")
    make_trainer(*callbacks, logger=WritingLogger()).fit(looked_at, datamodule=data)
    assert looked_at.losses == plain.losses
    assert all(a.equal(b) for a, b in zip(looked_at.parameters(), plain.parameters(), strict=True))


def test_samples_are_what_generate_says(make_trainer, data, capsys):
    logger, module = WritingLogger(), TinyModule()
    sample = SampleText(["abc", ""], every_n_steps=5, max_new_tokens=6, temperature=1.0, top_k=None, seed=7)
    make_trainer(sample, logger=logger).fit(module, datamodule=data)
    texts = logger.experiment.texts
    assert [(tag, step) for tag, _, step in texts] == [
        (tag, step) for step in (5, 10, 12) for tag in ("samples/abc", "samples/empty prompt")
    ]
    ids = generate(module.model.eval(), torch.tensor([[0, 1, 2, 3]]), 6, seed=7)[0].tolist()[1:]
    if 0 in ids:
        ids = ids[: ids.index(0)]
    expected = "".join(LETTERS[i] for i in ids)
    assert texts[-2][1] == f"    {expected}"
    assert f"sample at step 12:\n{expected}\n" in capsys.readouterr().out


def test_what_follows_the_end_of_the_document_is_cut_off(make_trainer, data):
    sample = SampleText(["ab"], every_n_steps=1, max_new_tokens=5, temperature=0.0)
    module = TinyModule()
    trainer = make_trainer(sample, max_steps=1)
    with torch.no_grad():
        module.model.wte.weight.zero_()  # all logits equal: the likeliest is number 0, the separator
    module.lr = 0.0
    trainer.fit(module, datamodule=data)
    assert sample._sampled[1] == ["ab"]


def test_a_run_that_a_signal_ends_does_not_stop_to_write(make_trainer, data):
    class Signalled(TinyModule):
        def training_step(self, *arguments):
            if self.trainer.global_step == 3:
                signal.raise_signal(signal.SIGTERM)
            return super().training_step(*arguments)

    logger = WritingLogger()
    make_trainer(SampleText(), AttentionPicture(), GracefulStop(), logger=logger).fit(Signalled(), datamodule=data)
    assert (logger.experiment.texts, logger.experiment.images) == ([], [])


def test_without_a_tokenizer_they_say_so(make_trainer, module):
    with pytest.warns(UserWarning, match="SampleText writes no samples: the DataModule has no tokenizer_path"):
        make_trainer(SampleText(every_n_steps=1), max_steps=1).fit(module)
    with pytest.warns(UserWarning, match="AttentionPicture draws nothing: the DataModule has no tokenizer_path"):
        make_trainer(AttentionPicture(every_n_steps=1), max_steps=1).fit(TinyModule())


def test_a_picture_by_hand():
    weights = torch.zeros(2, 3, 2, 2)
    weights[1, 2, 1, 0] = 1.0
    drawn = picture(weights, scale=3)
    side = 2 * 3 + GAP
    assert drawn.shape == (3, 2 * side + GAP, 3 * side + GAP)
    assert drawn.dtype == torch.uint8
    assert drawn[:, 0, 0].tolist() == [255, 255, 255]
    assert drawn[:, GAP, GAP].tolist() == COLORS[0].tolist()
    place = side + GAP + 3, 2 * side + GAP
    assert drawn[:, place[0], place[1]].tolist() == COLORS[-1].tolist()
    assert drawn[:, place[0] - 1, place[1]].tolist() == COLORS[0].tolist()


def test_pictures_come_when_they_should(make_trainer, module, data):
    logger = WritingLogger()
    make_trainer(AttentionPicture("abcabc", every_n_steps=5, max_tokens=4), logger=logger).fit(module, datamodule=data)
    assert [step for _, _, step in logger.experiment.images] == [5, 10, 12]
    assert logger.experiment.images[0][1].shape == (3, 4 * 4 + 2 * GAP, CONFIG.n_head * (4 * 4 + GAP) + GAP)
    with pytest.raises(UserError, match="layer 3; the model's layers are 0 to 0"):
        make_trainer(AttentionPicture(layers=[3])).fit(TinyModule(), datamodule=data)


def test_tensorboard_takes_them(make_trainer, module, data, tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path / "run", name="tensorboard", version="")
    callbacks = SampleText(["abc"], max_new_tokens=3), AttentionPicture("abc"), RunCheckpoint()
    make_trainer(*callbacks, logger=logger, max_steps=2).fit(module, datamodule=data)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert "samples/abc/text_summary" in events.Tags()["tensors"]
    assert events.Tags()["images"] == ["attention/rows: layers, columns: heads"]


@pytest.mark.parametrize("wrong", [{"prompts": "abc"}, {"prompts": []}, {"every_n_steps": 0}, {"max_new_tokens": 0}])
def test_arguments_out_of_bounds(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        SampleText(**wrong)
    with pytest.raises(UserError, match="every_n_steps of AttentionPicture is 0"):
        AttentionPicture(every_n_steps=0)

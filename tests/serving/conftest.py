"""A small real model and a fake one, each behind a server."""

import pytest
import torch
from fake_engine import FakeEngine
from running_server import RunningServer

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.bpe import train_bpe
from lit_gpt.data.chat import ChatRenderer, load_chat_template, with_chat_template
from lit_gpt.generation.engine import Engine
from lit_gpt.models import GPT, GPTConfig
from lit_gpt.serving.model import ServedModel

TEXTS = ["def add(a, b):\n    return a + b\n", "größer 漢字 🙂 größer 漢字 🙂", '{"name": "add", "arguments": {}}'] * 5


@pytest.fixture(scope="session")
def tokenizer():
    return with_chat_template(train_bpe(TEXTS, 400), load_chat_template("qwen"))


@pytest.fixture(scope="session")
def network(tokenizer):
    config = GPTConfig(
        n_layer=2, n_head=4, n_embd=32, block_size=1024, vocab_size=tokenizer.vocab_size + 3, positions="rope"
    )
    model = GPT(config)
    model.init_weights(7)
    with torch.no_grad():
        model.lm_head.weight *= 12  # logits far enough apart for answers to differ in every token
    return model.eval()


@pytest.fixture
def serve(tokenizer):
    """Serve a fake engine: `with serve(reply, limits=..., **access) as server`."""

    def start(reply, limits=None, template="qwen", max_batch_size=4, **access):
        engine = FakeEngine(tokenizer, reply, max_batch_size)
        renderer = None if template is None else ChatRenderer(tokenizer, load_chat_template(template))
        server = RunningServer(ServedModel.of("fake", None, tokenizer, engine, renderer), limits, **access)
        server.engine = engine
        return server

    return start


@pytest.fixture(scope="module")
def real(tokenizer, network):
    """The small model behind a server, for a whole file of tests."""
    engine = Engine(network, tokenizer, max_batch_size=8, prefill_chunk=64)
    renderer = ChatRenderer(tokenizer, load_chat_template("qwen"))
    with RunningServer(ServedModel.of("small", network, tokenizer, engine, renderer)) as server:
        yield server


@pytest.fixture(scope="module")
def client(real):
    return real.client()


SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 64, "vocab_size": 300}


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A tiny Llama-type model without a chat template, written as a bundle."""
    folder = tmp_path_factory.mktemp("served")
    train_bpe(["def add(a, b):\n    return a + b\n"] * 5, 300).save(folder / "tokenizer")
    modern = {"norm": "rmsnorm", "bias": False, "positions": "rope", "mlp": "swiglu", "intermediate_size": 24}
    model = GPT(GPTConfig(**SMALL, **modern, tie_embeddings=False, family="llama"))
    model.init_weights(0)
    with torch.no_grad():
        model.lm_head.weight *= 20  # far from ties
    return save_bundle(folder / "tiny-bundle", model.config, model.state_dict(), folder / "tokenizer")

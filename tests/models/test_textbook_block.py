"""The default block is the textbook's, written out here in full."""

import math

import torch
from torch import nn

from lit_gpt.models import MLP, Block, Context, GPTConfig, SelfAttention


class TextbookBlock(nn.Module):
    def __init__(self, n_embd, n_head, dropout=0.0):
        super().__init__()
        self.n_head = n_head
        self.ln1 = nn.LayerNorm(n_embd)
        self.query = nn.Linear(n_embd, n_embd)
        self.key = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.projection = nn.Linear(n_embd, n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x):
        x = x + self.attention(self.ln1(x))
        return x + self.mlp(self.ln2(x))

    def attention(self, x):
        T, C = x.shape[1:]
        size = C // self.n_head
        heads = []
        for head in range(self.n_head):
            part = slice(head * size, (head + 1) * size)
            q, k, v = self.query(x)[..., part], self.key(x)[..., part], self.value(x)[..., part]
            scores = q @ k.transpose(1, 2) / math.sqrt(size)
            future = torch.ones(T, T).triu(diagonal=1).bool()
            heads.append(scores.masked_fill(future, -math.inf).softmax(dim=-1) @ v)
        return self.projection(torch.cat(heads, dim=-1))


def test_block_equals_the_textbook():
    torch.manual_seed(0)
    textbook = TextbookBlock(48, 4)
    ours = Block(GPTConfig(n_embd=48, n_head=4), layer=0)
    theirs_to_ours = {"query": "attn.q_proj", "key": "attn.k_proj", "value": "attn.v_proj"}
    theirs_to_ours |= {"projection": "attn.o_proj", "mlp.0": "mlp.up_proj", "mlp.2": "mlp.down_proj"}
    state = {}
    for name, tensor in textbook.state_dict().items():
        module, kind = name.rsplit(".", 1)
        state[f"{theirs_to_ours.get(module, module)}.{kind}"] = tensor
    ours.load_state_dict(state)  # strict: neither side has a parameter that the other lacks
    x = torch.randn(2, 10, 48)
    torch.testing.assert_close(ours(x, Context()), textbook(x), rtol=1e-5, atol=1e-6)


def test_defaults_are_the_textbooks_parts():
    block = Block(GPTConfig(n_embd=48, n_head=4, dropout=0.1), layer=0)
    assert [name for name, _ in block.named_children()] == ["ln1", "attn", "ln2", "mlp"]
    assert isinstance(block.ln1, nn.LayerNorm)
    assert isinstance(block.attn, SelfAttention)
    assert isinstance(block.mlp, MLP)
    assert block.mlp.activation is nn.functional.gelu
    assert block.mlp.drop.p == block.attn.drop.p == block.attn.dropout == 0.1


def test_dropout_of_attention_acts_in_training_alone():
    torch.manual_seed(0)
    block = Block(GPTConfig(n_embd=48, n_head=4, dropout=0.5), layer=0)
    x = torch.randn(1, 6, 48)
    assert not torch.equal(block(x, Context()), block(x, Context()))
    block.eval()
    assert torch.equal(block(x, Context()), block(x, Context()))

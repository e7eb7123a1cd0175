"""Tokens further ahead: DeepSeek-V3's blocks against its equations and transformers' layer."""

import pytest
import torch
from torch.nn import functional as F

from lit_gpt.models import GPT, Context, GPTConfig
from lit_gpt.models.multi_token import tokens_ahead
from lit_gpt.models.positions import Rotations
from lit_gpt.modules import PretrainModule
from lit_gpt.objectives import mtp_labels


def small(**changes):
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 31, "block_size": 12, "multi_token": 2}
    modern = {"norm": "rmsnorm", "norm_eps": 1e-6, "bias": False, "positions": "rope", "mlp": "swiglu"}
    return GPTConfig(**shape | modern | changes)


def logits_fn(hidden, weight, bias):
    return F.linear(hidden, weight, bias)


def test_mtp_labels_stay_in_their_document():
    labels = torch.tensor([[1, 2, 3, 4, -100, 6]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert mtp_labels(labels, None, 1).tolist() == [[2, 3, 4, -100, 6, -100]]
    assert mtp_labels(labels, documents, 1).tolist() == [[2, 3, -100, -100, 6, -100]]
    assert mtp_labels(labels, documents, 2).tolist() == [[3, -100, -100, 6, -100, -100]]
    assert tokens_ahead(torch.arange(1, 6)[None], 2).tolist() == [[3, 4, 5, 0, 0]]


def test_the_next_token_is_predicted_as_without_them():
    model = GPT(small()).eval()
    plain = GPT(small(multi_token=0)).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("multi_token.")})
    ids = torch.randint(31, (2, 12))
    logits, ahead = model(ids, mtp_head_fns=[logits_fn, logits_fn])
    assert torch.equal(logits, plain(ids))
    assert torch.equal(logits, model(ids))
    assert [part.shape for part in ahead] == [(2, 12, 31)] * 2


@torch.no_grad()
def test_depths_are_equations_21_to_23():
    model = GPT(small()).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(31, (1, 12))
    hidden = model.ln_f(_trunk(model, ids))
    _, ahead = model(ids, mtp_head_fns=[logits_fn, logits_fn])
    from lit_gpt.models.positions import rope_rotation

    rotation = rope_rotation(model.config, torch.arange(12))
    for depth, part in enumerate(model.multi_token, start=1):
        length = 12 - depth  # the paper's 1 : T - k
        embedding = model.wte(ids[:, depth:])
        pair = torch.cat((_rms(hidden[:, :length], part.norm_hidden), _rms(embedding, part.norm_embedding)), -1)
        cut = [table[:, :length] for table in rotation[:2]]
        hidden = part.norm(part.block(pair @ part.proj.weight.T, context(type(rotation)(*cut))))
        torch.testing.assert_close(ahead[depth - 1][:, :length], hidden @ model.lm_head.weight.T)


@torch.no_grad()
def test_a_depth_is_transformers_mtp_layer():
    from transformers import Qwen3Config
    from transformers.modeling_layers import MtpLayer
    from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RMSNorm, Qwen3RotaryEmbedding

    theirs_config = Qwen3Config(
        hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8, intermediate_size=64, num_hidden_layers=2
    )  # fmt: skip
    theirs_config._attn_implementation = "sdpa"
    theirs = MtpLayer(theirs_config, Qwen3DecoderLayer, Qwen3RMSNorm, 0)
    config = small(qk_norm="head")
    ours = GPT(config).multi_token[0]
    names = {"enorm": "norm_embedding", "hnorm": "norm_hidden", "post_norm": "norm"}
    state = theirs.state_dict()
    mapped = {f"{mine}.weight": state[f"{name}.weight"] for name, mine in names.items()}
    embedding_first = state["eh_proj.weight"]
    mapped["proj.weight"] = torch.cat((embedding_first[:, 16:], embedding_first[:, :16]), dim=1)
    for name, tensor in state.items():
        if name.startswith("mtp_block."):
            name = name.removeprefix("mtp_block.").replace("input_layernorm", "ln1").replace("post_attention_layernorm", "ln2")  # fmt: skip
            mapped[f"block.{name.replace('self_attn', 'attn')}"] = tensor
    ours.load_state_dict(mapped)

    from lit_gpt.models.positions import rope_rotation

    hidden, embedding, positions = torch.randn(1, 9, 16), torch.randn(1, 9, 16), torch.arange(9)[None]
    tables = Qwen3RotaryEmbedding(theirs_config)(hidden, positions)
    expected = theirs(embedding, hidden, tables, None, positions, None)
    torch.testing.assert_close(
        ours(hidden, embedding, context(rope_rotation(config, positions))), expected, rtol=1e-5, atol=1e-5
    )


@torch.no_grad()
def test_a_depth_sees_its_tokens_and_no_later_ones():
    model = GPT(small()).eval()
    ids = torch.randint(31, (1, 12))
    changed = ids.clone()
    changed[0, 8] = (ids[0, 8] + 1) % 31
    fns = [logits_fn, logits_fn]
    for depth, (one, other) in enumerate(zip(model(ids, mtp_head_fns=fns)[1], model(changed, mtp_head_fns=fns)[1], strict=True), 1):  # fmt: skip
        moved = (one != other).any(-1)[0]
        assert not moved[: 8 - depth].any()
        assert moved[8 - depth]


def context(rotation):
    return Context(rotations=Rotations(rotation, rotation))


def batch():
    ids = torch.randint(31, (2, 12))
    documents = torch.tensor([[0] * 12, [0] * 5 + [1] * 4 + [-1] * 3])
    labels = ids.roll(-1, 1)
    labels[documents == -1] = -100
    labels[:, -1] = -100
    return {"input_ids": ids, "labels": labels, "document_ids": documents}


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_the_loss_is_equations_24_and_25(softcap):
    changes = {"logit_softcap": softcap} | {k: v for k, v in vars(small()).items() if k != "logit_softcap"}
    module = PretrainModule(overrides=changes, multi_token_weight=0.3)
    module.model = GPT(module.config)
    rows = batch()
    found = module.train().loss(rows)
    logits, ahead = module.model(rows["input_ids"], document_ids=rows["document_ids"], mtp_head_fns=[logits_fn] * 2)
    if softcap:
        ahead = [softcap * torch.tanh(part / softcap) for part in ahead]

    def entropy(scores, depth):
        total = 0.0
        for b in range(2):
            for t in range(12 - depth):
                if rows["document_ids"][b, t] == rows["document_ids"][b, t + depth]:
                    target = rows["labels"][b, t + depth]
                    if target != -100:
                        total = total - scores[b, t].log_softmax(-1)[target]
        return total

    further = (entropy(ahead[0], 1) + entropy(ahead[1], 2)) / 2
    torch.testing.assert_close(found.cross_entropy, entropy(logits, 0).detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.parts["mtp_loss"], further.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.loss, entropy(logits, 0) + 0.3 * further, rtol=1e-5, atol=1e-4)
    found.loss.backward()
    assert all(p.grad is not None for p in module.model.parameters())
    assert module.eval().loss(rows).parts == {}


def test_checkpointing_gives_the_same_gradients():
    model = GPT(small())
    ids, gradients = torch.randint(31, (2, 12)), []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        logits, ahead = model(ids, mtp_head_fns=[logits_fn] * 2)
        (logits.square().mean() + sum(part.square().mean() for part in ahead)).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain)


def _trunk(model, ids):
    seen = []
    handle = model.ln_f.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(ids)
    handle.remove()
    return seen[0]


def _rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight

"""Small models for the tests of how a model behaves: random ones, and one trained on given texts or answers."""

import torch
from small_chats import small_tokenizer

from lit_gpt.data.chat import ChatRenderer, Message, load_chat_template, with_chat_template
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.evaluation.subject import Subject
from lit_gpt.models import GPT, GPTConfig


def chat_tokenizer() -> Tokenizer:
    """The small tokenizer with ChatML's template and tokens."""
    return with_chat_template(small_tokenizer(), load_chat_template("chatml"))


def random_subject(tokenizer: Tokenizer, block_size: int = 256, seed: int = 0) -> Subject:
    """A model that knows nothing, with weights large enough to prefer something."""
    torch.manual_seed(seed)
    config = GPTConfig(
        n_layer=2, n_head=2, n_embd=32, vocab_size=tokenizer.vocab_size, block_size=block_size, positions="rope",
        norm="rmsnorm", bias=False, dropout=0.0,
    )  # fmt: skip
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return Subject("random", model.eval(), tokenizer)


def train(subject: Subject, sequences: list[list[int]], starts: list[int], steps: int, lr: float = 5e-3) -> None:
    """Teach a model sequences of tokens, each from its start on."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    labels = torch.full((len(sequences), longest), -100)
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        labels[row, start : len(sequence)] = torch.tensor(sequence[start:])
    model = subject.model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for _ in range(steps):
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().requires_grad_(False)


def teach_answers(subject: Subject, pairs: list[tuple[str, str]], steps: int) -> None:
    """Fine-tune on prompts and answers through the chat template, as SFT does: on the answers' tokens alone."""
    renderer = ChatRenderer(subject.tokenizer)
    sequences, starts = [], []
    for prompt, answer in pairs:
        messages = [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
        (rendered,) = renderer.learned(messages)
        sequences.append(rendered.ids)
        starts.append(rendered.mask.index(True))
    train(subject, sequences, starts, steps)

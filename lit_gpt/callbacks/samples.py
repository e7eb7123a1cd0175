"""`SampleText` and `SampleAnswers`: log text generated from fixed prompts or questions during training."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lit_gpt.callbacks.quiet_model import (
    data_tokenizer,
    is_stopping,
    quiet_model,
    takes_part,
    unavailable_reason,
    writers,
)
from lit_gpt.checks import check_at_least
from lit_gpt.data.chat import ChatRenderer, Message
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.generation import generate
from lit_gpt.models import GPT


class SampleText(Callback):
    """Generates from fixed prompts every `every_n_steps` optimizer steps, for TensorBoard, and prints one at the end.

    Each prompt starts a document, as in training, and is continued with the same random numbers each time. Training is
    not affected: random number generators and modes are restored. Under FSDP2 all processes take part; under tensor
    parallelism nothing is generated, with a warning.

    Args:
        prompts: texts to continue.
        every_n_steps: number of optimizer steps between two samples.
        max_new_tokens: maximum length of each continuation, in tokens.
        temperature: divides the logits; 0: greedy decoding.
        top_k: sample only from this many most likely tokens; None: all.
        top_p: sample only from the most likely tokens up to this cumulative probability; None: all.
        seed: seed of the sampling.

    Raises:
        UserError: a number is below 1, or there is no prompt.
    """

    def __init__(
        self,
        prompts: Sequence[str] = ("The ",),
        every_n_steps: int = 1000,
        max_new_tokens: int = 100,
        temperature: float = 0.8,
        top_k: int | None = 50,
        top_p: float | None = None,
        seed: int = 0,
    ) -> None:
        name = type(self).__name__
        check_at_least(f"every_n_steps of {name}", every_n_steps, 1)
        check_at_least(f"max_new_tokens of {name}", max_new_tokens, 1)
        if isinstance(prompts, str) or not prompts:
            raise UserError(f"prompts of {name} is {prompts!r}; give a list of at least one text")
        self.prompts = list(prompts)
        self.every_n_steps = every_n_steps
        self.max_new_tokens = max_new_tokens
        self.sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        self._tokenizer: Tokenizer | None = None
        self._sampled: tuple[int, list[str]] = (-1, [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the tokenizer, or warn why there will be no samples."""
        reason = unavailable_reason(trainer, pl_module)
        if reason is not None:
            rank_zero_warn(f"SampleText writes no samples: {reason}")
            self._tokenizer = None
            return
        self._tokenizer = data_tokenizer(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Generate every `every_n_steps` optimizer steps."""
        if trainer.global_step % self.every_n_steps == 0:
            self._sample(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Generate and print the first prompt's continuation, unless a signal ends the run."""
        if is_stopping(trainer):
            return
        self._sample(trainer, pl_module)
        if trainer.is_global_zero and self._sampled[1]:
            print(f"\nsample at step {self._sampled[0]:,}:\n{self._sampled[1][0]}\n")

    def _sample(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if self._tokenizer is None or self._sampled[0] == step or not takes_part(trainer):
            return
        with quiet_model(trainer, pl_module) as model:
            texts = [self._continue(model, prompt, pl_module.device) for prompt in self.prompts]
        self._sampled = (step, texts)
        if trainer.is_global_zero:
            for writer in writers(trainer, "add_text"):
                for prompt, text in zip(self.prompts, texts, strict=True):
                    indented = "\n".join(f"    {line}" for line in text.splitlines())  # a code block in Markdown
                    writer.add_text(f"samples/{prompt.strip() or 'empty prompt'}", indented, step)

    def _continue(self, model: GPT, prompt: str, device: torch.device) -> str:
        assert self._tokenizer is not None
        block_size = model.config.block_size
        ids = [self._tokenizer.separator_id, *self._tokenizer.encode(prompt).tolist()][:block_size]
        # No stop token: the model must run equally often on every process. Text after the document's end is cut off.
        inputs = torch.tensor([ids], device=device)
        new = generate(model, inputs, self.max_new_tokens, **self.sampling)[0, len(ids) :].tolist()
        if self._tokenizer.separator_id in new:
            new = new[: new.index(self._tokenizer.separator_id)]
        return self._tokenizer.decode([*ids[1:], *new])


class SampleAnswers(SampleText):
    """Like `SampleText`, but each prompt is a user message in the tokenizer's chat template.

    Args:
        prompts: messages to answer.
        system_prompt: system message before each prompt.
        max_new_tokens: maximum length of each answer, in tokens; longer ones end with "[...]".
        temperature: divides the logits; 0: greedy decoding.
        kwargs: see `SampleText`.
    """

    def __init__(
        self,
        prompts: list[str],
        system_prompt: str | None = None,
        max_new_tokens: int = 100,
        temperature: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(prompts=prompts, max_new_tokens=max_new_tokens, temperature=temperature, **kwargs)
        self.system_prompt = system_prompt
        self._renderer: ChatRenderer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the tokenizer with its template, or warn why there will be no samples."""
        super().on_train_start(trainer, pl_module)
        self._renderer = None if self._tokenizer is None else ChatRenderer(self._tokenizer)

    def _continue(self, model: GPT, prompt: str, device: torch.device) -> str:
        assert self._renderer is not None
        opening = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        messages = [*opening, Message(role="user", content=prompt)]
        ids = self._renderer(messages, add_generation_prompt=True).ids[: model.config.block_size]
        # No stop token: the model must run equally often on every process. Text after the answer is cut off.
        inputs = torch.tensor([ids], device=device)
        new = generate(model, inputs, self.max_new_tokens, **self.sampling)[0, len(ids) :].tolist()
        stops = [position for position, token in enumerate(new) if token in self._renderer.stop_ids]
        answer = self._renderer.tokenizer.decode(new[: stops[0]] if stops else new)
        return answer if stops else f"{answer} [...]"

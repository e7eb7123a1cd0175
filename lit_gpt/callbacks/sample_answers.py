"""`SampleAnswers`: what the model answers by now to fixed prompts."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lit_gpt.callbacks.sample_text import SampleText
from lit_gpt.data.chat import ChatRenderer, Message
from lit_gpt.generation import generate
from lit_gpt.models import GPT


class SampleAnswers(SampleText):
    """As `SampleText`, but each prompt is a user's message, in the tokenizer's chat template.

    Args:
        prompts: messages to answer.
        system_prompt: stands before each.
        max_new_tokens: of each answer; one that has not stopped by then ends with "[...]".
        temperature: divides the logits; 0 takes the likeliest token.
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
        """Load the tokenizer with its template, or say why there will be no samples."""
        super().on_train_start(trainer, pl_module)
        self._renderer = None if self._tokenizer is None else ChatRenderer(self._tokenizer)

    def _continue(self, model: GPT, prompt: str, device: torch.device) -> str:
        assert self._renderer is not None
        opening = [Message(role="system", content=self.system_prompt)] if self.system_prompt else []
        messages = [*opening, Message(role="user", content=prompt)]
        ids = self._renderer(messages, add_generation_prompt=True).ids[: model.config.block_size]
        # No stop token: on every process the model must run equally often. What follows the answer is cut off.
        inputs = torch.tensor([ids], device=device)
        new = generate(model, inputs, self.max_new_tokens, **self.sampling)[0, len(ids) :].tolist()
        stops = [place for place, token in enumerate(new) if token in self._renderer.stop_ids]
        answer = self._renderer.tokenizer.decode(new[: stops[0]] if stops else new)
        return answer if stops else f"{answer} [...]"

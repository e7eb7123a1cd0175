"""A small random model as a bundle and as a run's checkpoint would be, and a plan that takes no time."""

from pathlib import Path

import torch

from lit_gpt.checkpoints.bundle import save_bundle
from lit_gpt.data.bpe import train_bpe
from lit_gpt.evaluation.measure import Measure
from lit_gpt.evaluation.result import Example, Result, Score
from lit_gpt.models import GPT, GPTConfig

TEXTS = ["def add(a, b):\n    return a + b\n", "größer 漢字 🙂 größer", "One text, and another one."] * 5
BLOCK = 32


def small_bundle(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama-type model without a chat template."""
    tokenizer = folder.parent / f"{folder.name}-tokenizer"
    train_bpe(TEXTS, 300).save(tokenizer)
    modern = {"norm": "rmsnorm", "bias": False, "positions": "rope", "mlp": "swiglu", "intermediate_size": 24}
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": BLOCK, "vocab_size": 300}
    model = GPT(GPTConfig(**shape, **modern, tie_embeddings=False, family="llama"))
    model.init_weights(seed)
    with torch.no_grad():
        model.lm_head.weight *= 20  # far from ties
    return save_bundle(folder, model.config, model.state_dict(), tokenizer)


class CountsLetters(Measure):
    """A user's own measure: no model is asked, the score is what the YAML says."""

    def __init__(
        self, value: float = 0.5, items: int = 4, fail: str = "", limit: int | None = None, result: str = "letters"
    ) -> None:
        self.value, self.items, self.fail, self.limit = value, items if limit is None else limit, fail, limit
        self.result = result

    def run(self, subject, progress=lambda done, total: None):
        if self.fail == "mistake":
            from lit_gpt.errors import UserError

            raise UserError("letters.csv: row 3 has no column 'letter'; add it")
        if self.fail:
            raise ZeroDivisionError(self.fail)
        progress(self.items, self.items)
        per_item = {f"item {n}": self.value for n in range(self.items)}
        score = Score("share", self.value, self.items, None, "share", "higher", per_item)
        example = Example("<b>one</b>", {"prompt": "a <script>", "answer": ""}, "item 0")
        return [Result(self.result, "Letters", "Counts letters.", "nobody", (score,), (example,))]

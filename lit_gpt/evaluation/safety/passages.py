"""An even sample of passages of a given number of tokens from any texts, in one pass and bounded memory.

A document is cut into blocks that are long enough for a passage; each block has a random key of its own (from the
seed and the document's hash), and the blocks with the smallest keys are the sample. So a passage is chosen with the
same chance wherever it stands, the same ones again for the same texts and seed, whatever else is read beside them.
Passages begin at a white space, as the tokenizer's pieces do, so that they have the tokens that they had in training.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lit_gpt.data.corpus_spec import Admitted
from lit_gpt.data.tokenizers import Tokenizer
from lit_gpt.errors import UserError
from lit_gpt.evaluation.texts import ReadTexts, Texts

BLOCK_CHARACTERS_PER_TOKEN = 16
"""A block holds a passage even where a token has eight characters, and some room to begin at."""


@dataclass(frozen=True)
class Passage:
    """A piece of a text.

    Attributes:
        ids: Its tokens, without what opens a document.
        opening_ids: What stands before it where it begins its document, or where the model's publisher puts something
            before every text; else nothing.
        where: Source, record and character it begins at; different for all passages.
        document: Hash of its document.
    """

    ids: tuple[int, ...]
    opening_ids: tuple[int, ...]
    where: str
    document: str

    def prompt(self, num_tokens: int) -> list[int]:
        """Returns its first tokens, opened as it was in training."""
        return [*self.opening_ids, *self.ids[:num_tokens]]


@dataclass(frozen=True)
class PassageSample:
    """Passages of texts, and the reading that they come from.

    Attributes:
        passages: In an order of chance.
        read: What was read, for the report.
    """

    passages: list[Passage]
    read: ReadTexts

    @property
    def clusters(self) -> list[str]:
        """The document of each passage."""
        return [passage.document for passage in self.passages]

    @property
    def one_a_document(self) -> bool:
        """Whether no two are from the same document, so that they can count as independent."""
        return max(Counter(self.clusters).values(), default=0) <= 1


def sample_passages(
    texts: Texts,
    tokenizer: Tokenizer,
    num_tokens: int,
    count: int,
    seed: int = 0,
    one_a_document: bool = False,
) -> PassageSample:
    """Draw different passages.

    Args:
        texts: Where from.
        tokenizer: The model's.
        num_tokens: Tokens of each.
        count: How many; fewer where the texts have no more.
        seed: Of the draw.
        one_a_document: At most one from each document; else from long documents more.

    Raises:
        UserError: The texts are empty, or no document is as long as a passage.
    """
    read = texts.read()
    size = BLOCK_CHARACTERS_PER_TOKEN * num_tokens
    # The smallest keys first: some blocks turn out too short, or to hold what another one holds.
    kept: list[tuple[float, int, str, str, str]] = []
    room = 4 * count + 16
    for admitted in read.admitted():
        text = admitted.document.text
        for key, start in _starts(text, size, admitted, seed, one_a_document):
            if len(kept) < room or -kept[0][0] > key:
                where = f"{admitted.document.where}@{start}"
                item = (-key, start, where, admitted.digest.hex()[:32], text[start : start + size])
                (heapq.heappush if len(kept) < room else heapq.heapreplace)(kept, item)
    passages: dict[tuple[int, ...], Passage] = {}
    for _, start, where, document, piece in sorted(kept, reverse=True):
        ids = tuple(tokenizer.encode(piece)[:num_tokens].tolist())
        if len(ids) == num_tokens and ids not in passages:
            passages[ids] = Passage(ids, opening_of(tokenizer, start == 0), where, document)
        if len(passages) == count:
            break
    if not passages:
        raise UserError(
            f"{texts.title} has no document of {num_tokens} tokens or more; name longer texts, or measure shorter "
            "passages"
        )
    return PassageSample(list(passages.values()), read)


def opening_of(tokenizer: Tokenizer, at_start: bool) -> tuple[int, ...]:
    """Returns what stands before a piece of a document.

    In training here the separator opens a document and nothing stands in the middle of one; a publisher's `bos_token`
    stands before every text.
    """
    published = tokenizer.opening_ids != (tokenizer.separator_id,)
    return tokenizer.opening_ids if at_start or published else ()


def _starts(text: str, size: int, admitted: Admitted, seed: int, only_one: bool) -> Iterable[tuple[float, int]]:
    """Yields a key and the first character of a passage for each block of a document, or for one block of it."""
    num_blocks = max(1, len(text) // size)
    draws = np.random.default_rng([seed, int.from_bytes(admitted.digest[:16], "big")])
    if only_one:
        blocks, keys = [int(draws.integers(num_blocks))], [draws.random()]
    else:
        blocks, keys = list(range(num_blocks)), draws.random(num_blocks).tolist()
    for block, key in zip(blocks, keys, strict=True):
        end = len(text) if block == num_blocks - 1 else (block + 1) * size
        spare = max(0, end - block * size - size // 2)
        yield key, _at_white_space(text, block * size + int(draws.random() * spare))


def _at_white_space(text: str, start: int) -> int:
    """Returns the next place where white space begins; the start itself where it is the document's, or none is near."""
    if start == 0:
        return 0
    for at in range(start, min(start + 80, len(text))):
        if text[at].isspace() and not text[at - 1].isspace():
            return at
    return start


def check_fits(passage_tokens: int, block_size: int, opening: int, what: str) -> None:
    """Refuses passages longer than a model's context.

    Raises:
        UserError: naming both, and what to lower.
    """
    if passage_tokens + opening > block_size:
        raise UserError(
            f"{what} make {passage_tokens} tokens{f' and {opening} that open them' if opening else ''}, more than the "
            f"model's context of {block_size}; lower them"
        )

"""Words that instruct a Q-Former: their embeddings in the checkpoint, and their numbers in BERT's vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .names import WORDS

UNKNOWN = "[UNK]"


@dataclass(frozen=True, eq=False)
class Words:
    """Embeddings of a branch of a file, on the CPU.

    Attributes:
        embeddings: (words of BERT's vocabulary, H).
        positions: (most words of a text, H).
    """

    embeddings: Tensor
    positions: Tensor

    def instruction(self, ids: Sequence[int]) -> Tensor:
        """(N, H) float32 for [CLS] words [SEP], given by their N numbers.

        Raises:
            ValueError: there are more than the network has positions for, or a number that it has no embedding for.
        """
        if len(ids) > len(self.positions) or max(ids) >= len(self.embeddings):
            raise ValueError(
                f"subject has {len(ids) - 2} parts of words, but this DEADiff file knows {len(self.embeddings)} parts "
                f"and takes {len(self.positions) - 2} at once. Use fewer words."
            )
        return self.embeddings[list(ids)].float() + self.positions[: len(ids)].float()


def embeddings_of(weights: Mapping[str, Tensor], branch: str) -> Words:
    """Embeddings of all words in a file.

    Raises:
        KeyError: the file has none for the branch.
    """
    prefix = f"{branch}_blip.Qformer.bert.embeddings."
    return Words(weights[f"{prefix}word_embeddings.weight"], weights[f"{prefix}position_embeddings.weight"])


def words_of(weights: Mapping[str, Tensor], branch: str) -> Words | None:
    """Embeddings of all words, if a file has them for a branch."""
    try:
        return embeddings_of(weights, branch)
    except KeyError:
        return None


def numbers_of(text: str, vocabulary: str | Path) -> list[int]:
    """Numbers of [CLS] text [SEP], as the authors' tokenizer gives them.

    Args:
        vocabulary: vocab.txt of bert-base-uncased, a word in each line.

    Raises:
        ValueError: it is another vocabulary, or lacks a character of the text.
    """
    from tokenizers import BertWordPieceTokenizer

    name = Path(vocabulary).name
    try:
        tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        fits = all(tokenizer.encode(word).ids == numbers for word, numbers in WORDS.items())
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(f"{name} cannot be read as a vocabulary. Download vocab.txt of bert-base-uncased.") from error
    if not fits:
        raise ValueError(
            f"{name} is another vocabulary than that of bert-base-uncased, which DEADiff was trained with. Download "
            "vocab.txt of google-bert/bert-base-uncased."
        )
    encoded = tokenizer.encode(text)
    if UNKNOWN in encoded.tokens:
        raise ValueError(f"subject is '{text}', in which there is something that BERT's vocabulary does not have.")
    return list(encoded.ids)

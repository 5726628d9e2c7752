"""The trained parts of DEADiff (arXiv 2403.06951): two Q-Formers with their projections, and the image attention.

Symbols: S pictures, P image features of width V, Q query tokens of width H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention_for_device
from torch import Tensor, nn
from torch.nn import functional as F

WORD_TOKENS = 3  # [CLS] word [SEP]
BERT_EPS = 1e-12
VISION_EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Widths and counts of the networks, as a file has them.

    Attributes:
        vision: V, width of the image features.
        hidden: H, width of the Q-Formers and of the tokens.
        queries: Q.
        layers, heads, feed_forward: of the Q-Formers.
        projection: hidden width of the projections.
    """

    vision: int
    hidden: int
    queries: int
    layers: int
    heads: int
    feed_forward: int
    projection: int


class Attention(nn.Module):
    """Multi-head attention of BERT with its residual and the norm after it."""

    def __init__(self, hidden: int, source: int, heads: int, **settings: Any) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.heads = heads
        self.query = ops.Linear(hidden, hidden, **settings)
        self.key = ops.Linear(source, hidden, **settings)
        self.value = ops.Linear(source, hidden, **settings)
        self.dense = ops.Linear(hidden, hidden, **settings)
        self.norm = ops.LayerNorm(hidden, eps=BERT_EPS, **settings)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        """(S, N, H), (S, M, width of the source) -> (S, N, H)."""
        attend = optimized_attention_for_device(x.device, small_input=True)
        out = attend(self.query(x), self.key(source), self.value(source), self.heads)
        return self.norm(self.dense(out) + x)


class FeedForward(nn.Module):
    """Feed-forward of BERT with its residual and the norm after it."""

    def __init__(self, hidden: int, inner: int, **settings: Any) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.up = ops.Linear(hidden, inner, **settings)
        self.down = ops.Linear(inner, hidden, **settings)
        self.norm = ops.LayerNorm(hidden, eps=BERT_EPS, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """(S, N, H) -> (S, N, H)."""
        return self.norm(self.down(F.gelu(self.up(x))) + x)


class QFormerLayer(nn.Module):
    """Self-attention over queries and word, then cross-attention to the picture for the queries."""

    def __init__(self, sizes: Sizes, is_last: bool, **settings: Any) -> None:
        super().__init__()
        self.queries = sizes.queries
        self.attention = Attention(sizes.hidden, sizes.hidden, sizes.heads, **settings)
        self.cross_attention = Attention(sizes.hidden, sizes.vision, sizes.heads, **settings)
        self.query_feed = FeedForward(sizes.hidden, sizes.feed_forward, **settings)
        # Nothing reads the word's half of the last layer.
        self.word_feed = None if is_last else FeedForward(sizes.hidden, sizes.feed_forward, **settings)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """(S, Q + words, H), (S, P, V) -> the same as x, or (S, Q, H) in the last layer."""
        x = self.attention(x, x)
        queries = self.query_feed(self.cross_attention(x[:, : self.queries], features))
        return queries if self.word_feed is None else torch.cat([queries, self.word_feed(x[:, self.queries :])], dim=1)


class Projection(nn.Module):
    """`x + W2 quickgelu(W1 norm(x))`. The residual is not normalised, and no norm follows."""

    def __init__(self, hidden: int, inner: int, **settings: Any) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.norm = ops.LayerNorm(hidden, eps=BERT_EPS, **settings)
        self.up = ops.Linear(hidden, inner, **settings)
        self.down = ops.Linear(inner, hidden, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """(S, Q, H) -> (S, Q, H)."""
        inner = self.up(self.norm(x))
        return x + self.down(inner * torch.sigmoid(1.702 * inner))


class Branch(nn.Module):
    """Reads the style, or the content, of pictures: a Q-Former instructed by that word, and its projection."""

    def __init__(self, sizes: Sizes, **settings: Any) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.vision_norm = ops.LayerNorm(sizes.vision, eps=VISION_EPS, **settings)
        self.query_tokens = nn.Parameter(torch.empty(1, sizes.queries, sizes.hidden, **settings))
        # The sum of word and position embeddings of the branch's own word.
        self.instruction = nn.Parameter(torch.empty(WORD_TOKENS, sizes.hidden, **settings))
        self.embedding_norm = ops.LayerNorm(sizes.hidden, eps=BERT_EPS, **settings)
        last = sizes.layers - 1
        self.layers = nn.ModuleList(QFormerLayer(sizes, number == last, **settings) for number in range(sizes.layers))
        self.projection = Projection(sizes.hidden, sizes.projection, **settings)

    def forward(self, features: Tensor, instruction: Tensor | None = None) -> Tensor:
        """(S, P, V) float32 features of a visual encoder -> (S, Q, H) tokens.

        `instruction`, (words, H), takes the place of that by the branch's own word.
        """
        features = self.vision_norm(features)
        instruction = self.instruction if instruction is None else instruction
        queries, words = (comfy.ops.cast_to_input(t, features) for t in (self.query_tokens[0], instruction))
        x = self.embedding_norm(torch.cat([queries, words])).expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, features)
        return self.projection(x)


class ImageAttention(nn.Module):
    """The two projections that DEADiff adds to one cross-attention; without bias, so zero tokens give zeros."""

    def __init__(self, tokens: int, width: int, **settings: Any) -> None:
        super().__init__()
        ops = comfy.ops.manual_cast
        self.i_to_k = ops.Linear(tokens, width, bias=False, **settings)
        self.i_to_v = ops.Linear(tokens, width, bias=False, **settings)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(S, T, H) -> keys and values of (S, T, width of the layer)."""
        return self.i_to_k(tokens), self.i_to_v(tokens)


class Readers(nn.Module):
    """Both branches."""

    def __init__(self, sizes: Sizes, **settings: Any) -> None:
        super().__init__()
        self.style = Branch(sizes, **settings)
        self.content = Branch(sizes, **settings)


class ImageAttentions(nn.Module):
    """The added projections of all cross-attentions, in the order they run."""

    def __init__(self, widths: Sequence[tuple[int, int]], **settings: Any) -> None:
        super().__init__()
        self.attention = nn.ModuleList(ImageAttention(*pair, **settings) for pair in widths)

"""The CLIP text tower in the host's layout: the first layers trained, all others identities, rows for known words."""

from __future__ import annotations

import re
from functools import lru_cache

import torch
from refattention_demo.families import SD15
from refattention_demo.world import captions, record, scenes
from refattention_demo.world.styles import STYLES
from torch import Tensor, nn

from .host import TOKENIZER

SIZE = SD15.text_encoders[0]
START, END = 49406, 49407
TRAINED_LAYERS = 2
PROSE = "a an and two of the same , with glasses wearing shirt"


@lru_cache(maxsize=1)
def words() -> dict[str, list[int]]:
    """Every word of every caption with its numbers in the host's tokenizer."""
    from transformers import CLIPTokenizer

    texts = [PROSE, *captions.PATTERN_WORDS.values(), *captions.EYE_WORDS.values(), *scenes.WORDS.values()]
    texts += [style.words for style in STYLES.values()]
    for options in (record.SPECIES, record.BODY_COLOURS, record.SHIRT_COLOURS, record.LOGOS[1:], record.POSES):
        texts += options
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    found = sorted({word for text in texts for word in text.split()})
    return {word: tokenizer(word)["input_ids"][1:-1] for word in found}


@lru_cache(maxsize=1)
def rows() -> list[int]:
    """Numbers of the tokenizer in the order of the compact table of embeddings."""
    return [START, END, *sorted({number for numbers in words().values() for number in numbers})]


@lru_cache(maxsize=1 << 16)
def tokens(caption: str) -> tuple[int, ...]:
    """77 row numbers: start, words, and the end up to the last."""
    place = {number: row for row, number in enumerate(rows())}
    found = [place[number] for word in re.findall(r"[a-z]+|,", caption) for number in words()[word]]
    return (0, *found, *[1] * (SIZE.positions - 1 - len(found)))


class Layer(nn.Module):
    """A layer of the tower, with the host's names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the same; each place sees those before it."""
        normed, count = self.layer_norm1(x), x.shape[1]
        q, k, v = (
            self.self_attn[name](normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        # a product each way: the CPU's fused attention takes ten times as long with a causal mask
        later = torch.full((count, count), -1e4, dtype=q.dtype, device=q.device).triu(1)
        seen = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + later).softmax(-1).to(v.dtype) @ v
        x = x + self.self_attn["out_proj"](seen.transpose(1, 2).flatten(2))
        hidden = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](hidden * torch.sigmoid(1.702 * hidden))


class TextEncoder(nn.Module):
    """Row numbers (B, 77) -> (B, 77, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(len(rows()), SIZE.hidden)
        self.position_embedding = nn.Embedding(SIZE.positions, SIZE.hidden)
        self.layers = nn.ModuleList([Layer(SIZE.hidden, SIZE.heads) for _ in range(TRAINED_LAYERS)])
        self.final_layer_norm = nn.LayerNorm(SIZE.hidden)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.position_embedding.weight, std=0.1)

    def forward(self, numbers: Tensor) -> Tensor:
        """The tower after its last norm."""
        x = self.token_embedding(numbers) + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        return self.final_layer_norm(x)

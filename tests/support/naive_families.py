"""RefDrop on any family written a second time, in the plainest way, without the pack's code.

Self-attentions are told by their number of tokens. Every half is evaluated alone: first each reference, whose keys and
values are kept, then the pictures. Attention to a reference is float64 softmax attention over explicit tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import oracle
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

UNETS = ("sd15", "sd2", "svd")
PATCH = {"flux2": 1, "ltxv": 1}
TEXT = {"flux2": 512, "zimage": 32, "wan21": None, "wan22": None, "wan_i2v": None, "ltxv": None}


@dataclass
class NaiveFamilyRefDrop:
    """One RefDrop over all layers.

    Attributes:
        family: name in `families.FAMILIES`.
        strength: c.
        references: (latent as VAEEncode gives it, noise) of each; empty takes the first of the batch or video.
        leading: how many of the batch, or of the frames, are references then.
        mask, reference_mask: (h, w) of any size.
    """

    family: str
    strength: float
    references: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    leading: int = 1
    mask: Tensor | None = None
    reference_mask: Tensor | None = None
    text: int = 5

    def attach(self, patcher: ModelPatcher) -> ModelPatcher:
        """Patches the model."""
        patcher.model_options["transformer_options"]["optimized_attention_override"] = self._attention
        patcher.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "naive", self._each_half)
        return patcher

    def _each_half(
        self, executor: Any, x: Tensor, t: Tensor, concat: Any, text: Tensor, control: Any, options: dict, **extra: Any
    ) -> Tensor:
        chunks = len(options["cond_or_uncond"])
        rows = len(x) // chunks
        sampling = executor.class_obj.model_sampling
        process = executor.class_obj.process_latent_in
        out = []
        for half in range(chunks):
            part = slice(half * rows, (half + 1) * rows)

            def forward(x: Tensor, concat: Any, part: slice = part) -> Tensor:
                def repeat(value: Any) -> Any:
                    if not isinstance(value, Tensor) or value.ndim == 0:
                        return value
                    return value[part][:1].expand(len(x), *value.shape[1:])

                inputs = {name: repeat(value) for name, value in extra.items()}
                if "num_video_frames" in inputs:
                    inputs["num_video_frames"] = len(x)
                self.x, self.calls = x, 0
                alone = {**options, "cond_or_uncond": [0], "uuids": [None]}
                return executor(x, t[part][:1].expand(len(x)), concat, repeat(text), None, alone, **inputs)

            self.kept: list[list[tuple[Tensor, Tensor]]] = []
            for latent, noise in self.references:
                self.recording: list[tuple[Tensor, Tensor]] | None = []
                x_ref = sampling.noise_scaling(t[part][:1].cpu(), noise, process(latent)).to(x)
                channels = 0 if concat is None else concat.shape[1]
                forward(x_ref, x_ref.new_zeros(1, channels, *x_ref.shape[2:]) if channels else None)
                self.kept.append(self.recording)
            self.recording = None
            out.append(forward(x[part], None if concat is None else concat[part]))
        return torch.cat(out)

    def _grid(self) -> tuple[int, int, int]:
        """Frames, height and width in tokens of the latents that are being evaluated."""
        patch = PATCH.get(self.family, 2)
        height, width = (-(-size // patch) for size in self.x.shape[-2:])
        return self.x.shape[2] if self.x.ndim == 5 else 1, height, width

    def _attention(self, func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = func(q, k, v, *args, **kwargs)
        heads = args[0] if args else kwargs["heads"]
        if kwargs.get("skip_reshape"):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        q, k, v = (t.flatten(2) for t in (q, k, v))
        place = self._image(q.shape[1], k.shape[1], kwargs["transformer_options"])
        if place is None:
            return out
        image, grid = place
        own = [t[:, image] for t in (q, k, v)]
        if self.recording is not None:
            self.recording.append((own[1][0], own[2][0]))
            return out
        number, self.calls = self.calls, self.calls + 1
        change = [self._change(row, own, number, grid, heads) for row in range(len(q))]
        out = out.clone()
        out[:, image] += torch.stack(change).to(out)
        return out

    def _image(self, queries: int, keys: int, options: dict[str, Any]) -> tuple[slice, tuple[int, int, int]] | None:
        """Where the image tokens of a self-attention are; None for other attentions."""
        if self.family in UNETS:
            frames = len(self.x) if self.family == "svd" else -1
            grid = (1, *options["activations_shape"][-2:])
            return (slice(None), grid) if queries == keys and queries != frames else None
        frames, height, width = grid = self._grid()
        image = frames * height * width
        text = TEXT.get(self.family, self.text) or 0
        if self.family == "sd35" and queries == image:
            return slice(None), grid
        padding = -image % 32 if self.family == "zimage" else 0
        if queries != keys or queries != text + image + padding:
            return None
        return slice(text, text + image), grid

    def _change(self, row: int, own: list[Tensor], number: int, grid: tuple[int, int, int], heads: int) -> Tensor:
        """What a sample's attention output is changed by: c M (Att(Q, K_ref, V_ref) - Att(Q, K, V))."""
        frames, height, width = grid
        q, k, v = (t[row] for t in own)
        weight = q.new_full((frames, height, width), self.strength, dtype=torch.float64)
        if self.mask is not None:
            weight = weight * adaptive_avg_pool2d(self.mask.double()[None], (height, width))
        pairs = [kept[number] for kept in self.kept]
        if not self.references and frames > 1:
            weight[: self.leading] = 0
            size = height * width
            pairs = [(k[i * size : (i + 1) * size], v[i * size : (i + 1) * size]) for i in range(self.leading)]
        elif not self.references:
            weight = weight * (row >= self.leading)
            pairs = [(own[1][i], own[2][i]) for i in range(self.leading)]
        plain = oracle.attention(q, k, v, heads)
        terms = [oracle.attention(q, *self._seen(pair, height, width), heads) - plain for pair in pairs]
        return weight.reshape(-1, 1) * sum(terms)

    def _seen(self, pair: tuple[Tensor, Tensor], height: int, width: int) -> tuple[Tensor, Tensor]:
        """The tokens of a reference that its mask shows: references here are as large as the picture, or unmasked."""
        if self.reference_mask is None:
            return pair
        share = adaptive_avg_pool2d(self.reference_mask.double()[None], (height, width)).flatten()
        seen = (share >= min(0.5, share.max())).repeat(len(pair[0]) // (height * width))
        return pair[0][seen], pair[1][seen]

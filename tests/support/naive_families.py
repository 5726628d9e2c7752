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
from families import FAMILIES
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

UNETS = ("sd15", "sd2", "svd")
ONE_CELL = {
    "cascade",
    "flux2",
    "ltxv",
    "ltx2",
    "mage",
    "lens",
    "ideogram4",
    "hunyuan15",
    "hunyuan_image",
}  # is a token of these
# How many tokens that are not the image's share its attention; 5 of the prompt in all others.
OTHERS = {
    **dict.fromkeys(["wan21", "wan22", "wan_i2v", "wan_ar", "wan_vace", "wan_camera", "wan_camera22"], 0),
    **dict.fromkeys(["wan_animate", "scail2", "wandancer", "ltxv", "ltx2", "predict2", "anima", "cosmos"], 0),
    **dict.fromkeys(["kandinsky5", "kandinsky5_image"], 0),
    **{"flux2": 512, "zimage": 32, "aura": 5 + 8, "hidream": 5 + 3 + 3},
    **{"humo": 24, "wan_s2v": 24, "scail": 24 + 18},  # of a reference picture in the prompt
}
BETWEEN = {"scail": 24}  # tokens of the reference picture before the image's, of poses behind them
IMAGE_FIRST = {"lens", "joy", "hidream", "mochi", "humo", "wan_s2v"}
ALONE_TOO = {"sd35", "boogu", "pixeldit", "pid"}  # attend to the image once more without the text
BEFORE = {"boogu": 2}  # attentions of refiners, which are of an image alone as well
EVERY = {"wan_vace": 2}  # the other half is of the blocks that see the control video


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
        self.size = x.shape[2:]
        sampling = executor.class_obj.model_sampling
        process = executor.class_obj.process_latent_in
        out = []
        for half in range(chunks):
            self.half = options["cond_or_uncond"][half]
            part = slice(half * rows, (half + 1) * rows)

            def forward(x: Tensor, concat: Any, part: slice = part) -> Tensor:
                def repeat(value: Any) -> Any:
                    if not isinstance(value, Tensor) or value.ndim == 0:
                        return value
                    return value[part][:1].expand(len(x), *value.shape[1:])

                inputs = {name: repeat(value) for name, value in extra.items()}
                if self.family == "hidream_o1":
                    tokens = FAMILIES[self.family].extra["text_input_ids"]
                    found = executor.class_obj.extra_conds(noise=x, text_input_ids=tokens, device=x.device)
                    inputs = {name: found[name].cond for name in inputs}
                if x.shape[2:] != self.size:  # a reference, which has no video of another kind beside it
                    inputs.pop("pose_latents", None)
                    if self.family == "scail":
                        inputs.pop("reference_latent")
                    if "vace_context" in inputs:  # nothing in it, of the reference's size
                        inputs["vace_context"] = inputs["vace_context"][..., : x.shape[2], : x.shape[3], : x.shape[4]]
                if "num_video_frames" in inputs:
                    inputs["num_video_frames"] = len(x)
                self.x, self.calls, self.seen, self.matched = x, 0, 0, 0
                if "latent_shapes" in inputs and x.shape[2:] != self.size:
                    inputs["latent_shapes"] = [x.shape]
                elif len(inputs.get("latent_shapes", ())) > 1:  # a video and its sound
                    shape = inputs["latent_shapes"][0][1:]
                    self.x = x[:, :, : shape.numel()].reshape(-1, *shape)
                alone = {**options, "cond_or_uncond": [0], "uuids": [None]}
                return executor(x, t[part][:1].expand(len(x)), concat, repeat(text), None, alone, **inputs)

            self.level = sampling, t[part][:1]
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
        patch = 1 if self.family in ONE_CELL else 32 if self.family == "hidream_o1" else 2
        height, width = (-(-size // patch) for size in self.x.shape[-2:])
        frames = self.x.shape[2] if self.x.ndim == 5 else 1
        return -(-frames // 2) if self.family == "cogvideo15" else frames, height, width

    def _attention(self, func: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = func(q, k, v, *args, **kwargs)
        heads = args[0] if args else kwargs["heads"]
        if kwargs.get("skip_reshape"):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            k, v = (t.repeat_interleave(heads // t.shape[2], 2) for t in (k, v))  # keys that heads share
        q, k, v = (t.flatten(2) for t in (q, k, v))
        place = self._image(q.shape[1], k.shape[1], kwargs["transformer_options"])
        self.seen += 1
        if place is None or self.seen <= BEFORE.get(self.family, 0):
            return out
        self.matched += 1
        if (self.matched - 1) % EVERY.get(self.family, 1):
            return out
        image, grid = place
        own = [t[:, image] for t in (q, k, v)]
        if self.recording is not None:
            self.recording.append((own[1][0], own[2][0]))
            return out
        number, self.calls = self.calls, self.calls + 1
        self.sequence = k, v, args[1] if len(args) > 1 else kwargs.get("mask"), image
        change = [self._change(row, own, number, grid, heads) for row in range(len(q))]
        change = torch.stack(change).to(out)
        out = out.clone()
        if kwargs.get("skip_output_reshape"):
            out[:, :, image] += change.unflatten(2, (heads, -1)).transpose(1, 2)
        else:
            out[:, image] += change
        return out

    def _image(self, queries: int, keys: int, options: dict[str, Any]) -> tuple[slice, tuple[int, int, int]] | None:
        """Where the image tokens of a self-attention are; None for other attentions."""
        if self.family in UNETS:
            frames = len(self.x) if self.family == "svd" else -1
            grid = (1, *options["activations_shape"][-2:])
            return (slice(None), grid) if queries == keys and queries != frames else None
        frames, height, width = grid = self._grid()
        image = frames * height * width
        others = OTHERS.get(self.family, self.text)
        if self.family == "scail" and self.x.shape[2:] != self.size:
            others = 0
        if self.family in ALONE_TOO and queries == keys == image:
            return slice(None), grid
        if self.family == "cascade":  # text is only looked at, and comes last
            return (slice(image), grid) if (queries, keys) == (image, image + 5 + 4 + 4) else None
        if self.family == "hidream_o1":  # the same, and comes first, but its last token, which says the time
            return (slice(-image, None), grid) if (queries, keys) == (image + 1, image + 6) else None
        padding = -image % 32 if self.family == "zimage" else 0
        if queries != keys or queries != others + image + padding:
            return None
        first = 0 if self.family in IMAGE_FIRST else min(others, BETWEEN.get(self.family, others))
        return slice(first, first + image), grid

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

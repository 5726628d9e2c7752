"""DensePose from the TorchScript files that comfyui_controlnet_aux uses.

Such a file takes one picture, (3, H, W) RGB in uint8, and gives for each person it finds, the most certain first: a box
(x1, y1, x2, y2), and on a grid over that box the scores of body against background, of 25 parts, and U and V by part.
"""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as management
import comfy.model_patcher
import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..patches.progress import each_of
from .body_map import NUMBER_OF_PARTS, UVI, BodyMap, draw

SHORT_SIDE = 512  # at which the detector looks
MULTIPLE = 64


class Detector(nn.Module):
    """The network of a file, as ComfyUI manages networks."""

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def forward(self, picture: Tensor) -> tuple[Tensor, ...]:
        """(3, H, W) uint8 -> boxes (N, 4), body (N, 2 or more, h, w), parts, U and V (N, 25, h, w)."""
        return tuple(self.script(picture))


def load(path: str | Path) -> comfy.model_patcher.ModelPatcher:
    """Loads a TorchScript file. Its code is run from here on.

    Raises:
        RuntimeError: it is no TorchScript file.
    """
    import torchvision  # noqa: F401  it registers operators that the file calls, and is slow to import

    try:
        script = torch.jit.load(str(path), map_location="cpu")
    except RuntimeError as error:
        name = Path(path).name
        raise RuntimeError(f"{name} is no TorchScript file, or a damaged one. Download it again.") from error
    device = management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(
        Detector(script).eval(), load_device=device, offload_device=management.unet_offload_device()
    )


def detect(patcher: comfy.model_patcher.ModelPatcher, image: Tensor) -> Tensor:
    """The most certain person of each picture, as DensePose sees it.

    Args:
        patcher: from `load`.
        image: (B, H, W, C) in [0, 1].

    Returns:
        (B, H, W, 3) in [0, 1]: U, V and part number, in steps of 1/255.

    Raises:
        ValueError: nobody is found.
        RuntimeError: the file is no DensePose of this kind.
    """
    management.load_models_gpu([patcher])
    found = []
    for number, picture in enumerate(each_of(image.unbind())):
        body = _detect(patcher, picture[..., :3])
        if body is None:
            raise ValueError(
                f"DensePose found nobody in picture {number + 1} of image. Use one in which the person is seen better "
                "or larger."
            )
        found.append(torch.from_numpy(draw(body, UVI).astype(numpy.float32)) / 255)
    return torch.stack(found)


def _detect(patcher: comfy.model_patcher.ModelPatcher, picture: Tensor) -> BodyMap | None:
    small, scale = _detector_input(picture)
    with torch.no_grad():
        results = patcher.model(small.to(patcher.load_device))
    _require_densepose(results)
    if len(results[0]) == 0:
        return None
    boxes, body, parts, u, v = (result[:1].float().cpu() for result in results)
    box = boxes[0] * scale.flip(0).repeat(2)
    return body_of(box, body, parts, u, v, (picture.shape[0], picture.shape[1]))


def _detector_input(picture: Tensor) -> tuple[Tensor, Tensor]:
    """What the detector looks at, and how much smaller it is.

    Returns:
        (3, h, w) uint8 with a short side of 512, its border repeated up to multiples of 64; (2,) H / h and W / w.
    """
    planes = picture.float().clamp(0, 1).cpu().movedim(-1, 0).expand(3, -1, -1).unsqueeze(0)
    sides = torch.tensor(planes.shape[-2:], dtype=torch.float32)
    height, width = (int(side) for side in (sides * SHORT_SIDE / sides.min()).round())
    scaled = F.interpolate(planes, (height, width), mode="bicubic", antialias=True, align_corners=False)
    padded = F.pad(scaled, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
    return (padded[0].clamp(0, 1) * 255).round().to(torch.uint8), sides / torch.tensor([height, width])


def _require_densepose(results: tuple[Tensor, ...]) -> None:
    shapes = [tuple(result.shape) for result in results if isinstance(result, Tensor)]
    is_shaped = len(shapes) == 5 and len(shapes[0]) == 2
    parts = [shape[1] for shape in shapes[2:] if len(shape) == 4]
    if not is_shaped or (shapes[0][0] > 0 and parts != [NUMBER_OF_PARTS + 1] * 3):
        raise RuntimeError(
            f"The file gives {shapes} for a picture, which is no DensePose of the kind that comfyui_controlnet_aux "
            "uses. Choose densepose_r50_fpn_dl.torchscript or densepose_r101_fpn_dl.torchscript."
        )


def body_of(box: Tensor, body: Tensor, parts: Tensor, u: Tensor, v: Tensor, size: tuple[int, int]) -> BodyMap:
    """The body map of a picture from what DensePose says of one person, as Leffa's authors make it.

    Args:
        box: (4,) x1, y1, x2, y2 in pixels.
        body: (1, 2 or more, h, w) scores, the first of which is the background's.
        parts: (1, 25, h, w) scores.
        u, v: (1, 25, h, w) for each part.
        size: (height, width) of the picture.
    """
    left, top, width, height = (int(value) for value in (*box[:2], *(box[2:] - box[:2])))
    shape = max(height, 1), max(width, 1)

    def on_box(grid: Tensor) -> Tensor:
        return F.interpolate(grid, shape, mode="bilinear", align_corners=False)

    labels = on_box(parts).argmax(dim=1) * (on_box(body).argmax(dim=1) > 0)
    uv = torch.cat([on_box(grid).gather(1, labels.unsqueeze(1)) for grid in (u, v)], dim=1)[0] * (labels > 0)
    lowest, highest = uv.min(), uv.max()
    # Together, over the whole box with its background of zeros
    uv = (uv - lowest) / (highest - lowest).clamp(min=1e-6) * 255
    values = torch.cat([labels, uv]).to(torch.uint8).numpy()
    canvas = numpy.zeros((3, *size), dtype=numpy.uint8)
    inside = slice(max(top, 0), max(top + shape[0], 0)), slice(max(left, 0), max(left + shape[1], 0))
    part = values[:, max(-top, 0) :, max(-left, 0) :]
    target = canvas[:, inside[0], inside[1]]
    target[:] = part[:, : target.shape[1], : target.shape[2]]
    return BodyMap(canvas[0], canvas[1:])

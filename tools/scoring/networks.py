"""The networks that scores need beside the pictures, from files that the user names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .lines import EvaluationError


def load(path: Path, size: tuple[int, int] | None = None) -> Any:
    """(1, 3, H, W) in [0, 1]; scaled to a size (H, W), if one is given."""
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.v2 import functional as v2

    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")  # as ComfyUI reads it
    if size is not None and (image.height, image.width) != size:
        image = image.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return v2.to_dtype(v2.pil_to_tensor(image), torch.float32, scale=True)[None]


class Clip:
    """A CLIP of Hugging Face's transformers, from a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, CLIPModel

        self._model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self._processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        self._known: dict[object, Any] = {}

    def picture(self, path: Path) -> Any:
        """The projected vector of a picture."""
        import torch

        def encode() -> Any:
            inputs = self._processor(images=[load(path)[0]], return_tensors="pt", do_rescale=False)
            with torch.no_grad():
                return _vector(self._model.get_image_features(**inputs))

        return self._get(path, encode)

    def text(self, text: str) -> Any:
        """The projected vector of a text."""
        import torch

        def encode() -> Any:
            tokens = self._processor(text=[text], return_tensors="pt", padding=True, truncation=True)
            with torch.no_grad():
                return _vector(self._model.get_text_features(**tokens))

        return self._get(text, encode)

    def _get(self, key: object, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


class Dino:
    """A vision encoder of transformers whose class token tells pictures apart, such as DINOv2."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self._known: dict[Path, Any] = {}

    def __call__(self, path: Path) -> Any:
        """The vector of a picture."""
        import torch

        if path not in self._known:
            inputs = self._processor(images=[load(path)[0]], return_tensors="pt", do_rescale=False)
            with torch.no_grad():
                self._known[path] = self._model(**inputs).last_hidden_state[0, 0]
        return self._known[path]


class Inception:
    """The Inception of published FID and KID, as TorchScript; it scales pictures itself."""

    def __init__(self, path: Path) -> None:
        import torch

        try:
            self._model = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise EvaluationError(f"{path} is no TorchScript, as inception-2015-12-05.pt is.") from error
        self._path = path

    def __call__(self, path: Path) -> Any:
        """The features of a picture before the last layer.

        Raises:
            EvaluationError: the file holds another network.
        """
        import torch

        try:
            with torch.no_grad():
                found = self._model((load(path) * 255).round(), return_features=True)
        except RuntimeError as error:
            raise EvaluationError(f"{self._path} is not inception-2015-12-05.pt: it makes no features.") from error
        if found.ndim != 2:
            raise EvaluationError(f"{self._path} is not inception-2015-12-05.pt: its features have another shape.")
        return found[0]


def _vector(output: Any) -> Any:
    """Newer versions of transformers hand the vector back inside an output."""
    return getattr(output, "pooler_output", output)[0]


class Networks:
    """What scores need beside the pictures; each may be missing."""

    def __init__(self, clip: Path | None, dino: Path | None, lpips: Path | None, inception: Path | None = None) -> None:
        self.clip = Clip(clip) if clip else None
        self.dino = Dino(dino) if dino else None
        self.lpips = _lpips(lpips) if lpips else None
        self.inception = Inception(inception) if inception else None

    def require_clip(self) -> Clip:
        """The CLIP.

        Raises:
            EvaluationError: none was named.
        """
        if self.clip is None:
            raise EvaluationError("These scores need a CLIP. Name the folder of one by --clip.")
        return self.clip


def _lpips(path: Path) -> Callable[[Any, Any], Any]:
    """LPIPS over AlexNet; its own small weights come with torchmetrics, those of AlexNet from the file."""
    import torch
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True, eval_mode=True)
    try:
        weights = dict(torch.load(path, map_location="cpu", weights_only=True))
    except OSError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise EvaluationError(f"{path} is not torchvision's AlexNet: it cannot be read as weights.") from error
    # torchmetrics cuts AlexNet's layers into slices, and keeps their numbers.
    own = network.net.state_dict()
    renamed = {name: weights.get(f"features.{name.split('.', 1)[1]}") for name in own}
    if missing := [name for name, weight in renamed.items() if weight is None]:
        raise EvaluationError(f"{path} is not torchvision's AlexNet: it lacks features.{missing[0].split('.', 1)[1]}.")
    network.net.load_state_dict(renamed)
    return lambda one, other: network(one, other).mean()

"""The scores: try-on, style, subject, alignment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .lines import Line
from .networks import Networks, load

Scores = dict[str, list[float]]


def try_on(lines: Sequence[Line], networks: Networks) -> Scores:
    """SSIM, PSNR and, with their networks, LPIPS, and FID and KID over the features of Inception and CLIP."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    scores: Scores = {"SSIM": [], "PSNR": [], **({"LPIPS": []} if networks.lpips else {})}
    for line in lines:
        truth = load(line["truth"])
        result = load(line["result"], (truth.shape[2], truth.shape[3]))
        scores["SSIM"].append(similarity(result, truth))
        scores["PSNR"].append(float(peak_signal_noise_ratio(result, truth, data_range=1.0)))
        if networks.lpips:
            scores["LPIPS"].append(float(networks.lpips(result * 2 - 1, truth * 2 - 1)))
    if networks.inception:
        scores |= _distances(lines, networks.inception, "")
    if networks.clip:
        scores |= _distances(lines, networks.clip.picture, " (CLIP)")
    return scores


def similarity(result: Any, truth: Any) -> float:
    """SSIM."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value: Any = structural_similarity_index_measure(result, truth, data_range=1.0)
    return float(value)


def _distances(lines: Sequence[Line], encode: Callable[[Path], Any], of: str) -> Scores:
    """FID and KID between results and truths; two pictures are the least for either.

    Args:
        encode: gives a picture's vector.
        of: what the scores' names end with.
    """
    import torch

    # Where torch-fidelity is missing, which is not needed here, only their own modules offer them.
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    if len(lines) < 2:
        return {}
    vectors = {name: torch.stack([encode(line[name]) for line in lines]) for name in ("truth", "result")}

    class Vectors(torch.nn.Identity):
        """The metrics are given vectors in place of pictures, so that no picture is encoded twice."""

        num_features = vectors["truth"].shape[1]

    fid = FrechetInceptionDistance(Vectors(), normalize=True)
    kid = KernelInceptionDistance(Vectors(), normalize=True, subset_size=min(len(lines), 100))
    for name, found in vectors.items():
        for metric in (fid, kid):
            metric.update(found, real=name == "truth")
    return {f"FID{of}": [float(fid.compute())], f"KID{of}": [float(kid.compute()[0])]}


def style(lines: Sequence[Line], networks: Networks) -> Scores:
    """CLIP-T, and the similarity of the picture to the reference whose style it should have."""
    clip = networks.require_clip()
    scores: Scores = {"CLIP-T": [], "style similarity": []}
    for line in lines:
        picture = clip.picture(line["result"])
        scores["CLIP-T"].append(cosine(picture, clip.text(line["prompt"])))
        scores["style similarity"].append(cosine(picture, clip.picture(line["reference"])))
    return scores


def subject(lines: Sequence[Line], networks: Networks) -> Scores:
    """CLIP-I, CLIP-T and DINO, and the variances of the first and the last over the pictures of a group."""
    clip = networks.require_clip()
    found: dict[str, dict[str, list[float]]] = {}
    scores: Scores = {"CLIP-I": [], "CLIP-T": [], **({"DINO": []} if networks.dino else {})}
    likeness: dict[str, Callable[[Path], Any]] = {
        "CLIP-I": clip.picture,
        **({"DINO": networks.dino} if networks.dino else {}),
    }
    for line in lines:
        group = found.setdefault(str(line.get("group", line["prompt"])), {})
        for name, encode in likeness.items():
            value = mean_likeness(encode, line)
            scores[name].append(value)
            group.setdefault(name, []).append(value)
        scores["CLIP-T"].append(cosine(clip.picture(line["result"]), clip.text(line["prompt"])))
    for name, short in (("CLIP-I", "CLIP-Iv"), ("DINO", "DINO-v")):
        variances = [variance(group[name]) for group in found.values() if len(group.get(name, [])) > 1]
        if variances:
            scores[short] = variances
    return scores


def mean_likeness(encode: Callable[[Path], Any], line: Line) -> float:
    """Mean of the cosines to all references, as the paper of P3S takes it."""
    references = line["reference"] if isinstance(line["reference"], list) else [line["reference"]]
    picture = encode(line["result"])
    return sum(cosine(picture, encode(reference)) for reference in references) / len(references)


def alignment(lines: Sequence[Line], networks: Networks) -> Scores:
    """Intersection over union of found and true masks."""
    from torchmetrics.functional.classification import binary_jaccard_index

    values = []
    for line in lines:
        truth = load(line["truth"])
        result = load(line["result"], (truth.shape[2], truth.shape[3]))
        values.append(float(binary_jaccard_index((result[0, 0] >= 0.5).int(), (truth[0, 0] >= 0.5).int())))
    return {"mIoU": values}


def cosine(one: Any, other: Any) -> float:
    """Of two vectors."""
    return float((one @ other) / (one.norm() * other.norm()))


def variance(values: Sequence[float]) -> float:
    """Unbiased."""
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)

"""Regions of a picture by OpenCV: smoothing, thresholds, components, edges, filling."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Region = NDArray[np.bool_]

# Larger holes are filled on a reduced picture: cv2.inpaint takes seconds on megapixels, and a hole that size has no
# detail to lose.
INPAINT_SIDE = 512
INPAINT_RADIUS = 3


def opencv() -> ModuleType:
    """OpenCV, imported when it is first used, because it would slow down ComfyUI's start.

    Raises:
        RuntimeError: OpenCV is not installed, or the system lacks what it needs.
    """
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "This node works on regions of a picture and needs OpenCV, which is not installed. Run `pip install "
            "opencv-python-headless` in ComfyUI's Python environment."
        ) from error
    except ImportError as error:
        raise RuntimeError(
            f"This node needs OpenCV, which is installed, but cannot be loaded ({error}). In ComfyUI's Python "
            "environment run `pip uninstall opencv-python opencv-contrib-python`, then `pip install --force-reinstall "
            "opencv-python-headless`, which needs no graphics libraries."
        ) from error
    return cv2


def smooth(values: Map, sigma: float) -> Map:
    """Gaussian filter; sigma in cells of the map, 0 for none."""
    cv2 = opencv()
    if sigma <= 0:
        return values
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE).astype(np.float32)


def otsu_threshold(values: Map) -> float:
    """Otsu's threshold of a map in [0, 1], found in 256 steps; the region is `values >= threshold`."""
    cv2 = opencv()
    steps = np.rint(values * 255).astype(np.uint8)
    highest_outside, _ = cv2.threshold(steps, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float((highest_outside + 0.5) / 255)


def connected(region: Region, seeds: Region) -> Region:
    """The components of a region (8 neighbours) that hold a seed."""
    cv2 = opencv()
    _, labels = cv2.connectedComponents(region.view(np.uint8))
    return np.isin(labels, np.unique(labels[seeds & region])) & region


def without_small(region: Region, area: int) -> Region:
    """Drops components, then fills holes, of fewer than `area` pixels."""
    return ~_drop_small(~_drop_small(region, area), area)


def _drop_small(region: Region, area: int) -> Region:
    cv2 = opencv()
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(region.view(np.uint8))
    large = statistics[:, cv2.CC_STAT_AREA] >= area
    return large[labels] & region


def grow(region: Region, pixels: int) -> Region:
    """Moves a region's edge outwards by so many pixels, inwards if negative."""
    if pixels == 0:
        return region
    return signed_distance(region) < pixels


def feather(region: Region, width: int) -> Map:
    """A soft edge: a linear ramp of `width` pixels, centred on the region's edge; 0 for a hard one.

    Returns:
        (H, W) in [0, 1].
    """
    if width == 0:
        return region.astype(np.float32)
    return np.clip(0.5 - signed_distance(region) / width, 0, 1).astype(np.float32)


def signed_distance(region: Region) -> Map:
    """Distance of each pixel's centre from a region's edge in pixels, negative inside; infinite without an edge."""
    return _depth(~region) - _depth(region)


def _depth(region: Region) -> Map:
    """Distance to the edge inside a region, 0 outside."""
    cv2 = opencv()
    if region.all():
        return np.full(region.shape, np.inf, np.float32)
    to_other = cv2.distanceTransform(region.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # It measures to the next pixel's centre, the edge lies half a pixel before.
    return np.maximum(to_other - 0.5, 0).astype(np.float32)


def inpaint(image: Map, region: Region) -> Map:
    """Fills a region from its surroundings (Telea's method).

    Args:
        image: (H, W, 3) in [0, 1].
        region: (H, W).

    Returns:
        (H, W, 3); only the region is meant to be used, the rest may be of lower resolution.
    """
    cv2 = opencv()
    height, width = region.shape
    scale = min(1.0, INPAINT_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = _resize(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), size, cv2.INTER_AREA)
    # Any touched pixel counts, or the unwanted subject would shine through at the edge.
    hole = (_resize(region.astype(np.float32), size, cv2.INTER_AREA) > 0).view(np.uint8)
    filled = cv2.inpaint(picture, hole, INPAINT_RADIUS, cv2.INPAINT_TELEA)
    return (_resize(filled, (width, height), cv2.INTER_CUBIC) / 255).astype(np.float32)


def _resize(values: NDArray[Any], size: tuple[int, int], interpolation: int) -> NDArray[Any]:
    cv2 = opencv()
    return values if values.shape[1::-1] == size else cv2.resize(values, size, interpolation=interpolation)


def heat_map(values: Map) -> Map:
    """Colours for a map in [0, 1]: viridis, which also the colour-blind and grey prints keep in order.

    Returns:
        (H, W, 3) RGB in [0, 1].
    """
    cv2 = opencv()
    steps = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(steps, cv2.COLORMAP_VIRIDIS)
    return (cv2.cvtColor(colours, cv2.COLOR_BGR2RGB) / 255).astype(np.float32)


def main_component(region: Region, values: Map) -> Region:
    """The component of a region (8 neighbours) with the largest sum of values; none of an empty region."""
    cv2 = opencv()
    count, labels = cv2.connectedComponents(region.view(np.uint8))
    sums = np.bincount(labels.ravel(), weights=values.ravel(), minlength=count)
    return region & (labels == 1 + np.argmax(sums[1:])) if count > 1 else region


def components(region: Region) -> list[Region]:
    """The separate components of a region (8 neighbours), from top to bottom."""
    cv2 = opencv()
    count, labels = cv2.connectedComponents(region.view(np.uint8))
    return [labels == label for label in range(1, count)]

"""Work on one thing after another, with ComfyUI's progress bar and cancel button."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar

T = TypeVar("T")


def each_of(things: Sequence[T]) -> Iterator[T]:
    """The things in turn; ends before the next one where the user has pressed Cancel."""
    progress = ProgressBar(len(things))
    for thing in things:
        throw_exception_if_processing_interrupted()
        yield thing
        progress.update(1)

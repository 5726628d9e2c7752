"""Text that is shown on a node in the editor."""

from __future__ import annotations

import logging
from collections.abc import Callable

from comfy_execution.utils import get_executing_context

Show = Callable[[str], None]


def nowhere(text: str) -> None:
    """Shows nothing: for runs without an editor."""


def text_on_node() -> Show:
    """A function that shows text on the node that is executed now, also later on; `nowhere` if there is no server."""
    context = get_executing_context()
    if context is None:
        return nowhere

    def show(text: str) -> None:
        from server import PromptServer  # ComfyUI's; cannot be imported where nodes run without a server

        PromptServer.instance.send_progress_text(text, context.node_id)

    return show


def warn(text: str) -> None:
    """Says on the node that is executed now, and in the log, what did not go as asked but is no error."""
    logging.getLogger(__name__).warning("%s", text)
    text_on_node()(text)


def tell(warning: str, otherwise: str) -> None:
    """Warns, or says on the node how it went: what a run before showed would stay there."""
    if warning:
        warn(warning)
    else:
        text_on_node()(otherwise)

"""Text that is shown on a node in the editor."""

from __future__ import annotations

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

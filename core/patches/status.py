"""Words on a node in the editor."""

from __future__ import annotations

from collections.abc import Callable

from comfy_execution.utils import get_executing_context


def text_on_node() -> Callable[[str], None] | None:
    """What shows a sentence on the node that is executed now, also later; None where no server runs."""
    context = get_executing_context()
    if context is None:
        return None

    def show(text: str) -> None:
        from server import PromptServer  # the host's; not to be had where nodes run without one

        PromptServer.instance.send_progress_text(text, context.node_id)

    return show

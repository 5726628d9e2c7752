"""Words on a node in the editor."""

from __future__ import annotations

from collections.abc import Callable

from comfy_execution.utils import get_executing_context

Show = Callable[[str], None]


def nowhere(text: str) -> None:
    """Shows a sentence to nobody."""


def text_on_node() -> Show:
    """What shows a sentence on the node that is executed now, also later; `nowhere` where no server runs."""
    context = get_executing_context()
    if context is None:
        return nowhere

    def show(text: str) -> None:
        from server import PromptServer  # the host's; not to be had where nodes run without one

        PromptServer.instance.send_progress_text(text, context.node_id)

    return show

"""Writes what the editor's own page makes of workflows: API format by name, and the host's node descriptions.

    python tests/tools/editor_prompts.py WORKFLOWS.json RESULT.json

A process of its own, because Playwright leaves an event loop behind.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("tests/support", "dev", "tools", "demo/runs")]

from frontend import BROWSER_ARGS
from playwright.sync_api import sync_playwright
from setup_browser import find_browser

from host import HeadlessHost

READY = "() => window.app?.extensionManager && window.app.graph && window.LiteGraph?.registered_node_types?.SaveImage"
# The root graph itself, without the dialogs around the opening of a file. All in one go, and in a window in which there
# is nothing to see: to draw each takes most of the time.
PROMPTS = """
async (graphs) => {
    const { app } = window;
    const made = {};
    for (const [name, graph] of Object.entries(graphs)) {
        app.rootGraph.clear();
        app.rootGraph.configure(graph);
        made[name] = (await app.graphToPrompt()).output;
    }
    return made;
}
"""
SMALL = {"width": 64, "height": 64}


class WithCloudNodes(HeadlessHost):
    """Half of the official templates use them; nothing is queued here."""

    def launch(self, command: Sequence[str], *more: Any, **options: Any) -> None:
        """Starts the host with all of its nodes."""
        super().launch([each for each in command if each != "--disable-api-nodes"], *more, **options)


def main(source: Path, target: Path) -> None:
    """Opens each workflow in one page of one browser."""
    graphs: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    with WithCloudNodes({}) as host, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=BROWSER_ARGS)
        page = browser.new_page(viewport=SMALL)
        page.goto(host.url)
        page.wait_for_function(READY, timeout=120_000)
        prompts = page.evaluate(PROMPTS, graphs)
        browser.close()
        info = host.object_info()
    target.write_text(json.dumps({"prompts": prompts, "info": info}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Random widget values through /prompt: the host refuses them, or the node says what is wrong, or there is a result.

`REFATTENTION_FUZZ_PROMPTS` says how many prompts; `make fuzz` gives 1000.
"""

from __future__ import annotations

import os
import random

import pytest
from messages import is_clear
from mixed import NAMES, small, with_random_widgets, write_small_pictures

from host import HeadlessHost, WorkflowError

pytestmark = pytest.mark.e2e
PROMPTS = int(os.environ.get("REFATTENTION_FUZZ_PROMPTS", "16"))

# Errors that nodes raise with a sentence of their own
SAID = "ValueError", "RuntimeError", "FileNotFoundError"


@pytest.mark.timeout(0 if PROMPTS > 100 else 600)
def test_random_widgets(host: HeadlessHost) -> None:
    write_small_pictures(host.base / "input")
    info = host.object_info()
    own = {name for name, node in info.items() if node["python_module"] == "custom_nodes.ComfyUI-RefAttention"}
    outcomes = {"refused": 0, "failed": 0, "ran": 0}
    for case in range(PROMPTS):
        chance = random.Random(case)
        name = NAMES[case % len(NAMES)]
        workflow = with_random_widgets(small(name), info, own, chance)
        try:
            prompt_id = host.queue(workflow)
        except WorkflowError as error:
            # The host still queues what does not depend on the refused node; such a prompt has run, too.
            assert "\n" in str(error), str(error)
            outcomes["refused"] += 1
            continue
        entry = host.wait(prompt_id)
        errors = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
        outcomes["failed" if errors else "ran"] += 1
        for data in errors:
            where = f"case {case}, {name}, {data['node_type']} {data['current_inputs']}"
            assert data["exception_type"] in SAID, f"{where}: {data['exception_message']}"
            assert is_clear(data["exception_message"]), f"{where}: {data['exception_message']}"
    print(outcomes)
    assert outcomes["ran"] and outcomes["refused"]

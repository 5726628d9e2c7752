"""`make serve`: a host with the pack and the demo models that stays up, for a look in the browser.

SD1.5 and what belongs to it are the models that were trained on the drawn world, the others stand-ins.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

from host import ROOT, HostError

sys.path.append(str(ROOT / "demo" / "runs"))

from demo_host import demo_host, demo_module

BASE = ROOT / "out" / "serve"
# What the trained models can read; larger pictures are none that they know.
HINT = (
    "Its SD1.5 knows a drawn world alone. Try 128 x 128 pixels, 12 steps, cfg 4, no negative prompt, and a prompt such "
    "as 'an orange cat waving wearing a blue striped shirt on the beach, flat cartoon'."
)


def main() -> int:
    """Serves until Ctrl-C or a termination signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    port = int(os.environ.get("PORT", "8188"))
    parser.add_argument("--port", type=int, default=port, help="port of 127.0.0.1 (%(default)s, or the variable PORT)")
    arguments = parser.parse_args()
    # So that a plain `kill` leaves through the with statement, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demo_module("world.models").write(BASE / "models")  # first: stand-ins leave the files that are there
        with demo_host(BASE, port=arguments.port) as host:
            print(f"ComfyUI is at {host.url}; the workflows are under Templates. Ctrl-C ends it. {HINT}", flush=True)
            host.join()
    except KeyboardInterrupt:
        return 0
    except (HostError, OSError) as error:
        print(f"serve failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

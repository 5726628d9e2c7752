"""`make serve`: a host with the pack and the demo models that stays up, for a look in the browser."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from host import ROOT, HostError

sys.path.append(str(ROOT / "demo" / "runs"))

from demo_host import demo_host


def main() -> int:
    """Serves until Ctrl-C or a termination signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    port = int(os.environ.get("PORT", "8188"))
    parser.add_argument("--port", type=int, default=port, help="port of 127.0.0.1 (%(default)s, or the variable PORT)")
    arguments = parser.parse_args()
    # So that a plain `kill` leaves through the with statement, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with demo_host(ROOT / "out" / "serve", port=arguments.port) as host:
            print(f"ComfyUI is at {host.url}; the workflow is under Templates. Ctrl-C ends it.", flush=True)
            host.join()
    except KeyboardInterrupt:
        return 0
    except (HostError, OSError) as error:
        print(f"serve failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

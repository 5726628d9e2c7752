"""Two Ray nodes on 127.0.0.1 behind a token, in a process of their own that ends them with itself.

python ray_nodes.py NODE_ENVIRONMENT(JSON)... ; prints the address, then obeys lines: "remove N", "add JSON"
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from bootstrap import ROOT
from ray.cluster_utils import Cluster

sys.path.append(str(ROOT / "tools"))

from host_process import free_port

MEMORY = 80 << 20
TRIES = 3


def add(cluster: Cluster, **options: Any) -> Any:
    """A node more. Ray gives a node 30 seconds to start, which a busy machine may exceed."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(Exception):
            return cluster.add_node(**options)
    return cluster.add_node(**options)


def main(environments: list[str]) -> None:
    first, *others = (json.loads(each) for each in environments)
    options = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster()
    try:
        # Its usual port may be that of another cluster on this machine, even though this one has no dashboard.
        nodes = [add(cluster, **options, env_vars=first, dashboard_port=free_port())]
        nodes += [add(cluster, **options, env_vars=each) for each in others]
        print(cluster.address, flush=True)
        for line in sys.stdin:
            what, _, rest = line.strip().partition(" ")
            if what == "remove":
                cluster.remove_node(nodes[int(rest)], allow_graceful=False)
                cluster.wait_for_nodes(timeout=120)  # Ray counts it for a while, and the next run waits for its worker
            else:
                nodes.append(add(cluster, **options, env_vars=json.loads(rest)))
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])

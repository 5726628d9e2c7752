"""Two Ray nodes on 127.0.0.1 behind a token, in a process of their own that ends them with itself.

python ray_nodes.py NODE_ENVIRONMENT(JSON)... ; prints the address, then obeys lines: "remove N", "add JSON"
"""

from __future__ import annotations

import json
import socket
import sys

from ray.cluster_utils import Cluster

MEMORY = 80 << 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(environments: list[str]) -> None:
    first, *others = (json.loads(each) for each in environments)
    options = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    # Its usual port may be that of another cluster on this machine, even though this one has no dashboard.
    head = {**options, "env_vars": first, "dashboard_port": free_port()}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.head_node]
        nodes += [cluster.add_node(**options, env_vars=each) for each in others]
        print(cluster.address, flush=True)
        for line in sys.stdin:
            what, _, rest = line.strip().partition(" ")
            if what == "remove":
                cluster.remove_node(nodes[int(rest)], allow_graceful=False)
            else:
                nodes.append(cluster.add_node(**options, env_vars=json.loads(rest)))
            print("done", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])

"""Methods without their nodes: `kernels` pure torch, `patches` their binding to the host, `models` side networks."""

"""Methods without their nodes: `kernels` is pure torch, `patches` binds kernels to the host, `models` has side networks."""

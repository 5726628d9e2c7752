"""Methods without their nodes: `kernels` pure torch, `patches` their binding to ComfyUI, `models` side networks."""

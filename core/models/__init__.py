"""Networks beside the diffusion model, and the files they come from."""

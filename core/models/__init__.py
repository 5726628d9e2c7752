"""Networks beside the diffusion model."""

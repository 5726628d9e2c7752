"""Side networks, their checkpoints and loaders."""

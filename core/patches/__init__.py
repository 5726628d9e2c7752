"""The thin layer between the kernels and ComfyUI's ModelPatcher."""

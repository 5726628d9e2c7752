"""What binds the methods to ComfyUI's ModelPatcher and sampling, written once for all of them."""

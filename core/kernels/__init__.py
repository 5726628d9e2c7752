"""Pure tensor functions; they import torch only and hold no state."""

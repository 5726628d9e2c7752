"""Training of the demo world's models. `make world-train` runs it; `README.md` says how it is resumed."""

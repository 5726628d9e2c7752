"""The model families whose self-attention a handler can be put into: one table, one adapter for each kind."""

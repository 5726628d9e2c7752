"""The rows of a table on the workers of a Ray cluster, each worker with a ComfyUI of its own.

`command` ties it together. On the driver: `connection`, `workers`, `driver`, and `results` or `objects` for what is kept.
On a worker: `actor`, `host` with its `guard`, `fingerprint`, and `attempt` for one row. Only `connection` and `workers`
import Ray.
"""

"""The rows of a table on the workers of a Ray cluster, each worker with a ComfyUI of its own.

`command` ties it together. On the driver: `connection`, `fleet`, `driver`, and what is kept in `results` or `objects`.
On a worker: `actor`, `host` with its `guard`, `fingerprint`, and `places` for the files of an attempt. `workers` makes
actors of workers; it and `connection` alone know Ray, and import it only when a cluster is asked for.
"""

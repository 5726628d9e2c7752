"""A Ray cluster to work on: one of this machine alone, or one that runs already and lets in none without a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OBJECT_STORE = 80 << 20  # only records pass through it
SECONDS = 20.0
# What workers import; Ray sends it to them.
TOOLS = Path(__file__).resolve().parent.parent
LOCAL, AUTO = "local", "auto"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
MISSING = "Rows on a cluster need Ray: pip install 'ray[default]>=2.52' (it must be the same version on every machine)."
GAVE_UP = 2
STARTS = 3


class ClusterError(RuntimeError):
    """There is no cluster to work on, or it cannot do the work."""


@dataclass(frozen=True)
class Cluster:
    """A cluster this process is connected to.

    Attributes:
        node: id of the node that this process is on.
        dashboard: its address, if there is one, and what it takes to get in.
    """

    address: str
    node: str
    dashboard: str


@contextlib.contextmanager
def connected(where: str, insecure: bool) -> Iterator[Cluster]:
    """A cluster, for a while.

    Args:
        where: `local` makes one of this machine, `auto` is the one this machine is a part of, else HOST:PORT.
        insecure: take one that lets in everybody.

    Raises: ClusterError in one sentence, within half a minute.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.ExitStack() as stack:
        if where == LOCAL:
            options: dict[str, Any] = stack.enter_context(_private())
        else:
            options = {"address": where}
            if where != AUTO:
                _look(where, insecure)
                if where.rpartition(":")[0] in LOOPBACK:
                    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        options["runtime_env"] = {"working_dir": str(TOOLS), "excludes": ["**/__pycache__"]}
        ray = _ray()
        # A cluster of this machine takes longer to start than another one to answer.
        seconds, tries = (10 * SECONDS, STARTS) if where == LOCAL else (SECONDS, 1)
        context = _within(seconds, ray, options, where, tries)
        stack.callback(ray.shutdown)
        address = ray.get_runtime_context().gcs_address
        if where == AUTO:
            _look(address, insecure)
        dashboard = f"http://{context.dashboard_url}" if context.dashboard_url else "none"
        if where == LOCAL:
            dashboard += f" (it asks for the token in {os.environ['RAY_AUTH_TOKEN_PATH']})"
        yield Cluster(address, ray.get_runtime_context().get_node_id(), dashboard)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ClusterError(MISSING) from error
    version = tuple(int(part) for part in ray.__version__.split(".")[:2])
    if version < (2, 52):
        raise ClusterError(f"Ray {ray.__version__} is installed. {MISSING}")
    return ray


@contextlib.contextmanager
def _private() -> Iterator[dict[str, Any]]:
    """Options of a cluster that only this user on this machine can reach."""
    # Short: the paths of sockets in it may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    try:
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            os.environ.pop(name, None)
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        # Else Ray listens on all interfaces on Linux, whatever address it is given.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        yield {
            "address": "local",
            "dashboard_host": "127.0.0.1",
            "object_store_memory": OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": str(folder),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(address: str, insecure: bool) -> None:
    """Asks the cluster's head a question without a token, which it must not answer.

    Raises: ClusterError.
    """
    _ray()
    import grpc

    if os.environ.get("RAY_USE_TLS") == "1":
        return  # both sides show certificates
    unreachable = f"No Ray cluster answers at {address}; start one with `ray start --head`, or see its port (6379)."
    try:
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=SECONDS)
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            _check_token(address)
            return
        raise ClusterError(f"{unreachable} ({error.details()})") from error
    except ValueError as error:
        raise ClusterError(f"{address} is no address; HOST:PORT is needed.") from error
    if not insecure:
        raise ClusterError(
            f"The Ray cluster at {address} lets in everybody who reaches it, to run any program. Start it with "
            "RAY_AUTH_MODE=token (see docs/scale.md), or add --insecure where the network keeps others out."
        )


def _check_token(address: str) -> None:
    import grpc

    wanted = "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on its machines."
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and path.is_file():
        token = path.read_text(encoding="utf-8").strip()
    if not token or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        raise ClusterError(f"The Ray cluster at {address} asks for a token. {wanted}")
    os.environ["RAY_AUTH_MODE"] = "token"
    try:
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
            ask(b"", timeout=SECONDS, metadata=[("authorization", f"Bearer {token}")])
    except grpc.RpcError as error:
        raise ClusterError(f"The Ray cluster at {address} refuses the token. {wanted}") from error


def _within(seconds: float, ray: Any, options: dict[str, Any], where: str, tries: int = 1) -> Any:
    """Connects, or ends the program: some failures would take more than ten minutes, in silence, and hear no signal."""

    def give_up() -> None:
        print(f"Ray did not connect to {where} within {seconds:.0f} s; see docs/scale.md.", file=sys.stderr, flush=True)
        os._exit(GAVE_UP)

    watch = threading.Timer(seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        for number in range(tries):
            try:
                return ray.init(log_to_driver=False, logging_level="CRITICAL", **options)
            except Exception as error:
                # A busy machine is too slow for a limit that Ray sets itself at its start.
                ray.shutdown()
                if number + 1 == tries:
                    text = str(error).strip().splitlines() or [type(error).__name__]
                    raise ClusterError(f"Ray cannot use {where}: {text[0]}") from error
    finally:
        watch.cancel()

"""What options of the command line may hold."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

HERE = ("localhost", "::1")


def at_least(least: float, kind: type[int] | type[float] = float) -> Callable[[str], float]:
    """A finite number of a kind that is not smaller, for argparse."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least <= number < math.inf:
            whole = "whole " if kind is int else ""
            raise argparse.ArgumentTypeError(f"{text}: a {whole}number from {least} is needed")
        return number

    return parse


def address(text: str) -> str:
    """The URL of a host, for argparse."""
    url = text if "://" in text else f"http://{text}"
    if not _parts(url):
        raise argparse.ArgumentTypeError(f"{text}: ADDRESS:PORT is needed, such as 127.0.0.1:8188")
    return url.rstrip("/")


def distinct(urls: Iterable[str]) -> list[str]:
    """Each host once, though this machine has several names."""
    return list({_parts(url): url for url in reversed(list(urls))}.values())[::-1]


def _parts(url: str) -> tuple[str, str, int, str] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    host = "127.0.0.1" if parts.hostname in HERE else parts.hostname
    return parts.scheme, host, port or (443 if parts.scheme == "https" else 80), parts.path.rstrip("/")

"""One pair of Ray nodes for all tests that need it, each with a base directory of its own but equal content."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray_runs import Base, Nodes


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    return [Base(tmp_path_factory.mktemp("base") / name) for name in ("first", "second")]


@pytest.fixture(scope="session")
def nodes(bases: list[Base]) -> Iterator[Nodes]:
    with Nodes([{"STUB_BASE": str(base.folder)} for base in bases]) as running:
        yield running

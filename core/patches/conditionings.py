"""Names for the conditionings of a sampling run that are the same in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .attention import Chunk

Cond = dict[str, Any]  # one conditioning entry in ComfyUI's form
Place = tuple[str, int]  # role of a conditioning, and its number among those of that role


class Conditionings:
    """The conditionings of a run by their place in the prompts, because each run gives them new uuids.

    Args:
        prompts: the sampler's conditionings by their role: "positive", "negative", ...
    """

    def __init__(self, prompts: Mapping[str, Sequence[Cond]]) -> None:
        self._places: dict[object, Place] = {
            entry["uuid"]: (role, number) for role, entries in prompts.items() for number, entry in enumerate(entries)
        }
        self._uuids: dict[object, object] = {place: uuid for uuid, place in self._places.items()}

    def roles(self, conds: Sequence[list[Cond] | None]) -> list[str | None]:
        """The roles of the conditionings of an evaluation; None for one that is off or was made for this call."""
        # The first entry tells the role: what ComfyUI adds comes later.
        places = [self._places.get(entries[0]["uuid"]) if entries else None for entries in conds]
        return [None if place is None else place[0] for place in places]

    def negatives(self, conds: Sequence[list[Cond] | None]) -> frozenset[int]:
        """The numbers of the conditionings of an evaluation that guidance leads away from."""
        # One without a role is judged by its place, as ComfyUI orders them.
        roles = enumerate(self.roles(conds))
        return frozenset(number for number, role in roles if (number > 0 if role is None else "negative" in role))

    def by_place(self, chunk: Chunk) -> Chunk:
        """A chunk with the place of its conditioning instead of the uuid, which is the same in every run."""
        return chunk[0], self._places.get(chunk[1], chunk[1])

    def by_uuid(self, chunk: Chunk) -> Chunk:
        """A chunk with the uuid that its conditioning has in this run instead of the place."""
        return chunk[0], self._uuids.get(chunk[1], chunk[1])

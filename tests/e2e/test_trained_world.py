"""The short form of the claims: each method does on the trained world what it promises, by the published templates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from claims import deadiff, leffa, p3s, point_mask, refdrop, refine
from claims.reading import Reader
from refattention_demo.world import record, truth
from world.config import HELD_OUT
from world_host import WorldHost

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def host() -> Iterator[WorldHost]:
    with WorldHost() as running:
        yield running


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


def test_refdrop_brings_the_reference_and_not_a_foreign_one(host: WorldHost, reader: Reader) -> None:
    chosen = refdrop.cases(5)
    files = [host.put_picture(f"refdrop_{number}", case.reference) for number, case in enumerate(chosen)]

    def distance(strength: float, shift: int = 0) -> float:
        found = []
        for number, case in enumerate(chosen):
            graph = refdrop.workflow(case, number, strength, files[(number + shift) % len(files)])
            picture = host.saved(graph)[0]
            found.append(refdrop.measure(reader, picture, case)["distance"])
        return float(np.mean(found))

    own = distance(0.4)
    assert own < distance(0.0) - 8
    assert own < distance(0.4, shift=1) - 4


def test_points_choose_one_of_two_look_alikes(host: WorldHost) -> None:
    for number in range(3):
        shown = record.look_alikes(np.random.default_rng(HELD_OUT + number))
        mask = point_mask.masked(host, host.put_picture(f"alike_{number}", shown), shown, True)
        right, wrong = (point_mask.overlap(mask, truth.subject(shown, figure)) for figure in (0, 1))
        assert right > 0.5 and wrong < 0.1


def test_p3s_paints_the_subject_that_was_pointed_at(host: WorldHost) -> None:
    chosen = p3s.cases(5)
    files = [host.put_picture(f"p3s_{number}", shown) for number, shown in enumerate(chosen)]
    gained = [
        p3s.nearer(host, shown, files[number], number, 1.0) - p3s.nearer(host, shown, files[number], number, 0.0)
        for number, shown in enumerate(chosen)
    ]
    assert np.mean(gained) > 5


def test_deadiff_takes_the_style_and_keeps_the_text(host: WorldHost) -> None:
    painter = deadiff.Painter(host, 10)
    styled, plain = painter.measured(1.0), painter.measured(0.0)
    assert styled["style"].mean() > plain["style"].mean() + 0.05
    assert styled["species"].mean() > plain["species"].mean() - 0.2


def test_leffa_puts_the_garment_on(host: WorldHost) -> None:
    found = leffa.FittingRoom(host, leffa.cases(3)).measured("virtual_tryon.pth")
    assert (found["wanted"] > 0.5).all() and (found["own"] < 0.5).all()


def test_refine_finds_the_part_and_repairs_it(host: WorldHost, reader: Reader) -> None:
    chosen = refine.cases(4)
    for number, case in enumerate(chosen):
        refine.put_pictures(host, number, case)
    found = [refine.found(host, case, number, *refine.BEST) for number, case in enumerate(chosen)]
    assert np.mean(found) > 0.25
    without, repaired = (
        [
            refine.measured(host, refine.by_part(case, n, strength), case, reader)["error"]
            for n, case in enumerate(chosen)
        ]
        for strength in (0.0, 0.6)
    )
    assert np.mean(without) > np.mean(repaired)

"""Which records make up a step."""

from __future__ import annotations

from collections import Counter

import pytest
from training.config import Train
from training.loop import Share
from training.plan import Plan


def test_every_record_once_before_any_again() -> None:
    plan = Plan([range(7)], [1], [], 3, seed=1)
    drawn = [record for step in range(7) for record in plan.records(step)]
    for epoch in range(3):
        assert sorted(drawn[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert drawn[:7] != drawn[7:14]
    assert drawn == [record for step in range(7) for record in Plan([range(7)], [1], [], 3, seed=1).records(step)]
    assert drawn != [record for step in range(7) for record in Plan([range(7)], [1], [], 3, seed=2).records(step)]


def test_groups_are_mixed_in_their_shares() -> None:
    groups = [[0, 1, 2], [10, 11], [20]]
    drawn = [record // 10 for step in range(10) for record in Plan(groups, [1, 1, 1], [], 3, 0).records(step)]
    assert Counter(drawn) == {0: 10, 1: 10, 2: 10}
    drawn = [record for step in range(6) for record in Plan(groups, [2, 0, 1], [], 3, 0).records(step)]
    assert Counter(record // 10 for record in drawn) == {0: 12, 2: 6}
    assert Counter(drawn)[0] == Counter(drawn)[1] == Counter(drawn)[2] == 4


def test_a_batch_has_one_bucket_and_no_record_is_left_out() -> None:
    buckets = ["a", "b", "a", "a", "b", "c"]
    plan = Plan([], [], buckets, 2, seed=3)
    steps = [plan.records(step) for step in range(4)]
    assert all(len({buckets[record] for record in step}) == 1 and len(step) == 2 for step in steps)
    assert {record for step in steps for record in step} == set(range(6))


@pytest.mark.parametrize(("batch", "accumulate", "processes"), [(4, 1, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2), (1, 1, 4)])
def test_the_samples_of_a_step_do_not_depend_on_how_they_are_spread(
    batch: int, accumulate: int, processes: int
) -> None:
    plan, train = Plan([range(9)], [1], [], 4, 5), Train(steps=3, batch_size=batch, accumulate=accumulate)
    shares = [list(Share(plan, train, 1, process, processes)) for process in range(processes)]
    assert all(len(keys) == batch for share in shares for keys in share)
    assert all(len(share) == len(Share(plan, train, 1, 0, processes)) for share in shares)
    for number, step in enumerate((1, 2)):
        batches = [share[number * accumulate + part] for share in shares for part in range(accumulate)]
        assert sorted(key for keys in batches for key in keys) == sorted(plan.keys(step))

"""The claims table: intervals are those of the mean, failing rows stay, and the templates have what the runs set."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from claims import leffa, p3s_trained, plots, point_mask, rank_one, refdrop, report, rows, several
from claims.__main__ import BASE, GROUPS, JOBS
from claims.report import Results
from claims.rows import Curve, Findings, Plot, Row
from PIL import Image
from refattention_demo.world import truth
from world_host import inputs

from demo_host import load_workflow
from host import ROOT


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    samples = rng.exponential(1.0, (200, 40))
    covered = [found.low <= 1.0 <= found.high for found in map(rows.estimate, samples)]
    assert 0.86 < np.mean(covered) < 0.99


def test_a_claim_holds_only_with_its_whole_interval() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, 32)
    assert rows.above("P", "c", "m", noise + 2).holds
    assert not rows.above("P", "c", "m", noise - noise.mean() + 0.1).holds
    assert not rows.above("P", "c", "m", -noise - 2).holds


def test_intervals_of_clusters_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=(400, 6, 1)) + rng.normal(size=(400, 6, 4)) / 4
    found = [rows.estimate(sample) for sample in samples]
    assert 0.92 < np.mean([each.low <= 0 <= each.high for each in found]) < 0.98
    assert found[0].count == 24 and found[0].mean == pytest.approx(samples[0].mean())


def test_a_claim_below_a_limit_holds_only_with_its_whole_interval() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 32)
    assert rows.below("P", "c", "m", noise - 2, 0.0).holds
    assert rows.below("P", "c", "m", noise - noise.mean() - 0.1, 0.0).holds is False
    assert rows.below("P", "c", "m", [0.0, 0.0], 1.0).holds is None


def test_slopes_are_those_of_a_fitted_line() -> None:
    rng = np.random.default_rng(0)
    at, values = [-0.3, 0.0, 0.2, 0.6], rng.normal(size=(5, 4))
    expected = [np.polyfit(at, series, 1)[0] for series in values]
    np.testing.assert_allclose(rows.slopes(at, values), expected)
    np.testing.assert_allclose(rows.slopes(at, values[None]), [expected])


def test_the_table_keeps_rows_that_fail_or_were_not_measured(tmp_path: Path) -> None:
    curve = Curve("own", [0.0, 0.4], [rows.estimate([0.1, 0.2]), rows.estimate([0.3, 0.5])])
    kept = [
        rows.above("RefDrop", "fails", "m", [-1.5] * 32),
        rows.above("RefDrop", "few", "m", [1.0, 2.0]),
        Row("RefDrop", "open", "", None, None, "no model"),
    ]
    found = Findings("RefDrop", kept, [Plot("c", "identity", [curve])])
    text = report.write(tmp_path, Results({"species": 0.9}, {"a": found}, {"species": 0.99}), ["a", "b"]).read_text(
        encoding="utf-8"
    )
    assert "| RefDrop | fails | m | 32 | -1.5 [-1.5, -1.5] | no |" in text
    assert "not measured; too few cases" in text
    assert '--only b"' in text, "groups without results are named"
    assert "not measured; no model" in text and "species 90 % (99 %)" in text
    assert "**0 claims hold, 1 do not; not measured: 2.**" in text
    with Image.open(tmp_path / "claims" / "refdrop.png") as picture:
        assert picture.size == plots.PANEL and len(np.unique(np.asarray(picture))) > 3


def test_groups_that_are_not_measured_again_stay_as_they_are(tmp_path: Path) -> None:
    curve = Curve("own", [0.0, 0.4], [rows.estimate([0.1, 0.2]), rows.estimate([0.3, 0.5])])
    kept = [rows.above("P3S", "points", "m", np.arange(32.0)), Row("P3S", "open", "", None, None, "no model")]
    first = Results({"species": 0.9}, {name: Findings("P3S", kept, [Plot("t", name, [curve])]) for name in "ab"})
    text = report.write(tmp_path, first, "ab").read_text(encoding="utf-8")
    with Image.open(tmp_path / "claims" / "p3s.png") as picture:
        assert picture.width == 2 * plots.PANEL[0], "the plots of a paper are in one picture"
    again = report.read(tmp_path)
    assert again == first
    again.groups["b"] = Findings("P3S", [rows.above("P3S", "anew", "m", [1.0] * 32)])
    changed = report.write(tmp_path, again, "ab").read_text(encoding="utf-8")
    first_rows, changed_rows = ([line for line in found.splitlines() if "| P3S" in line] for found in (text, changed))
    assert changed_rows[:2] == first_rows[:2] and len(changed_rows) == 3 and "anew" in changed_rows[2]


def test_the_published_table_is_that_of_the_published_results(tmp_path: Path) -> None:
    docs = ROOT / "docs"
    path = report.write(tmp_path, report.read(docs), [*GROUPS])
    assert path.read_text(encoding="utf-8") == (docs / "CLAIMS.md").read_text(encoding="utf-8")


def test_a_case_asks_for_what_the_reference_does_not_show() -> None:
    for case in refdrop.cases(20):
        assert case.wanted.figures[0].character == case.reference.figures[0].character
        assert case.wanted.scene != case.reference.scene
        who = case.reference.figures[0].character
        assert who.species in case.prompt and "shirt" not in case.prompt and f" {who.body} " not in f" {case.prompt} "


def test_the_templates_have_what_the_runs_set() -> None:
    case = refdrop.cases(1)[0]
    graph = refdrop.workflow(case, 3, 0.4, "x.png")
    assert inputs(graph, "RefDropApply")["strength"] == 0.4
    assert inputs(graph, "KSampler")["seed"] == 3
    assert inputs(graph, "CLIPTextEncode", "Positive prompt")["text"] == case.prompt
    published = load_workflow("refdrop")
    assert graph.keys() == published.keys(), "it is the template itself that runs"
    with pytest.raises(KeyError, match="2 nodes"):
        inputs({**published, "x": published["9"]}, "RefDropApply")


def test_every_group_is_in_one_job() -> None:
    assert sorted(name for job in JOBS for name in job) == sorted([BASE, *GROUPS])


@pytest.mark.parametrize("numbers", [[3], [3, 4], [3, 5, 4, 6]])
def test_several_cases_run_in_one_template_in_their_order(numbers: list[int]) -> None:
    graph = leffa.flowing(numbers, "model.safetensors")

    def files(node: str) -> list[str]:
        given = graph[node]["inputs"]
        if graph[node]["class_type"] == "LoadImage":
            return [given["image"]]
        assert graph[node]["class_type"] == "ImageBatch"
        return [file for name in ("image1", "image2") for file in files(given[name][0])]

    wearing = inputs(graph, "LeffaTryOn")
    found = {
        "person": files(wearing["image"][0]),
        "garment": files(wearing["garment_image"][0]),
        "densepose": files(inputs(graph, "LeffaBodyMap")["densepose"][0]),
        "parsing": files(inputs(graph, "LeffaMask")["parsing"][0]),
    }
    assert found == {role: [f"{role}_tryon_{number}.png" for number in numbers] for role in found}


def test_all_cases_are_in_one_run_each() -> None:
    for count in (1, several.AT_ONCE, 2 * several.AT_ONCE + 3):
        assert [number for numbers in several.groups(count) for number in numbers] == [*range(count)]


def test_concatenation_is_the_interpolation_that_the_claim_is_about() -> None:
    heads, tokens, size = 2, 5, 3
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, count * tokens, heads * size)) for count in (1, 2, 2))
    wanted = np.zeros_like(q)
    for sample, head in np.ndindex(2, heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[sample, :, part] @ k[sample, :, part].T / np.sqrt(size)
        wanted[sample, :, part] = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) @ v[sample, :, part]
    lengths = []

    def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        lengths.append(k.shape[1])
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    found = rank_one.interpolated(attention, *map(torch.from_numpy, (q, k, v)), heads)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-10)
    assert lengths == [tokens, tokens], "it is put together from two attentions"


def test_a_subject_is_learnt_from_pictures_of_which_one_has_its_look_alike() -> None:
    for case in p3s_trained.cases(10):
        who = case.wanted.figures[0].character
        assert {view.figures[0].character for view in case.views} == {who}
        assert [len(view.figures) for view in case.views] == [2, 1, 1, 1]
        assert case.views[0].figures[1].character.shirt.colour != who.shirt.colour
        assert case.prompt.startswith(f"a sks {who.species}") and who.shirt.colour not in case.prompt.split()

    class Host:
        def put_picture(self, name: str, shown: object) -> str:
            return f"{name}.png"

        def saved(self, graph: dict) -> dict:
            return graph

    graph = p3s_trained.Subject(Host(), 3, case).painted({"rngr": False}, strength=0.5)
    train = inputs(graph, "P3STrain")
    pointed = graph[train["images"][0]]["inputs"]
    positive, negative = (json.loads(pointed[name]) for name in ("positive_coords", "negative_coords"))
    assert train["rngr"] is False and train["masks"][0] == train["images"][0]
    assert inputs(graph, "P3SInject")["strength"] == 0.5
    for number, view in enumerate(case.views):
        for figure, points in enumerate((positive, negative)):
            assert len(points[number]) == (figure < len(view.figures))
            for point in points[number]:
                assert truth.shirt(view, figure)[point["y"], point["x"]]


def test_look_alikes_who_stand_side_by_side_touch_and_show_their_faces() -> None:
    for apart in point_mask.look_alikes(8):
        shown = point_mask.side_by_side(apart)
        assert [each.character for each in shown.figures] == [each.character for each in apart.figures]
        both = np.logical_or(*(truth.subject(shown, figure) for figure in range(2)))
        assert cv2.connectedComponents(both.astype(np.uint8))[0] == 2, "the scene and one region"
        for figure in range(2):
            x, y = point_mask.inside(point_mask.face(shown, figure))
            assert truth.subject(shown, figure)[y, x]


def test_overlap_is_intersection_over_union() -> None:
    first, second = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    first[:2], second[1:3] = True, True
    assert point_mask.overlap(first, second) == pytest.approx(4 / 12)
    assert point_mask.overlap(~first & first, second) == 0


def test_colour_distance_sees_only_its_box() -> None:
    rng = np.random.default_rng(0)
    first = rng.uniform(size=(128, 128, 3)).astype(np.float32)
    second = first.copy()
    second[:60] = 0
    assert refdrop.distance(first, second, refdrop.SHIRT_BOX) == 0
    assert refdrop.distance(first, second, refdrop.FACE_BOX) > 20

"""Configurations: what a file and --set make of the settings, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.sd
import pytest
from training.config import ConfigError, build, read


@dataclass(frozen=True)
class Data:
    root: str


@dataclass(frozen=True)
class Method:
    weight: float = 0.5
    drops: tuple[float, ...] = (0.1, 0.2)
    leffa: bool = False


def settings(table: dict[str, Any]) -> Any:
    return build({"output": "out", "data": {"root": "r"}, **table}, Path("/here"), Data, Method, {"warmup": 7})


def test_values_come_from_defaults_then_file_then_set(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('output = "out"\n[data]\nroot = "r"\n[train]\nsteps = 5\nlearning_rate = 1\n[method]\nweight = 1\n')
    table = read(file, ["train.steps=9", "method.drops=[0, 0.3]", "common_name=a b", "data.root=other"])
    assert table.pop("common_name") == "a b"
    config = build(table, tmp_path, Data, Method, {"warmup": 7})
    (phase,) = config.phases
    assert (phase.train.steps, phase.train.learning_rate, phase.train.warmup) == (9, 1.0, 7)
    assert phase.method == Method(1.0, (0.0, 0.3))
    assert config.data.root == "other" and config.output == tmp_path / "out"


def test_phases_change_what_they_name() -> None:
    config = settings({"train": {"steps": 3}, "phase": [{"height": 64}, {"steps": 2, "leffa": True}]})
    first, second = config.phases
    assert (first.train.steps, first.train.height, first.method.leffa) == (3, 64, False)
    assert (second.train.steps, second.train.height, second.method.leffa) == (2, 512, True)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"train": {"step": 1}}, r"\[train\] has no 'step'\. Did you mean 'steps'\?"),
        ({"colour": 1}, "The configuration has no 'colour'. It knows output"),
        ({"phase": [{"weigth": 1}]}, r"\[\[phase\]\] 1: \[method\] has no 'weigth'\. Did you mean 'weight'"),
        ({"data": {}}, r"\[data\] needs 'root'"),
        ({"train": {"steps": "many"}}, r"\[train\] steps is 'many', but must be a whole number"),
        ({"train": {"steps": True}}, "steps is True, but must be a whole number"),
        ({"method": {"drops": 0.1}}, "drops is 0.1, but must be a list"),
        ({"train": {"height": 100}}, "height is 100, but must be a multiple of 8"),
        ({"train": {"steps": 0}}, "steps is 0, but must be at least 1"),
        ({"train": {"precision": "half"}}, "precision is 'half', but must be no, bf16 or fp16"),
        ({"save": {"dtype": "int8"}}, "dtype is 'int8', but must be"),
        ({"train": 5}, r"\[train\] is 5, but must be a table"),
        ({"phase": {"steps": 1}}, r"phase must be a list of tables. Write \[\[phase\]\]"),
        ({"phase": [5]}, r"\[\[phase\]\] 1 is 5, but must be a table"),
        ({"phase": []}, "phase must be a list of tables"),
        ({"save": {"keep": -1}}, r"\[save\] keep is -1, but must be at least 0"),
        ({"validate": {"steps": 0}}, r"\[validate\] steps is 0, but must be at least 1"),
        ({"train": {"learning_rate": float("nan")}}, r"\[train\] learning_rate is nan, but must be at least 0"),
        ({"train": {"workers": -1}}, r"\[train\] workers is -1, but must be at least 0"),
    ],
)
def test_what_does_not_fit_is_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(table)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml cannot be read as TOML"):
        read(tmp_path / "missing.toml", [])
    (tmp_path / "broken.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"broken\.toml cannot be read as TOML"):
        read(tmp_path / "broken.toml", [])
    (tmp_path / "good.toml").write_bytes("\ufeffa = 1".encode())  # as Windows' Notepad may write it
    with pytest.raises(ConfigError, match="--set steps: write KEY=VALUE"):
        read(tmp_path / "good.toml", ["steps"])
    with pytest.raises(ConfigError, match="'a' is no table"):
        read(tmp_path / "good.toml", ["a.b=1"])


def test_a_checkpoint_without_text_encoder_or_vae() -> None:
    from training.models import conditioning, load_vae

    with pytest.raises(ConfigError, match=r"The checkpoint has no VAE\. Name one as models\.vae"):
        load_vae(settings({}), comfy.sd.VAE(sd={}))
    with pytest.raises(ConfigError, match="has no text encoder"):
        conditioning(None, "a dog")

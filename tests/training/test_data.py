"""The look at a data set before training: everything that is wrong is named, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from training.data import CACHE, DataError, Looked, require_good


@dataclass(frozen=True)
class Record:
    image: str
    mask: str


def picture(path: Path, size: tuple[int, int] = (24, 20), seed: int = 0) -> None:
    pixels = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(path)


def rule(record: Record, files: Mapping[str, Looked]) -> Iterable[str]:
    if files["image"].size != files["mask"].size:
        yield f"mask {files['mask'].size}"


def look(folder: Path, records: list[Record], allow_bad: float = 0.0) -> Any:
    return require_good(
        records, lambda r: {"image": folder / r.image, "mask": folder / r.mask}, rule, folder / "out", allow_bad
    )


@pytest.fixture
def thousand(tmp_path: Path) -> list[Record]:
    """1,000 pictures, of which one is cut off and 2 % are missing, and one mask of another size."""
    picture(tmp_path / "mask.png")
    picture(tmp_path / "wide.png", (30, 20))
    content = []
    for seed in range(3):
        picture(tmp_path / "one.jpg", seed=seed)
        content.append((tmp_path / "one.jpg").read_bytes())
    records = []
    for number in range(1000):
        name = f"{number:04}.jpg"
        whole = content[number % 3]
        if number == 500:
            whole = whole[: len(whole) * 2 // 3]
        if number % 50:
            (tmp_path / name).write_bytes(whole)
        records.append(Record(name, "wide.png" if number == 7 else "mask.png"))
    return records


def test_all_that_is_wrong_among_a_thousand_is_listed(thousand: list[Record], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        look(tmp_path, thousand)
    text = str(caught.value)
    # 0500 is missing already, as every fiftieth.
    assert "21 of 1000 records are bad (20 missing, 1 wrong)" in text
    assert all(f"{number:04}.jpg" in text for number in range(0, 1000, 50))
    assert "record 8: mask (30, 20)" in text
    assert (tmp_path / "out" / "bad_data.txt").read_text().count("\n") == 21 + 2
    (tmp_path / "0501.jpg").write_bytes((tmp_path / "0501.jpg").read_bytes()[:400])
    with pytest.raises(DataError, match=r"22 of 1000 records are bad \(20 missing, 1 unreadable, 1 wrong\)") as caught:
        look(tmp_path, thousand)
    assert "0501.jpg: " in str(caught.value).partition("unreadable:")[2].partition("wrong:")[0]


def test_a_part_may_be_left_out(thousand: list[Record], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, digest = look(tmp_path, thousand, allow_bad=0.03)
    assert len(good) == 979 and not any(record.mask == "wide.png" for record in good)
    assert "They are left out" in capsys.readouterr().out
    with pytest.raises(DataError):
        look(tmp_path, thousand, allow_bad=0.02)
    again, same = look(tmp_path, thousand, allow_bad=0.03)
    assert (again, same) == (good, digest)
    picture(tmp_path / "0001.jpg", seed=9)
    assert look(tmp_path, thousand, allow_bad=0.03)[1] != digest


def test_a_photograph_on_its_side_has_the_size_at_which_it_is_seen(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.jpg", exif=exif)
    picture(tmp_path / "mask.png", (20, 30))
    assert look(tmp_path, [Record("photo.jpg", "mask.png")])[0]


def test_sixteen_bits_are_refused_because_pillow_cuts_them_off(tmp_path: Path) -> None:
    Image.fromarray(numpy.full((20, 24), 40000, numpy.uint16)).save(tmp_path / "deep.png")
    picture(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"deep\.png: it has more than 8 bits a channel"):
        look(tmp_path, [Record("deep.png", "mask.png")])


def test_other_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match="1 unreadable"):
        look(tmp_path, [Record("text.jpg", "a.png")], allow_bad=1.0)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match="1 unreadable"):
        look(tmp_path, [Record("a.png", "broken.json")])
    with pytest.raises(DataError, match="holds no records"):
        look(tmp_path, [])


@pytest.mark.parametrize("text", ["[1, 2]", '{"mine": 3}', '{"mine": {"x": 1}}', "no JSON"])
def test_a_file_of_the_user_is_not_written_over(tmp_path: Path, text: str) -> None:
    theirs = tmp_path / "out" / CACHE
    theirs.parent.mkdir()
    theirs.write_text(text)
    with pytest.raises(DataError, match="was not made by a training"):
        look(tmp_path, [Record("image.png", "mask.png")])
    assert theirs.read_text() == text

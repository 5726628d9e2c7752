"""The pack as a user gets it: the archive that `comfy node pack` makes of the last commit, unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from bootstrap import ROOT


def unpack_into(folder: Path, scratch: Path) -> None:
    """Makes `folder` hold the files of the archive; `scratch` is an empty folder for what is left over."""
    clone = scratch / "clone"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", ROOT.as_uri(), str(clone)], check=True)
    surroundings = {**os.environ, "HOME": str(scratch), "XDG_CONFIG_HOME": str(scratch), "DO_NOT_TRACK": "1"}
    command = [str(Path(sys.executable).with_name("comfy")), "--skip-prompt", "node", "pack"]
    subprocess.run(command, cwd=clone, env=surroundings, check=True, capture_output=True)
    with zipfile.ZipFile(clone / "node.zip") as archive:
        archive.extractall(folder)

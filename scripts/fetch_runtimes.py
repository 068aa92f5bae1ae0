"""Set-up for the tests: other versions of transformers, each in a folder of its own below ``.runtimes``.

They share the virtual environment's torch and the rest of its packages: a process started with such a
folder in PYTHONPATH runs that version (tests/reference/test_transformers_versions.py). Nothing is
fetched that is there.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
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


def main() -> None:
    """Put every version in place that this Python can run."""
    RUNTIMES.mkdir(exist_ok=True)
    for version in VERSIONS:
        reason = version.unavailable()
        if reason is not None:
            sys.stderr.write(f"{reason}\n")
        elif not version.folder.exists():
            sys.stderr.write(f"fetching transformers {version.transformers}\n")
            install(version)


def install(version: Version) -> None:
    """Install into a folder beside and rename, so that what is there is whole."""
    staging = version.folder.with_name(f"{version.folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(staging)]
    subprocess.run([*command, *options, *version.requirements], check=True)
    staging.rename(version.folder)


if __name__ == "__main__":
    main()

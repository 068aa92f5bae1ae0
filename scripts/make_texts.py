"""The built-in texts: Persuasion and Emma out of Debian's ``r-cran-janeaustenr``, compressed into the package.

Each novel is the lines of the package's data as they are, joined by newlines, from its first chapter heading on.
The same package and liblzma give the same bytes.

    apt-get download r-cran-janeaustenr
    python -m scripts.make_texts r-cran-janeaustenr_*.deb
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
import re
from pathlib import Path

from demo.train import r_objects, r_strings, read_rdb

DATA = Path(__file__).resolve().parent.parent / "ctxextend" / "lab" / "data"
TITLES = ("persuasion", "emma")


def novel(lines: list[str]) -> str:
    """A novel from its first chapter heading on, nothing else left out."""
    text = "\n".join(lines)
    first = re.search(r"^chapter (1|i)$", text, re.IGNORECASE | re.MULTILINE)
    if first is None:
        raise ValueError(f"{lines[0]} has no first chapter")
    return text[first.start() :]


def main() -> None:
    """Write both files and print their sizes and checksums."""
    parser = argparse.ArgumentParser(description="Make the built-in texts.")
    parser.add_argument("source", type=Path, help="the .deb, or where it was unpacked")
    parser.add_argument("--output", type=Path, default=DATA, help="default: ctxextend/lab/data")
    options = parser.parse_args()
    vectors = [r_strings(item) for item in r_objects(read_rdb(options.source))]
    novels = {lines[0].strip().lower(): lines for lines in vectors}
    options.output.mkdir(parents=True, exist_ok=True)
    for title in TITLES:
        raw = novel(novels[title]).encode("utf-8")
        packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
        (options.output / f"{title}.txt.xz").write_bytes(packed)
        print(f"{title}: {len(raw)} bytes, {len(packed)} compressed, sha256 {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main()

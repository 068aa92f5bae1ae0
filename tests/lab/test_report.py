"""The report's files, its words and tables, what hostile names can't do, and the page in a real browser."""

from __future__ import annotations

import functools
import html
import http.server
import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ctxextend.errors import MissingExtraError, OutputError, RefusedError
from ctxextend.lab.ledger import NAME, Ledger, name_for
from ctxextend.lab.report import report_page, write_report
from ctxextend.lab.report_figures import Exhibit, at_a_glance, exhibits
from ctxextend.lab.report_folder import require_report_folder
from ctxextend.lab.report_words import pooled, position_bounds, show_perplexity, show_ratio, verdict
from ctxextend.lab.results import Comparison, Evaluation, Point
from ctxextend.tensors.staging import staged_data
from tests.lab import evidence_factory as factory

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
HOSTILE = """x"'><script src=https://evil.example/a.js></script><img src=http://evil.example/p onerror=alert(1)>&amp;"""


class Loads(HTMLParser):
    """Every element, every attribute that could load something, and every text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster", "background"):
                self.loads.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)
            # A style may load; a link to a part of the page is none.
            self.loads += re.findall(r"url\(([^)]*)\)", value or "") if name != "content" else []

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@functools.cache
def page(document: Evaluation | Comparison) -> str:
    return report_page(document, exhibits(document))


def parsed(document: Evaluation | Comparison) -> Loads:
    loads = Loads()
    loads.feed(page(document))
    return loads


def hostile_evaluation() -> Evaluation:
    text = msgspec.structs.replace(factory.TEXTS[0], name=HOSTILE)
    gate = msgspec.structs.replace(factory.evaluation().gates[0], name=HOSTILE, where=HOSTILE)
    spectrum = msgspec.structs.replace(factory.spectrum(factory.YARN), label=HOSTILE)
    return factory.evaluation(
        source=HOSTILE,
        against=HOSTILE,
        method=HOSTILE,
        version=HOSTILE,
        engine=factory.engine(engine=HOSTILE, version=HOSTILE, device=HOSTILE, dtype=HOSTILE),
        texts=(text,),
        gates=(gate,),
        spectrum=(spectrum, factory.spectrum(None)),
        notes=(HOSTILE,),
    )


def hostile_comparison() -> Comparison:
    made = factory.comparison(source=HOSTILE, notes=(HOSTILE,))
    first, *_rest, last = made.candidates
    best = msgspec.structs.replace(made.best[0], method=HOSTILE, reason=HOSTILE)
    candidates = (
        first,
        msgspec.structs.replace(first, method=HOSTILE, factor=2.0),
        msgspec.structs.replace(last, refused=HOSTILE),
    )
    return msgspec.structs.replace(made, candidates=candidates, best=(best,))


DOCUMENTS: dict[str, Evaluation | Comparison] = {
    "evaluation": factory.evaluation(),
    "comparison": factory.comparison(),
    "hostile evaluation": hostile_evaluation(),
    "hostile comparison": hostile_comparison(),
    "nothing measured": factory.evaluation(
        curves=(), rates=(), short=(), gates=(), spectrum=(), memory=(), notes=(), ok=True, against=None, method=None
    ),
    "no candidates": factory.comparison(candidates=(), best=()),
    "not finite": factory.evaluation(curves=(factory.curve((28.0, math.inf, math.nan, 1e12)),)),
}
EVERY = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)


def exhibit(document: Evaluation | Comparison, name: str) -> Exhibit:
    return next(each for each in exhibits(document) if each.name == name)


# The files


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, ...]]:
    """A report on an evaluation, which no test changes: its folder, and what was written."""
    folder = tmp_path_factory.mktemp("evaluation") / "made" / "here"
    return folder, write_report(folder, factory.evaluation())


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, ...]]:
    """The same of a comparison, in a folder that was there."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder, write_report(folder, factory.comparison())


def test_an_evaluation_is_written_as_a_page_pictures_and_json(evaluation: tuple[Path, tuple[Path, ...]]) -> None:
    folder, written = evaluation
    names = {"report.html", "eval.json"}
    names |= {f"{name}.png" for name in ("perplexity", "passkey", "needles", "short", "spectrum", "memory")}
    assert written[0].name == "report.html"
    assert {path.name for path in written} == names == {path.name for path in folder.iterdir()}
    assert msgspec.json.decode((folder / "eval.json").read_bytes(), type=Evaluation) == factory.evaluation()


def test_a_comparison_is_written_with_its_own_json(comparison: tuple[Path, tuple[Path, ...]]) -> None:
    folder, written = comparison
    assert {path.name for path in written} == {
        "report.html", "compare.json", "perplexity.png", "passkey.png", "needles.png", "short.png", "spectrum.png",
    }  # fmt: skip
    assert json.loads((folder / "compare.json").read_text())["schema"] == "ctxextend.compare/1"


def test_the_same_document_gives_the_same_bytes(tmp_path: Path) -> None:
    document = factory.evaluation(rates=(), spectrum=())
    first = {path.name: path.read_bytes() for path in write_report(tmp_path / "a", document)}
    assert first == {path.name: path.read_bytes() for path in write_report(tmp_path / "b", document)}


def test_a_chart_of_an_older_report_does_not_stand_beside_newer_numbers(tmp_path: Path) -> None:
    bare = factory.evaluation(curves=(), rates=(), short=(), spectrum=(), memory=())
    (tmp_path / "memory.png").write_bytes(b"somebody's")
    (tmp_path / "mine.png").write_bytes(b"mine")
    write_report(tmp_path, bare)
    # Where no report was before, a chart is nobody's of ours.
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "eval.json", "mine.png", "memory.png"}
    write_report(tmp_path, bare)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "eval.json", "mine.png"}


def test_what_a_report_writes_is_what_its_folder_is_looked_through_for(
    tmp_path: Path, evaluation: tuple[Path, tuple[Path, ...]], comparison: tuple[Path, tuple[Path, ...]]
) -> None:
    """A name that write_report takes and require_report_folder doesn't know would be replaced unasked."""
    for _made, written in (evaluation, comparison):
        for path in written:
            folder = tmp_path / f"other-{path.name}"
            folder.mkdir(exist_ok=True)
            (folder / path.name).write_bytes(b"mine")
            with pytest.raises(RefusedError) as error:
                require_report_folder(folder, sources=(), force=False)
            assert (error.value.code, error.value.file) == ("output-exists", str(folder / path.name))
            require_report_folder(folder, sources=(), force=True)


@pytest.mark.parametrize("name", [NAME, name_for("yarn", 1024)])
def test_lines_of_somebody_else_are_not_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(RefusedError) as error:
        require_report_folder(tmp_path, sources=(), force=False)
    assert error.value.file == str(tmp_path / name)
    assert "--force" in (error.value.hint or "")
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(RefusedError):
        require_report_folder(tmp_path, sources=(), force=False)


def test_a_report_may_go_where_one_of_ours_is(tmp_path: Path) -> None:
    require_report_folder(tmp_path / "not" / "there", sources=(), force=False)
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("beside it")
    ledger = Ledger(tmp_path, {"seed": 1})
    ledger.begin()
    ledger.close()
    require_report_folder(tmp_path, sources=(), force=False)
    # What a killed run left of the first line.
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:20])
    require_report_folder(tmp_path, sources=(), force=False)
    # An interrupt before the report: a chart isn't ours yet, and the numbers make it so.
    (tmp_path / "memory.png").write_bytes(b"mine")
    with pytest.raises(RefusedError):
        require_report_folder(tmp_path, sources=(), force=False)
    write_report(tmp_path, factory.evaluation(rates=(), spectrum=(), short=(), curves=()))
    assert (tmp_path / "memory.png").read_bytes() != b"mine"
    require_report_folder(tmp_path, sources=(), force=False)
    # One of the two documents ours, the other somebody's.
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(RefusedError):
        require_report_folder(tmp_path, sources=(), force=False)


def test_an_interrupt_while_a_report_is_written_leaves_it_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    @contextmanager
    def broken(path: Path, data: bytes) -> Iterator[None]:
        if len(written) == 2:
            raise KeyboardInterrupt
        with staged_data(path, data):
            written.append(path.name)
            yield

    monkeypatch.setattr("ctxextend.lab.report.staged_data", broken)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, factory.evaluation(rates=(), spectrum=()))
    assert len(list(tmp_path.iterdir())) == 2
    require_report_folder(tmp_path, sources=(), force=False)


def test_a_report_does_not_go_into_a_checkpoint(tmp_path: Path) -> None:
    source, against = tmp_path / "model", tmp_path / "base"
    for folder in (source, against):
        (folder / "extras").mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "inside").symlink_to(against / "extras")
    for folder in (
        source, source / "extras", source / "new" / "report", against, tmp_path / "link", tmp_path / "link" / "new",
        tmp_path / "inside", tmp_path / "elsewhere" / ".." / "model",
    ):  # fmt: skip
        for force in (False, True):
            with pytest.raises(RefusedError) as error:
                require_report_folder(folder, sources=(source, against), force=force)
            assert error.value.code == "inside-source"
    with pytest.raises(RefusedError):
        require_report_folder(source / "report", sources=(tmp_path / "link",), force=False)
    # Around and beside it are fine.
    for folder in (tmp_path, tmp_path / "model-report"):
        require_report_folder(folder, sources=(source, against), force=False)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "report"):
        with pytest.raises(OutputError) as error:
            require_report_folder(folder, sources=(), force=True)
        assert error.value.file == str(tmp_path / "file")


def test_without_matplotlib_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="matplotlib"):
        write_report(tmp_path / "out", factory.evaluation())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError) as error:
        write_report(tmp_path / "taken", factory.evaluation(curves=(), rates=(), short=(), spectrum=(), memory=()))
    assert error.value.file == str(tmp_path / "taken")
    assert error.value.hint


# What the page may hold


@EVERY
def test_a_page_loads_and_runs_nothing(document: Evaluation | Comparison) -> None:
    found = parsed(document)
    assert not set(found.tags) & {"script", "img", "iframe", "object", "embed", "form", "base", "audio", "video"}
    assert not found.handlers
    assert all(load == "data:," or load.startswith("#") for load in found.loads), found.loads
    assert "@import" not in page(document)
    assert "url(" not in page(document).split("<style>")[1].split("</style>")[0]
    assert "content=\"default-src 'none';" in page(document)


@EVERY
def test_headings_tables_and_pictures_can_be_read_without_seeing(document: Evaluation | Comparison) -> None:
    whole = page(document)
    assert re.findall(r"<h1[ >]", whole) == ["<h1>"]
    assert len(re.findall("<svg ", whole)) == len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]+"', whole))
    assert all('scope="col"' in table and 'scope="row"' in table for table in re.findall(r"<table.*?</table>", whole))
    boxes = re.findall(r'<div class="scroll"[^>]*>', whole)
    assert all('tabindex="0"' in box and "aria-label=" in box for box in boxes)
    assert len(boxes) == whole.count("<table")
    names = re.findall(r'\bid="([^"]*)"', whole)
    assert len(names) == len(set(names))


def test_hostile_names_stand_on_the_page_as_text() -> None:
    words = "".join(parsed(hostile_evaluation()).words).replace("\xa0", " ")
    assert words.count(HOSTILE) >= 8
    assert html.escape(HOSTILE) in page(hostile_comparison())


# What it says


def test_the_verdict_counts_gates() -> None:
    made = factory.evaluation()
    passed = tuple(gate for gate in made.gates if gate.ok)
    assert verdict(made) == "1 of 4 gates missed."
    assert verdict(factory.evaluation(gates=passed)) == "2 of 3 gates passed; 1 had nothing to measure."
    assert verdict(factory.evaluation(gates=passed[:2])) == "All 2 gates passed."
    assert verdict(factory.evaluation(gates=())) == "Measured; no gate was set."


def test_the_head_says_which_gate_was_missed_with_its_numbers() -> None:
    words = re.sub(r"<[^>]*>", " ", page(factory.evaluation())).replace("&nbsp;", " ")
    head = words[: words.index("How it was measured")]
    assert "passkey: 0.7, at least 0.9 was asked (12288 tokens, all depths)" in head
    assert head.index("passkey: ") < head.index("perplexity-ratio: "), "what was missed comes first"
    assert "kl: nothing was measured for it, at most 0.1 was asked" in head
    assert "14 of 20 at 12k" in head
    assert "+8.14 %" in head


def test_every_text_and_setting_that_decides_the_numbers_is_told() -> None:
    words = re.sub(r"<[^>]*>", " ", page(factory.evaluation()))
    for fact in (
        "transformers 5.23.0",
        "cpu, float32",
        "c1" * 32,
        "9f" * 32,
        "1 h 2 min",
        "3.0 GiB",
        "ctxextend 0.5.0",
    ):
        assert fact in words
    assert "dynamic was measured with its static equal" in words


def test_the_numbers_behind_the_curves_stand_in_a_table() -> None:
    table = exhibit(factory.evaluation(), "perplexity").tables[1]
    assert table.columns == ("positions", "2k", "8k", "16k")
    assert [row[3] for row in table.rows] == ["29.0", "24.0", "25.0", "36.0", "35.0", "25.0", "26.0", "34.0"]
    assert table.rows[0][1:] == ("29.4", "29.1", "29.0")


def test_a_reading_says_how_much_is_lost_past_the_trained_length() -> None:
    # 34 over 29 is 1.172.
    assert (
        "17.2 % higher than that of the same text read within 8192"
        in exhibit(factory.evaluation(), "perplexity").reading
    )
    within = factory.evaluation(curves=(factory.curve((29.0, 24.0), length=4096),))
    assert "Nothing was read past the 8192 tokens" in exhibit(within, "perplexity").reading


def test_points_that_are_not_finite_are_left_out_and_this_is_said() -> None:
    found = exhibit(DOCUMENTS["not finite"], "perplexity")
    assert "no point is drawn" in found.reading
    assert [row[1] for row in found.tables[1].rows] == ["28.0", "inf", "nan", "1e+12"]


def test_the_wavelengths_of_the_spectrum_are_those_of_a_plain_rope() -> None:
    table = exhibit(factory.evaluation(), "spectrum").tables[0]
    # RoFormer eq. 15: 2 pi theta^(2i/d), theta 100000, d 64; yarn at 2x doubles the slowest.
    assert float(table.rows[0][1]) == pytest.approx(2 * math.pi, rel=1e-4)
    assert float(table.rows[16][1]) == pytest.approx(2 * math.pi * math.sqrt(100000), rel=1e-4)
    assert float(table.rows[31][2]) == pytest.approx(2 * float(table.rows[31][1]), rel=1e-4)
    assert len(table.rows) == 32


def test_memory_adds_the_cache_to_the_weights() -> None:
    rows = exhibit(factory.evaluation(), "memory").tables[0].rows
    assert rows[-1] == ("128k", "15.0 GiB", "16.0 GiB", "31.0 GiB")
    unknown = factory.evaluation(engine=factory.engine(weight_bytes=None))
    assert exhibit(unknown, "memory").tables[0].rows[-1][1:] == ("\N{EN DASH}", "16.0 GiB", "16.0 GiB")


def test_a_comparison_names_what_to_ship_and_why_and_what_was_refused() -> None:
    words = re.sub(r"<[^>]*>", "", page(factory.comparison())).replace("&nbsp;", " ")
    assert "16kyarn 2\N{MULTIPLICATION SIGN}: the lowest perplexity past 8192 tokens" in words
    assert "longrope needs its factors" in words


def test_a_comparison_has_one_row_a_measured_candidate_at_a_glance() -> None:
    table = at_a_glance(factory.comparison())
    cross = "\N{MULTIPLICATION SIGN}"
    assert table.columns[1:5] == ("perplexity to 16k", "past / within", "passkey at 12k", "needles at 12k")
    # Means by hand: (28.7 + 22 + 22.6 + 31.4 + 31.9 + 39.3 + 175 + 691) / 8 = 130.2; 691 / 28.7 = 24.1.
    assert table.rows[0][:5] == ("untouched", "130", "24.1", "0 %", "0 %")
    assert table.rows[1][:4] == (f"yarn 2{cross}", "29.2", "1.172", "70 %")
    assert len(table.rows) == 5


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "\N{EN DASH}"), (3.14159, "3.14"), (28.74, "28.7"), (691.2, "691"), (12345.0, "12345"), (2.5e7, "2e+07")],
)
def test_perplexities_are_short(value: float | None, shown: str) -> None:
    assert show_perplexity(value) == shown


def test_ratios_have_three_places_where_they_matter() -> None:
    assert [show_ratio(value) for value in (1.17241, 24.08, 1165.2, None)] == ["1.172", "24.1", "1165", "\N{EN DASH}"]


@pytest.mark.parametrize(
    ("trained", "longest", "expected"),
    [
        (8192, 16384, (0, 2048, 4096, 6144, 8192, 10240, 12288, 14336, 16384)),
        (8192, 131072, (0, 2048, 4096, 6144, 8192, 16384, 32768, 65536, 131072)),
        (8192, 1 << 20, (0, 2048, 4096, 6144, 8192, 131072, 262144, 524288, 1 << 20)),
        (8192, 2048, (0, 2048)),
        (8192, 5000, (0, 2048, 4096, 5000)),
    ],
)
def test_positions_are_cut_at_quarters_and_doublings(trained: int, longest: int, expected: tuple[int, ...]) -> None:
    assert position_bounds(trained, longest) == expected


def test_perplexities_are_pooled_as_mean_nats_by_tokens() -> None:
    points = [
        Point(start=0, end=10, count=1, perplexity=10.0),
        Point(start=10, end=20, count=3, perplexity=1000.0),
        Point(start=20, end=30, count=1, perplexity=7.0),
    ]
    # (log10: 1 + 3 * 3) / 4 = 2.5
    assert pooled(points, (0, 20, 30, 40)) == [pytest.approx(10**2.5), pytest.approx(7.0), None]


# In a browser

#: Puts each page in frames of a telephone's and a desk's width, one after another, and says what a person would see.
PROBE = """<!doctype html><link rel="icon" href="data:,"><body style="margin:0"><pre id="out">never ended</pre><script>
const light = c => { const l = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
const rgb = s => s.match(/[\\d.]+/g).slice(0, 3).map(Number);
const contrast = (a, b) => { const [x, y] = [light(rgb(a)), light(rgb(b))].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05); };
const look = (d, w) => {
  const root = d.documentElement, back = w.getComputedStyle(d.body).backgroundColor;
  const out = {scroll: root.scrollWidth, client: root.clientWidth, back, drawings: [], clipped: [], met: [], faint: []};
  for (const svg of d.querySelectorAll("svg")) {
    const box = svg.getBoundingClientRect();
    if (!box.width) continue;
    out.drawings.push(Math.round(100 * box.width / svg.viewBox.baseVal.width));
    const seen = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect(), t]);
    for (const [text, r, t] of seen) {
      if (r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1)
        out.clipped.push(text);
      if (contrast(w.getComputedStyle(t).fill, back) < 4.5) out.faint.push(text);
    }
    for (const [i, [a, p]] of seen.entries()) for (const [b, q] of seen.slice(i + 1)) {
      const across = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const down = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (across > 1 && down > 4) out.met.push(a + " | " + b);
    }
  }
  return out;
};
const found = {}, wanted = WANTED;
const next = () => {
  if (!wanted.length) { document.getElementById("out").textContent = JSON.stringify(found); return; }
  const [name, width] = wanted.shift(), f = document.createElement("iframe");
  f.style = "border:0;height:900px;width:" + width + "px";
  f.onload = () => { found[name + " " + width] = look(f.contentDocument, f.contentWindow); f.remove(); next(); };
  f.src = name + ".html"; document.body.append(f);
};
next();
</script></body>"""
SEEN: dict[str, Evaluation | Comparison] = {
    "evaluation": factory.evaluation(),
    "comparison": factory.comparison(),
    "hostile": hostile_evaluation(),
}
WIDTHS = (360, 1000)


@contextmanager
def served(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """The folder on a port of the loopback, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's own name
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1], asked
        finally:
            server.shutdown()
            thread.join()


def browse(folder: Path, url_of: str, *, dark: bool) -> tuple[str, str, list[str]]:
    """A page of the folder in a browser: its document afterwards, its console, what was asked of any host."""
    assert BROWSER is not None
    with served(folder) as (port, asked):
        done = subprocess.run(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-features=NetworkTimeServiceQuerying", "--hide-scrollbars", "--enable-logging=stderr",
                f"--user-data-dir={folder.parent / 'profile'}", "--window-size=1200,1000",
                "--virtual-time-budget=20000", f"--host-resolver-rules=MAP * 127.0.0.1:{port}",
                f"--blink-settings=preferredColorScheme={0 if dark else 1}",
                "--dump-dom", f"http://127.0.0.1:{port}/{url_of}",
            ],
            capture_output=True, text=True, check=True, timeout=90,
        )  # fmt: skip
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line), asked


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_the_pages_whole(tmp_path: Path, dark: bool) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for name, document in SEEN.items():
        (site / f"{name}.html").write_text(page(document), encoding="utf-8")
    wanted = json.dumps([(name, width) for name in SEEN for width in WIDTHS])
    (site / "probe.html").write_text(PROBE.replace("WANTED", wanted), encoding="utf-8")
    dumped, console, asked = browse(site, "probe.html", dark=dark)
    assert not console
    assert set(asked) == {"/probe.html", *(f"/{name}.html" for name in SEEN)}
    told = re.search(r'<pre id="out">(.*?)</pre>', dumped)
    assert told is not None
    found = json.loads(html.unescape(told.group(1)))
    for name, document in SEEN.items():
        drawn = sum(each.draw is not None for each in exhibits(document))
        for width in WIDTHS:
            one = found[f"{name} {width}"]
            assert one["scroll"] == one["client"] == width, "the page itself never scrolls sideways"
            assert len(one["drawings"]) == drawn, "of each chart one drawing is shown"
            assert all(scale >= 95 for scale in one["drawings"]), "text keeps its size"
            assert not one["clipped"]
            assert not one["met"]
            assert not one["faint"]
            assert (one["back"] == "rgb(255, 255, 255)") is not dark

"""Methods of other distributions, through real entry points: a dist-info folder on the path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ctxextend.errors import UnknownNameError, UsageError
from ctxextend.methods import Base, decode_options, find_method, third_party_methods
from ctxextend.methods.base import Options
from ctxextend.recipe import Recipe
from ctxextend.rope import RopeSpec
from ctxextend.scaling import Linear, table
from tests.factories import config, converted, planned

MODULE = """
from ctxextend.methods import Options, extension_factor
from ctxextend.scaling import Linear


class HalfOptions(Options, frozen=True, kw_only=True):
    share: float = 0.5


class Half:
    name = "half"
    summary = "half of position interpolation"
    source = "nowhere"
    options = HalfOptions

    def solve(self, base, target, options):
        return Linear(factor=extension_factor(base.context, target) * options.share)


METHOD = Half()
NOTHING = object()
"""


def install(folder: Path, entries: str, *, module: str = MODULE) -> Path:
    """A distribution called half-method with these entry points."""
    (folder / "half_method.py").write_text(module)
    info = folder / "half_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: half-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ctxextend.methods]\n{entries}\n")
    return folder


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "half_method", raising=False)
    return tmp_path


def test_a_plug_in_is_found_and_used(path: Path) -> None:
    install(path, "half = half_method:METHOD")
    assert list(third_party_methods()) == ["half"]
    assert "half_method" not in sys.modules, "listing must not load it"
    method = find_method("half")
    base = Base(spec=RopeSpec(rope_theta=10000.0, head_dim=8, rotary_dim=8), context=1024)
    assert method.solve(base, 8192, decode_options(method, {})) == Linear(factor=4.0)
    assert method.solve(base, 8192, decode_options(method, {"share": 0.25})) == Linear(factor=2.0)


def test_a_plan_of_a_plug_in_is_written_as_a_built_in_scaling(path: Path) -> None:
    install(path, "half = half_method:METHOD")
    plan = planned(config(), Recipe(method="half", target=8192, runtimes=("transformers",)))
    assert plan.method == "half"
    assert plan.groups[0].after is not None
    spec = RopeSpec(rope_theta=10000.0, head_dim=32, rotary_dim=32)
    assert plan.groups[0].after.table == table(spec, Linear(factor=4.0))
    assert converted(config(), plan)["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_a_plug_in_in_a_fresh_process(path: Path) -> None:
    install(path, "half = half_method:METHOD")
    code = "import json, ctxextend.methods as m; print(json.dumps(m.find_method('half').summary))"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{path}:{root}"},
        cwd=path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == "half of position interpolation"


@pytest.mark.parametrize("name", ["yarn", "auto"])
def test_a_plug_in_may_not_take_a_built_in_name(path: Path, name: str) -> None:
    install(path, f"{name} = half_method:METHOD")
    with pytest.raises(UsageError, match=f"the method {name} of half-method has the name of a built-in") as caught:
        find_method("half")
    assert caught.value.code == "method-clash"
    # A built-in method is still found: nothing of the plug-in is needed for it.
    assert find_method("yarn").source.startswith("Peng")


@pytest.mark.parametrize(
    ("entry", "module", "said"),
    [
        ("half = half_method:MISSING", MODULE, "can't be loaded"),
        ("half = half_method:METHOD", "raise RuntimeError('it is broken')", "can't be loaded: it is broken"),
        ("half = half_method:NOTHING", MODULE, "doesn't have the parts of a method"),
    ],
)
def test_a_broken_plug_in_is_named(path: Path, entry: str, module: str, said: str) -> None:
    install(path, entry, module=module)
    with pytest.raises(UsageError, match=said) as caught:
        find_method("half")
    assert caught.value.code == "broken-plugin"
    assert "half-method" in caught.value.message
    assert caught.value.exit_code == 2


def test_an_unknown_name_suggests_plug_ins_too(path: Path) -> None:
    install(path, "half = half_method:METHOD")
    with pytest.raises(UnknownNameError) as caught:
        find_method("halv")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("did you mean half?")


def test_a_method_without_parameters_has_none() -> None:
    assert Options() == decode_options(find_method("linear"), {})

"""dvc.yaml declares just what the stages use: their modules, their sections of params.yaml, their paths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import dependencies
from visionloop import paths
from visionloop.config import Params

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
EXPERIMENTS = yaml.safe_load((ROOT / "experiments" / "dvc.yaml").read_text())["stages"]


def test_every_stage_declares_its_modules_and_params() -> None:
    found = dependencies.differences(ROOT)
    assert not found, f"run `python -m pipeline.dependencies --write`: {found}"


def test_a_missing_dep_and_a_missing_section_are_found(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "experiments", "src", "pipeline", "serving", "monitoring"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "dvc.yaml").unlink()
    text = (ROOT / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(
        text.replace("    - src/visionloop/data/splitting.py\n", "").replace("params: [split]", "params: [clean]")
    )
    found = {item.stage: item for item in dependencies.differences(tmp_path)}
    assert "src/visionloop/data/splitting.py" in found["split"].missing_deps
    assert found["split"].missing_params == ("split",)
    assert found["split"].needless_params == ("clean",)


def test_every_source_is_a_dep_of_collect_since_one_is_opened_by_its_name() -> None:
    folder = ROOT / "src/visionloop/data/sources"
    files = {str(file.relative_to(ROOT)) for file in folder.glob("*.py")}
    assert len(files) > 8
    assert files <= dependencies.stage_modules("collect", ROOT)
    assert not any(file in dependencies.stage_modules("clean", ROOT) for file in files)


@pytest.mark.parametrize("stage", [*STAGES, *EXPERIMENTS])
def test_stage_script_and_command_share_the_name(stage: str) -> None:
    entry = {**STAGES, **EXPERIMENTS}[stage]
    body = entry.get("do", entry)
    assert body["cmd"].split(" ")[:3] == ["python", "-m", f"pipeline.stages.{stage}"]
    assert body["desc"]


def test_params_sections_are_stages_or_say_whom_they_serve() -> None:
    sections = set(Params.model_fields)
    # `preprocess` is part of `augment` and travels with the model; `serve` and `monitor` steer what lives after `deploy`;
    # `compute` says where the work runs; `tune` is a stage of experiments/dvc.yaml.
    assert sections - set(STAGES) == {"compute", "preprocess", "tune", "serve", "monitor"}
    assert set(STAGES) <= sections


def test_an_experiment_runs_in_the_projects_folder_and_not_with_the_pipeline() -> None:
    """DVC reads the dvc.yaml of the current folder alone, so what stands in another one runs when it is named."""
    assert "crossvalidate" in EXPERIMENTS
    assert not set(EXPERIMENTS) & set(STAGES)
    for entry in EXPERIMENTS.values():
        assert entry.get("do", entry)["wdir"] == ".."


def test_each_declared_path_is_one_of_paths_py() -> None:
    known = {value for value in vars(paths).values() if isinstance(value, Path)}
    for stage, entry in {**STAGES, **EXPERIMENTS}.items():
        body = entry.get("do", entry)
        declared = [*body["deps"], *body.get("outs", []), *body.get("metrics", []), *body.get("plots", [])]
        for item in declared:
            text = item if isinstance(item, str) else next(iter(item))
            if text.endswith(".py") or text.startswith(("${collect.path}", "${calibrate.foreign}")):
                continue
            path = Path(text.replace("${item}", "cnn").replace("${key}", "cnn").replace("${item.teacher}", "none"))
            assert any(path == one or one in path.parents for one in known), f"{stage} declares {path}, unknown to paths.py"


def test_importing_any_module_does_nothing(tmp_path: Path) -> None:
    """Import every module in an empty folder: no file appears, nothing is printed, no logger is set up."""
    modules = sorted(
        ".".join(file.relative_to(base).with_suffix("").parts)
        for base, tops in ((ROOT / "src", ["visionloop"]), (ROOT, ["pipeline", "serving", "monitoring"]))
        for top in tops
        for file in (base / top).rglob("*.py")
        if file.name not in ("__init__.py", "__main__.py")
        # Triton's own interpreter is the only one that has `triton_python_backend_utils`; test_triton.py runs these.
        and "triton_python_backend_utils" not in file.read_text()
    )
    assert len(modules) > 20
    code = (
        "import importlib, logging, os, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "ours = [h for h in logging.getLogger().handlers if type(h).__module__.split('.')[0] in "
        "('visionloop', 'pipeline', 'serving', 'monitoring')]\n"
        "assert not ours and not os.listdir('.'), (ours, os.listdir('.'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr

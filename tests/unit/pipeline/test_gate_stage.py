"""The stage `gate` against a served model, and under real DVC: a no-op stays one, and a rollback is compared anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import process, promoting, repro
from pipeline.stages import gate
from tests.unit.pipeline import gate_world
from tests.unit.pipeline.gate_world import GOOD, IMAGE_COUNT, ROOT, WORSE
from visionloop.errors import BlockedError, ConfigError
from visionloop.preprocess import PreprocessSpec
from visionloop.records import SplitRow


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rules() -> dict[str, bool | None]:
    return {rule["rule"]: rule["passed"] for rule in gate_world.report()["rules"]}


def test_a_worse_champion_is_replaced_and_a_better_one_stays() -> None:
    gate_world.make()
    gate_world.serve(WORSE)
    gate.main()
    report = gate_world.report()
    assert (report["passed"], report["champion_version"], report["frozen_images"]) == (1, 1, IMAGE_COUNT)
    assert report["frozen_accuracy"] == 1
    assert report["frozen_difference_low"] > 0

    gate_world.ship(WORSE)
    gate_world.serve(GOOD)
    with pytest.raises(BlockedError, match=r"Version 2 stays served\. .*visionloop promote --force --reason"):
        gate.main()
    assert gate_world.report()["passed"] == 0
    with pytest.raises(BlockedError, match="Blocked: Version 2 stays served"):
        promoting.said()
    with pytest.raises(ConfigError, match="needs --reason"):
        promoting.force(" ", None)
    promoting.force("the old camera is gone", "ana")
    gate.main()
    assert (gate_world.report()["passed"], gate_world.report()["forced"]) == (1, 1)
    assert promoting.said()[0].startswith("Passed: ana publishes it on ")


def test_images_are_told_apart_by_what_the_champion_had_seen() -> None:
    ids = gate_world.make(min_newest_images=100)
    rows = [SplitRow(name, "rot", "test" if number < 150 else "train", name) for number, name in enumerate(ids[:170])]
    gate_world.serve(WORSE, rows)
    gate.main()
    report = gate_world.report()
    assert (report["frozen_images"], report["images_learnt_by_champion"], report["newest_images"]) == (150, 20, 130)
    assert rules()["newest"] is True


def test_a_champion_of_another_input_size_sees_the_images_at_its_own() -> None:
    gate_world.make()
    # The same weights on the mean colour: 16 x 16 pixels say what 8 x 8 say, but for rounding.
    gate_world.serve(GOOD, spec=PreprocessSpec(16, 16))
    gate.main()
    assert gate_world.report()["frozen_champion_accuracy"] > 0.98
    assert gate_world.report()["latency_ratio"] > 0


def test_classes_that_changed_are_compared_on_the_shared_ones() -> None:
    gate_world.make()
    gate_world.serve(WORSE, labels=("blau", "rot", "schwarz"))
    with pytest.raises(BlockedError, match="It no longer knows the class 'schwarz'"):
        gate.main()
    report = gate_world.report()
    assert (report["classes_removed"], report["classes_added"]) == (1, 1)
    assert 0 < report["frozen_images"] < IMAGE_COUNT  # without the class that the champion cannot know


def test_a_champion_that_cannot_be_loaded_is_nothing_to_compare_with(folder: Path) -> None:
    gate_world.make()
    gate_world.serve(WORSE)
    (folder / "model_repository/classifier/1/model.onnx").write_bytes(b"")
    gate.main()
    assert gate_world.report()["verdict"][0].startswith("Version 1 cannot be served any more (")


PUBLISH = """
from pathlib import Path
from serving.repository import publish, read_release
from tests.helpers_serving import DEPLOY
from visionloop.card import load_card
from visionloop.paths import GATE_REPORT, MODEL_REPOSITORY, RELEASE, SHIPPED
from visionloop.promotion import check_publishable, read_report
there = (MODEL_REPOSITORY / RELEASE).exists()
served = read_release(MODEL_REPOSITORY).model_sha256 if there else ""
check_publishable(read_report(GATE_REPORT), load_card(SHIPPED).files["model.onnx"], served)
publish(SHIPPED, MODEL_REPOSITORY, DEPLOY)
"""


def test_under_dvc_nothing_runs_twice_and_after_a_rollback_the_gate_compares_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{ROOT}")
    gate_world.make()
    (folder / "publish.py").write_text(PUBLISH)
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["gate"]
    own["deps"] = [name for name in own["deps"] if not name.endswith(".py")]
    deploy = {"cmd": "python publish.py", "deps": ["models/shipped", "reports/gate.json"],
              "outs": [{"model_repository": {"persist": True}}]}  # fmt: skip
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"gate": own, "deploy": deploy}}))
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True, env=process.quiet_environment())

    def ran() -> tuple[str, ...]:
        return repro.reproduce(on_line=lambda _line: None).ran

    assert ran() == ("gate", "deploy")
    assert gate_world.report()["champion"] == []
    assert ran() == ()  # what deploy wrote does not make the gate stale

    # Another model is served now, as after a rollback by hand.
    gate_world.serve(WORSE)
    other = json.loads(Path("model_repository/release.json").read_text())["model_sha256"]
    assert ran() == ("gate", "deploy")
    assert gate_world.report()["champion"] == [other]
    assert gate_world.report()["frozen_difference_low"] > 0

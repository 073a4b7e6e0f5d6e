"""The model repository: what config.pbtxt says, when a version is new, and what a crash may leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import model_config_pb2 as pb

from serving import repository as module
from serving.repository import (
    champion_folder,
    classifier_config,
    classify_config,
    config_text,
    publish,
    read_config,
    read_release,
    versions,
)
from tests.helpers_serving import DEPLOY, LABELS, SPEC, calibrated, ship
from visionloop.card import load_card
from visionloop.compression.parity import Golden
from visionloop.errors import ArtifactError, ConfigError, ServingError
from visionloop.files import write_bytes
from visionloop.paths import CLASS_MEANS, GOLDEN
from visionloop.preprocess import PreprocessSpec


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    ship(tmp_path / "shipped")
    return tmp_path / "shipped"


def test_a_published_version_has_the_layout_that_triton_reads(tmp_path: Path, shipped: Path) -> None:
    assert publish(shipped, tmp_path / "repo", DEPLOY) == (1, True)
    assert list(_files(tmp_path / "repo")) == [
        "classifier/1/card.json",
        "classifier/1/embedding_pca.npz",
        "classifier/1/golden.npz",
        "classifier/1/model.onnx",
        "classifier/1/model.py",
        "classifier/config.pbtxt",
        "classifier/labels.txt",
        "classify/1/model.py",
        "classify/config.pbtxt",
        "release.json",
    ]
    assert (tmp_path / "repo/classifier/labels.txt").read_text(encoding="utf-8") == "blau\ngrün\nrot\n"
    assert champion_folder(tmp_path / "repo") == tmp_path / "repo/classifier/1"
    load_card(tmp_path / "repo/classifier/1").verify(tmp_path / "repo/classifier/1")


def test_the_configuration_says_what_the_card_says(tmp_path: Path) -> None:
    card = ship(tmp_path / "shipped")
    config = read_config(config_text(classifier_config(card, DEPLOY, [3, 4])))
    assert (config.name, config.backend, config.max_batch_size) == ("classifier", "python", 8)
    assert [(item.name, item.data_type, list(item.dims)) for item in config.input] == [("images", pb.TYPE_UINT8, [8, 8, 3])]
    assert [(item.name, item.data_type, list(item.dims), item.label_filename) for item in config.output] == [
        ("logits", pb.TYPE_FP32, [3], "labels.txt"),
        ("embedding", pb.TYPE_FP32, [12], ""),
    ]
    assert list(config.version_policy.specific.versions) == [3, 4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 200
    assert [(group.kind, group.count) for group in config.instance_group] == [(pb.ModelInstanceGroup.KIND_CPU, 1)]
    assert config.parameters["preprocess_version"].string_value == SPEC.version


def test_without_a_queue_delay_requests_are_still_batched(tmp_path: Path) -> None:
    card = ship(tmp_path / "shipped")
    params = DEPLOY.model_copy(update={"max_queue_delay_microseconds": 0})
    for config in (classifier_config(card, params, [1]), classify_config(params)):
        assert read_config(config_text(config)).HasField("dynamic_batching")


def test_the_official_image_serves_the_same_folder_with_its_own_backend(tmp_path: Path) -> None:
    card = ship(tmp_path / "shipped")
    config = classifier_config(card, DEPLOY.model_copy(update={"backend": "onnxruntime"}), [1])
    assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
    assert config.parameters["intra_op_thread_count"].string_value == "1"


def test_a_model_that_was_chosen_for_openvino_is_refused_by_the_official_image_in_one_sentence(tmp_path: Path) -> None:
    card = ship(tmp_path / "shipped", runtime="openvino")
    assert classifier_config(card, DEPLOY, [1]).backend == "python"
    with pytest.raises(ConfigError, match=r"was chosen for openvino, which deploy\.backend: onnxruntime does not run; set "):
        classifier_config(card, DEPLOY.model_copy(update={"backend": "onnxruntime"}), [1])


def test_the_public_model_takes_bytes_and_an_optional_id() -> None:
    config = read_config(config_text(classify_config(DEPLOY)))
    assert [(item.name, item.data_type, list(item.dims), item.optional) for item in config.input] == [
        ("image", pb.TYPE_STRING, [1], False),
        ("request_id", pb.TYPE_STRING, [1], True),
    ]
    assert [(item.name, item.data_type, list(item.dims)) for item in config.output] == [
        ("label", pb.TYPE_STRING, [1]),
        ("probability", pb.TYPE_FP32, [1]),
        ("probabilities", pb.TYPE_FP32, [-1]),
        ("prediction_id", pb.TYPE_STRING, [1]),
        ("model_version", pb.TYPE_STRING, [1]),
        ("unknown", pb.TYPE_BOOL, [1]),
        ("review", pb.TYPE_BOOL, [1]),
    ]
    assert config.model_transaction_policy.decoupled is False


def test_a_text_that_is_no_configuration_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"config\.pbtxt cannot be read .*no_such_field"):
        read_config('no_such_field: "1"')


def test_the_same_model_is_not_published_twice(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "repo").rglob("*")}
    assert publish(shipped, tmp_path / "repo", DEPLOY) == (1, False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "repo").rglob("*")} == before


def test_another_calibration_of_the_same_model_is_a_new_version_with_its_class_means(tmp_path: Path) -> None:
    ship(tmp_path / "shipped", calibration=calibrated(review_below=0.4))
    assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (1, True)
    assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (1, False)
    ship(tmp_path / "shipped", calibration=calibrated(review_below=0.5))
    assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (2, True)
    folder = champion_folder(tmp_path / "repo")
    card = load_card(folder)
    assert card.calibration == calibrated(review_below=0.5)
    assert card.read_file(folder, CLASS_MEANS) == (tmp_path / "shipped" / CLASS_MEANS).read_bytes()


def test_another_setting_of_the_same_model_changes_the_configuration_only(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    before = _files(tmp_path / "repo")
    assert publish(shipped, tmp_path / "repo", DEPLOY.model_copy(update={"max_batch_size": 16})) == (1, False)
    after = _files(tmp_path / "repo")
    assert {name for name in after if after[name] != before.get(name)} == {
        "classifier/config.pbtxt",
        "classify/config.pbtxt",
    }


def test_a_new_model_is_the_next_version_and_the_old_one_stays_in_service(tmp_path: Path) -> None:
    for seed in range(5):
        ship(tmp_path / "shipped", seed=seed)
        assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (seed + 1, True)
    assert versions(tmp_path / "repo") == [3, 4, 5]
    release = read_release(tmp_path / "repo")
    assert (release.champion, release.previous) == (5, 4)
    config = read_config((tmp_path / "repo/classifier/config.pbtxt").read_text(encoding="utf-8"))
    assert list(config.version_policy.specific.versions) == [4, 5]


def _ship_otherwise(folder: Path, factor: float, seed: int = 0) -> None:
    """A shipped folder whose golden logits are `factor` times what the model answers here."""
    card = ship(folder, seed=seed)
    golden = Golden.from_bytes((folder / GOLDEN).read_bytes())
    write_bytes(folder / GOLDEN, replace(golden, logits=np.float32(factor) * golden.logits).to_bytes())
    card.with_files(folder, tuple(card.files)).write(folder)


def test_an_old_version_that_answers_otherwise_here_does_not_stand_in_the_way_of_a_new_one(tmp_path: Path) -> None:
    """Triton loads both, or neither; the project may have moved to another machine."""
    _ship_otherwise(tmp_path / "old", 2.0)
    ship(tmp_path / "new", seed=1)
    publish(tmp_path / "old", tmp_path / "repo", DEPLOY)
    publish(tmp_path / "new", tmp_path / "repo", DEPLOY)
    assert (read_release(tmp_path / "repo").champion, read_release(tmp_path / "repo").previous) == (2, None)


def test_the_same_model_is_published_again_only_where_it_was_seen_to_answer_otherwise(tmp_path: Path) -> None:
    ship(tmp_path / "shipped")
    publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY)
    _ship_otherwise(tmp_path / "shipped", 1 + 1e-6)  # as sums in another order
    assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (1, False)
    _ship_otherwise(tmp_path / "shipped", 2.0)
    assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (2, True)


def test_a_model_of_another_shape_is_served_alone(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    ship(tmp_path / "larger", labels=(*LABELS, "weiß"), spec=PreprocessSpec(height=16, width=16))
    publish(tmp_path / "larger", tmp_path / "repo", DEPLOY)
    assert read_release(tmp_path / "repo").previous is None
    config = read_config((tmp_path / "repo/classifier/config.pbtxt").read_text(encoding="utf-8"))
    assert list(config.version_policy.specific.versions) == [2]
    assert list(config.input[0].dims) == [16, 16, 3]


def test_a_damaged_model_is_refused_and_nothing_changes(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    before = _files(tmp_path / "repo")
    ship(tmp_path / "next", seed=1)
    data = bytearray((tmp_path / "next/model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "next/model.onnx").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"model\.onnx is damaged or was exchanged"):
        publish(tmp_path / "next", tmp_path / "repo", DEPLOY)
    assert _files(tmp_path / "repo") == before


@pytest.mark.parametrize("step", ["_write_version", "_write_models", "write_json"])
def test_a_crash_at_any_step_leaves_the_old_champion(
    tmp_path: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    old = _files(tmp_path / "repo/classifier/1")
    ship(tmp_path / "next", seed=1)

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, crash)
        with pytest.raises(ServingError, match=r"No space left on device.*The old version is untouched"):
            publish(tmp_path / "next", tmp_path / "repo", DEPLOY)
    assert read_release(tmp_path / "repo").champion == 1
    assert _files(tmp_path / "repo/classifier/1") == old
    version, new = publish(tmp_path / "next", tmp_path / "repo", DEPLOY)
    assert new
    assert read_release(tmp_path / "repo").champion == version
    assert not list((tmp_path / "repo/classifier").glob("staging-*"))


def test_a_damaged_champion_is_published_anew(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    (tmp_path / "repo/classifier/1/model.onnx").write_bytes(b"damaged")
    assert publish(shipped, tmp_path / "repo", DEPLOY) == (2, True)


def test_names_that_triton_does_not_serve_are_no_versions(tmp_path: Path) -> None:
    for name in ("0", "01", "1", "12", "abc", "staging-x", "-1"):
        (tmp_path / "repo/classifier" / name).mkdir(parents=True)
    (tmp_path / "repo/classifier/7").write_text("a file")
    assert versions(tmp_path / "repo") == [1, 12]
    assert versions(tmp_path / "nowhere") == []


def test_a_repository_without_release_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"release\.json cannot be read .*run `dvc repro deploy`"):
        champion_folder(tmp_path)
    (tmp_path / "release.json").write_text(json.dumps({"champion": "one"}))
    with pytest.raises(ArtifactError, match="is no release of this visionloop"):
        champion_folder(tmp_path)


def test_a_label_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    ship(tmp_path / "shipped", labels=("a\nb", "c"))
    publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY)
    assert (tmp_path / "repo/classifier/labels.txt").read_text(encoding="utf-8") == "a b\nc\n"


def test_a_link_is_no_version_and_is_neither_followed_nor_removed(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/kept").write_text("not ours")
    (tmp_path / "repo/classifier/2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert versions(tmp_path / "repo") == [1]
    for seed in (2, 3, 4):
        ship(tmp_path / "shipped", seed=seed)
        assert publish(tmp_path / "shipped", tmp_path / "repo", DEPLOY) == (seed + 1, True)
    assert versions(tmp_path / "repo") == [3, 4, 5]
    assert (tmp_path / "repo/classifier/2/kept").read_text() == "not ours"


def test_a_repository_that_cannot_be_written_is_a_sentence(tmp_path: Path, shipped: Path) -> None:
    (tmp_path / "repo").write_text("a file where the folder should be")
    with pytest.raises(
        ServingError, match=r"repo cannot be written \(.*\); free some disk space or make the folder writable"
    ):
        publish(shipped, tmp_path / "repo", DEPLOY)
    assert (tmp_path / "repo").read_text() == "a file where the folder should be"


def test_what_the_project_and_the_served_models_decode_with_is_in_the_published_card(tmp_path: Path, shipped: Path) -> None:
    publish(shipped, tmp_path / "repo", DEPLOY, lineage={"pillow": "13.0.0", "served_pillow": "11.3.0"})
    card = load_card(champion_folder(tmp_path / "repo"))
    assert card.lineage == {**load_card(shipped).lineage, "pillow": "13.0.0", "served_pillow": "11.3.0"}
    card.verify(champion_folder(tmp_path / "repo"))
    # Another decoder alone is no other model.
    assert publish(shipped, tmp_path / "repo", DEPLOY, lineage={"pillow": "14.0.0"}) == (1, False)

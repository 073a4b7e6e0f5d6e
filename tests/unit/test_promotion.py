"""Decisions over the gate's head, its report as `deploy` reads it, and what may be published."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionloop.errors import ArtifactError, BlockedError, DataError
from visionloop.files import write_json
from visionloop.promotion import (
    GateReport,
    add_promotion,
    check_proved,
    check_publishable,
    is_outdated,
    promotion_of,
    read_promotions,
    read_report,
)

HEAD = "model_sha256,who,why,when\n"
NEW, OLD, OTHER = "a" * 64, "b" * 64, "c" * 64


def report(*, passed: bool = True, champion: str = OLD) -> GateReport:
    return GateReport(passed, False, NEW, champion, 1 if champion else 0, "It is worse.")


def test_a_decision_is_kept_and_found_by_the_model(tmp_path: Path) -> None:
    path = tmp_path / "promotions.csv"
    path.write_text(HEAD)
    add_promotion(path, NEW, "ana", 'the camera was\nreplaced, "all" of it')
    add_promotion(path, OLD, "ben", "second")
    first, second = read_promotions(path)
    assert (first.model_sha256, first.who, first.why) == (NEW, "ana", 'the camera was replaced, "all" of it')
    assert promotion_of([first, second], OLD) == second
    assert promotion_of([first, second], OTHER) is None
    with pytest.raises(DataError, match="needs a reason and a name"):
        add_promotion(path, NEW, "ana", "  ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the header is ''"),
        ("sha,who\n", "line 1: the header is 'sha,who'"),
        (HEAD + "\nxyz,ana,why,now\n", "line 3: 'xyz,ana,why,now' is not understood"),
        (HEAD + f"{NEW},ana,,now\n", "line 2: "),
        (HEAD + f"{NEW},ana\n", "line 2: "),
    ],
)
def test_a_file_that_is_not_understood_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "promotions.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_promotions(path)
    assert said in str(caught.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        read_promotions(path)
    with pytest.raises(DataError, match="write a file with the one line"):
        read_promotions(tmp_path / "none.csv")


def test_only_what_the_gate_let_pass_against_the_present_champion_is_published() -> None:
    check_publishable(report(), NEW, OLD)
    check_publishable(report(), NEW, "")  # nothing is served any more
    check_publishable(report(), NEW, NEW)  # a run was killed after it was published
    with pytest.raises(BlockedError, match="did not judge the model aaaaaaaaaaaa"):
        check_publishable(None, NEW, OLD)
    with pytest.raises(BlockedError, match="did not judge"):
        check_publishable(report(), OTHER, OLD)
    with pytest.raises(BlockedError, match=r"blocks this model\. It is worse\."):
        check_publishable(report(passed=False), NEW, OLD)
    with pytest.raises(
        BlockedError, match="is cccccccccccc… now, and the gate compared with bbbbbbbbbbbb…: someone rolled back"
    ):
        check_publishable(report(), NEW, OTHER)
    with pytest.raises(BlockedError, match="compared with none: someone"):
        check_publishable(report(champion=""), NEW, OTHER)
    assert [is_outdated(report(), one) for one in ("", OLD, NEW, OTHER)] == [False, False, False, True]


def test_a_report_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "gate.json"
    assert read_report(path) is None
    write_json(
        path, {"passed": 1, "forced": 0, "champion_version": 0, "verdict": ["x"], "challenger": [NEW], "champion": []}
    )
    assert read_report(path) == GateReport(True, False, NEW, "", 0, "x")
    for text in ("", "[]", '{"passed": 1}', "null"):
        path.write_text(text)
        with pytest.raises(ArtifactError, match="is no report of the gate"):
            read_report(path)


def test_only_a_proved_model_with_its_card_is_published(tmp_path: Path) -> None:
    path = tmp_path / "parity.json"
    found = {"model": [NEW], "card": [OLD], "decoder": [{"pillow": "13"}], "served_decoder": [{"pillow": "12"}]}
    write_json(path, {**found, "over_budget": []})
    assert check_proved(path, NEW, OLD) == {"pillow": "13", "served_pillow": "12"}
    for model, card in ((OTHER, OLD), (NEW, OTHER)):
        with pytest.raises(BlockedError, match=r"is not proved; run `dvc repro` without --single-item"):
            check_proved(path, model, card)
    write_json(path, {**found, "over_budget": ["torch and ONNX differ"]})
    with pytest.raises(BlockedError, match=r"parity\.json is over its budget: torch and ONNX differ\."):
        check_proved(path, NEW, OLD)
    write_json(path, {"over_budget": []})
    with pytest.raises(ArtifactError, match=r"is no report of the parity of a model \(KeyError\); remove it"):
        check_proved(path, NEW, OLD)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"cannot be read .*; run `dvc repro parity`"):
        check_proved(path, NEW, OLD)

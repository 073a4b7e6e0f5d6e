"""Labels from the command line to `data/feedback`, and from there through the source `feedback`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.schemas.objects import State
from prefect.states import Completed

from pipeline import feedback
from pipeline.feedback import Pulled
from serving.images import image_path
from serving.repository import publish
from serving.store import Labelled, Store
from tests import helpers_serving
from tests.helpers_serving import answered_row, rejected_row
from visionloop.data.sources.feedback import FeedbackSource
from visionloop.errors import ArtifactError, LabelError, PipelineError
from visionloop.files import sha256_bytes, write_bytes
from visionloop.paths import FEEDBACK, LIVE_IMAGES
from visionloop.records import Feedback

ROOT = Path(__file__).parents[3]
URL = "sqlite:///var/store.db"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The store of a project with a published model that knows "blau", "grün" and "rot"."""
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    helpers_serving.ship(tmp_path / "models" / "shipped")
    publish(tmp_path / "models" / "shipped", tmp_path / "model_repository", helpers_serving.DEPLOY)
    with Store(URL) as opened:
        opened.create()
        yield opened


def _answer(store: Store, *names: str, kept: bool = True, label: str = "rot", image: bytes | None = None) -> None:
    """Answer images, as the endpoint would; the image of a prediction is its name unless given."""
    rows = []
    for name in names:
        data = image or name.encode()
        rows.append(replace(answered_row(name, label=label), image_sha256=sha256_bytes(data)))
        if kept:
            write_bytes(image_path(LIVE_IMAGES, sha256_bytes(data)), data)
    store.write_predictions(rows)


def _rows() -> list[tuple[bytes, str, str, str]]:
    """What collect would take: data, label, path, who."""
    return [(image.data, image.label, image.path, image.labelled_by) for image in FeedbackSource(FEEDBACK)]


def test_a_label_is_taken_changed_and_taken_again(store: Store) -> None:
    _answer(store, "a")
    given = feedback.label(store, " a ", "grün", "Éva")
    assert (given.label, given.predicted, given.change, given.before) == ("grün", "rot", "new", None)
    assert given.image == image_path(LIVE_IMAGES, sha256_bytes(b"a"))
    assert feedback.label(store, "a", "grün", "Éva").change == "unchanged"
    again = feedback.label(store, "a", "blau", "Éva")
    assert (again.change, again.before) == ("changed", "grün")
    assert [(row.label, row.who) for row in store.labelled()] == [("blau", "Éva")]
    assert store.counts()["feedback"] == 2
    assert [row.target for row in store.recent_predictions()] == ["blau"]  # what the monitor reads


@pytest.mark.parametrize(
    ("prediction_id", "label", "reason", "message"),
    [
        (
            "nobody",
            "rot",
            "unknown_prediction",
            "The store has no prediction 'nobody'; take the id that the endpoint answered",
        ),
        ("", "rot", "unknown_prediction", "The prediction id is empty"),
        ("x' OR '1'='1", "rot", "unknown_prediction", "The store has no prediction"),
        ("broken", "rot", "refused_image", r"Prediction broken is a refused image \(truncated\); it has no label"),
        ("a", "Rot", "unknown_class", "'Rot' is no class; did you mean 'rot'"),
        ("a", "", "empty", "The label is empty"),
        ("a", "zebra", "unknown_class", "'zebra' is no class; known are blau, grün, rot"),
    ],
)
def test_what_cannot_be_labelled_is_refused_and_stores_nothing(
    store: Store, prediction_id: str, label: str, reason: str, message: str
) -> None:
    _answer(store, "a")
    store.write_predictions([rejected_row("broken", "truncated")])
    with pytest.raises(LabelError, match=message) as caught:
        feedback.label(store, prediction_id, label, "one")
    assert caught.value.reason == reason
    assert store.counts()["feedback"] == 0


def test_a_prediction_of_another_version_is_labelled_with_the_champions_classes(store: Store) -> None:
    store.write_predictions([answered_row("old", version="7", label="gelb")])
    assert feedback.label(store, "old", "rot", "one").predicted == "gelb"
    with pytest.raises(LabelError, match="'gelb' is no class"):
        feedback.label(store, "old", "gelb", "one")


def test_a_new_class_is_known_once_it_was_allowed(store: Store) -> None:
    _answer(store, "a", "b")
    assert feedback.label(store, "a", "zebra", "one", new_class=True).label == "zebra"
    assert feedback.label(store, "b", "zebra", "one").label == "zebra"
    with pytest.raises(LabelError, match="did you mean 'zebra'"):
        feedback.label(store, "b", "Zebra", "one", new_class=True)


def test_a_csv_file_is_taken_row_by_row(store: Store, tmp_path: Path) -> None:
    _answer(store, "a", "b", "c")
    lines = [
        "prediction_id;label;who",
        "a;grün;Éva",
        "nobody;rot;",
        "b;Rot;",
        "a;blau;",
        '"c";"=cmd()";x',
        "c;;",
        "c;rot;",
        "",
    ]
    (tmp_path / "labels.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    done = feedback.import_file(store, tmp_path / "labels.csv", "me")
    assert dict(done.counts) == {"new": 2, "changed": 1}
    assert [(row.line, row.reason) for row in done.bad] == [
        (3, "unknown_prediction"),
        (4, "unknown_class"),
        (6, "unknown_class"),
        (7, "empty"),
    ]
    assert done.bad[1].sentence == "'Rot' is no class; did you mean 'rot'?"
    assert [(row.prediction_id, row.label, row.who) for row in store.labelled()] == [("a", "blau", "me"), ("c", "rot", "me")]
    again = feedback.import_file(store, tmp_path / "labels.csv", "me", ["=cmd()"])
    assert (dict(again.counts), len(again.bad)) == ({"changed": 4}, 3)  # a and c went to their first labels and back
    assert {row.prediction_id: row.label for row in store.labelled()} == {"a": "blau", "c": "rot"}


def test_ten_thousand_labels_are_taken_in_one_call(store: Store, tmp_path: Path) -> None:
    store.write_predictions([answered_row(str(number)) for number in range(10_000)])
    rows = "".join(f"{number},{helpers_serving.LABELS[number % 3]}\n" for number in range(10_000))
    (tmp_path / "labels.csv").write_text(f"prediction_id,label\n{rows}nobody,rot\n")
    done = feedback.import_file(store, tmp_path / "labels.csv", "one")
    assert (done.counts["new"], [row.line for row in done.bad]) == (10_000, [10_002])


def test_pulled_images_come_back_through_the_source(store: Store) -> None:
    _answer(store, "a", "b", "c")
    feedback.label(store, "b", "grün", "Éva")
    feedback.label(store, "a", "blau", "Jo")
    pulled = feedback.pull(store)
    assert (pulled.images, pulled.up_to_date, pulled.missing, pulled.by) == (2, 0, 0, {"Éva": 1, "Jo": 1})
    [path] = pulled.files
    assert path.name == f"labels-00001-{path.name[13:21]}.parquet"
    assert sha256_bytes(path.read_bytes())[:8] == path.name[13:21]
    assert _rows() == [(b"b", "grün", "b.png", "Éva"), (b"a", "blau", "a.png", "Jo")]
    assert {image.time for image in FeedbackSource(FEEDBACK)} == {answered_row("a").time}
    assert pq.read_schema(path).equals(
        pa.schema(
            [
                pa.field("data", pa.binary(), nullable=False),
                pa.field("label", pa.string(), nullable=False),
                pa.field("path", pa.string(), nullable=False),
                pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
                pa.field("labelled_by", pa.string(), nullable=False),
                pa.field("prediction_id", pa.string(), nullable=False),
            ]
        )
    )


def test_pulling_again_adds_only_what_is_new_and_touches_no_file(store: Store) -> None:
    _answer(store, "a", "b")
    feedback.label(store, "a", "grün", "one")
    feedback.pull(store)
    before = {path: path.read_bytes() for path in FEEDBACK.iterdir()}
    assert feedback.pull(store) == Pulled((), 0, 1, 0, {}, {})
    feedback.label(store, "b", "rot", "one")
    feedback.label(store, "a", "grün", "two")  # the same label from somebody else brings nothing new
    pulled = feedback.pull(store)
    assert (pulled.images, pulled.up_to_date) == (1, 1)
    assert pulled.files[0].name.startswith("labels-00002-")
    assert {path: path.read_bytes() for path in before} == before
    assert [label for _, label, _, _ in _rows()] == ["grün", "rot"]


def test_the_newest_label_wins_also_when_the_image_is_no_longer_kept(store: Store) -> None:
    _answer(store, "a", "b")
    feedback.label(store, "a", "grün", "one")
    feedback.label(store, "b", "grün", "one")
    feedback.pull(store)
    image_path(LIVE_IMAGES, sha256_bytes(b"a")).unlink()
    feedback.label(store, "a", "blau", "two")
    assert feedback.pull(store).images == 1
    assert sorted(_rows()) == [(b"a", "blau", "a.png", "two"), (b"b", "grün", "b.png", "one")]
    feedback.label(store, "a", "grün", "one")  # and back to the first
    assert feedback.pull(store).images == 1
    assert sorted(_rows())[0] == (b"a", "grün", "a.png", "one")


def test_an_image_that_was_answered_twice_is_written_once_with_the_newest_label(store: Store) -> None:
    _answer(store, "a", "b", image=b"same")
    feedback.label(store, "a", "grün", "one")
    feedback.label(store, "b", "blau", "two")
    assert feedback.pull(store).images == 1
    assert _rows() == [(b"same", "blau", "b.png", "two")]
    feedback.label(store, "a", "rot", "one")
    assert feedback.pull(store).images == 1
    assert _rows() == [(b"same", "rot", "b.png", "one")]


def test_labelled_images_that_are_not_kept_are_counted(store: Store) -> None:
    _answer(store, "a")
    _answer(store, "b", "c", kept=False)
    image_path(LIVE_IMAGES, sha256_bytes(b"c")).parent.mkdir(exist_ok=True)
    image_path(LIVE_IMAGES, sha256_bytes(b"c")).write_bytes(b"damaged")
    for name in "abc":
        feedback.label(store, name, "rot", "one")
    pulled = feedback.pull(store)
    assert (pulled.images, pulled.missing) == (1, 2)
    assert feedback.sentences(pulled)[1].startswith("2 labelled images are not kept;")
    _answer(store, "b2", image=b"b")  # the same image comes again, and is kept this time
    assert (feedback.pull(store).images, feedback.pull(store).missing) == (1, 1)


def test_a_pull_lets_the_keeper_have_the_images_back(store: Store) -> None:
    _answer(store, "a")
    feedback.label(store, "a", "rot", "one")
    assert store.unpulled_images() == {sha256_bytes(b"a")}
    feedback.pull(store)
    assert store.unpulled_images() == set()


def test_a_pull_that_was_killed_is_finished_by_the_next_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(store, "a", "b")
    for name in "ab":
        feedback.label(store, name, "rot", "one")
    monkeypatch.setattr(feedback, "_FILE_BYTES", 1)  # a file each
    seen: list[Path] = []
    whole = feedback._write_file

    def dies_at_the_second(target: Path, number: int, stream: object) -> Path:
        if seen:
            (target / f".labels-{number:05d}.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        seen.append(whole(target, number, stream))  # type: ignore[arg-type]
        return seen[0]

    monkeypatch.setattr(feedback, "_write_file", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        feedback.pull(store)
    assert len(_rows()) == 1  # the half file is not seen
    assert store.unpulled_images() != set()
    monkeypatch.setattr(feedback, "_write_file", whole)
    assert feedback.pull(store).images == 1
    assert [path.name[:12] for path in sorted(FEEDBACK.iterdir())] == ["labels-00001", "labels-00002"]
    assert len(_rows()) == 2


def test_files_have_a_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "_FILE_BYTES", 25)
    monkeypatch.setattr(feedback, "_GROUP_BYTES", 15)
    names = [f"image-{number:04}" for number in range(7)]  # 10 bytes each
    _answer(store, *names)
    for name in names:
        feedback.label(store, name, "rot", "one")
    files = feedback.pull(store).files
    assert [path.name[:12] for path in files] == ["labels-00001", "labels-00002", "labels-00003"]
    assert [pq.read_metadata(path).num_rows for path in files] == [3, 3, 1]
    assert [data.decode() for data, *_ in _rows()] == names


def test_a_damaged_file_of_an_earlier_pull_is_named(store: Store) -> None:
    FEEDBACK.mkdir(parents=True)
    (FEEDBACK / "labels-00001-abcdef12.parquet").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"labels-00001-abcdef12\.parquet cannot be read .*; move it away and run"):
        feedback.pull(store)


def test_nothing_is_pulled_into_a_running_pipeline(store: Store) -> None:
    code = "import sys; from pipeline import repro\nwith repro.locked(): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code]
    env_path = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env_path) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(PipelineError, match=r"The pipeline runs already \(process"):
            feedback.pull(store)
        assert holder.stdin is not None
        holder.stdin.close()
    assert feedback.pull(store).images == 0


def _label_many(store: Store, who: str, pairs: list[tuple[str, str]]) -> None:
    """Answer an image per pair with its first, and label it with its second."""
    names = [f"{who}-{number}" for number in range(len(pairs))]
    for name, (predicted, _) in zip(names, pairs, strict=True):
        _answer(store, name, label=predicted)
    now = datetime.now(UTC)
    store.write_feedback([Feedback(name, label, who, now) for name, (_, label) in zip(names, pairs, strict=True)])


def _answers(count: int) -> list[str]:
    return [helpers_serving.LABELS[number % 3] for number in range(count)]


def test_one_class_only_and_copied_answers_are_remarked(store: Store) -> None:
    _label_many(store, "few", [("rot", "rot")] * 19)
    assert feedback.remarks(store.labelled()) == []
    _label_many(store, "one", [("rot", "rot")])
    found = feedback.remarks(store.labelled())
    assert [sentence.split(";")[0] for sentence in found] == [
        "All 20 labels say 'rot'",
        "All 20 labels are what the model said",
    ]
    _label_many(store, "two", [("blau", "grün")])
    assert feedback.remarks(store.labelled()) == []


def test_shuffled_labels_are_held_back_and_others_are_not(store: Store) -> None:
    answers = _answers(60)
    shuffled = list(answers)
    random.Random(0).shuffle(shuffled)
    _label_many(store, "shuffled", list(zip(answers, shuffled, strict=True)))
    # The least confident images: the model is right on half of them.
    _label_many(store, "careful", [(name, name if number % 2 else "rot") for number, name in enumerate(answers)])
    [remark] = feedback.remarks(store.labelled())
    assert "of 60 labels of shuffled agree with the model, no more than chance gives" in remark
    pulled = feedback.pull(store)
    assert (pulled.images, pulled.held_back) == (60, {"shuffled": 60})
    assert {who for *_, who in _rows()} == {"careful"}
    assert len(store.unpulled_images()) == 120  # so that the images are there when somebody decides
    assert feedback.pull(store, anyway=True).images == 60
    assert store.unpulled_images() == set()


def test_images_of_a_new_class_are_not_called_chance(store: Store) -> None:
    _label_many(store, "one", [(name, "zebra") for name in _answers(60)])
    assert feedback.pull(store).images == 60
    _label_many(store, "two", [("rot", "rot")] * 57 + [("rot", "blau")] * 3)  # hardly more than one class: no verdict
    assert feedback.pull(store).held_back == {}


def test_shuffled_labels_are_found_and_honest_ones_are_left_alone() -> None:
    found = []
    for seed in range(200):
        rng = random.Random(seed)
        answers = [str(rng.randrange(10)) for _ in range(100)]
        labels = [name if rng.random() < 0.5 else str(rng.randrange(10)) for name in answers]  # right on 55 %
        shuffled = list(labels)
        rng.shuffle(shuffled)
        sides = []
        for side in (labels, shuffled):
            rows = [
                Labelled(1, "", label, "one", predicted, datetime.now(UTC), "", "PNG")
                for label, predicted in zip(side, answers, strict=True)
            ]
            sides.append(feedback._at_random(rows))
        found.append(tuple(sides))
    assert sum(honest for honest, _ in found) == 0
    assert sum(shuffled for _, shuffled in found) >= 190  # two standard errors: 2.5 % slip through


def test_what_to_label_first_is_kept_and_unlabelled(store: Store) -> None:
    _answer(store, "a", "b")
    _answer(store, "gone", kept=False)
    [first, second] = feedback.candidates(store, 10)
    assert {first.prediction_id, second.prediction_id} == {"a", "b"}
    assert first.image.read_bytes() == first.prediction_id.encode()
    feedback.label(store, "a", "rot", "one")
    assert [row.prediction_id for row in feedback.candidates(store, 10)] == ["b"]


def _cli(*arguments: str, code: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_command_line_labels_lists_imports_and_pulls(store: Store, tmp_path: Path) -> None:
    _answer(store, "a", "b", "c")
    assert _cli("feedback", "label", "a", "grün", "--who", "Éva", code=0).stdout == "a is grün; the model said rot.\n"
    refused = _cli("feedback", "label", "a", "Grün", code=1)
    assert refused.stderr == "'Grün' is no class; did you mean 'grün'?\n"
    assert "stand in todo.csv" in _cli("feedback", "list", "--csv", "todo.csv", code=0).stdout
    head, *lines = (tmp_path / "todo.csv").read_text().splitlines()
    assert head == "prediction_id,label,predicted,confidence,image"
    assert {line.split(",")[0] for line in lines} == {"b", "c"}
    filled = [line.replace(",", ",blau,", 1).replace(",,", ",") if line.startswith("b") else line for line in lines]
    (tmp_path / "todo.csv").write_text("\n".join([head, *filled]))
    done = _cli("feedback", "import", "todo.csv", code=1)
    assert done.stdout == "1 new, 0 changed, 0 unchanged, 1 not taken.\n"
    assert done.stderr == "line 2: The label is empty; name the class.\n"
    assert "2 labelled images are in data/feedback/labels-00001-" in _cli("feedback", "pull", code=0).stdout
    assert sorted(_rows())[0] == (b"a", "grün", "a.png", "Éva")
    assert json.loads(_cli("feedback", "pull", "--json", code=0).stdout)["up_to_date"] == 2
    status = _cli("status", code=0).stdout
    assert "images     3 kept, 0 labelled since the last pull\n" in status


def test_a_pull_that_holds_labels_back_exits_with_2(store: Store) -> None:
    answers = _answers(60)
    _label_many(store, "one", list(zip(answers, answers[1:] + answers[:1], strict=True)))  # rows shifted by one
    done = _cli("feedback", "pull", code=2)
    assert "60 labels of one are held back" in done.stdout
    assert not list(FEEDBACK.glob("*.parquet"))
    assert "60 labelled images are in" in _cli("feedback", "pull", "--anyway", code=0).stdout


def test_a_retraining_pulls_before_it_trains(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import flows

    seen: list[int] = []

    def train(*, return_state: bool) -> State[list[str]]:
        assert return_state
        seen.append(len(list(FEEDBACK.glob("*.parquet"))))
        return Completed(data=[])

    monkeypatch.setattr(flows, "pull_labels", flows.pull_labels.fn)  # the task's function, without a Prefect server
    monkeypatch.setattr(flows, "train", train)
    _answer(store, "a")
    feedback.label(store, "a", "grün", "one")
    assert flows.retrain.fn(reason="drift") == "unchanged"
    assert seen == [1]
    params = Path("params.yaml").read_text()
    Path("params.yaml").write_text(params.replace("  feedback: true", "  feedback: false"))
    feedback.label(store, "a", "blau", "one")
    flows.retrain.fn()
    assert seen == [1, 1]

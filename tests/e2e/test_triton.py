"""A real Triton server, from the answer of one image to the death of everything at once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from serving.client import Client
from serving.images import read_image
from serving.repository import config_text, publish, read_config
from serving.server import TritonServer
from serving.store import Store
from tests.helpers_serving import DEPLOY, LABELS, SPEC, calibrated, ship
from visionloop import paths, runtime
from visionloop.card import Calibration, Runtime
from visionloop.compression.parity import Golden
from visionloop.config import load_params
from visionloop.data.shards import append, read_images
from visionloop.data.sources import open_sources
from visionloop.errors import ImageError, ServingError
from visionloop.features import EmbeddingPCA, softmax
from visionloop.files import sha256_bytes
from visionloop.preprocess import encode_png, preprocess

ROOT = Path(__file__).parents[2]
Protocol = Literal["http", "grpc"]
# The served session and the offline one are the same ONNX Runtime on the same bytes; another batch size may sum in
# another order, which for this model of three products is below 1e-6 of a logit of about 1.
LOGIT_TOLERANCE = 1e-5


def _images(count: int, seed: int = 0) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [encode_png(rng.integers(0, 256, size=(20, 30, 3), dtype=np.uint8)) for _ in range(count)]


@dataclass(frozen=True)
class Served:
    """A running server and where its things lie."""

    server: TritonServer
    folder: Path
    store_url: str

    def client(self, protocol: Protocol = "http") -> Client:
        return Client(self.server.http_url if protocol == "http" else self.server.grpc_url, protocol)

    def processes(self) -> list[psutil.Process]:
        """The guard, the server and its stubs."""
        assert self.server.pid is not None
        guard = psutil.Process(self.server.pid)
        return [guard, *guard.children(recursive=True)]


def _make(folder: Path, calibration: Calibration | None = None, run_by: Runtime = "onnxruntime", **options: Any) -> Served:
    ship(folder / "shipped", calibration=calibration, runtime=run_by)
    publish(folder / "shipped", folder / "model_repository", DEPLOY)
    url = f"sqlite:///{folder}/store.db"
    settings: dict[str, Any] = {"store_url": url, "spool": folder / "spool", "images": folder / "images", **options}
    server = TritonServer(
        folder / "model_repository", run_dir=folder / "run", http_port=0, grpc_port=0, metrics_port=0, **settings
    )
    return Served(server, folder, url)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for the tests that leave it as it is. It refuses images over 0.2 MB or 0.01 megapixels."""
    made = _make(tmp_path_factory.mktemp("triton"), max_image_megabytes=0.2, max_image_megapixels=0.01)
    with made.server:
        yield made


@pytest.fixture(scope="module")
def doubting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with a calibrated model."""
    made = _make(tmp_path_factory.mktemp("doubting"), calibrated(review_below=0.34, threshold=0.01))
    with made.server:
        yield made


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server of one's own, to publish to, to break and to kill."""
    made = _make(tmp_path)
    with made.server:
        yield made


def _rows(url: str, expected: int, seconds: float = 20) -> list[Any]:
    """The store's rows, as soon as there are `expected` of them."""
    deadline = time.monotonic() + seconds
    rows: list[Any] = []
    while time.monotonic() < deadline:
        if Path(url.removeprefix("sqlite:///")).exists():
            with Store(url) as store:
                store.create()
                rows = store.recent_predictions(limit=1_000_000)
            if len(rows) >= expected:
                return rows
        time.sleep(0.1)
    return rows


def _until_stored(url: str, prediction_id: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while prediction_id not in {row.prediction_id for row in _rows(url, 1)}:
        assert time.monotonic() < deadline, "the prediction does not reach the store"
        time.sleep(0.1)


def _token(folder: Path) -> str:
    return str(json.loads((folder / "run/triton/server.json").read_text())["prefix"])


def _carriers(token: str) -> list[str]:
    """What is left of a server: living processes that carry its token, and its shared memory."""
    left = [path.name for path in Path("/dev/shm").glob(f"{token}*")]
    for process in psutil.process_iter():
        try:
            if any(token in argument for argument in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return left


def _until_gone(token: str, seconds: float = 20) -> list[str]:
    deadline = time.monotonic() + seconds
    while (left := _carriers(token)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_served_answers_equal_the_offline_model(served: Served, protocol: Protocol) -> None:
    model, card = runtime.load(served.folder / "shipped")
    images = _images(20)  # more than the batch of 8, so it goes in three requests
    tensors = np.stack([preprocess(image, SPEC) for image in images])
    logits, embedding = model.run(tensors)
    with served.client(protocol) as client:
        assert client.ready()
        assert client.versions() == [1]
        served_logits, served_embedding = client.predict_tensors(tensors)
        answers = client.predict_images(images)
    assert served_logits.shape == (20, 3)
    assert served_embedding.shape == (20, 12)
    assert np.abs(served_logits - logits).max() <= LOGIT_TOLERANCE
    assert np.abs(served_embedding - embedding).max() <= LOGIT_TOLERANCE
    expected = softmax(logits)
    assert np.abs(np.array([answer.probabilities for answer in answers]) - expected).max() <= LOGIT_TOLERANCE
    assert [answer.label for answer in answers] == [card.labels[index] for index in logits.argmax(axis=1)]
    assert [answer.probability for answer in answers] == [max(answer.probabilities) for answer in answers]
    assert {answer.model_version for answer in answers} == {"1"}
    assert len({answer.prediction_id for answer in answers}) == 20


def _libraries(served: Served) -> set[str]:
    """Names of the shared libraries that a server's processes have loaded."""
    return {Path(place.path).name for process in served.processes() for place in process.memory_maps()}


def test_the_server_runs_a_model_in_the_runtime_that_its_card_names(served: Served, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, SPEC.height, SPEC.width, 3), dtype=np.uint8)
    made = _make(tmp_path, run_by="openvino")
    with made.server, made.client() as client:
        logits, embedding = client.predict_tensors(images)
        libraries = _libraries(made)
    model, card = runtime.load(made.folder / "shipped")
    assert card.runtime == model.runtime == "openvino"
    np.testing.assert_allclose(logits, model.run(images)[0], atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(embedding, model.run(images)[1], atol=LOGIT_TOLERANCE)
    assert any(name.startswith("libopenvino_intel_cpu_plugin") for name in libraries)
    assert not any(name.startswith("libopenvino") for name in _libraries(served))


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_calibrated_model_says_what_is_unknown_and_what_is_for_a_person(doubting: Served, protocol: Protocol) -> None:
    """The only class mean is the embedding of a black image, so black is known and noise is not."""
    images = [encode_png(np.zeros((20, 30, 3), np.uint8)), *_images(1)]
    with doubting.client(protocol) as client:
        black, noise = client.predict_images(images)
    assert (black.unknown, noise.unknown) == (False, True)
    # Black has equal logits for all three classes, and the calibration sends what is below 0.34 to a person.
    assert black.probability == pytest.approx(1 / 3)
    assert black.review
    assert noise.review == (noise.probability < 0.34)
    _until_stored(doubting.store_url, noise.prediction_id)
    with Store(doubting.store_url) as store:
        rows = store.find_predictions([black.prediction_id, noise.prediction_id])
    kept, strange = rows[black.prediction_id], rows[noise.prediction_id]
    assert (kept.unknown, kept.review) == (False, True)
    assert kept.unknown_score == pytest.approx(0, abs=1e-9)
    assert strange.unknown is True
    assert strange.unknown_score is not None and strange.unknown_score > 0.01


def test_a_repository_of_before_calibration_is_served_and_nothing_is_doubted(tmp_path: Path) -> None:
    made = _make(tmp_path)
    path = tmp_path / "model_repository/classify/config.pbtxt"
    config = read_config(path.read_text())
    del config.output[-2:]
    path.write_text(config_text(config))
    with made.server, made.client() as client:
        [answer] = client.predict_images(_images(1))
    assert answer.label in LABELS
    assert (answer.unknown, answer.review) == (False, False)


def test_an_answer_is_logged_with_what_it_was_made_of(served: Served) -> None:
    image = _images(1, seed=7)[0]
    with served.client() as client:
        answer = client.predict_images([image], ["my own name"])[0]
    deadline = time.monotonic() + 10
    row = None
    while row is None and time.monotonic() < deadline:
        row = next((row for row in _rows(served.store_url, 1) if row.prediction_id == answer.prediction_id), None)
        time.sleep(0.1)
    assert row is not None
    card = runtime.load(served.folder / "shipped")[1]
    model, _ = runtime.load(served.folder / "shipped")
    _, embedding = model.run(preprocess(image, SPEC)[None])
    pca = EmbeddingPCA.from_bytes((served.folder / "shipped/embedding_pca.npz").read_bytes())
    assert (row.status, row.request_id, row.label, row.model_version) == ("ok", "my own name", answer.label, "1")
    assert row.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
    assert row.embedding == pytest.approx(pca.project(embedding)[0], abs=1e-4)
    assert (row.width_pixels, row.height_pixels, row.format, row.mode) == (30, 20, "PNG", "RGB")
    assert row.model_sha256 == card.files["model.onnx"]
    assert row.file_bytes == len(image)
    assert 0 < row.infer_ms < row.total_ms


def test_a_live_image_that_a_person_labels_comes_back_as_training_data(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(3, seed=11)
    with served.client() as client:
        answers = client.predict_images(images)
        client.predict_images(images[:1])  # again: kept once
        with pytest.raises(ImageError):
            client.predict_images([b"no image"])
    # The project of the command line, with the server's store and images as its own.
    (tmp_path / "var").mkdir()
    (tmp_path / "var/images").symlink_to(served.folder / "images")
    (tmp_path / "model_repository").symlink_to(served.folder / "model_repository")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    params = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("sqlite:///var/store.db", served.store_url))
    monkeypatch.chdir(tmp_path)

    def cli(*arguments: str) -> str:
        command = [sys.executable, "-m", "pipeline.cli", "feedback", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    _until_stored(served.store_url, answers[2].prediction_id)
    assert "the model said" in cli("label", answers[0].prediction_id, "grün", "--who", "Éva")
    (tmp_path / "labels.csv").write_text(f"prediction_id;label\n{answers[1].prediction_id};blau\n", encoding="utf-8-sig")
    assert cli("import", "labels.csv", "--who", "Jo") == "1 new, 0 changed, 0 unchanged, 0 not taken.\n"
    assert "2 labelled images are in data/feedback/labels-00001-" in cli("pull")
    assert "Nothing is new: 2 labelled images were pulled before." in cli("pull")

    folder = tmp_path / "raw" / "rot"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(_images(1, seed=12)[0])
    source = load_params(ROOT / "params.yaml").collect.model_copy(update={"source": "folder", "path": "raw"})
    append(open_sources(source), paths.SHARDS, paths.IMAGES, 100)
    rows = [row for row in read_images(paths.IMAGES) if row.source == "feedback"]
    assert [(row.id, row.label, row.labelled_by, row.path) for row in sorted(rows, key=lambda row: row.label)] == [
        (sha256_bytes(images[1]), "blau", "Jo", f"{answers[1].prediction_id}.png"),
        (sha256_bytes(images[0]), "grün", "Éva", f"{answers[0].prediction_id}.png"),
    ]
    with Store(served.store_url) as store:
        found = store.find_predictions([answer.prediction_id for answer in answers])
    assert [found[answer.prediction_id].target for answer in answers] == ["grün", "blau", None]
    assert {row.path: row.time for row in rows}[f"{answers[0].prediction_id}.png"] == found[answers[0].prediction_id].time
    assert read_image(served.folder / "images", sha256_bytes(images[2])) == images[2]
    assert read_image(served.folder / "images", sha256_bytes(b"no image")) is None  # a refused image is not kept


def test_serving_leaves_the_repository_as_it_was_published(served: Served) -> None:
    names = {
        str(path.relative_to(served.folder / "model_repository")) for path in (served.folder / "model_repository").rglob("*")
    }
    assert not any("__pycache__" in name for name in names)
    assert len(names) == 14


@pytest.mark.parametrize(
    ("image", "message", "reason"),
    [
        (b"no image", "not a JPEG, PNG, WebP or BMP image", "unreadable"),
        (b"", "has no bytes", "empty"),
        (b"GIF89a" + b"\0" * 20, "The bytes are GIF", "unsupported_format"),
        (encode_png(np.zeros((200, 100, 3), np.uint8)), "more than the limit of 0.01 megapixels", "too_large"),
        (b"\xff\xd8" + b"\0" * 300_000, "has 0.3 MB, more than the limit of 0.2 MB", "too_large"),
    ],
)
def test_an_image_that_cannot_be_used_is_a_400_with_the_reason_and_a_row(
    served: Served, image: bytes, message: str, reason: str
) -> None:
    request_id = f"refused {message}"
    tensor = tritonclient.http.InferInput("image", [1, 1], "BYTES").set_data_from_numpy(np.array([[image]], np.object_))
    with (
        tritonclient.http.InferenceServerClient(served.server.http_url) as client,
        pytest.raises(InferenceServerException, match=message) as caught,
    ):
        client.infer("classify", [tensor], request_id=request_id)
    assert caught.value.status() == "400"
    with served.client("grpc") as own_client, pytest.raises(ImageError, match=message):
        own_client.predict_images([image], [request_id])
    deadline = time.monotonic() + 10
    found: list[Any] = []
    while len(found) < 2 and time.monotonic() < deadline:
        found = [row for row in _rows(served.store_url, 1) if row.request_id == request_id]
        time.sleep(0.1)
    assert [(row.status, row.reason, row.probabilities, row.label) for row in found] == [
        ("rejected", reason, None, None)
    ] * 2


def test_one_bad_image_of_three_refuses_the_request_and_is_named(served: Served) -> None:
    good = _images(2)
    with served.client() as client, pytest.raises(ImageError, match="Image 1 of 3: The bytes are not a JPEG"):
        client.predict_images([good[0], b"bad", good[1]])


def test_a_bad_request_in_a_batch_does_not_harm_its_neighbours(served: Served) -> None:
    outcomes: list[str] = []

    def ask(image: bytes) -> None:
        with served.client() as client:
            for _ in range(20):
                try:
                    outcomes.append(client.predict_images([image])[0].label)
                except ImageError:
                    outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(image,)) for image in (*_images(3), b"bad")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("refused") == 20
    assert sum(outcomes.count(label) for label in LABELS) == 60


def test_a_request_id_that_is_too_long_is_refused(served: Served) -> None:
    with served.client() as client, pytest.raises(ImageError, match="A request id has over 256 bytes"):
        client.predict_images(_images(1), ["x" * 300])


@pytest.mark.parametrize("path", ["repository/models/classifier/unload", "systemsharedmemory/region/x/register", "logging"])
def test_what_changes_the_server_needs_the_key(served: Served, path: str) -> None:
    request = urllib.request.Request(f"http://{served.server.http_url}/v2/{path}", data=b"{}")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request)  # noqa: S310 - the scheme is ours
    assert served.server.ready()


def test_grpc_model_control_needs_the_key(served: Served) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(served.server.grpc_url) as client,
        pytest.raises(InferenceServerException, match="This protocol is restricted"),
    ):
        client.unload_model("classifier")


def test_everything_listens_on_loopback_only(served: Served) -> None:
    addresses = {
        connection.laddr.ip
        for process in served.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}


def _metric(served: Served, name: str) -> dict[str, float]:
    """The values of a metric, by status."""
    with urllib.request.urlopen(f"http://127.0.0.1:{served.server.ports.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {
        line.split('status="')[1].split('"')[0]: float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{")
    }


def test_metrics_count_what_was_answered(served: Served) -> None:
    with served.client() as client:
        client.predict_images(_images(2))
    time.sleep(0.3)
    counts = _metric(served, "visionloop_predictions_total")
    assert counts["answered"] >= 2
    assert counts["not_logged"] == 0
    deadline = time.monotonic() + 10
    kept: dict[str, float] = {}
    with served.client() as client:
        while kept.get("kept", 0) < 2 and time.monotonic() < deadline:  # a batch tells what was written before it
            client.predict_images(_images(2))
            time.sleep(0.3)
            kept = _metric(served, "visionloop_kept_images_total")
    assert kept["kept"] >= 2
    assert kept["dropped"] == 0


def test_a_second_server_on_the_same_folder_is_refused(served: Served) -> None:
    second = TritonServer(served.folder / "model_repository", run_dir=served.folder / "run")
    with pytest.raises(ServingError, match=r"Another process serves from .* already; stop it first"):
        second.start()
    assert served.server.ready()


def test_stopping_leaves_no_process_and_no_shared_memory(tmp_path: Path) -> None:
    made = _make(tmp_path)
    made.server.start()
    token = _token(tmp_path)
    assert len(_carriers(token)) >= 6  # guard, server, two stubs, two regions
    with made.client() as client:
        answers = client.predict_images(_images(8))
    made.server.stop()
    assert _carriers(token) == []
    # What was answered last is in the store by then.
    assert [row.prediction_id for row in _rows(made.store_url, 8)] == [answer.prediction_id for answer in answers]
    assert list((tmp_path / "spool").iterdir()) == []
    made.server.stop()  # again: nothing to do
    with made.server:  # and it can be started again
        assert made.server.ready()


def test_a_new_version_takes_over_without_a_failed_request(own: Served) -> None:
    stop = threading.Event()
    failures: list[Exception] = []
    seen: list[list[str]] = [[], [], [], []]

    def ask(index: int, protocol: Protocol) -> None:
        image = _images(1, seed=index)[0]
        with own.client(protocol) as client:
            while not stop.is_set():
                try:
                    seen[index].append(client.predict_images([image])[0].model_version)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                    failures.append(error)

    threads = [threading.Thread(target=ask, args=(index, ("http", "grpc")[index % 2])) for index in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    assert own.server.reload_if_released() is False
    for version in (2, 3):
        ship(own.folder / "next", seed=version)
        assert publish(own.folder / "next", own.folder / "model_repository", DEPLOY) == (version, True)
        time.sleep(0.5)  # published, not yet loaded: the old one answers
        assert own.server.reload_if_released() is True
        time.sleep(1.5)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    for versions in seen:
        assert versions == sorted(versions)
        assert set(versions) == {"1", "2", "3"}
    with own.client() as client:
        assert client.versions() == [2, 3]


def test_a_champion_with_other_classes_and_another_size_is_followed(own: Served) -> None:
    ship(own.folder / "next", seed=3, labels=("a", "b", "c", "d", "e"), spec=type(SPEC)(height=16, width=12))
    publish(own.folder / "next", own.folder / "model_repository", DEPLOY)
    own.server.reload_if_released()
    model, card = runtime.load(own.folder / "next")
    image = _images(1)[0]
    logits, _ = model.run(preprocess(image, card.preprocess)[None])
    with own.client() as client:
        answer = client.predict_images([image])[0]
    assert answer.model_version == "2"
    assert answer.label == card.labels[int(logits.argmax())]
    assert np.abs(np.array(answer.probabilities) - softmax(logits)[0]).max() <= LOGIT_TOLERANCE


def test_a_version_that_does_not_load_leaves_the_old_one_in_service(own: Served) -> None:
    ship(own.folder / "next", seed=2)
    publish(own.folder / "next", own.folder / "model_repository", DEPLOY)
    (own.folder / "model_repository/classifier/2/model.onnx").write_bytes(b"damaged on the way")
    with pytest.raises(ServingError, match=r"Triton refuses version 2 \(.*model\.onnx is damaged.*\); the old one goes on"):
        own.server.reload_if_released()
    with own.client() as client:
        assert {answer.model_version for answer in client.predict_images(_images(8))} == {"1"}


def test_every_answered_prediction_outlives_kill_9_of_everything(tmp_path: Path) -> None:
    made = _make(tmp_path)
    answered: list[str] = []
    for _ in range(2):
        made.server.start()
        stop = threading.Event()

        def ask(seed: int, stop: threading.Event = stop) -> None:
            image = _images(1, seed=seed)[0]
            with made.client("grpc" if seed % 2 else "http") as client:
                while not stop.is_set():
                    try:
                        answered.append(client.predict_images([image])[0].prediction_id)
                    except ServingError:
                        return

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        for process in reversed(made.processes()):
            process.kill()
        stop.set()
        for thread in threads:
            thread.join()
        token = _token(tmp_path)
        made.server.stop()
        assert _carriers(token) == []
    with Store(made.store_url) as store:
        stored = [row.prediction_id for row in store.recent_predictions(limit=1_000_000)]
    assert len(answered) > 100
    assert set(answered) <= set(stored)
    assert len(stored) == len(set(stored))


_LAUNCHER = """
import sys, time
from pathlib import Path
from serving.server import TritonServer
folder = Path(sys.argv[1])
TritonServer(folder / "model_repository", run_dir=folder / "run", http_port=0, grpc_port=0, metrics_port=0).start()
print("ready", flush=True)
time.sleep(600)
"""


def _killed_launcher(folder: Path, kill_guard: bool) -> str:
    with subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, str(folder)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "ready\n"
        token = _token(folder)
        if kill_guard:
            for guard in psutil.Process(launcher.pid).children():
                guard.suspend()  # so that it cannot tidy up between the two kills
                guard.kill()
        os.kill(launcher.pid, signal.SIGKILL)
    return token


def test_kill_9_of_the_launcher_leaves_nothing(tmp_path: Path) -> None:
    _make(tmp_path)
    assert _until_gone(_killed_launcher(tmp_path, kill_guard=False)) == []


def test_what_outlives_even_the_guard_is_swept_up_by_the_next_start(tmp_path: Path) -> None:
    made = _make(tmp_path)
    token = _killed_launcher(tmp_path, kill_guard=True)
    with made.server:
        assert _carriers(token) == []
        assert made.server.ready()


def test_a_dead_stub_ends_the_server_so_that_it_can_be_started_again(own: Served) -> None:
    # Left alone, Triton answers with errors from then on and still says that it is ready.
    token = _token(own.folder)
    next(process for process in own.processes() if "stub" in process.name()).kill()
    deadline = time.monotonic() + 20
    while own.server.pid is not None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert own.server.pid is None
    assert own.server.ready() is False
    assert _carriers(token) == []
    own.server.stop()
    own.server.start()
    with own.client() as client:
        assert len(client.predict_images(_images(2))) == 2


def test_a_model_that_answers_otherwise_than_where_it_was_made_is_not_served(own: Served) -> None:
    card = ship(own.folder / "next", seed=2)
    golden = Golden.from_bytes((own.folder / "next" / paths.GOLDEN).read_bytes())
    elsewhere = replace(golden, logits=golden.logits[:, ::-1])  # what another processor would have made of the weights
    (own.folder / "next" / paths.GOLDEN).write_bytes(elsewhere.to_bytes())
    card.with_files(own.folder / "next", tuple(card.files)).write(own.folder / "next")
    publish(own.folder / "next", own.folder / "model_repository", DEPLOY)
    with pytest.raises(ServingError, match=r"refuses version 2 \(.*answers 6 golden images otherwise here.*the old one"):
        own.server.reload_if_released()
    with own.client() as client:
        assert {answer.model_version for answer in client.predict_images(_images(8))} == {"1"}


def test_a_damaged_model_does_not_start_and_the_reason_is_said(tmp_path: Path) -> None:
    made = _make(tmp_path)
    (tmp_path / "model_repository/classifier/1/model.onnx").write_bytes(b"damaged")
    with pytest.raises(ServingError, match=r"Triton ended while it started: .*model\.onnx is damaged or was exchanged"):
        made.server.start()
    assert made.server.ready() is False


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r"failed to open text file for read .*config\.pbtxt"),
        ("this is no configuration {", r"failed to read text proto from .*config\.pbtxt"),
        ('name: "another"', "unexpected directory name 'classifier' for model 'another'"),
    ],
    ids=["missing", "broken", "of another name"],
)
def test_a_configuration_that_is_none_is_said_and_publishing_writes_it_again(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    made = _make(tmp_path)
    config = tmp_path / "model_repository/classifier/config.pbtxt"
    good = config.read_text()
    config.unlink()
    if text is not None:
        config.write_text(text)
    with pytest.raises(ServingError, match=f"Triton ended while it started: .*{sentence}.*single-item deploy"):
        made.server.start()
    publish(tmp_path / "shipped", tmp_path / "model_repository", DEPLOY)
    assert config.read_text() == good


def test_a_journal_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    made = _make(tmp_path)
    with made.server:
        with made.client() as client:
            assert len(client.predict_images(_images(20))) == 20
        with urllib.request.urlopen(f"http://127.0.0.1:{made.server.ports.metrics}/metrics") as answer:
            text = answer.read().decode()
    lost = [line for line in text.splitlines() if line.startswith("visionloop_predictions_total") and "not_logged" in line]
    assert [float(line.split()[-1]) for line in lost] == [20]


def test_images_that_cannot_be_kept_cost_no_answer(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    made = _make(tmp_path)
    with made.server, made.client() as client:
        assert len(client.predict_images(_images(20))) == 20
        time.sleep(0.2)
        assert len(client.predict_images(_images(1))) == 1
        time.sleep(0.2)
        assert _metric(made, "visionloop_kept_images_total")["dropped"] >= 20
        assert _metric(made, "visionloop_predictions_total")["answered"] == 21

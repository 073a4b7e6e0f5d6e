"""`pipeline.watching` on a real store: windows are judged once, keep their number, and alerts are told once."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipeline.watching import watch
from serving.repository import champion_folder, publish
from serving.store import Store
from tests import helpers_serving
from visionloop.card import load_card
from visionloop.config import MonitorParams
from visionloop.features import EmbeddingPCA
from visionloop.observe import Observer
from visionloop.paths import EMBEDDING_PCA, MODEL_REPOSITORY, REFERENCE
from visionloop.preprocess import decode, encode_png, resize
from visionloop.records import LoggedPrediction
from visionloop.runtime import load
from visionloop.tables import write_rows

START = datetime(2026, 1, 1, tzinfo=UTC)
PARAMS = MonitorParams(window_rows=60, min_rows=40, alpha=0.001, max_accuracy_drop=0.05, max_reject_share=0.05, keep_days=90)


def scored(folder: Path, count: int, seed: int, brighter: int = 0) -> list[LoggedPrediction]:
    """Rows as the server logs them, of images drawn by `seed`."""
    model, card = load(folder)
    observer = Observer(load_card(folder), EmbeddingPCA.from_bytes(card.read_file(folder, EMBEDDING_PCA)), model_version="1")
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        color = rng.integers(0, 200, 3) + brighter
        data = encode_png(np.clip(color + rng.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8))
        decoded = decode(data)
        pixels = resize(decoded.image, card.preprocess)
        logits, embedding = model.run(pixels[None])
        time = START + timedelta(hours=seed, seconds=number)
        rows.append(observer.answered(data, decoded, pixels, logits[0], embedding[0], time=time))
    return rows


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    helpers_serving.ship(tmp_path / "shipped")
    publish(tmp_path / "shipped", MODEL_REPOSITORY, helpers_serving.DEPLOY)
    reference = [replace(row, target="rot") for row in scored(champion_folder(MODEL_REPOSITORY), 300, seed=1)]
    write_rows(REFERENCE, LoggedPrediction, reference)
    store = Store("sqlite:///store.db")
    store.create()
    return store


def test_an_empty_store_waits_and_leaves_nothing(store: Store) -> None:
    with store:
        watched = watch(store, PARAMS)
        assert (watched.decision.action, watched.decision.level) == ("wait", "insufficient")
        assert not watched.new
        assert store.counts()["decisions"] == 0


def test_a_closed_window_is_kept_once_and_a_drifted_one_is_told_once(store: Store, tmp_path: Path) -> None:
    folder = champion_folder(MODEL_REPOSITORY)
    with store:
        store.write_predictions(scored(folder, 60, seed=2))
        first = watch(store, PARAMS)
        assert (first.decision.window_id, first.decision.action, first.new) == ("1-1", "wait", True)
        assert first.page == Path("var/drift/1-1.html") and first.page.exists()
        again = watch(store, PARAMS)
        assert (again.decision, again.new) == (first.decision, False)

        store.write_predictions(scored(folder, 60, seed=3, brighter=55))
        second = watch(store, PARAMS)
        assert second.decision.window_id == "1-2"
        assert second.decision.action in ("alert", "retrain")
        watch(store, PARAMS)
        assert [found.window_id for found in store.decisions()] == ["1-2", "1-1"]
        [told] = [json.loads(line) for line in (tmp_path / "var/logs/alerts.jsonl").read_text().splitlines()]
        assert told["window_id"] == "1-2"


def test_windows_keep_their_number_when_only_the_newest_rows_are_read(store: Store) -> None:
    folder = champion_folder(MODEL_REPOSITORY)
    with store:
        rows = scored(folder, 60, seed=4)
        for window in range(7):  # 420 rows, of which 240 are read
            store.write_predictions([replace(row, prediction_id=f"{window}-{row.prediction_id}") for row in rows])
        assert watch(store, PARAMS).decision.window_id == "1-7"

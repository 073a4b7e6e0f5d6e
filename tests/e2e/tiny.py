"""A copy of the project with a tiny published model and its drift reference, made in a second without training."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from serving.repository import champion_folder, publish
from serving.server import free_port
from tests import helpers_serving
from tests.e2e.project import Project, copy_project
from visionloop.card import load_card
from visionloop.features import EmbeddingPCA
from visionloop.observe import Observer
from visionloop.paths import EMBEDDING_PCA
from visionloop.preprocess import decode, resize
from visionloop.records import LoggedPrediction
from visionloop.runtime import load
from visionloop.tables import write_rows

PORTS = ("http_port", "grpc_port", "metrics_port", "prefect_port", "evidently_port")


def images(count: int, seed: int = 0) -> list[bytes]:
    """Small PNG images of one random colour and some noise each."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        pixels = np.clip(rng.integers(0, 256, 3) + rng.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def tiny_project(target: Path) -> Project:
    """The project in `target`, with version 1 published, a reference of 300 rows, and ports of its own."""
    project = copy_project(target)
    helpers_serving.ship(target / "models" / "shipped")
    publish(target / "models" / "shipped", target / "model_repository", helpers_serving.DEPLOY)
    taken: set[int] = set()
    for name in PORTS:
        port = free_port(0, taken)
        taken.add(port)
        project.set_param(rf"^  {name}: .*$", f"  {name}: {port}")
    folder = champion_folder(target / "model_repository")
    model, card = load(folder)
    observer = Observer(load_card(folder), EmbeddingPCA.from_bytes(card.read_file(folder, EMBEDDING_PCA)), model_version="1")
    rows = []
    for data in images(300):
        decoded = decode(data)
        pixels = resize(decoded.image, card.preprocess)
        logits, embedding = model.run(pixels[None])
        rows.append(observer.answered(data, decoded, pixels, logits[0], embedding[0], target="rot"))
    write_rows(target / "data" / "reference.parquet", LoggedPrediction, rows)
    return project

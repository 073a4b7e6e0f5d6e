"""Prove the shipped model in a real Triton server, then publish it as a new version of the model repository."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.stages import run_stage
from serving.repository import publish, read_release
from serving.trial import prove
from visionloop.card import load_card
from visionloop.config import DeployParams, ServeParams, load_section
from visionloop.data.seen import Seen
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.errors import DataError, ImageError
from visionloop.files import write_json
from visionloop.paths import (
    DEPLOY_REPORT,
    GATE_REPORT,
    IMAGES,
    MODEL_ONNX,
    MODEL_REPOSITORY,
    RELEASE,
    SHARDS,
    SHIPPED,
    SPLIT,
)
from visionloop.preprocess import decode
from visionloop.promotion import check_publishable, read_report
from visionloop.records import SplitRow


def main() -> None:
    deploy, serve = load_section(DeployParams), load_section(ServeParams)
    served = read_release(MODEL_REPOSITORY).model_sha256 if (MODEL_REPOSITORY / RELEASE).exists() else ""
    check_publishable(read_report(GATE_REPORT), load_card(SHIPPED).files[MODEL_ONNX], served)
    split = read_split(SPLIT)
    images = _golden_images(split, deploy.golden_images, serve)
    with tempfile.TemporaryDirectory(prefix="visionloop-trial-") as folder:
        trial = prove(SHIPPED, images, deploy, serve, Path(folder))
    version, new = publish(SHIPPED, MODEL_REPOSITORY, deploy, Seen.of(split).to_bytes())
    write_json(DEPLOY_REPORT, {"version": version, "new_version": int(new), **asdict(trial)})
    difference = max(trial.http_tensor_logit_difference, trial.grpc_tensor_logit_difference)
    print(
        f"Triton answers {trial.golden_images} held-out images like the model does offline, over HTTP and gRPC, from "
        f"bytes and from tensors (logits within {difference:.1e}); "
        f"{trial.http_p50_ms:.1f} ms an image over HTTP, {trial.grpc_p50_ms:.1f} ms over gRPC"
    )
    what = f"published version {version}" if new else f"version {version} is this model already, nothing new is published"
    print(f"{what} -> {MODEL_REPOSITORY}, {DEPLOY_REPORT}")


def _golden_images(split: Sequence[SplitRow], count: int, serve: ServeParams) -> list[bytes]:
    """Encoded test images, the same ones every time: those with the smallest ids, which are hashes and so a fair draw."""
    test = {row.id for row in split if row.split == "test"}
    rows = {row.id: row for row in read_images(IMAGES) if row.id in test}
    chosen = [rows[image_id] for image_id in sorted(rows)[:count]]
    images = [data for _, data in read_bytes(SHARDS, chosen) if _is_served(data, serve)]
    if not images:
        raise DataError("No test image is within serve.max_image_megabytes and serve.max_image_megapixels; raise them.")
    return images


def _is_served(data: bytes, serve: ServeParams) -> bool:
    if len(data) > serve.max_image_megabytes * 1e6:
        return False
    try:
        decode(data, max_pixels=int(serve.max_image_megapixels * 1e6))
    except ImageError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

"""Publish the shipped model, which the gate let pass and `parity` proved, as a new version of the model repository."""

from __future__ import annotations

from pipeline.stages import run_stage
from serving.repository import publish, read_release
from visionloop.card import load_card
from visionloop.config import DeployParams, load_section
from visionloop.data.seen import Seen
from visionloop.data.splitting import read_split
from visionloop.files import sha256_file, write_json
from visionloop.paths import (
    CARD,
    DEPLOY_REPORT,
    GATE_REPORT,
    MODEL_ONNX,
    MODEL_REPOSITORY,
    PARITY_REPORT,
    RELEASE,
    SHIPPED,
    SPLIT,
)
from visionloop.promotion import check_proved, check_publishable, read_report


def main() -> None:
    """Read models/shipped and what gate and parity said of it; write model_repository and reports/deploy.json."""
    deploy = load_section(DeployParams)
    served = read_release(MODEL_REPOSITORY).model_sha256 if (MODEL_REPOSITORY / RELEASE).exists() else ""
    challenger = load_card(SHIPPED).files[MODEL_ONNX]
    check_publishable(read_report(GATE_REPORT), challenger, served)
    decoders = check_proved(PARITY_REPORT, challenger, sha256_file(SHIPPED / CARD))
    seen = Seen.of(read_split(SPLIT)).to_bytes()
    version, new = publish(SHIPPED, MODEL_REPOSITORY, deploy, seen=seen, lineage=decoders)
    write_json(DEPLOY_REPORT, {"version": version, "new_version": int(new)})
    what = f"published version {version}" if new else f"version {version} is this model already, nothing new is published"
    print(f"{what} -> {MODEL_REPOSITORY}, {DEPLOY_REPORT}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

"""Stage `train <family>`: train the CNN or the ViT of params.yaml on the packed or streamed images, and keep its best epoch.

With `compute.processes` above 1 it starts itself as so many processes; `torchrun -m pipeline.stages.train cnn` does that on
one machine or on several. The first process writes everything.

With `augment.store: stream` it reads data/shards, which dvc.yaml does not name: data/packed names every image by its hash,
and each is checked against it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

from dvclive.live import Live

from pipeline.launch import launch, launched
from pipeline.stages import family_argument, run_stage, spin_briefly
from visionloop import __version__
from visionloop.config import ComputeParams, TrainParams, load_section
from visionloop.data.packing import PackedSplit, load_meta, load_split
from visionloop.files import write_bytes
from visionloop.paths import MODEL_TORCH, PACKED, SHARDS, family_folder, train_report

if TYPE_CHECKING:
    from visionloop.training import EpochRecord, TrainResult
    from visionloop.training.streaming import StreamedSplit


def main() -> None:
    """Read data/packed; write models/<family> and the history in reports/train/<family>."""
    spin_briefly()  # so torch is loaded below
    family = family_argument(sys.argv)
    params, processes = load_section(TrainParams), load_section(ComputeParams).processes
    meta = load_meta(PACKED)
    if processes > 1 and not launched():
        launch("pipeline.stages.train", [family], processes)
        return

    import torch

    from visionloop.training import clear_resume, train
    from visionloop.training.building import card_for
    from visionloop.training.distributed import join

    folder = family_folder(family)
    resume = folder / "resume"
    resume.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(join(params.of(family).device))
        live = None
        if ranks.main:
            # `Live` begins by emptying its folder; an interrupted run's epochs are told again from the checkpoint.
            live = stack.enter_context(Live(str(train_report(family)), dvcyaml=None, save_dvc_exp=False, report=None))
        result = train(
            family,
            _training_side(streamed=meta.store == "stream"),
            load_split(PACKED, "val"),
            meta,
            params,
            resume=resume,
            ranks=ranks,
            on_epoch=lambda record: _log(live, family, record),
            say=_say,
        )
        if live is None:
            return
        live.summary = {
            "val_accuracy": round(result.best.val_accuracy, 4),
            "val_balanced_accuracy": round(result.best.val_balanced_accuracy, 4),
            "val_macro_f1": round(result.best.val_macro_f1, 4),
            "val_loss": round(result.best.val_loss, 4),
            "train_loss": round(result.best.train_loss, 4),
            "best_epoch": result.best.epoch,
            "epochs": len(result.history),
        }
        live.make_summary()

    classifier = result.classifier
    buffer = io.BytesIO()
    torch.save(classifier.state_dict(), buffer)
    write_bytes(folder / MODEL_TORCH, buffer.getvalue())
    card = card_for(
        classifier,
        meta,
        architecture_options=dict(result.settings.options),
        smaller=result.smaller,
        metrics={"val_accuracy": round(result.best.val_accuracy, 6), "val_loss": round(result.best.val_loss, 6)},
        lineage={"data": meta.data_id, "visionloop": __version__, "torch": torch.__version__},
        notes=(f"Trained {_epochs(result)}; the weights are those of epoch {result.best.epoch}.", *result.notes),
    )
    card.with_files(folder, (MODEL_TORCH,)).write(folder)
    clear_resume(resume)
    _say(
        f"{folder}: {card.architecture}, {card.parameters:,} weights of epoch {result.best.epoch}, "
        f"validation accuracy {result.best.val_accuracy:.2%}"
    )


def _epochs(result: TrainResult) -> str:
    if not result.smaller_epochs:
        return f"{len(result.history)} epochs"
    return f"{len(result.history) - result.smaller_epochs} epochs, and the smaller network {result.smaller_epochs} more"


def _training_side(*, streamed: bool) -> PackedSplit | StreamedSplit:
    if not streamed:
        return load_split(PACKED, "train")
    from visionloop.training.streaming import load_streamed

    threads = load_section(ComputeParams).workers or len(os.sched_getaffinity(0))
    return load_streamed(PACKED, SHARDS, max(1, threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def _log(live: Live | None, family: str, record: EpochRecord) -> None:
    if live is None:
        return
    values = {
        "train_loss": record.train_loss,
        "val_loss": record.val_loss,
        "val_accuracy": record.val_accuracy,
        "val_balanced_accuracy": record.val_balanced_accuracy,
        "val_macro_f1": record.val_macro_f1,
        "learning_rate": record.learning_rate,
        # Of this run of the program only: an epoch that is told again from the checkpoint has none.
        **(record.use.values() if record.use else {}),
    }
    live.step = record.epoch
    for name, value in values.items():
        live.log_metric(name, float(f"{value:.4g}"))
    speed = "restored"
    if record.use:
        speed = (
            f"{record.use.images_per_second:,.0f} images/s, {record.use.waiting_share:.0%} waiting for data, "
            f"{record.seconds_left:.0f} s left"
        )
    _say(
        f"{family} epoch {record.epoch}/{record.epochs}: loss {record.train_loss:.4f}, "
        f"validation {record.val_accuracy:.2%} (loss {record.val_loss:.4f}), {speed}"
    )


def _say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

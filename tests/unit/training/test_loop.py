"""Training learns, repeats itself bit for bit, keeps the best epoch, and says no in sentences."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.training import worlds
from visionloop.attacks import accuracy_under_attack
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError, DataError, TrainingError
from visionloop.models import Family
from visionloop.training import EpochRecord, TrainResult, building, clear_resume, loop, train
from visionloop.training.bad_batch import load_bad_batch
from visionloop.training.batches import Batch, train_batches
from visionloop.training.checkpoint import Checkpoints


def run(folder: Path, family: Family = "cnn", **changes: Any) -> TrainResult:
    policy = changes.pop("policy", None)
    return train(
        family, worlds.split(96, 0), worlds.split(48, 1), worlds.meta(policy), worlds.params(**changes), resume=folder
    )


def same_weights(first: TrainResult, second: TrainResult) -> bool:
    one, two = first.classifier.state_dict(), second.classifier.state_dict()
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize(("family", "epochs"), [("cnn", 10), ("vit", 12)])
def test_a_tiny_network_learns_the_squares(family: Family, epochs: int, tmp_path: Path) -> None:
    result = run(tmp_path, family, epochs=epochs)
    assert result.best.val_accuracy >= 0.95
    assert result.history[-1].train_loss < result.history[0].train_loss / 2
    logits, _ = result.classifier(torch.from_numpy(worlds.split(48, 1).images))
    accuracy = float((logits.argmax(1).numpy() == worlds.split(48, 1).labels).mean())
    assert accuracy == result.best.val_accuracy
    assert not result.classifier.training


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_a_seed_gives_the_same_bits_and_another_seed_others(family: Family, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first = run(tmp_path / "1", family, epochs=2)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state was left changed"
    torch.rand(5)
    assert same_weights(first, run(tmp_path / "2", family, epochs=2))
    assert not same_weights(first, run(tmp_path / "3", family, epochs=2, seed=4))


def test_the_best_epoch_is_kept_by_accuracy_then_by_loss(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=8)
    best = max(result.history, key=lambda record: (record.val_accuracy, -record.val_loss))
    assert result.best == best
    assert sum(record.val_accuracy == best.val_accuracy for record in result.history) > 1, "no tie was tested"


def test_early_stopping_counts_epochs_without_a_better_one(tmp_path: Path) -> None:
    said: list[str] = []
    result = train(
        "cnn", worlds.split(96, 0), worlds.split(48, 1), worlds.meta(),
        # A learning rate of almost 0 changes no prediction and hardly the loss, so no later epoch is better by accuracy.
        worlds.params(epochs=30, early_stopping_epochs=3, learning_rate=1e-12), resume=tmp_path, say=said.append,
    )  # fmt: skip
    assert len(result.history) == result.best.epoch + 3 < 30
    assert any("none of the last 3 epochs was better" in sentence for sentence in said)


def test_batches_larger_than_the_data_and_a_last_batch_of_one_image(tmp_path: Path) -> None:
    assert len(run(tmp_path / "large", batch_size=4096, epochs=1).history) == 1
    # 96 images in batches of 19 would leave one over, and its map of 1 x 1 is too little for MobileNet's last batch norm.
    result = run(tmp_path / "one", batch_size=19, epochs=1, cnn_architecture="mobilenet_v3_small", cnn_options={})
    assert math.isfinite(result.history[0].train_loss)


def test_a_loss_that_is_not_finite_names_epoch_and_step(tmp_path: Path) -> None:
    weights = run(tmp_path / "before", epochs=1).classifier.state_dict()
    weights["network.head.bias"][1] = 3e38
    torch.save(weights, tmp_path / "huge.pt")
    with pytest.raises(TrainingError, match="The loss is inf at step 1 of 6 in epoch 1; lower the learning rate"):
        run(tmp_path / "after", weights=str(tmp_path / "huge.pt"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_both_optimizers_lower_the_loss(optimizer: str, tmp_path: Path) -> None:
    rate = 0.01 if optimizer == "adamw" else 0.1
    history = run(tmp_path, optimizer=optimizer, epochs=4, learning_rate=rate).history
    assert history[-1].train_loss < 0.8 * history[0].train_loss


def test_bf16_learns_and_auto_says_what_it_measured(tmp_path: Path) -> None:
    assert run(tmp_path / "bf16", precision="bf16", epochs=10).best.val_accuracy >= 0.9
    auto = run(tmp_path / "auto", precision="auto", epochs=1)
    assert auto.execution.precision in ("fp32", "bf16")
    assert auto.notes[0].startswith("Steps run ")


PLAIN_VIT = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "dropout": 0.0}


@pytest.mark.parametrize(("batch_size", "parts", "accumulate"), [(16, 8, 2), (96, 10, 100)], ids=["even", "uneven"])
def test_gradients_of_several_batches_are_those_of_one(batch_size: int, parts: int, accumulate: int, tmp_path: Path) -> None:
    """Without batch norms and chance, two batches of 8 added up are one of 16, and 10 of 9 or 10 are one of 96."""
    common: dict[str, Any] = {"epochs": 3, "vit_options": PLAIN_VIT, "optimizer": "sgd", "policy": AugmentPolicy()}
    one = run(tmp_path / "one", "vit", batch_size=batch_size, **common)
    two = run(tmp_path / "two", "vit", batch_size=parts, accumulate=accumulate, **common)
    for key, value in one.classifier.state_dict().items():
        torch.testing.assert_close(value, two.classifier.state_dict()[key], atol=2e-5, rtol=1e-4)
    assert one.history[-1].train_loss == pytest.approx(two.history[-1].train_loss, rel=1e-4)


def test_the_last_epoch_is_kept_on_demand(tmp_path: Path) -> None:
    last = run(tmp_path / "last", epochs=5, keep="last")
    assert last.best.epoch == 5
    whole = run(tmp_path / "whole", epochs=5, keep="best")
    assert last.history == whole.history
    best = max(whole.history, key=lambda record: (record.val_accuracy, -record.val_loss))
    assert whole.best == best


def test_the_metric_chooses_the_epoch(tmp_path: Path) -> None:
    history = run(tmp_path / "loss", epochs=6, metric="loss")
    assert history.best.val_loss == min(record.val_loss for record in history.history)
    history = run(tmp_path / "f1", epochs=6, metric="macro_f1")
    assert history.best.val_macro_f1 == max(record.val_macro_f1 for record in history.history)


def test_the_average_of_the_weights_is_validated_and_kept(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", epochs=4, keep="last", schedule="constant")
    averaged = run(tmp_path / "averaged", epochs=4, keep="last", schedule="constant", ema_decay=0.9)
    assert [r.train_loss for r in plain.history] == [r.train_loss for r in averaged.history], "steps know nothing of it"
    assert [r.val_loss for r in plain.history] != [r.val_loss for r in averaged.history]
    assert not same_weights(plain, averaged)
    # Over one step the average is that step's weights.
    assert same_weights(
        run(tmp_path / "a", epochs=1, batch_size=96, keep="last"),
        run(tmp_path / "b", epochs=1, batch_size=96, keep="last", ema_decay=0.9),
    )


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "free"])
def test_training_on_attacked_images_learns_and_resists(kind: str, tmp_path: Path) -> None:
    data = worlds.split(48, 1)
    epochs = 4 if kind == "free" else 8
    settings: dict[str, Any] = {"adversarial": kind, "adversarial_epsilon": 12.0, "adversarial_steps": 3}
    hardened = run(tmp_path / "hard", epochs=epochs, **settings)
    plain = run(tmp_path / "plain", epochs=8)
    assert hardened.best.val_accuracy >= 0.8
    robust, fragile = (
        accuracy_under_attack(
            result.classifier, torch.from_numpy(data.images), torch.from_numpy(data.labels), epsilon=20.0, steps=10
        )
        for result in (hardened, plain)
    )
    assert robust >= fragile + 0.4  # 0.77 to 1 against 0.15


def test_each_batch_of_free_training_is_good_for_several_updates(tmp_path: Path) -> None:
    """A schedule of 2 epochs of 6 batches and 3 replays falls over 36 updates, and its last rate says so."""
    result = run(tmp_path, epochs=2, adversarial="free", adversarial_steps=3, schedule="linear", warmup_epochs=0)
    once = run(tmp_path / "once", epochs=2, schedule="linear", warmup_epochs=0)
    assert result.history[-1].learning_rate == pytest.approx(once.history[-1].learning_rate / 3, rel=0.05)


def test_a_frozen_backbone_stays_and_the_head_learns(tmp_path: Path) -> None:
    first = run(tmp_path / "first", epochs=2)
    torch.save(first.classifier.state_dict(), tmp_path / "weights.pt")
    second = run(tmp_path / "second", epochs=2, weights=str(tmp_path / "weights.pt"), freeze="backbone")
    before, after = first.classifier.state_dict(), second.classifier.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"network.head.weight", "network.head.bias"}


def test_the_batch_that_made_the_loss_infinite_is_left_beside_the_checkpoint(tmp_path: Path) -> None:
    weights = run(tmp_path / "before", epochs=1).classifier.state_dict()
    weights["network.head.bias"][1] = math.inf
    torch.save(weights, tmp_path / "inf.pt")
    with pytest.raises(TrainingError, match=r"bad-batch\.png"):
        run(tmp_path / "after", weights=str(tmp_path / "inf.pt"))
    found = load_bad_batch(tmp_path / "after")
    assert len(found.batch.labels) == 16
    assert found.facts["not_finite"] == ["network.head.bias"]


def test_what_an_earlier_epoch_saved_stays_when_a_later_one_ends_in_nan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = train_batches

    def poisoned(*arguments: Any, epoch: int, **more: Any) -> Iterator[Batch]:
        for batch in batches(*arguments, epoch=epoch, **more):
            yield batch if epoch < 3 else batch._replace(images=batch.images.float() * math.nan)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_batches", poisoned)
        patch.setattr(Checkpoints, "due", lambda self: True)
        with pytest.raises(
            TrainingError, match=r"at step 1 of 6 in epoch 3; .* The last checkpoint, if an epoch was finished"
        ):
            run(tmp_path / "nan")
    assert load_bad_batch(tmp_path / "nan").facts["epoch"] == 3
    again = run(tmp_path / "nan")
    assert again.resumed_after == 2
    assert same_weights(again, run(tmp_path / "whole"))


def test_a_clipped_gradient_moves_the_weights_less(tmp_path: Path) -> None:
    """With plain steps, so that the length of a gradient is the length of its step."""
    plain: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "warmup_epochs": 0}
    still = run(tmp_path / "still", **plain, learning_rate=1e-12)
    moved = {
        limit: max(
            float((after - before).detach().abs().max())
            for after, before in zip(
                run(tmp_path / str(limit), **plain, gradient_clip_norm=limit).classifier.parameters(),
                still.classifier.parameters(),
                strict=True,
            )
        )
        for limit in (0.0, 1e-4)
    }
    # Six steps of a rate of at most 0.01 and a norm of at most 0.0001.
    assert moved[1e-4] < 6 * 0.01 * 1e-4 * 1.01 < 0.01 * moved[0.0]


def test_a_vit_learns_from_the_cnns_answers_what_its_labels_do_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels of its images are dealt out anew, so that only the teacher knows."""
    monkeypatch.chdir(tmp_path)
    teacher = run(tmp_path / "teacher", "cnn", epochs=10)
    card = building.card_for(teacher.classifier, worlds.meta()).model_copy(
        update={"architecture_options": worlds.params().cnn.options}
    )
    Path("models/cnn").mkdir(parents=True)
    torch.save(teacher.classifier.state_dict(), "models/cnn/model.pt")
    card.with_files(Path("models/cnn"), ("model.pt",)).write(Path("models/cnn"))
    data = worlds.split(96, 0)
    wrong = PackedSplit(data.images, np.random.default_rng(0).permutation(data.labels), data.ids)

    alone = worlds.params(epochs=12, distillation_share=1.0)
    taught = alone.model_copy(update={"vit": alone.vit.model_copy(update={"teacher": "cnn"})})
    accuracy = {
        name: train("vit", wrong, worlds.split(48, 1), worlds.meta(), params, resume=tmp_path / name)
        .history[-1]
        .val_accuracy
        for name, params in (("alone", alone), ("taught", taught))
    }
    assert accuracy["taught"] >= 0.85
    assert accuracy["alone"] <= 0.6


def test_refusals(tmp_path: Path) -> None:
    empty = PackedSplit(np.zeros((0, 16, 16, 3), np.uint8), np.zeros(0, np.int64), [])
    with pytest.raises(DataError, match="The val side has 0 images"):
        train("cnn", worlds.split(96, 0), empty, worlds.meta(), worlds.params(), resume=tmp_path)
    with pytest.raises(ConfigError, match=r"which is of the family 'vit'; name it under train\.vit"):
        run(tmp_path, cnn_architecture="small_vit", cnn_options={})
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="finds no CUDA device"):
            run(tmp_path, device="cuda")


MIXED = AugmentPolicy(horizontal_flip=True, mixup=0.4, cutmix=1.0, balance="sampler", automatic="trivialaugment")


def test_mixed_and_balanced_batches_are_learnt_from(tmp_path: Path) -> None:
    """The squares' colours survive a mean and a cut; the loss does not fall to that of hard labels."""
    policy = AugmentPolicy(horizontal_flip=True, mixup=0.4, mixed_share=0.5, balance="sampler")
    mixed = run(tmp_path / "mixed", epochs=12, policy=policy)
    assert mixed.best.val_accuracy >= 0.9
    assert mixed.history[-1].train_loss > 2 * mixed.best.val_loss


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("policy", [None, MIXED], ids=["plain", "mixed and balanced"])
def test_going_on_from_a_checkpoint_gives_the_same_bits(
    policy: AugmentPolicy | None, optimizer: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"optimizer": optimizer, "ema_decay": 0.9, "schedule": "plateau", "step_epochs": 1}
    whole = run(tmp_path / "whole", "vit", epochs=4, policy=policy, **changes)

    class StoppedError(Exception):
        """The run ends here, as an interrupted one does."""

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2 and not record.restored:
            raise StoppedError

    def start(on_epoch: object, say: object) -> TrainResult:
        return train(
            "vit", worlds.split(96, 0), worlds.split(48, 1), worlds.meta(policy), worlds.params(epochs=4, **changes),
            resume=tmp_path / "cut", on_epoch=on_epoch, say=say,  # type: ignore[arg-type]
        )  # fmt: skip

    said: list[str] = []
    with pytest.raises(StoppedError):
        start(stop, said.append)
    records: list[EpochRecord] = []
    again = start(records.append, said.append)
    assert same_weights(whole, again)
    assert 1 <= again.resumed_after <= 2
    assert [record.epoch for record in records] == [1, 2, 3, 4], "restored epochs are told again, so no history is lost"
    assert [dataclasses.replace(r, restored=False) for r in again.history] == list(whole.history)
    assert any(sentence.startswith(f"Training goes on after epoch {again.resumed_after}") for sentence in said)
    clear_resume(tmp_path / "cut")
    assert list((tmp_path / "cut").iterdir()) == []


@pytest.mark.parametrize("change", ["damage", "parameter", "data", "truncate"])
def test_a_damaged_or_stale_checkpoint_is_not_used(change: str, tmp_path: Path) -> None:
    run(tmp_path, epochs=2)
    file = tmp_path / "checkpoint.bin"
    data = bytearray(file.read_bytes())
    if change == "damage":
        data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data[: len(data) // 3]) if change == "truncate" else bytes(data))
    said: list[str] = []
    meta = worlds.meta(AugmentPolicy(brightness=0.2)) if change == "data" else worlds.meta()
    result = train(
        "cnn", worlds.split(96, 0), worlds.split(48, 1), meta, worlds.params(epochs=2, seed=3 + (change == "parameter")),
        resume=tmp_path, say=said.append,
    )  # fmt: skip
    assert result.resumed_after == 0
    reason = "is damaged and is not used" if change in ("damage", "truncate") else "is of other data, parameters or versions"
    assert reason in said[0]

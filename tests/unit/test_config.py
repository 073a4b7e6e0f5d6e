"""visionloop.config: every wrong params.yaml is refused before a stage runs, with key, value and what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from visionloop import config
from visionloop.config import ExportParams, TrainParams, load_params, load_section, parse_params
from visionloop.errors import ConfigError

ROOT = Path(__file__).parents[2]
NOT_YAML = "params.yaml, line {}: this is not the YAML that is read here: "
TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")


def changed(key: str, raw: str) -> str:
    """The shipped params with the value of `key` ("train.cnn.weights") written as `raw`, to the letter."""
    tree = yaml.safe_load(TEXT)
    *parents, last = key.split(".")
    section = tree
    for part in parents:
        section = section[part]
    section[last] = "@value@"
    return yaml.safe_dump(tree, sort_keys=False).replace("'@value@'", raw)


def without(key: str) -> str:
    """The shipped params without `key`."""
    return re.sub(rf"(?m)^ *{key.rpartition('.')[2]}: @gone@\n", "", changed(key, "@gone@"))


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse_params(text)
    return str(error.value)


def test_the_shipped_file_is_right_and_a_section_is_read_alone() -> None:
    assert load_section(TrainParams, ROOT / "params.yaml") == load_params(ROOT / "params.yaml").train
    assert load_section(ExportParams, ROOT / "params.yaml").opset >= 17


@pytest.mark.parametrize(
    ("key", "raw", "sentence"),
    [
        ("train.epochs", "0", "'train.epochs' is 0; it must be at least 1."),
        ("train.epochs", "-1", "'train.epochs' is -1; it must be at least 1."),
        ("train.epochs", "1e9", "'train.epochs' is 1000000000.0; it must be a whole number."),
        ("train.epochs", "1000000000", "'train.epochs' is 1000000000; it must be at most 100000."),
        ("train.epochs", "ten", "'train.epochs' is 'ten'; it must be a whole number."),
        ("train.epochs", "'10'", "'train.epochs' is '10'; it must be a whole number."),
        ("train.epochs", "null", "'train.epochs' is null; it must be a whole number."),
        ("train.epochs", "true", "'train.epochs' is true; it must be a whole number."),
        ("train.epochs", "3.5", "'train.epochs' is 3.5; it must be a whole number."),
        ("train.epochs", "1:30", "'train.epochs' is '1:30'; it must be a whole number."),
        ("train.cnn.learning_rate", "0", "'train.cnn.learning_rate' is 0; it must be greater than 0."),
        ("train.cnn.learning_rate", "-0.1", "'train.cnn.learning_rate' is -0.1; it must be greater than 0."),
        ("train.cnn.learning_rate", ".nan", "'train.cnn.learning_rate' is nan; it must be a finite number."),
        ("train.cnn.learning_rate", ".inf", "'train.cnn.learning_rate' is inf; it must be a finite number."),
        ("train.cnn.learning_rate", "1e400", "'train.cnn.learning_rate' is inf; it must be a finite number."),
        ("train.batch_size", "0", "'train.batch_size' is 0; it must be at least 1."),
        ("train.cnn.architecture", "''", "'train.cnn.architecture' is ''; it must not be empty."),
        ("train.device", "tpu", "'train.device' is 'tpu'; it must be 'auto', 'cpu' or 'cuda'."),
        ("preprocess.height", "7", "'preprocess.height' is 7; it must be at least 8."),
        ("preprocess.fit", "fill", "'preprocess.fit' is 'fill'; it must be 'stretch', 'letterbox' or 'crop'."),
        ("split.seed", "-1", "'split.seed' is -1; it must be at least 0."),
        ("split.seed", str(2**64), "'split.seed' is 18446744073709551616; it must be at most 4294967295."),
        ("split.test", "-0.1", "'split.test' is -0.1; it must be at least 0."),
        ("split.train", "0.69", "section 'split': train, val and test sum to 0.99; they must sum to 1."),
        ("split.train", "0.9", "section 'split': train, val and test sum to 1.2; they must sum to 1."),
        ("split.folds", "1", "section 'split': folds is 1, which leaves nothing to learn from; it must be 0 or at least 2."),
        ("split.folds", "51", "'split.folds' is 51; it must be at most 50."),
        ("split.time_gap_seconds", "-1", "'split.time_gap_seconds' is -1; it must be at least 0."),
        ("split.by_group", "on", "'split.by_group' is 'on'; it must be true or false."),
        ("split.max_difference", "10", "'split.max_difference' is 10; it must be at most 1."),
        ("split.val", "0", "section 'split': train, val and test sum to 0.8; they must sum to 1."),
        ("compute.workers", "10000", "'compute.workers' is 10000; it must be at most 256."),
        ("compute.workers", "-1", "'compute.workers' is -1; it must be at least 0."),
        ("compute.dask", "8786", "'compute.dask' is 8786; it must be text."),
        (
            "compute.dask",
            "localhost",
            "'compute.dask' is 'localhost'; it must be the address of a Dask scheduler, as tcp://host:8786, or null.",
        ),
        (
            "augment.horizontal_flip",
            "yes",
            "'augment.horizontal_flip' is 'yes'; it must be false, true or 'alternating'.",
        ),
        ("quantize.max_accuracy_drop", "1.5", "'quantize.max_accuracy_drop' is 1.5; it must be at most 1."),
        ("quantize.runtimes", "[]", "'quantize.runtimes' is []; it must not be empty."),
        (
            "quantize.runtimes",
            "[onnxruntime, tensorflow]",
            "'quantize.runtimes.1' is 'tensorflow'; it must be 'onnxruntime' or 'openvino'.",
        ),
        (
            "quantize.runtimes",
            "[openvino]",
            "section 'quantize': runtimes lacks onnxruntime, whose FP32 the others are compared with; add it.",
        ),
        ("monitor.alpha", "0", "'monitor.alpha' is 0; it must be greater than 0."),
        ("monitor.alpha", "1", "'monitor.alpha' is 1; it must be less than 1."),
        ("monitor.alpha", "2", "'monitor.alpha' is 2; it must be less than 1."),
        ("monitor.window_rows", "0", "'monitor.window_rows' is 0; it must be at least 10."),
        ("reference.splits", "[val, train]", "'reference.splits.1' is 'train'; it must be 'val' or 'test'."),
        ("reference.splits", "[]", "'reference.splits' is []; it must not be empty."),
        ("serve.http_port", "70000", "'serve.http_port' is 70000; it must be at most 65535."),
        ("select", "null", "'select' is null; it must be a section with keys of its own."),
        ("select", "hello", "'select' is 'hello'; it must be a section with keys of its own."),
    ],
)
def test_a_wrong_value_is_answered_with_key_value_and_what_is_allowed(key: str, raw: str, sentence: str) -> None:
    assert refusal(changed(key, raw)) == f"params.yaml: {sentence}"


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    assert refusal(changed("train.epoch", "3")) == "params.yaml: unknown key 'train.epoch'; did you mean 'epochs'?"
    assert refusal(TEXT + "\ntrian: {}\n") == "params.yaml: unknown key 'trian'; did you mean 'train'?"
    assert refusal(changed("export.qqq", "3")) == (
        "params.yaml: unknown key 'export.qqq'; known keys are opset, golden_images, max_logit_difference."
    )


def test_a_missing_key_and_a_missing_section_are_named() -> None:
    assert refusal(without("train.epochs")) == "params.yaml: 'train.epochs' is missing; add it."
    assert refusal(without("train.cnn.architecture")) == "params.yaml: 'train.cnn.architecture' is missing; add it."
    assert refusal("compute: {workers: 0, dask: null}\n").startswith(
        "params.yaml: 'collect' is missing; add it.\nparams.yaml: 'clean' is missing; add it.\n"
    )


def test_each_wrong_value_has_its_line() -> None:
    tree = yaml.safe_load(TEXT)
    tree["train"].update(epochs=0, batch_size=0)
    assert refusal(yaml.safe_dump(tree)).split("\n") == [
        "params.yaml: 'train.epochs' is 0; it must be at least 1.",
        "params.yaml: 'train.batch_size' is 0; it must be at least 1.",
    ]


def test_a_long_value_is_cut() -> None:
    sentence = refusal(changed("preprocess.fit", "x" * 500))
    assert len(sentence) < 200
    assert "xxx...; it must be 'stretch', " in sentence


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("train.cnn.learning_rate", "1e-3", 0.001),  # text in YAML 1.1, a number in 1.2 and for DVC
        ("train.cnn.learning_rate", "1", 1.0),
        ("train.epochs", "010", 10),  # eight in YAML 1.1
        ("collect.path", "no", "no"),  # false in YAML 1.1
        ("collect.path", "2024-01-01", "2024-01-01"),  # a date in YAML 1.1
        ("collect.path", "Übung/äpfel", "Übung/äpfel"),
    ],
)
def test_scalars_are_read_as_yaml_1_2(key: str, raw: str, value: object) -> None:
    found: object = parse_params(changed(key, raw))
    for part in key.split("."):
        found = getattr(found, part)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "params.yaml is empty; restore it from git."),
        ("# only a comment\n", "params.yaml is empty; restore it from git."),
        ("- 1\n", "params.yaml is not a mapping of sections; restore it from git."),
        ("a: [1", NOT_YAML.format(1) + "expected ',' or ']', but got '<stream end>'."),
        ("a:\n\tb: 1\n", NOT_YAML.format(2) + "found character '\\t' that cannot start any token."),
        ("a: 1\nb: 2\na: 3\n", NOT_YAML.format(3) + "the key 'a' stands twice."),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
         NOT_YAML.format(2) + "an alias (*name) is not read here."),
        ("a: !!python/object/apply:os.system [id]\n",
         NOT_YAML.format(1) + "could not determine a constructor for the tag "
         "'tag:yaml.org,2002:python/object/apply:os.system'."),
        ("a: 1\n---\nb: 2\n", NOT_YAML.format(2) + "but found another document."),
        ("a: " + "[" * 5000, "params.yaml is nested too deeply; a params file has sections, keys and short lists."),
        ("a: " + "1" * 6000,
         "params.yaml: a value cannot be read (Exceeds the limit (4300 digits) for integer string conversion: value has "
         "6000 digits)."),
    ],
    ids=["empty", "comment", "list", "cut", "tab", "twice", "bomb", "object", "documents", "deep", "digits"],
)  # fmt: skip
def test_what_is_not_this_yaml_is_refused_with_its_line(text: str, sentence: str) -> None:
    assert refusal(text) == sentence


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"

    def of_file() -> str:
        with pytest.raises(ConfigError) as error:
            load_params(path)
        return str(error.value)

    assert of_file() == (
        f"{path} cannot be read (No such file or directory); run this in the project's folder, where params.yaml lies."
    )
    path.write_bytes(TEXT.encode("utf-16"))
    assert of_file() == f"{path} is not UTF-8; save it as UTF-8."
    path.write_bytes(b"# " + b"x" * (config.MAX_PARAMS_BYTES + 1))
    assert of_file() == f"{path} has over 1 MiB; a params file has a few kilobytes."
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())  # a byte-order mark does no harm
    assert load_params(path) == load_params(ROOT / "params.yaml")


def test_a_side_without_a_share_is_refused() -> None:
    tree = yaml.safe_load(TEXT)
    tree["split"].update(train=0.8, val=0.2, test=0)
    assert refusal(yaml.safe_dump(tree)) == "params.yaml: section 'split': train, val and test must each be above 0."


@pytest.mark.parametrize("address", ["tcp://scheduler:8786", "tls://10.0.0.1:8786", "tcp://[::1]:8786"])
def test_an_address_of_a_dask_scheduler_is_read(address: str) -> None:
    assert parse_params(changed("compute.dask", address)).compute.dask == address


def test_the_environment_changes_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EPOCHS", "TRAIN_EPOCHS", "TRAIN__EPOCHS", "VISIONLOOP_TRAIN_EPOCHS", "VISIONLOOP_TRAIN__EPOCHS"):
        monkeypatch.setenv(name, "many")
    assert load_params(ROOT / "params.yaml") == parse_params(TEXT)


def test_a_file_of_64_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with path.open("wb") as file:
        file.truncate(64 << 20)  # a hole: nothing is written, and nothing is to be read
    with pytest.raises(ConfigError, match="has over 1 MiB; a params file has a few kilobytes"):
        load_params(path)


def test_min_rows_above_the_window_is_refused() -> None:
    rows = load_params(ROOT / "params.yaml").monitor.window_rows
    assert refusal(changed("monitor.min_rows", str(rows + 1))) == (
        f"params.yaml: section 'monitor': min_rows is {rows + 1}, above window_rows {rows}."
    )


def test_sections_cannot_be_changed_after_the_check() -> None:
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.train.epochs = 0
    assert params.train.family("vit") is params.train.vit


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"schedule": "one_cycle", "warmup_epochs": 0}, "rises during warmup_epochs, which is 0 of 30 epochs; take 9 "),
        ({"schedule": "one_cycle", "warmup_epochs": 30}, "which is 30 of 30 epochs; take 9 (0.3 of the epochs is usual)"),
        ({"schedule": "step", "step_epochs": 30}, "schedule step with step_epochs 30 changes nothing in 30 epochs; lower"),
        ({"schedule": "plateau", "step_epochs": 31}, "schedule plateau with step_epochs 31 changes nothing in 30 epochs"),
        (
            {"schedule": "plateau", "step_epochs": 5, "early_stopping_epochs": 5},
            "early_stopping_epochs is 5, so training stops before schedule plateau lowers the rate after step_epochs 5",
        ),
        ({"schedule": "plateau", "final_rate": 1}, "final_rate is 1, so schedule plateau never falls; lower it"),
        ({"final_rate": 1}, "final_rate is 1, so schedule cosine never falls; lower it, or take schedule constant"),
        ({"final_rate": 1.5}, "'train.final_rate' is 1.5; it must be at most 1"),
        ({"cnn.override": {"schedule": "one_cycle", "warmup_epochs": 0.0}}, "cnn.override, "),
        ({"cnn.freeze": "backbone"}, "section 'train.cnn': freeze is 'backbone' but weights is null"),
        ({"vit.freeze": "norms"}, "section 'train.vit': freeze is 'norms' but weights is null"),
        (
            {"cnn.freeze": "backbone", "cnn.weights": "w.pt", "cnn.layer_decay": 0.9},
            "layer_decay is 0.9, but freeze is 'backbone' and only the head learns; set it to 1",
        ),
        ({"cnn.weights_sha256": "0" * 64}, "weights_sha256 is of a local file, but weights is null"),
        ({"cnn.weights_sha256": "0" * 64, "cnn.weights": "torchvision"}, "but weights is 'torchvision'"),
        ({"cnn.learning_rate": 20, "weight_decay": 0.05}, "the cnn's learning_rate 20 times its weight_decay 0.05 is"),
        ({"vit.learning_rate": 2, "vit.override": {"weight_decay": 0.5}}, "the vit's learning_rate 2 times its weight"),
    ],
)  # fmt: skip
def test_a_training_that_cannot_do_what_it_says_is_refused(changes: dict[str, object], sentence: str) -> None:
    assert sentence in refusal(with_train(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "one_cycle", "warmup_epochs": 9},
        {"schedule": "plateau", "step_epochs": 5, "early_stopping_epochs": 6},
        {"epochs": 1},  # a trial run; its warm-up is cut
        {"optimizer": "adam", "cnn.learning_rate": 20, "vit.learning_rate": 20},  # its decay is no share of the weights
        {"cnn.learning_rate": 20, "cnn.override": {"weight_decay": 0.01, "optimizer": "sgd"}},
        {"cnn.freeze": "backbone", "cnn.weights": "w.pt", "cnn.weights_sha256": "0" * 64},
    ],
)
def test_a_training_that_makes_sense_is_not(changes: dict[str, object]) -> None:
    parse_params(with_train(changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"train.loss": "focal", "augment.cutmix": 1},
            "the cnn's loss is focal, but augment.cutmix mixes images: no class of a mixed image can be certain, so all "
            "would count as hard; take cross_entropy, or set augment.cutmix to 0.",
        ),
        (
            {"train.vit.override": {"loss": "bce"}, "augment.mixup": 0.2, "augment.cutmix": 1},
            "the vit's loss is bce, which asks of each class whether it is there, but augment.mixup blends images, so that "
            "each of two is there in part; take cross_entropy, or augment.cutmix in its place.",
        ),
        (
            {"train.class_weights": "effective", "augment.balance": "sampler"},
            "the cnn's class_weights is effective and augment.balance is sampler, so small classes would be made up for "
            "twice; set one of them to none.",
        ),
        (
            {"train.adversarial": "free", "train.adversarial_steps": 1},
            "section 'train': adversarial is free, but adversarial_steps is 1: the attack on a batch comes from its "
            "replays; take 2 or more (4 to 8 are usual), or fgsm.",
        ),
        (
            {"train.initial_scale": 0.5, "train.full_scale_from": 0.9, "train.epochs": 5, "train.vit.override": {}},
            "section 'train': initial_scale is 0.5, and of 5 epochs none begins at or after the share 0.9 of "
            "full_scale_from, so the network would never learn from images of full size; lower full_scale_from, or set "
            "initial_scale to 1.",
        ),
        (
            {"train.vit.override": {"initial_scale": 0.5, "schedule": "plateau"}},
            "section 'train': vit.override, initial_scale is 0.5, but schedule plateau lowers the rate where the score on "
            "images of full size stands still, as it may while smaller ones are learnt; take schedule cosine, or set "
            "initial_scale to 1.",
        ),
        (
            {"train.vit.override": {"initial_scale": 0.5, "compile": "always"}},
            "section 'train': vit.override, initial_scale is 0.5, but compile is always, and each size would be compiled "
            "anew; set compile to never, or initial_scale to 1.",
        ),
        (
            {"train.adversarial": "free", "train.accumulate": 2},
            "section 'train': adversarial is free, which changes the weights at each replay of a batch, but accumulate is "
            "2; set it to 1, or take fgsm.",
        ),
        (
            {"train.vit.teacher": "vit"},
            "section 'train': vit.teacher is 'vit', which is what this training makes; name the other family, or copy "
            "models/vit to a folder of another name.",
        ),
        (
            {"train.vit.teacher": "cnn", "train.cnn.teacher": "vit"},
            "section 'train': cnn.teacher is 'vit' and vit.teacher is 'cnn', so each waits for the other; set one to none.",
        ),
        (
            {"train.vit.teacher": "cnn", "train.distillation_share": 0},
            "section 'train': vit.teacher is 'cnn', but distillation_share is 0, so nobody would listen; raise it (0.5 is "
            "usual), or set teacher to none.",
        ),
        (
            {"train.vit.teacher": "cnn", "train.vit.override": {"loss": "bce"}},
            "section 'train': vit.override, vit.teacher is 'cnn', whose answers are shares among the classes, but loss is "
            "bce, for which each class is by itself; take cross_entropy, or set teacher to none.",
        ),
        (
            {"train.vit.teacher": "shipped"},
            "'train.vit.teacher' is 'shipped'; it must be a model that is there before this training: cnn, vit, or a folder "
            "of your own in models/.",
        ),
        (
            {"train.vit.teacher": "../cnn"},
            "'train.vit.teacher' is '../cnn'; it must be the name of a folder in models/, or none.",
        ),
    ],
)
def test_parts_of_a_training_that_contradict_each_other_are_refused(changes: dict[str, object], sentence: str) -> None:
    assert refusal(with_values(changes)) == f"params.yaml: {sentence}"


@pytest.mark.parametrize(
    "changes",
    [
        {"train.loss": "bce", "augment.cutmix": 1},
        {"train.loss": "bce", "augment.mixup": 1, "augment.mixed_share": 0},
        {"train.loss": "focal", "train.class_weights": "balanced"},
        {"train.class_weights": "balanced", "augment.balance": "sampler", "augment.balance_strength": 0},
        {"train.vit.teacher": "cnn"},
        # The family that overrides has no teacher, and the one with a teacher overrides nothing.
        {"train.vit.teacher": "cnn", "train.cnn.override": {"distillation_share": 0.0, "loss": "bce"}},
        {"train.vit.teacher": "cnn", "train.loss": "bce", "train.vit.override": {"loss": "cross_entropy"}},
        {"train.initial_scale": 0.5, "train.full_scale_from": 0.8, "train.epochs": 5, "train.vit.override": {}},
        {"train.initial_scale": 1, "train.full_scale_from": 0.9, "train.epochs": 1, "train.vit.override": {}},
        {"train.adversarial": "free", "train.adversarial_steps": 4},
        {"train.adversarial": "fgsm", "train.adversarial_steps": 1, "train.accumulate": 2},
    ],
)
def test_parts_of_a_training_that_go_together_are_not(changes: dict[str, object]) -> None:
    parse_params(with_values(changes))


def with_train(changes: dict[str, object]) -> str:
    """The shipped params with other values in the section train, by keys as "epochs" and "cnn.freeze"."""
    return with_values({f"train.{key}": value for key, value in changes.items()})


def with_values(changes: dict[str, object]) -> str:
    """The shipped params with other values, by keys as "train.cnn.freeze"."""
    tree = yaml.safe_load(TEXT)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = tree
        for part in parents:
            section = section[part]
        section[last] = value
    return yaml.safe_dump(tree)

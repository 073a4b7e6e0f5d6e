"""What a space may say, and what of it is refused before the first trial, with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.tuning.studies import CONTINUOUS, GRID, ROOT, plan
from visionloop.config import PreprocessParams, SpaceEntry, load_params, parse_params, refuse_space, tuned_tree
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError
from visionloop.tuning.space import Plan, same

TEXT = (ROOT / "params.yaml").read_text()
_OWN = "    augment.rotation_degrees: {low: 0, high: 20, step: 4}"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train.cnn.learningrate: {low: 0.1, high: 1}", "did you mean 'train.cnn.learning_rate'"),
        ("train.batchsize: {choices: [3]}", "did you mean 'train.batch_size'"),
        ("xyz: {choices: [0]}", "keys are train.<key>, train.cnn.<key> and augment.<key>"),
        ("train.vit.learning_rate: {low: 0.1, high: 1}", "tune.family is cnn; name keys of train.cnn"),
        ("train.batch_size: {low: 1.5, high: 3}", "low, high and step must be whole numbers"),
        ("train.loss: {low: 1, high: 3}", "it is no number, so it has no range; write {choices: [...]}"),
        ("train.loss: {choices: [focal, fokal]}", "'fokal' is not allowed: "),
        ("train.batch_size: {low: 0, high: 3}", "0 is not allowed: "),
        ("augment.scale: {low: 0, high: 1}", "1 is not allowed: 'augment.scale' is 1; it must be less than 1"),
        ("augment.scale: {low: 0.1, high: 0.3, step: 0.15}", "steps of 0.15 from 0.1 do not end at 0.3"),
        ("augment.scale: {low: 0, high: 0.5, log: true}", "low is 0; with log: true it must be above 0"),
        ("augment.scale: {low: 0.5, high: 0.2}", "low must be below high"),
        ("augment.scale: {low: 0.1, high: 0.2, log: true, step: 0.1}", "log and step exclude each other"),
        ("augment.scale: {low: 0.1, high: 0.2, choices: [0.1]}", "it has choices and a range"),
        ("augment.scale: {low: 0.1}", "it needs {low, high}"),
        ("augment.scale: {choices: []}", "choices is empty"),
        ("augment.scale: {choices: [0.1, 0.1]}", "names a value twice"),
        ("augment.scale: 3", "it must be a section with keys of its own"),
        ("augment.scale: {low: 0.1, hihg: 0.2}", "did you mean 'high'?"),
        ("augment.seed: {choices: [0]}", "there is no such key to tune"),
        ("augment.balance: {choices: [none, variants]}", "variants are stored by the stage augment"),
        ("train.epochs: {choices: [3]}", "pruning compares equal epochs"),
        ("train.cnn.override.metric: {choices: [loss]}", "there is no such key to tune"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_with_the_params(line: str, words: str) -> None:
    assert TEXT.count(_OWN) == 1
    with pytest.raises(ConfigError) as refusal:
        parse_params(TEXT.replace(_OWN, f"    {line}"))
    assert words in str(refusal.value)
    assert line.partition(":")[0] in str(refusal.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("sampler: tpe ", "sampler: grid ", "train.cnn.learning_rate: tune.sampler is grid, and this range has no end"),
        ("sampler: tpe ", "sampler: bayes ", "it must be 'grid', 'random' or 'tpe'"),
        ("objectives: [accuracy] ", "objectives: [latency] ", "it must be [accuracy] or [accuracy, latency]"),
        ("objectives: [accuracy] ", "objectives: [accuracy, latency] ", "set pruner: none, or objectives: [accuracy]"),
        ("storage: null   ", "storage: mysql://h/d ", "postgresql+psycopg://user@host/database"),
        ("trials: 30 ", "trials: 0 ", "'tune.trials' is 0; it must be at least 1"),
    ],
)
def test_settings_of_tuning_that_do_not_fit_are_refused(old: str, new: str, words: str) -> None:
    begin = TEXT.index("\ntune:")
    assert TEXT[begin:].count(old) == 1
    with pytest.raises(ConfigError) as refusal:
        parse_params(TEXT[:begin] + TEXT[begin:].replace(old, new))
    assert words in str(refusal.value)


def test_a_grid_larger_than_its_trials_is_refused() -> None:
    begin, end = TEXT.index("\n  space:"), TEXT.index("\ncalibrate:")
    space = "\n  space:\n    train.batch_size: {low: 1, high: 31}\n"
    text = (TEXT[:begin] + space + TEXT[end:]).replace("sampler: tpe ", "sampler: grid ")
    with pytest.raises(ConfigError, match=r"has 31 combinations, but tune\.trials is 30"):
        parse_params(text)
    assert parse_params(text.replace("high: 31", "high: 30")).tune.trials == 30


def test_a_network_that_cannot_be_built_is_refused_before_the_first_trial() -> None:
    with pytest.raises(ConfigError, match=r"tune.space, widht 8: small_resnet has no option 'widht'; did you mean 'width'"):
        plan(space={"train.cnn.options.widht": {"choices": [8, 16]}}).check()
    with pytest.raises(ConfigError, match=r"tune.space, width 0"):
        plan(space={"train.cnn.options.width": {"low": 0, "high": 16}}).check()


def test_a_value_that_fits_only_beside_another_of_the_space_is_allowed_but_not_in_a_grid() -> None:
    space = {"train.vit.options.heads": {"choices": [4, 3]}, "train.vit.options.width": {"choices": [32, 48]}}
    plan(family="vit", space=space).check()  # 3 heads divide 48, though not the 32 of params
    with pytest.raises(ConfigError, match=r"tune.space, heads 3, width 32"):
        plan(family="vit", space=space, sampler="grid").check()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"train.loss": {"choices": ["bce", "cross_entropy"]}, "augment.mixup": {"choices": [0.0, 0.2]}},
            "The cnn's loss is bce, .* but augment.mixup blends",
        ),
        (
            {"train.cnn.learning_rate": {"choices": [0.1, 0.5]}, "train.weight_decay": {"choices": [0.1, 4.0]}},
            "learning_rate 0.5 times its weight_decay 4 is 1 or more",
        ),
        (
            {"train.class_weights": {"choices": ["balanced"]}, "augment.balance": {"choices": ["none", "sampler"]}},
            "class_weights is balanced and augment.balance is sampler",
        ),
    ],
)
def test_values_that_do_not_go_together_are_no_trial_and_no_part_of_a_grid(space: dict[str, Any], words: str) -> None:
    made = plan(space=space)
    made.check()  # some of them go together
    allowed, refused = [], []
    for values in made.grid():
        try:
            made.settings(values)
        except ConfigError as error:
            refused.append(str(error))
        else:
            allowed.append(values)
    assert allowed
    assert len(refused) == 1
    with pytest.raises(ConfigError, match=words):
        raise ConfigError(refused[0])
    with pytest.raises(ConfigError, match=words):
        plan(space=space, sampler="grid").check()


def test_data_packed_with_other_settings_are_refused() -> None:
    made, params = plan(), load_params(ROOT / "params.yaml")
    preprocess = PreprocessParams(height=8, width=8, fit="stretch", filter="bilinear")
    with pytest.raises(ConfigError, match="run `dvc repro augment`"):
        Plan.of(made.tune, made.train, params.augment, preprocess, made.meta)
    meta = made.meta.model_copy(update={"policy": AugmentPolicy.from_params(params.augment), "preprocess": preprocess.spec})
    assert Plan.of(made.tune, made.train, params.augment, preprocess, meta).train.of("cnn").epochs == 2


def test_a_shared_key_is_set_for_the_tuned_family_alone() -> None:
    values = {"train.weight_decay": 0.2, "train.cnn.options.width": 4, "augment.scale": 0.3}
    train, meta = plan().settings(values)
    assert (train.of("cnn").weight_decay, train.of("vit").weight_decay) == (0.2, 0.05)
    assert train.cnn.options == {"width": 4, "stages": 2}
    assert meta.policy.scale == 0.3
    assert tuned_tree("cnn", values) == {
        "train": {"cnn": {"override": {"weight_decay": 0.2}, "options": {"width": 4}}},
        "augment": {"scale": 0.3},
    }


@pytest.mark.parametrize(
    ("entry", "whole", "values"),
    [
        ({"low": 0.0, "high": 0.3, "step": 0.1}, False, (0.0, 0.1, 0.2, 0.3)),
        ({"low": 0, "high": 20, "step": 10}, False, (0.0, 10.0, 20.0)),
        ({"low": 2, "high": 5}, True, (2, 3, 4, 5)),
        ({"low": 0, "high": 1}, False, None),
        ({"low": 1, "high": 64, "log": True}, True, None),
        ({"choices": [True, None, "a"]}, False, (True, None, "a")),
    ],
)
def test_values_of_an_entry(entry: dict[str, Any], whole: bool, values: tuple[Any, ...] | None) -> None:
    assert SpaceEntry.model_validate(entry).values(whole) == values


def test_a_grid_is_the_product_and_a_range_without_steps_has_no_end() -> None:
    points = plan(space=GRID, sampler="grid").grid()
    assert {tuple(point.values()) for point in points} == {(b, s) for b in (16, 32) for s in (0.0, 0.1, 0.2, 0.3)}
    assert len(points) == plan(space=GRID).points == 8
    assert plan(space=CONTINUOUS).points is None


def test_the_name_depends_on_data_space_and_fixed_settings_and_on_nothing_else() -> None:
    made = plan()
    others = [
        plan(space=GRID),
        plan(epochs=3),
        plan(train={"weight_decay": 0.01}),
        Plan(made.tune, made.train, made.augment, made.meta.model_copy(update={"data_id": "1" * 64})),
    ]
    assert len({made.name, *(other.name for other in others)}) == 5
    # What is searched may stand at any value now, and who draws it does not matter.
    assert made.name == plan(train={"learning_rate": 0.05, "batch_size": 32}).name
    assert made.name == plan(sampler="tpe", pruner="median", trials=9, seed=4, timeout_minutes=2.0).name


def test_the_present_values_are_a_trial_where_they_lie_in_the_space() -> None:
    assert plan().current() == {"train.cnn.learning_rate": 0.01, "train.batch_size": 16}
    assert plan(train={"learning_rate": 0.5}).current() is None
    assert plan(train={"batch_size": 24}).current() is None
    assert plan(train={"override": {"batch_size": 32}}).current() == {
        "train.cnn.learning_rate": 0.01,
        "train.batch_size": 32,
    }
    assert plan().changes({"train.cnn.learning_rate": 0.01, "train.batch_size": 32}) == {"train.batch_size": 32}


def test_values_are_rounded_as_people_write_them_and_stay_in_their_range() -> None:
    space = {
        "train.weight_decay": {"low": 0.00012345, "high": 0.2},
        "train.label_smoothing": {"low": 0, "high": 0.3, "step": 0.1},
    }
    made = plan(space=space)
    assert made.values({"train.weight_decay": 0.123456, "train.label_smoothing": 0.30000000000000004}) == {
        "train.weight_decay": 0.1235,
        "train.label_smoothing": 0.3,
    }
    assert made.values({"train.weight_decay": 0.00012345})["train.weight_decay"] == 0.00012345


def test_true_and_one_are_not_the_same_choice() -> None:
    assert same({"a": 1, "b": "x"}, {"a": 1.0, "b": "x"})
    assert not same({"a": True}, {"a": 1})
    assert not same({"a": 1}, {"b": 1})


def test_the_shipped_space_can_be_searched(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    made = plan()
    meta = made.meta.model_copy(
        update={"policy": AugmentPolicy.from_params(params.augment), "preprocess": params.preprocess.spec}
    )
    Plan.of(params.tune, params.train, params.augment, params.preprocess, meta).check()


def test_settings_that_a_space_does_not_go_with_stop_tuning_and_nothing_else() -> None:
    params = parse_params(TEXT.replace("  balance: none ", "  balance: variants "))
    assert params.augment.balance == "variants"
    with pytest.raises(ConfigError, match=r"tune\.space, augment\.\w+: variants are stored by the stage augment"):
        refuse_space(params.tune, params.train, params.augment)

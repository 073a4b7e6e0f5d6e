"""Every artifact's path, once, relative to the project root (the folder of `params.yaml`), where all commands run.

`dvc.yaml` names the same paths; `tests/contract/test_dvc_yaml.py` compares the two.
"""

from __future__ import annotations

from pathlib import Path

PARAMS = Path("params.yaml")
DVC_YAML = Path("dvc.yaml")
EXPERIMENTS_YAML = Path("experiments/dvc.yaml")  # stages that run when they are asked for, never with the pipeline
RECIPES = Path("recipes")  # complete params files to put in the place of params.yaml

# What people give: their images, and what they decided. DVC watches all of it; git keeps the decisions.
DECISIONS = Path("data/decisions.csv")  # keep, drop or relabel by image id, with who and why
FEEDBACK = Path("data/feedback")  # labelled live images, written by `visionloop feedback pull`
OUT_OF_FOLD = Path("data/out_of_fold")  # answers of cross-validation, written by `visionloop crossvalidate --accept`
FOREIGN = Path("data/foreign")  # images of none of the classes, to measure "unknown" by; nothing need lie there
OUT_OF_FOLD_ANSWERS = OUT_OF_FOLD / "answers.parquet"
DOWNLOADS = Path("data/downloads")  # archives by sha256; no dependency, since params pin their content
# collect
SHARDS = Path("data/shards")  # <source>/part-<number>-<hash>.parquet: encoded bytes, append-only
IMAGES = Path("data/images.parquet")  # one row per image of the current data version, without bytes
COLLECT_REPORT = Path("reports/collect.json")
# clean
CLEAN = Path("data/clean.parquet")  # one row per image: measures, verdict, reason, duplicate cluster
CLEANING_PAGE = Path("reports/cleaning.html")
CLEANING_REPORT = Path("reports/cleaning.json")
# split
SPLIT = Path("data/split.parquet")  # one row per kept image: id, label, split, cluster
SPLIT_REPORT = Path("reports/split.json")
# augment
PACKED = Path("data/packed")  # {train,val,test}.{images,labels}.npy, {...}.ids.txt, meta.json
CONTACT_SHEET = Path("reports/augmentation.png")  # the policy as training applies it
OPERATIONS_SHEET = Path("reports/augmentation_operations.png")  # each operation alone, at its strongest
AUGMENT_REPORT = Path("reports/augmentation.json")
# train, calibrate, evaluate: one folder per family ("cnn", "vit")
MODELS = Path("models")
TRAIN_REPORTS = Path("reports/train")
CALIBRATE_REPORTS = Path("reports/calibrate")
EVALUATE_REPORTS = Path("reports/evaluate")
CROSSVALIDATE_REPORTS = Path("reports/crossvalidate")
LEARNING_CURVE_REPORTS = Path("reports/learning-curve")
FIND_RATE_REPORTS = Path("reports/find-rate")  # <family>.png, written by `visionloop find-rate`; not in git
# tune, of experiments/dvc.yaml
TUNE_PAGE = Path("reports/tune.html")
TUNE_DIFF = Path("reports/tune.diff")  # what the best trial would change in params.yaml
TUNE_REPORT = Path("reports/tune.json")
# select
SELECTED = Path("models/selected.json")
SELECT_REPORT = Path("reports/select.json")
# export, robustness, quantize
EXPORTED = Path("models/exported")  # model.onnx (FP32), card.json, golden.npz
EXPORT_REPORT = Path("reports/export.json")
ROBUSTNESS_REPORT = Path("reports/robustness.json")  # what quantize asks before it goes on
ROBUSTNESS = Path("reports/robustness")  # tables of corruptions, classes, curves, attacks, malformed bytes; pictures
INTEGER = Path("models/integer")  # the best INT8 form and its card, shipped or not; without one, a text that says why
SHIPPED = Path("models/shipped")  # model.onnx (INT8 or FP32, whichever earned it), embedding_pca.npz, card.json
QUANTIZE_REPORT = Path("reports/quantize.json")
VARIANTS = Path("reports/variants.csv")  # speed, size and memory of torch, FP32 and INT8 by batch size
# parity
PARITY_PAGE = Path("reports/parity.html")  # every form of the model on the same images, up to a server
PARITY_REPORT = Path("reports/parity.json")  # what deploy asks before it publishes
TRITON_LOCK = Path("requirements-triton.lock")  # what the served models decode and compute with
COMPRESSION_REPORT = Path("reports/compression.json")  # every form and every trial of the search, with the layers
COMPRESSION_TABLE = Path("reports/compression.csv")  # a row per form
COMPRESSION_PAGE = Path("reports/compression.html")
# gate
PROMOTIONS = Path("data/promotions.csv")  # which models people published over the gate's head, with who and why
GATE_REPORT = Path("reports/gate.json")
COMPARE_PAGE = Path("reports/compare.html")  # written by `visionloop compare`; not in git
# deploy
MODEL_REPOSITORY = Path("model_repository")
DEPLOY_REPORT = Path("reports/deploy.json")
# reference
REFERENCE = Path("data/reference.parquet")  # one LoggedPrediction row per held-out image, with its true label
REFERENCE_REPORT = Path("reports/reference.json")
# report
REPORT_PAGE = Path("reports/report.html")  # the whole run on one page
MODEL_CARD = Path("reports/MODEL_CARD.md")  # for people; CARD is for the code
DVC_LOCK = Path("dvc.lock")

# Files inside a model folder.
MODEL_ONNX = "model.onnx"
MODEL_TORCH = "model.pt"
CARD = "card.json"
CALIBRATION = "calibration.json"
CLASS_MEANS = "class_means.npz"
EMBEDDING_PCA = "embedding_pca.npz"
GOLDEN = "golden.npz"
LABELS = "labels.txt"
SEEN = "images.npz"  # in a published version: which images its data version had, and which of them were test
RELEASE = "release.json"  # in the model repository: which version of `classifier` is champion

# What the live system writes; never in git, never a DVC output.
VAR = Path("var")
STORE_DB = VAR / "store.db"
SPOOL = VAR / "spool"
LIVE_IMAGES = VAR / "images"  # <first two digits>/<sha256>: encoded bytes of answered images, for labelling
RUN = VAR / "run"  # process ids, ports, the private Triton backend folder
ENDPOINTS = RUN / "endpoints.json"
LOGS = VAR / "logs"
EVIDENTLY_WORKSPACE = VAR / "evidently"
DRIFT_REPORTS = VAR / "drift"  # one HTML page and one JSON file per closed window
PREFECT_HOME = VAR / "prefect"
CROSSVALIDATE = VAR / "crossvalidate"  # <family>: finished folds and the checkpoint of an interrupted run
LEARNING_CURVE = VAR / "learning-curve"  # <family>: finished trainings and the checkpoint of an interrupted run
TUNING = VAR / "tune"  # the studies' database, and the checkpoints of trials under way
RUN_SUMMARY = VAR / "run-summary.json"


def family_folder(family: str) -> Path:
    """`models/<family>`: model.pt, card.json, calibration.json, class_means.npz, the resume folder of a stopped training."""
    return MODELS / family


def train_report(family: str) -> Path:
    """`reports/train/<family>`: what DVCLive writes during training."""
    return TRAIN_REPORTS / family


def calibrate_report(family: str) -> Path:
    """`reports/calibrate/<family>`: tables, pictures and the scores of foreign images; numbers in `<family>.json` beside."""
    return CALIBRATE_REPORTS / family


def evaluate_report(family: str) -> Path:
    """`reports/evaluate/<family>`: metrics, predictions, plots and pictures."""
    return EVALUATE_REPORTS / family


def crossvalidate_report(family: str) -> Path:
    """`reports/crossvalidate/<family>`: metrics, out-of-fold answers and the picture of the folds."""
    return CROSSVALIDATE_REPORTS / family


def learning_curve_report(family: str) -> Path:
    """`reports/learning-curve/<family>`: metrics, the points, the law with its answer, and the picture."""
    return LEARNING_CURVE_REPORTS / family

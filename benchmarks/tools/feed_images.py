"""Feed the same images through what a user would pick instead: ImageFolder with PIL, webdataset, litdata.

Runs with the python of an environment made from benchmarks/requirements.lock. `prepare` writes each tool's own form of the
folder; `serve` keeps one loader and, for each line on standard input, goes through one epoch and prints images and seconds.

Command: PYTHON benchmarks/tools/feed_images.py prepare|serve TOOL FOLDER WORK --side 64 --workers 2
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

BATCH = 256
PER_SHARD = 500


def transform(side: int) -> Any:
    """Decode is done; resize, shift, flip, and a uint8 tensor: the same work as the packed arrays' loader does."""
    return v2.Compose([
        v2.Resize((side, side)), v2.RandomCrop(side, padding=side // 8, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.PILToTensor(),
    ])  # fmt: skip


class Litdata:
    """What litdata's workers call for one image; at the top level, so that it can be sent to them."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes

    def __call__(self, path: str) -> dict[str, Any]:
        return {"data": Path(path).read_bytes(), "label": self.classes.index(Path(path).parent.name)}


def prepare(tool: str, folder: Path, work: Path) -> None:
    """Write the tool's own form, where it has one."""
    files = sorted(folder.glob("*/*"))
    classes = sorted({path.parent.name for path in files})
    if tool == "webdataset":
        for start in range(0, len(files), PER_SHARD):
            with tarfile.open(work / f"{start // PER_SHARD:05d}.tar", "w") as tar:
                for number, path in enumerate(files[start : start + PER_SHARD], start):
                    for suffix, data in (("jpg", path.read_bytes()), ("cls", str(classes.index(path.parent.name)).encode())):
                        entry = tarfile.TarInfo(f"{number:07d}.{suffix}")
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
    elif tool == "litdata":
        import litdata

        litdata.optimize(Litdata(classes), [str(path) for path in files], str(work), num_workers=2, chunk_bytes="16MB")


def loader(tool: str, folder: Path, work: Path, side: int, workers: int) -> Any:
    """The tool's own loader, as its documentation shows it."""
    change = transform(side)
    if tool == "imagefolder":
        return DataLoader(
            ImageFolder(str(folder), change), BATCH, shuffle=True, num_workers=workers, persistent_workers=True
        )
    if tool == "webdataset":
        import webdataset

        urls = [str(path) for path in sorted(work.glob("*.tar"))]
        data = (
            webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0, empty_check=False)
            .shuffle(500).decode("pil").to_tuple("jpg", "cls").map_tuple(change, int).batched(BATCH)
        )  # fmt: skip
        return webdataset.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=True)
    import litdata

    class Photos(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            item = super().__getitem__(index)
            return change(Image.open(io.BytesIO(item["data"])).convert("RGB")), item["label"]

    return litdata.StreamingDataLoader(
        Photos(str(work), shuffle=True), batch_size=BATCH, num_workers=workers, persistent_workers=True
    )


def main() -> None:
    """Write the tool's form, or serve epochs until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["prepare", "serve"])
    parser.add_argument("tool", choices=["imagefolder", "webdataset", "litdata"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if arguments.action == "prepare":
        arguments.work.mkdir(parents=True, exist_ok=True)
        prepare(arguments.tool, arguments.folder, arguments.work)
        return
    batches = loader(arguments.tool, arguments.folder, arguments.work, arguments.side, arguments.workers)
    for _ in sys.stdin:
        start = time.perf_counter()
        images = sum(len(batch[0]) for batch in batches)
        print(json.dumps({"images": images, "seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()

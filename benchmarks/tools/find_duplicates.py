"""What one of imagededup's hashes, used plainly, finds in a flat folder; not its CNN, which downloads weights.

Runs in the environment of benchmarks/requirements.lock: `python find_duplicates.py PHash|DHash|WHash|AHash FOLDER OUTPUT`.
OUTPUT is JSON: {"hash_seconds": s, "search_seconds": s, "pairs": n, "of_copies": [[name, name]]}, the last only those pairs
in which a name starts with "copy". Imports nothing of visionloop.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import imagededup.methods


def main() -> None:
    """Run one method and write what it found."""
    method, folder, output = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    tool = getattr(imagededup.methods, method)(verbose=False)
    start = time.perf_counter()
    hashes = tool.encode_images(image_dir=folder)
    hashed = time.perf_counter()
    found = tool.find_duplicates(encoding_map=hashes)
    searched = time.perf_counter()
    pairs = {(min(a, b), max(a, b)) for a, others in found.items() for b in others}
    copies = sorted(pair for pair in pairs if pair[0].startswith("copy") or pair[1].startswith("copy"))
    result = {"hash_seconds": hashed - start, "search_seconds": searched - hashed, "pairs": len(pairs), "of_copies": copies}
    output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

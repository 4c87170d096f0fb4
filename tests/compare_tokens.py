"""Compares bam's tokens with those of transformers' BertTokenizerFast on every row of every GLUE file that is there.

    setup/setup.sh python-peer
    cargo build --release --workspace --locked --example tokens
    .venv-peer/bin/python tests/compare_tokens.py ENCODER GLUE [--max-length 128]

The first line makes a Python with what tests/bench/requirements.txt pins (transformers); `make test` does not need it. Exits with 1
if ids, segments or truncation differ anywhere. docs/interoperability.md has what came of it.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

from transformers import AutoTokenizer

AT_ONCE = 1000
PROGRAM = Path(__file__).resolve().parent.parent / "target/release/examples/tokens"


def compare(rows, tokenizer, max_length):
    """How many of some rows differ; each is (first segment, ids, texts), all with one text or all with two."""
    texts = [list(column) for column in zip(*(row[2] for row in rows))]
    theirs = tokenizer(*texts, truncation=True, max_length=max_length)
    different = 0
    for (first, ids, _), their_ids, their_types in zip(rows, theirs["input_ids"], theirs["token_type_ids"]):
        types = [int(i >= first) for i in range(len(ids))]
        different += ids != their_ids or types != their_types
    return different


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("encoder")
    arguments.add_argument("glue")
    arguments.add_argument("--max-length", type=int, default=128)
    arguments = arguments.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.encoder)
    command = [PROGRAM, arguments.encoder, arguments.glue, str(arguments.max_length)]
    rows, different, batch, last = Counter(), Counter(), [], None

    def flush():
        if batch:
            different[last] += compare(batch, tokenizer, arguments.max_length)
            batch.clear()

    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for line in process.stdout:
            path, first, ids, *texts = line.decode("utf-8").rstrip("\n").split("\t")
            if path != last or len(batch) == AT_ONCE:
                flush()
            last = path
            rows[path] += 1
            batch.append((int(first), [int(i) for i in ids.split()], texts))
        flush()
    if process.returncode:
        return 1
    for path, count in rows.items():
        print(f"{path}: {count} rows, {different[path]} differ")
    print(f"{sum(rows.values())} rows, {sum(different.values())} differ")
    return 1 if sum(different.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

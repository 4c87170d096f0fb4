"""Prints how many rows a second Hugging Face's fast tokenizer does, called as people call it: with lists of texts.

    python tests/bench/tokens.py ENCODER ROWS.tsv

ROWS.tsv has two texts a line. Only the calls are timed. `cargo bench --bench parts` runs it, in turns with bam.
"""

import sys
import time

from transformers import BertTokenizerFast

AT_ONCE = 1000
MAX_LENGTH = 128


def main():
    encoder, path = sys.argv[1:]
    tokenizer = BertTokenizerFast.from_pretrained(encoder)
    with open(path, encoding="utf-8", newline="\n") as file:
        rows = [line.rstrip("\n").split("\t")[:2] for line in file]
    seconds = 0.0
    for start in range(0, len(rows), AT_ONCE):
        first, second = (list(column) for column in zip(*rows[start : start + AT_ONCE]))
        since = time.perf_counter()
        tokenizer(first, second, truncation=True, max_length=MAX_LENGTH)
        seconds += time.perf_counter() - since
    print(len(rows) / seconds)


if __name__ == "__main__":
    main()

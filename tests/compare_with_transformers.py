"""Compares a finished run with Hugging Face's transformers: token ids of every row, logits of every teacher, and the
student's answers on dev, from the directories that `bam export RUN` made.

    python tests/compare_with_transformers.py RUN [--examples N]

Needs transformers, torch, h5py and PyYAML, which `make test` does not install (they are two gigabytes). GLUE tasks only.
Exits with 1 if a token differs anywhere, a logit by more than 2e-5, or an answer.
"""

import argparse
import glob
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
import yaml
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

# Folder, dev file, header, first text, second text; as GLUE distributes them.
GLUE = {
    "cola": ("CoLA", "dev.tsv", False, 3, None),
    "sst2": ("SST-2", "dev.tsv", True, 0, None),
    "mrpc": ("MRPC", "dev.tsv", True, 3, 4),
    "stsb": ("STS-B", "dev.tsv", True, -3, -2),
    "qqp": ("QQP", "dev.tsv", True, 3, 4),
    "mnli": ("MNLI", "dev_matched.tsv", True, 8, 9),
    "qnli": ("QNLI", "dev.tsv", True, 1, 2),
    "rte": ("RTE", "dev.tsv", True, 1, 2),
    "wnli": ("WNLI", "dev.tsv", True, 1, 2),
}
TOLERANCE = 2e-5


def texts(glue, task, split):
    """The first and second text of every data row."""
    folder, dev, header, a, b = GLUE[task]
    name = dev if split == "dev" else "train.tsv"
    lines = (Path(glue) / folder / name).read_bytes().decode("utf-8").split("\n")[int(header):]
    for line in lines:
        fields = line.rstrip("\r").split("\t")
        if line:
            yield fields[a] if len(fields) > abs(a) else None, fields[b] if b and len(fields) > abs(b) else None


def compare_tokens(run, config, task, tokenizer):
    """The number of examples whose tokens differ from the tokenizer's own."""
    different = 0
    for split in ("train", "dev"):
        rows = list(texts(config["data"]["glue"], task, split))
        with h5py.File(run / "data" / f"{task}-{split}.h5") as data:
            ids, types, offsets = data["input_ids"][:], data["token_type_ids"][:], data["offsets"][:]
            for i, example in enumerate(data["example_id"][:]):
                # Copies of pairs with their texts swapped are numbered after all rows.
                text, second = rows[example % len(rows)]
                if example >= len(rows):
                    text, second = second, text
                expected = tokenizer(text, second, truncation="longest_first", max_length=config["model"]["max_length"])
                span = slice(offsets[i], offsets[i + 1])
                same = expected["input_ids"] == ids[span].tolist() and expected["token_type_ids"] == types[span].tolist()
                different += not same
            print(f"{task} {split}: {len(offsets) - 1} examples, {different} with other tokens so far")
    return different


def compare_logits(run, stage, task, examples):
    """The largest difference between the logits that the run stored and those of the exported model."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "stages" / stage / "model").eval()
    stored = {}
    for shard in glob.glob(str(run / "logits" / stage / task / "shard-*.h5")):
        with h5py.File(shard) as file:
            stored.update(zip(file["example_id"][:].tolist(), file["logits"][:]))
    worst = 0.0
    with h5py.File(run / "data" / f"{task}-train.h5") as data:
        offsets, numbers = data["offsets"][:], data["example_id"][:]
        for i in range(0, len(numbers), max(1, len(numbers) // examples)):
            span = slice(offsets[i], offsets[i + 1])
            inputs = {name: torch.tensor(data[name][span][None].astype("int64")) for name in ("input_ids", "token_type_ids")}
            with torch.no_grad():
                logits = model(**inputs).logits[0].numpy()
            worst = max(worst, float(np.abs(logits - stored[int(numbers[i])]).max()))
    print(f"{stage}: {model.config.problem_type}, {list(model.config.id2label.values())}, logits differ by at most {worst:.1e}")
    return worst


def compare_answers(run, config, task, examples):
    """How many of the exported student's answers differ from those that the run wrote down."""
    model = AutoModelForSequenceClassification.from_pretrained(run / "export" / task).eval()
    lines = (run / "stages" / "student" / "predictions" / f"{task}-dev.tsv").read_text(encoding="utf-8").splitlines()
    answers = [line.split("\t")[1] for line in lines[1:]]
    sigmoid = config["model"]["regression_output"] == "sigmoid"
    different = compared = 0
    with h5py.File(run / "data" / f"{task}-dev.h5") as data:
        offsets = data["offsets"][:]
        for i in range(0, len(answers), max(1, len(answers) // examples)):
            span = slice(offsets[i], offsets[i + 1])
            inputs = {name: torch.tensor(data[name][span][None].astype("int64")) for name in ("input_ids", "token_type_ids")}
            with torch.no_grad():
                logits = model(**inputs).logits[0]
            compared += 1
            if model.config.problem_type == "regression":
                low, high = model.config.bam_heads[0]["range"]
                unit = float(torch.sigmoid(logits[0]) if sigmoid else logits[0])
                different += abs(low + unit * (high - low) - float(answers[i])) > TOLERANCE * (high - low)
            else:
                different += model.config.id2label[int(logits.argmax())] != answers[i]
    print(f"student's {task}: {compared} answers compared, {different} differ")
    return different


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--examples", type=int, default=100, help="how many of each task's logits are compared")
    arguments = arguments.parse_args()
    run = arguments.run
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    tokenizer = BertTokenizerFast.from_pretrained(config["model"]["path"])
    good = True
    for task in (t for t in config["data"]["tasks"] if isinstance(t, str)):
        good &= compare_tokens(run, config, task, tokenizer) == 0
        if (run / "logits" / f"teacher-{task}").is_dir():
            good &= compare_logits(run, f"teacher-{task}", task, arguments.examples) < TOLERANCE
        if (run / "export" / task).is_dir():
            good &= compare_answers(run, config, task, arguments.examples) == 0
    print("all the same" if good else "DIFFERENT")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

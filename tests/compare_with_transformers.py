"""Compares a finished run with Hugging Face's transformers: token ids of every row, and the logits of every model: those that the
run trained (also for several tasks at once), those that `bam export RUN` made of them, and the teachers that it was given; of
teachers, also the logits that the student learnt from.

    setup/setup.sh python-peer
    cargo build --release --workspace --locked --example logits
    .venv-peer/bin/python tests/compare_with_transformers.py RUN [--examples N]

The first line makes a Python with what tests/bench/requirements.txt pins (transformers, torch, h5py, PyYAML); `make test` does not
need it. Exits with 1 if a token differs anywhere, or a logit by 2e-5 or more. docs/interoperability.md has what came of it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
import transformers
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

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
# Nearer to 0 or 1 than this, bam takes no teacher's score for what a sigmoid is to reach.
NEXT_TO = 1e-4
PROGRAM = Path(__file__).resolve().parent.parent / "target/release/examples/logits"


def texts(glue, task, split):
    """The first and second text of every data row."""
    folder, dev, header, a, b = GLUE[task]
    name = dev if split == "dev" else "train.tsv"
    lines = (Path(glue) / folder / name).read_bytes().decode("utf-8").split("\n")[int(header):]
    for line in lines:
        fields = line.rstrip("\r").split("\t")
        if line:
            yield fields[a] if len(fields) > abs(a) else None, fields[b] if b and len(fields) > abs(b) else None


def encode(tokenizer, text, second, model):
    """Ids and segments of one example, cut as the recipe says."""
    longest = model["max_length"]
    if model.get("truncation", "hugging-face") == "hugging-face":
        both = tokenizer(text, second, truncation="longest_first", max_length=longest)
        return both["input_ids"], both["token_type_ids"]
    # As BERT's own code does it, which transformers cannot: the longer text loses its last token, on a tie the second.
    parts = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, second) if t is not None]
    while sum(map(len, parts)) > longest - 1 - len(parts):
        max(reversed(parts), key=len).pop()
    ids, types = [tokenizer.cls_token_id], [0]
    for segment, part in enumerate(parts):
        ids += part + [tokenizer.sep_token_id]
        types += [segment] * (len(part) + 1)
    return ids, types


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
                span = slice(offsets[i], offsets[i + 1])
                different += (ids[span].tolist(), types[span].tolist()) != encode(tokenizer, text, second, config["model"])
        print(f"{task} {split}: {len(offsets) - 1} examples, {different} with other tokens so far")
    return different


def ours(directory, tokens):
    """What bam makes of each example in a file of tokens, by example id."""
    lines = subprocess.run([PROGRAM, directory, tokens], check=True, capture_output=True, text=True).stdout.splitlines()
    fields = [line.split("\t") for line in lines]
    return {int(example): np.array(logits, dtype=np.float32) for example, *logits in fields}


class Theirs:
    """A model as transformers opens it, and one of its heads."""

    def __init__(self, directory, task):
        config = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
        self.heads = {head["task"]: head for head in config.get("bam_heads", [])}
        self.classifier = None
        if len(self.heads) > 1:
            # transformers has no class for a model of several tasks: the encoder is its, the dense layer above it is not.
            self.model = AutoModel.from_pretrained(directory).eval()
            tensors = load_file(Path(directory) / "model.safetensors")
            self.classifier = [tensors[f"classifiers.{task}.{part}"] for part in ("weight", "bias")]
        else:
            self.model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        assert self.model.dtype == torch.float32, f"{directory} is opened as {self.model.dtype}"
        labels = self.model.config.id2label
        self.labels = [labels[i] for i in range(len(labels))]

    def logits(self, data, i):
        """Of example `i` of a file of tokens."""
        span = slice(data["offsets"][i], data["offsets"][i + 1])
        inputs = {name: torch.tensor(data[name][span][None].astype("int64")) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            output = self.model(**inputs)
            if self.classifier is None:
                return output.logits[0].numpy()
            return torch.nn.functional.linear(output.pooler_output, *self.classifier)[0].numpy()


def some(data, examples):
    """Places of about so many examples of a file of tokens, evenly spread."""
    count = len(data["example_id"])
    return range(0, count, max(1, count // examples))


def compare_model(name, directory, run, task, examples):
    """The largest difference between bam's logits of a model and transformers', on dev."""
    tokens = run / "data" / f"{task}-dev.h5"
    here, there = ours(directory, tokens), Theirs(directory, task)
    with h5py.File(tokens) as data:
        places = some(data, examples)
        worst = max(np.abs(here[int(data["example_id"][i])] - there.logits(data, i)).max() for i in places)
    print(f"{name}, {task}: logits of {len(places)} dev examples differ by at most {worst:.1e}")
    return worst


def in_the_models_terms(stored, there, given, data, config):
    """A stored row of logits as the head itself gave it; nothing where that cannot be told."""
    names = [name.decode() if isinstance(name, bytes) else name for name in data.attrs["label_names"]]
    if there.heads:
        return stored
    if len(names) > 1:
        labels = [label.lower() for label in (given.get("labels") or there.labels)]
        raw = np.empty_like(stored)
        raw[[labels.index(name.lower()) for name in names]] = stored
        return raw
    unit = stored if config["model"]["regression_output"] == "linear" else 1 / (1 + np.exp(-stored.astype("float64")))
    low, high = config["ranges"][data.attrs["task"]]
    inside = config["model"]["regression_output"] == "linear" or 2 * NEXT_TO < unit[0] < 1 - 2 * NEXT_TO
    return low + unit * (high - low) if inside else None


def compare_stored(run, config, teacher, given, directory, task, examples):
    """The largest difference between the logits that a student learnt from and those that transformers has for the teacher."""
    there, stored = Theirs(directory, task), {}
    for shard in (run / "logits" / teacher / task).glob("shard-*.h5"):
        with h5py.File(shard) as file:
            stored.update(zip(file["example_id"][:].tolist(), file["logits"][:]))
    worst, compared = 0.0, 0
    with h5py.File(run / "data" / f"{task}-train.h5") as data:
        for i in some(data, examples):
            here = in_the_models_terms(stored[int(data["example_id"][i])], there, given, data, config)
            if here is not None:
                worst, compared = max(worst, float(np.abs(here - there.logits(data, i)).max())), compared + 1
    print(f"{teacher}, {task}: stored logits of {compared} training examples differ by at most {worst:.1e}")
    return worst


def teachers(plan):
    """Of every teacher's task: the teacher's name, the task, and what the recipe gave, if it did."""
    for stage in plan["stages"]:
        work = stage["work"]
        for teacher in work["logits"]["teachers"] if "logits" in work else []:
            yield teacher["name"], teacher["task"], teacher["given"]


def heads(model):
    """The tasks of a model that bam wrote."""
    return [head["task"] for head in json.loads((model / "config.json").read_text(encoding="utf-8"))["bam_heads"]]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--examples", type=int, default=100, help="how many of each task's logits are compared")
    arguments = arguments.parse_args()
    run, examples = arguments.run, arguments.examples
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    own = {task["name"]: task for task in config["data"]["tasks"] if isinstance(task, dict)}
    config["ranges"] = {"stsb": (0.0, 5.0)} | {name: task["range"] for name, task in own.items() if task.get("range")}
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(config["model"]["path"])
    tasks = [task["task"] for task in plan["tasks"]]
    different = sum(compare_tokens(run, config, task, tokenizer) for task in tasks if task in GLUE)
    worst = [0.0]
    for model in sorted(run.glob("stages/*/model")):
        for task in heads(model):
            worst.append(compare_model(model.parent.name, model, run, task, examples))
    for model in sorted(run.glob("export/*/config.json")):
        worst.append(compare_model(f"export/{model.parent.name}", model.parent, run, model.parent.name, examples))
    for teacher, task, given in teachers(plan):
        directory = Path(given["path"]) if given else run / "stages" / teacher / "model"
        if given:
            worst.append(compare_model(teacher, directory, run, task, examples))
        worst.append(compare_stored(run, config, teacher, given or {}, directory, task, examples))
    good = different == 0 and max(worst) < TOLERANCE
    print(f"{'all the same' if good else 'DIFFERENT'}: {different} other tokens, logits differ by at most {max(worst):.1e}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

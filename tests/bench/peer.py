"""The peer that bam's speed is measured against: Hugging Face's BERT under PyTorch's DDP, as people use it.

    python tests/bench/peer.py train  --encoder DIR --run RUN [--batch 32] [--pad-to 128]
    python tests/bench/peer.py logits --encoder DIR --run RUN [--batch 32] [--pad-to 128]

`train` fine-tunes BertForSequenceClassification: DistributedDataParallel over gloo, one thread a process, each
process's share of a batch padded to its longest sequence (or to --pad-to tokens), fused AdamW, gradients clipped at 1,
a linear schedule, dropout as config.json says. With --device cuda each process has a GPU, gradients go through NCCL, and
products are computed in bfloat16 (autocast; --precision fp32: they are not), as people do it. `logits` runs it over the data in their own order, without gradients,
padded to --pad-to tokens (128 unless said otherwise), --batch examples at a time in each process.

Token ids are those that bam prepared in RUN (data/TASK-train.h5), so that tokenising does not count. Examples of all
tasks are mixed in every batch, each task as often as in bam's recipes (its size to the power of 0.75). One head with
three labels stands for the heads of all tasks, and labels are taken modulo 3: what is learnt is nonsense, only speed
counts.

The last line on stdout is a JSON object. Lists have one entry a step, or, for memory, a process.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
import torch.distributed as dist
from transformers import BertForSequenceClassification, get_linear_schedule_with_warmup

LABELS = 3
TOTAL_STEPS = 1000


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["train", "logits"])
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True, help="a run directory of bam's whose stage prepare is done")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="train: of all processes together; logits: of each")
    parser.add_argument("--pad-to", type=int, help="pad every batch to so many tokens")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="steps before those, which are not reported")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="on GPUs")
    parser.add_argument("--exponent", type=float, default=0.75)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


class Task:
    """The training data of one task, as bam left it."""

    def __init__(self, path):
        with h5py.File(path) as file:
            self.ids, self.types = file["input_ids"][:], file["token_type_ids"][:]
            self.offsets, self.labels = file["offsets"][:], file["label"][:]

    def __len__(self):
        return len(self.labels)

    def example(self, i):
        """Token ids, segments and label."""
        span = slice(self.offsets[i], self.offsets[i + 1])
        return self.ids[span], self.types[span], int(self.labels[i]) % LABELS


def read_tasks(run):
    """All tasks of a run, in the order of their names."""
    paths = sorted((run / "data").glob("*-train.h5"))
    if not paths:
        raise SystemExit(f"{run / 'data'} holds no TASK-train.h5; run bam's stage 'prepare' first")
    return [Task(path) for path in paths]


def collate(examples, pad_to):
    """Tensors of a batch, padded to its longest sequence or to `pad_to` tokens, and its real tokens."""
    lengths = [len(ids) for ids, _, _ in examples]
    width = pad_to or max(lengths)
    batch = {name: torch.zeros(len(examples), width, dtype=torch.long)
             for name in ("input_ids", "token_type_ids", "attention_mask")}
    for row, (ids, types, _) in enumerate(examples):
        batch["input_ids"][row, : len(ids)] = torch.from_numpy(ids)
        batch["token_type_ids"][row, : len(ids)] = torch.from_numpy(types)
        batch["attention_mask"][row, : len(ids)] = 1
    batch["labels"] = torch.tensor([label for _, _, label in examples])
    return batch, sum(lengths)


def drawn_batches(tasks, options, rank):
    """This process's share of batches that all processes draw alike, without end."""
    random = np.random.default_rng(options.seed)
    weights = np.array([len(task) for task in tasks]) ** options.exponent
    while True:
        chosen = random.choice(len(tasks), size=options.batch, p=weights / weights.sum())
        examples = [tasks[t].example(random.integers(len(tasks[t]))) for t in chosen]
        yield collate(examples[rank :: options.processes], options.pad_to)


def batches_in_order(tasks, options, rank):
    """Every n-th batch of all data in their own order, without end."""
    places = [(task, i) for task in tasks for i in range(len(task))]
    batches = [places[start : start + options.batch] for start in range(0, len(places), options.batch)]
    while True:
        for batch in batches[rank :: options.processes]:
            yield collate([task.example(i) for task, i in batch], options.pad_to or 128)


def timed(options, batches, step):
    """Seconds, examples and real tokens of each step of this process after the warm-up."""
    rows = []
    start = time.perf_counter()
    for _ in range(options.warm_up + options.steps):
        batch, tokens = next(batches)
        step({name: tensor.to(device(options), non_blocking=True) for name, tensor in batch.items()})
        if options.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        rows.append((now - start, len(batch["labels"]), tokens))
        start = now
    return rows[options.warm_up :]


def device(options):
    """What this process computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")


def autocast(options):
    """Products in bfloat16 on GPUs, if that is wanted."""
    return torch.autocast("cuda", torch.bfloat16, enabled=options.device == "cuda" and options.precision == "bf16")


def parameter_groups(model, decay=0.01):
    """Biases and LayerNorm are spared the weight decay, as in everybody's scripts."""
    spared = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
    return [{"params": decayed, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]


def trainer(model, options):
    """A function that makes one training step."""
    model.train()
    model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-4, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, TOTAL_STEPS // 10, TOTAL_STEPS)

    def step(batch):
        with autocast(options):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()

    return step


def teacher(model, options):
    """A function that computes one batch's logits."""
    model.eval()

    def step(batch):
        with torch.no_grad(), autocast(options):
            model(**{name: tensor for name, tensor in batch.items() if name != "labels"})

    return step


def peak_memory_mib(options):
    """The most memory that this process has had in use: a GPU's, or the host's."""
    if options.device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def versions():
    """Of what the figures depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")}


def report(rows, peaks):
    """The JSON of all processes' steps: rank 0's clock, everybody's examples and tokens."""
    steps = list(zip(*rows))
    return {
        "seconds": [ranks[0][0] for ranks in steps],
        "examples": [sum(examples for _, examples, _ in ranks) for ranks in steps],
        "tokens": [sum(tokens for _, _, tokens in ranks) for ranks in steps],
        "peak_mib": peaks,
        "versions": versions(),
    }


def one_process(rank, options, meeting_point):
    """What each process does; the first one prints."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed + rank)
    if options.device == "cuda":
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if options.device == "cuda" else "gloo"
    dist.init_process_group(backend, f"file://{meeting_point}", rank=rank, world_size=options.processes)
    model = BertForSequenceClassification.from_pretrained(options.encoder, num_labels=LABELS).to(device(options))
    tasks = read_tasks(options.run)
    if options.mode == "train":
        rows = timed(options, drawn_batches(tasks, options, rank), trainer(model, options))
    else:
        rows = timed(options, batches_in_order(tasks, options, rank), teacher(model, options))
    everybodys = [None] * options.processes
    dist.all_gather_object(everybodys, (rows, peak_memory_mib(options)))
    if rank == 0:
        print(json.dumps(report(*zip(*everybodys))), flush=True)
    dist.destroy_process_group()


def main():
    """Starts the processes."""
    options = arguments()
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(one_process, (options, f"{directory}/meeting-point"), options.processes)


if __name__ == "__main__":
    main()

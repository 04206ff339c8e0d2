"""What a mistyped name was meant to be."""

import difflib
from collections.abc import Iterable

# Settings of fairseq-signals that users type out of habit -> ours.
RENAMED = {
    "common.fp16": "engine.precision=fp16",
    "common.seed": "seed=…",
    "criterion._name": "loss.name=bce, as (asymmetric), bf (binary focal), mlsml, mse or mse2",
    "checkpoint.save_dir": "run_dir=…",
    "checkpoint.patience": "train.patience=…",
    "checkpoint.finetune_from_model": "init.checkpoint=… init.head=keep",
    "checkpoint.best_checkpoint_metric": "train.best_metric=…",
    "dataset.batch_size": "data.batch_size=… (records per step over all processes)",
    "distributed_training.distributed_world_size": "the number of Slurm tasks (sbatch -N, -n)",
    "model.feature_grad_mult": "train.freeze=stem (0.0) or train.freeze=none (1.0)",
    "lr_scheduler.warmup_updates": "optim.warmup_fraction=… (a share of all steps)",
    "model.freeze_finetune_updates": "train.stages (a first stage with freeze: backbone)",
    "model.linear_evaluation": "train.freeze=backbone",
    "model.model_path": "init.checkpoint=…",
    "model.no_pretrained_weights": "init.checkpoint=random",
    "model.num_labels": "data.labels=[…] (the head has one output per label)",
    "optimization.clip_norm": "optim.clip_norm=…",
    "optimizer.adam_betas": "optim.betas=[…]",
    "optimizer.adam_eps": "optim.eps=…",
    "optimizer.weight_decay": "optim.weight_decay=…",
    "optimization.lr": "optim.lr=…",
    "optimization.max_epoch": "train.max_epochs=…",
    "optimization.max_update": "train.max_steps=…",
    "task.data": "data.shards=…",
}


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`; did you mean NAME?` with the most similar known name, or "" if none is similar."""
    by_lower = {word.lower(): word for word in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""

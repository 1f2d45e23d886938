"""The one training loop: any module, any loss, on Lightning Fabric.

Devices, precision, a schedule, early stopping, a checkpoint after every epoch to resume from, CSV and TensorBoard logs.
"""

import csv
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from weightspace.errors import ConfigError, MissingExtra
from weightspace.progress import progress_bar

LAST = "last.ckpt"
HISTORY = "history.csv"
History = list[dict[str, int | float]]
"""A dictionary an epoch: its number, losses, learning rate and seconds."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a module is trained: AdamW with one cycle of the learning rate (Smith and Topin, 2019), stepped per batch.

    >>> TrainingConfig(epochs=3).epochs
    3
    """

    epochs: int = 10
    batch_size: int = 16
    learning_rate: float = 5e-3
    """Peak of the cycle."""
    weight_decay: float = 3e-9
    """On matrices only."""
    warmup: float = 0.3
    """Share of the steps before the peak."""
    gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; never when missing."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """`bf16-mixed` is faster where bfloat16 is multiplied by the machine itself, as on late processors and GPUs."""
    accelerator: str = "auto"
    """`cpu`, `cuda`, `mps` or `auto`."""
    devices: int = 1
    tensorboard: bool = False
    """Also write TensorBoard logs; needs the extra `tensorboard`."""
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}")
        if not 0 < self.warmup < 1:
            raise ConfigError(f"warmup must lie between 0 and 1, got {self.warmup}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"patience must be at least 1, got {self.patience}")


def one_cycle(step: int, steps: int, warmup: float) -> float:
    """Learning rate over its peak: 1/25 at the start, 1 after the warm-up, 1/250 000 at the end, half cosines between.

    >>> one_cycle(30, 100, 0.3)
    1.0
    """
    peak = warmup * steps
    if step < peak:
        start, end, share = 1 / 25, 1.0, step / peak
    else:
        start, end, share = 1.0, 1 / 250_000, (step - peak) / (steps - peak)
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def train(
    module: nn.Module,
    loss: Callable[[nn.Module, Any], dict[str, Tensor]],
    batches: Callable[[torch.Generator], Iterable[Any]],
    batches_per_epoch: int,
    validation: Callable[[torch.Generator], Iterable[Any]],
    config: TrainingConfig,
    folder: Path,
    label: str = "training",
    identity: str = "",
) -> History:
    """Train a module in place and leave it, where it was, with the weights of the best validation loss.

    A folder with the checkpoint of an interrupted run of the same configuration continues it; the result is that of an
    uninterrupted run.

    Args:
        loss: Parts of the loss of a batch by name, scalars; `loss` is the one that is minimised.
        batches: One epoch of batches, drawn from the given generator.
        batches_per_epoch: Their number.
        validation: Batches of validation data; gets the same generator state in every epoch.
        folder: Where checkpoint and logs are written.
        identity: What is trained on what, beside the configuration: a checkpoint with another one is not continued.

    Returns:
        A dictionary an epoch, as in `history.csv`.

    Raises:
        ConfigError: The folder holds the checkpoint of another configuration, the machine lacks the accelerator, there
            are no validation batches, or a loss became infinite.
    """
    try:
        fabric = Fabric(accelerator=config.accelerator, devices=config.devices, precision=config.precision)
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot train with accelerator {config.accelerator!r}: {error}") from error
    fabric.launch()
    home = next(module.parameters()).device
    folder.mkdir(parents=True, exist_ok=True)
    matrices = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=config.precision != "16-mixed",  # a fused step undoes the scaling of 16-mixed after gradients are clipped
    )
    steps = config.epochs * batches_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: one_cycle(step, steps, config.warmup))
    model, optimiser = fabric.setup(module, optimiser)
    generator = torch.Generator().manual_seed(config.seed + fabric.global_rank)
    # tensors and plain numbers only, so that it can be read without unpickling code
    state: dict[str, Any] = {
        "module": model,
        "optimiser": optimiser,
        "schedule": schedule,
        "generator": generator.get_state(),
        "epoch": 0,
        "best": {},
        "history": [],
        "config": repr((config, batches_per_epoch, identity)),
    }
    if (folder / LAST).exists():
        _resume(fabric, folder / LAST, state)
        generator.set_state(state["generator"])
    writer = _tensorboard(folder) if config.tensorboard and fabric.is_global_zero else None
    history: History = state["history"]
    with progress_bar(label, steps) as advance:
        advance(state["epoch"] * batches_per_epoch)
        while state["epoch"] < config.epochs and not _exhausted(history, config.patience):
            started = monotonic()
            model.train()
            record: dict[str, int | float] = {"epoch": state["epoch"] + 1}
            sums: dict[str, float] = {}
            for batch in batches(generator):
                parts = loss(model, fabric.to_device(batch))
                optimiser.zero_grad()
                fabric.backward(parts["loss"])
                fabric.clip_gradients(model, optimiser, max_norm=config.gradient_norm, error_if_nonfinite=False)
                optimiser.step()
                schedule.step()
                _add(sums, "train", parts, batches_per_epoch)
                advance()
            model.eval()
            count = 0
            held_out: dict[str, float] = {}
            with torch.no_grad():
                for batch in validation(torch.Generator().manual_seed(config.seed)):
                    _add(held_out, "validation", loss(model, fabric.to_device(batch)), 1)
                    count += 1
            if not count:
                raise ConfigError("there are no validation data, which choose the epoch that is kept; give some")
            record |= sums | {name: value / count for name, value in held_out.items()}
            record["learning_rate"] = float(schedule.get_last_lr()[0])
            record["seconds"] = monotonic() - started
            for part in ("training", "validation"):
                value = record[f"{part.removesuffix('ing')}_loss"]
                if not math.isfinite(value):
                    raise ConfigError(
                        f"the {part} loss became {value} in epoch {record['epoch']}; lower the learning rate "
                        f"({config.learning_rate})"
                    )
            if record["validation_loss"] <= min((r["validation_loss"] for r in history), default=math.inf):
                state["best"] = {name: value.detach().clone() for name, value in module.state_dict().items()}
            history.append(record)
            state |= {"epoch": state["epoch"] + 1, "generator": generator.get_state()}
            fabric.save(folder / f"{LAST}.new", state)
            if fabric.is_global_zero:
                (folder / f"{LAST}.new").replace(folder / LAST)
                _write_history(folder / HISTORY, history)
            if writer is not None:
                for name, value in record.items():
                    writer.add_scalar(name, value, state["epoch"])
            advance(0, f"validation loss {record['validation_loss']:.4f}")
    if writer is not None:
        writer.close()
    module.to(home).load_state_dict(state["best"])
    return history


def _resume(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    try:
        same = torch.load(path, mmap=True, weights_only=True)["config"] == state["config"]
        if same:
            fabric.load(path, state, weights_only=True)
    except Exception as error:
        raise ConfigError(f"cannot resume from {path}: {error}; delete that file to start again") from error
    if not same:
        raise ConfigError(
            f"{path} belongs to a training run with other settings or data; choose another folder or delete it"
        )


def _exhausted(history: History, patience: int | None) -> bool:
    if patience is None or not history:
        return False
    losses = [record["validation_loss"] for record in history]
    return len(losses) - 1 - losses.index(min(losses)) >= patience


def _add(sums: dict[str, float], prefix: str, parts: dict[str, Tensor], count: int) -> None:
    for name, value in parts.items():
        key = f"{prefix}_{name}"
        sums[key] = sums.get(key, 0.0) + float(value.detach()) / count


def _write_history(path: Path, history: History) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(history[0]))
        table.writeheader()
        table.writerows(history)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtra("TensorBoard logs need its package: pip install 'weightspace[tensorboard]'") from error
    return SummaryWriter(str(folder))

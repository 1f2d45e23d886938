"""Output folders of the Hugging Face Trainer: `checkpoint-<step>/` with weights and `trainer_state.json`."""

from functools import cache
from pathlib import Path

from weightspace.zoo.importers.found import Found, Plain, Unreadable, configuration, finite, metrics, read_json_file
from weightspace.zoo.importers.restricted_pickle import Record
from weightspace.zoo.importers.states import FileContent
from weightspace.zoo.importers.torch_file import load
from weightspace.zoo.importers.weight_files import Description, read_folder

_SETTINGS = (
    "learning_rate", "weight_decay", "num_train_epochs", "max_steps", "warmup_steps", "warmup_ratio", "seed",
    "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "label_smoothing_factor", "fp16", "bf16",
)  # fmt: skip
_BOOKKEEPING = {"epoch", "step", "total_flos"}


def detect(source: Path) -> bool:
    """Whether a folder below is a checkpoint of the Trainer."""
    return source.is_dir() and next(source.rglob("trainer_state.json"), None) is not None


def read(source: Path) -> Found:
    """Every checkpoint, a run an output folder, with the last metrics logged until its step."""

    @cache
    def known(folder: Path) -> tuple[int | None, dict[str, Plain], tuple[str, ...]]:
        state = read_json_file(folder / "trainer_state.json")
        if not isinstance(state, dict) or not finite(step := state.get("global_step")):
            return None, {}, ()
        values: dict[str, object] = {}
        for entry in state.get("log_history") or ():
            if isinstance(entry, dict) and entry.get("step", 0) <= step:
                values |= {("train_loss" if k == "loss" else k): v for k, v in entry.items() if k not in _BOOKKEEPING}
        rates = {key: values.pop(key) for key in ("learning_rate", "grad_norm") if key in values}
        logged = metrics(values | {f"logged_{key}": value for key, value in rates.items()})
        settings, notes = _arguments(folder / "training_args.bin")
        return int(step), settings | logged, notes

    def describe(file: Path, content: FileContent) -> Description:
        if not (file.parent / "trainer_state.json").is_file():
            return Description()
        step, columns, notes = known(file.parent)
        run = file.parent.parent if file.parent.name.startswith("checkpoint-") else file.parent
        model = run.relative_to(source).as_posix() if run != source and run.is_relative_to(source) else source.name
        return Description(model=model, step=step, columns=columns, notes=notes)

    return read_folder(source, describe)


def _arguments(file: Path) -> tuple[dict[str, Plain], tuple[str, ...]]:
    """The customary arguments out of the pickled ones, or a note why they could not be read safely."""
    if not file.is_file():
        return {}, ()
    try:
        arguments = load(file)
    except Unreadable as error:
        return {}, (f"{file.name} was not read: {error}",)
    attributes = arguments.attributes if isinstance(arguments, Record) else {}
    return configuration({name: attributes[name] for name in _SETTINGS if name in attributes}), ()

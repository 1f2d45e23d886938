"""Generated networks beside everything simple: as made, fine-tuned, as ensembles, and how new they are.

Protocol of "Evaluating generators", sections 2 to 7 and 10. Every source of networks is measured alike, on test images;
learning rates are chosen on validation images; distances are to the training networks T that the generator was fitted
on, the smaller of those to aligned rows and to rows as given; thresholds come from held-out networks.

Axes: m network, p parameter, n image, k class.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from os import PathLike

import polars as pl
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from weightspace.datasets import Dataset
from weightspace.errors import ConfigError, ZooError, unknown_name
from weightspace.evaluation import novelty
from weightspace.evaluation.ensembles import ensemble_curve, scores
from weightspace.evaluation.fine_tuning import best_learning_rate
from weightspace.evaluation.novelty import Measured, Reference, Verdicts
from weightspace.evaluation.tables import save_tables
from weightspace.generators import baselines
from weightspace.zoo import Zoo, behaviour

Align = Callable[[Zoo], Float[Tensor, "m p"]]
"""Rows of a zoo, aligned to a reference that training networks set."""

TRAINING, HELDOUT = "training", "held-out"
MAX_SIGMA = 1e6
"""Where the search for noise at a distance gives up."""
_KNOWN_AT_ONCE = 128  # networks whose logits are held; there can be far more than in a source


@dataclass(frozen=True, kw_only=True)
class GenerationTables:
    """What was measured, as tidy tables; a value that does not exist is null."""

    networks: pl.DataFrame
    """A row a network and epoch (0: as made): source, model, epoch, accuracy, loss; distance_ratio (d / τ) and max_iou
    at epoch 0."""
    generation: pl.DataFrame
    """A row a source and epoch: n, accuracy_mean, _std, _min, _max, and means over networks of nll and ece; the
    learning_rate of the fine-tuning."""
    novelty: pl.DataFrame
    """A row a source: n, quantiles of d / τ, z_u, median max_iou, mean pair_iou, disagreement with the nearest training
    network (in units of that of two training networks), sd_ratio, nap_50, _75, _100 (share of networks that are
    performant and farther than .5, .75, 1 τ), verdict."""
    ensembles: pl.DataFrame
    """A row a source and number of members: accuracy, nll, brier, ece."""

    def save(self, folder: str | PathLike[str]) -> None:
        """Write each table as CSV, `networks.csv` and so on; existing ones are replaced.

        Raises:
            ConfigError: The folder cannot be written.
        """
        save_tables({table.name: getattr(self, table.name) for table in fields(self)}, folder)


def evaluate_generation(
    sources: Mapping[str, Zoo],
    data: Dataset,
    *,
    training: Zoo,
    heldout: Zoo,
    align: Align,
    known: Zoo | None = None,
    epochs: Sequence[int] = (0, 1, 5),
    fine_tune: Collection[str] | None = None,
    learning_rate: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    noise_prefix: str = "noise",
    verdicts: Verdicts = Verdicts(),  # noqa: B008 - frozen
) -> GenerationTables:
    """Measure sources of networks, and beside them the held-out and the training networks.

    Args:
        sources: Networks by the name of what made them, finite, of one layout. "held-out" and "training" are added
            where they are missing. A network of "training" is never compared with its own run; those of any other
            source are compared with all of T, so a copy under the old name is still a copy.
        data: Images; test images for every number in the tables, validation images to choose learning rates.
        training: T, the networks that generators and mixtures were fitted on.
        heldout: Networks of runs that no generator has seen: they set Z_U, α and the reference of maxIoU.
        align: Aligned rows of a zoo, to the reference to which T was aligned for generators and mixtures.
        known: Everything that could have been copied, T among it, such as all checkpoints of all training runs:
            distances, maxIoU and disagreement are those to the nearest of these. T when missing.
        epochs: When to measure in fine-tuning; 0, as made, always is.
        fine_tune: Sources to fine-tune; all that are given, but "training", when missing.
        learning_rate: For fine-tuning; when missing, each source gets the one of a small grid with the highest mean
            validation accuracy of at most 16 of its networks after one epoch.
        batch_size: For fine-tuning.
        seed: Batches of fine-tuning, which are the same for every source, and members of ensembles.
        noise_prefix: Sources whose names begin with this are the noise curve.
        verdicts: Thresholds of red flags.

    Returns:
        Four tables; sources in the given order, then "held-out" and "training".

    Raises:
        ConfigError: A run is both in `training` and `heldout`, an epoch is negative, or T has a single run.
        UnknownName: A source to fine-tune does not exist.
        ZooError: A source is empty, or has NaN or infinite weights.

    >>> from weightspace import datasets, networks
    >>> header = {"network": networks.to_json(networks.MLP())}
    >>> def zoo(*names):
    ...     table = pl.DataFrame({"model": names, "step": [0] * len(names)})
    ...     layout = networks.Layout.of(networks.MLP().build())
    ...     return Zoo.in_memory(torch.randn(len(names), layout.parameters), layout, table, header)
    >>> tables = evaluate_generation(
    ...     {"new": zoo("x", "y")}, datasets.load("digits"), training=zoo("a", "b"), heldout=zoo("c"),
    ...     align=Zoo.weights, epochs=[0],
    ... )
    >>> tables.generation["source"].to_list()
    ['new', 'held-out', 'training']
    """
    if any(epoch < 0 for epoch in epochs):
        raise ConfigError(f"epochs of fine-tuning must be at least 0, got {list(epochs)}")
    if training.path == heldout.path and (common := sorted(set(training.models) & set(heldout.models))):
        raise ConfigError(
            f"held-out networks must be of runs that are not in the training zoo, but {common[0]!r} is in both "
            f"({len(common)} in all): split by model"
        )
    later = sorted(set(epochs) - {0})
    tuned = [name for name in sources if name != TRAINING] if fine_tune is None else list(fine_tune)
    sources = {**sources, HELDOUT: sources.get(HELDOUT, heldout), TRAINING: sources.get(TRAINING, training)}
    for name in tuned:
        if name not in sources:
            raise unknown_name("source to fine-tune", name, sources)
        if len(sources[name].models) < len(sources[name]):
            raise ConfigError(f"fine-tuning {name!r} needs one checkpoint a model: choose one, for example by .last()")

    zoos = dict.fromkeys([training, heldout, *sources.values()])  # each once, under however many names
    observed = {zoo: _Observed.of(zoo, data, align, seed, training=zoo is training) for zoo in zoos}
    if known is not None:
        known.require_finite("evaluating networks")
    usual = _Training.of(observed[training], known, data, align)
    compared = {name: usual.compare(observed[zoo], own=name == TRAINING) for name, zoo in sources.items()}

    networks, generation, curves = [], [], []
    for name, zoo in sources.items():
        made = observed[zoo]
        novel = {"distance_ratio": compared[name].ratio.tolist(), "max_iou": compared[name].max_iou.tolist()}
        networks.append(_network_rows(name, 0, zoo, made.scores).with_columns(pl.DataFrame(novel)))
        generation.append(_summary(name, 0, made.scores, None))
        curves.append(made.curve.select(pl.lit(name).alias("source"), pl.all()))
    for name in tuned if later else ():
        rate = learning_rate or best_learning_rate(name, sources[name], data, batch_size=batch_size, seed=seed)
        stages = behaviour.fine_tune(
            sources[name], data, epochs=later[-1], learning_rate=rate, batch_size=batch_size, checkpoints=later,
            seed=seed, label=f"fine-tuning {name}",
        )  # fmt: skip
        for epoch in later:
            stage = stages.where(pl.col("step") == epoch)
            after = scores(_probabilities(stage, data), data.test_labels)
            networks.append(_network_rows(name, epoch, stage, after))
            generation.append(_summary(name, epoch, after, rate))

    return GenerationTables(
        networks=pl.concat(networks, how="diagonal"),
        generation=pl.DataFrame(generation, schema_overrides={"learning_rate": pl.Float64}, infer_schema_length=None),
        novelty=_novelty_table(
            {name: observed[zoo] for name, zoo in sources.items()},
            compared,
            (observed[heldout], usual.compare(observed[heldout])),
            usual,
            noise_prefix,
            verdicts,
        ),
        ensembles=pl.concat(curves),
    )


def median_distance(zoo: Zoo, training: Zoo, align: Align) -> float:
    """Median over networks of the distance to the nearest training network, in the units of aligned weights.

    >>> from weightspace.networks import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 1)), pl.DataFrame({"model": ["a"], "step": [9]})
    >>> one, other = (Zoo.in_memory(torch.full((1, 4), x), layout, table, {}) for x in (0.0, 1.5))
    >>> median_distance(one, other, Zoo.weights)
    3.0
    """
    return _quantile(novelty.nearest(_frames(zoo, align), _training_frames(training, align))[0], 0.5)


def noise_at_distance(prompts: Zoo, target_distance: float, n: int, generator: torch.Generator, *, align: Align) -> Zoo:
    """Copies of prompts with so much noise that they lie as far from the prompts as other networks do.

    Args:
        prompts: Trained networks, at least two of each activation, to copy and to measure distances to.
        target_distance: `median_distance` of the networks to compare with.
        n: Networks to make.
        generator: Source of all randomness.
        align: Aligned rows of a zoo.

    Returns:
        `baselines.noise` with a median distance of 1 to 1.001 times the target; sigma is in `config.sigma`.

    Raises:
        ConfigError: The target is not positive, or no noise reaches it as the prompts are all the same.

    >>> from weightspace.networks import Layout
    >>> layout, table = Layout.of(torch.nn.Linear(3, 1)), pl.DataFrame({"model": ["a", "b"], "step": [9, 9]})
    >>> zoo = Zoo.in_memory(torch.tensor([[0.0], [1.0]]).expand(2, 4), layout, table, {})
    >>> near = noise_at_distance(zoo, 0.2, 8, torch.Generator(), align=Zoo.weights)
    >>> round(median_distance(near, zoo, Zoo.weights), 3)
    0.2
    """
    if not 0 < target_distance < inf:
        raise ConfigError(f"the distance of noise copies must be positive, got {target_distance}")
    reference, state = _training_frames(prompts, align), generator.get_state()

    def distance(sigma: float) -> float:
        generator.set_state(state)  # the same copies and directions at every sigma: distances grow smoothly
        copies = baselines.noise(prompts, n, generator, sigma=sigma)
        return _quantile(novelty.nearest(_frames(copies, align), reference)[0], 0.5)

    low, high = 0.0, 0.125
    while distance(high) < target_distance:
        low, high = high, 2 * high
        if high > MAX_SIGMA:
            raise ConfigError(
                f"no noise lies {target_distance:g} from its prompts, tried up to {MAX_SIGMA:g} deviations of them: "
                "give prompts that differ"
            )
    while distance(high) > 1.001 * target_distance and high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if distance(middle) < target_distance else (low, middle)
    generator.set_state(state)
    return baselines.noise(prompts, n, generator, sigma=high)


@dataclass(frozen=True)
class _Observed:
    """What a set of networks is and does."""

    zoo: Zoo
    rows: Float[Tensor, "2 m p"]
    """In two orders of their units, see `_frames`."""
    predictions: Int64[Tensor, "m n"]
    wrong: Bool[Tensor, "m n"]
    scores: dict[str, Tensor]
    curve: pl.DataFrame

    @classmethod
    def of(cls, zoo: Zoo, data: Dataset, align: Align, seed: int, *, training: bool) -> "_Observed":
        if not len(zoo):
            raise ZooError(f"zoo {zoo.header.get('name')!r} has no networks to evaluate")
        zoo.require_finite("evaluating networks")
        probabilities, labels = _probabilities(zoo, data), data.test_labels
        predictions = probabilities.argmax(2)
        curve = ensemble_curve(probabilities, labels, generator=torch.Generator().manual_seed(seed))
        rows = _training_frames(zoo, align) if training else _frames(zoo, align)
        return cls(zoo, rows, predictions, predictions != labels, scores(probabilities, labels), curve)


@dataclass(frozen=True)
class _Compared:
    """Networks beside the training networks."""

    ratio: Float[Tensor, " m"]
    max_iou: Float[Tensor, " m"]
    disagreement: float | None


@dataclass(frozen=True)
class _Training:
    """The training networks T, what is usual among them, and all that could have been copied."""

    observed: _Observed
    known: Zoo
    rows: Float[Tensor, "2 q p"]
    """Of what could have been copied; so are the predictions and what is wrong in them."""
    predictions: Int64[Tensor, "q n"]
    wrong: Bool[Tensor, "q n"]
    distance: float
    disagreement: float
    pair_iou: tuple[float | None, float | None]

    @classmethod
    def of(cls, observed: _Observed, known: Zoo | None, data: Dataset, align: Align) -> "_Training":
        runs = _runs(observed.zoo, observed.zoo)
        near = (observed.zoo, observed.rows, observed.predictions, observed.wrong)
        if known is not None:
            blocks = torch.arange(len(known)).split(_KNOWN_AT_ONCE)
            predictions = torch.cat([behaviour.logits(known.take(some), data.test_images).argmax(2) for some in blocks])
            near = (known, _training_frames(known, align), predictions, predictions != data.test_labels)
        return cls(
            observed,
            *near,
            novelty.usual_distance(observed.rows, runs),
            novelty.mean_disagreement(observed.predictions, runs),
            novelty.pair_iou(observed.wrong, runs),
        )

    def compare(self, source: _Observed, *, own: bool = False) -> _Compared:
        """Compare with what could have been copied; if `own`, each network with those of other runs only."""
        runs = (_runs(source.zoo, self.known), _runs(self.known, self.known)) if own else None
        distance, place = novelty.nearest(source.rows, self.rows, runs)
        differ = (source.predictions != self.predictions[place]).double().mean().item()
        return _Compared(
            distance / self.distance,
            novelty.max_iou(source.wrong, self.wrong, runs),
            differ / self.disagreement if self.disagreement else None,
        )


def _novelty_table(
    sources: Mapping[str, _Observed],
    compared: Mapping[str, _Compared],
    heldout: tuple[_Observed, _Compared],
    training: _Training,
    noise_prefix: str,
    verdicts: Verdicts,
) -> pl.DataFrame:
    least_accuracy = _quantile(heldout[0].scores["accuracy"], verdicts.accuracy_quantile)
    measured, rows = {}, []
    for name, source in sources.items():
        near, accuracy = compared[name], source.scores["accuracy"]
        runs = _runs(source.zoo, training.observed.zoo)
        measured[name] = Measured(
            accuracy=float(accuracy.mean()),
            distance_ratio=_quantile(near.ratio, 0.5),
            z_u=novelty.copying_statistic(near.ratio, heldout[1].ratio),
            max_iou=_quantile(near.max_iou, 0.5),
            pair_iou=novelty.pair_iou(source.wrong, runs)[0],
            sd_ratio=novelty.spread_ratio(source.rows[0], training.observed.rows[0]),
        )
        rows.append(
            {"source": name, "n": len(accuracy)}
            | {f"distance_ratio_{share:02.0f}": _quantile(near.ratio, share / 100) for share in (5, 50, 95)}
            | {"z_u": measured[name].z_u, "max_iou": measured[name].max_iou, "pair_iou": measured[name].pair_iou}
            | {"disagreement": near.disagreement, "sd_ratio": measured[name].sd_ratio}
            | {
                f"nap_{c:.0f}": novelty.novel_and_performant(
                    near.ratio, accuracy, least_accuracy=least_accuracy, least_ratio=c / 100
                )
                for c in (50, 75, 100)
            }
        )
    against = Reference(
        least_accuracy=least_accuracy,
        high_max_iou=_quantile(heldout[1].max_iou, verdicts.iou_quantile),
        pair_iou=training.pair_iou[0],
        pair_iou_std=training.pair_iou[1],
        noise=[(m.accuracy, m.distance_ratio) for name, m in measured.items() if name.startswith(noise_prefix)],
    )
    flags = [verdicts.flags(found, against) for found in measured.values()]
    maybe = dict.fromkeys(("pair_iou", "disagreement", "sd_ratio"), pl.Float64)  # null throughout in small studies
    return pl.DataFrame(rows, schema_overrides=maybe, infer_schema_length=None).with_columns(verdict=pl.Series(flags))


def _network_rows(source: str, epoch: int, zoo: Zoo, values: Mapping[str, Tensor]) -> pl.DataFrame:
    columns = {"model": zoo.table["model"], "accuracy": values["accuracy"].tolist(), "loss": values["nll"].tolist()}
    return pl.DataFrame(columns).select(
        pl.lit(source).alias("source"), "model", pl.lit(epoch, pl.Int64).alias("epoch"), "accuracy", "loss"
    )


def _summary(
    source: str, epoch: int, values: Mapping[str, Tensor], learning_rate: float | None
) -> dict[str, str | float | None]:
    accuracy = values["accuracy"].double()
    return {
        "source": source,
        "epoch": epoch,
        "n": len(accuracy),
        "accuracy_mean": float(accuracy.mean()),
        "accuracy_std": float(accuracy.std()) if len(accuracy) > 1 else None,
        "accuracy_min": float(accuracy.min()),
        "accuracy_max": float(accuracy.max()),
        "nll": float(values["nll"].mean()),
        "ece": float(values["ece"].mean()),
        "learning_rate": learning_rate,
    }


def _probabilities(zoo: Zoo, data: Dataset) -> Float[Tensor, "m n k"]:
    return behaviour.logits(zoo, data.test_images).softmax(2)


def _frames(zoo: Zoo, align: Align) -> Float[Tensor, "2 m p"]:
    """Rows of a source in two orders of units: aligned, and as given.

    Most generators and mixtures work on aligned weights. Their networks are then in the order of T already, which
    alignment sometimes leaves: a little noise can bring another of two almost equal assignments to the top.
    """
    return torch.stack([_aligned_alone(zoo, align), zoo.weights()])


def _training_frames(zoo: Zoo, align: Align) -> Float[Tensor, "2 m p"]:
    """Rows of T to compare with these: aligned, and in the order that generators and mixtures see."""
    return torch.stack([_aligned_alone(zoo, align), align(zoo)])


def _aligned_alone(zoo: Zoo, align: Align) -> Float[Tensor, "m p"]:
    """Rows, each checkpoint aligned as a model of its own.

    A generated network has no run. If training checkpoints were aligned by the last one of their run, exact copies of
    the earlier ones would be ordered otherwise than they, and look new.
    """
    table = pl.DataFrame({"model": [str(number) for number in range(len(zoo))], "step": [0] * len(zoo)})
    return align(Zoo.in_memory(zoo.weights(), zoo.layout, table, zoo.header))


def _runs(zoo: Zoo, training: Zoo) -> Int64[Tensor, " m"]:
    """A number for the run of every checkpoint; runs of the training zoo have the same numbers whatever the zoo."""
    number = {name: i for i, name in enumerate(dict.fromkeys(training.models + zoo.models))}
    return torch.tensor([number[name] for name in zoo.table["model"]])


def _quantile(values: Float[Tensor, " m"], share: float) -> float:
    return float(values.double().quantile(share))

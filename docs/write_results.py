"""Write results/README.md: the questions that the committed grids were run for, and what their records answer.

python docs/write_results.py

Every number on the page is computed from the records here; what stands in this file has none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.data.metrics import metric_of
from bench.store.activity import inactive
from bench.tables.compare import Difference, RunTable, Summary
from bench.tables.comparison import CONDITIONAL, baseline_row, cost_line, difference_text, runs_of
from bench.tables.grid_facts import OVERLAP_LINE, GridFacts
from bench.tables.layout import lineage
from bench.tables.records import Record, read_file, records_path
from bench.tables.table import in_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGE = RESULTS / "README.md"
GRIDS = {
    "study_cpu": "real weights (MiniLM-L6, its masked-language-model head fresh) on real texts; searched; pre-trained "
    "anew with every seed",
    "study_cpu_fixed": "the same on one of its tasks, at one learning rate, that of its plain fine-tuning; nothing "
    "searched, pre-trained anew with every seed",
    "study_cpu_variance": "the rows of study_cpu that pre-train, with one pre-training for all seeds",
    "study_cpu_steps": "one ViT-Tiny masked auto-encoder, which the suite pre-trained once on images of CIFAR; with "
    "every seed further pre-trained anew, with few, some and many steps; nothing searched",
    "small_text": "the suite's own tiny text backbone on real texts; nothing searched",
    "small_image": "the suite's own tiny image backbone on real images; nothing searched",
}


@dataclass(frozen=True)
class Question:
    """What is asked, which rows answer it, and against which row each is held."""

    text: str
    comparisons: tuple[tuple[str, str], ...]
    remark: str
    activity: bool = True
    """Whether to show what the rows' parts did."""


FEW, SOME, MANY = (f"tapt_{steps}/tapt" for steps in (100, 400, 1600))
"""Rows of study_cpu_steps."""
QUESTIONS = (
    Question(
        "Does self-distillation beat further pre-training alone?",
        (("self_distillation", "tapt"),),
        "Both rows begin with the same further pre-training; self-distillation adds a student.",
    ),
    Question(
        "Does further pre-training on the task's own data help?",
        tuple((row, "finetune") for row in ("tapt", "self_distillation", FEW, SOME, MANY)),
        "TAPT reads the task's training inputs without their labels before it is fine-tuned. Its rows train longer "
        "than plain fine-tuning, in study_cpu_steps up to several times as long, so part of a gain may be that of "
        "training as such.",
        activity=False,
    ),
    Question(
        "Does further pre-training overfit on images as its steps grow?",
        ((SOME, FEW), (MANY, FEW), (MANY, SOME)),
        "A row's name holds its steps; where more of them are worse, it overfits. Lee et al. find that of TAPT, with "
        "many more steps than the grid that asks it here, `gin/study_cpu_steps.gin`.",
        activity=False,
    ),
    Question(
        "Do regularisers of fine-tuning help, and were they active?",
        (("r3f", "finetune"), ("l2_sp", "finetune"), ("recadam", "finetune"), ("mars", "finetune")),
        "A regulariser that did nothing measurable cannot be judged; the second table says what each did. R3F also "
        "compares two dropout masks; the table has what its noise adds to that.",
    ),
    Question(
        "Does contrastive pre-training with the task's labels help?",
        (("supcon", "finetune"),),
        "SupCon pulls examples of one class together before the classifier is trained.",
        activity=False,
    ),
    Question(
        "Does label regularisation matter once a model is pre-trained?",
        (("label_smoothing", "finetune"),),
        "Kobyzev et al. find that it does not. Whether it matters from random weights is asked by "
        "`gin/study_scratch.gin`, which has not been run.",
    ),
)
HARDLY = 0.01
"""Below this share of the loss that it is added to, a part did hardly anything."""
SPLIT = "study_cpu", "study_cpu_variance"
"""Two grids that differ in one thing: the first pre-trains anew with every seed, the second once for all seeds."""
FAST = "fast_comparison"
"""The grid that has each of its rows a second time, as ROW_fast/ROW, with the settings of gin/fast.gin."""
SHOWCASES = (
    "`quickstart` and `methods` have run, too. They show that every method works, on tasks of minutes, and are no "
    "evidence for one of them."
)
COUNTED = (
    "How often a row was better or worse than what it is held against, by an interval that holds all noise of the "
    "seeds and excludes zero. No interval is adjusted for the number of comparisons."
)
UNANSWERED = {
    "Does further pre-training overfit on images with several times as many steps?": "gin/study_steps.gin",
    "Do twelve methods differ on seven tasks of texts, from MiniLM-L6?": "gin/study_text.gin",
    "Do they differ on five tasks of images, from DINOv2-small?": "gin/study_dino.gin",
    "And from a masked auto-encoder that the suite pre-trained itself?": "gin/study_vit.gin",
    "Which part of self-distillation matters?": "gin/study_ablation.gin",
    "How many rounds of it?": "gin/study_rounds.gin",
    "What remains with few labels?": "gin/study_low_resource.gin",
    "How much of the spread is pre-training's, with five epochs?": "gin/study_variance.gin",
    "Does label regularisation matter from random weights?": "gin/study_scratch.gin",
}
UNLEARNED = "{} on {} has a balanced accuracy less than halfway between chance and all right"
CONDITIONALLY = "{} on {} differs from {} beyond an interval that is too narrow"
HARDLY_ANYTHING = "{} did hardly anything in {} on {} with most seeds"
NOISE = "its noise, the authors', is too small to change what this network says"
MORE_NOISE = "its noise, though many times the authors', is still too small to change what this network says"
BY_HEART = (
    "the loss on the test set is far above that on the training set: the network learned by heart what it was trained "
    "on, and is not short of steps"
)
UNDERTRAINED = (
    "few epochs of small images: the training loss fell from that of guessing by less than half, so further "
    "pre-training may gain here what longer fine-tuning would gain, too"
)
PLATEAU = (
    "its strength was not searched, and the number of steps was chosen so that plain fine-tuning leaves the plateau on "
    "which this row still knows but some of the classes. Losses on the test set are alike; macro F1 differs by the "
    "rare classes, of five to seven test examples. In the earlier run with fewer steps, both on the plateau, there "
    "was no difference"
)
HARD_BATCHES = (
    "of one seed alone: the batches at the end of its learning curve, of eight texts each and the same in all rows, "
    "are hard ones; the loss on the whole training set fell to half"
)
EXPLAINED = {
    **{
        ("study_cpu_fixed", f"finetune of {row} on twitter_emotion has a loss that did not fall"): HARD_BATCHES
        for row in ("finetune", "r3f", "l2_sp", "tapt", "self_distillation", "label_smoothing")
    },
    ("study_cpu_fixed", HARDLY_ANYTHING.format("R3F", "r3f", "twitter_emotion")): MORE_NOISE,
    ("study_cpu", UNLEARNED.format("finetune", "acl_arc")): BY_HEART,
    ("study_cpu", CONDITIONALLY.format("l2_sp", "acl_arc", "finetune")): PLATEAU,
    ("study_cpu", HARDLY_ANYTHING.format("R3F", "r3f", "acl_arc")): MORE_NOISE,
    ("study_cpu", HARDLY_ANYTHING.format("R3F", "r3f", "twitter_emotion")): MORE_NOISE,
    ("study_cpu_steps", UNLEARNED.format("finetune", "cub50")): UNDERTRAINED,
    ("small_text", UNLEARNED.format("finetune", "acl_arc")): BY_HEART,
    ("small_text", UNLEARNED.format("finetune", "scierc")): BY_HEART,
    ("small_image", UNLEARNED.format("finetune", "flower")): UNDERTRAINED,
    ("small_image", UNLEARNED.format("finetune", "chest_xray")): BY_HEART,
    ("small_text", "R3F did nothing in r3f on acl_arc"): NOISE,
    ("small_text", "R3F did nothing in r3f on scierc"): NOISE,
}
"""Why something that looks wrong is as it is, by grid and finding."""
VERDICTS = ("better", "worse", "undecided")
RAN_TWICE = (
    "acl_arc of study_cpu has run twice. The first run, with a quarter of the steps and other rates, was tested: all "
    "rows stood on the plateau of a network that knows two or three classes (commit d116e1b has its table and records, "
    "whose cost is not in that above). The steps were then chosen on the validation split, with plain fine-tuning and "
    "one seed, and all rows ran anew. So the schedule suits plain fine-tuning, and is not blind to that first table."
)


@dataclass(frozen=True)
class Grid:
    """A committed grid: its facts, cells and stages, and its numbers as tables show them."""

    facts: GridFacts
    cells: Sequence[Record]
    stages: dict[str, Record]
    runs: RunTable

    @classmethod
    def read(cls, name: str) -> Grid:
        """Read the records of a grid."""
        content = read_file(records_path(RESULTS, name))
        assert content.grid is not None
        cells = list(content.cells.values())
        return cls(content.grid, cells, content.stages, runs_of(content.grid, cells, content.stages))

    def of(self, row: str, task: str) -> list[Record]:
        """Return the cells of a row on a task, by seed."""
        own = [cell for cell in self.cells if (cell["method"], cell["task"]) == (row, task)]
        return sorted(own, key=lambda cell: int(cell["seed"]))


def verdict(difference: Difference) -> str:
    """Return `better`, `worse` or `undecided`: whether the interval holds all noise of the seeds and excludes 0."""
    if difference.low is None or difference.high is None or difference.conditional:
        return "undecided"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "undecided"


def page() -> str:
    """Write the page."""
    grids = {name: Grid.read(name) for name in GRIDS if records_path(RESULTS, name).is_file()}
    parts = [
        "# What the committed results show",
        "`python docs/write_results.py` writes this page from the records beside it; a test holds it to them.",
        "## What was run",
        _overview(grids),
        _units(grids),
        SHOWCASES,
        _chosen(grids),
        COUNTED,
        _in_short(grids),
    ]
    for question in QUESTIONS:
        parts += [f"## {question.text}", *_answer(question, grids)]
    parts += ["## How much of the spread is pre-training's?", *_split(grids)]
    parts += ["## Do bfloat16 and compiled blocks change results?", *_fast()]
    parts += ["## What these grids do not answer", _unanswered(), "## What was looked at", *_looked_at(grids)]
    return "\n\n".join(parts) + "\n"


def _overview(grids: dict[str, Grid]) -> str:
    lines = [["grid", "what", "rows x tasks x seeds", "cost", "computed on"]]
    for name, grid in grids.items():
        facts = grid.facts
        size = f"{len(facts.rows)} x {len(facts.tasks)} x {len(facts.seeds)}"
        total = cost_line(facts, grid.cells, grid.stages)[0].rpartition(": ")[2].rstrip(".")
        tasks = {(each["provenance"]["device"], _precision(each)): {} for each in grid.stages.values()}
        for cell in grid.cells:
            own = grid.stages[cell["key"]]
            tasks[own["provenance"]["device"], _precision(own)][cell["task"]] = None
        machines = [f"{device}, {precision}: {', '.join(each)}" for (device, precision), each in sorted(tasks.items())]
        lines.append([f"[{name}]({name}.md)", GRIDS[name], size, total, "; ".join(machines)])
    remark = (
        "Costs are the time that stages took, whatever else the computer did meanwhile: equal stages of "
        "study_cpu_steps differ by several times."
    )
    return f"{in_markdown(lines)}\n\n{remark}"


def _units(grids: dict[str, Grid]) -> str:
    """Name the metric of every task, in percent of which numbers and differences are."""
    tasks: dict[str, dict[str, None]] = {}
    for grid in grids.values():
        for task, metric in grid.facts.metrics.items():
            tasks.setdefault(metric_of(metric).title, {})[task] = None
    named = "; ".join(f"{metric}: {', '.join(of_metric)}" for metric, of_metric in tasks.items())
    return f"Numbers are in percent, differences in points, of each task's metric. {named}."


def _chosen(grids: dict[str, Grid]) -> str:
    """Show which rate of fine-tuning each row's search chose."""
    parts = []
    for name, grid in grids.items():
        cells = {task: [cell for cell in grid.cells if cell["task"] == task] for task in grid.facts.tasks}
        if not all(cell.get("search") for of_task in cells.values() for cell in of_task):
            continue
        lines = [["row", *cells]]
        for row in grid.facts.rows:
            rates = {task: _rates(grid, row, task) for task in cells}
            lines.append([row, *rates.values()])
        parts.append(f"Learning rates of fine-tuning that the searches of {name} chose:\n\n{in_markdown(lines)}")
    parts.append(
        "A search on a validation split trains on the whole training set with the first seed. The final run of that "
        "seed is then the chosen one itself, and its number has the luck of the selection; the others are new runs."
    )
    return "\n\n".join(parts)


def _rates(grid: Grid, row: str, task: str) -> str:
    rates = {lineage(cell, grid.stages)[-1]["spec"]["schedule"]["lr"]: None for cell in grid.of(row, task)}
    return ", ".join(f"{rate:g}" for rate in rates)


def _precision(stage: Record) -> str:
    return str(stage["spec"]["execution"]["precision"])


@dataclass(frozen=True)
class Compared:
    """Two rows on a task of a grid."""

    grid: str
    row: str
    reference: str
    difference: Difference

    @property
    def task(self) -> str:
        """The task on which they are compared."""
        return self.difference.task


def compared(question: Question, grids: dict[str, Grid]) -> list[Compared]:
    """Make the comparisons that answer a question, of all grids that have the rows."""
    return [
        Compared(name, row, reference, grid.runs.difference(row, reference, task))
        for name, grid in grids.items()
        for row, reference in question.comparisons
        if {row, reference} <= set(grid.facts.rows)
        for task in grid.facts.tasks
    ]


def _in_short(grids: dict[str, Grid]) -> str:
    """Count the verdicts on every question that has any."""
    lines = [["question", *VERDICTS]]
    for question in QUESTIONS:
        counts = Counter(verdict(each.difference) for each in compared(question, grids))
        if not counts:
            continue
        lines.append([question.text, *(str(counts[kind]) for kind in VERDICTS)])
    total = [each for question in QUESTIONS for each in compared(question, grids)]
    narrow = [each for each in total if each.difference.conditional]
    searched = sorted({each.grid for each in narrow if grids[each.grid].cells[0].get("search")})
    remark = (
        f"{len(narrow)} of these {len(total)} comparisons cannot be decided whatever their numbers: something that "
        f"only one of the rows has is the same for all seeds (in {' and '.join(searched)} the choice of the search)."
    )
    return f"{in_markdown(lines)}\n\n{remark}"


def _answer(question: Question, grids: dict[str, Grid]) -> Iterator[str]:
    """Yield the parts of an answer: how often each verdict was reached, the differences, what the parts did."""
    comparisons = compared(question, grids)
    if not comparisons:
        yield f"**Not answered yet.** {question.remark}"
        return
    counts = Counter(verdict(each.difference) for each in comparisons)
    counted = ", ".join(f"{kind} in {counts[kind]}" for kind in VERDICTS if counts[kind])
    intervals = [(each.difference.low, each.difference.high) for each in comparisons]
    halves = [(high - low) / 2 for low, high in intervals if low is not None and high is not None]
    reach = ""
    if halves:
        reach = (
            f"Intervals reach {min(halves):.1f} to {max(halves):.1f} points to either side, and smaller effects cannot "
            "be told from noise. "
        )
    narrow = [each for each in comparisons if each.difference.conditional]
    excluding = [each for each in narrow if verdict(replace(each.difference, conditional=False)) != "undecided"]
    too_narrow = (
        f"{len(narrow)} of the intervals are too narrow ({CONDITIONAL}): {len(excluding)} of these exclude 0. "
        if narrow
        else ""
    )
    yield f"**Of {len(comparisons)} comparisons: {counted}.** {reach}{too_narrow}{question.remark}"
    lines = [["grid", "compared", "task", "difference", "verdict"]]
    lines += [
        [
            each.grid,
            f"{each.row} − {each.reference}",
            each.task,
            difference_text(each.difference),
            verdict(each.difference),
        ]
        for each in comparisons
    ]
    yield in_markdown(lines)
    if any(each.difference.conditional for each in comparisons):
        yield (
            f"{CONDITIONAL} conditional: a stage, or the choice of a search, that only one of the two rows has is the "
            "same for all seeds. Its luck is not in the interval, which is too narrow for that reason and decides "
            "nothing ([why](../docs/statistics.md#two-rows-on-a-task))."
        )
    active = [
        [each.grid, each.row, each.task, text]
        for each in comparisons
        if question.activity
        for text in _activity(grids[each.grid], each.row, each.task)
    ]
    if active:
        yield in_markdown([["grid", "row", "task", "what the part did, by seed"], *active])
        yield (
            "A part's loss is that of the last step's batch alone, so it differs much between seeds; below "
            f"{100 * HARDLY:g} % of the loss that it is added to, it did hardly anything."
        )


def _activity(grid: Grid, row: str, task: str) -> Iterator[str]:
    """Say what the parts of a row did, e.g. `L2SP: its share of the loss: 0.1, 0.2`."""
    cells = grid.of(row, task)
    for part, facts in (cells[0].get("activity") or {}).items() if cells else ():
        values = [cell["activity"][part] for cell in cells]
        numbers = ", ".join("–" if each["value"] is None else f"{each['value']:.2g}" for each in values)
        nothing = sum(part in inactive(cell["activity"]) for cell in cells)
        hardly = _hardly(cells, part)
        remarks = [f"{what} in {count}" for what, count in (("nothing", nothing), ("hardly anything", hardly)) if count]
        yield f"{part}: {facts['meaning']}: {numbers}" + (f" ({', '.join(remarks)})" if remarks else "")


def _hardly(cells: Sequence[Record], part: str) -> int:
    """Count the cells in which a part did something, as far as that is known, but hardly anything."""
    facts = [cell["activity"][part] for cell in cells if part not in inactive(cell["activity"])]
    shares = [each["value"] for each in facts if "relative to" in each["meaning"] and each["value"] is not None]
    return sum(share < HARDLY for share in shares)


@dataclass(frozen=True)
class Share:
    """How much of a variance over seeds is pre-training's: a fraction, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        low, value, high = (f"{100 * share:.0f}" for share in (self.low, self.value, self.high))
        return f"{value} % [{low}, {high}]".replace("-", "−")


def pretraining_share(anew: Summary, once: Summary) -> Share | None:
    """Estimate which share of the variance over seeds comes from pre-training.

    `anew` varies pre-training and fine-tuning, `once` fine-tuning alone, so the share is 1 - s²(once) / s²(anew). The
    interval is that of a ratio of variances of normal values (F distribution). Estimate and interval may lie below 0,
    where fine-tuning alone happened to vary more. None where a standard deviation is missing or 0.
    """
    if not anew.std or not once.std:
        return None
    from scipy.special import fdtri

    ratio = (once.std / anew.std) ** 2
    least, most = (ratio / float(fdtri(once.n - 1, anew.n - 1, quantile)) for quantile in (0.975, 0.025))
    return Share(1 - ratio, 1 - most, 1 - least)


def _share_verdict(share: Share | None) -> str:
    """Say whether a share is above 0. A whole interval below 0 is chance, or of values that are not normal."""
    return "above 0" if share is not None and share.low > 0 else "undecided"


def _split(grids: dict[str, Grid]) -> Iterator[str]:
    """Yield the parts that split the spread over seeds into that of pre-training and that of fine-tuning."""
    if not grids.keys() >= set(SPLIT):
        yield "**Not answered yet.**"
        return
    anew, once = (grids[name] for name in SPLIT)
    lines = [["row", "task", "std, pre-trained anew", "std, pre-trained once", "pre-training's share", "verdict"]]
    for row in once.facts.rows:
        for task in once.facts.tasks if row != once.facts.reference else ():
            summaries = anew.runs.summary(row, task), once.runs.summary(row, task)
            share = pretraining_share(*summaries)
            spread = ["–" if summary.std is None else f"{summary.std:.2f} ({summary.n})" for summary in summaries]
            lines.append([row, task, *spread, "–" if share is None else str(share), _share_verdict(share)])
    yield (
        f"[{SPLIT[0]}]({SPLIT[0]}.md) pre-trains anew with every seed, [{SPLIT[1]}]({SPLIT[1]}.md) once for all seeds, "
        "so what the first varies beyond the second is pre-training's."
    )
    yield in_markdown(lines)
    yield (
        "Standard deviations over seeds (their number), in points. The share is that of the variance, with the 95 % "
        "interval of a ratio of two variances; below 0, fine-tuning alone happened to vary more. The run of the first "
        "seed is in both grids, and each seed draws the same heads and orders of data in both, which the interval does "
        "not allow for."
    )


def _fast() -> Iterator[str]:
    """Yield the parts that compare each row of a grid in float32 with itself as gin/fast.gin sets it."""
    grid = Grid.read(FAST)
    lines = [["row", "task", "float32", "fast.gin", "difference"]]
    undecided = 0
    for row in grid.facts.rows:
        fast = f"{row}_fast/{row}"
        for task in grid.facts.tasks if fast in grid.facts.rows else ():
            difference = grid.runs.difference(fast, row, task)
            assert difference.low is not None and difference.high is not None
            undecided += difference.low <= 0 <= difference.high
            texts = [grid.runs.summary(each, task).text() for each in (row, fast)]
            lines.append([row, task, *texts, difference_text(difference)])
    yield (
        f"[{FAST}]({FAST}.md) has the tasks and three rows of the quickstart twice: in float32, and in bfloat16 with "
        f"compiled blocks (`gin/fast.gin`). **Of {len(lines) - 1} differences {undecided} have an interval that holds "
        "0.** The tiny backbones, too, were trained in each precision, once for all seeds. Their luck is not in the "
        f"intervals, which decide nothing for that reason ({CONDITIONAL})."
    )
    yield in_markdown(lines)


def _unanswered() -> str:
    lines = [["question", "grid, not run yet"], *([text, f"`{path}`"] for text, path in UNANSWERED.items())]
    return in_markdown(lines)


def findings(grid: Grid) -> Iterator[str]:
    """Yield what looks wrong in a grid, as far as records can tell.

    Looked for: no better than always answering the most frequent class; equal to plain fine-tuning in every metric; no
    spread over seeds; one seed that always answers the most frequent class; a loss on the training set that is not
    below that of the class frequencies; a stage that a cell was trained from, or its own, with a loss that did not
    fall; a reference row less than halfway between chance and all right; a part that did nothing, or hardly anything
    with most seeds; a row that differs from the reference, but by an interval that decides nothing.
    """
    facts = grid.facts
    majority = dict(zip(facts.tasks, baseline_row(facts, facts.metrics), strict=True))
    for task in facts.tasks:
        recalls = [cell["metrics"]["balanced_accuracy"] for cell in grid.of(facts.reference, task)]
        chance = 1 / len(facts.test[task].per_class or (1,))
        if recalls and sum(recalls) / len(recalls) < (1 + chance) / 2:
            yield UNLEARNED.format(facts.reference, task)
        for row in facts.rows:
            cells = grid.of(row, task)
            summary = grid.runs.summary(row, task)
            if summary.mean is not None and summary.mean <= float(majority[task]):
                yield f"{row} on {task} is not above the most frequent class"
            for cell in cells:
                if round(100 * cell["value"], 2) == float(majority[task]):
                    yield f"{row} on {task} answers the most frequent class with seed {cell['seed']}"
            if len(cells) > 1 and summary.std == 0:
                yield f"{row} on {task} has no spread over seeds"
            plain = {cell["seed"]: cell["metrics"] for cell in grid.of(facts.reference, task)}
            if row != facts.reference and any(plain.get(cell["seed"]) == cell["metrics"] for cell in cells):
                yield f"{row} on {task} equals {facts.reference}"
            counts = facts.test[task].per_class or ()
            entropy = -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts if count)
            if any(cell["measured"]["train_loss"] >= entropy for cell in cells):
                yield f"{row} on {task} has a training loss that did not fall below that of the class frequencies"
            trained = (stage for cell in cells for stage in lineage(cell, grid.stages))
            for name in dict.fromkeys(stage["name"] for stage in trained if _rose(stage)):
                yield f"{name} of {row} on {task} has a loss that did not fall"
            for part in dict.fromkeys(part for cell in cells for part in inactive(cell.get("activity") or {})):
                yield f"{part} did nothing in {row} on {task}"
            for part in cells[0].get("activity") or {} if cells else ():
                if 2 * _hardly(cells, part) > len(cells):
                    yield HARDLY_ANYTHING.format(part, row, task)
            if row != facts.reference:
                difference = grid.runs.difference(row, facts.reference, task)
                if difference.conditional and verdict(replace(difference, conditional=False)) != "undecided":
                    yield CONDITIONALLY.format(row, task, facts.reference)


def _rose(stage: Record) -> bool:
    """Tell whether a stage's loss did not fall, from the first to the last tenth of its learning curve."""
    first, last = (stage["measured"].get(name, math.nan) for name in ("first_loss", "last_loss"))
    return bool(last >= first)


def _looked_at(grids: dict[str, Grid]) -> Iterator[str]:
    yield (
        "In every cell: whether it is no better than the most frequent class, with one seed or on average, equal to "
        "plain fine-tuning, without spread over seeds, has a loss on the training set that did not fall below that of "
        "the class frequencies, or has a part that did nothing or hardly anything; whether the loss of a stage fell, "
        "where its record says so (early ones do not); whether plain fine-tuning is halfway between chance and all "
        "right; and whether a row differs from it, but by an interval that decides nothing."
    )
    yield RAN_TWICE
    lines = [["grid", "what looked wrong", "cause"]]
    for name, grid in grids.items():
        for finding in findings(grid):
            if (name, finding) not in EXPLAINED:
                raise SystemExit(f"{name}: {finding}. Look for the cause and write it into EXPLAINED of this script.")
            lines.append([name, finding, EXPLAINED[name, finding]])
    yield in_markdown(lines) if len(lines) > 1 else "Nothing of this kind was seen."
    overlaps = [line for grid in grids.values() for line in grid.facts.legend if line.startswith(OVERLAP_LINE)]
    yield "\n".join(
        ["Splits that share examples are trained and tested on as they are published:\n"]
        + [f"- {line.removeprefix(OVERLAP_LINE)}" for line in dict.fromkeys(overlaps)]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

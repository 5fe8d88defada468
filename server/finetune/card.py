"""The model card: what was trained, from what, how well it does on data it never saw, and the exact command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.finetune.options import Options

if TYPE_CHECKING:
    from server.finetune.tasks import TrainedTask


def model_card(
    options: Options, task: TrainedTask, metrics: dict[str, Any], name: str, versions: dict[str, str]
) -> str:
    """The text of README.md. Local folders appear by their last name only, except in the command."""
    base = options.base_model_id or Path(options.model).name
    dataset = options.dataset or Path(options.data).name
    is_adapter = options.method == "lora" and not options.merge
    kind = "LoRA adapter" if is_adapter else "fine-tuned model"
    held_out = Path(options.eval_data).name if options.eval_data else f"a seeded {options.test_share:.0%} of the data"
    front = {
        "base_model": base,
        "datasets": [dataset],
        "metrics": list(task.metrics),
        "license": options.license,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": task.pipeline_tag,
        "tags": ["sluice", options.task, *(["lora"] if options.method == "lora" else [])],
    }
    made_with = ", ".join(f"{package} {version}" for package, version in versions.items())
    # JSON is YAML: quoting is settled by it.
    matter = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    return f"""---
{matter}
---

# {name}

A {kind} of `{base}` for {task.pipeline_tag}, trained on {dataset}.

{_labels(task)}## Use

```sh
sluice serve --model {name}={options.out}
curl -s http://127.0.0.1:8000{task.route} -H 'Content-Type: application/json' -d '{json.dumps(task.body())}'
```

## Scores

| score | validation | held out |
| --- | --- | --- |
{_score_rows(metrics)}

Held out: {held_out}; no text of it was trained on. {metrics["num_train"]} examples were trained on,
{metrics["num_validation"]} chose the best epoch by `{task.best_score}`, {metrics["num_test"]} were held out.

## Training

```sh
{options.command()}
```

{metrics["steps"]} steps ({metrics["epochs"]} epochs) in {metrics["train_runtime_s"] / 60:.1f} minutes.
The weights are those of step {metrics["best_step"]}. {task.length_note.format(**metrics)}
All options are in `training_args.json`. Made with {made_with}.
"""


def _labels(task: TrainedTask) -> str:
    names = ", ".join(f"`{_one_line(label)}`" for label in task.labels)
    return f"Labels: {names}\n\n" if names else ""


def _score_rows(metrics: dict[str, Any]) -> str:
    names = dict.fromkeys([*metrics["test"], *metrics["validation"]])
    cells = [(_one_line(name), *(_cell(metrics[part].get(name)) for part in ("validation", "test"))) for name in names]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _one_line(name: str) -> str:
    """A label as a table and inline code can hold it."""
    return " ".join(name.split()).replace("|", "\\|").replace("`", "'")


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

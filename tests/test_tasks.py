"""The table of tasks names what exists."""

from __future__ import annotations

from pkgutil import resolve_name

import pytest
import transformers
from peft import TaskType

from server.api.app import ROUTERS
from server.finetune.tasks import TrainedTask
from server.serving.encoder_client import ServedEncoder
from server.serving.generator import ServedGenerator
from server.tasks import TASKS, TRAININGS, Task


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_task_names_classes_that_exist(task: Task) -> None:
    assert hasattr(getattr(transformers, task.auto_class), "from_pretrained")
    assert issubclass(resolve_name(task.served), ServedGenerator if task.is_decoder else ServedEncoder)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_tasks_route_is_of_its_router(task: Task) -> None:
    router = resolve_name(task.router)
    assert task.route in [getattr(route, "path", None) for route in router.routes]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_can_be_asked_of_a_task_is_a_route(task: Task) -> None:
    paths = [path for _, router in ROUTERS for path in router.work_paths]
    assert {f"/{ask}" for ask in task.asks} <= set(paths)


def test_no_two_tasks_claim_one_head_or_adapter_type() -> None:
    heads = [head for task in TASKS.values() for head in task.heads]
    peft_types = [task.peft_type for task in TASKS.values() if task.peft_type]
    assert len(set(heads)) == len(heads)
    assert len(set(peft_types)) == len(peft_types)


@pytest.mark.parametrize("command", TRAININGS)
def test_a_trainer_is_of_the_task_that_names_it(command: str) -> None:
    trainer = resolve_name(TRAININGS[command].trainer)
    assert issubclass(trainer, TrainedTask)
    assert trainer.task.training is TRAININGS[command]
    # An adapter that it writes has to be recognised when it is served.
    assert trainer.task.peft_type in TaskType.__members__

"""Which model serves which task under which name."""

from __future__ import annotations

import asyncio
import time
from pkgutil import resolve_name
from typing import Any, TypeVar

from server.availability_errors import Starting
from server.client.adapters import AdapterVersion
from server.client.supervisor import Supervisor
from server.client.worker_client import WorkerClient
from server.config import ModelConfig, ServeConfig
from server.errors import ModelNotFound
from server.protocol import Ready
from server.serving.adapters import check_version, ready_of, split_version
from server.serving.admission import Admission
from server.serving.classifier import ServedClassifier
from server.serving.encoder_client import ServedEncoder
from server.serving.generator import ServedGenerator
from server.serving.origin import origin_of
from server.serving.question_answerer import ServedQuestionAnswerer
from server.serving.services import Services
from server.sharing import served_base
from server.tasks import QUESTION_ANSWERING, SEQ2SEQ, TASKS

Served = ServedGenerator | ServedEncoder

CLASSES: dict[str, Any] = {name: resolve_name(task.served) for name, task in TASKS.items()}
"""Task -> what serves such a model."""
S = TypeVar("S", bound=Served)


def _task_of(kind: type[Any]) -> str:
    """The first one that ``kind`` serves."""
    return next(task for task, served in CLASSES.items() if served is kind)


class Registry:
    """The served models by task and name; the first of a task, in the order of the settings, is its default."""

    def __init__(self, config: ServeConfig, supervisor: Supervisor) -> None:
        self.config = config
        self.created_s = int(time.time())
        self.models = {model.name: model for model in config.models}
        """All that are served, in order; adapters may come and go."""
        self.clients = supervisor.clients
        self.services = Services(config)
        self.admissions = {
            model.name: Admission(model.name, config.max_queued_requests, config.max_queued_tokens)
            for model in config.models
        }
        self._prepared: dict[str, Served] = {}
        self._is_loaded = False
        self._served: dict[str, Served] = {}
        self._names: dict[str, list[str]] = {}

    @property
    def ready_models(self) -> dict[str, Ready]:
        """What the models that have been loaded said of themselves, in the order of the settings."""
        found = {model.name: self._ready(model) for model in self.models.values()}
        return {name: ready for name, ready in found.items() if ready is not None}

    def _ready(self, model: ModelConfig) -> Ready | None:
        served = self._served.get(model.name)
        if served is not None and served.adapter is not None:
            return served.ready
        return ready_of(model.name, self.clients[model.name])

    @property
    def fullness(self) -> float:
        """Of the fullest queue, 0 to 1."""
        return max(admission.fullness for admission in self.admissions.values())

    async def prepare(self) -> None:
        """Make what serves each model as soon as its worker is ready, so that `load` has little left to do."""
        await asyncio.gather(*map(self._prepare, self.config.models))

    async def _prepare(self, model: ModelConfig) -> None:
        client = self.clients[model.name]
        await client.loaded.wait()
        # None for an adapter that gets a worker of its own: `load` makes what serves it.
        if (ready := self._ready(model)) is not None:
            version = None if client.model is model else client.adapters.initial.get(model.name)
            self._prepared[model.name] = await asyncio.to_thread(self.serve, model, client, ready, version)

    def load(self) -> None:
        """Make every model servable; all workers are ready. Slow, for it parses tokenizers: not for the event loop."""
        for model in self.config.models:
            ready = self._ready(model)
            assert ready is not None
            prepared = self._prepared.pop(model.name) if model.name in self._prepared else None
            client = self.clients[model.name]
            version = None if client.model is model else client.adapters.initial.pop(model.name, None)
            self._enter(prepared or self.serve(model, client, ready, version))
        self._is_loaded = True

    async def check_chat_templates(self) -> None:
        """Raise ConfigurationError for a model that generates and whose chat template is broken."""
        for name, ready in self.ready_models.items():
            if TASKS[ready.task].is_decoder:
                await self.services.templates.check_chat(name, ready.tokenizer)

    def serve(
        self, model: ModelConfig, client: WorkerClient, ready: Ready, version: AdapterVersion | None = None
    ) -> Served:
        """What serves the model, or that version of an adapter, by this worker. Slow, for it parses tokenizers."""
        # Limits are those of a worker, whatever the names of its adapters.
        admission = self.admissions[model.name if version is None else client.model.name]
        served: Served
        if CLASSES[ready.task] is ServedGenerator:
            served = ServedGenerator(self.config, model, ready, client, admission, self.services, adapter=version)
        else:
            served = CLASSES[ready.task](self.config, model, ready, client, admission)
            served.adapter = version
        parent = served_base(model, self.config.models) if version is None else client.model.name
        served.origin = origin_of(model, ready, parent=parent, version="" if version is None else version.digest)
        return served

    def publish(self, model: ModelConfig, client: WorkerClient, served: Served) -> None:
        """From now on the name means ``served``; requests that run keep what they began with."""
        self.models[model.name] = model
        self.clients[model.name] = client
        self._enter(served)

    def withdraw(self, name: str) -> None:
        """The name is served no more; requests that run go on."""
        self._leave(self._served.pop(name))
        del self.models[name], self.clients[name]

    def _enter(self, served: Served) -> None:
        """Under its name, in the place of what had the name for the same task."""
        before = self._served.get(served.name)
        if before is not None and before.ready.task != served.ready.task:
            self._leave(before)
            before = None
        if before is None:
            self._names.setdefault(served.ready.task, []).append(served.name)
        self._served[served.name] = served
        if isinstance(served, ServedClassifier):
            self.services.classifiers[served.name] = served

    def _leave(self, served: Served) -> None:
        self._names[served.ready.task].remove(served.name)
        self.services.classifiers.pop(served.name, None)

    def get(self, kind: type[S], name: str | None) -> S:
        """The model of that name that ``kind`` serves; without a name the first one."""
        self._check_loaded()
        served = self._chosen(self.names(kind), name, _task_of(kind))
        assert isinstance(served, kind)
        return served

    def names(self, kind: type[Any]) -> list[str]:
        """Of the servable models that ``kind`` serves; the first one is the default."""
        tasks = [task for task, served in CLASSES.items() if served is kind]
        return [name for task in tasks for name in self._names.get(task, [])]

    def encoder_decoders(self, name: str | None) -> list[ServedGenerator]:
        """The one of that name; without a name all, at least one."""
        self._check_loaded()
        names = self._names.get(SEQ2SEQ.name, [])
        wanted = names if name is None and names else [name]
        found = [self._chosen(names, each, SEQ2SEQ.name) for each in wanted]
        return [served for served in found if isinstance(served, ServedGenerator)]

    def answerer(self, name: str | None) -> ServedQuestionAnswerer | ServedGenerator:
        """The model of that name that answers questions about texts; without a name the first one with a head for it,
        or else the first one that writes answers."""
        self._check_loaded()
        writers = [each for each in self._names.get(SEQ2SEQ.name, []) if self._served[each].ready.can_answer]
        names = [*self.names(ServedQuestionAnswerer), *writers]
        served = self._chosen(names, name, QUESTION_ANSWERING.name)
        assert isinstance(served, ServedQuestionAnswerer | ServedGenerator)
        return served

    def _chosen(self, names: list[str], name: str | None, task: str) -> Served:
        """The model of that name among ``names``, or the first of these."""
        if name is None and names:
            name = names[0]
        name = None if name is None else self._without_version(name)
        if name is None or name not in names:
            raise ModelNotFound(name, task, names)
        return self._served[name]

    def _without_version(self, name: str) -> str:
        """Raises AdapterVersionNotFound if the name has another version than the one that is served."""
        if name in self._served:
            return name
        plain, version = split_version(name)
        served = self._served.get(plain)
        if version is None or served is None or served.adapter is None:
            return name
        check_version(plain, version, served.adapter.digest)
        return plain

    def find(self, name: str | None) -> Served:
        """The model of that name, whatever it does; without a name one that generates, or else the first of all."""
        served = self.all()
        if name is None:
            names = self.names(ServedGenerator)
            return self._served[names[0]] if names else served[0]
        name = self._without_version(name)
        if name not in self._served:
            raise ModelNotFound(name, "any task", list(self._served))
        return self._served[name]

    def all(self) -> list[Served]:
        """Every model, in the order of the settings; raises `Starting` before they can serve."""
        self._check_loaded()
        return list(self._served.values())

    def _check_loaded(self) -> None:
        if not self._is_loaded:
            raise Starting("The models are loading. Try again in a moment.", retry_after_s=1.0)

    def names_by_task(self) -> dict[str, list[str]]:
        """Names of the servable models; the first of each task is its default."""
        return {task: list(names) for task, names in self._names.items()}

    def states(self) -> dict[str, str]:
        return {name: client.state for name, client in self.clients.items()}

    def describe(self, name: str) -> dict[str, Any]:
        """What a served model says of itself, once it is servable."""
        served = self._served.get(name)
        return served.describe() if served is not None else {}

    def refuse_new_work(self) -> None:
        """From now on every admission is refused as draining."""
        for admission in self.admissions.values():
            admission.draining = True

"""What `sluice check` looks at, each answered by a sentence that says what to do where something is wrong."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from server import machine
from server.client.environment import available_cpus
from server.commands.terminal import size
from server.config import ModelConfig, ServeConfig
from server.errors import EXIT_CONFIG, EXIT_MODEL, ConfigurationError
from server.sharing import hosts
from server.tasks import TASKS

if TYPE_CHECKING:
    from server.commands.planned import PlannedModel

DISTRIBUTION = "sluice-server"
NEEDED = ("torch", "transformers", "fastapi", "uvicorn", "tokenizers", "safetensors", "msgspec", "peft")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    kind: Literal["ok", "note", "fail"]
    text: str
    exit_code: int = 0
    """What serve would end with."""


def of_packages() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    wrong = list(_wrong_packages())
    for text in wrong:
        yield Finding("fail", text, EXIT_CONFIG)
    if not wrong:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
        yield Finding("ok", f"packages: {versions}, and all other required packages")


def are_missing() -> bool:
    """Whether nothing that imports them can be asked."""
    return any(find_spec(name) is None for name in NEEDED)


def _wrong_packages() -> Iterator[str]:
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield f"the package {DISTRIBUTION} is not installed. Install it: pip install ."
        return
    # transformers brings it; without it nothing can be asked anyway.
    from packaging.requirements import Requirement

    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"the package {requirement.name} is missing. Install it: pip install '{requirement}'"
        else:
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"{requirement.name} is {version}. Install another one: pip install '{requirement}'"


def of_processor(config: ServeConfig | None) -> Iterator[Finding]:
    yield from _kernels(config)
    cpus = available_cpus()
    shared = hosts(config) if config else {}
    models = [model for model in config.models if model.name not in shared] if config else []
    threads = sum(model.threads or cpus for model in models)
    text = f"threads: {cpus} processors"
    if len(models) > 1 and threads > cpus:
        yield Finding("note", f"{text}, and {len(models)} models with {threads} threads share them. See threads.")
    else:
        yield Finding("ok", text)
    yield Finding("ok", f"memory: {size(machine.free_bytes())} free")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        yield Finding("ok", f"GPU: {', '.join(names)}")
    else:
        yield Finding("ok", "GPU: torch finds none; models run on the CPU")


def _kernels(config: ServeConfig | None) -> Iterator[Finding]:
    from server.native import kernels
    from server.worker import kernel_trial

    for model in config.models if config else []:
        if model.kernels in kernels.NAMES:
            try:
                kernels.use(model.kernels, 1, kernel_trial.problem)
            except ImportError as error:
                text = f"kernels: {model.name} asks for {model.kernels} ones: {error}. Set kernels to auto."
                yield Finding("fail", text, EXIT_MODEL)
    name = kernels.use("auto", 1, kernel_trial.problem)
    if name != "torch":
        yield Finding("ok", f"kernels: {name}")
        return
    text = "kernels: none fit this version of Sluice and this processor. torch is used instead, which is slower."
    advice = "If the processor has AVX2, install a C++ compiler and reinstall Sluice."
    must = [model.name for model in config.models if model.kernels == "native"] if config else []
    if must:
        yield Finding("fail", f"{text} {must[0]} asks for native ones: set kernels to auto. {advice}", EXIT_MODEL)
    else:
        yield Finding("note", f"{text} {advice}")


def of_port(config: ServeConfig) -> Iterator[Finding]:
    # Imported here: it brings the whole web framework.
    from server.api.http.listener import bind

    try:
        with bind(config.host, config.port):
            yield Finding("ok", f"address: {config.host} port {config.port} is free")
    except ConfigurationError as error:
        yield Finding("fail", str(error), error.exit_code)


def of_models(config: ServeConfig) -> Iterator[Finding]:
    from server.commands import planned
    from server.commands.plan import memory_line, needed_on_cpu

    plans, shared = [], hosts(config)
    for model in config.models:
        plan = planned.plan_or_problem(model, config.num_on_gpu(model), shared.get(model.name))
        if isinstance(plan, str):
            yield Finding("fail", plan, EXIT_MODEL)
        else:
            plans.append(plan)
            yield _model(model, plan)
    needed, free = needed_on_cpu(plans), machine.free_bytes()
    if plans:
        kind: Literal["ok", "fail"] = "ok" if needed <= free else "fail"
        yield Finding(kind, memory_line(needed, free), 0 if needed <= free else EXIT_MODEL)


def _model(model: ModelConfig, plan: PlannedModel) -> Finding:
    facts = f"model {model.name}: /{plan.task}, {plan.architecture} in {plan.dtype}, tokenizer found"
    if not TASKS[plan.task].is_decoder:
        return Finding("ok", facts)
    if plan.has_chat_template:
        return Finding("ok", f"{facts}, chat template too")
    advice = "messages are rejected: send inputs, or put chat_template.jinja into its folder"
    return Finding("note", f"{facts}, no chat template: {advice}")

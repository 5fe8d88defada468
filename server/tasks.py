"""The tasks: which models have each one, and what loads, serves and trains it. All other code reads this table.

Imports nothing: classes and modules of other packages are named, and the package that needs one resolves the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Training:
    """How `sluice finetune` trains models of a task."""

    command: str
    """The word after ``sluice finetune``."""
    description: str
    """What is trained, from which data. Ends the sentence "Train ..."."""
    trainer: str
    """The subclass of `TrainedTask` that knows its data and scores."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of model."""

    name: str
    """As in ``/info``."""
    heads: tuple[str, ...] = ()
    """Endings of the class names of such models in ``architectures``."""
    mapping: str | None = None
    """Where class names of other models end alike: the mapping of transformers that such a class is in."""
    auto_class: str
    """The class of transformers that loads them."""
    reads: Literal["text", "tokens", "masks"] | None = None
    """What an encoder answers with a row: each text, each token or each mask. None for decoders."""
    has_labels: bool = False
    """Whether the config's ``id2label`` names the outputs."""
    num_outputs: int | None = None
    """Of the head, where the task alone decides it."""
    peft_type: str | None = None
    """PEFT's ``task_type`` of such adapters."""
    peft_heads: tuple[str, ...] = ()
    """Modules that PEFT trains whole in such adapters, beside those that their config names."""
    served: str
    """The class that serves such a model in the front."""
    router: str
    """Its own route."""
    path: str = ""
    """Of its own route; empty: ``/name``."""
    example: Mapping[str, Any]
    """A body for the route. ``[MASK]`` stands for the model's mask token."""
    other_routes: tuple[str, ...] = ()
    """Paths of further things that such a model does with an input."""
    can_predict: bool = True
    """Whether `sluice predict` sends inputs to the routes."""
    lists_one: bool = False
    """Whether the routes answer a single input with a list of one."""
    beside: tuple[str, ...] = ()
    """Fields of the routes' bodies that stand beside ``inputs``, not among the parameters."""
    training: Training | None = None

    @property
    def route(self) -> str:
        """The path of its own route."""
        return self.path or f"/{self.name}"

    @property
    def asks(self) -> tuple[str, ...]:
        """What `sluice predict` calls the things that such a model does with an input, the usual one first."""
        return tuple(route[1:] for route in (self.route, *self.other_routes)) if self.can_predict else ()

    @property
    def is_decoder(self) -> bool:
        """Whether such models generate tokens, and so have a KV cache."""
        return self.reads is None


GENERATE = Task(
    name="generate",
    heads=("ForCausalLM", "LMHeadModel"),
    auto_class="AutoModelForCausalLM",
    peft_type="CAUSAL_LM",
    served="server.serving.generator:ServedGenerator",
    router="server.api.dialects.tgi.generate:router",
    example={
        "inputs": "Once upon a time, a lighthouse keeper",
        "parameters": {"max_new_tokens": 60},
        "stream": True,
    },
)
SEQ2SEQ = Task(
    name="seq2seq",
    heads=("ForConditionalGeneration", "MTModel", "EncoderDecoderModel"),
    mapping="MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    auto_class="AutoModelForSeq2SeqLM",
    peft_type="SEQ_2_SEQ_LM",
    served="server.serving.generator:ServedGenerator",
    router="server.api.dialects.hf.translate:router",
    path="/translate",
    example={"inputs": "The train to Edinburgh leaves at nine."},
    other_routes=("/summarize", "/question-answering"),
    lists_one=True,
    beside=("split",),
    training=Training(
        command="seq2seq",
        description="an encoder-decoder model for translations, summaries or other rewriting, from CSV, TSV or JSONL "
        "with source and target",
        trainer="server.finetune.seq2seq:Seq2Seq",
    ),
)
"""Encoder-decoder models. They generate, too."""
CLASSIFY = Task(
    name="classify",
    heads=("ForSequenceClassification",),
    auto_class="AutoModelForSequenceClassification",
    reads="text",
    has_labels=True,
    peft_type="SEQ_CLS",
    peft_heads=("classifier", "score"),
    served="server.serving.classifier:ServedClassifier",
    router="server.api.dialects.hf.classify:router",
    example={"inputs": "I love this"},
    lists_one=True,
    training=Training(
        command="classify",
        description="a text classifier, from JSONL or CSV with text and label, and text_pair for pairs of texts "
        "(JSONL: a list of labels for multi-label)",
        trainer="server.finetune.tasks:Classify",
    ),
)
NER = Task(
    name="ner",
    heads=("ForTokenClassification",),
    auto_class="AutoModelForTokenClassification",
    reads="tokens",
    has_labels=True,
    peft_type="TOKEN_CLS",
    peft_heads=("classifier", "score"),
    served="server.serving.tagger:ServedTagger",
    router="server.api.dialects.hf.ner:router",
    example={"inputs": "I am Maria Jensen from Portland."},
    training=Training(
        command="ner",
        description="an entity tagger, from CoNLL columns or JSONL with tokens and ner_tags, in any usual scheme of "
        "tags",
        trainer="server.finetune.tasks:Tag",
    ),
)
FILL_MASK = Task(
    name="fill-mask",
    heads=("ForMaskedLM",),
    auto_class="AutoModelForMaskedLM",
    reads="masks",
    served="server.serving.mask_filler:ServedMaskFiller",
    router="server.api.dialects.hf.fill_mask:router",
    example={"inputs": "The capital of France is [MASK]."},
)
QUESTION_ANSWERING = Task(
    name="question-answering",
    heads=("ForQuestionAnswering", "ForQuestionAnsweringSimple"),
    auto_class="AutoModelForQuestionAnswering",
    reads="tokens",
    num_outputs=2,
    peft_type="QUESTION_ANS",
    peft_heads=("qa_outputs",),
    served="server.serving.question_answerer:ServedQuestionAnswerer",
    router="server.api.dialects.hf.question_answering:router",
    example={"inputs": {"question": "Where does Maria live?", "context": "Maria Jensen lives in Portland."}},
    training=Training(
        command="qa",
        description="a model that finds answers in texts, from JSON nested as SQuAD's (also version 2, with questions "
        "that have no answer) or JSONL with question, context and answers",
        trainer="server.finetune.question_answering:AnswerQuestions",
    ),
)
EMBED = Task(
    name="embed",
    auto_class="AutoModel",
    reads="text",
    served="server.serving.embedder:ServedEmbedder",
    router="server.api.dialects.tei:embed_router",
    example={"inputs": "The train to Edinburgh leaves at nine."},
    can_predict=False,
)
"""Models without a head."""

TASKS: dict[str, Task] = {
    task.name: task for task in (GENERATE, SEQ2SEQ, CLASSIFY, NER, FILL_MASK, QUESTION_ANSWERING, EMBED)
}
"""By name, in the order in which examples of them are preferred."""

TRAININGS: dict[str, Training] = {task.training.command: task.training for task in TASKS.values() if task.training}
"""By their commands."""

"""What is known of data, model, device and aims: the ground that advice stands on."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Facts:
    """Each field is None (or empty) as long as nobody measured, stated or read it; rules then stay silent.

    `origins` has, by field, where its value comes from: `measured`, `stated` (by the user), `card` (the
    model's configuration) or `published` (of the model whose shape it has).
    """

    # data, by role where it is a dict
    rows: dict[str, int] | None = None  # training rows; None: not counted
    tokens: dict[str, int] = field(default_factory=dict)
    row_tokens: int | None = None  # tokens that 99 % of the task rows do not exceed
    answer_tokens: int | None = None  # tokens of a probe's longest answer
    task_types: int | None = None  # different values of the rows' field `type`
    prompt_tokens: int | None = None  # of a probe's longest question, for a model with `positions`
    system_prompts: bool | None = None  # whether some task has a system message
    # start model
    pocket: bool | None = None
    parameters: int | None = None
    experts: int | None = None  # of these, weights of a mixture's fused experts
    context: int | None = None  # positions that its configuration states
    positions: int | None = None  # of its table of positions, which none can exceed; None: it has no table
    attention: str | None = None  # how transformers computes it: sdpa or eager
    packing_fault: str | None = None  # why rows may not share a block; empty: they may; None: not asked
    untrained_tokens: list[str] | None = None  # of the chat template, that pre-training never saw
    vocabulary: int | None = None  # rows of the input embedding
    model_type: str | None = None  # transformers' name of its family
    hidden_size: int | None = None
    pretraining_learning_rate: float | None = None
    tested_rates: dict[str, float] = field(default_factory=dict)  # by `kind method`, from range tests
    pretrained_as: str | None = None  # the published model whose shape and rate it has, with the source
    base_loss: dict[str, float] = field(default_factory=dict)  # nats per token, by role
    base_accuracy: dict[str, float] = field(default_factory=dict)  # 0 to 1, by role
    chat_model: bool | None = None  # False: there is none to start from
    # device
    device: str | None = None  # cuda or cpu
    bf16: bool | None = None  # whether it computes in bfloat16
    # aims
    wants: str | None = None  # domain, or both: general ability counts too
    resources: str | None = None  # much or little
    related: bool | None = None  # the domain's tasks are like general ones
    differs: bool | None = None  # the domain's text differs from what the model was pre-trained on
    origins: dict[str, str] = field(default_factory=dict)

    def add(self, origin: str, **values: Any) -> "Facts":
        """These facts with more of them from one origin; None adds nothing."""
        new = {name: value for name, value in values.items() if value is not None}
        return dataclasses.replace(self, **new, origins=self.origins | dict.fromkeys(new, origin))

    def row_count(self, role: str) -> int | None:
        """The training rows of a role; None where they were not counted or the role has no data."""
        return (self.rows or {}).get(role)

    def to_dict(self) -> dict:
        """What is known, ready for JSON; `Facts(**values)` reads it back."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, {})}

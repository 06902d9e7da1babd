"""What a model made of a probe's rows, each scored by its scorer."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..runs.answers import AnsweredRow
from ..runs.intervals import mean_scores
from .chat import show_message
from .probes import RowAnswer, answer_probe
from .scorers import score_answer, wanted_answer

SHOWN_TEXT = 1000  # characters of a text that are stored with its loss, for a person to know it by


def rate_answers(tokenizer: PreTrainedTokenizerBase, role: str, rows: list[dict],
                 answers: Sequence[RowAnswer]) -> list[AnsweredRow]:
    """A probe's rows with what the model made of each, scored by each row's own `scorer`."""
    if not rows or "text" in rows[0]:
        return [AnsweredRow(role, number, "", row["text"][:SHOWN_TEXT], nats=answer.nats,
                            tokens=answer.tokens)
                for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1)]
    rated = []
    for number, (row, answer) in enumerate(zip(rows, answers, strict=True), 1):
        wanted, scorer = wanted_answer(tokenizer, row), row.get("scorer", "exact")
        rated.append(AnsweredRow(
            role, number, " / ".join(map(show_message, row["messages"][:-1])), wanted, answer.answer,
            answer.spoken, scorer, score_answer(answer.spoken, wanted, scorer),
            score_answer(answer.spoken, wanted, "f1"), answer.nats, answer.tokens, answer.cut))
    return rated


def score_probe(model, tokenizer: PreTrainedTokenizerBase, rows: list[dict], max_length: int,
                max_new_tokens: int) -> dict[str, float]:
    """The `mean_scores` of a model on a probe's rows."""
    answers = answer_probe(model, tokenizer, rows, max_length, max_new_tokens)
    return mean_scores(rate_answers(tokenizer, "", rows, answers))

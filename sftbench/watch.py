"""What a person follows of a run while it goes on, from its events: stages, speed, memory, last values."""

WINDOW = 30  # steps over which speed is taken


def stages(events: list[dict], alive: bool = True) -> list[dict]:
    """Each planned stage with `name`, steps `done` and `total`, and its `state` in a word or two.

    In a run that is not `alive` no stage trains; the one it lies in has stopped.
    """
    plan = next((event["plan"] for event in events if "plan" in event), {})
    current, found = events[-1]["stage"] if events else None, []
    for name, total in plan.items():
        mine = [event for event in events if event["stage"] == name]
        reused = any(event.get("reused") for event in mine)
        done = total if reused else max((event["step"] for event in mine), default=0)
        state = ("from the store" if reused else "done" if done >= total and mine else
                 "waiting" if name != current else "training" if alive else "stopped")
        found.append({"name": name, "done": min(done, total), "total": total, "state": state})
    return found


def doing(events: list[dict]) -> str:
    """What a live run does now, in a few words; empty before its plan is known."""
    plan = next((event["plan"] for event in events if "plan" in event), None)
    if plan is None:
        return ""
    last = events[-1]
    if "waiting" in last:
        return f"waiting: {last['waiting']}"
    if last["stage"] == "start" and not any(name.startswith("eval_") for name in last):
        return "scoring the start model"
    if last["step"] == plan.get(last["stage"]) and "loss" in last:
        return f"scoring after {last['stage'].replace('_', ' ')}"
    return "training"


def speed(events: list[dict]) -> float | None:
    """Tokens a second over the last steps of the stage that trains, or None where none does."""
    steps = [event for event in events if "tokens" in event and not event.get("reused")]
    steps = [event for event in steps if event["stage"] == steps[-1]["stage"]][-WINDOW:]
    if len(steps) < 2 or steps[-1]["time"] <= steps[0]["time"]:
        return None
    return (steps[-1]["tokens"] - steps[0]["tokens"]) / (steps[-1]["time"] - steps[0]["time"])


def facts(events: list[dict]) -> str:
    """One line of the last values: loss, learning rate, speed, memory; empty before the first step."""
    last = next((event for event in reversed(events) if "loss" in event), None)
    if last is None:
        return ""
    rate = speed(events)
    parts = ["loss is no number" if last["loss"] is None else f"loss {last['loss']:.3f}",
             f"learning rate {last['learning_rate']:.2g}" if last.get("learning_rate") is not None else "",
             f"{rate:,.0f} tokens/s" if rate else "",
             f"{last['memory_bytes'] / 1e9:.2f} GB" if last.get("memory_bytes") else ""]
    return " · ".join(part for part in parts if part)

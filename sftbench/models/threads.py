"""How many threads a stage takes on a CPU: tried on its own steps, and again when they slow down.

More threads are not always faster: the pieces of small work are short, and cores that other programs use make
threads wait for each other. What is computed is the same to the last bit (torch 2.13 with MKL on x86).
"""

import contextlib
import os
import time

import psutil
import torch
from transformers import TrainerCallback

TRIED_STEPS = 3  # with each number of threads; the first of them starts the threads and does not count
FALLEN = 1.1  # times the best, from which on no fewer threads are tried
SLOWER = 1.5  # times what was measured, over SLOW_STEPS in a row, from which on it is tried again
SLOW_STEPS = 8
OWN_CORE = 0.5  # of a core that others use before it counts as theirs


@contextlib.contextmanager
def keep_threads():
    """The number of threads is afterwards what it was before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class ThreadChooser(TrainerCallback):
    """Sets the number of threads with which a token trains fastest.

    While other programs use cores, the threads are as many as cores are left, whatever was the fastest.
    """

    def __init__(self, tokens: list[int]):
        """`tokens`: how many tokens were seen after each step, from step 0 on."""
        self.tokens, self.most = tokens, torch.get_num_threads()
        self.slow = 0
        self._begin_trial()

    def _begin_trial(self) -> None:
        self.trial = [count for count in thread_counts(self.most) for _ in range(TRIED_STEPS)]
        self.pace: dict[int, float] = {}  # seconds per token
        self.cores = UsedCores()

    def on_step_begin(self, args, state, control, **_):
        if self.trial:
            torch.set_num_threads(self.trial[0])
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        step, threads = state.global_step, torch.get_num_threads()
        pace = (time.perf_counter() - self.began) / max(self.tokens[step] - self.tokens[step - 1], 1)
        if not self.trial:
            self.slow = self.slow + 1 if pace > SLOWER * self.pace[threads] else 0
            if self.slow == SLOW_STEPS:
                self._begin_trial()
            return
        self.trial.pop(0)
        if self.trial.count(threads) < TRIED_STEPS - 1:
            self.pace[threads] = min(pace, self.pace.get(threads, pace))
        if threads not in self.trial and self.pace[threads] > FALLEN * min(self.pace.values()):
            self.trial = []  # fewer would be slower still
        if not self.trial:
            self._choose()

    def _choose(self) -> None:
        left = int(psutil.cpu_count() - self.cores.others() + OWN_CORE)
        fastest = min(self.pace, key=self.pace.get)
        chosen = fastest if left >= self.most else max(left, 1)
        self.pace.setdefault(chosen, self.pace[fastest])
        torch.set_num_threads(chosen)
        self.slow = 0


def thread_counts(most: int) -> list[int]:
    """The numbers of threads that are tried: all, and by halves down to one."""
    return [most >> shift for shift in range(most.bit_length())]


class UsedCores:
    """How many cores other programs use, on average since this was created."""

    def __init__(self):
        self.began, self.busy, self.own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def others(self) -> float:
        """Cores that all but this process, its threads and its ended children have used."""
        seconds = max(time.perf_counter() - self.began, 1e-3)
        return max(_busy_seconds() - self.busy - (_own_seconds() - self.own), 0) / seconds


def _own_seconds() -> float:
    return sum(os.times()[:4])  # of this process and its ended children, as user and in the system


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0) - getattr(times, "guest", 0)

"""More than one process: rank 0 runs the chain and writes the folder, the others only train with it.

`torchrun` or `accelerate launch` starts them and sets the environment that is read here; a process alone has
rank 0 of 1. Rank 0 sends what is to be trained (`broadcast`), so that all decide alike.
"""

import os
import signal
from datetime import timedelta
from typing import Any

# Ctrl-C, `kill`, the end of the terminal, and what schedulers send some time before they kill a job: SLURM
# and SGE SIGUSR1, LSF SIGUSR2, a limit of CPU time SIGXCPU (once a second).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
TIMEOUT = timedelta(days=7)  # the others wait while rank 0 scores probes and writes weights


def process_count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_follower() -> bool:
    """Whether this process follows another one: rank 1 and up."""
    return int(os.environ.get("RANK", 0)) > 0


def is_sharded() -> bool:
    """Whether accelerate's configuration asks for FSDP, by which no process has all of the model."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join_processes() -> None:
    """Meet the other processes: gloo on CPUs, NCCL on GPUs, one GPU a process.

    A follower ignores the signals that stop a run: rank 0 decides, and a follower ends when rank 0 is gone.
    """
    if process_count() == 1:
        return
    import torch
    from accelerate import PartialState
    PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)
    if is_follower():
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def broadcast(value: Any = None) -> Any:
    """Rank 0's value, in every process; each must call it."""
    if process_count() == 1:
        return value
    from accelerate.utils import broadcast_object_list
    return broadcast_object_list([value])[0]


def wait_for_everyone() -> None:
    """Wait until every process is here."""
    broadcast()

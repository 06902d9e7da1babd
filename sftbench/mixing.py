"""Order by lengths alone: roles drawn to their shares, spread evenly, packed into blocks."""

import random

import numpy as np

OPEN_BLOCKS = 32  # blocks kept open while packing: enough to fill them to 97 %, few enough to keep the order


def mix(lengths: dict[str, np.ndarray], shares: dict[str, float], epochs: float, seed: int,
        times: dict[str, np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray, dict]:
    """A stage's training order: of each drawn row its role's number in `shares` and its own; and the passes.

    Shares are parts of the tokens. An epoch is one pass over the first role of `shares`; the others are drawn
    to their share, and anew in another order once all their rows were used. Every role is spread evenly.
    `times` says how often each row stands in one pass (default: once).
    """
    once = {role: np.repeat(np.arange(len(sizes), dtype=np.int32), 1 if times is None else times[role])
            for role, sizes in lengths.items()}
    first = next(iter(shares))
    wanted = int(lengths[first][once[first]].sum()) * epochs
    roles, rows, places, passes = [], [], [], {}
    for number, (role, share) in enumerate(shares.items()):
        order = random.Random(f"{seed} {role}")
        drawn = _draw(once[role], lengths[role], wanted * share / shares[first], order)
        jitter = np.fromiter((order.random() for _ in range(len(drawn))), float, len(drawn))
        roles.append(np.full(len(drawn), number, dtype=np.int8))
        rows.append(drawn)
        places.append((np.arange(len(drawn)) + jitter) / len(drawn))
        passes[role] = round(len(drawn) / len(once[role]), 3)
    roles, rows, places = map(np.concatenate, (roles, rows, places))
    # roles at the same place stand in the order of their names
    rank = np.argsort(np.argsort(list(shares))).astype(np.int8)
    order = np.lexsort((rank[roles], places))
    return roles[order], rows[order], passes


def _draw(once: np.ndarray, lengths: np.ndarray, tokens: float, order: random.Random) -> np.ndarray:
    """Rows in shuffled passes until the wanted number of tokens is reached, one row at least."""
    drawn, have = [], 0
    while have < tokens or not drawn:
        one = once[order.sample(range(len(once)), len(once))]
        sums = have + np.cumsum(lengths[one], dtype=np.int64)
        one = one[:np.searchsorted(sums, tokens) + 1]
        drawn.append(one)
        have = int(sums[len(one) - 1])
    return np.concatenate(drawn)


def pack(lengths: np.ndarray, max_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows in blocks of at most `max_length` tokens, nearly in order: first fit among the open blocks.

    Returns the rows' numbers block by block, and the borders: block b is `order[borders[b]:borders[b + 1]]`.
    """
    block_of = np.empty(len(lengths), dtype=np.int32)
    done, still_open, opened = [], [], 0
    for row, size in enumerate(map(int, lengths)):
        for block in still_open:
            if block[0] + size <= max_length:
                break
        else:
            if len(still_open) == OPEN_BLOCKS:
                fullest = max(range(OPEN_BLOCKS), key=lambda number: still_open[number][0])
                done.append(still_open.pop(fullest)[1])
            block = [0, opened]
            still_open.append(block)
            opened += 1
        block[0] += size
        block_of[row] = block[1]
    rank = np.empty(opened, dtype=np.int32)
    rank[np.array(done + [block[1] for block in still_open], dtype=np.int32)] = np.arange(opened)
    block_of = rank[block_of]
    borders = np.concatenate([[0], np.cumsum(np.bincount(block_of, minlength=opened))])
    return np.argsort(block_of, kind="stable").astype(np.int32), borders

"""Keyed randomness: draws that depend on the seed, the tensor, the parent and the place, and on nothing else.

A parent's identity is what it holds: a checksum of the block's bytes. So masks do not change with the order
of models, their paths, threads or shards; two parents with the same content are told apart by their own
parameters, and by their order where these are equal too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from merge_models.merge.contract.block import Block
from merge_models.merge.contract.case import Case
from merge_models.merge.kernels.task_vectors import checksum
from merge_models.merge.kernels.terms import Key


def parent_keys(block: Block, own: Sequence[tuple[float, ...]]) -> list[Key]:
    """Returns a key for each parent of a block.

    Args:
        block: the block.
        own: the parameters of each parent.
    """
    return identity_keys(block.case, block.start, [checksum(span) for span in block.spans], own)


def identity_keys(
    case: Case, start: int, identities: Sequence[tuple[int, int]], own: Sequence[tuple[float, ...]]
) -> list[Key]:
    """Returns a key for each parent, from what it holds; ``own`` parameters tell equal parents apart."""
    order = sorted(range(len(identities)), key=lambda i: (identities[i], own[i]))
    keys: dict[int, Key] = {}
    twins = 0
    for place, parent in enumerate(order):
        twins = twins + 1 if place and identities[parent] == identities[order[place - 1]] else 0
        keys[parent] = key(case, start, *identities[parent], twins)
    return [keys[parent] for parent in range(len(identities))]


def key(case: Case, *numbers: int) -> Key:
    """Returns three 32-bit words from the seed, the tensor's name and some numbers."""
    text = "\0".join([str(case.seed), *map(str, numbers), case.name])
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()
    words = [int.from_bytes(digest[at : at + 4], "little") for at in (0, 4, 8)]
    return words[0], words[1], words[2]

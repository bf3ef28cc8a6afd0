"""The texts of a catalog's items as a flattened trie: what decoding may write (*ours*)."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class CatalogTrie:
    """Token sequences of items, common beginnings once; node 0 is the root.

    Nodes stand level by level and the children of a node side by side, so that no list of edges is
    needed: the children of node n are `first_child[n]` up to `first_child[n + 1]`. A node without
    children is a leaf: a whole text. Items with equal texts share a leaf.

    Attributes:
      tokens: int32[nodes], the token that leads to a node; -1 at the root.
      first_child: int32[nodes + 1].
      leaf_of_item: int32[items].
      depth: tokens of the longest text.
    """

    tokens: np.ndarray
    first_child: np.ndarray
    leaf_of_item: np.ndarray
    depth: int

    @classmethod
    def build(cls, texts: Sequence[np.ndarray]) -> "CatalogTrie":
        """Of the tokens of every item, each int32[n] with n >= 1, none the beginning of another.

        Raises:
          ValueError: a text without tokens, or one with which another begins.
        """
        lengths = np.array([len(text) for text in texts])
        if not len(lengths) or not lengths.min():
            raise ValueError("a trie needs texts, and every text a token")
        depth = int(lengths.max())
        padded = np.full((len(texts), depth), -1, np.int32)
        padded[np.arange(depth) < lengths[:, None]] = np.concatenate(texts)
        rows, row_of_item = np.unique(padded, axis=0, return_inverse=True)
        # Of texts in order: where the first tokens differ from those of the text before.
        differs = np.ones(rows.shape, bool)
        differs[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
        is_new = differs & (rows >= 0)
        per_level = is_new.sum(axis=0)
        first_of_level = 1 + np.concatenate([[0], np.cumsum(per_level)])
        # Of every text at every level: rows are in order, so equal beginnings are adjacent.
        node = first_of_level[:-1] + np.cumsum(is_new, axis=0) - 1
        parents = np.concatenate([np.zeros((len(rows), 1), node.dtype), node[:, :-1]], axis=1)
        count = int(first_of_level[-1])
        tokens, children = np.full(count, -1, np.int32), np.zeros(count, np.int64)
        tokens[node[is_new]] = rows[is_new]
        np.add.at(children, parents[is_new], 1)
        first_child = 1 + np.concatenate([[0], np.cumsum(children)])
        leaf_of_row = node[np.arange(len(rows)), (rows >= 0).sum(axis=1) - 1]
        if children[leaf_of_row].any():
            raise ValueError("a text is the beginning of another: end each with a stop token")
        leaf_of_item = leaf_of_row[row_of_item.reshape(-1)]
        return cls(tokens, first_child.astype(np.int32), leaf_of_item.astype(np.int32), depth)

    @property
    def branches(self) -> tuple[int, int]:
        """The largest number of children: of the root, and of any other node (at least 1)."""
        children = np.diff(self.first_child)
        return int(children[0]), int(children[1:].max(initial=1))

    def __len__(self) -> int:
        return len(self.tokens)

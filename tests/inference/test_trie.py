import numpy as np
import pytest

from mmsrec_jax.inference.trie import CatalogTrie

STOP = 9


def ended(*texts):
    return [np.array([*text, STOP], np.int32) for text in texts]


def written(trie):
    """Leaf -> its tokens, by following children from the root."""
    texts, todo = {}, [(0, ())]
    while todo:
        node, tokens = todo.pop()
        children = range(trie.first_child[node], trie.first_child[node + 1])
        todo += [(child, (*tokens, int(trie.tokens[child]))) for child in children]
        if not children:
            texts[node] = tokens
    return texts


def test_paths_to_leaves_are_the_texts_and_equal_texts_share_one():
    texts = ended([3, 1], [3], [], [3, 1], [2, 3, 1], [3, 1, 1])
    trie = CatalogTrie.build(texts)
    assert [written(trie)[leaf] for leaf in trie.leaf_of_item] == [
        tuple(text.tolist()) for text in texts
    ]
    assert len(written(trie)) == len(set(map(bytes, texts))) == 5
    assert trie.leaf_of_item[0] == trie.leaf_of_item[3]
    assert trie.depth == 4 and trie.branches == (3, 2)
    # root; 2, 3, stop; 3, 1, stop; 1, 1, stop; stop, stop
    assert len(trie) == 12


@pytest.mark.parametrize("seed", range(5))
def test_random_texts(seed):
    rng = np.random.default_rng(seed)
    texts = ended(*(rng.integers(0, 3, rng.integers(0, 6)) for _ in range(60)))
    trie = CatalogTrie.build(texts)
    found = written(trie)
    assert [found[leaf] for leaf in trie.leaf_of_item] == [tuple(t.tolist()) for t in texts]
    beginnings = {tuple(t[:n].tolist()) for t in texts for n in range(len(t) + 1)}
    assert len(trie) == len(beginnings)  # each once
    counts = [len({b for b in beginnings if b[:-1] == a and b}) for a in beginnings]
    assert max(trie.branches) == max(counts)
    assert trie.depth == max(map(len, texts))


def test_a_text_that_another_begins_with_is_refused():
    with pytest.raises(ValueError, match="is the beginning of another"):
        CatalogTrie.build([np.array([1, 2]), np.array([1, 2, 3])])
    with pytest.raises(ValueError, match="every text a token"):
        CatalogTrie.build([np.array([1, 2]), np.zeros(0, np.int32)])

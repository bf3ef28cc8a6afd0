"""The rows on which attention is measured, and torch's forms on them, by the definition."""

import numpy as np
import pytest

from benchmarks.accelerator import attention_cases as cases

CASES = (
    cases.packed("packed", 2, 150, (2, 5), heads=4, kv_heads=2, head_dim=16),
    cases.scoring("scoring", 2, 40, 4, 20, heads=4, kv_heads=2, head_dim=16),
    cases.one_segment("one segment", 1, 130, heads=4, kv_heads=2, head_dim=16),
    cases.tower("tower", 2, 140, 33, heads=4, head_dim=16),
)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def seen(case: cases.Case) -> np.ndarray:
    """bool[B, T, T], token by token."""
    rows, length = case.segments.shape
    mask = np.zeros((rows, length, length), bool)
    for b, i, j in np.ndindex(mask.shape):
        same = case.segments[b, i] == case.segments[b, j] > 0
        own = case.suffixes is None or case.suffixes[b, j] in (0, case.suffixes[b, i])
        mask[b, i, j] = same and own and (j <= i or not case.causal)
    return mask


def plain(case: cases.Case) -> np.ndarray:
    """Softmax attention in float64, 0 where nothing is seen."""
    q, k, v, _ = (x.astype(np.float64) for x in cases.tensors(case))
    k, v = (np.repeat(x, case.heads // case.kv_heads, axis=2) for x in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(case.head_dim)
    weights = np.where(seen(case)[:, None], np.exp(scores), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-9)
    return np.einsum("bhts,bshd->bthd", weights, v)


@by_name
def test_pairs_are_those_of_the_mask(case: cases.Case):
    assert case.visible_pairs() == seen(case).sum()
    assert case.visible_pairs() <= case.all_pairs()
    live = case.live.sum(1)
    assert (live > 0.5 * case.segments.shape[1]).all()


def test_rows_are_what_they_are_called():
    packed, scoring, one, tower = CASES
    assert packed.segments.max() == 5 and (packed.segments[:, -1] == 0).all()
    assert scoring.suffixes is not None and scoring.suffixes.max() == 4
    assert (scoring.suffixes[:, :40] == 0).all()
    assert one.visible_pairs() == one.all_pairs()
    assert not tower.causal and np.bincount(tower.segments[0]).tolist()[1:5] == [33, 33, 33, 33]


@by_name
def test_torch_computes_the_same(case: cases.Case, monkeypatch: pytest.MonkeyPatch):
    """varlen needs a GPU: in its place one segment after the other."""
    torch = pytest.importorskip("torch")
    from torch.nn.functional import scaled_dot_product_attention

    from benchmarks.accelerator import torch_attention

    def one_by_one(q, k, v, ends, ends_k, longest, longest_k, *, window_size, enable_gqa):
        assert longest == int((ends[1:] - ends[:-1]).max()) and enable_gqa == (case.kv_heads == 2)
        assert window_size == ((-1, 0) if case.causal else (-1, -1))
        found = []
        for start, end in zip(ends[:-1], ends[1:], strict=True):
            part = (x[start:end].transpose(0, 1) for x in (q, k, v))
            out = scaled_dot_product_attention(*part, is_causal=case.causal, enable_gqa=True)
            found.append(out.transpose(0, 1))
        return torch.cat(found)

    monkeypatch.setattr(torch_attention.varlen, "varlen_attn", one_by_one)
    q, k, v, _ = (x.detach() for x in torch_attention.tensors(case))
    forms = torch_attention.forms(case)
    assert ("torch varlen" in forms) == (case.name != "scoring")
    assert ("torch sdpa, is_causal" in forms) == (case.name == "one segment")
    for name, make in forms.items():
        with torch.no_grad():
            out = make()(q, k, v).transpose(1, 2).float().numpy()
        assert cases.error(out, plain(case), case.live) < 1e-2, name

"""Batches of any texts: the segments of a text, and what is masked in them."""

import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from receiptbert import Collator, PretrainDataset, WordpieceTokenizer
from tests.conftest import SHAPE
from tests.small_stores import store_of


@cache
def small_tokenizer() -> WordpieceTokenizer:
    """Made here: Hypothesis and fixtures of a test do not go together."""
    words = ["абв", "где", "жаба", "вада", "деже", "бега", "93", "5а"]
    with tempfile.TemporaryDirectory() as folder:
        return WordpieceTokenizer.from_corpus(
            words * 5, Path(folder) / "corpus.txt", folder, "t", vocab_size=40
        )


@cache
def ordinary_ids() -> list[int]:
    tokenizer = small_tokenizer()
    return [i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_token_ids]


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """A dataset of a few texts, among them unknown tokens, and which of them to look at."""
    seed = draw(st.integers(0, 1 << 20))
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=6))
    rng = random.Random(seed)
    ids = [*ordinary_ids(), small_tokenizer().unk_token_id]
    rows = [rng.choices(ids, k=length) for length in lengths]
    maxlen = draw(st.integers(1, SHAPE["max_seqlen"]))
    permute_prob = draw(st.sampled_from([0.0, 0.5, 1.0]))
    index = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
    torch.manual_seed(seed)
    dataset = PretrainDataset(store_of(rows), small_tokenizer(), 1, maxlen, permute_prob)
    return {"dataset": dataset, "rows": rows, "maxlen": maxlen, "index": index, "permute_prob": permute_prob}


@settings(max_examples=700)
@given(batches())
def test_segments_are_the_two_halves_of_a_window_of_the_text(batch: dict[str, Any]) -> None:
    tokenizer = small_tokenizer()
    pairs = batch["dataset"].__getitems__(batch["index"])
    for ids, types, permuted, number in zip(*(part.tolist() for part in pairs), batch["index"], strict=True):
        text = batch["rows"][number]
        shown = min(len(text), batch["maxlen"])
        assert ids[0] == tokenizer.cls_token_id
        assert ids[shown + 2 :] == [tokenizer.pad_token_id] * (len(ids) - shown - 2)
        sep = ids.index(tokenizer.sep_token_id)
        assert types == [0] * (sep + 1) + [1] * (shown + 1 - sep) + [0] * (len(ids) - shown - 2)
        first, second = ids[1:sep], ids[sep + 1 : shown + 2]
        assert abs(len(first) - len(second)) <= 1
        window = second + first if permuted else first + second
        assert any(text[i : i + shown] == window for i in range(len(text) - shown + 1))
        assert permuted in {0.0: [False], 0.5: [False, True], 1.0: [True]}[batch["permute_prob"]]
    assert len(pairs.input_ids[0]) == 2 + max(
        min(len(batch["rows"][i]), batch["maxlen"]) for i in batch["index"]
    )


@settings(max_examples=700)
@given(
    batches(),
    st.sampled_from([0.01, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.booleans(),
)
def test_masks_hide_targets_alone(
    batch: dict[str, Any], mask_prob: float, random_prob: float, whole_words: bool, letters_only: bool
) -> None:
    tokenizer = small_tokenizer()
    pairs = batch["dataset"].__getitems__(batch["index"])
    collator = Collator(
        tokenizer,
        mask_prob=mask_prob,
        random_prob=random_prob,
        keep_unchanged_prob=0.0,
        non_target_idx=-7,
        whole_words=whole_words,
        letters_only=letters_only,
    )
    input_ids, types, labels, permuted = collator(pairs)
    target = labels != -7
    special = torch.isin(pairs.input_ids, torch.tensor(tokenizer.special_token_ids))
    assert not (target & special).any()
    assert torch.equal(labels[target], pairs.input_ids[target])
    assert torch.equal(input_ids[~target], pairs.input_ids[~target])
    replaced = set(input_ids[target].tolist())
    assert replaced <= {0.0: {tokenizer.mask_token_id}, 1.0: set(ordinary_ids())}.get(
        random_prob, {tokenizer.mask_token_id, *ordinary_ids()}
    )
    letters = torch.tensor([any(map(str.isalpha, token)) for token in tokenizer.tokens])[pairs.input_ids]
    may_be_target = ~special & letters if letters_only else ~special
    assert not (target & ~may_be_target).any()
    if mask_prob == 1.0:
        assert torch.equal(target, may_be_target)
    assert torch.equal(types, pairs.token_type_ids)
    assert torch.equal(permuted, pairs.permuted)

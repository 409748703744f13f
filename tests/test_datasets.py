import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from receiptbert import FinetuneDataset, InferenceDataset, PretrainDataset, WordpieceTokenizer
from receiptbert.sampling import LengthGroupedBatchSampler, MixtureBatchSampler, largest_batch_ratio
from receiptbert.token_store import TokenStore


def split_pair(
    tokenizer: WordpieceTokenizer, ids: list[int], types: list[int]
) -> tuple[list[int], list[int]]:
    """The two segments of ``[CLS] left [SEP] right``; checks the marks on the way."""
    assert ids[0] == tokenizer.cls_token_id
    assert ids.count(tokenizer.sep_token_id) == 1
    sep = ids.index(tokenizer.sep_token_id)
    assert types == [0] * (sep + 1) + [1] * (len(ids) - sep - 1)
    return ids[1:sep], ids[sep + 1 :]


def test_both_orders_are_frequent(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    torch.manual_seed(0)
    dataset = PretrainDataset(texts, tokenizer, minlen=2, maxlen=100)
    swapped = sum(permuted for _, _, permuted in dataset)
    assert 1 / 3 < swapped / len(dataset) < 2 / 3


def test_a_text_without_tokens_is_left_out(tokenizer: WordpieceTokenizer) -> None:
    assert len(PretrainDataset(["", "а", " "], tokenizer, minlen=0, maxlen=100)) == 1


def test_order_cannot_be_told_from_the_lengths_of_the_halves(tokenizer: WordpieceTokenizer) -> None:
    """Of an odd text, a fixed rule for the odd token would give the label away."""
    torch.manual_seed(0)
    odd = next(text for text in ("а б в", "а б", "а") if len(tokenizer(text)) == 3)
    dataset = PretrainDataset([odd], tokenizer, minlen=1, maxlen=100)
    counts = Counter()
    for _ in range(800):
        ids, types, permuted = dataset[0]
        first, _ = split_pair(tokenizer, ids.tolist(), types.tolist())
        counts[len(first), permuted] += 1
    assert set(counts) == {(1, False), (1, True), (2, False), (2, True)}
    assert min(counts.values()) > 140  # 200 expected, deviation 12


def test_windows_of_long_texts_cover_the_text_evenly(tokenizer: WordpieceTokenizer) -> None:
    torch.manual_seed(0)
    text = "а б в г д е"
    original = tokenizer(text)
    dataset = PretrainDataset([text], tokenizer, minlen=1, maxlen=100, permute_prob=0)
    dataset.set_maxlen(len(original) - 2)
    starts = Counter()
    for _ in range(600):
        ids, types, _ = dataset[0]
        first, second = split_pair(tokenizer, ids.tolist(), types.tolist())
        window = first + second
        start = next(s for s in range(3) if original[s : s + len(window)] == window)
        assert len(window) == len(original) - 2
        starts[start] += 1
    assert sorted(starts) == [0, 1, 2]
    assert min(starts.values()) > 140  # 200 expected, deviation 12


def test_short_texts_are_left_out_and_presort_orders(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    dataset = PretrainDataset(texts, tokenizer, minlen=6, maxlen=100, presort=True)
    lengths = [len(tokenizer(text)) for text in texts]
    assert dataset.lengths.tolist() == sorted(length for length in lengths if length >= 6)


def test_a_token_store_gives_what_its_texts_give(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    stores = [texts, TokenStore.from_texts(texts, tokenizer)]
    batches = []
    for corpus in stores:
        torch.manual_seed(0)
        batches.append(PretrainDataset(corpus, tokenizer, 2, 8, presort=True).__getitems__(range(50)))
    for ours, theirs in zip(*batches, strict=True):
        assert torch.equal(ours, theirs)


def test_targets_stay_with_their_texts_when_sorted(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    dataset = FinetuneDataset(texts, range(len(texts)), tokenizer, maxlen=100, presort=True)
    items = [dataset[i] for i in range(len(dataset))]
    assert sorted(target for _, target in items) == list(range(len(texts)))
    assert [len(ids) for ids, _ in items] == sorted(len(ids) for ids, _ in items)
    for ids, target in items:
        assert ids[1:-1].tolist() == tokenizer(texts[target])


def test_training_and_prediction_build_the_same_inputs(
    texts: list[str], tokenizer: WordpieceTokenizer
) -> None:
    train = FinetuneDataset(texts, [0] * len(texts), tokenizer, maxlen=5)
    predict = InferenceDataset(texts, 5, tokenizer)
    for i, text in enumerate(texts):
        expected = [tokenizer.cls_token_id, *tokenizer(text)[:5], tokenizer.sep_token_id]
        assert train[i][0].tolist() == predict[i].tolist() == expected


def test_as_many_targets_as_texts(tokenizer: WordpieceTokenizer) -> None:
    with pytest.raises(ValueError, match="2 texts but 1 targets"):
        FinetuneDataset(["а", "б"], [0], tokenizer, 5)


LENGTHS = torch.randint(1, 20, (500,), generator=torch.Generator().manual_seed(0))


def test_batches_are_alike_in_length_in_random_order_and_other_each_epoch() -> None:
    sampler = LengthGroupedBatchSampler(LENGTHS, batch_size=32, seed=1)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == len(first) == 16
    for epoch in (first, second):
        assert sorted(i for batch in epoch for i in batch) == list(range(500))
        spans = [LENGTHS[batch].max() - LENGTHS[batch].min() for batch in epoch]
        assert max(spans) <= 5
        means = torch.tensor([LENGTHS[batch].float().mean() for batch in epoch])
        order = torch.corrcoef(torch.stack([means, torch.arange(16.0)]))[0, 1]
        assert abs(order) < 0.8  # a sorted corpus would give 1
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert first == list(LengthGroupedBatchSampler(LENGTHS, batch_size=32, seed=1))


def test_batches_have_equally_many_tokens() -> None:
    tokens = [int((LENGTHS[batch] + 2).sum()) for batch in LengthGroupedBatchSampler(LENGTHS, batch_size=32)]
    assert max(tokens) - min(tokens) <= 2 * (19 + 2)  # one text more or less at either end


def test_unshuffled_batches_go_from_short_to_long_and_never_change() -> None:
    sampler = LengthGroupedBatchSampler(LENGTHS, batch_size=32, shuffle=False)
    order = [i for batch in sampler for i in batch]
    assert order == torch.argsort(LENGTHS, stable=True).tolist()
    assert list(sampler) == list(sampler)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 50))
def test_no_text_is_lost_whatever_the_lengths(lengths: list[int], batch_size: int) -> None:
    sampler = LengthGroupedBatchSampler(torch.tensor(lengths), batch_size)
    batches = list(sampler)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)
    assert len(batches) == len(sampler) == math.ceil(len(lengths) / batch_size)
    padded = [len(batch) * (max(lengths[i] for i in batch) + 2) for batch in batches]
    mean = (sum(lengths) + 2 * len(lengths)) / len(batches)
    assert largest_batch_ratio(torch.tensor(lengths), len(batches)) == pytest.approx(max(padded) / mean)


@given(
    lengths=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    num_labelled=st.integers(1, 40),
    num_drawn=st.integers(0, 40),
    batch_size=st.integers(1, 50),
    cut=st.integers(0, 100),
)
def test_each_epoch_has_all_labelled_texts_and_the_next_of_the_others(
    lengths: list[int], num_labelled: int, num_drawn: int, batch_size: int, cut: int
) -> None:
    num_labelled = min(num_labelled, len(lengths))
    num_unlabelled = len(lengths) - num_labelled
    num_drawn = min(num_drawn, num_unlabelled)

    def sampler(seed: int) -> MixtureBatchSampler:
        return MixtureBatchSampler(torch.tensor(lengths), num_labelled, num_drawn, batch_size, seed)

    whole, states, epochs = sampler(0), [], []
    for _ in range(4):
        states.append(whole.state)
        epochs.append(list(whole))
    times = Counter(text for epoch in epochs for batch in epoch for text in batch)
    assert [times[text] for text in range(num_labelled)] == [4] * num_labelled
    assert sum(times.values()) == 4 * (num_labelled + num_drawn)
    seen = [times[text] for text in range(num_labelled, len(lengths))]
    assert not seen or max(seen) - min(seen) <= 1
    for epoch in epochs:
        assert len(epoch) == len(whole) == math.ceil(num_labelled / batch_size)
        assert all(epoch)

    epoch, batch = cut % 4, cut % (len(whole) + 1)
    resumed = sampler(1)
    resumed.resume(states[epoch], batch)
    assert list(resumed) == epochs[epoch][batch:]
    assert [list(resumed) for _ in epochs[epoch + 1 :]] == epochs[epoch + 1 :]


def test_an_index_counts_from_either_end_and_not_beyond(
    texts: list[str], tokenizer: WordpieceTokenizer
) -> None:
    dataset = PretrainDataset(texts, tokenizer, minlen=2, maxlen=100, permute_prob=0)
    last = len(dataset) - 1
    assert sum(dataset[-1][0] != tokenizer.pad_token_id) == dataset.lengths[last] + 2
    for index in (last + 1, -last - 2):
        with pytest.raises(IndexError):
            dataset[index]


def test_nothing_is_cut_where_no_length_is_given(texts: list[str], tokenizer: WordpieceTokenizer) -> None:
    dataset = InferenceDataset(texts, None, tokenizer)
    assert [len(ids) for ids in dataset] == [len(tokenizer(text)) + 2 for text in texts]


@pytest.mark.parametrize("unlabelled", [0, 30])
def test_batches_are_those_of_the_seed(unlabelled: int) -> None:
    lengths = torch.arange(60) % 7

    def batches(seed: int) -> list[list[int]]:
        if unlabelled:
            return list(MixtureBatchSampler(lengths, 60 - unlabelled, 10, 8, seed))
        return list(LengthGroupedBatchSampler(lengths, 8, seed))

    assert batches(1) == batches(1) != batches(0)

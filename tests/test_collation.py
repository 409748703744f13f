from pathlib import Path

import pytest
import torch

from receiptbert import Collator, PretrainDataset, WordpieceTokenizer, collate_fn


@pytest.fixture
def dataset(texts: list[str], tokenizer: WordpieceTokenizer) -> PretrainDataset:
    # Unknown words, so that [UNK] occurs in the middle of texts.
    return PretrainDataset([f"{text} щ" for text in texts], tokenizer, minlen=1, maxlen=100)


def masked(dataset: PretrainDataset, collator: Collator, times: int) -> tuple[torch.Tensor, ...]:
    """(true ids, corrupted ids, labels) of ``times`` batches, flat, padding included."""
    parts = []
    for seed in range(times):
        torch.manual_seed(seed)
        pairs = dataset.__getitems__(range(len(dataset)))
        input_ids, _, labels, _ = collator(pairs)
        parts.append(torch.stack([pairs.input_ids, input_ids, labels]).flatten(1))
    true_ids, input_ids, labels = torch.cat(parts, dim=1)
    return true_ids, input_ids, labels


def test_masking_statistics(dataset: PretrainDataset) -> None:
    tokenizer = dataset.tokenizer
    true_ids, input_ids, labels = masked(dataset, Collator(tokenizer), times=40)
    ordinary = ~torch.isin(true_ids, torch.tensor(tokenizer.special_token_ids))
    target = labels != -100
    share = target[ordinary].float().mean().item()
    assert share == pytest.approx(0.15, abs=0.01)

    n = int(target.sum())
    is_mask = input_ids[target] == tokenizer.mask_token_id
    is_same = input_ids[target] == true_ids[target]
    tolerance = 4 * (0.25 / n) ** 0.5  # four deviations at the most
    assert is_mask.float().mean().item() == pytest.approx(0.8, abs=tolerance)
    # A random token is the true one now and then.
    assert is_same.float().mean().item() == pytest.approx(0.1 + 0.1 / 55, abs=tolerance)


def test_whole_words_are_masked_or_spared(dataset: PretrainDataset) -> None:
    tokenizer = dataset.tokenizer
    continues = torch.tensor([token.startswith("##") for token in tokenizer.tokens])
    shares = {}
    for whole_words in (False, True):
        collator = Collator(tokenizer, mask_prob=0.3, whole_words=whole_words)
        true_ids, _, labels = masked(dataset, collator, times=40)
        target, special = labels != -100, torch.isin(true_ids, torch.tensor(tokenizer.special_token_ids))
        # A piece and the one before it, in the same word; a segment may begin within a word, after [SEP].
        pairs = continues[true_ids][1:] & ~special[:-1]
        shares[whole_words] = (target[1:] == target[:-1])[pairs].float().mean().item()
        assert target[~special].float().mean().item() == pytest.approx(0.3, abs=0.01)
        # The next word has a fate of its own.
        words = ~continues[true_ids][1:] & ~special[1:] & ~special[:-1]
        both = (target[1:] & target[:-1])[words].float().mean().item()
        assert both == pytest.approx(0.3**2, abs=0.015)
    assert shares[True] == 1
    assert shares[False] == pytest.approx(0.3**2 + 0.7**2, abs=0.02)


def test_special_tokens_are_never_masked_nor_drawn(dataset: PretrainDataset) -> None:
    tokenizer = dataset.tokenizer
    collator = Collator(tokenizer, mask_prob=1.0, random_prob=1.0, keep_unchanged_prob=0.0)
    true_ids, input_ids, labels = masked(dataset, collator, times=20)
    special = torch.tensor(tokenizer.special_token_ids)
    is_special = torch.isin(true_ids, special)
    for name in ("pad", "cls", "sep", "unk"):
        assert (true_ids == getattr(tokenizer, f"{name}_token_id")).any(), name
    assert torch.equal(labels != -100, ~is_special)
    assert torch.equal(input_ids[is_special], true_ids[is_special])
    drawn = input_ids[~is_special]
    assert not torch.isin(drawn, special).any()
    assert set(drawn.tolist()) == set(range(5, tokenizer.vocab_size))


def test_a_list_of_items_gives_what_the_batch_gives(dataset: PretrainDataset) -> None:
    collator = Collator(dataset.tokenizer, mask_prob=0.5)
    pairs = dataset.__getitems__([1, 5, 7])
    items = []
    for ids, types, permuted in zip(*pairs, strict=True):
        length = int((ids != dataset.tokenizer.pad_token_id).sum())
        items.append((ids[:length], types[:length], bool(permuted)))
    results = []
    for batch in (pairs, items):
        torch.manual_seed(0)
        results.append(collator(batch))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("letters_only", [False, True])
@pytest.mark.parametrize("whole_words", [False, True])
def test_the_share_of_targets_is_that_of_many_batches(
    tmp_path: Path, whole_words: bool, letters_only: bool
) -> None:
    lines = ["сок 93", "масло сок 1 93", "93 масло"] * 9
    tokenizer = WordpieceTokenizer.from_corpus(lines, tmp_path / "in.txt", tmp_path, "test", vocab_size=60)
    dataset = PretrainDataset([f"{line} щ" for line in lines], tokenizer, minlen=1, maxlen=99)  # щ is unknown
    collator = Collator(tokenizer, mask_prob=0.3, whole_words=whole_words, letters_only=letters_only)
    true_ids, _, labels = masked(dataset, collator, times=100)
    marks = [tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    of_texts = ~torch.isin(true_ids, torch.tensor(marks))
    share = (labels[of_texts] != -100).float().mean().item()
    assert share == pytest.approx(collator.target_share(true_ids[of_texts].numpy()), rel=0.05)
    assert share < (0.2 if letters_only else 0.3)


def test_finetuning_batches_are_padded() -> None:
    batch = [(torch.tensor([2, 7, 3]), 4), (torch.tensor([2, 3]), 1)]
    input_ids, targets = collate_fn(batch, pad_idx=9)
    assert input_ids.tolist() == [[2, 7, 3], [2, 3, 9]]
    assert targets.tolist() == [4, 1]

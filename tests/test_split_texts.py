"""The raw texts beside the token stores."""

from pathlib import Path

import numpy as np

from receiptbert.split_texts import draw_texts, load_texts, save_texts


def test_texts_come_back_as_they_are(tmp_path: Path) -> None:
    texts = ["", "чай", 'a "b"\\', "две\r\nстроки\r", "\u2028\x85\x1c", "[1]"]
    save_texts(tmp_path, "train", texts)
    assert load_texts(tmp_path, "train", len(texts)) == texts
    assert sorted(draw_texts(tmp_path, "train", 10, seed=0)) == sorted(texts)


def test_drawn_texts_are_the_first_of_a_random_order(tmp_path: Path) -> None:
    texts = [str(i) for i in range(1000)]
    save_texts(tmp_path, "unsupervised", texts)
    for seed in (0, 1):
        order = [str(i) for i in np.random.default_rng(seed).permutation(1000)]
        assert draw_texts(tmp_path, "unsupervised", 240, seed) == order[:240]
        assert draw_texts(tmp_path, "unsupervised", 2000, seed) == order
    save_texts(tmp_path, "unsupervised", [])
    assert draw_texts(tmp_path, "unsupervised", 3, seed=0) == []

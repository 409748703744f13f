"""Stage 3: tokenize every text once, and derive how long the model's inputs should be."""

import numpy as np

import pipeline
from receiptbert.corpus import label_list, label_names, read_categories, read_corpus, strings
from receiptbert.corpus_facts import Classes, longest_used, save_longest
from receiptbert.files import atomic
from receiptbert.params import Params
from receiptbert.reports import write_csv, write_json
from receiptbert.split_texts import save_texts
from receiptbert.splits import LABEL, LABELLED, SPLIT, SPLITS, TEXT, UNSUPERVISED
from receiptbert.token_store import TokenStore, store_path
from receiptbert.tokenization import WordpieceTokenizer


def pretokenize(params: Params) -> str:
    corpus = read_corpus(pipeline.CORPUS)
    tokenizer = WordpieceTokenizer.from_pretrained(pipeline.TOKENIZER)
    labels = label_list(corpus)
    class_ids = {label: number for number, label in enumerate(labels)}

    stores = {}
    for split in SPLITS:
        rows = corpus[corpus[SPLIT] == split]
        stores[split] = TokenStore.from_texts(
            strings(rows[TEXT]),
            tokenizer,
            rows[LABEL].map(class_ids) if split in LABELLED else None,
            progress=f"tokenizing {split}",
        )
    # The texts of a batch, similar in length, then lie together in memory.
    stores[UNSUPERVISED] = stores[UNSUPERVISED].sorted_by_length()
    lengths = stores[UNSUPERVISED].lengths

    longest = longest_used(lengths, params.pretokenize.max_length_quantile)
    classes = Classes(labels=labels, names=label_names(labels, read_categories(pipeline.CATEGORIES)))
    with atomic(pipeline.TOKENIZED) as folder:
        folder.mkdir()
        for split, store in stores.items():
            store.save(store_path(folder, split))
            save_texts(folder, split, strings(corpus.loc[corpus[SPLIT] == split, TEXT]))
        save_longest(folder / pipeline.LENGTHS.name, longest)
        classes.save(folder / pipeline.CLASSES.name)
    report(stores, longest, tokenizer)
    return f"{len(lengths):,} unsupervised texts; of each, up to {longest} tokens are used"


def report(stores: dict[str, TokenStore], longest: int, tokenizer: WordpieceTokenizer) -> None:
    """Write ``metrics/tokens.json`` and the length histogram."""
    lengths = stores[UNSUPERVISED].lengths
    counts = {
        "vocab_size": tokenizer.vocab_size,
        "max_length": longest,
        "tokens_per_text": {split: float(store.lengths.mean()) for split, store in stores.items()},
        "unknown_tokens": {
            split: float((store.ids == tokenizer.unk_token_id).sum() / max(len(store.ids), 1))
            for split, store in stores.items()
        },
        "texts_above_max_length": {
            split: int((store.lengths > longest).sum()) for split, store in stores.items()
        },
    }
    write_json(pipeline.METRICS / "tokens.json", counts)
    histogram = enumerate(np.bincount(lengths).tolist())
    write_csv(pipeline.PLOTS / "lengths.csv", ["tokens", "texts"], histogram)


if __name__ == "__main__":
    pipeline.run_stage(pretokenize)

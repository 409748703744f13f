import receiptbert

NAMES = [
    "Bert",
    "BertEmbeddings",
    "BertFinetuneModel",
    "BertLayer",
    "BertModel",
    "Classifier",
    "ClassifierHead",
    "Collator",
    "FeedForward",
    "FinetuneDataset",
    "FinetuneTrainer",
    "InferenceDataset",
    "MlmHead",
    "MultiHeadSelfAttention",
    "PretrainDataset",
    "Scheduler",
    "Trainer",
    "WordpieceTokenizer",
    "collate_fn",
    "get_optimizer",
    "init_layer",
    "load_weights",
    "make_scorer",
]


def test_every_public_name_is_importable() -> None:
    assert receiptbert.__all__ == dir(receiptbert) == NAMES
    for name in NAMES:
        assert getattr(receiptbert, name).__name__ == name
        assert getattr(receiptbert, name).__doc__

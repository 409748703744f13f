"""Names in the corpus: the columns of its CSV, and the splits of its rows."""

TEXT, LABEL, SPLIT = COLUMNS = ["text", "label", "split"]
TRAIN, VAL, TEST, UNSUPERVISED = SPLITS = ["train", "val", "test", "unsupervised"]
LABELLED = [TRAIN, VAL, TEST]

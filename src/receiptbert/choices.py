"""Allowed values and defaults of settings, also for code that does without torch, slow to import."""

PRECISIONS = ["auto", "fp32", "bf16", "fp16"]  # of matrix products
ACT_FUNCS = ["gelu", "relu"]
AMP_BACKENDS = ["torch", "apex"]
PREDICTION_BATCH_SIZE = 128  # texts of average length: enough to fill the processor, few enough for its cache

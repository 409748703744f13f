"""What settings may be and are by default, for those too that do without torch, which is slow to import."""

PRECISIONS = ["auto", "fp32", "bf16", "fp16"]  # of matrix products
ACT_FUNCS = ["gelu", "relu"]
AMP_BACKENDS = ["torch", "apex"]
PREDICTION_BATCH_SIZE = 128  # texts of average length: enough to fill the processor, few enough for its cache

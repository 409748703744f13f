"""Plans of trainings of a small model: pretraining and finetuning."""

from dataclasses import replace

from receiptbert.encoder import BertShape
from receiptbert.plan import Plan

B, S, C, MASK_PROB = 64, 16, 7, 0.3
SHAPE = BertShape(
    vocab_size=500,
    max_seqlen=S,
    hidden_size=128,
    num_hidden_layers=4,
    intermediate_size=384,  # not 4d, so that nothing is mixed up
    num_attention_heads=2,
    act_func="gelu",
    eps=1e-3,
)
PLAN = Plan(
    shape=SHAPE,
    num_classes=None,
    trained_tokens=SHAPE.vocab_size,
    soft_targets=0,
    processes=1,
    processes_here=1,
    texts=B,
    length=float(S),
    longest=S,
    largest_batch_ratio=1.0,
    target_share=MASK_PROB,
    dropout=0.0,
    precision="fp32",
    on_cpu=True,
    cuda_graphs=False,
    activation_checkpointing=False,
    steps=1_000,
)
FINETUNING = replace(PLAN, num_classes=C, target_share=0.0)

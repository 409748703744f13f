"""The assignment read literally: what a student's first working version does, as a yardstick for speed.

It trains the same model, but makes pairs text by text in Python, computes logits at every token, and always
adds a full attention mask to the attention scores (the assignment replaces the scores of padding, to the
same effect). The collator is ours, which is what the assignment asks for.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from receiptbert.collation import Collator
from receiptbert.layers import MultiHeadSelfAttention
from receiptbert.modeling import BertModel, dropout_everywhere
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.tokenization import WordpieceTokenizer
from setting import Setting, Stopwatch, Task, Timed, new_seed


def pretrain(setting: Setting, task: Task) -> float:
    """The assignment read literally for a while; tokens per second."""
    texts = [setting.unlabelled[i].tolist() for i in range(len(setting.unlabelled))]
    lengths = torch.from_numpy(setting.unlabelled.lengths).clamp(max=setting.shape.maxlen)
    loader = DataLoader(
        LiteralPairs(texts, setting.tokenizer, setting.shape.maxlen),
        batch_sampler=LengthGroupedBatchSampler(lengths, task.batch_size, new_seed()),
        collate_fn=Collator(setting.tokenizer, mask_prob=setting.params.pretrain.mask_prob),
    )
    model = read_literally(
        BertModel(**setting.shape.kwargs(), **dropout_everywhere(setting.params.pretrain.dropout))
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    model.to(setting.device).train()
    watch = Stopwatch(setting, task)
    for batch in Timed(loader, watch):
        input_ids, token_type_ids, labels, permuted = (tensor.to(setting.device) for tensor in batch)
        mask = (input_ids != setting.tokenizer.pad_token_id).long()
        loss, _ = model(input_ids, mask, labels, permuted, token_type_ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), setting.params.pretrain.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as if to log it
    return watch.rate()


class LiteralPairs(Dataset[tuple[Tensor, Tensor, bool]]):
    """Texts as pairs of segments, one text at a time."""

    def __init__(self, texts: Sequence[Sequence[int]], tokenizer: WordpieceTokenizer, maxlen: int) -> None:
        self._texts = texts
        self._cls, self._sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._maxlen = maxlen

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, bool]:
        ids = [int(token) for token in self._texts[index]]
        if len(ids) > self._maxlen:
            start = random.randrange(len(ids) - self._maxlen + 1)
            ids = ids[start : start + self._maxlen]
        # Of an odd number of tokens, the place of [SEP] gives the order away; `PretrainDataset` avoids that.
        left, right = ids[: len(ids) // 2], ids[len(ids) // 2 :]
        permuted = random.random() < 0.5
        if permuted:
            left, right = right, left
        segments = [0] * (len(left) + 2) + [1] * len(right)
        return torch.tensor([self._cls, *left, self._sep, *right]), torch.tensor(segments), permuted


def read_literally(model: BertModel) -> BertModel:
    """Make ``model`` compute everything at every position; its parameters stay."""
    for module in model.modules():
        if isinstance(module, MultiHeadSelfAttention):
            module.__class__ = _LiteralAttention
    model.__class__ = _LiteralBertModel
    return model


class _LiteralBertModel(BertModel):
    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        permuted: Tensor,
        token_type_ids: Tensor | None = None,
        _max_targets: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        hidden_states = self._backbone(x, attention_mask, token_type_ids)  # (B, S, d)
        logits = self._mlm_head.logits(hidden_states)  # (B, S, V)
        mlm_loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        sop_loss = self._classifier_head(hidden_states, permuted)
        return (mlm_loss + sop_loss) / 2, {"MLM": mlm_loss, "SOP": sop_loss}


class _LiteralAttention(MultiHeadSelfAttention):
    def forward(
        self,
        embeddings: Tensor,
        attention_mask: Tensor | None = None,
        _flat_positions: Tensor | None = None,
        _only_cls: bool = False,
    ) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self._num_heads, self._size_per_head)).transpose(1, 2)  # (B, h, S, d/h)
            for part in self._qkv(embeddings).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(self._size_per_head)  # (B, h, S, S)
        if attention_mask is not None:
            mask = attention_mask.repeat_interleave(self._num_heads, dim=0).view_as(scores)
            scores = scores + (1.0 - mask.to(scores.dtype)) * -100000.0
        probs = F.dropout(scores.softmax(dim=-1), self._attention_dropout_prob, self.training)
        output = self._output((probs @ value).transpose(1, 2).flatten(2))
        return self._layer_norm(embeddings + self._dropout(output))

"""Pretrain an encoder on unlabelled texts, as the settings say."""

import math

import torch

from receiptbert.amp import check_amp_backend
from receiptbert.checkpoints import Checkpoints
from receiptbert.collation import Collator
from receiptbert.cuda_graphs import can_capture
from receiptbert.datasets import PretrainDataset
from receiptbert.devices import free_memory
from receiptbert.distributed import num_processes, num_processes_here
from receiptbert.encoder import BertShape
from receiptbert.errors import UserError
from receiptbert.flat_texts import SPECIAL_TOKENS_PER_TEXT
from receiptbert.loading import Batches, make_loader
from receiptbert.modeling import BertModel, dropout_everywhere
from receiptbert.optimization import Scheduler, get_optimizer, num_optimizer_steps
from receiptbert.params import ModelParams, Params
from receiptbert.plan import Plan, announce, require_memory
from receiptbert.precision import choose_precision
from receiptbert.sampling import LengthGroupedBatchSampler, largest_batch_ratio
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer
from receiptbert.trainer import Trainer

EPS = 1e-3  # of the layer norms, as in the assignment; BERT has 1e-12
AT_LEAST_ONE = 0.5  # probability that a text has a target


class Pretraining:
    """Training on some texts, scored on others that are held out.

    Args:
        params: all settings; those of pretrain, model and runtime are used.
        texts: unsupervised ones; those that are too short are left out.
        tokenizer: that of the texts.
        maxlen: how many tokens of a longer text are used.
        device: where to train.

    Raises:
        UserError: too few texts, none with a token to predict, or settings that this device does not support.
    """

    def __init__(
        self,
        params: Params,
        texts: TokenStore,
        tokenizer: WordpieceTokenizer,
        maxlen: int,
        device: torch.device,
    ) -> None:
        p, runtime = params.pretrain, params.runtime
        check_amp_backend(runtime.amp_backend, p.precision, device, "params.yaml: runtime.amp_backend")
        if runtime.amp_backend == "apex" and p.num_accum_steps > 1 and num_processes() > 1:
            # Apex keeps the sums of earlier batches from the last one's backward pass, which averages.
            raise UserError(
                "params.yaml: runtime.amp_backend = apex, which cannot accumulate batches in several "
                "processes; set torch, or pretrain.num_accum_steps to 1"
            )
        self.precision = choose_precision(p.precision, device, "params.yaml: pretrain.precision")
        self._params = params
        self._tokenizer = tokenizer
        self._maxlen = maxlen
        self._device = device
        self._collator = Collator(
            tokenizer,
            mask_prob=p.mask_prob,
            random_prob=p.random_prob,
            keep_unchanged_prob=p.keep_unchanged_prob,
            whole_words=p.whole_words,
            letters_only=p.letters_only,
        )
        self.min_length = min_text_length(p.mask_prob)
        """Tokens of a text that is worth pretraining on."""
        is_long_enough = texts.lengths >= self.min_length
        self.num_too_short = int((~is_long_enough).sum())
        """Texts that are left out."""
        texts = texts.take(is_long_enough)
        self._target_share = self._collator.target_share(texts.ids)
        if len(texts) and not self._target_share:
            raise UserError(
                "no unsupervised text has a letter, and tokens without letters are never predicted; set "
                "pretrain.letters_only to false"
            )
        held_out = texts.held_out(p.holdout)
        self._num_texts = int((~held_out).sum())  # to be trained on
        self._loader = self._make_loader(texts.take(~held_out))
        self._held_out_loader = self._make_loader(texts.take(held_out))
        in_all_epochs = num_optimizer_steps(len(self._loader), p.epochs, p.num_accum_steps)
        self.steps = min(in_all_epochs, p.max_steps)
        self._cuda_graphs = can_capture(device, runtime.activation_checkpointing, runtime.amp_backend)
        self._shape = model_shape(params.model, tokenizer.vocab_size, maxlen)
        # Kept instead of the texts, of which the datasets have copies.
        shown = texts.lengths.clip(max=maxlen)
        self._mean_length = float((shown + SPECIAL_TOKENS_PER_TEXT).mean())
        self._largest_batch_ratio = largest_batch_ratio(torch.from_numpy(shown[~held_out]), len(self._loader))

    def train(self, logdir: str, checkpoints: Checkpoints) -> tuple[BertModel, Trainer]:
        """Train a model from random weights, or resume from a checkpoint.

        Raises:
            UserError, Interrupted: see ``Trainer.train``.
        """
        p, runtime = self._params.pretrain, self._params.runtime
        model = self._make_model()
        optimizer = get_optimizer(model, weight_decay=p.weight_decay)
        trainer = Trainer(
            model,
            optimizer,
            Scheduler(optimizer, 0.0, p.lr, p.final_lr, int(p.warmup * self.steps), self.steps),
            self._tokenizer.pad_token_id,
            self._device,
            num_accum_steps=p.num_accum_steps,
            logdir=logdir,
            max_grad_norm=p.max_grad_norm,
            precision=self.precision,
            amp_backend=runtime.amp_backend,
            cuda_graphs=self._cuda_graphs,
            checkpoints=checkpoints,
        )
        trainer.train(self._loader, p.epochs, max_steps=self.steps)
        return model, trainer

    def evaluate(self, trainer: Trainer) -> dict[str, float]:
        """The scores of ``trainer`` on the held-out texts; see ``Trainer.evaluate``.

        Raises:
            UserError: the loss is not finite: the last step has spoilt the model.
        """
        torch.manual_seed(self._params.pretrain.seed)  # the same masks and swaps whatever came before
        scores = trainer.evaluate(self._held_out_loader)
        loss = scores.get("mlm_loss", 0.0)  # few short texts may have no target
        if not math.isfinite(loss):
            raise UserError(f"the MLM loss of the held-out texts is {loss}; lower pretrain.lr")
        return scores

    def require_memory(self) -> None:
        """Say what the training will take; if there is no memory to record passes, none will be.

        Raises:
            UserError: there is no room for it; names what would fit.
        """
        p, free = self._params.pretrain, free_memory(self._device)
        announce(self.plan, free)
        batch_size = min(p.batch_size, self._num_texts)  # no batch has more
        self._cuda_graphs = require_memory(self.plan, free, "pretrain", batch_size, p.num_accum_steps)

    def _make_loader(self, texts: TokenStore) -> Batches:
        p = self._params.pretrain
        dataset = PretrainDataset(
            texts, self._tokenizer, self.min_length, self._maxlen, p.permute_prob, device=self._device
        )
        if not len(dataset):
            raise UserError(
                f"too few unsupervised texts have {self.min_length} tokens or more: "
                "pretraining needs at least ten, at least one of which occurs only once; add some, or raise "
                "pretrain.mask_prob, from which that length follows"
            )
        batches = LengthGroupedBatchSampler(dataset.shown_lengths, p.batch_size, p.seed)
        return make_loader(dataset, batches, self._collator)

    def _make_model(self) -> BertModel:
        p = self._params.pretrain
        torch.manual_seed(p.seed)
        model = BertModel(
            **self._shape.kwargs(),
            **dropout_everywhere(p.dropout),
            sop_weight=p.sop_weight,
        )
        model.backbone.activation_checkpointing = self._params.runtime.activation_checkpointing
        return model

    @property
    def plan(self) -> Plan:
        """What the training will take."""
        p, runtime = self._params.pretrain, self._params.runtime
        return Plan(
            shape=self._shape,
            num_classes=None,
            trained_tokens=self._shape.vocab_size,
            soft_targets=0,
            texts=math.ceil(self._num_texts / len(self._loader)),
            processes=num_processes(),
            processes_here=num_processes_here(),
            length=self._mean_length,
            longest=self._shape.max_seqlen,
            largest_batch_ratio=self._largest_batch_ratio,
            target_share=self._target_share,
            dropout=p.dropout,
            precision=self.precision,
            on_cpu=self._device.type == "cpu",
            cuda_graphs=self._cuda_graphs,
            activation_checkpointing=runtime.activation_checkpointing,
            steps=self.steps,
        )


def model_shape(p: ModelParams, vocab_size: int, maxlen: int) -> BertShape:
    """The shape of a model for texts of up to ``maxlen`` tokens."""
    return BertShape(
        **p.kwargs(), vocab_size=vocab_size, max_seqlen=maxlen + SPECIAL_TOKENS_PER_TEXT, eps=EPS
    )


def min_text_length(mask_prob: float) -> int:
    """The shortest text in which at least one token is a target with probability ``AT_LEAST_ONE``.

    For targets drawn token by token. With ``pretrain.whole_words`` words are drawn; a text has fewer of
    them, so it more often has no target.

    The assignment's question: the least n with 1 - (1 - mask_prob)^n >= AT_LEAST_ONE; 5 for 0.15.
    """
    return math.ceil(math.log1p(-AT_LEAST_ONE) / math.log1p(-mask_prob))

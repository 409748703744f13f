"""Stage 4: pretrain BERT on the unsupervised texts, by masked tokens and sentence order."""

import torch
from torch.utils.data import DataLoader

import pipeline
from receiptbert.amp import check_amp_backend
from receiptbert.checkpoints import Checkpoints, conditions
from receiptbert.collation import Collator
from receiptbert.corpus_facts import CorpusFacts
from receiptbert.datasets import NUM_MARKS, PretrainDataset
from receiptbert.devices import choose_device, free_memory
from receiptbert.distributed import is_leader, num_processes
from receiptbert.encoder import BertShape
from receiptbert.errors import UserError
from receiptbert.files import whole
from receiptbert.hf_format import save_pretrained
from receiptbert.launching import in_processes, one_voice
from receiptbert.modeling import BertModel
from receiptbert.optimization import Scheduler, get_optimizer
from receiptbert.params import Params, PretrainParams
from receiptbert.plan import Plan, announce, require_memory
from receiptbert.precision import choose_precision
from receiptbert.reports import mean_curve, write_csv, write_json
from receiptbert.sampling import LengthGroupedBatchSampler
from receiptbert.token_store import TokenStore
from receiptbert.tokenization import WordpieceTokenizer
from receiptbert.training import Trainer, num_optimizer_steps

EPS = 1e-3  # of the layer norms, as in the assignment


@in_processes
def pretrain(params: Params) -> None:
    p = params.pretrain
    device = choose_device(params.runtime.device, params.runtime.deterministic)
    check_amp_backend(params.runtime.amp_backend, p.precision, device, "params.yaml: runtime.amp_backend")
    precision = choose_precision(p.precision, device, "params.yaml: pretrain.precision")
    facts = CorpusFacts.load(pipeline.TOKENIZED / "corpus.json")
    tokenizer = WordpieceTokenizer.from_pretrained(pipeline.TOKENIZER)
    unsupervised = pipeline.TOKENIZED / "unsupervised.safetensors"
    store = TokenStore.load(unsupervised, tokenizer)
    store = store.take(store.lengths >= facts.min_length)
    held_out = store.held_out(p.holdout)
    loader = make_loader(store.take(~held_out), tokenizer, facts, p, device)
    held_out_loader = make_loader(store.take(held_out), tokenizer, facts, p, device)

    steps = min(num_optimizer_steps(len(loader), p.epochs, p.num_accum_steps), p.max_steps)
    shape = BertShape(
        **params.model.kwargs(),
        vocab_size=tokenizer.vocab_size,
        max_seqlen=facts.max_length + NUM_MARKS,
        eps=EPS,
    )
    plan = make_plan(params, shape, store, steps, precision, device)
    free = free_memory(device)
    announce(plan, free)
    require_memory(plan, free, "pretrain", p.batch_size, p.num_accum_steps)

    torch.manual_seed(p.seed)
    model = BertModel(
        **shape.kwargs(),
        input_dropout_prob=p.dropout,
        hidden_dropout_prob=p.dropout,
        attention_probs_dropout_prob=p.dropout,
        sop_weight=p.sop_weight,
    )
    model.checkpoint_activations(params.runtime.activation_checkpointing)
    optimizer = get_optimizer(model, weight_decay=p.weight_decay)
    scheduler = Scheduler(optimizer, 0.0, p.lr, p.final_lr, int(p.warmup * steps), steps)
    with Checkpoints(
        pipeline.CHECKPOINTS / "pretrain",
        [params.model, p],
        [pipeline.TOKENIZED / "corpus.json", unsupervised, pipeline.TOKENIZER],
        params.runtime.checkpoint_seconds,
    ) as checkpoints:
        trainer = Trainer(
            model,
            optimizer,
            scheduler,
            tokenizer.pad_token_id,
            device,
            num_accum_steps=p.num_accum_steps,
            logdir=pipeline.new_run_folder("pretrain"),
            max_grad_norm=p.max_grad_norm,
            precision=precision,
            amp_backend=params.runtime.amp_backend,
            checkpoints=checkpoints,
        )
        trainer.train(loader, p.epochs, max_steps=steps)
        if not is_leader():
            return
        torch.manual_seed(p.seed)  # the same masks and swaps whatever came before
        scores = trainer.evaluate(held_out_loader)
        with whole(pipeline.PRETRAINED) as folder:
            save_pretrained(model, tokenizer, folder)
        counts = {"tokens_seen": trainer.tokens_seen, "steps": steps}
        done_on = conditions(device, precision, params.runtime.amp_backend)
        write_json(pipeline.METRICS / "pretrain.json", scores | counts | trainer.skipped_steps | done_on)
        columns = ["step", "MLM", "SOP"]
        write_csv(pipeline.PLOTS / "pretrain.csv", columns, mean_curve(trainer.history, columns))
        checkpoints.remove()
    print(f"held-out texts: MLM loss {scores['mlm_loss']:.3f}, SOP accuracy {scores['sop_accuracy']:.3f}")


def make_plan(
    params: Params, shape: BertShape, store: TokenStore, steps: int, precision: str, device: torch.device
) -> Plan:
    return Plan(
        shape=shape,
        num_classes=None,
        texts=params.pretrain.batch_size,
        processes=num_processes(),
        length=float((store.lengths + NUM_MARKS).clip(max=shape.max_seqlen).mean()),
        longest=shape.max_seqlen,
        mask_prob=params.pretrain.mask_prob,
        dropout=params.pretrain.dropout,
        mixed=precision != "fp32",
        on_cpu=device.type == "cpu",
        activation_checkpointing=params.runtime.activation_checkpointing,
        steps=steps,
    )


def make_loader(
    store: TokenStore,
    tokenizer: WordpieceTokenizer,
    facts: CorpusFacts,
    p: PretrainParams,
    device: torch.device,
) -> DataLoader[tuple[torch.Tensor, torch.Tensor, bool]]:
    dataset = PretrainDataset(
        store, tokenizer, facts.min_length, facts.max_length, p.permute_prob, device=device
    )
    if not len(dataset):
        raise UserError(
            f"{pipeline.TOKENIZED} has too few unsupervised texts of {facts.min_length} tokens or more: "
            "pretraining needs ten at least, one of them unlike the others"
        )
    lengths = dataset.lengths.clamp(max=facts.max_length)
    return DataLoader(
        dataset,
        batch_sampler=LengthGroupedBatchSampler(lengths, p.batch_size, p.seed),
        collate_fn=Collator(
            tokenizer,
            mask_prob=p.mask_prob,
            random_prob=p.random_prob,
            keep_unchanged_prob=p.keep_unchanged_prob,
            whole_words=p.whole_words,
            letters_only=p.letters_only,
        ),
    )


if __name__ == "__main__":
    pipeline.run_stage(pretrain, one_voice)

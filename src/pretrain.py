"""Stage 4: pretrain BERT on the unsupervised texts, by masked tokens and sentence order."""

import pipeline
from receiptbert.checkpoints import Checkpoints, conditions, training_fingerprint
from receiptbert.corpus_facts import load_longest
from receiptbert.devices import choose_device, keep_freed_memory
from receiptbert.distributed import is_main_process
from receiptbert.files import atomic
from receiptbert.hf_format import load_tokenizer, read_shape, read_weights, save_pretrained
from receiptbert.launching import in_processes, one_voice
from receiptbert.params import Params
from receiptbert.pretraining import Pretraining
from receiptbert.progress import readable, say
from receiptbert.reports import mean_curve, write_csv, write_json
from receiptbert.splits import UNSUPERVISED
from receiptbert.token_store import TokenStore, store_path
from receiptbert.tokenization import WordpieceTokenizer


@in_processes
def pretrain(params: Params) -> str | None:
    runtime = params.runtime
    source = pipeline.start_of_finetuning(params.finetune)
    device = choose_device(runtime.device, runtime.deterministic)
    keep_freed_memory(device, params.pretrain.precision)
    if not params.finetune.of_our_shape:  # else finetune would refuse it after all of pretraining
        load_tokenizer(source, read_shape(source))
        read_weights(source)
    store = store_path(pipeline.TOKENIZED, UNSUPERVISED)
    tokenizer = WordpieceTokenizer.from_pretrained(pipeline.TOKENIZER)
    pretraining = Pretraining(
        params,
        TokenStore.load(store, tokenizer),  # unnamed, so that it is freed once copied
        tokenizer,
        load_longest(pipeline.LENGTHS),
        device,
    )
    if number := pretraining.num_too_short:
        say(f"{number:,} texts of less than {pretraining.min_length} tokens are left out")
    pretraining.require_memory()
    fingerprint = training_fingerprint(
        [params.model, params.pretrain], [pipeline.LENGTHS, store, pipeline.TOKENIZER]
    )
    with Checkpoints(
        pipeline.CHECKPOINTS / "pretrain", fingerprint, runtime.checkpoint_seconds
    ) as checkpoints:
        model, trainer = pretraining.train(pipeline.new_run_folder("pretrain"), checkpoints)
        if not is_main_process():
            return None
        scores = pretraining.evaluate(trainer)
        with atomic(pipeline.PRETRAINED) as folder:
            save_pretrained(model, tokenizer, folder)
        counts = {
            "tokens_seen": trainer.tokens_seen,
            "steps": pretraining.steps,
            "min_length": pretraining.min_length,
            "texts_below_min_length": pretraining.num_too_short,
        }
        done_on = conditions(device, pretraining.precision, runtime.amp_backend)
        write_json(pipeline.METRICS / "pretrain.json", scores | counts | trainer.skipped_steps | done_on)
        losses = ["MLM", "SOP"]
        write_csv(pipeline.PLOTS / "pretrain.csv", ["step", *losses], mean_curve(trainer.history, losses))
        checkpoints.remove()
    return f"held-out texts: {readable(scores)}"


if __name__ == "__main__":
    pipeline.run_stage(pretrain, one_voice)

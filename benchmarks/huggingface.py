"""What a user would use instead: Hugging Face's Trainer on models of the same shape."""

import tempfile
from itertools import chain
from random import SystemRandom
from typing import Any

from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizerFast,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from setting import Setting, Stopwatch, Task, new_seed


def pretrain(setting: Setting, task: Task, same: bool = False) -> float:
    """Masked language modelling for a while; tokens per second.

    Args:
        same: train in the setting's precision, texts grouped by length; otherwise at the Trainer's defaults.
    """
    model = BertForMaskedLM(_config(setting, setting.params.pretrain.dropout))
    collator = DataCollatorForLanguageModeling(
        _tokenizer(setting), mlm_probability=setting.params.pretrain.mask_prob
    )
    examples = [{"input_ids": ids} for ids in setting.inputs(setting.unlabelled)]
    return _train(setting, task, model, examples, collator, same)


def finetune(setting: Setting, task: Task, same: bool = False) -> float:
    """Classification for a while; tokens per second. ``same`` as in ``pretrain``."""
    config = _config(setting, setting.params.finetune.dropout, num_labels=setting.num_classes)
    collator = DataCollatorWithPadding(_tokenizer(setting))
    examples = [
        {"input_ids": ids, "label": int(label)}
        for ids, label in zip(setting.inputs(setting.train), setting.targets, strict=True)
    ]
    return _train(setting, task, BertForSequenceClassification(config), examples, collator, same)


def _tokenizer(setting: Setting) -> BertTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        setting.tokenizer.save_pretrained(folder)
        return BertTokenizerFast.from_pretrained(folder)


def _config(setting: Setting, dropout: float, **more: Any) -> BertConfig:
    shape = setting.shape
    return BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_seqlen,
        hidden_act=shape.act_func,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **more,
    )


class _InAnyOrder(Trainer):  # type: ignore[misc]
    """The same batches, but not the longest first: a whole epoch has no such order, nor has its rate."""

    def _get_train_sampler(self, *args: Any) -> list[int]:
        return in_any_order(list(super()._get_train_sampler(*args)), self.args.train_batch_size)


def in_any_order(texts: list[int], size: int) -> list[int]:
    """The same batches of ``size`` texts in random order. The last, which may be smaller, stays there: in the
    middle it would shift the borders of all batches behind it."""
    *batches, last = (texts[start : start + size] for start in range(0, len(texts), size))
    SystemRandom().shuffle(batches)
    return [*chain.from_iterable(batches), *last]


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Ends the training when the time is up."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def on_step_end(
        self, _args: TrainingArguments, _state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        control.should_training_stop = self._watch.step()
        return control


def _train(
    setting: Setting,
    task: Task,
    model: PreTrainedModel,
    examples: list[dict[str, Any]],
    collator: Any,
    same: bool,
) -> float:
    as_ours = {
        "train_sampling_strategy": "group_by_length",
        "bf16": setting.precision == "bf16",
        "fp16": setting.precision == "fp16",
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer = _InAnyOrder(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=task.batch_size,
                max_steps=1 << 30,  # the clock ends it
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                seed=new_seed(),
                use_cpu=setting.device.type == "cpu",
                **(as_ours if same else {}),
            ),
            train_dataset=examples,
            data_collator=collator,
        )
        trainer.remove_callback(PrinterCallback)  # which prints a line that nobody asked for
        watch = Stopwatch(setting, task)  # after all that is not training
        model.register_forward_pre_hook(
            lambda _model, _args, kwargs: watch.saw(kwargs["input_ids"]), with_kwargs=True
        )
        trainer.add_callback(_Clock(watch))
        trainer.train()
    return watch.rate()

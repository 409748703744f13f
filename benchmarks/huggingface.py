"""What a user would take instead: Hugging Face's Trainer on models of the same shape."""

import tempfile
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

from setting import Setting, Stopwatch, Task


def pretrain(setting: Setting, task: Task, examples: list[dict[str, Any]], **arguments: Any) -> float:
    """Masked language modelling for a while; tokens per second."""
    model = BertForMaskedLM(_config(setting, setting.params.pretrain.dropout))
    collator = DataCollatorForLanguageModeling(
        _tokenizer(setting), mlm_probability=setting.params.pretrain.mask_prob
    )
    return _train(setting, task, model, examples, collator, arguments)


def finetune(setting: Setting, task: Task, examples: list[dict[str, Any]], **arguments: Any) -> float:
    """Classification for a while; tokens per second."""
    config = _config(setting, setting.params.finetune.dropout, num_labels=setting.num_classes)
    collator = DataCollatorWithPadding(_tokenizer(setting))
    return _train(setting, task, BertForSequenceClassification(config), examples, collator, arguments)


def _tokenizer(setting: Setting) -> BertTokenizerFast:
    with tempfile.TemporaryDirectory() as folder:
        setting.tokenizer.save_pretrained(folder)
        return BertTokenizerFast.from_pretrained(folder)


def _config(setting: Setting, dropout: float, **more: Any) -> BertConfig:
    shape = setting.shape
    return BertConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["hidden_size"],
        num_hidden_layers=shape["num_hidden_layers"],
        num_attention_heads=shape["num_attention_heads"],
        intermediate_size=shape["intermediate_size"],
        max_position_embeddings=shape["max_seqlen"],
        hidden_act=shape["act_func"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **more,
    )


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
    arguments: dict[str, Any],
) -> float:
    watch = Stopwatch(setting, model, task.seconds)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=task.batch_size,
                max_steps=1 << 30,  # the clock ends it
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=setting.device.type == "cpu",
                **arguments,
            ),
            train_dataset=examples,
            data_collator=collator,
            callbacks=[_Clock(watch)],
        )
        trainer.remove_callback(PrinterCallback)  # which prints a line that nobody asked for
        trainer.train()
    return watch.rate()

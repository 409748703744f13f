"""Bad settings, each with the line that a stage must end with.

The tables are read as in test_refusals_of_archives.py.
"""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.conftest import SETTINGS
from tests.projects import refuses, set_params

WHOLE = SETTINGS.read_text()

TRUE_OR_FALSE = "must be true or false"
PARAMS: list[tuple[str, str, str]] = [
    ("data.archive", "7", "data.archive = 7 must be a text"),
    ("data.archive", "''", "data.archive must be the path of a zip"),
    ("data.archive", r'"\0.zip"', "data.archive must be the path of a zip"),
    ("finetune.init", r'"\0"', "finetune.init must be pretrained, scratch, or a checkpoint folder"),
    ("data.archive", r'"\ud800.zip"', "data.archive must be the path of a zip"),

    ("data.train_on_held_out_texts", "'no'", f"data.train_on_held_out_texts = 'no' {TRUE_OR_FALSE}"),
    ("tokenizer.vocab_size", "3", "tokenizer.vocab_size must be between 10 and 1,000,000"),
    ("tokenizer.vocab_size", "30000.0", "tokenizer.vocab_size = 30000.0 must be a whole number"),
    ("tokenizer.vocab_size", "9" * 30, "tokenizer.vocab_size must be below 2,147,483,648"),
    ("tokenizer.min_frequency", "0", "tokenizer.min_frequency must be at least 1"),
    ("pretokenize.max_length_quantile", "0", "pretokenize.max_length_quantile must be above 0 and at most 1"),
    ("model.size", "huge", "model.size = 'huge' must be one of tiny, mini, small, medium, base, large"),
    ("model.size", "auto", "model.size = 'auto' must be one of tiny, mini, small, medium, base, large"),
    ("model.size", "4", "model.size = 4 must be a text"),
    ("model.hidden_size", "atuo", "model.hidden_size = 'atuo' must be a whole number or auto"),
    ("model.hidden_size", "0", "model.hidden_size must be at least 1"),
    ("model.hidden_size", "100", "model.num_attention_heads = auto is hidden_size / 64, and 100 is not a multiple of it; set a number"),
    ("model.num_attention_heads", "3", "model.hidden_size must be a multiple of num_attention_heads (3)"),
    ("model.num_attention_heads", "0", "model.num_attention_heads must be at least 1"),
    ("model.num_hidden_layers", "0", "model.num_hidden_layers must be at least 1"),
    ("model.intermediate_size", "-1", "model.intermediate_size must be at least 1"),
    ("model.act_func", "silu", "model.act_func must be gelu or relu"),
    ("pretrain.seed", "-1", "pretrain.seed must be at least 0"),
    ("pretrain.precision", "fp8", "pretrain.precision must be one of auto, fp32, bf16, fp16"),
    ("pretrain.max_steps", "0", "pretrain.max_steps must be at least 1"),
    ("pretrain.num_accum_steps", "0", "pretrain.num_accum_steps must be at least 1"),
    ("pretrain.weight_decay", "-0.1", "pretrain.weight_decay must be at least 0"),
    ("pretrain.max_grad_norm", "0", "pretrain.max_grad_norm must be above 0"),
    ("pretrain.mask_prob", "1", "pretrain.mask_prob must be at least 0.001 and below 1"),
    ("pretrain.mask_prob", ".nan", "pretrain.mask_prob = nan must be a finite number"),
    ("pretrain.random_prob", "0.95", "pretrain.random_prob must be at most 1 - keep_unchanged_prob (0.9)"),
    ("pretrain.keep_unchanged_prob", "-1", "pretrain.keep_unchanged_prob must be between 0 and 1"),
    ("pretrain.whole_words", "1", f"pretrain.whole_words = 1 {TRUE_OR_FALSE}"),
    ("pretrain.letters_only", "no-one", f"pretrain.letters_only = 'no-one' {TRUE_OR_FALSE}"),
    ("pretrain.permute_prob", "2", "pretrain.permute_prob must be between 0 and 1"),
    ("pretrain.sop_weight", "1.1", "pretrain.sop_weight must be between 0 and 1"),
    ("pretrain.holdout", "0", "pretrain.holdout must be at least 1"),
    ("finetune.lr", "fast", "finetune.lr = 'fast' must be a number or auto"),
    ("finetune.lr", "true", "finetune.lr = True must be a number or auto"),
    ("finetune.lr", "", "finetune.lr = None must be a number or auto"),
    ("finetune.lr", "[1e-4, 2e-4]", "finetune.lr = [0.0001, 0.0002] must be a number or auto"),
    ("finetune.lr", "0", "finetune.lr must be above 0"),
    ("finetune.lr", "0x" + "f" * 5_000, "finetune.lr must be below 2,147,483,648"),
    ("finetune.lr", ".inf", "finetune.lr = inf must be a finite number"),
    ("finetune.final_lr", "auto", "finetune.final_lr = 'auto' must be a number"),
    ("finetune.final_lr", "1", "finetune.final_lr must be between 0 and lr (0.0008)"),
    ("finetune.layer_lr_decay", "0", "finetune.layer_lr_decay must be above 0 and at most 1"),
    ("finetune.layer_lr_decay", "1.1", "finetune.layer_lr_decay must be above 0 and at most 1"),
    ("finetune.epochs", "6.5", "finetune.epochs = 6.5 must be a whole number"),
    ("finetune.epochs", "yes", "finetune.epochs = 'yes' must be a whole number"),
    ("finetune.epochs", "0", "finetune.epochs must be at least 1"),
    ("finetune.min_steps", "-1", "finetune.min_steps must be at least 0"),
    ("finetune.batch_size", "-1", "finetune.batch_size must be at least 1"),
    ("finetune.warmup", "1.0", "finetune.warmup must be a fraction of all steps, at least 0 and below 1"),
    ("finetune.init", "''", "finetune.init must be pretrained, scratch, or a checkpoint folder"),
    ("finetune.teachers", "-1", "finetune.teachers must be at least 0"),
    ("finetune.dropout", "1", "finetune.dropout must be at least 0 and below 1"),
    ("finetune.label_smoothing", "1", "finetune.label_smoothing must be at least 0 and below 1"),
    ("runtime.device", "tpu", "runtime.device must be auto, cpu or cuda"),
    ("runtime.processes", "0", "runtime.processes must be at least 1, or auto"),
    ("runtime.processes", "all", "runtime.processes = 'all' must be a whole number or auto"),
    ("runtime.deterministic", "maybe", "runtime.deterministic = 'maybe' must be true or false"),
    ("runtime.activation_checkpointing", "auto", f"runtime.activation_checkpointing = 'auto' {TRUE_OR_FALSE}"),
    ("runtime.amp_backend", "amp", "runtime.amp_backend must be torch or apex"),
    ("runtime.checkpoint_seconds", "-1", "runtime.checkpoint_seconds must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "expected"), PARAMS)
def test_values_of_params(bare_project: Path, key: str, value: str, expected: str) -> None:
    set_params(bare_project, {key: value})
    refuses("unzip", bare_project, f"params.yaml: {expected}")


def test_every_number_of_params_has_a_range() -> None:
    """A new parameter needs a row above."""
    numbers = {
        f"{section}.{name}"
        for section, values in YAML(typ="safe", pure=True).load(WHOLE).items()
        for name, value in values.items()
        if isinstance(value, float | int) or value == "auto"
    }
    shared = {"seed", "precision", "epochs", "batch_size", "lr", "final_lr", "warmup", "weight_decay"}
    shared |= {"max_grad_norm", "dropout"}  # checked by one function for pretrain and finetune
    tested = {key for key, _, _ in PARAMS}
    tested |= {f"{section}.{name}" for section in ("pretrain", "finetune") for name in shared}
    assert numbers <= tested
    assert shared <= {key.split(".")[1] for key, _, _ in PARAMS}


YAML_FILES: list[tuple[str, str, str]] = [
    (
        "a key misspelled",
        WHOLE.replace("  label_smoothing:", "  label_smoothin:"),
        ": unknown key finetune.label_smoothin; is finetune.label_smoothing meant? known are seed, …",
    ),
    ("a key of another tool", WHOLE + "  x: 1\n", ": unknown key runtime.x; known are device, …"),
    (
        "a section misspelled",
        WHOLE + "\nfinetun:\n  lr: 1\n",
        ": unknown key finetun; is finetune meant? known …",
    ),
    ("a key missing", WHOLE.replace("  init:", "  # init:"), ": missing key finetune.init"),
    ("a section missing", WHOLE.split("finetune:")[0], ": missing key finetune"),
    (
        "a section that is a value",
        WHOLE.split("runtime:")[0] + "runtime: 1\n",
        ": runtime must be a mapping …",
    ),
    ("a section that is empty", WHOLE.split("runtime:")[0] + "runtime:\n", ": runtime must be a mapping …"),
    ("a list", "- 1\n- 2\n", ": the document must be a mapping of names to values"),
    ("no document", "", ": the document must be a mapping of names to values"),
    ("no YAML", "data: [", " is not valid YAML: …"),
    ("a date that is none", "data: 2024-02-30", " is not valid YAML: day is out of range for month"),
    ("a number that is none", "data: !!int abc", " is not valid YAML: …"),
    ("a truth that is none", "data: !!bool abc", " is not valid YAML: …"),
    ("a tag of nothing", "data: !!float ''", " is not valid YAML: …"),
    ("brackets without end", "[" * 1000, " is not valid YAML: …"),
    ("a character that is none", r'data: "\UFFFFFFFF"', " is not valid YAML: …"),
    ("a section twice", WHOLE + "\ndata:\n  archive: other.zip\n", " is not valid YAML: …"),
    ("a tab", WHOLE.replace("  lr:", "\tlr:"), " is not valid YAML: …"),
    ("a tag that would run code", "!!python/object/apply:os.system [ls]\n", " is not valid YAML: …"),
]


@pytest.mark.parametrize(("text", "expected"), [pytest.param(*row[1:], id=row[0]) for row in YAML_FILES])
def test_files_of_params(bare_project: Path, text: str, expected: str) -> None:
    (bare_project / "params.yaml").write_text(text)
    refuses("unzip", bare_project, f"params.yaml{expected}")


def test_no_params(tmp_path: Path) -> None:
    refuses("unzip", tmp_path, "params.yaml not found; run from the project's root")

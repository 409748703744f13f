"""Bad outputs of earlier stages, and what does not fit them, each with the line that a stage must end with.

The tables are read as in test_refusals_of_archives.py.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from receiptbert import load_weights
from receiptbert.corpus_facts import Classes
from receiptbert.errors import UserError
from receiptbert.token_store import TokenStore
from tests.projects import STAGES, contents, matches, refuses, run_here, set_params
from tests.small_models import change_json, change_weights

FINETUNED = "models/finetuned"
OF_CONFIG = f"{FINETUNED}/config.json"


def config(**changes: Any) -> Callable[[Path], None]:
    """Change values of the checkpoint's config.json."""
    return lambda folder: change_json(folder / OF_CONFIG, **changes)


def content(name: str, replaced: str | bytes | None) -> Callable[[Path], None]:
    """Replace a file of the project, or remove it."""

    def change(folder: Path) -> None:
        if replaced is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(replaced if isinstance(replaced, bytes) else replaced.encode())

    return change


def folder_for(name: str) -> Callable[[Path], None]:
    """As a file that cannot be opened; one without permission root could still read."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def log_on_a_disk_that_is_gone(folder: Path) -> None:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    (folder / "runs").symlink_to("/no/such/disk")


def other_weights(folder: Path) -> None:
    with change_weights(folder / FINETUNED) as weights:
        weights["bert.embeddings.word_embeddings.weight"] = torch.zeros(3, 8)


def quantized(folder: Path) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    with change_weights(folder / FINETUNED) as weights:
        weights[name] = (weights[name] * 100).to(torch.int8)


def one_layer_more(folder: Path) -> None:
    with change_weights(folder / FINETUNED) as weights:
        for name in [name for name in weights if "layer.0." in name]:
            weights[name.replace("layer.0.", "layer.9.")] = weights[name].clone()


def started_from_a_link_to_itself(folder: Path) -> None:
    (folder / "base").symlink_to("base")
    set_params(folder, {"finetune.init": "base"})


def started_from_pickled_weights(folder: Path) -> None:
    (folder / FINETUNED).rename(folder / "base")
    (folder / "base/model.safetensors").rename(folder / "base/pytorch_model.bin")
    set_params(folder, {"finetune.init": "base"})


def params(**values: str) -> Callable[[Path], None]:
    return lambda folder: set_params(folder, {key.replace("__", "."): value for key, value in values.items()})


def other_tokenizer(folder: Path) -> None:
    set_params(folder, {"tokenizer.vocab_size": "300"})
    run_here(STAGES["train_tokenizer"], folder)


def classes_added(folder: Path) -> None:
    path = folder / "data/tokenized/test.safetensors"
    store = TokenStore.load(path)
    assert store.labels is not None
    labels = store.labels.copy()
    labels[0] = len(Classes.load(folder / "data/tokenized/classes.json").names)  # one class more
    dataclasses.replace(store, labels=labels).save(path)


def texts_of_teachers(split: str, replaced: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        set_params(folder, {"finetune.teachers": "1"})  # who read the texts themselves
        content(f"data/tokenized/{split}.jsonl", replaced)(folder)

    return change


def short_texts(folder: Path) -> None:
    """Unsupervised texts too short to learn anything from."""
    rows = (folder / "data/raw/data.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith("unsupervised")]
    (folder / "data/raw/data.csv").write_text("\n".join([*kept, "чай,,unsupervised"]) + "\n")
    run_here(STAGES["pretokenize"], folder)


def texts_without_letters(folder: Path) -> None:
    rows = (folder / "data/raw/data.csv").read_text().splitlines()
    kept = [row for row in rows if not row.endswith("unsupervised")]
    numbers = [f"{number} {number + 1} {number + 2},,unsupervised" for number in range(10, 40)]
    (folder / "data/raw/data.csv").write_text("\n".join([*kept, *numbers]) + "\n")
    for stage in ("train_tokenizer", "pretokenize"):
        run_here(STAGES[stage], folder)


def started_from_a_small_model(folder: Path) -> None:
    config(vocab_size=9)(folder)
    (folder / "models/finetuned").rename(folder / "base")
    set_params(folder, {"finetune.init": "base"})


def spoilt_weights(folder: Path) -> None:
    with change_weights(folder / FINETUNED) as weights:
        weights["classifier.bias"][0] = torch.nan


NOT_FINITE = "the model's answers are not finite numbers; finetune it again, at a lower finetune.lr, if its training diverged; else restore it with `dvc repro`, or download it again"
AGAIN = "restore it with `dvc repro`, or download it again"
MOVE_AWAY = "a folder stands where a file must be; move it away"
OUTPUTS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("no CSV yet", "train_tokenizer", content("data/raw/data.csv", None), "data/raw/data.csv not found; run `dvc repro unzip`"),
    ("vocabulary too small", "train_tokenizer", params(tokenizer__vocab_size="20"), "tokenizer.vocab_size = 20 is too small: the characters of the corpus alone need … entries"),
    ("no tokenizer yet", "pretokenize", lambda folder: shutil.rmtree(folder / "models/tokenizer"), "models/tokenizer holds no tokenizer.json and no vocab.txt; run `dvc repro`, or name a BERT checkpoint folder"),
    ("a damaged tokenizer", "pretokenize", content("models/tokenizer/tokenizer.json", "{"), f"models/tokenizer/tokenizer.json is damaged (…); {AGAIN}"),
    ("no facts yet", "pretrain", content("data/tokenized/lengths.json", None), "data/tokenized/lengths.json not found; run `dvc repro pretokenize`"),
    ("damaged facts", "pretrain", content("data/tokenized/lengths.json", "{"), "data/tokenized/lengths.json is damaged (…); run `dvc repro pretokenize`"),
    ("facts of another version", "pretrain", content("data/tokenized/lengths.json", "{}"), "data/tokenized/lengths.json is damaged (…); run `dvc repro pretokenize`"),
    ("no store yet", "pretrain", content("data/tokenized/unsupervised.safetensors", None), "data/tokenized/unsupervised.safetensors not found; run `dvc repro pretokenize`"),
    ("a damaged store", "pretrain", content("data/tokenized/unsupervised.safetensors", "x" * 100), "data/tokenized/unsupervised.safetensors is not a token store (…); run `dvc repro pretokenize`"),
    ("a store of another tokenizer", "pretrain", other_tokenizer, "data/tokenized/unsupervised.safetensors was made with another tokenizer; run `dvc repro pretokenize`"),
    ("texts without letters", "pretrain", texts_without_letters, "no unsupervised text has a letter, and tokens without letters are never predicted; set pretrain.letters_only to false"),
    ("a last step that spoils the model", "finetune", params(finetune__weight_decay="1e300", finetune__epochs="1", finetune__batch_size="1000", finetune__min_steps="0"), NOT_FINITE),
    ("weights that are no numbers", "evaluate", spoilt_weights, NOT_FINITE),
    ("its own output as the start", "finetune", params(finetune__init=FINETUNED), "finetune.init = models/finetuned, which finetune replaces; copy it and name the copy (`dvc checkout models/finetuned` brings it back if DVC has removed it)"),
    ("a folder in its own output", "finetune", params(finetune__init=f"{FINETUNED}/base"), "finetune.init = models/finetuned/base, which finetune replaces; copy it and name …"),
    ("its own output, written otherwise", "finetune", params(finetune__init="models/../models/finetuned"), "finetune.init = models/../models/finetuned, which finetune replaces; copy it and name the copy (`dvc checkout models/finetuned` brings it back if DVC has removed it)"),
    ("texts too short", "pretrain", short_texts, "too few unsupervised texts have 2 tokens or more: pretraining needs at least ten, …"),
    ("no such device", "pretrain", params(runtime__device="cuda:x"), "params.yaml: runtime.device = cuda:x names no device; set auto"),
    ("no such GPU", "pretrain", params(runtime__device="cuda:99"), "params.yaml: runtime.device = cuda:99, but torch … finds no such device; set auto"),
    ("a number beyond eight bits", "pretrain", params(runtime__device="cuda:200"), "params.yaml: runtime.device = cuda:200, but torch … finds no such device; set auto"),
    ("apex without a GPU", "pretrain", params(runtime__amp_backend="apex", pretrain__precision="fp16"), "params.yaml: runtime.amp_backend = apex, which needs a CUDA GPU, but the device is cpu; set torch"),
    ("apex without a GPU", "finetune", params(runtime__amp_backend="apex"), "params.yaml: runtime.amp_backend = apex, which needs a CUDA GPU, but the device is cpu; set torch"),
    ("fp16 on a CPU", "pretrain", params(pretrain__precision="fp16"), "params.yaml: pretrain.precision = fp16, which this cpu does not support; set auto"),
    ("fp16 on a CPU", "finetune", params(finetune__precision="fp16"), "params.yaml: finetune.precision = fp16, which this cpu does not support; set auto"),
    ("the pretrained model by its path", "pretrain", params(finetune__init="models/pretrained/"), "finetune.init = models/pretrained/, which is what `pretrained` means; set that"),
    ("no checkpoint", "finetune", params(finetune__init="nowhere"), "finetune.init = nowhere is not a folder; set pretrained, scratch, or that of a BERT"),
    ("no checkpoint for later", "pretrain", params(finetune__init="Scratch"), "finetune.init = Scratch is not a folder; set pretrained, scratch, or that of a BERT"),
    ("a checkpoint that finetune would refuse later", "pretrain", started_from_pickled_weights, "base holds no model.safetensors; load it with transformers and save it again"),
    ("a link to itself", "finetune", started_from_a_link_to_itself, "finetune.init = base is not a folder; set pretrained, scratch, or that of a BERT"),
    ("a store without labels", "finetune", lambda folder: shutil.copy(folder / "data/tokenized/unsupervised.safetensors", folder / "data/tokenized/train.safetensors"), "data/tokenized/train.safetensors has no labels; run `dvc repro pretokenize`"),
    ("facts of other types", "finetune", content("data/tokenized/classes.json", '{"labels": [1], "names": ["a"]}'), "data/tokenized/classes.json is damaged (labels must be a list of texts); run `dvc repro pretokenize`"),
    ("a length that is a text", "pretrain", content("data/tokenized/lengths.json", '{"longest": "9"}'), "data/tokenized/lengths.json is damaged (longest must be a whole number); run `dvc repro pretokenize`"),
    ("a log on a disk that is gone", "pretrain", log_on_a_disk_that_is_gone, "runs: File exists; a file stands where a folder must be; move it away"),
    ("no counts", "evaluate", content("metrics/data.json", None), "metrics/data.json not found; run `dvc repro`"),
    ("damaged counts", "evaluate", content("metrics/data.json", "<<<<<<<"), "metrics/data.json is damaged (…); run `dvc repro`"),
    ("counts that are a list", "evaluate", content("metrics/data.json", "[]"), "metrics/data.json is damaged (it holds no JSON object); run `dvc repro`"),
    ("counts of another version", "evaluate", content("metrics/data.json", "{}"), "metrics/data.json lacks rows; run `dvc repro`"),
    ("no texts for teachers", "finetune", texts_of_teachers("unsupervised", None), "data/tokenized/unsupervised.jsonl not found; run `dvc repro pretokenize`"),
    ("damaged texts", "finetune", texts_of_teachers("train", '"чай"\n"сыр'), "data/tokenized/train.jsonl is damaged (line 2: …); run `dvc repro pretokenize`"),
    ("too few train texts", "finetune", texts_of_teachers("train", '"чай"\n'), "data/tokenized/train.jsonl has 1 texts, but … are tokenized; run `dvc repro pretokenize`"),
    ("too few val texts", "finetune", texts_of_teachers("val", '"чай"\n'), "data/tokenized/val.jsonl has 1 texts, but … are tokenized; run `dvc repro pretokenize`"),
    ("too few test texts", "evaluate", content("data/tokenized/test.jsonl", ""), "data/tokenized/test.jsonl has 0 texts, but 20 are tokenized; run `dvc repro pretokenize`"),
    ("numbers for texts", "evaluate", content("data/tokenized/test.jsonl", "1\n2\n"), "data/tokenized/test.jsonl is damaged (line 1: no text); run `dvc repro pretokenize`"),
    ("no model yet", "evaluate", lambda folder: shutil.rmtree(folder / FINETUNED), f"{FINETUNED} is not a folder in …; name that of a finetuned model (`dvc repro` makes one, `dvc checkout` brings back the last one)"),
    ("config is no JSON", "evaluate", content(OF_CONFIG, "{"), f"{OF_CONFIG} is damaged (…); {AGAIN}"),
    ("config is a list", "evaluate", content(OF_CONFIG, "[]"), f"{OF_CONFIG} is damaged (it holds no JSON object); {AGAIN}"),
    ("config nested too deep", "evaluate", content(OF_CONFIG, "[" * 100_000), f"{OF_CONFIG} is damaged (…); {AGAIN}"),
    ("another kind of model", "evaluate", config(model_type="gpt2"), f"{FINETUNED} is a checkpoint of type gpt2; only bert can be used"),
    ("another activation", "evaluate", config(hidden_act="silu"), f"{FINETUNED}: activation silu is not among …; choose another"),
    ("three segments", "evaluate", config(type_vocab_size=3), f"{FINETUNED}: 3 segment embeddings; only 2 can be used; choose another"),
    ("heads that do not divide", "evaluate", config(num_attention_heads=3), f"{OF_CONFIG}: hidden_size is not a multiple of num_attention_heads; correct it"),
    ("a negative size", "evaluate", config(intermediate_size=-1), f"{OF_CONFIG}: intermediate_size is -1; it must be a whole number from 1"),
    ("no position", "evaluate", config(max_position_embeddings=0), f"{OF_CONFIG}: max_position_embeddings is 0; it must be a whole number from 1"),
    ("a size that is a text", "evaluate", config(hidden_size="8"), f"{OF_CONFIG}: hidden_size is '8'; it must be a whole number from 1"),
    ("a class missing", "evaluate", config(id2label={"0": "a", "2": "b"}), f"{OF_CONFIG}: id2label must name the classes 0, 1, 2 and so on; {AGAIN}"),
    ("classes that are a list", "evaluate", config(id2label=["a", "b"]), f"{OF_CONFIG}: id2label must name the classes 0, 1, 2 and so on; {AGAIN}"),
    ("classes that are a number", "evaluate", config(id2label=5), f"{OF_CONFIG}: id2label must name the classes 0, 1, 2 and so on; {AGAIN}"),
    ("a class without a name", "evaluate", config(id2label={"0": "a", "1": None}), f"{OF_CONFIG}: id2label must hold the classes as texts; {AGAIN}"),
    ("a class of the corpus unknown", "evaluate", classes_added, f"{FINETUNED} knows … classes, the corpus has … or more; run `dvc repro`"),
    ("another shape", "evaluate", config(intermediate_size=12), f"{FINETUNED}/model.safetensors lacks … weights of the shape that config.json promises, … among them; {AGAIN}"),
    ("another vocabulary", "evaluate", other_weights, f"{FINETUNED}/model.safetensors lacks 1 weights of the shape that config.json promises, bert.embeddings.word_embeddings.weight among them; {AGAIN}"),
    ("weights that are integers", "evaluate", quantized, f"{FINETUNED}/model.safetensors lacks 1 weights of the shape that config.json promises, bert.encoder.layer.0.output.dense.weight among them; {AGAIN}"),
    ("quantized weights", "evaluate", config(quantization_config={"bits": 8}), f"{FINETUNED}: its weights are quantized; name a checkpoint whose weights are not"),
    ("a layer more", "evaluate", one_layer_more, f"{FINETUNED}/model.safetensors has more layers than config.json promises; {AGAIN}"),
    ("no weights", "evaluate", content(f"{FINETUNED}/model.safetensors", None), f"{FINETUNED} holds no model.safetensors; load it with transformers and save it again"),
    ("a folder for weights", "evaluate", folder_for(f"{FINETUNED}/model.safetensors"), f"{FINETUNED}/model.safetensors: Is a directory; {MOVE_AWAY}"),
    ("a folder for a tokenizer", "evaluate", folder_for(f"{FINETUNED}/tokenizer.json"), f"{FINETUNED}/tokenizer.json: Is a directory; {MOVE_AWAY}"),
    ("a folder for tokens", "evaluate", folder_for("data/tokenized/test.safetensors"), f"data/tokenized/test.safetensors: Is a directory; {MOVE_AWAY}"),
    ("damaged weights", "evaluate", content(f"{FINETUNED}/model.safetensors", "rubbish"), f"{FINETUNED}/model.safetensors is damaged (…); {AGAIN}"),
    ("a larger tokenizer", "finetune", started_from_a_small_model, "base: the tokenizer has … tokens, the model 9; take both from one checkpoint"),
    ("a larger tokenizer, before pretraining", "pretrain", started_from_a_small_model, "base: the tokenizer has … tokens, the model 9; take both from one checkpoint"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "change", "expected"), [pytest.param(*row[1:], id=row[0]) for row in OUTPUTS]
)
def test_outputs_and_checkpoints(
    project: Path, stage: str, change: Callable[[Path], None], expected: str
) -> None:
    change(project)
    before = contents(project)
    refuses(stage, project, expected)
    assert contents(project) == before


def test_a_pretraining_that_its_last_step_has_spoilt(project: Path) -> None:
    """Losses are looked at before a step."""
    weights = (project / "models/pretrained/model.safetensors").read_bytes()
    set_params(project, {"pretrain.weight_decay": "1e300", "pretrain.max_steps": "1"})
    refuses("pretrain", project, "the MLM loss of the held-out texts is nan; lower pretrain.lr")
    assert (project / "models/pretrained/model.safetensors").read_bytes() == weights


def test_a_vocabulary_larger_than_the_corpus_gives_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(project, {"tokenizer.vocab_size": "100000", "tokenizer.min_frequency": "3"})
    run_here(STAGES["train_tokenizer"], project)
    said = capsys.readouterr().out.strip()
    assert matches("… of 100,000 tokens learned from 200 texts, all that pairs seen 3 times give", said), said
    size = len((project / "models/tokenizer/vocab.txt").read_text().splitlines())
    assert said.startswith(f"{size:,} of")


def test_a_pickle_that_is_no_state_dict(tmp_path: Path) -> None:
    """``load_weights`` serves notebooks."""
    model = torch.nn.Linear(2, 2)
    for name, thing in {"code": {"x": print}, "a list": [1, 2]}.items():
        torch.save(thing, tmp_path / name)
        with pytest.raises(UserError, match=r"holds no state_dict saved by torch\.save"):
            load_weights(model, tmp_path / name)
    (tmp_path / "rubbish").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"holds no state_dict saved by torch\.save"):
        load_weights(model, tmp_path / "rubbish")

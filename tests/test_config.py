"""The config: what is accepted, what is refused and with which line, and its texts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import googlenet_train
from googlenet_train.config import Config
from googlenet_train.config.file import Loaded, load, shipped_configs
from googlenet_train.config.text import (
    defaults_text,
    difference,
    dump,
    flat,
    properties,
    resolved,
    schema_text,
)
from googlenet_train.errors import ExitCode, UserError

TRAIN = "data: {train: photos}\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(text: str, *overrides: str) -> Loaded:
    Path("mine.yaml").write_text(text, encoding="utf-8")
    return load("mine.yaml", overrides)


def mistakes(text: str, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read(text, *overrides)
    assert caught.value.exit_code == ExitCode.USAGE
    return str(caught.value).split("\n")


def mistake(text: str, *overrides: str) -> str:
    (line,) = mistakes(text, *overrides)
    return line


def minimal() -> Config:
    return Config.model_validate({"data": {"train": "photos"}})


def test_defaults_and_values() -> None:
    config = read(TRAIN).config
    assert config == minimal()
    assert config.optimizer.lr == 0.1
    assert config.ema.decays == (0.9999,)
    assert config.schedule.warmup_epochs == 5


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1E5", 1e5), (".5", 0.5), ("3", 3.0), ("1.", 1.0), ("2.5e+1", 25.0)],
)
def test_numbers(written: str, value: float) -> None:
    lr = read(f"{TRAIN}optimizer: {{lr: {written}}}").config.optimizer.lr
    assert lr == value
    assert isinstance(lr, float)
    assert read(TRAIN, f"optimizer.lr={written}").config.optimizer.lr == value


def test_words_of_yaml_1_1_stay_text() -> None:
    for word in ("no", "on", "1:30", "2020-01-01", "0x10", "010 ", "1e", "."):
        assert read(f"data: {{train: '{word}'}}").config.data.train == word
    for word in ("no", "on", "1:30", "2020-01-01", "0x10", "1e"):
        assert read(f"data:\n  train: {word}\n").config.data.train == word


def test_an_empty_section_means_its_defaults() -> None:
    assert read(TRAIN + "optimizer:\n  # lr: 0.2\nlog:\n").config == minimal()


# One mistake each: (file, its whole line).
SINGLE = {
    "text for a number": (
        TRAIN + "optimizer:\n  momentum: 0.9\n  lr: fast\n",
        'mine.yaml:4 optimizer.lr: must be a number > 0, not the text "fast".',
    ),
    "quoted number": (
        TRAIN + 'optimizer:\n  lr: "0.1"\n',
        'mine.yaml:3 optimizer.lr: must be a number > 0, not the text "0.1".'
        " Write 0.1 without quotes.",
    ),
    "grouped number": (
        TRAIN + "schedule: {epochs: 1_000}",
        'mine.yaml:2 schedule.epochs: must be a whole number >= 1, not the text "1_000".'
        " Write 1000 without quotes.",
    ),
    "yes": (
        TRAIN + "model:\n  aux_logits: yes\n",
        'mine.yaml:3 model.aux_logits: must be true or false, not the text "yes". Write true.',
    ),
    "Off": (
        TRAIN + "model:\n  aux_logits: Off\n",
        'mine.yaml:3 model.aux_logits: must be true or false, not the text "Off". Write false.',
    ),
    "number for a boolean": (
        TRAIN + "model: {aux_logits: 1}",
        "mine.yaml:2 model.aux_logits: must be true or false, not 1.",
    ),
    "boolean for an integer": (
        TRAIN + "run: {seed: true}",
        "mine.yaml:2 run.seed: must be a whole number >= 0 and < 9223372036854775808, not true.",
    ),
    "boolean for a number": (
        TRAIN + "augment: {flip: true}",
        "mine.yaml:2 augment.flip: must be a number >= 0 and <= 1, not true.",
    ),
    "float for an integer": (
        TRAIN + "schedule: {epochs: 1e2}",
        "mine.yaml:2 schedule.epochs: must be a whole number >= 1, not 100.0. Write 100.",
    ),
    "number for a text": (
        "data: {train: 2024}",
        "mine.yaml:1 data.train: must be some text, not 2024. Put it in quotes.",
    ),
    "empty text": (
        "data: {train: ''}",
        'mine.yaml:1 data.train: must be some text, not the text "".',
    ),
    "null where none is allowed": (
        TRAIN + "optimizer:\n  lr:\n",
        "mine.yaml:3 optimizer.lr: must be a number > 0, not null.",
    ),
    "infinity": (
        TRAIN + "optimizer: {lr: .inf}",
        "mine.yaml:2 optimizer.lr: must be a number > 0, not .inf.",
    ),
    "overflow": (
        TRAIN + "optimizer: {lr: 1e999}",
        "mine.yaml:2 optimizer.lr: must be a number > 0, not .inf.",
    ),
    "below the bound": (
        "data:\n  train: photos\n  image_size: 31\n",
        "mine.yaml:3 data.image_size: must be a whole number >= 32, not 31.",
    ),
    "nan": (
        TRAIN + "loss: {aux_weight: .nan}",
        "mine.yaml:2 loss.aux_weight: must be a number >= 0, not .nan.",
    ),
    "union": (
        "data:\n  train: photos\n  workers: -1\n",
        "mine.yaml:3 data.workers: must be a whole number >= 0 or auto, not -1.",
    ),
    "choice": (
        TRAIN + "augment:\n  interpolation: biliner\n",
        "mine.yaml:3 augment.interpolation: must be bilinear, bicubic, nearest, area or random,"
        ' not the text "biliner". Did you mean bilinear?',
    ),
    "choice far from any": (
        TRAIN + "device:\n  kind: gpu\n",
        'mine.yaml:3 device.kind: must be auto, cpu, cuda or mps, not the text "gpu".',
    ),
    "short list": (
        TRAIN + "augment:\n  scale: [0.5]\n",
        "mine.yaml:3 augment.scale: must be a list of 2 numbers > 0 and <= 1, not [0.5].",
    ),
    "long list": (
        "data:\n  train: photos\n  mean: [0.5, 0.5, 0.5, 0.5]\n",
        "mine.yaml:3 data.mean: must be a list of 3 numbers, not [0.5, 0.5, 0.5, 0.5].",
    ),
    "number for a list": (
        TRAIN + "ema: {decays: 0.998}",
        "mine.yaml:2 ema.decays: must be a list of numbers >= 0 and < 1, not 0.998. Write [0.998].",
    ),
    "mapping for a number": (
        TRAIN + "optimizer: {lr: {a: 1}}",
        "mine.yaml:2 optimizer.lr: must be a number > 0, not a mapping.",
    ),
    "item on a line of its own": (
        TRAIN + "ema:\n  decays:\n    - 0.9\n    - 1.0\n",
        "mine.yaml:5 ema.decays[1]: must be a number >= 0 and < 1, not 1.0.",
    ),
    "std of 0": (
        "data:\n  train: photos\n  std: [0.2,\n    0, 0.2]\n",
        "mine.yaml:4 data.std[1]: must be a number > 0, not 0.",
    ),
    "limits out of order": (
        TRAIN + "augment:\n\n  scale: [1, 0.35]\n",
        "mine.yaml:4 augment.scale: the lower limit 1.0 is above the upper. Write [0.35, 1.0].",
    ),
    "decay twice": (
        TRAIN + "ema: {decays: [0.9, 0.99, 0.9]}",
        "mine.yaml:2 ema.decays: 0.9 is in the list twice. Leave one out.",
    ),
    "batch that does not divide": (
        TRAIN + "optimizer:\n  accumulate: 7\n  batch_size: 100\n",
        "mine.yaml:3 optimizer.accumulate: optimizer.batch_size 100 cannot be cut into 7 equal"
        " parts. The nearest that divide it: 5, 10.",
    ),
    "more parts than images": (
        TRAIN + "optimizer: {batch_size: 8, accumulate: 9}",
        "mine.yaml:2 optimizer.accumulate: optimizer.batch_size 8 cannot be cut into 9 equal"
        " parts. The nearest that divide it: 8.",
    ),
    "image sizes that shrink": (
        TRAIN + "schedule:\n  image_size: {from: 192, to: 128}\n",
        "mine.yaml:3 schedule.image_size: from 192 is above to 128. Images can only grow: exchange"
        " them.",
    ),
    "image sizes not 32 apart": (
        TRAIN + "schedule:\n  image_size: {from: 100, to: 192}\n",
        "mine.yaml:3 schedule.image_size: from 100 is no multiple of 32 below to 192, which the"
        " images grow by. Write from 128 or 96.",
    ),
    "image sizes next to the smallest": (
        TRAIN + "schedule:\n  image_size: {from: 33, to: 64}\n",
        "mine.yaml:3 schedule.image_size: from 33 is no multiple of 32 below to 64, which the"
        " images grow by. Write from 64 or 32.",
    ),
    "number for a mapping": (
        TRAIN + "schedule: {image_size: 128}",
        "mine.yaml:2 schedule.image_size: must be {from: a whole number >= 32, to: a whole number"
        " >= 32, until: a number > 0 and <= 1} or null, not 128.",
    ),
    "part of a mapping": (
        TRAIN + "schedule:\n  image_size:\n    from: 128\n    to: 192.0\n",
        "mine.yaml:5 schedule.image_size.to: must be a whole number >= 32, not 192.0. Write 192.",
    ),
    "part below its bound": (
        TRAIN + "schedule:\n  image_size: {from: 0, to: 192}",
        "mine.yaml:3 schedule.image_size.from: must be a whole number >= 32, not 0.",
    ),
    "unknown part": (
        TRAIN + "schedule:\n  image_size:\n    from: 64\n    to: 64\n    untill: 1\n",
        "mine.yaml:6 schedule.image_size.untill: unknown key; did you mean"
        " schedule.image_size.until?",
    ),
    "unknown part far from any": (
        TRAIN + "schedule:\n  image_size: {from: 64, to: 64, x: 1}\n",
        "mine.yaml:3 schedule.image_size.x: unknown key; schedule.image_size has from, to, until.",
    ),
    "dotted part in a file": (
        TRAIN + "schedule:\n  image_size.from: 64\n",
        "mine.yaml:3 schedule.image_size.from: a dotted key is for the command line. Here write"
        " image_size: {from: ...} in section schedule.",
    ),
    "unknown key": (
        TRAIN + "optimizer:\n  momentun: 0.9\n",
        "mine.yaml:3 optimizer.momentun: unknown key; did you mean optimizer.momentum?",
    ),
    "key in the wrong section": (
        TRAIN + "optimizer:\n  epochs: 9\n",
        "mine.yaml:3 optimizer.epochs: unknown key; did you mean schedule.epochs?",
    ),
    "key without its section": (
        TRAIN + "lr: 0.1\n",
        "mine.yaml:2 lr: unknown key; did you mean optimizer.lr?",
    ),
    "key of several sections": (
        TRAIN + "batch_size: 32\n",
        "mine.yaml:2 batch_size: unknown key; did you mean optimizer.batch_size or"
        " evaluate.batch_size?",
    ),
    "nothing near": (
        TRAIN + "ema:\n  xyzzy: 0.1\n",
        "mine.yaml:3 ema.xyzzy: unknown key; ema has decays, every_steps.",
    ),
    "unknown section": (
        TRAIN + "optimiser:\n  lr: 0.1\n",
        "mine.yaml:2 optimiser: unknown key; did you mean optimizer?",
    ),
    "dotted key in a file": (
        TRAIN + "optimizer.lr: 0.1\n",
        "mine.yaml:2 optimizer.lr: a dotted key is for the command line. Here write lr in section"
        " optimizer.",
    ),
    "line break in a key": (
        TRAIN + '"a\\nb": 1\n',
        'mine.yaml:2 "a\\nb": unknown key; the sections are run, data, augment, model, loss,'
        " optimizer, schedule, ema, evaluate, checkpoint, device, distributed, log.",
    ),
    "duplicate key": (
        TRAIN + "optimizer:\n  lr: 0.1\n  momentum: 0.9\n  lr: 0.1\n",
        "mine.yaml:5 optimizer.lr: stands twice, first in line 3. Leave one out.",
    ),
    "duplicate section": (
        TRAIN + "log: {every_steps: 1}\n\nlog: {every_steps: 2}\n",
        "mine.yaml:4 log: stands twice, first in line 2. Leave one out.",
    ),
    "duplicate below a key": (
        TRAIN + "optimizer:\n  lr:\n    a: 1\n    a: 2\n",
        "mine.yaml:5 optimizer.lr: stands twice, first in line 4. Leave one out.",
    ),
    "foreign tag": (
        TRAIN + "run:\n  dir: !!python/object/apply:os.system ['true']\n",
        "mine.yaml:3 run.dir: the tag !!python/object/apply:os.system is not used here."
        " Write a plain value.",
    ),
    "tag that does not fit": (
        TRAIN + "optimizer: {lr: !!float abc}",
        "mine.yaml:2 optimizer.lr: 'abc' is no float.",
    ),
    "section that is a text": (
        TRAIN + "loss: none\n",
        "mine.yaml:2 loss: must hold lines of the form KEY: VALUE, and does not.",
    ),
    "data section that is a text": (
        "data: photos\n",
        "mine.yaml:1 data: must hold lines of the form KEY: VALUE, and does not.",
    ),
    "top level that is a list": (
        "# a comment\n- a\n- b\n",
        "mine.yaml:2 the config: must hold lines of the form KEY: VALUE, and does not.",
    ),
    "tab": (TRAIN + "log:\n\tevery_steps: 1\n", "mine.yaml:3: a tab; indent with spaces."),
    "two documents": (
        TRAIN + "---\nlog: {every_steps: 1}\n",
        "mine.yaml:2: a second document begins (---); a config is one.",
    ),
    "alias": (
        "data:\n  train: &x photos\n  val: *x\n",
        "mine.yaml:3: an alias (*name) is not used here; repeat the value.",
    ),
    "list for a key": (
        TRAIN + "? [a]\n: 1\n",
        "mine.yaml:2: a key must be a word, not a list.",
    ),
    "unclosed list": (
        TRAIN + "augment:\n  scale: [0.1, 1\nlog: {}\n",
        "mine.yaml:4: not YAML: while parsing a flow sequence (begun in line 3), expected ',' or"
        " ']', but got ':'.",
    ),
    "control character": (TRAIN + "\x07", "mine.yaml:2: the character U+0007 is not allowed."),
    "deep nesting": ("[" * 5000, "mine.yaml:1: nested too deeply."),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_mistake_in_a_file(kind: str) -> None:
    text, line = SINGLE[kind]
    assert mistake(text) == line


def test_data_train_is_required() -> None:
    for text in ("", "# nothing\n", "log: {every_steps: 1}\n"):
        line = mistake(text)
        assert line.startswith("mine.yaml:1 data.train: missing. ")
        assert "folder of class folders" in line
    assert mistake("log:\ndata:\n  val: x\n").startswith("mine.yaml:2 data.train: missing. ")
    assert read("", "data.train=photos").config == minimal()


def test_not_utf_8() -> None:
    Path("mine.yaml").write_bytes(b"data:\n  train: caf\xe9\n")
    with pytest.raises(UserError, match=r"^mine\.yaml:2: not UTF-8 text\."):
        load("mine.yaml")


def test_byte_order_mark() -> None:
    Path("mine.yaml").write_bytes(b"\xef\xbb\xbfdata: {train: photos}\n")
    assert load("mine.yaml").config == minimal()


def test_all_mistakes_at_once_in_the_order_of_the_lines() -> None:
    lines = mistakes(
        "optimiser: {lr: 1}\n"  # 1
        "schedule:\n"  # 2
        "  epochs: 0\n"  # 3
        "  nmae: cosine\n"  # 4
        "optimizer:\n"  # 5
        "  lr: x\n"  # 6
        "  lr: y\n"  # 7
        "log: 3\n"  # 8
        "augment: {scale: [0, 2],\n"  # 9
        "  flip: !x 1}\n"  # 10
        "ema: {decays: [0.9, 1]}\n",  # 11
        "optimizer.ler=0.2",
        "data.workers=many",
    )
    assert [line.partition(": ")[0] for line in lines] == [
        "mine.yaml:1 optimiser",
        "mine.yaml:1 data.train",
        "mine.yaml:3 schedule.epochs",
        "mine.yaml:4 schedule.nmae",
        "mine.yaml:7 optimizer.lr",  # stands twice
        "mine.yaml:7 optimizer.lr",  # is a text
        "mine.yaml:8 log",
        "mine.yaml:9 augment.scale[0]",
        "mine.yaml:9 augment.scale[1]",
        "mine.yaml:10 augment.flip",
        "mine.yaml:11 ema.decays[1]",
        "command line optimizer.ler=0.2",
        "command line data.workers",
    ]


def test_overrides() -> None:
    loaded = read(
        TRAIN + "optimizer: {lr: wrong, batch_size: 32}\n",
        "optimizer.lr=1e-4",
        "run.dir=runs/a=b",
        "data.val=null",
        "augment.scale=[0.35,1]",
        "device.deterministic=true",
        "data.train='two words # and a sign'",
    )
    config = loaded.config
    assert config.optimizer.lr == 1e-4
    assert config.optimizer.batch_size == 32
    assert config.run.dir == "runs/a=b"
    assert config.data.val is None
    assert config.augment.scale == (0.35, 1.0)
    assert config.device.deterministic is True
    assert config.data.train == "two words # and a sign"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.ler=0.2", "optimizer.ler=0.2: unknown key; did you mean optimizer.lr?"),
        ("lr=0.2", "lr=0.2: unknown key; did you mean optimizer.lr?"),
        (
            "optimiser.batch_size=8",
            "optimiser.batch_size=8: unknown key; did you mean optimizer.batch_size?",
        ),
        ("photos", "photos: must be KEY=VALUE, such as optimizer.lr=0.1."),
        ("=1", "=1: must be KEY=VALUE, such as optimizer.lr=0.1."),
        (
            "optimizer.lr=",
            "optimizer.lr=: has no value. Write null for none, '\"\"' for empty text.",
        ),
        (
            "log={every_steps: 1}",
            "log={every_steps: 1}: log is a section; set its keys, such as log.every_steps=...",
        ),
        (
            "run.dir=a #1",
            "run.dir=a #1: would be cut short. Put the value in quotes, '\"...\"'.",
        ),
        (
            "augment.scale=[0.1",
            "augment.scale=[0.1: not YAML: while parsing a flow sequence, expected ',' or ']',"
            " but got '<stream end>'.",
        ),
        ("ema.decays=[0.9, 1]", "ema.decays[1]: must be a number >= 0 and < 1, not 1."),
        (
            "model.aux_logits=yes",
            'model.aux_logits: must be true or false, not the text "yes". Write true.',
        ),
    ],
)
def test_mistake_in_an_override(override: str, said: str) -> None:
    assert mistake(TRAIN, override) == f"command line {said}"


def test_the_same_key_twice_on_the_command_line() -> None:
    assert mistake(TRAIN, "optimizer.lr=1", "log.every_steps=1", "optimizer.lr=1") == (
        "command line optimizer.lr=1: optimizer.lr is given twice. Leave one out."
    )


def test_parts_of_a_mapping_on_the_command_line() -> None:
    growing = TRAIN + "schedule: {image_size: {from: 128, to: 192}}\n"
    loaded = read(growing, "schedule.image_size.from=64", "schedule.image_size.until=1")
    sizes = loaded.config.schedule.image_size
    assert sizes is not None
    assert (sizes.from_, sizes.to, sizes.until) == (64, 192, 1)
    assert loaded.where("schedule.image_size") == "command line schedule.image_size"
    assert flat(loaded.config)["schedule.image_size"] == {"from": 64, "to": 192, "until": 1}
    text = dump(loaded.config)
    assert "  image_size: {from: 64, to: 192, until: 1.0}\n" in text
    assert read(text).config == loaded.config
    assert read(growing, "schedule.image_size=null").config == minimal()
    whole = read(TRAIN, "schedule.image_size={from: 64, to: 192, until: 1}").config
    assert whole == loaded.config
    assert difference(minimal(), whole)[0][2] == {"from": 64, "to": 192, "until": 1}
    parts = [f"schedule.image_size.{part}" for part in ("from=64", "to=192", "until=1")]
    assert read(TRAIN, *parts).config == whole


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["from=65"], "schedule.image_size: from 65 is no multiple of 32 below to 192, which the"),
        (["to=a"], 'schedule.image_size.to: must be a whole number >= 32, not the text "a".'),
        (
            ["frm=64"],
            "schedule.image_size.frm=64: unknown key; did you mean schedule.image_size.fr",
        ),
        (["to=64", "to=96"], "schedule.image_size.to=96: schedule.image_size.to is given twice."),
    ],
)
def test_mistake_in_a_part_on_the_command_line(overrides: list[str], said: str) -> None:
    growing = TRAIN + "schedule: {image_size: {from: 64, to: 192}}\n"
    line = mistake(growing, *(f"schedule.image_size.{part}" for part in overrides))
    assert line.startswith(f"command line {said}")


def test_a_part_of_a_key_with_a_mistyped_name_gets_the_nearest_key() -> None:
    line = mistake(TRAIN, "schedule.image_sise.from=64")
    assert line.endswith("unknown key; did you mean schedule.image_size?")


def test_a_part_that_is_missing() -> None:
    for line in (
        mistake(TRAIN + "schedule:\n  image_size: {to: 64}\n").removeprefix("mine.yaml:3 "),
        mistake(TRAIN, "schedule.image_size.to=64").removeprefix("command line "),
    ):
        assert line.startswith("schedule.image_size.from: missing. Side at step 0 in pixels.")


def test_where_a_setting_was_written() -> None:
    loaded = read("log:\n\ndata:\n  train: photos\n  val: x\n", "data.val=y")
    assert loaded.where("data.train") == "mine.yaml:4 data.train"
    assert loaded.where("data.val") == "command line data.val"
    assert loaded.where("log.every_steps") == "default of log.every_steps"
    with pytest.raises(KeyError):
        loaded.where("data.trian")


def test_finding_a_file() -> None:
    Path("sub").mkdir()
    Path("sub/imagenet.yaml").write_text(TRAIN)
    loaded = load("sub/imagenet.yaml")
    assert (loaded.name, loaded.shipped) == ("imagenet", False)
    assert loaded.path == Path("sub/imagenet.yaml")
    assert loaded.where("data.train") == "sub/imagenet.yaml:1 data.train"

    for name in ("imagenet", "imagenet.yaml"):
        shipped = load(name)
        assert (shipped.name, shipped.shipped) == ("imagenet", True)
        assert shipped.where("data.train").startswith("imagenet.yaml:")

    Path("imagenet.yaml").write_text(TRAIN)  # a file here goes before the shipped one
    assert not load("imagenet.yaml").shipped


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("imagnet", "imagnet: no such config file. Did you mean imagenet.yaml?"),
        ("configs/imagenet.yaml", "no such config file. Did you mean imagenet.yaml?"),
        ("sub/mien.yaml", "no such config file. Did you mean sub/mine.yaml?"),
        ("mien", "mien: no such config file. Did you mean mine.yaml?"),
        ("qqqqq", "qqqqq: no such config file. The program comes with finetune.yaml, folder.yaml,"),
        ("sub", "sub: a folder, not a config file."),
        ("", "(empty): a folder, not a config file."),
        ("x" * 999, "cannot be read: File name too long."),
    ],
)
def test_no_such_file(given: str, said: str) -> None:
    Path("sub").mkdir()
    Path("sub/mine.yaml").write_text(TRAIN)
    Path("mine.yaml").write_text(TRAIN)
    with pytest.raises(UserError) as caught:
        load(given)
    assert caught.value.exit_code == ExitCode.USAGE
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


AWKWARD = ["1e-4", "yes", "null", " a ", "a # b", "a: b", "é", "C:\\x", "line\nbreak", "'", '"']


@pytest.mark.parametrize("text", AWKWARD)
def test_dump_of_awkward_texts(text: str) -> None:
    config = resolved(minimal(), {"run.dir": text})
    assert read(dump(config)).config == config
    assert yaml.safe_load(dump(config))["run"]["dir"] == text  # YAML 1.1 reads it too


def test_dump_round_trip() -> None:
    config = resolved(
        minimal(),
        {
            "optimizer.lr": 1e-7,
            "optimizer.weight_decay": 1 / 3,
            "ema.decays": [0.9, 0.99999],
            "data.workers": 2,
            "evaluate.every_epochs": None,
            "run.seed": 2**63 - 1,
        },
    )
    text = dump(config)
    assert read(text).config == config
    assert dump(read(text).config) == text
    assert Config.model_validate(yaml.safe_load(text)) == config
    assert text.count("\n") == len(properties()) + len(Config.model_fields)


def test_resolved() -> None:
    config = resolved(minimal(), {"data.workers": 3, "model.num_classes": 10})
    assert (config.data.workers, config.model.num_classes) == (3, 10)
    assert minimal().data.workers == "auto"
    with pytest.raises(ValueError, match="Extra inputs"):
        resolved(minimal(), {"data.wrokers": 3})
    with pytest.raises(ValueError, match="greater than or equal"):
        resolved(minimal(), {"data.workers": -3})


def test_flat_and_difference() -> None:
    old = minimal()
    new = resolved(old, {"optimizer.lr": 0.2, "ema.decays": [0.5], "data.train": "x"})
    assert flat(old)["augment.scale"] == [0.08, 1.0]
    assert list(flat(old)) == list(properties())
    assert difference(old, new) == [
        ("data.train", "photos", "x"),
        ("optimizer.lr", 0.1, 0.2),
        ("ema.decays", [0.9999], [0.5]),
    ]
    assert difference(old, minimal()) == []


def test_a_config_is_immutable() -> None:
    config = minimal()
    with pytest.raises(ValueError, match="frozen"):
        config.optimizer.lr = 1.0  # type: ignore[misc]
    assert hash(config) == hash(minimal())


def test_defaults_text_loads_once_data_train_is_set() -> None:
    text = defaults_text()
    assert read(text, "data.train=photos").config == minimal()
    assert mistake(text).split(" ")[1] == "data.train:"
    written = read(text, "data.train=photos").places
    assert set(written) == set(properties())  # every key stands there
    for described in properties().values():
        assert described["description"].split(" ")[0] in text
    assert "\n  # from: Side at step 0 in pixels." in text
    assert max(map(len, text.splitlines())) <= 100


def test_schema() -> None:
    schema = json.loads(schema_text())
    assert schema["required"] == ["data"]
    assert schema["$defs"]["Data"]["required"] == ["train"]
    assert set(schema["properties"]) == set(Config.model_fields)
    objects = [schema, *schema["$defs"].values()]
    assert len(objects) == 2 + len(Config.model_fields)  # and schedule.image_size's
    assert list(schema["$defs"]["ImageSizes"]["properties"]) == ["from", "to", "until"]
    required = {"train", "from", "to"}
    for described in objects:
        assert described["additionalProperties"] is False
        assert described["description"]
        for name, entry in described["properties"].items():
            assert len(entry.get("description", "")) > 10, name
            if described is not schema and name not in required:
                assert "default" in entry, name
    assert set(properties()) == set(flat(minimal()))


@pytest.mark.parametrize("name", ["quickstart", "imagenet", "imagenet_paper", "folder", "finetune"])
def test_shipped_configs(name: str) -> None:
    path = shipped_configs() / f"{name}.yaml"
    text = path.read_text(encoding="utf-8")
    loaded = load(name)
    assert loaded.shipped
    assert text.startswith(f"# googlenet-train --config {name}.yaml")
    assert "# cost: " in text
    assert "# result: " in text
    defaults = flat(minimal())
    written = [key for key in loaded.places if key != "data.train"]
    assert [key for key in written if flat(loaded.config)[key] == defaults[key]] == []
    for override in ("schedule.epochs=1", "data.image_size=32", "optimizer.batch_size=8"):
        load(name, [override])


def test_every_shipped_config_is_tested() -> None:
    names = {path.name for path in shipped_configs().iterdir()}
    assert names == {
        "quickstart.yaml",
        "imagenet.yaml",
        "imagenet_paper.yaml",
        "folder.yaml",
        "finetune.yaml",
    }


def test_configs_inside_the_package_as_in_a_wheel(tmp_path: Path) -> None:
    package = tmp_path / "site" / "googlenet_train"
    source = Path(googlenet_train.__file__).parent
    package.mkdir(parents=True)
    for name in ("__init__.py", "version.py", "errors.py"):
        shutil.copy(source / name, package)
    shutil.copytree(source / "config", package / "config")
    shutil.copytree(shipped_configs(), package / "configs")
    script = (
        "import sys; from googlenet_train.config.file import load;"
        "print(load('imagenet').path); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == package / "configs" / "imagenet.yaml"

"""Many ranks train the run that one would: the same images at the same steps, agreed on in all.

The ranks are processes of one machine that talk over Gloo; NCCL needs GPUs and is not tried here.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ranks import on_ranks, train
from safetensors.torch import load_file

from googlenet_train.config import file as config_file
from googlenet_train.errors import ExitCode, UserError
from googlenet_train.run import launch

# Writes what each training batch was made of: a line for each block of the global batch.
RECORD = """
import hashlib, json, os
from googlenet_train import train as training
from googlenet_train.data import order
def recording(index, step, **settings):
    batch = made(index, step, **settings)
    rank, ranks, part = settings["rank"], settings["world_size"], settings["micro_batch"]
    chosen = order.batch_indices(settings["seed"], step, len(index), settings["batch_size"],
                                 rank, ranks, part, settings["accumulate"])
    rows = [[int(i), hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()]
            for i, image in zip(chosen, batch.images, strict=True)]
    with open(f"stream-{rank}.jsonl", "a") as file:
        print(json.dumps([step, part * ranks + rank, rows]), file=file)
    return batch
made, training.training_batch = training.training_batch, recording
"""
# Writes the bits of every rank's network and average after the last step.
FINGERPRINT = """
import hashlib, os
from googlenet_train import train as training
def finishing(run):
    bits = hashlib.sha256()
    for tensors in (run.live, *run.averages.values()):
        for name in sorted(tensors):
            bits.update(tensors[name].contiguous().numpy().tobytes())
    open(f"bits-{os.environ['RANK']}", "w").write(bits.hexdigest())
    return finished(run)
finished, training.announce.finished = training.announce.finished, finishing
"""


def stream(folder: Path) -> dict[int, list[list[object]]]:
    """The images of each step, in the order of the global batch, and forgets them."""
    blocks: dict[int, dict[int, list[list[object]]]] = {}
    for path in sorted(folder.glob("stream-*.jsonl")):
        for line in path.read_text().splitlines():
            step, block, rows = json.loads(line)
            blocks.setdefault(step, {})[block] = rows
        path.unlink()
    return {
        step: [row for block in sorted(parts) for row in parts[block]]
        for step, parts in sorted(blocks.items())
    }


def final(folder: Path, run: str) -> dict[str, torch.Tensor]:
    return load_file(sorted((folder / run / "checkpoints").glob("step-*"))[-1])


def logged(folder: Path, run: str) -> list[dict[str, float]]:
    """metrics.jsonl without the times."""
    lines = (folder / run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


TIMES = {"train/images_per_second", "train/data_wait"}


@pytest.mark.parametrize("many", [2, pytest.param(4, marks=[pytest.mark.slow, pytest.mark.long])])
def test_the_same_images_meet_the_same_steps_on_any_number_of_ranks(tiny_folder: Path, many: int):
    seen = {}
    for ranks, accumulate in ((1, 2), (many, 1)):
        run = f"run.dir=runs/{ranks}"
        growing = ("data.image_size=64", "schedule.image_size={from: 32, to: 64, until: 0.5}")
        changes = (run, f"optimizer.accumulate={accumulate}", "schedule.epochs=1", *growing)
        done = train(ranks, tiny_folder, *changes, before=RECORD + FINGERPRINT)
        assert done.codes == [0] * ranks, done.stderr
        assert done.stderr.count("EMA top-1") == 2  # one rank speaks, not each
        seen[ranks] = stream(tiny_folder)
        bits = {path.read_text() for path in tiny_folder.glob("bits-*")}
        assert len(list(tiny_folder.glob("bits-*"))) == ranks
        assert len(bits) == 1, "the ranks ended with different networks or averages"
    assert [len(rows) for rows in seen[1].values()] == [8, 8, 8]
    assert seen[many] == seen[1]
    state = final(tiny_folder, f"runs/{many}")
    assert state.keys() == final(tiny_folder, "runs/1").keys()


STEPS = """
import json, torch
from torch import nn
from googlenet_train import distributed, numeric, optim, parallel
from googlenet_train.data.loader import Batch
from steps import one_step

def three_steps(lost, accumulate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 3))
    rank, ranks = distributed.rank(), distributed.world_size()
    window = torch.zeros(9)
    guard = numeric.new_guard(model, window, 0)
    network = parallel.spread(model, guard, torch.device("cpu"), 8, accumulate)
    optimizer = optim.build_sgd(model, lr=0.5, momentum=0.9, weight_decay=0.0, fused=False)
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        images = torch.randint(0, 256, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 3, (8,), generator=generator)
        size = 8 // (ranks * accumulate)
        batches = []
        for part in range(accumulate):
            first = (part * ranks + rank) * size
            keep = [row for row in range(first, first + size) if row not in lost]
            batches.append(Batch(images[keep], labels[keep]))
        count = sum(distributed.gather(sum(len(b.labels) for b in batches)))
        one_step(network, optimizer, batches, window, guard, step=step, count=count, lr=0.5,
                 label_smoothing=0.1)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return weights.tolist(), window[:3].tolist()

with distributed.group(20):
    results = [three_steps(*case) for case in CASES]
    if distributed.rank() == 0:
        print(json.dumps(results))
"""


def test_ranks_learn_the_mean_over_all_images(tmp_path: Path):
    """Also where images are missing, unevenly, and where a rank is left with none at all."""
    cases = [([], 1), ([4, 5, 6, 7], 1), ([0, 5], 1), ([7], 2), ([6, 7], 2)]
    results = {}
    for ranks in (1, 2):
        done = on_ranks(ranks, f"CASES = {cases}\n{STEPS}", tmp_path)
        assert done.codes == [0] * ranks, done.stderr
        results[ranks] = json.loads(done.stdout.splitlines()[-1])
    for (lost, _), (one, sums_one), (two, sums_two) in zip(
        cases, results[1], results[2], strict=True
    ):
        torch.testing.assert_close(torch.tensor(two), torch.tensor(one), rtol=1e-5, atol=1e-6)
        assert sums_two == pytest.approx(sums_one, rel=1e-5)
        assert sums_two[0] == 3 * (8 - len(lost))
    assert results[1][0] != results[1][1]


EVALUATE = """
import json, torch
from googlenet_train import distributed, evaluate as evaluation
from googlenet_train.data.index import open_source
from googlenet_train.evaluate import Setting, evaluate

index = open_source("photos/val")
seen = []
made = evaluation.evaluation_batch
def recording(index, chosen, *rest):
    seen.extend(chosen)
    return made(index, chosen, *rest)
evaluation.evaluation_batch = recording
torch.manual_seed(0)
weight = torch.randn(3 * 32 * 32, 3)
network = lambda images: images.flatten(1) @ weight / 50
setting = Setting(torch.device("cpu"), "fp32", 32, (0.5,) * 3, (0.5,) * 3, batch_size=2, workers=1)
with distributed.group(20):
    progress = []
    result = evaluate({"val": network}, index, setting, progress=progress.append)
    everyone = distributed.gather((seen, result, sum(progress)))
    if distributed.rank() == 0:
        print(json.dumps(everyone))
"""


def test_evaluation_sees_each_image_once_on_any_number_of_ranks(tiny_folder: Path):
    """9 images on 4 ranks, in batches of 2: nothing is padded, nothing is seen twice."""
    ranks = 4
    ((_, alone, _),) = json.loads(on_ranks(1, EVALUATE, tiny_folder).stdout.splitlines()[-1])
    done = on_ranks(ranks, EVALUATE, tiny_folder)
    assert done.codes == [0] * ranks, done.stderr
    everyone = json.loads(done.stdout.splitlines()[-1])
    assert sorted(i for seen, _, _ in everyone for i in seen) == list(range(9))
    for _, result, progress in everyone:
        loss, loss_alone = result["val"].pop("loss"), alone["val"].get("loss")
        assert result["val"] == {k: v for k, v in alone["val"].items() if k != "loss"}
        assert loss == pytest.approx(loss_alone, abs=1e-5)
        assert progress == 9


def test_a_photo_that_one_rank_cannot_read_stops_all_at_once(tiny_folder: Path):
    bad = tiny_folder / "photos/train/dog/3.jpg"
    bad.write_text("not a photo")
    done = train(2, tiny_folder)
    assert done.codes == [ExitCode.DATA] * 2
    assert done.stderr.count("error    ") == 1
    assert "dog/3.jpg" in done.stderr
    assert "rank " in done.stderr.split("error    ")[1]


def test_a_batch_that_does_not_divide_by_the_ranks_is_refused(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    loaded = config_file.load("tiny.yaml", [])
    with pytest.raises(UserError, match=r"8 does not divide into 3 ranks .* are 6 and 9") as error:
        launch.prepare(loaded, resume=False, fresh=False, allow=[])
    assert error.value.exit_code == ExitCode.USAGE


def at_step(step: int, signal_name: str, rank: int = 1) -> str:
    """Statements after which `rank` sends itself a signal just before that step."""
    return f"""
import os, signal
from googlenet_train import train as training
def signalled(*given, **named):
    if os.environ["RANK"] == "{rank}" and named["step"] == {step}:
        os.kill(os.getpid(), signal.{signal_name})
    return stepped(*given, **named)
stepped, training.train_step = training.train_step, signalled
"""


@pytest.mark.parametrize(
    ("how", "timeout"), [("SIGKILL", 90), pytest.param("SIGSTOP", 10, marks=pytest.mark.slow)]
)
def test_one_rank_that_is_killed_or_hangs_is_named_by_the_others(
    tiny_folder: Path, how: str, timeout: int
):
    """Where it is killed they end with exit code 7 at once, not after distributed.timeout."""
    begin = time.monotonic()
    settings = ("optimizer.batch_size=6", f"distributed.timeout={timeout}")
    done = train(3, tiny_folder, *settings, before=at_step(2, how))
    assert done.codes == [ExitCode.DISTRIBUTED, -signal.SIGKILL, ExitCode.DISTRIBUTED], done.stderr
    assert done.stderr.count("rank 1 of 3 does not answer: killed, or hanging") == 2, done.stderr
    if how == "SIGKILL":
        assert time.monotonic() - begin < timeout


@pytest.mark.slow
def test_a_rank_that_hangs_and_could_answer_is_named_too(tiny_folder: Path):
    """Its process runs, and its main thread reads a photo from a dead file server, say."""
    hang = at_step(2, "SIGKILL").replace("os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(25)")
    assert "time.sleep" in hang
    settings = ("optimizer.batch_size=6", "distributed.timeout=6")
    done = train(3, tiny_folder, *settings, before=f"import time\n{hang}")
    assert [done.codes[r] for r in (0, 2)] == [ExitCode.DISTRIBUTED] * 2, done.stderr
    named = "rank 1 of 3 does not come to where the others wait: hanging for 6 s"
    assert done.stderr.count(named) == 2, done.stderr


# Rank 1 dies. Rank 0 waits for it and is told; rank 2 waits for rank 0, which it knows to be alive.
WAITS_FOR_A_SURVIVOR = """
import os, signal, sys, torch
import torch.distributed as dist
from googlenet_train import distributed, roll_call
from googlenet_train.errors import UserError
BEFORE
try:
    with distributed.group(60):
        distributed.gather(0)
        if distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with distributed.waiting():
            dist.recv(torch.zeros(1), src={0: 1, 2: 0}[distributed.rank()])
except UserError as error:
    print(f"rank {distributed.rank()}: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_a_rank_that_waits_for_a_survivor_is_not_taken_for_dead(tmp_path: Path, guarded: bool):
    before = "" if guarded else "roll_call.RollCall._watch = lambda self, store: None"
    done = on_ranks(3, WAITS_FOR_A_SURVIVOR.replace("BEFORE", before), tmp_path)
    assert done.codes == [ExitCode.DISTRIBUTED, -signal.SIGKILL, ExitCode.DISTRIBUTED]
    said = sorted(re.findall(r"rank (\d): (ranks? [\d, ]+ of 3|the machine)", done.stderr))
    if guarded:
        assert said == [("0", "rank 1 of 3"), ("2", "rank 1 of 3")], done.stderr
    else:
        assert said[0] == ("0", "ranks 1, 2 of 3"), done.stderr


def test_a_blocked_rank_ends_what_it_is_saving(tmp_path: Path):
    """Rank 0 waits for rank 1, which waits for the dead one, and is told to end meanwhile."""
    code = WAITS_FOR_A_SURVIVOR.replace("BEFORE", "import pathlib, time").replace(
        "        with distributed.waiting():",
        """        if distributed.rank() == 0:
            from googlenet_train.machine.background import Background
            saving = Background()
            distributed.finish_first(saving.wait)
            saving.start(lambda: (time.sleep(15), pathlib.Path("saved").touch()))
        with distributed.waiting():""",
    )
    code = code.replace("src={0: 1, 2: 0}", "src={0: 2, 2: 1}")
    done = on_ranks(3, code, tmp_path)
    assert done.codes == [ExitCode.DISTRIBUTED, -signal.SIGKILL, ExitCode.DISTRIBUTED], done.stderr
    assert (tmp_path / "saved").exists()


def test_a_rank_that_dies_when_all_is_done_fails_nobody(tmp_path: Path):
    code = """
import os, signal
from googlenet_train import distributed
with distributed.group(60):
    distributed.gather(0)
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    assert on_ranks(3, code, tmp_path).codes == [0, -signal.SIGKILL, 0]


def test_one_rank_that_gets_a_signal_stops_all_with_a_checkpoint(tiny_folder: Path):
    """Even where it comes twice: from the batch system, and handed on by torchrun."""
    kill = "os.kill(os.getpid(), signal.SIGTERM)"
    twice = at_step(1, "SIGTERM").replace(kill, f"{kill}; {kill}")
    assert twice.count("os.kill") == 2
    done = train(2, tiny_folder, before=twice)
    assert done.codes == [ExitCode.SIGTERM] * 2, done.stderr
    assert "stopped  at step 2, saved" in done.stderr
    assert [p.name for p in (tiny_folder / "runs/tiny/checkpoints").iterdir()] == [
        "step-00000002.safetensors"
    ]


def test_sync_batchnorm_is_refused_off_the_gpu(tiny_folder: Path):
    done = train(2, tiny_folder, "distributed.sync_batchnorm=true")
    assert done.codes == [ExitCode.USAGE] * 2
    assert "works on GPUs only" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.long), 3])
def test_killed_and_resumed_the_ranks_end_with_the_same_bits(tiny_folder: Path, ranks: int):
    """The log too. On three ranks the last bit of a sum depends on DDP's layout of gradients."""
    settings = ("optimizer.batch_size=6", "checkpoint.every_steps=2", "log.every_steps=4")
    whole = train(ranks, tiny_folder, "run.dir=runs/whole", *settings)
    assert whole.codes == [0] * ranks, whole.stderr
    killed = train(
        ranks, tiny_folder, "run.dir=runs/killed", *settings, before=at_step(7, "SIGKILL", rank=0)
    )
    assert set(killed.codes) <= {-signal.SIGKILL, ExitCode.DISTRIBUTED}
    resumed = train(ranks, tiny_folder, "run.dir=runs/killed", *settings, "--resume")
    assert resumed.codes == [0] * ranks, resumed.stderr
    a, b = final(tiny_folder, "runs/whole"), final(tiny_folder, "runs/killed")
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert logged(tiny_folder, "runs/whole") == logged(tiny_folder, "runs/killed")


@pytest.mark.slow
def test_a_chain_of_2_1_and_4_ranks_meets_the_images_of_one_run(tiny_folder: Path):
    done = train(1, tiny_folder, "run.dir=runs/whole", "schedule.epochs=3", before=RECORD)
    assert done.codes == [0], done.stderr
    whole = stream(tiny_folder)
    met: dict[int, list[list[object]]] = {}
    for ranks, last in ((2, 1), (1, 4), (4, None)):
        before = RECORD + (at_step(last, "SIGTERM", rank=0) if last is not None else "")
        words = ("run.dir=runs/chain", "schedule.epochs=3", "--resume", "data.workers=0")
        done = train(ranks, tiny_folder, *words, before=before)
        assert done.codes == [0 if last is None else 143] * ranks, done.stderr
        new = stream(tiny_folder)
        met |= {step: rows for step, rows in new.items() if last is None or step <= last}
    assert met == whole
    assert "ranks was 1 and is 4" in done.stderr


def torchrun(folder: Path, before: str, *arguments: str) -> "subprocess.Popen[str]":
    """torchrun with two ranks of the command line, after the statements `before`."""
    code = f"import sys\n{before}\nfrom googlenet_train.cli import main\nsys.exit(main())"
    (folder / "started.py").write_text(code)
    options = ["--nproc-per-node", "2", "--max-restarts", "1"]
    words = ["--config", "tiny.yaml", "--resume", "distributed.timeout=20", *arguments]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *options, "started.py", *words],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_torchrun_restarts_a_run_that_lost_a_rank(tiny_folder: Path):
    """Under the real launcher: the second start goes on from the last checkpoint to the end."""
    once = "import os\nif os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
    kill = once + "\n".join("    " + line for line in at_step(4, "SIGKILL").splitlines())
    process = torchrun(tiny_folder, kill, "checkpoint.every_steps=2")
    _, said = process.communicate(timeout=110)
    assert process.returncode == 0, said
    assert "rank 1 of 2 does not answer" in said
    assert "resume   at step 4" in said
    assert (tiny_folder / "runs/tiny/checkpoints/step-00000006.safetensors").exists()


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_all_ranks_with_a_checkpoint(tiny_folder: Path):
    process = torchrun(tiny_folder, "", "schedule.epochs=200", "evaluate.every_epochs=null")
    log = tiny_folder / "runs/tiny/checkpoints"
    deadline = time.monotonic() + 60
    while not list(log.glob("step-*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    stopped = int(re.search(r"stopped  at step (\d+), saved", said)[1])
    assert (log / f"step-{stopped:08d}.safetensors").exists()

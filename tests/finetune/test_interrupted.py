"""A run that is ended early leaves no half result, and the same command goes on from its last checkpoint."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from server.errors import EXIT_IO, ConfigurationError
from server.finetune import train
from server.finetune.base import Base
from server.finetune.options import Options
from server.finetune.tasks import Classify
from server.finetune.train import finetune
from server.finetune.workspace import STATE
from tests.finetune.bases import write_base, write_reviews
from tests.full_disk import largest_file

torch.set_num_threads(1)
pytestmark = pytest.mark.timeout(240)
PATIENCE_S = 120.0


@pytest.fixture
def options(tmp_path: Path) -> Options:
    write_base(tmp_path / "base")
    write_reviews(tmp_path / "data.csv", num_rows=80)
    return Options(
        task="classify", model=str(tmp_path / "base"), data=str(tmp_path / "data.csv"), out=str(tmp_path / "out"),
        epochs=4.0, patience=4, threads=1,
    )  # fmt: skip


def left_beside(options: Options) -> list[str]:
    """What there is in the folder of the result but base, data and the result."""
    place = Path(options.out).parent
    return sorted(path.name for path in place.iterdir() if path.name not in ("base", "data.csv", "out"))


def has_checkpoint(checkpoints: Path) -> bool:
    """Whether one is complete. Its last file exists before it has been written."""
    for path in checkpoints.glob(f"*/{STATE}"):
        with suppress(ValueError):
            json.loads(path.read_text())
            return True
    return False


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    options: Options, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = finetune(replace(options, out=options.out + "-undisturbed"))
    long = replace(options, epochs=4.0)
    process = subprocess.Popen(
        [sys.executable, "-m", "server", *long.command().split()[1:]], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = Path(options.out).with_name(".out.unfinished") / "checkpoints"
    deadline_s = time.monotonic() + PATIENCE_S
    while not has_checkpoint(checkpoints) and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not Path(options.out).exists()
    # What a kill in the middle of writing leaves.
    (checkpoints / "checkpoint-999").mkdir()
    (checkpoints / "checkpoint-999" / STATE).write_text("{")

    capsys.readouterr()
    found = finetune(long)
    assert "continuing from step" in capsys.readouterr().out
    assert found["test"] == pytest.approx(expected["test"], abs=1e-3)
    assert found["steps"] == expected["steps"]
    assert left_beside(options) == ["out-undisturbed"]


@contextmanager
def interrupted_at(evaluation: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Iterator[None]:
    """This evaluation raises the error."""
    scores, count = Classify.scores, iter(range(1, 100))

    def counted(*arguments: Any) -> dict[str, float]:
        if next(count) == evaluation:
            raise error
        return scores(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Classify, "scores", counted)
        yield


def test_ctrl_c_keeps_the_checkpoints_and_says_how_to_go_on(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted_at(3, monkeypatch, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        finetune(options)
    assert "Run the same command again to continue from the last checkpoint." in capsys.readouterr().out
    assert left_beside(options) == [".out.unfinished"]
    finetune(options)
    assert "continuing from step" in capsys.readouterr().out
    assert left_beside(options) == []


def test_ctrl_c_before_the_first_checkpoint_leaves_nothing(
    options: Options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with interrupted_at(1, monkeypatch, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        finetune(options)
    assert "No files were left behind." in capsys.readouterr().out
    assert left_beside(options) == []


def test_checkpoints_of_other_options_are_not_gone_on_from(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    with interrupted_at(3, monkeypatch, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        finetune(options)
    with pytest.raises(ConfigurationError, match=r"belongs to an interrupted run"):
        finetune(replace(options, seed=1))
    assert left_beside(options) == [".out.unfinished"]


def test_a_run_keeps_another_away_from_its_folder(options: Options) -> None:
    folder = Path(options.out).with_name(".out.unfinished")
    folder.mkdir()
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="Another run is writing to"):
            finetune(options)
        assert folder.exists()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("num_bytes", [10_000, 60_000, 150_000])
def test_a_full_disk_is_one_sentence_and_leaves_no_half_result(options: Options, method: Any, num_bytes: int) -> None:
    options = replace(options, method=method, epochs=1.0)
    try:
        with largest_file(num_bytes):
            finetune(options)
    except ConfigurationError as error:
        assert error.exit_code == EXIT_IO
        assert str(error).startswith(f"{options.out} cannot be written: ")
        assert "\n" not in str(error)
        assert not Path(options.out).exists()
        assert not list(Path(options.out).parent.glob("**/result"))
    else:
        assert num_bytes > 100_000
    # With room again it comes to its end.
    if not Path(options.out).exists():
        finetune(options)
    assert json.loads((Path(options.out) / "metrics.json").read_text())["steps"] == 4
    assert left_beside(options) == []


def test_a_run_that_had_stopped_early_is_not_trained_on(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    options = replace(options, epochs=9.0, patience=1, learning_rate=1e-9)
    undisturbed = finetune(replace(options, out=options.out + "-undisturbed"))
    assert undisturbed["epochs"] == 2
    # The first evaluation after the two epochs is that of the best weights.
    with interrupted_at(3, monkeypatch, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        finetune(options)
    found = finetune(options)
    assert found["epochs"] == 2
    assert found["best_step"] == undisturbed["best_step"]
    assert found["test"] == pytest.approx(undisturbed["test"], abs=1e-3)


def test_a_run_that_diverges_is_refused_and_leaves_nothing(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    load = train.load_base

    def broken(*arguments: Any) -> Base:
        base = load(*arguments)
        base.model.classifier.bias.data.fill_(float("nan"))
        return base

    monkeypatch.setattr(train, "load_base", broken)
    with pytest.raises(ConfigurationError, match=r"Training diverged: .* Lower --learning-rate, which is 0\.0005\."):
        finetune(options)
    assert left_beside(options) == []


@pytest.mark.parametrize("exists", [True, False])
def test_the_result_is_written_to_where_a_link_points(options: Options, tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "elsewhere"
    if exists:
        target.mkdir()
    Path(options.out).symlink_to(target)
    finetune(replace(options, max_steps=1))
    assert Path(options.out).is_symlink()
    assert (target / "metrics.json").is_file()
    assert left_beside(options) == ["elsewhere"]


def test_a_mount_point_is_refused_before_training(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(options.out).mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == Path(options.out))
    with pytest.raises(ConfigurationError, match=r"is a mount point\. Give --out a new folder in it"):
        finetune(options)


def test_never_works_in_a_folder_that_another_program_made(options: Options) -> None:
    folder = Path(options.out).with_name(".out.unfinished")
    (folder / "result").mkdir(parents=True)
    (folder / "result" / "mine").write_text("mine")
    with pytest.raises(ConfigurationError, match="another program made it"):
        finetune(options)
    assert (folder / "result" / "mine").read_text() == "mine"

"""The command line: help, bad input, a run in a process of its own, Ctrl-C and going on."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from spectrax.cli import main
from spectrax.report import read_records

SMALL = ["--data", "digits", "--model", "mlp", "--depth", "1", "--width", "8", "--batch-size", "128"]


def run(capsys, *arguments):
    code = main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def spectrax(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "spectrax", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_help_shows_the_options_with_their_defaults(capsys):
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    text = " ".join(out.split())
    for option in (
        "--data", "--model {resnet,convnet,densenet,mlp}", "--depth", "--width",
        "--activation {relu,leaky_relu,abs,gelu}", "--rho", "--optimizer {adamw,sgd,muon}",
        "--learning-rate", "--epochs", "--batch-size",
        "--loss {cross_entropy,squared_error}", "--seed",
        "--penalty {condition_number,smooth_condition,spectral_norm,", ",log_determinant,rank,none}",
        "--penalty-weight",
        "--penalty-on {weights,jacobian}", "--renew-every", "--block-size", "--measure-every", "--out", "--overwrite",
        "--baseline", "--resume", "--quiet", "--normalization {none,batch,layer}",
    ):  # fmt: skip
        assert option in text
    assert "(default: mnist5k)" in text
    assert "(default: those of four epochs)" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vgg"],
         r"--model: invalid choice: 'vgg' .choose from '?resnet'?, '?convnet'?, '?densenet'?, '?mlp'?"),
        (["--penalty", "l2"], "invalid choice: 'l2'.*orthogonality"),
        (["--optimizer", "adam"], "invalid choice: 'adam'.*muon"),
        (["--epochs", "0"], "--epochs: must be an integer of at least 1, got 0"),
        (["--depth", "two"], "--depth: must be an integer of at least 1, got 'two'"),
        (["--learning-rate", "nan"], "--learning-rate: must be a finite number, got nan"),
        (["--learning-rate", "fast"], "--learning-rate: must be a number, got 'fast'"),
        (["--widht", "3"], "unrecognized arguments: --widht 3"),
        (["--learning-rate", "-1"], "learning_rate must be larger than 0, got -1.0"),
        (["--data", "cifar10"], "data must be 'mnist5k', 'digits' or the path of an .npz file; got 'cifar10'"),
        (["--data", "none.npz"], "data file none.npz does not exist"),
        (["--penalty", "none", "--baseline"], "penalty is 'none' already"),
        (["--model", "convnet", "--rho", "0.5"], "convnet has no skips"),
        (["--resume", "nowhere"], "nowhere holds no run"),
    ],
)  # fmt: skip
def test_bad_input_is_said_in_one_line_and_leaves_nothing(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "train", *arguments)
    assert code == 2
    assert re.search(message, err)
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_file_says_what_is_missing(capsys, tmp_path):
    np.savez(tmp_path / "a.npz", x_train=np.zeros((4, 8, 8)), y_train=np.zeros(4, int))
    code, _, err = run(capsys, "train", "--data", str(tmp_path / "a.npz"), "--out", str(tmp_path / "run"))
    assert code == 2
    assert "lacks x_test of shape (N, H, W), (N, H, W, C) or (N, features); y_test of shape (N,)" in err


def test_no_command(capsys):
    assert run(capsys)[0] == 2


def test_a_run_from_a_file_in_plain_lines_and_what_comes_after_it(capsys, tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    x = rng.normal(size=(80, 5)) + 3 * y[:, None]
    np.savez(tmp_path / "two.npz", x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    out_dir = str(tmp_path / "run")
    options = [
        "--data",
        str(tmp_path / "two.npz"),
        *SMALL[2:-2],
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--penalty",
        "none",
    ]
    code, out, err = run(capsys, "train", *options, "--out", out_dir)
    assert code == 0
    assert err == ""
    assert "\x1b" not in out  # no terminal, no bar
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines[:3]] == [f"baseline: epoch {i}/2" for i in range(3)]
    assert "Condition number of each layer" in out
    assert "dense_1" in out
    assert f"Checkpoint: {out_dir}/checkpoints/baseline/8" in out
    assert len(read_records(f"{out_dir}/metrics.jsonl")) == 8 + 3

    code, out, err = run(capsys, "train", *options, "--out", out_dir)
    assert code == 2
    assert "holds another run" in err
    code, out, err = run(capsys, "train", "--resume", out_dir)
    assert (code, err) == (0, "")
    assert "is finished already" in out
    code, out, err = run(capsys, "train", "--resume", out_dir, "--epochs", "3", "--width", "8", "--model", "resnet")
    assert code == 2
    assert "contradicts --epochs 3 (the run has 2), --model resnet (the run has mlp)" in err
    code, out, err = run(capsys, "train", "--resume", out_dir, "--overwrite")
    assert code == 2
    assert "choose one of the two" in err
    code, out, err = run(capsys, "train", *options, "--out", out_dir, "--overwrite", "--quiet", "--seed", "1")
    assert (code, out, err) == (0, "", "")
    (tmp_path / "run" / "notes.txt").touch()
    code, out, err = run(capsys, "train", *options, "--out", out_dir, "--overwrite")
    assert code == 2
    assert "files that no run of spectrax train wrote (notes.txt)" in err


def test_a_loss_that_is_not_finite_ends_with_code_1_and_the_place(capsys, tmp_path):
    code, _, err = run(
        capsys, "train", *SMALL, "--epochs", "1", "--penalty", "none", "--optimizer", "sgd", "--learning-rate", "1e30",
        "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert code == 1
    assert re.search(
        r"run 'baseline', step \d+: the loss was (nan|inf); the output of layer dense_\d was the first", err
    )
    assert f"The last good checkpoint is {tmp_path}/run/checkpoints/baseline/0" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_the_run_goes_on(capsys, tmp_path, number):
    directory = tmp_path / "run"
    options = [*SMALL, "--penalty", "none", "--epochs", "3000", "--measure-every", "3000"]
    process = spectrax("train", *options, "--out", str(directory))
    try:
        deadline = time.monotonic() + 120
        while not (directory / "checkpoints/baseline/11").is_dir():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.count("\n") == 1
    step = int(re.search(r"Stopped after step (\d+) of the run 'baseline'", err)[1])
    assert f"Continue with: spectrax train --resume {directory}" in err
    assert (directory / f"checkpoints/baseline/{step}").is_dir()
    records = [r for r in read_records(directory / "metrics.jsonl") if r["event"] == "step"]
    assert [r["step"] for r in records] == list(range(1, step + 1))

    # It goes on from there, and stops again at the next request.
    stop_again = spectrax("train", "--resume", str(directory))
    try:
        while not any(
            int(path.name) > step
            for path in (directory / "checkpoints/baseline").glob("[0-9]*[0-9]")
            if path.name.isdecimal()
        ):
            assert stop_again.poll() is None, stop_again.communicate()
            time.sleep(0.05)
        stop_again.send_signal(signal.SIGINT)
        stop_again.communicate(timeout=60)
    finally:
        stop_again.kill()
    assert stop_again.returncode == 130
    records = [r["step"] for r in read_records(directory / "metrics.jsonl") if r["event"] == "step"]
    assert records == list(range(1, len(records) + 1))
    assert len(records) > step


def test_a_terminal_gets_a_bar_with_the_time_left(tmp_path):
    parent, child = pty.openpty()
    arguments = ["train", *SMALL, "--penalty", "none", "--epochs", "1", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "spectrax", *arguments],
        stdout=child, stderr=subprocess.PIPE, env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "140"},
    )  # fmt: skip
    os.close(child)
    output = b""
    try:
        while True:
            try:
                chunk = os.read(parent, 4096)
            except OSError:  # the other end was closed
                break
            if not chunk:
                break
            output += chunk
    finally:
        os.close(parent)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    text = output.decode()
    assert "baseline, epoch 1" in text
    assert "left" in text
    assert "━" in text
    assert "Condition number of each layer" in text

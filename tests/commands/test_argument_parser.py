"""Wrong command lines are answered with a short message, the nearest name and exit code 2."""

import pytest

from lora_chat.cli import main
from lora_chat.commands.argument_parser import OTHER_WORDS
from lora_chat.commands.parser import COMMANDS


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("", ["A command is missing", "lora-chat sft quickstart", "Fix: lora-chat --help"]),
        ("sftt x", ["no command sftt. Did you mean sft?"]),
        ("train x", ["Did you mean lora-chat sft?"]),
        ("help", ["Did you mean lora-chat --help?"]),
        ("qqqqq", ["no command qqqqq.", "Fix: lora-chat --help"]),
        ("--jsn", ["no option --jsn."]),
        (
            "sft x --proceses 2",
            ["no option --proceses. Did you mean --processes?", "Fix: lora-chat sft --help"],
        ),
        ("sft x --processes=2 --quite", ["sft has no option --quite."]),
        ("sft x --epochs 3", ["It is a setting: --set training.epochs=VALUE"]),
        ("plan x --learning-rate=1", ["It is a setting: --set training.learning_rate=VALUE"]),
        ("chat x --epochs 3", ["chat has no option --epochs."]),
        ("sft x y", ["sft has no argument for y."]),
        ("export x --to ggf", ["no ggf. Did you mean gguf?", "Choices: gguf,", "Example: lora-chat export "]),
        ("report", ["RUN", "Example: lora-chat report runs/"]),
        ("completion cmd", ["Choices: bash, zsh, fish"]),
    ],
)
def test_a_wrong_command_line_gets_a_short_answer(line, parts, capsys):
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert len(captured.err.splitlines()) <= 3
    for part in parts:
        assert part in captured.err


def test_a_strangers_argument_does_not_act_on_the_terminal(capsys):
    for arguments in (["\x1b]0;x\x07" * 500], ["sft", "x", "--\x1b[2J\n\n"], ["export", "x", "--to", "\x1b[31m"]):
        with pytest.raises(SystemExit):
            main(arguments)
        message = capsys.readouterr().err
        assert all(c.isprintable() or c == "\n" for c in message)
        assert len(message) < 3000
        assert len(message.splitlines()) <= 3


def test_other_words_lead_to_commands_and_are_none():
    words = [word for words in OTHER_WORDS.values() for word in words]
    assert set(OTHER_WORDS) <= COMMANDS.keys() | {"--help", "--version"}
    assert not set(words) & COMMANDS.keys()
    assert len(words) == len(set(words))

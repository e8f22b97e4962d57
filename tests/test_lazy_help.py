"""Python 3.14's check of help texts, which Hydra 1.3 does not pass, is left out for Hydra's parser and for no other."""

import argparse

import pytest

from ddpm_cli.cli import lazy_help

CHECK = "_check_help"


def check(parser: argparse.ArgumentParser) -> None:
    getattr(parser, CHECK)(object())


def test_help_is_unchecked_inside_and_checked_again_outside(monkeypatch):
    def refuse(self, action):
        raise ValueError("badly formed help string")

    monkeypatch.setattr(argparse._ActionsContainer, CHECK, refuse, raising=False)
    parser = argparse.ArgumentParser(add_help=False)
    with lazy_help.unchecked():
        check(parser)
    with pytest.raises(ValueError, match="badly formed"):
        check(parser)


def test_older_pythons_are_left_as_they_are(monkeypatch):
    monkeypatch.delattr(argparse._ActionsContainer, CHECK, raising=False)
    with lazy_help.unchecked():
        assert not hasattr(argparse.ArgumentParser, CHECK)

"""The commands of `drimbox`, one module for each thing an operator acts on."""

from drimbox.commands.french import speak_french

# Before any command is made: click names the kinds of its parameters as it makes them.
speak_french()

"""The commands of `drimbox`, one module for each thing an operator acts on."""

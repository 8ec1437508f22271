"""The command line: one thin module for each command, loaded when it is called."""

"""The command line. Only ``app`` knows typer; the other files do what a command asks for."""

"""Studies with the library; each is a command whose results and report are in docs/studies."""

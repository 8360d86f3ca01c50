"""The command `jala`."""
